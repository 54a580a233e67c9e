//! A further process in a container, from `clone3` to `execve`: what `exec` makes.

use super::protocol::{Channel, Kind};
use super::{Gate, Setup, enter_cgroups, guard_against_orphaning};
use crate::cgroups::{Cgroup, Entry};
use crate::namespaces::{self, NEWCGROUP, NEWPID, NEWUSER};
use crate::rootfs::{self, Root};
use crate::sys;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{chroot, fchdir};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

/// What `exec` will do.
#[derive(Debug)]
pub struct Exec {
    /// The process.
    pub setup: Setup,
    /// Init's process id.
    pub pid: i32,
    /// Init's pidfd, where the kernel has pidfds.
    pub pidfd: Option<OwnedFd>,
    /// The container's namespaces that are not the caller's, as `CLONE_NEW*` flags.
    pub kinds: u64,
    /// The container's cgroups.
    pub cgroup: Cgroup,
    /// The values of `--cgroup`.
    pub sub_cgroups: Vec<String>,
    /// The caller is root and may join the PID namespace for its children.
    pub privileged: bool,
    /// The mount namespace that a parent which enters comes back to; none for one in a chroot, which it
    /// would not come back to.
    pub home: Option<File>,
}

impl Exec {
    /// Whether the parent itself enters the container for the moment of the clone. A process that the
    /// container can see must be born inside: one with the host's root or folders open would be a way
    /// to them for a container with CAP_SYS_PTRACE, through `/proc/PID/root` and `/proc/PID/fd`.
    pub fn parent_enters(&self) -> bool {
        self.privileged && self.kinds & NEWUSER == 0 && self.home.is_some()
    }

    /// Whether an intermediate process enters instead: into a user namespace, which a parent could not
    /// leave again, and which an ordinary user must enter first; and from a chroot, to which nothing but an
    /// open folder of the host would lead back.
    pub fn needs_hop(&self) -> bool {
        !self.parent_enters() && self.kinds & (NEWPID | NEWUSER) != 0
    }

    /// Enters the container: its cgroups, then its namespaces (the PID namespace for the next clone).
    fn enter(&self, channel: &Channel, entry: Entry, visit: Option<&Visit<'_>>) -> Result<()> {
        enter_cgroups(channel, entry)?;
        if let Some(visit) = visit {
            return visit.follow();
        }
        if self.kinds & NEWUSER != 0 {
            super::drop_groups()?;
        }
        // Made in a chroot, the container has the chroot's root replaced, not that of its mount namespace.
        let root = (self.privileged && self.kinds & NEWUSER == 0).then(|| rootfs::of_process(self.pid)).transpose()?;
        namespaces::join_process(self.pidfd.as_ref(), self.pid, self.kinds)?;
        if let Some(root) = root {
            fchdir(&root).and_then(|()| chroot(".")).context("enter the container's root")?;
        }
        if self.kinds & NEWUSER != 0 {
            super::become_root()?;
        }
        Ok(())
    }
}

/// The parent's stay in the container: two namespaces are open meanwhile, and no folder of the host.
#[derive(Debug)]
pub(super) struct Visit<'a> {
    /// The way back.
    home: &'a File,
    /// The container's cgroup namespace, for the new process alone: seen from inside it, the kernel does
    /// not find the cgroup that the parent is in, and refuses to clone from there into another.
    cgroups: Option<File>,
}

