//! `linux.seccomp`: compiles the profile into a filter of the kernel and loads it.
//!
//! The meaning is runc's with libseccomp: same decisions for every call, architecture and argument
//! (`tests/oracle.rs` compares them); the generator is ours because the layout of the program
//! decides how long loading takes. Compiled by the parent before the clone, loaded by init.
//! Invariant: a profile that compiles is loaded as a whole or the container does not start.

mod assemble;
mod compile;
mod i386;
mod names;
mod rules;
#[cfg(test)]
mod tests;

use crate::{log, sys};
use anyhow::{Context, Result, bail, ensure};
use libc::{
    EPERM, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_LOG, SECCOMP_RET_TRACE,
    SECCOMP_RET_TRAP, SECCOMP_RET_USER_NOTIF, sock_filter,
};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

const FLAG_LOG: u32 = libc::SECCOMP_FILTER_FLAG_LOG as u32;
const FLAG_SPEC_ALLOW: u32 = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
const FLAG_NEW_LISTENER: u32 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
const FLAG_WAIT_KILLABLE_RECV: u32 = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32;

/// A compiled profile.
#[derive(Debug)]
pub struct Filter {
    /// The classic BPF program, 4096 instructions at most.
    pub program: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*` for the load.
    pub flags: u32,
    /// Who is told of calls with `SCMP_ACT_NOTIFY`, when there are any.
    pub listener: Option<Listener>,
    /// Those of `flags` that the profile did not ask for: done without where the kernel has not got them.
    optional: u32,
}

/// Where the notification descriptor goes (runtime-spec, config-linux, seccomp).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// `listenerPath`: the socket of the seccomp agent.
    pub path: PathBuf,
    /// `listenerMetadata`: passed on to the agent.
    pub metadata: Option<String>,
}

/// Compiles a profile. The error names the field of config.json.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let default = action(profile.default_action(), profile.default_errno_ret()).context("linux.seccomp.defaultAction")?;
    ensure!(default != SECCOMP_RET_USER_NOTIF, "linux.seccomp: SCMP_ACT_NOTIFY cannot be used as default action");
    let listener = listener(profile)?;
    let (mut flags, optional) = flags(profile.flags().as_deref());
    match listener {
        Some(_) => flags |= FLAG_NEW_LISTENER,
        // It is about waiting for the listener; the kernel refuses it without one.
        None => flags &= !FLAG_WAIT_KILLABLE_RECV,
    }
    // A tracer knows what to do with a call it has not heard of, and an allowed one finds out itself.
    let unknown_tail = !matches!(profile.default_action(), Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace);
    let program = compile::program(profile, default, unknown_tail)?;
    log::debug(|| format!("seccomp filter flags: {flags}"));
    Ok(Filter { program, flags, listener, optional })
}

impl Filter {
    /// Loads the filter for the calling thread, which needs no_new_privs or CAP_SYS_ADMIN; the
    /// notification descriptor, when the profile has a listener.
    pub fn load(&self) -> Result<Option<OwnedFd>> {
        let mut loaded = sys::seccomp_load(&self.program, self.flags);
        if self.optional != 0 && matches!(loaded, Err(Errno::EINVAL)) {
            loaded = sys::seccomp_load(&self.program, self.flags & !self.optional);
        }
        loaded.map_err(|errno| match errno {
            Errno::EACCES => {
                anyhow::Error::new(errno).context("load the seccomp filter: it takes CAP_SYS_ADMIN or process.noNewPrivileges")
            }
            Errno::EBUSY if self.listener.is_some() => {
                anyhow::Error::new(errno).context("load the seccomp filter: another filter has a listener already")
            }
            _ => anyhow::Error::new(errno).context(format!(
                "load the seccomp filter: {} instructions, flags {:#x}",
                self.program.len(),
                self.flags
            )),
        })
    }
}

/// The `SECCOMP_RET_*` value of an action (seccomp(2)).
fn action(action: Action, errno: Option<u32>) -> Result<u32> {
    // The kernel takes 16 bits, and cuts an errno to its largest.
    const MAX_ERRNO: u32 = 4095;
    let errno = match (action, errno) {
        (Action::ScmpActErrno | Action::ScmpActTrace, None) => EPERM as u32,
        (Action::ScmpActErrno, Some(errno)) if errno >= MAX_ERRNO => bail!("errnoRet {errno} is not an errno"),
        (Action::ScmpActTrace, Some(errno)) if errno > u32::from(u16::MAX) => bail!("errnoRet {errno} is larger than {}", u16::MAX),
        (Action::ScmpActErrno | Action::ScmpActTrace, Some(errno)) => errno,
        (_, None) => 0,
        (_, Some(_)) => bail!("{action} takes no errnoRet; only SCMP_ACT_ERRNO and SCMP_ACT_TRACE do"),
    };
    Ok(errno
        | match action {
            Action::ScmpActKill | Action::ScmpActKillThread => SECCOMP_RET_KILL_THREAD,
            Action::ScmpActKillProcess => SECCOMP_RET_KILL_PROCESS,
            Action::ScmpActTrap => SECCOMP_RET_TRAP,
            Action::ScmpActErrno => SECCOMP_RET_ERRNO,
            Action::ScmpActNotify => SECCOMP_RET_USER_NOTIF,
            Action::ScmpActTrace => SECCOMP_RET_TRACE,
            Action::ScmpActLog => SECCOMP_RET_LOG,
            Action::ScmpActAllow => SECCOMP_RET_ALLOW,
        })
}

/// The listener, when a rule notifies.
fn listener(profile: &LinuxSeccomp) -> Result<Option<Listener>> {
    let notifying = profile.syscalls().iter().flatten().filter(|call| call.action() == Action::ScmpActNotify);
    let mut names = notifying.flat_map(|call| call.names()).peekable();
    if names.peek().is_none() {
        return Ok(None);
    }
    // The agent would have to answer for the call that hands it the descriptor.
    ensure!(names.all(|name| name != "write"), "linux.seccomp.syscalls: SCMP_ACT_NOTIFY cannot be used for the write syscall");
    let path = profile.listener_path().clone().filter(|path| !path.as_os_str().is_empty());
    let path = path.context("seccomp listenerPath is not set: linux.seccomp uses SCMP_ACT_NOTIFY and names no socket of an agent")?;
    Ok(Some(Listener { path, metadata: profile.listener_metadata().clone() }))
}

/// The flags of the load, and which of them are not asked for.
fn flags(flags: Option<&[Flag]>) -> (u32, u32) {
    let Some(flags) = flags else { return (FLAG_SPEC_ALLOW, FLAG_SPEC_ALLOW) };
    let flag = |flag: &Flag| match flag {
        Flag::SeccompFilterFlagLog => FLAG_LOG,
        Flag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
        Flag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE_RECV,
        // There is one thread to load it for.
        Flag::SeccompFilterFlagTsync => 0,
    };
    (flags.iter().map(flag).fold(0, |all, flag| all | flag), 0)
}
