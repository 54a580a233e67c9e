//! The container's first process, from `clone3` to `execve`: a straight list of steps that
//! interprets the [`Plan`]. Runs in the child; every failure becomes one message to the parent, or,
//! once the parent may be gone, one line in the exec fifo, where `start` reads it.

use super::plan::Plan;
use super::protocol::{Channel, Kind};
use super::{Gate, enter_cgroups, guard_against_orphaning};
use crate::cgroups::Entry;
use crate::namespaces::{self, NEWCGROUP, NEWNET, NEWPID, NEWUSER};
use crate::{exec_fifo, hooks, sys};
use anyhow::{Context, Result};
use nix::libc;
use std::os::fd::{AsFd, OwnedFd};

/// Becomes the container's process. Never returns: what goes wrong is told to the parent.
pub(super) fn main(plan: &Plan, channel: Channel, entry: Entry, gate: &Gate, hopped: bool) -> ! {
    let mut late = None;
    let Err(error) = steps(plan, &channel, entry, gate, hopped, &mut late);
    match late {
        Some(fifo) => exec_fifo::fail(OwnedFd::as_fd(&fifo), &error),
        None => {
            let _ = channel.tell(Kind::Failed, &crate::log::message(&error));
        }
    }
    sys::exit_now(1)
}

/// The steps in the order in which the kernel wants them. `late` is set once errors go to the fifo.
fn steps(
    plan: &Plan,
    channel: &Channel,
    entry: Entry,
    gate: &Gate,
    hopped: bool,
    late: &mut Option<OwnedFd>,
) -> Result<std::convert::Infallible> {
    guard_against_orphaning(gate)?;
    if hopped {
        super::wait_until_known(channel)?;
    } else {
        plan.setup.set_own_oom_score(channel)?;
        enter_cgroups(channel, entry)?;
        enter_user_namespace(plan, channel)?;
        super::hide()?;
        plan.namespaces.join(|kind| kind != NEWPID)?;
    }
    if plan.namespaces.new & NEWCGROUP != 0 {
        namespaces::unshare_cgroup()?;
    }
    crate::scheduling::reset_affinity();
    plan.setup.begin()?;
    if plan.namespaces.new & NEWNET != 0 {
        sys::loopback_up().context("bring the loopback device up")?;
    }

    if !plan.net_devices.is_empty() {
        channel.ask(Kind::NetDevices, "")?;
    }

    let root = plan.rootfs.prepare(&|i| channel.fetch(Kind::Source, &i.to_string()))?;
    if plan.hooks.prestart().is_some() || plan.hooks.create_runtime().is_some() {
        channel.ask(Kind::Hooks, "")?;
    }
    if plan.hooks.create_container().is_some() {
        // As in runc they can name what is in the root by a relative path.
        nix::unistd::fchdir(root.as_fd()).context("fchdir to the root file system")?;
        gate.record.run_hooks(hooks::Kind::CreateContainer, &plan.hooks, own_pid(), &[])?;
    }
    root.pivot()?;
    if plan.setup.terminal {
        super::take_terminal(&plan.setup, &root, gate, channel, true)?;
    }
    if let Some(name) = &plan.hostname {
        nix::unistd::sethostname(name).with_context(|| format!("hostname: sethostname({name:?})"))?;
    }
    if let Some(name) = &plan.domainname {
        sys::setdomainname(name).with_context(|| format!("domainname: setdomainname({name:?})"))?;
    }
    plan.sysctls.write(&root)?;
    plan.setup.make_cwd(&root)?;
    root.finish()?;

    let gated = gate.fifo.as_ref().map(|fifo| Ok::<_, anyhow::Error>((root.procfs()?, fifo))).transpose()?;
    let path = plan.setup.finish(&root, channel)?;
    super::release(channel)?;

    let env = plan.setup.environment();
    plan.setup.show()?;
    let loaded = plan.setup.load_late_filter(channel);
    if let Some((procfs, fifo)) = gated {
        *late = Some(exec_fifo::wait(procfs, fifo.as_fd())?);
    }
    loaded?;
    if plan.hooks.start_container().is_some() {
        gate.record.run_hooks(hooks::Kind::StartContainer, &plan.hooks, own_pid(), &env)?;
    }
    super::execute(&plan.setup, &path, &env)
}

/// Init's number as a hook in its PID namespace sees it.
fn own_pid() -> i32 {
    std::process::id() as i32
}

/// In a new user namespace: waits for the maps, then becomes its root, if it has one.
fn enter_user_namespace(plan: &Plan, channel: &Channel) -> Result<()> {
    if plan.namespaces.new & NEWUSER == 0 {
        return Ok(());
    }
    channel.ask(Kind::MapIds, "")?;
    super::become_root()
}

/// The hop: joins and makes what init cannot enter by itself, clones init as its own sibling, tells
/// the parent, and leaves. See [`crate::namespaces::Namespaces::needs_hop`].
pub(super) fn hop(plan: &Plan, channel: Channel, entry: Entry, gate: &Gate) -> ! {
    let made = hop_steps(plan, &channel, entry, gate);
    super::leave_hop(channel, made, |channel| main(plan, channel, Entry::None, gate, true))
}

fn hop_steps(plan: &Plan, channel: &Channel, entry: Entry, gate: &Gate) -> Result<sys::Cloned> {
    guard_against_orphaning(gate)?;
    plan.setup.set_own_oom_score(channel)?;
    enter_cgroups(channel, entry)?;
    let namespaces = &plan.namespaces;
    let new_user = namespaces.new & NEWUSER != 0;
    // While /proc/self is still ours and not of the host's root.
    let time_offsets = (namespaces.new & namespaces::NEWTIME != 0).then(namespaces::open_time_offsets).transpose()?;
    if !new_user {
        super::hide()?;
    }
    if namespaces.joins(NEWUSER) {
        super::drop_groups()?;
    }
    namespaces.join(|_| true)?;
    if namespaces.joins(NEWUSER) {
        super::become_root()?;
    }
    if new_user {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).context("linux.namespaces: unshare of the user namespace")?;
        enter_user_namespace(plan, channel)?;
    }
    super::hide()?;
    if let Some(file) = time_offsets {
        namespaces::unshare_time(&namespaces.time_offsets, file)?;
    }
    let flags = namespaces.clone_flags() & !NEWUSER | libc::CLONE_PARENT as u64;
    sys::clone(flags, None).context("clone3 of init")
}
