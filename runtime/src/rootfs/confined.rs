//! Whether the mounts that a restore brought back are those of the configuration.

use super::attach::set_attributes;
use super::mountinfo::Mounted;
use super::options::Options;
use super::saved::{Home, clean, is_bind, resolve};
use super::{failed, masks, paths};
use crate::bundle::Bundle;
use crate::sys::{self, MountAttr};
use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag, fstat, stat};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a mount protects from: bits of `mount(2)`, which are those of `mount_setattr(2)`, and how mountinfo calls them.
const PROTECTION: [(u64, &str); 4] =
    [(libc::MS_RDONLY, "ro"), (libc::MS_NOSUID, "nosuid"), (libc::MS_NODEV, "nodev"), (libc::MS_NOEXEC, "noexec")];

/// Checks the mounts of process `pid`, which is stopped: its root is `rootfs`, and all others are in the configuration.
/// Those that are to be read-only, nosuid, nodev or noexec and are not become it, as do paths that are to be masked or
/// read-only: another runtime's checkpoint has other lists.
///
/// `devices`: what it may have by bind mounts, besides its terminal.
pub fn confine(pid: i32, bundle: &Bundle, rootfs: &Path, devices: &[PathBuf]) -> Result<()> {
    let procfs = sys::openat(sys::CWD, c"/proc", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open")).context("/proc")?;
    let hosts = mountinfo(procfs.as_fd())?;
    let wanted = stat(rootfs).map_err(failed("stat")).with_context(|| rootfs.display().to_string())?;
    // Not by /proc/PID: a process in a chroot does not see what is mounted above.
    let home = Home::enter(pid)?;
    let confined = confine_here(procfs.as_fd(), &hosts, bundle, &wanted, devices);
    home.back()?;
    confined
}

fn confine_here(procfs: BorrowedFd<'_>, hosts: &str, bundle: &Bundle, rootfs: &FileStat, devices: &[PathBuf]) -> Result<()> {
    let root = sys::openat(sys::CWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open")).context("the restored root")?;
    let text = mountinfo(procfs)?;
    let mounts: Vec<Mounted<'_>> = text.lines().filter_map(Mounted::parse).collect();
    let hosts: Vec<Mounted<'_>> = hosts.lines().filter_map(Mounted::parse).collect();
    let here = Confined { root, mounts, hosts };
    here.check_root(bundle, rootfs)?;
    let linux = bundle.spec.linux().as_ref();
    let list = |paths: Option<&Vec<String>>| paths.cloned().unwrap_or_default();
    let (masked, readonly) = (list(linux.and_then(|l| l.masked_paths().as_ref())), list(linux.and_then(|l| l.readonly_paths().as_ref())));
    here.check_all(bundle, &masked, &readonly, devices)?;
    let label = linux.and_then(|l| l.mount_label().as_deref());
    masks::mask(here.root.as_fd(), &here.lacking(&masked, |m| here.masks(m))?, label)?;
    masks::make_paths_readonly(here.root.as_fd(), &here.lacking(&readonly, |m| m.has("ro"))?)
}

/// Of the calling process.
fn mountinfo(procfs: BorrowedFd<'_>) -> Result<String> {
    let read = || {
        let mut text = String::new();
        std::fs::File::from(sys::openat(procfs, c"self/mountinfo", libc::O_RDONLY, 0)?).read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    };
    read().context("/proc/self/mountinfo")
}

struct Confined<'a> {
    root: OwnedFd,
    mounts: Vec<Mounted<'a>>,
    hosts: Vec<Mounted<'a>>,
}

impl Confined<'_> {
    fn check_root(&self, bundle: &Bundle, rootfs: &FileStat) -> Result<()> {
        let [root] = &self.mounts.iter().filter(|m| m.point == Path::new("/")).collect::<Vec<_>>()[..] else {
            bail!("root.path: something else was restored on it");
        };
        if bundle.spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false) && !root.has("ro") {
            bail!("root.readonly: restored writable");
        }
        let found = fstat(&self.root).map_err(failed("fstat"))?;
        if (found.st_dev, found.st_ino) != (rootfs.st_dev, rootfs.st_ino) {
            bail!("root.path: the checkpoint has another root");
        }
        Ok(())
    }

    fn check_all(&self, bundle: &Bundle, masked: &[String], readonly: &[String], devices: &[PathBuf]) -> Result<()> {
        let wanted = self.configured(bundle)?;
        let (masked, readonly) = (self.places(masked)?, self.places(readonly)?);
        for mount in self.mounts.iter().filter(|m| m.point != Path::new("/")) {
            let device = devices.contains(&mount.point) || mount.point == Path::new("/dev/console");
            let covers = masked.contains(&mount.point) && self.masks(mount) || readonly.contains(&mount.point) && mount.has("ro");
            if covers || device && self.is_device(mount) {
                continue;
            }
            match wanted.iter().filter_map(|w| w.lacks(mount, &self.hosts)).min_by_key(|bits| bits.count_ones()) {
                Some(0) => (),
                Some(bits) => {
                    self.protect(mount, bits).with_context(|| format!("{}: protect as config.json asks", mount.point.display()))?
                }
                None => bail!("{}: restored as a mount ({}) that config.json does not have there", mount.point.display(), mount.describe()),
            }
        }
        Ok(())
    }

    /// Fails (`EBUSY`) where a file that the checkpoint holds open is written to by it.
    fn protect(&self, mount: &Mounted<'_>, bits: u64) -> Result<()> {
        let there = paths::open_plain(self.root.as_fd(), &mount.point, OFlag::O_PATH).map_err(failed("open"))?;
        set_attributes(there.as_fd(), false, &MountAttr { set: bits, ..MountAttr::default() }).map_err(failed("mount_setattr"))
    }

    fn configured<'b>(&self, bundle: &'b Bundle) -> Result<Vec<Wanted<'b>>> {
        let list = bundle.spec.mounts().as_deref().unwrap_or_default();
        let wanted = |mount: &'b oci_spec::runtime::Mount| {
            let options = Options::parse(mount.options().as_deref().unwrap_or_default());
            let destination = clean(mount.destination());
            let kind = match mount.typ().as_deref() {
                _ if is_bind(mount) => Kind::Bind(bundle.dir.join(mount.source().clone().unwrap_or_default())),
                Some("cgroup" | "cgroup2") => Kind::Cgroup,
                other => Kind::Type(other.unwrap_or_default()),
            };
            let all = options.recursive.map_or(0, |(set, _)| set);
            Ok(Wanted { point: self.place(&destination)?.unwrap_or(destination), kind, protection: options.set | all, below: all })
        };
        list.iter().map(wanted).collect()
    }

    /// Where a path leads to in the container.
    fn place(&self, path: &Path) -> Result<Option<PathBuf>> {
        Ok(resolve(self.root.as_fd(), path)?.map(|(path, _)| path))
    }

    fn places(&self, paths: &[String]) -> Result<Vec<PathBuf>> {
        paths.iter().filter_map(|path| self.place(Path::new(path)).transpose()).collect()
    }

    /// Those of `paths` that are there without a mount as it should be.
    fn lacking(&self, paths: &[String], as_it_should: impl Fn(&Mounted<'_>) -> bool) -> Result<Vec<String>> {
        let mut list = Vec::new();
        for path in paths {
            let Some(place) = self.place(Path::new(path))? else { continue };
            if !self.mounts.iter().any(|m| m.point == place && as_it_should(m)) {
                list.push(path.clone());
            }
        }
        Ok(list)
    }

    /// Whether there is nothing behind it: the null device, or an empty folder that stays empty.
    fn masks(&self, mount: &Mounted<'_>) -> bool {
        let Ok(stat) = self.stat(mount) else { return false };
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFCHR => stat.st_rdev == nix::sys::stat::makedev(1, 3),
            // A tmpfs counts 20 bytes for each entry of a folder, "." and ".." included.
            SFlag::S_IFDIR => mount.fstype == "tmpfs" && mount.has("ro") && stat.st_nlink == 2 && stat.st_size <= 40,
            _ => false,
        }
    }

    fn is_device(&self, mount: &Mounted<'_>) -> bool {
        self.stat(mount).is_ok_and(|s| matches!(SFlag::from_bits_truncate(s.st_mode) & SFlag::S_IFMT, SFlag::S_IFCHR | SFlag::S_IFBLK))
    }

    fn stat(&self, mount: &Mounted<'_>) -> nix::Result<FileStat> {
        paths::open_plain(self.root.as_fd(), &mount.point, OFlag::O_PATH).and_then(fstat)
    }
}

