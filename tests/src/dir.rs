//! A temporary folder that goes when its owner goes, and never through a mount.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder; gone when dropped.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
}

impl Dir {
    /// Makes `$TMPDIR/rrun-test-TAG`, open to every user (a container's root may be one).
    pub fn new(tag: &str) -> Dir {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().canonicalize().unwrap().join(format!("rrun-test-{tag}"));
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Dir { path }
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let prefix = self.path.to_string_lossy().into_owned();
        let left: Vec<&str> = mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|t| t.starts_with(&prefix)).collect();
        for target in left.iter().rev() {
            let _ = nix::mount::umount2(*target, nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}
