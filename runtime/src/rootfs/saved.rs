//! What a checkpoint and a restore need to know of a root file system.

use super::attach::{Copy, Target};
use super::options::Options;
use super::{failed, paths};
use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{SFlag, fstat, stat};
use nix::unistd::{chroot, fchdir};
use oci_spec::runtime::Mount;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Whether a mount of the configuration is a bind mount.
pub fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || Options::parse(mount.options().as_deref().unwrap_or_default()).bind.is_some()
}

/// `path` without `.` and `..`, absolute.
pub fn clean(path: &Path) -> PathBuf {
    paths::clean(path)
}

/// The root of a process, for look-ups only.
pub fn of_process(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    let name = CString::new(path.as_str())?;
    sys::openat(sys::CWD, &name, libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open")).context(path)
}

/// Where `path` is below `root` once links are resolved, and whether it is a folder; `None` where it is not.
pub fn resolve(root: BorrowedFd<'_>, path: &Path) -> Result<Option<(PathBuf, bool)>> {
    match paths::walk(root, path, paths::Missing::Fail) {
        Ok(found) => {
            let folder = paths::kind(&found.fd).map_err(failed("fstat"))? == SFlag::S_IFDIR;
            Ok(Some((found.path, folder)))
        }
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(failed("open")(errno)).with_context(|| path.display().to_string()),
    }
}

/// Checks that what `root` has at `destination`, links followed below `root`, is `source` of the host, not something else that a
/// link in the saved or in the present root file system has led CRIU to.
pub fn check_is(root: BorrowedFd<'_>, destination: &Path, source: &Path) -> Result<()> {
    let wanted = stat(source).with_context(|| source.display().to_string())?;
    let found = paths::open(root, destination, OFlag::O_PATH).and_then(fstat);
    match found {
        Ok(found) if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) => Ok(()),
        Ok(_) => bail!("{}: restored, but not from {}", destination.display(), source.display()),
        Err(errno) => Err(failed("open")(errno)).with_context(|| format!("{} after the restore", destination.display())),
    }
}

/// The mount namespace of the caller with its root and current folder, to return to.
#[derive(Debug)]
pub struct Home {
    namespace: File,
    root: OwnedFd,
    current: OwnedFd,
}

impl Home {
    /// Notes them.
    pub fn note() -> Result<Home> {
        let folder = |path| sys::openat(sys::CWD, path, libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open"));
        let namespace = File::open("/proc/self/ns/mnt").context("/proc/self/ns/mnt")?;
        Ok(Home { namespace, root: folder(c"/")?, current: folder(c".")? })
    }

    /// Leaves for the mount namespace of process `pid`.
    pub fn enter(pid: i32) -> Result<Home> {
        let path = format!("/proc/{pid}/ns/mnt");
        let there = File::open(&path).with_context(|| path.clone())?;
        let home = Home::note()?;
        setns(&there, CloneFlags::CLONE_NEWNS).with_context(|| format!("setns to {path}"))?;
        Ok(home)
    }

    /// Leaves for a mount namespace of our own, which hears of the host's mounts and tells of none.
    pub fn leave() -> Result<Home> {
        let home = Home::note()?;
        unshare(CloneFlags::CLONE_NEWNS).context("unshare of the mount namespace")?;
        super::pivot::set_propagation(libc::MS_SLAVE | libc::MS_REC).context("mount(MS_SLAVE)")?;
        Ok(home)
    }

    /// Goes back; what was mounted ends with the last process there.
    pub fn back(self) -> Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNS)
            .and_then(|()| fchdir(&self.root))
            .and_then(|()| chroot("."))
            .and_then(|()| fchdir(&self.current))
            .context("back to the runtime's own mount namespace")
    }
}

