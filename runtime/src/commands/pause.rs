//! `pause` and `resume`.

use crate::cli::{Globals, Id};
use crate::container::{Container, Error, Status};
use anyhow::{Result, bail};

/// Freezes the container's processes.
pub fn pause(globals: &Globals, args: &Id) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    match container.status()? {
        Status::Created | Status::Running => container.cgroup()?.freeze(true)?,
        Status::Paused => bail!(Error::Paused),
        Status::Creating | Status::Stopped => bail!(Error::NotRunning),
    }
    Ok(0)
}

/// Lets them go on.
pub fn resume(globals: &Globals, args: &Id) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    if container.status()? != Status::Paused {
        bail!(Error::NotPaused);
    }
    container.cgroup()?.freeze(false)?;
    Ok(0)
}
