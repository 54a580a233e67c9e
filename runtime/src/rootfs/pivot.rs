//! The root's own mount, and the way into it: pivot_root, or a move and chroot with `--no-pivot`, or
//! chroot alone where the container has no mount namespace of its own.

use super::attach::{Copy, set_attributes};
use super::mountinfo::Mounted;
use super::{Plan, failed, fallback, paths};
use crate::sys::{self, MountAttr};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{chdir, chroot, fchdir};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How the root is entered.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// `--no-pivot`.
    no_pivot: bool,
    /// No mount namespace of the container's own.
    chroot_only: bool,
    /// The host's tree does not hear of unmounts in ours.
    pub isolated: bool,
}

impl Entry {
    pub(super) fn new(plan: &Plan) -> Entry {
        let isolated = matches!(initial_propagation(plan), Some(bits) if bits & libc::MS_REC != 0);
        Entry { no_pivot: plan.no_pivot, chroot_only: !plan.mount_namespace, isolated }
    }
}

/// What happens to the propagation of the copied host tree before anything is mounted: it must not
/// hear of the container's mounts, unless the root is to be shared. As in runc the default is that
/// the host's mounts and unmounts go on to reach the container.
fn initial_propagation(plan: &Plan) -> Option<u64> {
    match plan.propagation {
        _ if !plan.mount_namespace => None,
        Some(bits) if bits & libc::MS_SHARED != 0 => None,
        Some(bits) if bits == libc::MS_PRIVATE | libc::MS_REC => Some(bits),
        _ => Some(libc::MS_SLAVE | libc::MS_REC),
    }
}

