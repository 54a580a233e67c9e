//! The state root: where the containers' folders are.

use super::parse::Parsed;
use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::unistd::geteuid;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// `--root`, absolute and without `..`; else the user's own place, made where it is missing.
pub(super) fn of(globals: &Parsed) -> Result<PathBuf> {
    if let Some(given) = globals.path("root") {
        return cleaned(&given);
    }
    let uid = geteuid();
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    match set("XDG_RUNTIME_DIR") {
        Some(dir) if !uid.is_root() || honours_xdg() => {
            let root = Path::new(&dir).join("rrun");
            // The sticky bit keeps it from being swept as forgotten (XDG base directories).
            make(&root, 0o1700).with_context(|| format!("{} (choose a state root with --root)", root.display()))?;
            Ok(root)
        }
        None if !uid.is_root() => {
            let root = PathBuf::from(format!("/tmp/rrun-{uid}"));
            make(&root, 0o700).with_context(|| root.display().to_string())?;
            check_ours(&root, uid.as_raw())?;
            Ok(root)
        }
        _ => Ok(PathBuf::from("/run/rrun")),
    }
}

/// Root's containers are in one place whatever its session says, except for somebody who is root
/// only in a user namespace and has not taken root's name.
fn honours_xdg() -> bool {
    std::env::var_os("USER").is_none_or(|user| user != "root") && in_user_namespace()
}

/// Whether our user namespace is one that somebody made.
pub fn in_user_namespace() -> bool {
    // The initial one maps all ids there are, and shows it in one line.
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"]))
}

fn make(path: &Path, mode: u32) -> sys::Result<()> {
    match nix::unistd::mkdir(path, nix::sys::stat::Mode::from_bits_truncate(mode)) {
        Err(Errno::EEXIST) | Ok(()) => Ok(()),
        Err(e) => Err(e),
    }
}

/// /tmp is everybody's: the folder may have been laid there by another user.
fn check_ours(path: &Path, uid: u32) -> Result<()> {
    let meta = std::fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o077 != 0 {
        bail!("{}: not a folder of ours with mode 0700 (set XDG_RUNTIME_DIR, or choose a state root with --root)", path.display());
    }
    Ok(())
}

fn cleaned(given: &Path) -> Result<PathBuf> {
    let mut root = PathBuf::new();
    for component in std::path::absolute(given).with_context(|| format!("--root {}", given.display()))?.components() {
        match component {
            Component::ParentDir => drop(root.pop()),
            other => root.push(other),
        }
    }
    if root == Path::new("/") {
        bail!("Option --root argument should not be set to /");
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_cleaned() {
        assert_eq!(cleaned(Path::new("/a/./b//../c/")).unwrap(), Path::new("/a/c"));
        assert!(cleaned(Path::new("relative")).unwrap().is_absolute());
        for slash in ["/", "//", "/..", "/a/..", "../../../../../../../../../../../../../../../.."] {
            assert!(cleaned(Path::new(slash)).is_err(), "{slash}");
        }
    }
}