/// The caller's mount namespace, for one who leaves it and holds no folder of it open meanwhile; `None` in a
/// chroot, to which that would not lead back. The current folder is the root afterwards.
pub fn way_home() -> Result<Option<File>> {
    let namespace = File::open("/proc/self/ns/mnt").context("/proc/self/ns/mnt")?;
    let root = sys::openat(sys::CWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open"))?;
    setns(&namespace, CloneFlags::CLONE_NEWNS).context("setns to the runtime's own mount namespace")?;
    let place = |dir, path| sys::place(dir, path).map_err(failed("statx"));
    if place(sys::CWD, c"/")? == place(root.as_fd(), c"")? {
        return Ok(Some(namespace));
    }
    fchdir(&root).and_then(|()| chroot(".")).context("back to the chroot")?;
    Ok(None)
}

/// Binds the root file system on the folder `place`: CRIU wants a mount whose parent nothing covers.
pub fn bind_root(rootfs: &Path, place: &Path) -> Result<()> {
    let c = |path: &Path| CString::new(path.as_os_str().as_bytes());
    sys::mount(Some(&c(rootfs)?), &c(place)?, None, libc::MS_BIND | libc::MS_REC, None)
        .map_err(failed("mount"))
        .with_context(|| format!("root.path ({})", rootfs.display()))
}

/// Makes the destinations that a restore will mount on, as create does, and leaves no mount. Those on a
/// file system that CRIU itself restores are its affair.
pub fn make_destinations(rootfs: &Path, mounts: &[Mount], bundle: &Path) -> Result<()> {
    let home = Home::leave()?;
    let made = make_all(rootfs, mounts, bundle);
    home.back()?;
    made
}

fn make_all(rootfs: &Path, mounts: &[Mount], bundle: &Path) -> Result<()> {
    let name = CString::new(rootfs.as_os_str().as_bytes())?;
    bind_root(rootfs, rootfs)?;
    let root = sys::openat(sys::CWD, &name, libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open")).context("root.path")?;
    let mut saved: Vec<PathBuf> = Vec::new();
    for (i, mount) in mounts.iter().enumerate() {
        let destination = clean(mount.destination());
        let wrap = || format!("mounts[{i}] ({})", destination.display());
        if saved.iter().any(|s| destination.starts_with(s) && destination != *s) {
            continue;
        }
        if !is_bind(mount) {
            paths::walk(root.as_fd(), &destination, paths::Missing::Folder).map_err(failed("make the destination")).with_context(wrap)?;
            saved.push(destination);
            continue;
        }
        check_link(root.as_fd(), &destination).with_context(wrap)?;
        let source = bundle.join(mount.source().clone().unwrap_or_default());
        let copy = Copy::of_path(&source, true).map_err(|errno| super::mounter::missing_source(&source, errno)).with_context(wrap)?;
        let missing = match paths::kind(&copy) {
            Ok(SFlag::S_IFDIR) => paths::Missing::Folder,
            _ => paths::Missing::File,
        };
        let found = paths::walk(root.as_fd(), &destination, missing).map_err(failed("make the destination")).with_context(wrap)?;
        check_key(&found.path).with_context(wrap)?;
        copy.mount(&Target { root: root.as_fd(), path: &destination, fd: found.fd, made: found.made }).with_context(wrap)?;
    }
    Ok(())
}

/// [`check_key`] of where a destination leads that is a link, whether or not something is there.
pub fn check_link(root: BorrowedFd<'_>, destination: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (destination.parent(), destination.file_name()) else { return Ok(()) };
    let Ok(folder) = paths::open(root, parent, OFlag::O_PATH | OFlag::O_DIRECTORY) else { return Ok(()) };
    readlinkat(folder, name).map_or(Ok(()), |text| check_key(&clean(&parent.join(text))))
}

/// Refuses a mount's place that CRIU cannot have as a name: it would read `]:` as the end, and `/` is the root's own.
pub fn check_key(path: &Path) -> Result<()> {
    if path.as_os_str().as_bytes().windows(2).any(|w| w == b"]:") || path.to_str().is_none() || path == Path::new("/") {
        bail!("invalid external mount destination {path:?}: CRIU cannot name a mount at \"/\", with \"]:\", or what is not UTF-8");
    }
    Ok(())
}
