//! The command line: runc's, as its callers type it.
//!
//! [`main`] is the program: it parses (one row of one static table, nothing else is looked at),
//! opens the log, calls the command and prints the one line of its failure. The types that
//! commands are called with are in `args`.

mod args;
mod completion;
mod convert;
mod help;
mod parse;
mod root;
mod table;

pub use args::*;
pub(crate) use help::{COMMIT, VERSION};
pub use root::in_user_namespace;

use crate::process::NotExecuted;
use crate::{log, terminal};
use anyhow::{Context, Error, Result, bail};
use parse::{Parsed, UnknownCommand};
use std::ffi::OsString;
use std::path::PathBuf;
use table::Command;

/// Parses, dispatches, prints the one error; the exit code.
pub fn main(args: Vec<OsString>) -> i32 {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let program = program.to_string_lossy();
    let (globals, asked) = parse::parse(args);
    // The container's process inherits descriptors 0 to 2: they must not be files of ours.
    let held = match &asked {
        Ok(Some((command, _))) if matches!(command.name, "create" | "run" | "exec" | "restore") => terminal::hold_stdio(),
        _ => Ok(()),
    };
    let result = held.and_then(|()| open_log(&globals)).and_then(|()| match asked? {
        _ if globals.on("version") => help::version(name(&program)),
        None => help::overview(name(&program)),
        Some((command, _)) if globals.on("help") => help::of(name(&program), command),
        Some((command, parsed)) => run(&program, command, &globals, &parsed),
    });
    if result.is_ok() {
        log::flush();
    }
    result.unwrap_or_else(|e| {
        match e.downcast_ref::<NotExecuted>() {
            // Of 'run', which is there in place of the program.
            Some(refused) if !e.is::<ExecFailed>() => log::error_as(&log::message(&e), &refused.0),
            _ => log::error(&log::message(&e)),
        }
        exit_code(&e)
    })
}

/// What we call ourselves: `runc` where we are installed in its place.
fn name(program: &str) -> &'static str {
    if program.rsplit('/').next() == Some("runc") { "runc" } else { "rrun" }
}

fn open_log(globals: &Parsed) -> Result<()> {
    let debug = globals.on("debug") || globals.text("log-level")?.is_some_and(|l| l == "debug");
    log::open(globals.path("log").as_deref(), convert::log_format(globals)?, debug)
}

/// A failure of `exec`, which alone has an exit code of its own: 255 cannot be the command's.
#[derive(Debug)]
struct ExecFailed;

impl std::fmt::Display for ExecFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("exec failed")
    }
}

fn run(program: &str, command: &'static Command, globals: &Parsed, parsed: &Parsed) -> Result<i32> {
    let (least, most) = command.count;
    let count = parsed.operands.len();
    if count < least || count > most {
        let (how, n) = match (least == most, count < least) {
            (true, _) => ("exactly", least),
            (_, true) => ("a minimum of", least),
            (_, false) => ("a maximum of", most),
        };
        let me = name(program);
        bail!("{program}: {:?} requires {how} {n} argument(s) (see '{me} {} --help')", command.name, command.name);
    }
    let globals = Globals {
        // These two need no containers.
        root: if matches!(command.name, "features" | "spec") { PathBuf::new() } else { root::of(globals)? },
        root_given: globals.path("root").is_some(),
        log: globals.path("log"),
        log_format: convert::log_format(globals)?,
        debug: globals.on("debug"),
        cgroup_manager: convert::cgroup_manager(globals)?,
        rootless: convert::rootless(globals)?,
    };
    let result = (command.run)(&globals, parsed);
    match command.name {
        "create" | "run" => result.with_context(|| format!("{} {} failed", name(program), command.name)),
        "exec" => result.context(ExecFailed),
        _ => result,
    }
}

/// 3 for an unknown command and 255 for a failed exec, as runc has it; else 1.
fn exit_code(error: &Error) -> i32 {
    if error.is::<UnknownCommand>() {
        3
    } else if error.is::<ExecFailed>() {
        255
    } else {
        1
    }
}

#[cfg(test)]
mod tests;
