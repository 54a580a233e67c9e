//! `run`: create and start in one, attached or detached.

use super::create;
use crate::cli::{Globals, Run};
use crate::supervise::Supervisor;
use crate::{process, sealed_exe};
use anyhow::Result;

/// Runs the container; attached, the answer is its process's status (128 + n for signal n).
pub fn run(globals: &Globals, args: &Run) -> Result<i32> {
    process::check_preserved(args.create.preserve_fds)?;
    sealed_exe::ensure()?;
    let mut supervisor = if args.detach { None } else { Some(Supervisor::new(!args.no_subreaper)?) };
    let (container, plan, made) = create::make(globals, &args.create, false, supervisor.as_mut())?;
    let started = super::start::poststart(&container);
    let Some(supervisor) = supervisor else {
        started?;
        return Ok(0);
    };
    // What only making it needed: descriptors of mounts, the filter, the configuration.
    drop(plan);
    let status = started.and_then(|()| supervisor.run(made.pid));
    if !args.keep || status.is_err() {
        super::delete::destroy(&container)?;
    }
    status
}
