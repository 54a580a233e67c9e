//! Trees of files that containers have written, walked by descriptors. Whatever is exchanged for a link meanwhile, nothing
//! outside is reached; and one open folder at a time is enough, however deep somebody has nested them: neither the stack
//! nor the number of descriptors grows with that.

use std::ffi::{CStr, CString};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Access, AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// What is done on the way.
pub(crate) trait Visitor {
    /// How folders are opened; links are never followed.
    const RESOLVE: ResolveFlags = ResolveFlags::NO_XDEV;

    /// Sees what `folder` has under this name; whether to go into it. What has vanished since is no error.
    fn see(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<bool>;

    /// Comes back from the folder of this name in `folder`.
    fn leave(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        let _ = (folder, name);
        Ok(())
    }
}

/// Shows the visitor everything in `root` and below. A folder that vanishes or is moved meanwhile is left out from there on.
///
/// # Errors
/// The visitor's, and those of reading folders.
pub(crate) fn walk<V: Visitor>(root: BorrowedFd<'_>, visitor: &mut V) -> Result<()> {
    let mut here = root.try_clone_to_owned().context("dup")?;
    let mut levels = vec![Level::read(&here, CString::default(), visitor)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.take() {
            match open::<V>(&here, &name) {
                Ok(inner) => {
                    levels.push(Level::read(&inner, name, visitor)?);
                    here = inner;
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
                Err(error) => return Err(error).with_context(|| format!("open {name:?}")),
            }
        } else if let (Some(done), false) = (levels.pop(), levels.is_empty()) {
            let (above, moved) = up::<V>(root, &here, &mut levels)?;
            here = above;
            if !moved {
                visitor.leave(here.as_fd(), &done.name)?;
            }
        }
    }
    Ok(())
}

/// Opens a folder to walk in, without following a link.
pub(crate) fn open_folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, FOLDER | OFlags::RDONLY, Mode::empty())
}

/// Removes `name` in `folder` with everything in it; nothing there is success. What is mounted in there stays, and is an
/// error. A folder that its owner may not enter is made accessible first.
pub(crate) fn remove(folder: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    if Remover.see(folder, name)? {
        match open::<Remover>(folder, name) {
            Ok(inner) => walk(inner.as_fd(), &mut Remover)?,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("open {name:?}")),
        }
        Remover.leave(folder, name)?;
    }
    Ok(())
}

/// [`remove`] by a path whose way there is ours, over whatever mounts.
pub(crate) fn remove_path(path: &Path) -> Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { bail!("remove {path:?}: not a name in a folder") };
    let name = CString::new(name.as_encoded_bytes()).context("a path with a null byte")?;
    match rustix::fs::open(above, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("open {}", above.display())),
        Ok(folder) => remove(folder.as_fd(), &name).with_context(|| format!("remove {}", path.display())),
    }
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open<V: Visitor>(folder: impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(folder, name, FOLDER | OFlags::RDONLY, Mode::empty(), V::RESOLVE)
}

/// A folder on the way.
struct Level {
    name: CString,
    identity: (u64, u64),
    /// The names of folders in it that are still to be seen, each with its null byte.
    rest: Vec<u8>,
}

impl Level {
    fn read(folder: &OwnedFd, name: CString, visitor: &mut impl Visitor) -> Result<Level> {
        let mut rest = Vec::new();
        for entry in Dir::read_from(folder).with_context(|| format!("read {name:?}"))? {
            let entry = entry.with_context(|| format!("read {name:?}"))?;
            let entry = entry.file_name();
            if entry != c"." && entry != c".." && visitor.see(folder.as_fd(), entry)? {
                rest.extend_from_slice(entry.to_bytes_with_nul());
            }
        }
        Ok(Level { name, identity: identity(folder)?, rest })
    }

    fn take(&mut self) -> Option<CString> {
        let end = self.rest.len().checked_sub(1)?;
        let start = self.rest[..end].iter().rposition(|byte| *byte == 0).map_or(0, |at| at + 1);
        let name = CString::from_vec_with_nul(self.rest.split_off(start)).ok();
        debug_assert!(name.is_some(), "what was put there");
        name
    }
}

/// The folder of the last level, which `below` was in. Where that was moved elsewhere (true), the way is gone down once more, as
/// far as it still leads; the levels beyond are dropped.
fn up<V: Visitor>(root: BorrowedFd<'_>, below: &OwnedFd, levels: &mut Vec<Level>) -> Result<(OwnedFd, bool)> {
    let above = rustix::fs::openat(below, c"..", FOLDER | OFlags::PATH, Mode::empty()).context("open ..")?;
    if levels.last().map(|level| level.identity) == Some(identity(&above)?) {
        return Ok((above, false));
    }
    let mut here = root.try_clone_to_owned().context("dup")?;
    for depth in 1..levels.len() {
        match open::<V>(&here, &levels[depth].name) {
            Ok(next) if identity(&next)? == levels[depth].identity => here = next,
            _ => {
                levels.truncate(depth);
                break;
            }
        }
    }
    Ok((here, true))
}

fn identity(folder: &OwnedFd) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(folder).context("fstat")?;
    Ok((stat.st_dev, stat.st_ino))
}

struct Remover;

