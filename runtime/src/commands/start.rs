//! `start`: lets a created container's process execute the user's program.

use crate::cli::{Globals, Id};
use crate::container::{Container, Status};
use crate::{exec_fifo, hooks, notify};
use anyhow::{Result, bail};
use nix::errno::Errno;
use std::os::fd::AsFd;

/// Opens the gate and waits until the program runs, or has failed to.
pub fn run(globals: &Globals, args: &Id) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    match container.status()? {
        Status::Created => (),
        Status::Stopped | Status::Creating => bail!("cannot start a container that has stopped"),
        Status::Running | Status::Paused => bail!("cannot start an already running container"),
    }
    let pidfd = match container.pidfd() {
        // Before Linux 5.3.
        Err(e) if e.downcast_ref() == Some(&Errno::ENOSYS) => None,
        other => other?,
    };
    let proxy = if container.record.notify { notify::Proxy::open(&container.dir)? } else { None };
    exec_fifo::release(&container.exec_fifo(), pidfd.as_ref().map(AsFd::as_fd), || container.alive())?;
    poststart(&container)?;
    if let Some(proxy) = proxy {
        proxy.relay(container.record.pid, pidfd.as_ref().map(AsFd::as_fd))?;
    }
    Ok(0)
}

/// Runs the poststart hooks.
pub(super) fn poststart(container: &Container) -> Result<()> {
    if !container.record.hooks {
        return Ok(());
    }
    let config = container.config()?;
    let Some(all) = config.hooks() else { return Ok(()) };
    container.record.run_hooks(hooks::Kind::Poststart, all, container.record.pid, &[])
}
