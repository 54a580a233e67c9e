//! The container's view of the cgroups at the destination of a mount of type `cgroup`.
//!
//! v1: a tmpfs with one folder per hierarchy, on which the container's own cgroup is bound, and links
//! for the controllers of joint hierarchies. v2: with a cgroup namespace a cgroup2 mount, which the
//! kernel roots at the container's cgroup; without one the host's folder is bound, because a cgroup2
//! mount would wait 15 to 22 ms for an RCU grace period there.

use super::attach::{Copy, Filesystem, PLAIN, Target, apply_options, make_readonly, set_attributes};
use super::mounts::MountOp;
use super::options::attr;
use super::{Context, failed, paths};
use crate::cgroups::View;
use crate::sys::{self, MountAttr, Spent};
use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::symlinkat;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What a mount of type `cgroup` is to show.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// The host has the unified hierarchy only.
    v2: bool,
    /// v1: every hierarchy. v2: the one.
    views: Vec<View>,
    /// The container has a cgroup namespace.
    namespace: bool,
    /// The container is in a user namespace.
    user_namespace: bool,
}

impl Cgroups {
    pub(super) fn new(context: &Context<'_>) -> Cgroups {
        let views = context.cgroup_views.clone();
        let v2 = match views.as_slice() {
            // Cgroups are somebody else's affair: the view is the caller's own.
            [] => std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            views => views.iter().all(|view| view.v2),
        };
        Cgroups { v2, views, namespace: context.new_cgroup_namespace, user_namespace: context.user_namespace }
    }
}

/// Mounts the view on `target`; what is done with goes to `spent`.
pub(super) fn mount(target: &Target<'_>, op: &MountOp, cgroups: &Cgroups, spent: &mut Spent) -> Result<()> {
    if cgroups.v2 {
        spent.add(mount_v2(target, op, cgroups)?);
        return Ok(());
    }
    let mut tmpfs = Filesystem::new("tmpfs", "tmpfs")?;
    tmpfs.option("mode", Some("755"))?;
    tmpfs.attributes = attr::NOSUID | attr::NODEV | attr::NOEXEC;
    tmpfs.flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let mut mounts = vec![tmpfs.mount(target)?];
    for view in &cgroups.views {
        let tmpfs = mounts[0].as_fd();
        mounts.extend(mount_view(tmpfs, view, cgroups).with_context(|| format!("cgroup {}", view.host_dir.display()))?);
    }
    // One call for the whole tree where the kernel has it.
    let wanted = MountAttr { set: op.options.attributes() & PLAIN | attr::NOSUID | attr::NODEV | attr::NOEXEC, ..MountAttr::default() };
    match set_attributes(mounts[0].as_fd(), true, &wanted) {
        Err(Errno::ENOSYS) => mounts.iter().try_for_each(|mount| set_attributes(mount.as_fd(), false, &wanted)),
        other => other,
    }
    .map_err(failed("mount_setattr"))?;
    for change in &op.options.propagation {
        let wanted = MountAttr { propagation: change & !libc::MS_REC, ..MountAttr::default() };
        set_attributes(mounts[0].as_fd(), true, &wanted).map_err(failed("mount_setattr(propagation)"))?;
    }
    mounts.into_iter().for_each(|mount| spent.add(mount));
    Ok(())
}

/// Binds the container's cgroup of one hierarchy below `tmpfs`.
fn mount_view(tmpfs: BorrowedFd<'_>, view: &View, cgroups: &Cgroups) -> Result<Option<OwnedFd>> {
    let name = Path::new(&view.name);
    let copy = match Copy::of_path(&view.host_dir, cgroups.user_namespace) {
        // Without rights over this hierarchy the container has no cgroup in it.
        Err(Errno::ENOENT) => return Ok(None),
        other => other.map_err(failed("open_tree"))?,
    };
    mkdirat(tmpfs, name, Mode::from_bits_truncate(0o755)).map_err(failed("mkdir"))?;
    let c_name = paths::c(name.as_os_str())?;
    let mount = match copy {
        // Straight below a mount that nobody else can reach: no link can be in the way.
        Copy::Detached(mount) => sys::move_mount_at(mount.as_fd(), tmpfs, &c_name).map(|()| mount).map_err(failed("move_mount"))?,
        place => {
            let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_DIRECTORY;
            let fd = sys::openat(tmpfs, &c_name, flags, 0).map_err(failed("open"))?;
            place.mount(&Target { root: tmpfs, path: name, fd, made: 1 })?
        }
    };
    for link in view.links.iter().filter(|link| **link != view.name) {
        match symlinkat(name, tmpfs, link.as_str()) {
            Err(Errno::EEXIST) => (),
            other => other.map_err(failed("symlink"))?,
        }
    }
    Ok(Some(mount))
}

fn mount_v2(target: &Target<'_>, op: &MountOp, cgroups: &Cgroups) -> Result<OwnedFd> {
    if cgroups.namespace {
        let mut filesystem = Filesystem::new("cgroup2", "cgroup")?;
        filesystem.attributes = op.options.attributes();
        filesystem.flags = op.options.set;
        match filesystem.mount(target) {
            // A cgroup namespace of another user namespace.
            Err(error) if matches!(error.downcast_ref(), Some(Errno::EPERM | Errno::EBUSY)) => (),
            other => {
                let mount = other?;
                apply_options(mount.as_fd(), &op.options, false, true)?;
                return Ok(mount);
            }
        }
    }
    let path = match cgroups.views.first() {
        Some(view) if cgroups.namespace => view.host_dir.as_path(),
        Some(view) => view.mountpoint.as_path(),
        None => Path::new("/sys/fs/cgroup"),
    };
    let mount = Copy::of_path(path, cgroups.user_namespace).map_err(failed("open_tree /sys/fs/cgroup"))?.mount(target)?;
    apply_options(mount.as_fd(), &op.options, true, !cgroups.user_namespace)?;
    if cgroups.user_namespace && !cgroups.namespace {
        // The host's whole hierarchy, of which parts may belong to the user: never writable here.
        make_readonly(mount.as_fd()).map_err(failed("mount_setattr(read-only)"))?;
    }
    Ok(mount)
}
