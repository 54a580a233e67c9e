//! `count-calls FILE COMMAND [ARGS...]`: runs a command and counts, for it and everything it starts,
//! system calls (from its first instruction on), programs executed, processes made and minor faults.
//! What a program named `probe` does is not counted: that is the container's process, not the runtime.
//! FILE gets one JSON object; the exit code is the command's.
//!
//! Counting ends when the command has ended and what it left behind has come to rest: a container
//! that was created waits in one system call, and that call is counted. What is left goes on untraced.

use anyhow::{Context, Result, bail};
use libseccomp::ScmpSyscall;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, exit};
use std::time::{Duration, Instant};
use tests::sys;

/// No event for as long as this means that everything left waits for somebody else.
const REST: Duration = Duration::from_millis(150);

#[derive(Default)]
struct Counts {
    started: bool,
    calls: BTreeMap<i32, u64>,
    execs: u64,
    processes: u64,
    /// Of processes that have ended.
    faults: u64,
    alive: BTreeSet<i32>,
    /// The container's own processes.
    probes: BTreeSet<i32>,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, file, command @ ..] = args.as_slice() else { bail!("usage: count-calls FILE COMMAND [ARGS...]") };
    if command.is_empty() {
        bail!("count-calls: no command");
    }
    // The shell stops itself, so that tracing begins before the command does.
    let child = Command::new("sh").args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).args(command).spawn().context("start sh")?;
    let main = Pid::from_raw(child.id() as i32);
    waitpid(main, Some(WaitPidFlag::WUNTRACED))?;
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEEXIT;
    ptrace::seize(main, options).context("trace (root can, or an ordinary user its own processes)")?;
    kill(main, Signal::SIGCONT)?;
    let (counts, code) = trace(main.as_raw())?;
    fs::write(file, counts.json()).with_context(|| file.clone())?;
    exit(code);
}

/// Follows `main` and its descendants until all have ended or are at rest; the exit code of `main`.
fn trace(main: i32) -> Result<(Counts, i32)> {
    let mut counts = Counts::default();
    let mut code = None;
    let mut last = Instant::now();
    loop {
        // Blocking while the command runs, so that watching takes no processor time from it.
        let event = match sys::wait_any(if code.is_some() { libc::WNOHANG } else { 0 }) {
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => break,
            other => other.context("wait")?,
        };
        match event {
            None if last.elapsed() > REST => break,
            None => {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            }
            Some((pid, status)) if pid == main && libc::WIFEXITED(status) => code = Some(libc::WEXITSTATUS(status)),
            Some((pid, status)) if pid == main && libc::WIFSIGNALED(status) => code = Some(128 + libc::WTERMSIG(status)),
            Some((pid, status)) if libc::WIFSTOPPED(status) => counts.stop(main, pid, status)?,
            Some(_) => {}
        }
        last = Instant::now();
    }
    for pid in std::mem::take(&mut counts.alive).difference(&counts.probes).copied() {
        counts.faults = counts.faults.wrapping_add(minor_faults(pid));
    }
    Ok((counts, code.unwrap_or(1)))
}

impl Counts {
    /// Counts one stop and lets the process go on.
    fn stop(&mut self, main: i32, pid: i32, status: i32) -> Result<()> {
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let pass = if signal == libc::SIGTRAP | 0x80 {
            let call = sys::entered_call(pid).filter(|_| self.started && !self.probes.contains(&pid));
            if let Some(number) = call {
                *self.calls.entry(number as i32).or_default() += 1;
            }
            0
        } else if event != 0 {
            self.life(main, pid, event);
            0
        } else {
            signal
        };
        if event == libc::PTRACE_EVENT_EXIT {
            self.alive.remove(&pid)
        } else {
            self.alive.insert(pid)
        };
        match sys::trace_on(pid, pass) {
            // Killed while it was stopped.
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => Err(e).context("let a process go on"),
            _ => Ok(()),
        }
    }

    fn life(&mut self, main: i32, pid: i32, event: i32) {
        use libc::{PTRACE_EVENT_CLONE, PTRACE_EVENT_EXEC, PTRACE_EVENT_EXIT, PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK};
        match event {
            PTRACE_EVENT_EXEC if pid == main && !self.started => {
                self.started = true;
                self.execs = 1;
                // What the shell has had so far is not the command's.
                self.faults = 0u64.wrapping_sub(minor_faults(pid));
            }
            PTRACE_EVENT_EXEC => {
                self.execs += 1;
                if name_of(pid) == "probe" {
                    self.faults = self.faults.wrapping_add(minor_faults(pid));
                    self.probes.insert(pid);
                }
            }
            PTRACE_EVENT_FORK | PTRACE_EVENT_VFORK | PTRACE_EVENT_CLONE => self.processes += 1,
            PTRACE_EVENT_EXIT if !self.probes.contains(&pid) => self.faults = self.faults.wrapping_add(minor_faults(pid)),
            _ => {}
        }
    }

    fn json(&self) -> String {
        let names: BTreeMap<String, u64> = self.calls.iter().map(|(number, count)| (name(*number), *count)).collect();
        let value = serde_json::json!({
            "syscalls": self.calls.values().sum::<u64>(),
            "execs": self.execs,
            "processes": self.processes,
            "faults": self.faults,
            "names": names,
        });
        format!("{value:#}\n")
    }
}

fn name(number: i32) -> String {
    ScmpSyscall::from(number).get_name().unwrap_or_else(|_| number.to_string())
}

/// The name of the program that a process runs.
fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_string()
}

/// Minor faults of a process so far: field 10 of `/proc/PID/stat`, the eighth after the name.
fn minor_faults(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().nth(7).and_then(|f| f.parse().ok()).unwrap_or(0)
}
