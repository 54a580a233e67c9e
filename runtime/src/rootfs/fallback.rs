//! The mount calls of kernels before 5.2 and 5.12, used where the new ones answer `ENOSYS`.
//!
//! Paths are `/proc/self/fd/N` of descriptors that were resolved below the container's root, and
//! what came of it is looked at again: `mount(2)` gives no descriptor of the mount it made.

use super::attach::{Filesystem, Target};
use super::options::attr;
use super::{failed, paths};
use crate::sys::{self, MountAttr};
use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A descriptor as a path.
pub(super) fn fd_path(fd: BorrowedFd<'_>) -> CString {
    // Digits hold no null byte.
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// `mount(2)` of a file system on `target`; a descriptor of the new mount's root.
pub(super) fn mount(filesystem: &Filesystem, target: &Target<'_>) -> Result<OwnedFd> {
    let mut data = Vec::new();
    for (key, value) in &filesystem.data {
        if !data.is_empty() {
            data.push(b',');
        }
        data.extend_from_slice(key.as_bytes());
        if let Some(value) = value {
            // A security context may hold commas.
            let quote: &[u8] = if key.as_bytes() == b"context" { b"\"" } else { b"" };
            data.extend([b"=", quote, value.as_bytes(), quote].concat());
        }
    }
    let data = CString::new(data)?;
    sys::mount(Some(&filesystem.source), &fd_path(target.fd.as_fd()), Some(&filesystem.fstype), filesystem.flags, Some(&data))
        .map_err(failed("mount"))?;
    covered(target)
}

/// A bind mount of what `source` points at on `target`; a descriptor of the new mount's root.
pub(super) fn bind(source: BorrowedFd<'_>, recursive: bool, target: &Target<'_>) -> Result<OwnedFd> {
    let flags = libc::MS_BIND | if recursive { libc::MS_REC } else { 0 };
    sys::mount(Some(&fd_path(source)), &fd_path(target.fd.as_fd()), None, flags, None).map_err(failed("mount(MS_BIND)"))?;
    let mount = covered(target)?;
    let (wanted, found) = (fstat(source)?, fstat(&mount)?);
    if (wanted.st_dev, wanted.st_ino) != (found.st_dev, found.st_ino) {
        bail!("the destination was exchanged while it was mounted on");
    }
    Ok(mount)
}

/// A second mount of the container's procfs, in the host's tree that is about to be left; its
/// descriptor outlives that. At /sys, which nothing needs any more by then.
pub(super) fn keep_procfs(proc: &OwnedFd) -> sys::Result<OwnedFd> {
    sys::mount(Some(&fd_path(proc.as_fd())), c"/sys", None, libc::MS_BIND, None)?;
    sys::openat(sys::CWD, c"/sys", libc::O_PATH | libc::O_DIRECTORY, 0)
}

/// Opens the target again, now that something is mounted on it.
fn covered(target: &Target<'_>) -> Result<OwnedFd> {
    let mount = paths::open(target.root, target.path, OFlag::O_PATH).map_err(failed("open the new mount"))?;
    let (under, over) = (fstat(&target.fd)?, fstat(&mount)?);
    if (under.st_dev, under.st_ino) == (over.st_dev, over.st_ino) && paths::mount_id(&target.fd)? == paths::mount_id(&mount)? {
        bail!("the destination was exchanged while it was mounted on");
    }
    Ok(mount)
}

/// Flags and propagation by `mount(2)`. Recursive flags and id maps are beyond it (`ENOSYS`).
pub(super) fn set_attributes(mount: BorrowedFd<'_>, recursive: bool, wanted: &MountAttr) -> sys::Result<()> {
    let path = fd_path(mount);
    if wanted.set | wanted.clear != 0 {
        if recursive || wanted.set & attr::IDMAP != 0 {
            return Err(Errno::ENOSYS);
        }
        let flags = remount_flags(fstatvfs(mount)?.flags(), wanted);
        sys::mount(None, &path, None, libc::MS_REMOUNT | libc::MS_BIND | flags, None)?;
    }
    if wanted.propagation != 0 {
        let flags = wanted.propagation | if recursive { libc::MS_REC } else { 0 };
        sys::mount(None, &path, None, flags, None)?;
    }
    Ok(())
}

/// All flags of a mount after a change, since `MS_REMOUNT` replaces them.
fn remount_flags(now: FsFlags, wanted: &MountAttr) -> u64 {
    let mut flags = 0;
    for (have, attribute, flag) in [
        (FsFlags::ST_RDONLY, attr::RDONLY, libc::MS_RDONLY),
        (FsFlags::ST_NOSUID, attr::NOSUID, libc::MS_NOSUID),
        (FsFlags::ST_NODEV, attr::NODEV, libc::MS_NODEV),
        (FsFlags::ST_NOEXEC, attr::NOEXEC, libc::MS_NOEXEC),
        (FsFlags::ST_NODIRATIME, attr::NODIRATIME, libc::MS_NODIRATIME),
    ] {
        if wanted.set & attribute != 0 || now.contains(have) && wanted.clear & attribute == 0 {
            flags |= flag;
        }
    }
    if wanted.set & attr::NOSYMFOLLOW != 0 {
        flags |= super::options::MS_NOSYMFOLLOW;
    }
    flags
        | if wanted.clear & attr::ATIME != 0 {
            match wanted.set & attr::ATIME {
                attr::NOATIME => libc::MS_NOATIME,
                attr::STRICTATIME => libc::MS_STRICTATIME,
                _ => libc::MS_RELATIME,
            }
        } else if now.contains(FsFlags::ST_NOATIME) {
            libc::MS_NOATIME
        } else if now.contains(FsFlags::ST_RELATIME) {
            libc::MS_RELATIME
        } else {
            libc::MS_STRICTATIME
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remount_names_all_flags_that_stay() {
        let now = FsFlags::ST_NOSUID | FsFlags::ST_NOEXEC | FsFlags::ST_RELATIME;
        let wanted = MountAttr { set: attr::RDONLY, clear: attr::NOEXEC, ..MountAttr::default() };
        assert_eq!(remount_flags(now, &wanted), libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_RELATIME);
        let wanted = MountAttr { set: attr::STRICTATIME, clear: attr::ATIME, ..MountAttr::default() };
        assert_eq!(remount_flags(FsFlags::ST_NOATIME, &wanted), libc::MS_STRICTATIME);
    }
}
