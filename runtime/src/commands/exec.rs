//! `exec`.

use crate::cli::{Exec, Globals};
use anyhow::{Result, bail};

/// Not written yet.
pub fn run(_globals: &Globals, _args: &Exec) -> Result<i32> {
    bail!("exec: not implemented")
}