/// A mount of the configuration.
struct Wanted<'a> {
    point: PathBuf,
    kind: Kind<'a>,
    /// Bits of [`PROTECTION`].
    protection: u64,
    /// The same for what is mounted below.
    below: u64,
}

enum Kind<'a> {
    /// Of this path. That it is the source is checked elsewhere.
    Bind(PathBuf),
    /// With hierarchies below, on v1.
    Cgroup,
    /// A file system.
    Type(&'a str),
}

impl Wanted<'_> {
    /// What it lacks of [`PROTECTION`] if it is this mount.
    fn lacks(&self, mount: &Mounted<'_>, hosts: &[Mounted<'_>]) -> Option<u64> {
        let rest = mount.point.strip_prefix(&self.point).ok()?;
        let (here, depth) = (rest.as_os_str().is_empty(), rest.components().count());
        let known = match &self.kind {
            Kind::Type(fstype) => here && mount.fstype == *fstype,
            Kind::Cgroup => depth < 2 && matches!(mount.fstype, "cgroup" | "cgroup2" | "tmpfs"),
            Kind::Bind(_) if here => true,
            Kind::Bind(source) => {
                let place = source.join(rest);
                hosts.iter().any(|h| h.point == place && (h.device, &h.root) == (mount.device, &mount.root))
            }
        };
        let protection = if here { self.protection } else { self.below };
        let lacking = PROTECTION.iter().filter(|(bit, flag)| protection & bit != 0 && !mount.has(flag));
        known.then(|| lacking.map(|(bit, _)| bit).sum())
    }
}
