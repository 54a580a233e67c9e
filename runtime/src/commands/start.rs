//! `start`.

use crate::cli::{Globals, Id};
use anyhow::{Result, bail};

/// Not written yet.
pub fn run(_globals: &Globals, _args: &Id) -> Result<i32> {
    bail!("start: not implemented")
}
