//! Id-mapped mounts: a user namespace that exists only to carry a mapping, and its use on a detached
//! mount (`mount_setattr(MOUNT_ATTR_IDMAP)`, Linux 5.12).

use super::options::attr;
use super::{attach, failed};
use crate::sys::{self, Cloned, MountAttr};
use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIdMapping;
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The message of kernels that cannot.
pub(super) const TOO_OLD: &str = "id-mapped mounts need Linux 5.12";

/// A user namespace with that mapping. A short-lived child lends it its first breath; the
/// descriptor keeps it. The caller needs the right to write the mapping.
pub(super) fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd> {
    let parent = nix::unistd::getpid();
    match sys::clone(libc::CLONE_NEWUSER as u64, None).map_err(failed("clone(CLONE_NEWUSER) for the id map"))? {
        Cloned::Child => {
            // Dies with its parent, which may have died before the call; waits to be killed.
            if sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).is_ok() && nix::unistd::getppid() == parent {
                nix::unistd::pause();
            }
            sys::exit_now(0)
        }
        Cloned::Parent(pid, _) => {
            let namespace = write_maps(pid, uids, gids);
            // The child is ours and not reaped yet: the number is still its own.
            let _ = sys::kill(pid, libc::SIGKILL);
            let _ = waitpid(Pid::from_raw(pid), None);
            namespace
        }
    }
}

fn write_maps(pid: i32, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd> {
    for (file, list) in [("uid_map", uids), ("gid_map", gids)] {
        let mut text = String::new();
        for m in list {
            let _ = writeln!(text, "{} {} {}", m.container_id(), m.host_id(), m.size());
        }
        std::fs::write(format!("/proc/{pid}/{file}"), &text).with_context(|| format!("write {:?} to {file}", text.trim_end()))?;
    }
    let path = format!("/proc/{pid}/ns/user");
    Ok(File::open(&path).context(path)?.into())
}

/// Maps the ids of a detached mount, and with `recursive` of all mounts in it.
pub(super) fn apply(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let wanted = MountAttr { set: attr::IDMAP, userns_fd: namespace.as_raw_fd() as u64, ..MountAttr::default() };
    attach::set_attributes(mount.as_fd(), recursive, &wanted).map_err(|errno| match errno {
        Errno::ENOSYS => anyhow!(TOO_OLD),
        Errno::EPERM => anyhow::Error::new(errno).context("mount_setattr(MOUNT_ATTR_IDMAP): needs root over the file system"),
        Errno::EINVAL => {
            anyhow::Error::new(errno).context("mount_setattr(MOUNT_ATTR_IDMAP): this file system cannot be id-mapped, or is already")
        }
        errno => failed("mount_setattr(MOUNT_ATTR_IDMAP)")(errno),
    })
}