impl<'a> Visit<'a> {
    /// Enters the container's namespaces (its PID namespace for the next clone).
    pub(super) fn begin(exec: &'a Exec) -> Result<Visit<'a>> {
        let open = |path: String| File::open(&path).context(path);
        let home = exec.home.as_ref().context("no way back")?;
        let in_cgroups = exec.kinds & NEWCGROUP != 0;
        let cgroups = in_cgroups.then(|| open(format!("/proc/{}/ns/cgroup", exec.pid))).transpose()?;
        super::hide()?;
        namespaces::join_process(exec.pidfd.as_ref(), exec.pid, exec.kinds & !NEWCGROUP)?;
        Ok(Visit { home, cgroups })
    }

    /// The cgroup to clone into, as the new process may hold it: on a mount of its own, from which no `..`
    /// leads to the host's files, and read-only. Kernels that cannot clone into a cgroup (before 5.7)
    /// may lack these calls too; there the folder is not handed on.
    pub(super) fn confine(entry: Entry) -> Result<Entry> {
        let Entry::Into(folder) = &entry else { return Ok(entry) };
        let confined = sys::open_tree(folder.as_fd(), c"", sys::OPEN_TREE_CLONE | sys::AT_EMPTY_PATH).and_then(|mount| {
            const MOUNT_ATTR_RDONLY: u64 = 1;
            let read_only = sys::MountAttr { set: MOUNT_ATTR_RDONLY, ..sys::MountAttr::default() };
            sys::mount_setattr(mount.as_fd(), false, &read_only).map(|()| mount)
        });
        match confined {
            Ok(mount) => Ok(Entry::Into(mount)),
            Err(Errno::ENOSYS) => entry.by_write(),
            Err(errno) => Err(errno).context("open_tree of the container's cgroup"),
        }
    }

    /// In the new process, once it is in the container's cgroups.
    fn follow(&self) -> Result<()> {
        let Some(cgroups) = &self.cgroups else { return Ok(()) };
        setns(cgroups, CloneFlags::CLONE_NEWCGROUP).context("setns to the container's cgroup namespace")
    }

    /// Back to the host's files; the other namespaces matter to nothing that the parent still does.
    pub(super) fn end(self) -> Result<()> {
        setns(self.home, CloneFlags::CLONE_NEWNS).context("setns back to the runtime's own mount namespace")
    }
}

/// Who made the process.
#[derive(Debug)]
pub(super) enum Origin<'a> {
    /// The parent, perhaps from inside the container.
    Parent(Option<&'a Visit<'a>>),
    /// The hop, from inside the container.
    Hop,
}

/// Becomes the process. Never returns: what goes wrong is told to the parent.
pub(super) fn main(exec: &Exec, channel: Channel, entry: Entry, gate: &Gate, from: Origin<'_>) -> ! {
    let Err(error) = steps(exec, &channel, entry, gate, from);
    let _ = channel.tell(Kind::Failed, &crate::log::message(&error));
    sys::exit_now(1)
}

fn steps(exec: &Exec, channel: &Channel, entry: Entry, gate: &Gate, from: Origin<'_>) -> Result<std::convert::Infallible> {
    guard_against_orphaning(gate)?;
    match from {
        Origin::Hop => super::wait_until_known(channel)?,
        Origin::Parent(visit) => {
            exec.setup.set_own_oom_score(channel)?;
            super::hide()?;
            exec.enter(channel, entry, visit)?;
        }
    }
    exec.setup.scheduling.apply_final_affinity()?;
    exec.setup.begin()?;
    let root = Root::current()?;
    if exec.setup.terminal {
        super::take_terminal(&exec.setup, &root, gate, channel, false)?;
    }
    let path = exec.setup.finish(&root, channel)?;
    let env = exec.setup.environment();
    channel.tell(Kind::Leaving, "")?;
    sys::prctl(libc::PR_SET_PDEATHSIG, 0, 0).context("prctl(PR_SET_PDEATHSIG)")?;
    exec.setup.load_late_filter(channel)?;
    super::execute(&exec.setup, &path, &env)
}

/// The hop: see [`Exec::needs_hop`].
pub(super) fn hop(exec: &Exec, channel: Channel, entry: Entry, gate: &Gate) -> ! {
    let made = hop_steps(exec, &channel, entry, gate);
    super::leave_hop(channel, made, |channel| main(exec, channel, Entry::None, gate, Origin::Hop))
}

fn hop_steps(exec: &Exec, channel: &Channel, entry: Entry, gate: &Gate) -> Result<sys::Cloned> {
    guard_against_orphaning(gate)?;
    exec.setup.set_own_oom_score(channel)?;
    super::hide()?;
    exec.enter(channel, entry, None)?;
    sys::clone(libc::CLONE_PARENT as u64, None).context("clone3 of the process")
}
