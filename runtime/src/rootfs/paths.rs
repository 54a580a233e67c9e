//! Paths inside a root file system, which are hostile: any component may be a symbolic link, and
//! another container may exchange it at any moment.
//!
//! Everything is resolved beneath one descriptor of the root, by `openat2(RESOLVE_IN_ROOT)` or, on
//! kernels before 5.6 and wherever something has to be created, by [`walk`]: one component at a
//! time, never following a link in the kernel, `..` answered from the descriptors passed on the way.

use crate::sys;
use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Set by the first `ENOSYS` of `openat2`.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: u32 = 40;
/// How often a component that appears and vanishes under our hands is looked at again.
const MAX_RACES: u32 = 128;

/// What [`walk`] makes of a path whose last component is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// `ENOENT`.
    Fail,
    /// A folder, and all folders on the way to it.
    Folder,
    /// An empty file, and all folders on the way to it.
    File,
}

/// What a path led to.
#[derive(Debug)]
pub(super) struct Found {
    /// `O_PATH` descriptor, never of a symbolic link.
    pub fd: OwnedFd,
    /// Where it is below the root once every link is resolved; absolute.
    pub path: PathBuf,
    /// How many components at its end had to be made.
    pub made: usize,
}

/// Opens `path` below `root` with `flags`, links resolved as if `root` were `/`.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> sys::Result<OwnedFd> {
    if !NO_OPENAT2.load(Relaxed) {
        let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_MAGICLINKS;
        match sys::openat2(root, &relative(path)?, flags.bits(), 0, resolve) {
            Err(Errno::ENOSYS) => NO_OPENAT2.store(true, Relaxed),
            other => return other,
        }
    }
    let found = walk(root, path, Missing::Fail)?;
    reopen(found.fd, flags)
}

/// Opens `path` below `root`, where no component may be a symbolic link (`ELOOP`).
pub(super) fn open_plain(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> sys::Result<OwnedFd> {
    if !NO_OPENAT2.load(Relaxed) {
        let resolve = sys::RESOLVE_IN_ROOT | sys::RESOLVE_NO_SYMLINKS;
        match sys::openat2(root, &relative(path)?, flags.bits(), 0, resolve) {
            Err(Errno::ENOSYS) => NO_OPENAT2.store(true, Relaxed),
            other => return other,
        }
    }
    let found = walk(root, path, Missing::Fail)?;
    if found.path != clean(path) {
        return Err(Errno::ELOOP);
    }
    reopen(found.fd, flags)
}

/// The folder that holds `path` below `root` (made where it is missing) and the last component.
pub(super) fn parent<'p>(root: BorrowedFd<'_>, path: &'p Path) -> sys::Result<(OwnedFd, &'p OsStr)> {
    let name = path.file_name().ok_or(Errno::EINVAL)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    match open(root, folder, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Err(Errno::ENOENT) => Ok((walk(root, folder, Missing::Folder)?.fd, name)),
        other => Ok((other?, name)),
    }
}

/// `path` without `.`, `..` and doubled slashes, absolute; `..` at the top stays there.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => (),
        }
    }
    out
}

