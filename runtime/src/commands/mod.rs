//! The commands: one file each, `run(&Globals, …)` gives the exit code.

pub mod create;
pub mod exec;
pub mod run;
pub mod start;
