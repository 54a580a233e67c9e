//! Mounts of a container that is there already: `mounts add`, `mounts remove`.
//!
//! Whatever is in the container may run meanwhile. So a mount is made whole while it is detached and out of
//! everybody's reach ([`Mounts::make`], in sight of the host's tree), and then attached to a target that was
//! resolved below the container's root ([`Mounts::attach`], in its namespaces). All of a list, or nothing.

use super::attach::{Copy, Target, apply_options, make_readonly};
use super::mounter::{self, Source};
use super::mounts::{Kind, MountOp};
use super::{Plan, failed, paths};
use crate::sys::{self, MountAttr};
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, umask};
use nix::unistd::{UnlinkatFlags, fchdir, unlinkat};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Mounts without which a container, or `exec` into it, does not work; they are neither covered nor removed.
const ITS_OWN: [&str; 7] = ["/", "/proc", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", "/dev/mqueue"];

/// File systems that name no file of the host: they are made in the container's namespaces, which they show.
const MADE_INSIDE: [&[u8]; 5] = [b"tmpfs", b"ramfs", b"devpts", b"mqueue", b"sysfs"];

/// Mounts to be added.
#[derive(Debug)]
pub struct Mounts {
    plan: Plan,
    /// Those that are opened or made already, one for each.
    made: Vec<Option<OwnedFd>>,
}

impl Mounts {
    /// The mounts of a plan, which is otherwise not used; refuses those that no running container can be given.
    pub fn new(plan: Plan) -> Result<Mounts> {
        for op in &plan.mounts {
            check(&op.destination).and_then(|()| check_kind(op)).with_context(|| op.label.clone())?;
        }
        Ok(Mounts { plan, made: Vec::new() })
    }

    /// Opens, with all the power that the caller has, what the container's root may not: as [`Plan::open_sources`].
    pub fn open(&mut self) -> Result<()> {
        self.plan.open_sources()?;
        for (i, op) in self.plan.mounts.iter().enumerate() {
            let mapped = match (&op.kind, self.plan.sources.get(i)) {
                (Kind::Bind(path), Some(source)) if source.by_parent => {
                    Some(mounter::detached_source(op, path, Some(source)).with_context(|| op.label.clone())?)
                }
                _ => None,
            };
            self.made.push(mapped);
        }
        Ok(())
    }

    /// Makes what is of the host: copies of its folders and files, file systems on its devices.
    pub fn make(&mut self) -> Result<()> {
        let nothing = sys::openat(sys::CWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open /"))?;
        if sys::mount_setattr(nothing.as_fd(), false, &MountAttr::default()) == Err(Errno::ENOSYS) {
            bail!("to change the mounts of a running container needs Linux 5.12");
        }
        for (i, op) in self.plan.mounts.iter().enumerate() {
            let opened = self.made.get_mut(i).and_then(Option::take);
            let made = make(op, opened, self.plan.sources.get(i)).with_context(|| op.label.clone())?;
            self.made[i] = made;
        }
        Ok(())
    }

    /// Attaches all below `root`, the container's; `procfs` is the host's. The first failure undoes the rest.
    pub fn attach(self, root: BorrowedFd<'_>, procfs: BorrowedFd<'_>) -> Result<()> {
        umask(Mode::empty());
        let mut attached = Vec::new();
        let mut done = Ok(());
        for (op, made) in self.plan.mounts.iter().zip(self.made) {
            let mut folders = 0;
            done = attach(root, op, made, &mut folders).map(|mount| attached.push((mount, op, folders)));
            done = done.with_context(|| op.label.clone());
            if done.is_err() {
                unmake(root, &op.destination, folders);
                break;
            }
        }
        if done.is_err() {
            for (mount, op, folders) in attached.into_iter().rev() {
                take_off(mount.as_fd(), procfs).with_context(|| format!("{}: while undoing it", op.label))?;
                unmake(root, &op.destination, folders);
            }
        }
        done
    }
}

/// Refuses the mounts that a container has from the beginning.
fn check(destination: &Path) -> Result<()> {
    if ITS_OWN.iter().any(|own| destination == Path::new(own)) {
        bail!("destination: the container needs what is mounted there, it is neither covered nor removed");
    }
    Ok(())
}

fn check_kind(op: &MountOp) -> Result<()> {
    match &op.kind {
        Kind::Cgroup => bail!("type: cgroups are mounted when a container is created, not added to it"),
        Kind::Filesystem(f) if f.fstype.as_bytes() == b"proc" => {
            bail!("type: a procfs is mounted when a container is created, not added to it")
        }
        _ => Ok(()),
    }
}

fn make(op: &MountOp, opened: Option<OwnedFd>, source: Option<&Source>) -> Result<Option<OwnedFd>> {
    let mount = match (&op.kind, opened) {
        (_, Some(mount)) => mount,
        (Kind::Bind(path), None) => mounter::detached_source(op, path, source)?,
        (Kind::Filesystem(filesystem), None) if !MADE_INSIDE.contains(&op.fstype()) => {
            filesystem.detached()?.context("an option that only mount(2) takes")?
        }
        _ => return Ok(None),
    };
    let bind = matches!(op.kind, Kind::Bind(_));
    apply_options(mount.as_fd(), &op.options, bind, op.options.bind != Some(true))?;
    Ok(Some(mount))
}

/// Attaches one; `folders` says how much of its target had to be made.
fn attach(root: BorrowedFd<'_>, op: &MountOp, made: Option<OwnedFd>, folders: &mut usize) -> Result<OwnedFd> {
    let missing = match made.as_ref().map(paths::kind).transpose()? {
        None | Some(SFlag::S_IFDIR) => paths::Missing::Folder,
        Some(_) => paths::Missing::File,
    };
    let target = target(root, &op.destination, missing)?;
    *folders = target.made;
    let mount = match (made, &op.kind) {
        (Some(mount), _) => mount,
        (None, Kind::Filesystem(filesystem)) => {
            let mount = mounter::fitted(op, filesystem, &target)?.detached()?.context("an option that only mount(2) takes")?;
            if op.options.copy_up {
                mounter::copy_up(&target, mount.as_fd())?;
            }
            apply_options(mount.as_fd(), &op.options, false, true)?;
            if op.is_readonly() {
                make_readonly(mount.as_fd()).map_err(failed("mount_setattr"))?;
            }
            mount
        }
        _ => bail!("nothing to mount"),
    };
    Copy::Detached(mount).mount(&target)
}

/// The target of a mount. A link that the container has laid could lead to a folder that it shares with the
/// host, where the mount would show: none is followed.
fn target<'a>(root: BorrowedFd<'a>, path: &'a Path, missing: paths::Missing) -> Result<Target<'a>> {
    match paths::open_plain(root, path, OFlag::O_PATH) {
        Ok(fd) => Ok(Target { root, path, fd, made: 0 }),
        Err(Errno::ENOENT) => {
            let found = paths::walk(root, path, missing).map_err(mounter::not_made)?;
            if found.path != path {
                return Err(linked(Errno::ELOOP));
            }
            Ok(Target { root, path, fd: found.fd, made: found.made })
        }
        Err(errno) => Err(linked(errno)),
    }
}

fn linked(errno: Errno) -> anyhow::Error {
    match errno {
        Errno::ELOOP => anyhow::Error::new(errno).context("destination: a symbolic link is on the way; name the place itself"),
        errno => failed("open the destination")(errno),
    }
}

/// Removes the empty folders, or the file, that a target needed.
fn unmake(root: BorrowedFd<'_>, destination: &Path, count: usize) {
    for path in destination.ancestors().take(count) {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
        let Ok(folder) = paths::open(root, folder, OFlag::O_PATH | OFlag::O_DIRECTORY) else { return };
        let Err(Errno::ENOTDIR) = unlinkat(&folder, name, UnlinkatFlags::RemoveDir) else { continue };
        // A file is taken away only as it was made.
        let Ok(name_c) = paths::c(name) else { return };
        let file = sys::openat(folder.as_fd(), &name_c, libc::O_PATH | libc::O_NOFOLLOW, 0);
        if file.and_then(nix::sys::stat::fstat).is_ok_and(|file| file.st_size == 0) {
            let _ = unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Unmounts a mount and what the container has put on it.
fn take_off(mount: BorrowedFd<'_>, procfs: BorrowedFd<'_>) -> Result<()> {
    const MOST: usize = 64;
    fchdir(procfs)?;
    let path = CString::new(format!("self/fd/{}", mount.as_raw_fd()))?;
    for i in 0..MOST {
        // What lies on top goes first; one that is gone has nothing to unmount.
        match sys::umount(&path, libc::MNT_DETACH) {
            Ok(()) => (),
            Err(Errno::EINVAL) if i > 0 => return Ok(()),
            Err(Errno::EINVAL) => bail!("umount: locked in its place (it came with another mount, and goes with that)"),
            Err(errno) => return Err(failed("umount")(errno)),
        }
    }
    Ok(())
}

/// Unmounts what is mounted at each of `destinations` of the container whose root is `root`, masked and
/// read-only paths (`kept`) excepted. `procfs` is the host's. The first failure puts the rest back.
pub fn remove(root: BorrowedFd<'_>, procfs: BorrowedFd<'_>, destinations: &[PathBuf], kept: &[PathBuf]) -> Result<()> {
    let label = |i: usize| format!("mounts[{i}] ({})", destinations[i].display());
    for (i, destination) in destinations.iter().enumerate() {
        find(root, destination, kept).with_context(|| label(i))?;
    }
    let mut gone: Vec<(&Path, Option<OwnedFd>)> = Vec::new();
    for (i, destination) in destinations.iter().enumerate() {
        let removed = find(root, destination, kept).and_then(|mount| {
            // What cannot be copied (an unbindable mount) cannot come back.
            let copy = sys::open_tree(mount.as_fd(), c"", sys::OPEN_TREE_CLONE | sys::AT_RECURSIVE | sys::AT_EMPTY_PATH).ok();
            take_off(mount.as_fd(), procfs).map(|()| copy)
        });
        match removed {
            Ok(copy) => gone.push((destination, copy)),
            Err(error) => {
                for (path, copy) in gone.into_iter().rev() {
                    if let (Some(copy), Ok(target)) = (copy, paths::open_plain(root, path, OFlag::O_PATH)) {
                        let _ = sys::move_mount(copy.as_fd(), target.as_fd());
                    }
                }
                return Err(error.context(label(i)));
            }
        }
    }
    Ok(())
}

/// The mount at a destination, on top of what is mounted there. No link is followed.
fn find(root: BorrowedFd<'_>, destination: &Path, kept: &[PathBuf]) -> Result<OwnedFd> {
    check(destination)?;
    super::mounts::check_place(destination)?;
    if kept.iter().any(|path| path == destination) {
        bail!("destination: one of linux.maskedPaths or linux.readonlyPaths, which stay");
    }
    let mount = paths::open_plain(root, destination, OFlag::O_PATH).map_err(linked)?;
    match sys::place(mount.as_fd(), c"").map_err(failed("statx"))?.mount_root {
        true => Ok(mount),
        false => bail!("destination: nothing is mounted there"),
    }
}