/// Mounts the root file system on itself; a descriptor of that mount.
///
/// In the host's own mount namespace that is done only if there are mounts to be made on it or it is to be
/// read-only (they stay, as runc's do); else the folder itself does.
pub(super) fn attach_root(plan: &Plan) -> Result<OwnedFd> {
    if !plan.mount_namespace && plan.mounts.is_empty() && !plan.readonly {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        return sys::openat(sys::CWD, &paths::c(plan.rootfs.as_os_str())?, flags, 0).map_err(failed("open"));
    }
    let initial = initial_propagation(plan);
    match initial {
        Some(bits) => set_propagation(bits).context("mount(/, propagation)")?,
        None if plan.mount_namespace => make_parent_private(&plan.rootfs)?,
        None => (),
    }
    let copy = match (Copy::of_path(&plan.rootfs, true), &plan.rootfs_copy) {
        (Err(Errno::EACCES), Some(copy)) => Copy::Detached(copy.try_clone()?),
        (copy, _) => copy.map_err(failed("open_tree"))?,
    };
    let path = paths::c(plan.rootfs.as_os_str())?;
    let open = || sys::openat(sys::CWD, &path, libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open"));
    let root = match copy {
        Copy::Detached(copy) => {
            attach_over(copy.as_fd(), plan, open)?;
            copy
        }
        Copy::Place(place, _) => {
            let place = fallback::fd_path(place.as_fd());
            sys::mount(Some(&place), &place, None, libc::MS_BIND | libc::MS_REC, None).map_err(failed("mount(MS_BIND)"))?;
            open()?
        }
    };
    if initial.is_none() {
        // pivot_root wants the new root unshared, and on the host's own tree our mounts must stay ours.
        let wanted = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        set_attributes(root.as_fd(), !plan.mount_namespace, &wanted).map_err(failed("mount_setattr(MS_PRIVATE)"))?;
    }
    Ok(root)
}

/// On the folder itself, or where that is out of our reach on the host's root.
fn attach_over(copy: BorrowedFd<'_>, plan: &Plan, open: impl Fn() -> Result<OwnedFd>) -> Result<()> {
    let target = match open() {
        // On the host's root, which we go on to see beneath it.
        Err(_) if plan.rootfs_copy.is_some() => sys::openat(sys::CWD, c"/", libc::O_PATH, 0).map_err(failed("open /"))?,
        other => other?,
    };
    sys::move_mount(copy, target.as_fd()).map_err(failed("move_mount"))
}

/// pivot_root refuses a shared parent, and a mount on one would reach the host.
fn make_parent_private(rootfs: &Path) -> Result<()> {
    let rootfs = std::fs::canonicalize(rootfs)?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let points = mountinfo.lines().filter_map(Mounted::parse).map(|m| m.point);
    // The last of the longest: mounts on one point are stacked in this order.
    let parent = points.filter(|p| rootfs.starts_with(p)).max_by_key(|p| p.as_os_str().len()).context("no mount holds it")?;
    sys::mount(None, &paths::c(parent.as_os_str())?, None, libc::MS_PRIVATE, None).map_err(failed("mount(MS_PRIVATE)"))
}

/// Changes the propagation of all mounts that are in sight, or of all there are where our root is a folder of
/// a mount (a chroot): what we mount must not show above it either.
pub(super) fn set_propagation(bits: u64) -> Result<()> {
    match sys::mount(None, c"/", None, bits, None) {
        Err(Errno::EINVAL) => (),
        other => return Ok(other?),
    }
    let root = sys::openat(sys::CWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0)?;
    leave_chroot()?;
    let changed = sys::mount(None, c"/", None, bits, None);
    fchdir(&root).and_then(|()| chroot(".")).context("back to the chroot")?;
    Ok(changed?)
}

/// Makes the root of the mount namespace ours; whether it was not, in a chroot: what is above one would stay in
/// the container's namespace, and with CAP_SYS_CHROOT a process walks up there.
fn leave_chroot() -> Result<bool> {
    let root = || sys::place(sys::CWD, c"/").map_err(failed("statx /"));
    let own = File::open("/proc/self/ns/mnt").context("/proc/self/ns/mnt")?;
    let before = root()?;
    match setns(&own, CloneFlags::CLONE_NEWNS) {
        // Without CAP_SYS_CHROOT. The container has no more than we, and the kernel gives no user namespace to
        // whom a chroot holds.
        Err(Errno::EPERM) => Ok(false),
        other => other.context("setns to the root of the mount namespace").and_then(|()| Ok(root()? != before)),
    }
}

/// Enters `root`.
pub(super) fn enter(root: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    if entry.chroot_only {
        return fchdir(root).and_then(|()| chroot(".")).context("chroot to the root file system");
    }
    // What is above a chroot has the propagation that the caller's mounts have.
    let isolated = !leave_chroot()? && entry.isolated;
    if entry.no_pivot {
        if !isolated {
            // On a shared / the move would reach the host.
            sys::mount(None, c"/", None, libc::MS_SLAVE | libc::MS_REC, None).map_err(failed("mount(MS_SLAVE)"))?;
        }
        return move_and_chroot(root);
    }
    fchdir(root).map_err(failed("fchdir to the root file system"))?;
    let old = (!isolated).then(|| sys::openat(sys::CWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0)).transpose()?;
    sys::pivot_root_here().map_err(|errno| match errno {
        Errno::EINVAL => anyhow::Error::new(errno).context("pivot_root: refused (on a ramfs root, as in an initrd, --no-pivot is needed)"),
        errno => failed("pivot_root")(errno),
    })?;
    if let Some(old) = old {
        // Unmounts must not reach the host. Not private: that would keep devices busy that the host
        // wants to release (device mapper).
        fchdir(old)?;
        sys::mount(None, c".", None, libc::MS_SLAVE | libc::MS_REC, None).map_err(failed("mount(MS_SLAVE)"))?;
        sys::umount(c".", libc::MNT_DETACH).map_err(failed("umount of the host's tree"))?;
        return chdir("/").map_err(failed("chdir /"));
    }
    // The old root is stacked on the new one, and "." is resolved to the top of the stack.
    // The current folder is the new root now (pivot_root(2), "pivot_root(".", ".")").
    sys::umount(c".", libc::MNT_DETACH).map_err(failed("umount of the host's tree"))
}

/// `--no-pivot`. The host's tree stays below the moved root, and a user namespace inside could mount
/// a procfs or sysfs as long as whole ones are visible in it: these go first.
fn move_and_chroot(root: BorrowedFd<'_>) -> Result<()> {
    fchdir(root).map_err(failed("fchdir to the root file system"))?;
    let rootfs = std::fs::read_link("/proc/self/cwd").context("/proc/self/cwd")?;
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    for mounted in mountinfo.lines().filter_map(Mounted::parse) {
        if mounted.root == Path::new("/") && matches!(mounted.fstype, "proc" | "sysfs") && !mounted.point.starts_with(&rootfs) {
            hide(&mounted.point).with_context(|| format!("--no-pivot: hide {}", mounted.point.display()))?;
        }
    }
    fchdir(root)?;
    sys::mount(Some(c"."), c"/", None, libc::MS_MOVE, None).map_err(failed("mount(MS_MOVE)"))?;
    chroot(".").map_err(failed("chroot"))?;
    chdir("/").map_err(failed("chdir /"))
}

/// Unmounts what is there, or covers it where it may not be unmounted.
fn hide(point: &Path) -> Result<()> {
    let path: CString = paths::c(point.as_os_str())?;
    match sys::mount(None, &path, None, libc::MS_SLAVE | libc::MS_REC, None) {
        // Gone with what was above it.
        Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EINVAL) => {
            bail!("another mount covers it, so it would stay in reach (pivot_root has no need of this, in a chroot neither)")
        }
        other => other?,
    }
    match sys::umount(&path, libc::MNT_DETACH) {
        Err(Errno::EINVAL | Errno::EPERM) => Ok(sys::mount(Some(c"tmpfs"), &path, Some(c"tmpfs"), 0, None)?),
        other => Ok(other?),
    }
}
