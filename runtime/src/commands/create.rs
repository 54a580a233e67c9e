//! `create`.

use crate::cli::{Create, Globals};
use anyhow::{Result, bail};

/// Not written yet.
pub fn run(_globals: &Globals, _args: &Create) -> Result<i32> {
    bail!("create: not implemented")
}
