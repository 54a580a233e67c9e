//! Namespaces pinned by bind mounts of their files.

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use std::path::Path;

/// Takes a pinned namespace away: the mounts and the file. What is gone already is success.
pub fn unpin(path: &Path) -> Result<()> {
    ensure!(path.is_absolute(), "unpin a namespace: not an absolute path: {:?}", path);
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => (),
            // Not a mount point; not there.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => break,
            Err(e) => return Err(e).with_context(|| format!("unmount {}", path.display())),
        }
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("remove {}", path.display())),
    }
}
