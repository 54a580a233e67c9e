//! Processes of a container: how the first one and those of `exec` come to be.
//!
//! [`Plan`] is the configuration, checked and converted; [`parent`] clones and answers; `init` and
//! `exec` are the two straight lists of steps of the new process; [`protocol`] is what they say to
//! each other. One thread exists until the new process is there, so that the copy of memory it
//! starts with is whole.

mod exec;
mod init;
mod live;
mod parent;
mod plan;
pub mod protocol;
mod setup;

pub use exec::Exec;
pub use live::{add_mounts, remove_mounts};
pub use parent::{Made, create, exec as run_exec};
pub use plan::Plan;
pub use setup::Setup;

use crate::cgroups::Entry;
use crate::container::Record;
use crate::rootfs::Root;
use crate::terminal;
use crate::{log, sys};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SigSet;
use protocol::{Channel, Kind};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

/// What a new process needs from the parent's side of the plan.
#[derive(Debug)]
pub struct Gate {
    /// The exec fifo, opened `O_PATH`; `run` and `exec` have none.
    pub fifo: Option<OwnedFd>,
    /// The console socket, connected; without one the terminal goes to the parent.
    pub console: Option<OwnedFd>,
    /// The signal mask of the caller, for the new process.
    pub mask: Option<SigSet>,
    /// The container's first record.
    pub record: Record,
}

impl Gate {
    fn hand_over_terminal(&self, channel: &Channel, master: &OwnedFd) -> Result<()> {
        match &self.console {
            Some(socket) => terminal::send_master(socket.as_fd(), master.as_fd()),
            None => channel.send(Kind::Terminal, "", Some(master)).context("send the terminal's master"),
        }
    }
}

/// Makes the process's terminal, hands its master over, and takes the slave as standard streams.
fn take_terminal(setup: &Setup, root: &Root, gate: &Gate, channel: &Channel, console: bool) -> Result<()> {
    let pty = terminal::open_pty(root.open_ptmx()?)?;
    if let Some((height, width)) = setup.console_size {
        terminal::set_size(pty.master.as_fd(), height, width)?;
    }
    if console {
        root.attach_console(pty.slave.as_fd())?;
    }
    gate.hand_over_terminal(channel, &pty.master)?;
    terminal::attach(pty.slave)
}

/// Ties this process's life to the parent's, until it is released. The signal alone would miss a
/// parent that died before the call: then the conversation's end-of-file ends this process.
fn guard_against_orphaning(gate: &Gate) -> Result<()> {
    crate::supervise::default_signals()?;
    if let Some(mask) = &gate.mask {
        mask.thread_set_mask().context("sigprocmask")?;
    }
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).context("prctl(PR_SET_PDEATHSIG)")?;
    Ok(())
}

/// Closes this process, and those it makes until they execute, to ptrace(2) and `/proc` of everybody
/// but the host's root: to be called before a container can see it.
fn hide() -> Result<()> {
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).context("prctl(PR_SET_DUMPABLE)")?;
    Ok(())
}

/// Gives up the supplementary groups of the host's root, before a user namespace is joined that may
/// forbid it.
fn drop_groups() -> Result<()> {
    match sys::setgroups(&[]) {
        // An ordinary user may not, nor may the root of a user namespace that forbids it.
        Err(Errno::EPERM) => Ok(()),
        other => other.context("setgroups"),
    }
}

/// The end of a hop: the process that it made goes on, and the hop tells its number and leaves.
fn leave_hop(channel: Channel, made: Result<sys::Cloned>, go_on: impl FnOnce(Channel)) -> ! {
    let told = match made {
        Ok(sys::Cloned::Child) => {
            go_on(channel);
            sys::exit_now(1)
        }
        Ok(sys::Cloned::Parent(pid, _)) => channel.tell(Kind::Forked, &pid.to_string()),
        Err(error) => channel.tell(Kind::Failed, &crate::log::message(&error)).and(Err(Errno::ECANCELED)),
    };
    sys::exit_now(i32::from(told.is_err()))
}

