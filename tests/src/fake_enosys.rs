//! `fake-enosys CALL[,CALL...] COMMAND [ARGS...]`: runs a command that finds the named system calls
//! missing (ENOSYS), as on an older kernel. Everything it starts finds the same.

use anyhow::{Context, Result, bail};
use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, calls, program, rest @ ..] = args.as_slice() else {
        bail!("usage: fake-enosys CALL[,CALL...] COMMAND [ARGS...]");
    };
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
    // The command keeps its privileges: this is no sandbox.
    filter.set_ctl_nnp(false)?;
    for call in calls.split(',') {
        let number = ScmpSyscall::from_name(call).with_context(|| format!("system call {call}"))?;
        filter.add_rule(ScmpAction::Errno(nix::libc::ENOSYS), number)?;
    }
    filter.load().context("load the filter (without root's rights there is none)")?;
    Err(Command::new(program).args(rest).exec()).with_context(|| program.clone())
}
