//! `tmpcopyup`: a tmpfs that starts with what was in the folder it covers.
//!
//! Source and copy are walked by descriptors only and no link is followed, so that an image which
//! changes meanwhile can lose files but never lead out of itself.

use super::{failed, paths};
use crate::sys;
use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Folders deeper than this are not copied: an image must not exhaust our descriptors.
const MAX_DEPTH: u32 = 200;

/// Copies everything in the folder `from` into the folder `to`, with owners, modes and times.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let from = sys::openat(from, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(failed("open"))?;
    copy_folder(from, to, 0)
}

fn copy_folder(from: OwnedFd, to: BorrowedFd<'_>, depth: u32) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP).context("folders are nested too deeply");
    }
    let mut folder = Dir::from_fd(from)?;
    let mut names: Vec<CString> = Vec::new();
    for entry in folder.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        copy_entry(folder.as_fd(), to, &name, depth).with_context(|| format!("tmpcopyup: {}", name.to_string_lossy()))?;
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<()> {
    let entry = match sys::openat(from, name, libc::O_PATH | libc::O_NOFOLLOW, 0) {
        // Removed since the folder was read.
        Err(Errno::ENOENT) => return Ok(()),
        other => other?,
    };
    let stat = fstat(&entry)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    let mode = Mode::from_bits_truncate(stat.st_mode);
    match kind {
        SFlag::S_IFDIR => {
            mkdirat(to, name, mode)?;
            let source = sys::openat(entry.as_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
            let copied = sys::openat(to, name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW, 0)?;
            copy_folder(source, copied.as_fd(), depth + 1)?;
        }
        SFlag::S_IFREG => {
            // Not through /proc: the name is opened again and must still be the same file.
            let source = sys::openat(from, name, libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK, 0)?;
            if paths::kind(&source)? != SFlag::S_IFREG {
                return Ok(());
            }
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
            let copied = sys::openat(to, name, flags, 0o600)?;
            std::io::copy(&mut File::from(source), &mut File::from(copied))?;
        }
        SFlag::S_IFLNK => symlinkat(readlinkat(&entry, "")?.as_os_str(), to, name)?,
        SFlag::S_IFSOCK => return Ok(()),
        _ => mknodat(to, name, kind, mode, stat.st_rdev)?,
    }
    take_over(to, name, &stat, kind)
}

/// Owner first: a change of owner clears the set-id bits of the mode.
fn take_over(to: BorrowedFd<'_>, name: &CStr, stat: &FileStat, kind: SFlag) -> Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    match fchownat(to, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW) {
        // An owner that is not mapped into the user namespace cannot be kept.
        Err(Errno::EINVAL | Errno::EPERM) => (),
        other => other.map_err(failed("chown"))?,
    }
    if kind != SFlag::S_IFLNK {
        fchmodat(to, name, Mode::from_bits_truncate(stat.st_mode), nix::sys::stat::FchmodatFlags::FollowSymlink)?;
    }
    let (read, written) = (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    Ok(utimensat(to, name, &read, &written, UtimensatFlags::NoFollowSymlink)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::tests::Temp;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_folder_is_copied_as_it_is() {
        let (from, to) = (Temp::new(), Temp::new());
        std::fs::create_dir_all(from.0.join("a/b")).unwrap();
        std::fs::write(from.0.join("a/b/file"), "text").unwrap();
        std::fs::set_permissions(from.0.join("a/b/file"), PermissionsExt::from_mode(0o4751)).unwrap();
        std::fs::set_permissions(from.0.join("a"), PermissionsExt::from_mode(0o1770)).unwrap();
        symlink("/etc/passwd", from.0.join("a/link")).unwrap();
        copy(File::open(&from.0).unwrap().as_fd(), File::open(&to.0).unwrap().as_fd()).unwrap();

        assert_eq!(std::fs::read(to.0.join("a/b/file")).unwrap(), b"text");
        assert_eq!(std::fs::metadata(to.0.join("a/b/file")).unwrap().mode() & 0o7777, 0o4751);
        assert_eq!(std::fs::metadata(to.0.join("a")).unwrap().mode() & 0o7777, 0o1770);
        assert_eq!(std::fs::read_link(to.0.join("a/link")).unwrap(), std::path::Path::new("/etc/passwd"));
        let times = |t: &Temp| std::fs::metadata(t.0.join("a")).unwrap().mtime_nsec();
        assert_eq!(times(&from), times(&to));
    }

    #[test]
    fn nesting_has_an_end() {
        let (from, to) = (Temp::new(), Temp::new());
        std::fs::create_dir_all(from.0.join("d/".repeat(MAX_DEPTH as usize + 5))).unwrap();
        let error = copy(File::open(&from.0).unwrap().as_fd(), File::open(&to.0).unwrap().as_fd()).unwrap_err();
        assert!(format!("{error:#}").contains("too deeply"));
    }
}