/// A process that a hop made: waits until the parent has learnt its number, which all answers are for.
fn wait_until_known(channel: &Channel) -> Result<()> {
    match channel.receive()? {
        Some(message) if message.kind == Kind::Done => Ok(()),
        _ => sys::exit_now(1),
    }
}

/// The last question: the parent saves the record. From its answer on this process
/// may outlive it; should it die before, the end-of-file ends this process (the signal could still
/// come after the answer).
fn release(channel: &Channel) -> Result<()> {
    sys::prctl(libc::PR_SET_PDEATHSIG, 0, 0).context("prctl(PR_SET_PDEATHSIG)")?;
    Ok(channel.ask(Kind::Ready, "")?)
}

/// Checks `--preserve-fds`, and keeps all other descriptors that came with the caller from hooks.
pub fn check_preserved(count: u32) -> Result<()> {
    let first_closed = 3 + i64::from(count);
    for fd in 3..first_closed {
        if !i32::try_from(fd).is_ok_and(sys::is_inherited) {
            bail!("--preserve-fds {count}: descriptor {fd} is not open");
        }
    }
    close_inherited(first_closed as u32)
}

/// Closes what the caller has left open beyond what is passed on: a container that waits for `start` would
/// keep it open. None of ours is there yet but the log.
fn close_inherited(first: u32) -> Result<()> {
    let ranges = match log::descriptor() {
        Some(log) if log >= first => [(first, log.wrapping_sub(1)), (log + 1, u32::MAX)],
        _ => [(first, u32::MAX), (1, 0)],
    };
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        match sys::close_range(first, last, false) {
            Err(Errno::ENOSYS) => mark_all_cloexec(first as i32),
            other => other.context("close_range")?,
        }
    }
    Ok(())
}

/// Gets this process into the container's cgroups: by the files that the parent has opened, written
/// back to back so that the kernel's grace period is waited for once, or by asking the parent, who
/// asks systemd.
fn enter_cgroups(channel: &Channel, entry: Entry) -> Result<()> {
    match entry {
        Entry::None | Entry::Into(_) => (),
        Entry::Adopt => drop(channel.ask(Kind::JoinCgroup, "")?),
        Entry::Write(files) => {
            for file in &files {
                sys::write(file.as_fd(), b"0").context("join the cgroup: write to cgroup.procs")?;
            }
            sys::close_all(files);
        }
    }
    Ok(())
}

/// Becomes user and group 0 of the user namespace, where it maps them.
fn become_root() -> Result<()> {
    for (result, what) in [(sys::setresgid(0), "setresgid(0)"), (sys::setresuid(0), "setresuid(0)")] {
        match result {
            // Not mapped: the capabilities of the namespace's maker are enough.
            Err(Errno::EINVAL) => (),
            other => other.with_context(|| format!("become root in the user namespace: {what}"))?,
        }
    }
    Ok(())
}

/// `execve`; on success nothing of ours is left but what was asked to be.
fn execute(setup: &Setup, path: &CStr, env: &[CString]) -> Result<std::convert::Infallible> {
    for fd in 3..setup.first_closed as i32 {
        sys::set_cloexec(fd, false).with_context(|| format!("--preserve-fds: descriptor {fd}"))?;
    }
    let errno = sys::execve(path, &setup.argv, env);
    bail!(NotExecuted(format!("exec {}: {}", path.to_string_lossy(), errno.desc().to_lowercase())))
}

/// `execve` has refused the program. Where the caller waits for it, this is all that is said, as runc's init says it.
#[derive(Debug)]
pub struct NotExecuted(pub String);

impl std::fmt::Display for NotExecuted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotExecuted {}

/// Marks all descriptors from `first` on.
fn close_at_execve(first: u32) -> Result<()> {
    match sys::close_range(first, u32::MAX, true) {
        Err(Errno::ENOSYS) => mark_all_cloexec(first as i32),
        other => other.context("close_range")?,
    }
    Ok(())
}

/// The fallback before Linux 5.9: all of ours carry the flag anyway; inherited ones are looked for
/// up to the largest number the limit allows, within reason.
fn mark_all_cloexec(first: i32) {
    let highest = sys::getrlimit(libc::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft.min(65536) as i32);
    for fd in first..highest {
        let _ = sys::set_cloexec(fd, true);
    }
}
