//! `run`: create and start in one, attached or detached.

use super::create;
use crate::cli::{Globals, Run};
use crate::supervise::Supervisor;
use crate::{notify, process, sealed_exe};
use anyhow::Result;
use std::os::fd::AsFd;

/// Runs the container; attached, the answer is its process's status (128 + n for signal n).
pub fn run(globals: &Globals, args: &Run) -> Result<i32> {
    process::check_preserved(notify::listen_fds() + args.create.preserve_fds)?;
    sealed_exe::ensure()?;
    let mut supervisor = if args.detach { None } else { Some(Supervisor::new(!args.no_subreaper)?) };
    let create::New { container, plan, made, proxy } = create::make(globals, &args.create, false, supervisor.as_mut())?;
    let started = super::start::poststart(&container);
    let Some(mut supervisor) = supervisor else {
        started?;
        let pidfd = made.pidfd.as_ref().map(AsFd::as_fd);
        return proxy.map_or(Ok(()), |proxy| proxy.relay(made.pid, pidfd)).map(|()| 0);
    };
    // What only making it needed: descriptors of mounts, the filter, the configuration.
    drop(plan);
    // Its pidfd: the process ends here.
    std::mem::forget(made.pidfd);
    supervisor.notify(proxy);
    let status = started.and_then(|()| supervisor.run(made.pid));
    if !args.keep || status.is_err() {
        super::delete::destroy(&container)?;
    }
    status
}
