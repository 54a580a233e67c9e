//! A further process in a container, from `clone3` to `execve`: what `exec` makes.

use super::protocol::{Channel, Kind};
use super::{Gate, Setup, enter_cgroups, guard_against_orphaning};
use crate::cgroups::{Cgroup, Entry};
use crate::namespaces::{self, NEWPID, NEWUSER};
use crate::rootfs::Root;
use crate::sys;
use crate::user_ns::IdMaps;
use anyhow::{Context, Result};
use nix::libc;
use std::os::fd::OwnedFd;

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
}

impl Exec {
    /// Whether the parent itself enters the container for the moment of the clone. A process that the
    /// container can see must be born inside: one with the host's root or folders open would be a way
    /// to them for a container with CAP_SYS_PTRACE, through `/proc/PID/root` and `/proc/PID/fd`.
    pub fn parent_enters(&self) -> bool {
        self.privileged && self.kinds & NEWUSER == 0
    }

    /// Whether an intermediate process enters instead: into a user namespace, which a parent could not
    /// leave again, and which an ordinary user must enter first.
    pub fn needs_hop(&self) -> bool {
        !self.parent_enters() && self.kinds & (NEWPID | NEWUSER) != 0
    }

    fn join(&self) -> Result<()> {
        namespaces::join_process(self.pidfd.as_ref(), self.pid, self.kinds)
    }

    /// Enters the container: its cgroups, then its namespaces (the PID namespace for the next clone).
    fn enter(&self, channel: &Channel, entry: Entry) -> Result<()> {
        enter_cgroups(channel, entry)?;
        if self.kinds & NEWUSER != 0 {
            super::drop_groups()?;
        }
        namespaces::join_process(self.pidfd.as_ref(), self.pid, self.kinds)?;
        if self.kinds & NEWUSER != 0 {
            super::become_root(&IdMaps::default())?;
        }
        Ok(())
    }
}

/// What [`Exec::parent_enters`] has changed, put back: a descriptor of the parent's mount namespace is
/// all it takes, and no folder of the host is open meanwhile.
#[derive(Debug)]
pub(super) struct Visit {
    home: std::fs::File,
}

impl Visit {
    /// Enters the container's namespaces (its PID namespace for the next clone).
    pub(super) fn begin(exec: &Exec) -> Result<Visit> {
        const OWN: &str = "/proc/self/ns/mnt";
        let home = std::fs::File::open(OWN).context(OWN)?;
        super::hide()?;
        exec.join()?;
        Ok(Visit { home })
    }

    /// Back to the host's files; the other namespaces matter to nothing that the parent still does.
    pub(super) fn end(self) -> Result<()> {
        nix::sched::setns(&self.home, nix::sched::CloneFlags::CLONE_NEWNS).context("setns back to the runtime's own mount namespace")
    }
}

/// Becomes the process. Never returns: what goes wrong is told to the parent.
pub(super) fn main(exec: &Exec, channel: Channel, entry: Entry, gate: &Gate, hopped: bool) -> ! {
    let Err(error) = steps(exec, &channel, entry, gate, hopped);
    let _ = channel.tell(Kind::Failed, &crate::log::message(&error));
    sys::exit_now(1)
}

fn steps(exec: &Exec, channel: &Channel, entry: Entry, gate: &Gate, hopped: bool) -> Result<std::convert::Infallible> {
    guard_against_orphaning(gate)?;
    if hopped {
        super::wait_until_known(channel)?;
    } else {
        exec.setup.set_own_oom_score()?;
        super::hide()?;
        exec.enter(channel, entry)?;
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
    match hop_steps(exec, &channel, entry, gate) {
        Ok(sys::Cloned::Child) => main(exec, channel, Entry::None, gate, true),
        Ok(sys::Cloned::Parent(pid, _)) => {
            let sent = channel.tell(Kind::Forked, &pid.to_string());
            sys::exit_now(i32::from(sent.is_err()))
        }
        Err(error) => {
            let _ = channel.tell(Kind::Failed, &crate::log::message(&error));
            sys::exit_now(1)
        }
    }
}

fn hop_steps(exec: &Exec, channel: &Channel, entry: Entry, gate: &Gate) -> Result<sys::Cloned> {
    guard_against_orphaning(gate)?;
    exec.setup.set_own_oom_score()?;
    super::hide()?;
    exec.enter(channel, entry)?;
    sys::clone(libc::CLONE_PARENT as u64, None).context("clone3 of the process")
}