/// Resolves `path` below `root` without any help of the kernel's link following.
///
/// Links are read and their text is resolved from `root`, so a magic link of procfs leads where its
/// text says, below `root`. A missing component is made as `missing` says; a dangling link's target
/// is made below `root`.
pub(super) fn walk(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> sys::Result<Found> {
    let mut passed: Vec<(OwnedFd, OsString)> = Vec::new();
    let mut pending: VecDeque<OsString> = VecDeque::new();
    prepend(&mut pending, path);
    let (mut links, mut races) = (0, 0);
    let mut kept = None;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            passed.pop();
            continue;
        }
        let here = passed.last().map_or(root, |(fd, _)| fd.as_fd());
        let opened = sys::openat(here, &c(&name)?, libc::O_PATH | libc::O_NOFOLLOW, 0);
        let opened = match opened {
            Err(Errno::ENOENT) if missing != Missing::Fail => {
                make(here, &name, pending.is_empty() && missing == Missing::File)?;
                kept.get_or_insert(passed.len());
                races += 1;
                if races > MAX_RACES {
                    return Err(Errno::EAGAIN);
                }
                // Looked up again rather than trusted: it may be somebody else's by now.
                pending.push_front(name);
                continue;
            }
            other => other?,
        };
        if kind(&opened)? == SFlag::S_IFLNK {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP);
            }
            let text = readlinkat(opened, "")?;
            if text.is_empty() {
                return Err(Errno::ENOENT);
            }
            if text.as_bytes()[0] == b'/' {
                passed.clear();
            }
            prepend(&mut pending, Path::new(&text));
        } else {
            passed.push((opened, name));
        }
    }
    let path = passed.iter().fold(PathBuf::from("/"), |path, (_, name)| path.join(name));
    let made = kept.map_or(0, |kept| passed.len().saturating_sub(kept));
    let fd = match passed.pop() {
        Some((fd, _)) => fd,
        None => sys::openat(root, c".", libc::O_PATH | libc::O_DIRECTORY, 0)?,
    };
    Ok(Found { fd, path, made })
}

/// Makes one missing component; that somebody else has just made it is no error.
fn make(folder: BorrowedFd<'_>, name: &OsStr, file: bool) -> sys::Result<()> {
    let made = if file {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
        sys::openat(folder, &c(name)?, flags, 0o755).map(drop)
    } else {
        mkdirat(folder, name, Mode::from_bits_truncate(0o755))
    };
    match made {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// Puts the components of `path` in front of `pending`.
fn prepend(pending: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => pending.push_front(name.to_owned()),
            Component::ParentDir => pending.push_front(OsString::from("..")),
            _ => (),
        }
    }
}

/// Opens an `O_PATH` descriptor again with other flags, without looking its name up.
fn reopen(fd: OwnedFd, flags: OFlag) -> sys::Result<OwnedFd> {
    if flags.contains(OFlag::O_DIRECTORY) && kind(&fd)? != SFlag::S_IFDIR {
        return Err(Errno::ENOTDIR);
    }
    if flags.contains(OFlag::O_PATH) {
        return Ok(fd);
    }
    sys::openat(sys::CWD, &super::fallback::fd_path(fd.as_fd()), (flags - OFlag::O_NOFOLLOW).bits(), 0)
}

/// The file type of what a descriptor points at.
pub(super) fn kind(fd: impl AsFd) -> sys::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode & SFlag::S_IFMT.bits()))
}

/// One path component as the system calls want it.
pub(super) fn c(name: &OsStr) -> sys::Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// A path below the root as `openat2` wants it: without the leading slash, `.` for the root itself.
fn relative(path: &Path) -> sys::Result<CString> {
    let bytes = path.as_os_str().as_bytes();
    let start = bytes.iter().position(|b| *b != b'/').unwrap_or(bytes.len());
    c(match &bytes[start..] {
        [] => OsStr::new("."),
        rest => OsStr::from_bytes(rest),
    })
}

