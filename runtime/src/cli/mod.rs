//! The command line.

mod args;

pub use args::*;

/// Parses, dispatches, prints the one error; the exit code.
pub fn main(_args: Vec<std::ffi::OsString>) -> i32 {
    1
}
