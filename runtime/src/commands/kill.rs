//! `kill`.

use crate::cli::{Globals, Kill};
use crate::container::{Container, Error};
use anyhow::Result;

/// Sends a signal to init, or with `all` to every process of the container.
pub fn run(globals: &Globals, args: &Kill) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    let sent = if args.all { container.signal_all(args.signal) } else { container.signal(args.signal) };
    match sent {
        // "All" of a container that is gone is nobody, and that is fine.
        Err(e) if args.all && e.downcast_ref() == Some(&Error::NotRunning) => Ok(0),
        other => other.map(|()| 0),
    }
}
