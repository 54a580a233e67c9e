//! `linux.maskedPaths` and `linux.readonlyPaths`, resolved below the container's root before it is
//! entered. A path that is not there is skipped (runtime-spec, "Masked Paths").

use super::attach::{Copy, Filesystem, Target, make_readonly};
use super::options::attr;
use super::{devices, failed, paths};
use crate::sys::Spent;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Covers every path, once however often it is named: files by the host's `/dev/null`, folders by one empty read-only tmpfs that
/// they share.
pub(super) fn mask(root: BorrowedFd<'_>, list: &[String], label: Option<&str>) -> Result<()> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    let mut spent = Spent::default();
    for (i, path) in list.iter().enumerate() {
        if list[..i].contains(path) {
            continue;
        }
        let path = Path::new(path);
        let wrap = || format!("linux.maskedPaths[{i}] ({})", path.display());
        let Some(fd) = find(root, path).with_context(wrap)? else { continue };
        let folder = paths::kind(&fd).map_err(failed("fstat")).with_context(wrap)? == SFlag::S_IFDIR;
        let target = Target { root, path, fd, made: 0 };
        if folder {
            empty = Some(cover(empty, &target, label, &mut spent).with_context(wrap)?);
        } else {
            if null.is_none() {
                null = Some(devices::host_null().with_context(wrap)?);
            }
            let Some(null) = &null else { continue };
            let copy = Copy::of_fd(null.as_fd(), false).map_err(failed("open_tree(/dev/null)")).with_context(wrap)?;
            spent.add(copy.mount(&target).with_context(wrap)?);
        }
        spent.add(target.fd);
    }
    null.into_iter().chain(empty).for_each(|fd| spent.add(fd));
    Ok(())
}

/// Covers a folder with the shared empty tmpfs; the tmpfs, for the next one.
fn cover(empty: Option<OwnedFd>, target: &Target<'_>, label: Option<&str>, spent: &mut Spent) -> Result<OwnedFd> {
    if let Some(first) = empty {
        spent.add(Copy::of_fd(first.as_fd(), false).map_err(failed("open_tree"))?.mount(target)?);
        return Ok(first);
    }
    let mut tmpfs = Filesystem::new("tmpfs", "tmpfs")?;
    for (key, value) in [("nr_blocks", "1"), ("nr_inodes", "1"), ("mode", "755")] {
        tmpfs.option(key, Some(value))?;
    }
    if let Some(label) = label {
        tmpfs.option("context", Some(label))?;
    }
    tmpfs.attributes = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
    tmpfs.flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    tmpfs.mount(target)
}

/// Makes every path, with the mount it is on, read-only; what is mounted below stays as it is.
pub(super) fn make_paths_readonly(root: BorrowedFd<'_>, list: &[String]) -> Result<()> {
    let mut spent = Spent::default();
    for (i, path) in list.iter().enumerate() {
        let path = Path::new(path);
        let wrap = || format!("linux.readonlyPaths[{i}] ({})", path.display());
        let Some(fd) = find(root, path).with_context(wrap)? else { continue };
        let copy = Copy::of_fd(fd.as_fd(), true).map_err(failed("open_tree")).with_context(wrap)?;
        let target = Target { root, path, fd, made: 0 };
        let mount = copy.mount(&target).with_context(wrap)?;
        make_readonly(mount.as_fd()).map_err(failed("mount_setattr")).with_context(wrap)?;
        spent.add(target.fd);
        spent.add(mount);
    }
    Ok(())
}

/// What is at `path`, `None` when nothing is.
fn find(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>> {
    match paths::open(root, path, OFlag::O_PATH) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        other => other.map(Some).map_err(failed("open")),
    }
}
