//! `run`.

use crate::cli::{Globals, Run};
use anyhow::{Result, bail};

/// Not written yet.
pub fn run(_globals: &Globals, _args: &Run) -> Result<i32> {
    bail!("run: not implemented")
}
