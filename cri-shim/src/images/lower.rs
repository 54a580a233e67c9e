//! Directories that a layer's entries lie in without being entries themselves.
//!
//! Called by `images::ingest`. Overlayfs takes a merged directory's owner and mode from
//! the uppermost layer that has it, so they are copied from the layers below.
use anyhow::{Context, Result};
use rustix::fd::OwnedFd;
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::path::PathBuf;

/// Copies owner, mode, times and attributes of each implied directory from the first of the
/// lower layers (uppermost first) that has it.
pub(super) fn copy_implied(layer: &OwnedFd, implied: &[Vec<u8>], lower: &[PathBuf], squash: bool) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &PathBuf| rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("{}: open", path.display()));
    let lower = lower.iter().map(open).collect::<Result<Vec<_>>>()?;
    // Children first: a parent's time is set after what its children change.
    for path in implied.iter().rev() {
        copy_dir(layer, path, &lower, squash).with_context(|| format!("directory {:?}", String::from_utf8_lossy(path)))?;
    }
    Ok(())
}

fn copy_dir(layer: &OwnedFd, path: &[u8], lower: &[OwnedFd], squash: bool) -> Result<()> {
    for below in lower {
        let source = match open(below, path) {
            Ok(source) => source,
            Err(Errno::NOENT) => continue,
            // Something else than a directory hides what is below it.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(error) => return Err(error).context("open below"),
        };
        let dir = open(layer, path).context("open")?;
        let stat = rustix::fs::fstat(&source).context("stat below")?;
        if !squash {
            rustix::fs::fchown(&dir, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).context("chown")?;
        }
        copy_xattrs(&source, &dir)?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(stat.st_mode)).context("chmod")?;
        let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        return rustix::fs::futimens(&dir, &Timestamps { last_access: time, last_modification: time }).context("utimens");
    }
    Ok(())
}

fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error).context("listxattr"),
    };
    let mut value = vec![0_u8; 64 << 10];
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let overlay = [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|prefix| name.starts_with(prefix));
        if overlay || name == b"security.selinux" {
            continue;
        }
        let size = rustix::fs::fgetxattr(from, name, &mut value[..]).context("getxattr")?;
        rustix::fs::fsetxattr(to, name, &value[..size], XattrFlags::empty()).context("setxattr")?;
    }
    Ok(())
}

fn open(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
}
