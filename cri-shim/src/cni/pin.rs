//! Network namespaces pinned as files: how ours are named, unpinned and found again. The monitor makes them.
//!
//! They lie where containerd and CRI-O pin theirs, so a name must tell whose it is: its first group is derived from the
//! daemon's root folder. Nothing else in the folder is ever touched.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::config::Config;

/// The pins of one daemon in the folder that it shares with other runtimes.
#[derive(Clone, Debug)]
pub struct Pins {
    dir: PathBuf,
    /// `cni-` and a uuid's first group: FNV-1a over the root folder's path.
    prefix: String,
}

impl Pins {
    /// Those of the daemon with these settings: `cni.netns_dir` is the folder, `root` tells daemons apart.
    pub fn new(config: &Config) -> Pins {
        let root = config.root.as_os_str().as_encoded_bytes();
        let hash = root.iter().fold(0x811c_9dc5u32, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193));
        Pins { dir: config.cni.netns_dir.clone(), prefix: format!("cni-{hash:08x}-") }
    }

    /// A path for a new pin: `/var/run/netns/cni-<uuid>`.
    pub fn new_path(&self) -> Result<PathBuf> {
        let mut random = [0u8; 12];
        let mut filled = 0;
        while filled < random.len() {
            filled += rustix::rand::getrandom(&mut random[filled..], rustix::rand::GetRandomFlags::empty()).context("getrandom")?;
        }
        random[2] = random[2] & 0x0f | 0x80; // version 8, own layout
        random[4] = random[4] & 0x3f | 0x80; // variant
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let [a, b, c, d] = [&random[0..2], &random[2..4], &random[4..6], &random[6..12]].map(hex);
        Ok(self.dir.join(format!("{}{a}-{b}-{c}-{d}", self.prefix)))
    }

    /// Whether the pin at `path` was made by this daemon.
    pub fn is_ours(&self, path: &Path) -> bool {
        self.name(path).is_some_and(|n| n.starts_with(&self.prefix))
    }

    /// Unmounts and removes a pin; one that is gone, or half gone, is fine. A path that is no pin is an error.
    pub fn unpin(&self, path: &Path) -> Result<()> {
        ensure!(self.name(path).is_some(), "{path:?} is not {}/cni-<uuid>, a pinned network namespace", self.dir.display());
        loop {
            match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOENT) => break,
                Err(e) => return Err(e).with_context(|| format!("unmount {}", path.display())),
            }
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| format!("remove {}", path.display())),
            _ => Ok(()),
        }
    }

    /// This daemon's pins that are none of `known`: what the janitor may unpin.
    pub fn orphans(&self, known: &HashSet<PathBuf>) -> Result<Vec<PathBuf>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("read folder {}", self.dir.display()))?,
        };
        // By name: /var/run is a link on most systems, so that a path has two forms.
        let known: HashSet<_> = known.iter().filter_map(|p| p.file_name()).collect();
        let mut orphans = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("read folder {}", self.dir.display()))?.path();
            if self.is_ours(&path) && path.file_name().is_some_and(|n| !known.contains(n)) {
                orphans.push(path);
            }
        }
        Ok(orphans)
    }

    /// File name of a path that has the form of a pin.
    fn name<'a>(&self, path: &'a Path) -> Option<&'a str> {
        let folder = path.parent()?;
        let here = folder == self.dir || folder.strip_prefix("/run").ok().is_some_and(|f| self.dir == Path::new("/var/run").join(f));
        path.file_name()?.to_str().filter(|n| here && path.is_absolute() && n.starts_with("cni-"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(root: &str) -> Pins {
        Pins::new(&Config { root: root.into(), ..Config::default() })
    }

    #[test]
    fn a_pin_says_whose_it_is() {
        let ours = pins("/var/lib/rrun-cri");
        let pin = ours.new_path().unwrap();
        let name = pin.file_name().unwrap().to_str().unwrap();
        assert_eq!(name.split('-').map(str::len).collect::<Vec<_>>(), [3, 8, 4, 4, 4, 12], "{name}");
        assert!(ours.is_ours(&pin));
        assert!(ours.is_ours(&Path::new("/run/netns").join(name)));
        assert!(!pins("/var/lib/other").is_ours(&pin));
        assert!(!ours.is_ours(&Path::new("/tmp").join(name)));
        assert_ne!(pin, ours.new_path().unwrap());
    }

    #[test]
    fn only_pins_are_unpinned() {
        let ours = pins("/no/such/root");
        for path in ["", "/", "/etc/passwd", "/var/run/netns", "/var/run/netns/other", "/var/run/netns/cni-x/..", "cni-x"] {
            assert!(ours.unpin(Path::new(path)).is_err(), "{path}");
        }
        assert!(ours.unpin(&ours.new_path().unwrap()).is_ok());
    }
}
