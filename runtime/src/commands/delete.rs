//! `delete`.

use crate::cli::{Delete, Globals};
use crate::container::{self, Container, Error, Status};
use crate::{hooks, log};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::time::Duration;

/// Removes a container. One that waits for `start` is killed without further ado, as runc does.
pub fn run(globals: &Globals, args: &Delete) -> Result<i32> {
    let container = match Container::load(&globals.root, &args.id) {
        Ok(container) => container,
        Err(e) if !args.force || e.downcast_ref() == Some(&Error::InvalidId) => return Err(e),
        Err(e) if e.downcast_ref() == Some(&Error::NotFound) => return Ok(0),
        Err(e) => {
            log::warn(format!("{}; its folder is removed, its cgroups (if any) are not", log::message(&e)));
            return container::remove_damaged(&globals.root, &args.id).map(|()| 0);
        }
    };
    match container.status() {
        Ok(Status::Stopped) => (),
        Ok(Status::Created) => kill(&container)?,
        Ok(status) if !args.force => bail!(Error::NotStopped(args.id.clone(), status)),
        Err(e) if !args.force => return Err(e),
        _ => kill(&container)?,
    }
    destroy(&container)?;
    Ok(0)
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Kills init and waits until it is gone.
fn kill(container: &Container) -> Result<()> {
    let pidfd = match container.pidfd() {
        Ok(None) => return Ok(()),
        Err(e) if e.downcast_ref() == Some(&Errno::ENOSYS) => None,
        other => other?,
    };
    match container.signal(nix::libc::SIGKILL) {
        Err(e) if e.downcast_ref() != Some(&Error::NotRunning) => return Err(e),
        _ => (),
    }
    let gone = match pidfd {
        Some(pidfd) => {
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(PATIENCE.as_millis() as u16)).context("poll a pidfd")? > 0
        }
        None => without_pidfd(container),
    };
    if !gone {
        bail!("container init still running {} s after SIGKILL (process {})", PATIENCE.as_secs(), container.record.pid);
    }
    Ok(())
}

/// Before Linux 5.3 there is nothing to wait with for a process that is not our child.
fn without_pidfd(container: &Container) -> bool {
    const STEP: Duration = Duration::from_millis(5);
    (0..PATIENCE.as_millis() / STEP.as_millis()).any(|_| {
        std::thread::sleep(STEP);
        !container.alive()
    })
}

/// Tears the container down, then runs the poststop hooks of its configuration.
pub fn destroy(container: &Container) -> Result<()> {
    let config = if container.record.hooks { container.config().ok() } else { None };
    container.destroy()?;
    if let Some(all) = config.as_ref().and_then(|c| c.hooks().as_ref())
        && let Err(e) = container.record.run_hooks(hooks::Kind::Poststop, all, 0, &[])
    {
        // The container is gone all the same (runtime-spec, "Lifecycle").
        log::warn(log::message(&e));
    }
    Ok(())
}