impl Visitor for Remover {
    fn see(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(false),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error).with_context(|| format!("unlink {name:?}")),
        }
        let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        if rustix::fs::accessat(folder, name, all, AtFlags::EACCESS).is_err() {
            rustix::fs::chmodat(folder, name, Mode::RWXU, AtFlags::empty()).with_context(|| format!("chmod {name:?}"))?;
        }
        Ok(true)
    }

    fn leave(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR).with_context(|| format!("rmdir {name:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    struct Names(Vec<String>);

    impl Visitor for Names {
        fn see(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
            self.0.push(name.to_string_lossy().into_owned());
            Ok(rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_mode & 0o170_000 == 0o040_000))
        }
    }

    fn base(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("rrun-cri-tree-{name}-{}", std::process::id()));
        let _ = remove_path(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// /run and /var/lib are mounts of their own on most machines.
    #[test]
    fn the_way_to_a_tree_may_cross_mounts() {
        let path = PathBuf::from(format!("/dev/shm/rrun-cri-tree-{}", std::process::id()));
        fs::create_dir_all(path.join("a/b")).unwrap();
        remove_path(&path.join("a")).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        remove_path(&path).unwrap();
        remove_path(&path.join("gone/too")).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn nothing_behind_a_link_is_seen_or_removed() {
        let base = base("links");
        fs::create_dir_all(base.join("outside/kept")).unwrap();
        fs::create_dir_all(base.join("tree/a/b")).unwrap();
        fs::write(base.join("tree/a/b/file"), "").unwrap();
        symlink("../outside", base.join("tree/link")).unwrap();
        let mut names = Names(Vec::new());
        walk(open_folder(&base.join("tree")).unwrap().as_fd(), &mut names).unwrap();
        names.0.sort();
        assert_eq!(names.0, ["a", "b", "file", "link"]);
        symlink("outside", base.join("alias")).unwrap();
        assert!(open_folder(&base.join("alias")).is_err(), "the root itself is no link");
        remove_path(&base.join("tree")).unwrap();
        remove_path(&base.join("tree")).unwrap();
        assert!(base.join("outside/kept").exists() && !base.join("tree").exists());
        remove_path(&base).unwrap();
    }

    /// Exchanges what it is to enter for a link to the outside, as a container may between two calls.
    struct Exchange<'a>(&'a Path, Vec<String>);

    impl Visitor for Exchange<'_> {
        fn see(&mut self, _: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
            self.1.push(name.to_string_lossy().into_owned());
            if name == c"victim" {
                fs::rename(self.0.join("tree/victim"), self.0.join("moved"))?;
                symlink("../outside", self.0.join("tree/victim"))?;
            }
            Ok(true)
        }
    }

    #[test]
    fn a_folder_exchanged_for_a_link_is_not_entered() {
        let base = base("exchanged");
        fs::create_dir_all(base.join("outside/secret")).unwrap();
        fs::create_dir_all(base.join("tree/victim/inner")).unwrap();
        let mut seen = Exchange(&base, Vec::new());
        walk(open_folder(&base.join("tree")).unwrap().as_fd(), &mut seen).unwrap();
        assert_eq!(seen.1, ["victim"]);
        remove_path(&base).unwrap();
    }

    /// Moves the folder that it is in to the outside.
    struct Mover<'a>(&'a Path, Vec<String>);

    impl Visitor for Mover<'_> {
        fn see(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
            self.1.push(name.to_string_lossy().into_owned());
            if name == c"deep" {
                fs::rename(self.0.join("tree/2/way"), self.0.join("outside/way"))?;
            }
            Ok(rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_mode & 0o170_000 == 0o040_000))
        }

        fn leave(&mut self, _: BorrowedFd<'_>, name: &CStr) -> Result<()> {
            assert!(name != c"way", "its folder is another by now");
            Ok(())
        }
    }

    #[test]
    fn a_folder_moved_away_leads_nowhere_else() {
        let base = base("moved");
        fs::create_dir_all(base.join("outside/secret")).unwrap();
        for path in ["tree/1", "tree/2/way/deep", "tree/2/beside", "tree/3/last"] {
            fs::create_dir_all(base.join(path)).unwrap();
        }
        let mut seen = Mover(&base, Vec::new());
        walk(open_folder(&base.join("tree")).unwrap().as_fd(), &mut seen).unwrap();
        seen.1.sort();
        assert_eq!(seen.1, ["1", "2", "3", "beside", "deep", "last", "way"]);
        remove_path(&base).unwrap();
    }

    #[test]
    fn no_depth_is_too_much() {
        let base = base("deep");
        let mut here = open_folder(&base).unwrap();
        const DEPTH: usize = 3_000;
        for _ in 0..DEPTH {
            rustix::fs::mkdirat(&here, c"d", Mode::RWXU).unwrap();
            here = open::<Remover>(&here, c"d").unwrap();
        }
        let small = std::thread::Builder::new().stack_size(64 << 10);
        let walked = small.spawn(move || {
            let mut names = Names(Vec::new());
            walk(open_folder(&base).unwrap().as_fd(), &mut names).unwrap();
            remove_path(&base).unwrap();
            (names.0.len(), base.exists())
        });
        assert_eq!(walked.unwrap().join().unwrap(), (DEPTH, false));
    }

    #[test]
    fn folders_that_nobody_may_enter_go_as_well() {
        let base = base("modes");
        fs::create_dir_all(base.join("closed/inner")).unwrap();
        fs::set_permissions(base.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_path(&base).unwrap();
        assert!(!base.exists());
    }
}