/// The number of the mount that a descriptor is on (`/proc/self/fdinfo`).
pub(super) fn mount_id(fd: impl AsFd) -> anyhow::Result<String> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")).context(path)?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::tests::Temp;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    /// A root with links that try to get out, and a canary beside it.
    fn root() -> (Temp, File) {
        let temp = Temp::new();
        let root = temp.0.join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(temp.0.join("outside")).unwrap();
        fs::write(temp.0.join("outside/canary"), "host").unwrap();
        fs::write(root.join("a/file"), "inside").unwrap();
        symlink("../../../../outside", root.join("a/up")).unwrap();
        symlink(temp.0.join("outside"), root.join("absolute")).unwrap();
        symlink("/a", root.join("to_a")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/run/missing", root.join("dangling")).unwrap();
        symlink("a/../a/./b/..", root.join("winding")).unwrap();
        let fd = File::open(root).unwrap();
        (temp, fd)
    }

    fn walked(root: &File, path: &str) -> sys::Result<PathBuf> {
        walk(root.as_fd(), Path::new(path), Missing::Fail).map(|found| found.path)
    }

    #[test]
    fn links_are_resolved_below_the_root_by_both_resolvers() {
        let (_temp, root) = root();
        let inode = |fd: OwnedFd| fstat(fd).unwrap().st_ino;
        for path in ["/", "", "a", "/a/b", "to_a/b", "winding/file", "to_a/../a//file", "../../a", "winding"] {
            let path = Path::new(path);
            let opened = open(root.as_fd(), path, OFlag::O_PATH).unwrap();
            assert_eq!(inode(opened), inode(walk(root.as_fd(), path, Missing::Fail).unwrap().fd), "{path:?}");
        }
        for (path, errno) in
            [("a/up/canary", Errno::ENOENT), ("absolute", Errno::ENOENT), ("loop", Errno::ELOOP), ("a/file/x", Errno::ENOTDIR)]
        {
            assert_eq!(open(root.as_fd(), Path::new(path), OFlag::O_PATH).unwrap_err(), errno, "{path}");
            assert_eq!(walked(&root, path).unwrap_err(), errno, "{path}");
        }
        assert_eq!(walked(&root, "to_a/file").unwrap(), Path::new("/a/file"));
    }

    #[test]
    fn plain_paths_have_no_links() {
        let (_temp, root) = root();
        assert!(open_plain(root.as_fd(), Path::new("/a/b"), OFlag::O_PATH).is_ok());
        assert_eq!(open_plain(root.as_fd(), Path::new("/to_a/b"), OFlag::O_PATH).unwrap_err(), Errno::ELOOP);
    }

    #[test]
    fn what_is_missing_is_made_inside() {
        let (temp, root) = root();
        let make = |path: &str, missing| walk(root.as_fd(), Path::new(path), missing).unwrap();
        assert_eq!(make("absolute/new", Missing::Folder).path, temp.0.join("outside/new"));
        assert!(temp.0.join("root").join(temp.0.strip_prefix("/").unwrap()).join("outside/new").is_dir());
        assert_eq!(make("dangling/x", Missing::File).path, Path::new("/run/missing/x"));
        assert!(temp.0.join("root/run/missing/x").is_file());
        assert_eq!(make("a/up/y", Missing::File).path, Path::new("/outside/y"));
        assert_eq!(make("a/b", Missing::Folder).made, 0);
        assert_eq!(make("a/b/c/d", Missing::File).made, 2);
        let outside: Vec<_> = fs::read_dir(temp.0.join("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(outside, ["canary"]);
        assert_eq!(parent(root.as_fd(), Path::new("/dev/x/null")).unwrap().1, "null");
        assert!(temp.0.join("root/dev/x").is_dir());
    }

    #[test]
    fn cleaning_is_lexical() {
        for (path, wanted) in [("/a/../../b", "/b"), ("a//./b/", "/a/b"), ("/..", "/"), ("", "/")] {
            assert_eq!(clean(Path::new(path)), Path::new(wanted));
        }
    }

    /// Another process exchanges a folder for a link to the host all the time: whatever the walker
    /// answers, it makes nothing outside.
    #[test]
    fn a_racing_exchange_leads_nowhere() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let (temp, root) = root();
        symlink(temp.0.join("outside"), temp.0.join("root/evil")).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, two) = (temp.0.join("root/a"), temp.0.join("root/evil"));
                while !stop.load(Ordering::Relaxed) {
                    let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                    nix::fcntl::renameat2(sys::CWD, &one, sys::CWD, &two, flags).unwrap();
                }
            });
            for i in 0..3000 {
                let path = format!("/a/made{}", i % 7);
                let _ = walk(root.as_fd(), Path::new(&path), if i % 2 == 0 { Missing::File } else { Missing::Folder });
                if let Ok(fd) = open(root.as_fd(), Path::new("/a/canary"), OFlag::O_RDONLY) {
                    let text = std::io::read_to_string(File::from(fd)).unwrap();
                    assert_ne!(text, "host");
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let outside: Vec<_> = fs::read_dir(temp.0.join("outside")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(outside, ["canary"]);
    }
}
