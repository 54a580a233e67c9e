//! The attached `run` and `exec`: forwards signals, relays the terminal, reaps, gives the status.
//!
//! ```text
//! Supervisor::new     before the child is cloned: no SIGCHLD can be missed
//!   child             sets Supervisor::mask before it runs anything
//! Supervisor::attach  with the pty's master, before the container's process starts
//! Supervisor::run     until that process ends
//! ```

use crate::notify::Proxy;
use crate::relay::Relay;
use crate::sys;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, OwnedFd};

/// Takes this process's signals until it ends; the caller's terminal is restored with its drop.
#[derive(Debug)]
pub struct Supervisor {
    signals: SignalFd,
    before: SigSet,
    relay: Option<Relay>,
    notify: Option<Proxy>,
}

impl Supervisor {
    /// Blocks the signals and opens them as a descriptor. With `subreaper`, orphans of the
    /// container become children of this process and are reaped.
    pub fn new(subreaper: bool) -> Result<Supervisor> {
        // A caller may have ignored it; then the kernel would reap, and the status be lost.
        sys::default_action(libc::SIGCHLD).context("SIGCHLD")?;
        if subreaper {
            sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).context("prctl(PR_SET_CHILD_SUBREAPER)")?;
        }
        let mut taken = SigSet::all();
        // These stop whoever touches the terminal from the background: as for any program.
        taken.remove(Signal::SIGTTIN);
        taken.remove(Signal::SIGTTOU);
        let signals = SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")?;
        let before = taken.thread_swap_mask(SigmaskHow::SIG_SETMASK).context("sigprocmask")?;
        Ok(Supervisor { signals, before, relay: None, notify: None })
    }

    /// The signal mask that the container's process gets: `mask().thread_set_mask()` in the child.
    pub fn mask(&self) -> SigSet {
        self.before
    }

    /// Connects the master of the container's pty to the standard streams. Called before the
    /// container's process starts, so that it finds its terminal in the right size.
    pub fn attach(&mut self, master: OwnedFd) -> Result<()> {
        self.relay = Some(Relay::new(master)?);
        Ok(())
    }

    /// Passes on the container's word that it is ready.
    pub fn notify(&mut self, proxy: Option<Proxy>) {
        self.notify = proxy;
    }

    /// Until the child `pid` ends: its exit code, 128 and the signal's number if it was killed.
    pub fn run(mut self, pid: i32) -> Result<i32> {
        // One that has ended already has left its signal.
        let mut status = None;
        while status.is_none() {
            let [signalled, notified, ready @ ..] = self.wait()?;
            if notified
                && let Some(proxy) = &self.notify
                && proxy.turn(pid)?
            {
                self.notify = None;
            }
            if signalled && self.forward(pid) {
                status = reap(pid)?;
            }
            if let Some(relay) = &mut self.relay {
                relay.turn(ready);
            }
        }
        self.finish()?;
        Ok(status.map_or(0, exit_code))
    }

    /// Polls: signals, sd_notify, standard input, standard output, the pty.
    fn wait(&self) -> Result<[bool; 5]> {
        let signals = self.signals.as_fd();
        let idle = || PollFd::new(signals, PollFlags::empty());
        let [a, b, c] = self.relay.as_ref().map_or_else(|| [idle(), idle(), idle()], |r| r.polled(signals));
        let notify = self.notify.as_ref().map_or_else(idle, |proxy| PollFd::new(proxy.as_fd(), PollFlags::POLLIN));
        let mut polled = [PollFd::new(signals, PollFlags::POLLIN), notify, a, b, c];
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(polled.map(|p| p.any().unwrap_or(false))),
            Err(e) => Err(e).context("poll"),
        }
    }

    /// Passes one signal on, the next poll tells of more; whether a child has ended.
    fn forward(&self, pid: i32) -> bool {
        match next_signal(&self.signals) {
            Some(libc::SIGCHLD) => return true,
            Some(libc::SIGWINCH) => self.relay.iter().for_each(Relay::resize),
            // Of our own doing, or nobody's message.
            Some(libc::SIGPIPE | libc::SIGURG) | None => (),
            // The child is not reaped yet, so the number is still its own.
            Some(other) => drop(sys::kill(pid, other)),
        }
        false
    }

    /// Writes what the pty still holds. A reader that is slow is waited for, until a signal that
    /// would have ended the container ends the wait instead.
    fn finish(&mut self) -> Result<()> {
        let Supervisor { signals, relay: Some(relay), .. } = self else { return Ok(()) };
        let mut budget = 1 << 20;
        while let Some(stdout) = relay.take_rest(&mut budget) {
            let mut polled = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(stdout, PollFlags::POLLOUT)];
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => (),
                Err(e) => return Err(e).context("poll"),
            }
            let [signalled, writable] = polled.map(|p| p.any().unwrap_or(false));
            while signalled && let Some(signal) = next_signal(signals) {
                if [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM].contains(&signal) {
                    return Ok(());
                }
            }
            relay.turn([false, writable, false]);
        }
        Ok(())
    }
}

fn next_signal(signals: &SignalFd) -> Option<i32> {
    signals.read_signal().ok().flatten().map(|info| info.ssi_signo as i32)
}

/// In a new process: an end to the signals that callers are known to ignore (nohup, shells for
/// background jobs, daemons and Python for SIGPIPE). `execve` would keep them ignored, and `yes | head`
/// in the container would never end. Those that ask for an end are heeded by a process 1, too, as long as
/// it waits for `start`.
pub fn default_signals() -> Result<()> {
    let asking = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
    let others = [libc::SIGPIPE, libc::SIGCHLD, libc::SIGXFSZ];
    let mut all = asking.into_iter().map(sys::end_at).chain(others.into_iter().map(sys::default_action));
    all.try_for_each(|done| done).context("reset signal actions")
}

/// Reaps every child that has ended; the status of `pid` when it is among them.
fn reap(pid: i32) -> Result<Option<i32>> {
    let mut status = None;
    loop {
        match sys::waitpid(-1, libc::WNOHANG) {
            Ok(Some((ended, raw))) if ended == pid => status = Some(raw),
            Ok(Some(_)) => (),
            Ok(None) => return Ok(status),
            Err(Errno::ECHILD) if status.is_some() => return Ok(status),
            Err(e) => return Err(e).with_context(|| format!("wait for process {pid}")),
        }
    }
}

/// A wait status as the shell's exit code.
pub fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

#[cfg(test)]
mod tests {
    //! A supervisor takes its process's signals, so each case runs in a process of its own: this
    //! test program again with [`inner`] as its only test, and of that a fork with one thread.
    use super::*;
    use crate::sys::Cloned;
    use crate::terminal;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Child, Command, Stdio};

    #[test]
    #[ignore = "the other side of the tests below"]
    fn inner() {
        let Some(script) = std::env::var_os("RRUN_TEST_SCRIPT") else { return };
        if let Cloned::Parent(pid, _) = sys::clone(0, None).unwrap() {
            let (_, status) = sys::waitpid(pid, 0).unwrap().unwrap();
            sys::exit_now(exit_code(status));
        }
        let mut supervisor = Supervisor::new(true).unwrap();
        let pty = terminal::open_pty(sys::openat(sys::CWD, c"/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY, 0).unwrap()).unwrap();
        supervisor.attach(pty.master).unwrap();
        let arguments = ["sh", "-c", script.to_str().unwrap()].map(|a| std::ffi::CString::new(a).unwrap());
        match sys::clone(0, None).unwrap() {
            Cloned::Child => {
                supervisor.mask().thread_set_mask().unwrap();
                nix::unistd::setsid().unwrap();
                terminal::attach(pty.slave).unwrap();
                sys::execve(c"/bin/sh", &arguments, &[c"PATH=/bin:/usr/bin".into()]);
                sys::exit_now(99)
            }
            Cloned::Parent(pid, _) => {
                drop(pty.slave);
                sys::exit_now(supervisor.run(pid).unwrap())
            }
        }
    }

    fn command(script: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "supervise::tests::inner", "--ignored", "--test-threads=1", "--nocapture"]);
        command.env("RRUN_TEST_SCRIPT", script).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    /// Its output after the lines of the test program, and its exit code.
    fn end(mut child: Child) -> (String, i32) {
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        let code = child.wait().unwrap().code().unwrap();
        let own = output.split_once("inner ... ").map_or(output.as_str(), |(_, own)| own);
        (own.trim_start().to_string(), code)
    }

    fn run(script: &str) -> (String, i32) {
        end(command(script).spawn().unwrap())
    }

    #[test]
    fn the_tail_of_the_output_and_the_status_arrive() {
        let (output, code) = run("seq 1 3000; exit 7");
        assert_eq!(code, 7);
        assert_eq!(output, (1..=3000).map(|n| format!("{n}\n")).collect::<String>());
        assert_eq!(run("kill -KILL $$").1, 137);
        assert_eq!(run("kill -35 $$").1, 128 + 35, "a real-time signal");
    }

    #[test]
    fn input_arrives_and_its_end_ends_nothing() {
        let mut child = command("stty -echo; echo ready; read a; read b; sleep 0.1; echo $a-$b").stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
        let (output, code) = end(child);
        assert!(output.ends_with("one-two\n"), "{output}");
        assert_eq!(code, 0);
    }

    #[test]
    fn a_closed_output_does_not_stop_the_container() {
        let mut child = command("echo ready; seq 1 100000; exit 5").spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.ends_with("ready\n") {
            output.read_line(&mut line).unwrap();
        }
        drop(output);
        assert_eq!(child.wait().unwrap().code(), Some(5));
    }

    #[test]
    fn signals_are_forwarded() {
        let mut child = command("trap 'echo got it; exit 3' TERM; echo ready $PPID; while :; do sleep 0.05; done").spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::io::Result::ok);
        let ready = lines.find(|l| l.contains("ready ")).unwrap();
        let (_, supervisor) = ready.rsplit_once(' ').unwrap();
        sys::kill(supervisor.parse().unwrap(), libc::SIGTERM).unwrap();
        assert!(lines.any(|l| l == "got it"));
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }

    #[test]
    fn a_terminal_that_was_closed_may_be_opened_again() {
        let (output, code) = run("t=$(tty); exec </dev/null >/dev/null 2>&1; sleep 0.2; echo one >$t; sleep 0.2; echo two >$t; exit 4");
        assert_eq!((output.as_str(), code), ("one\ntwo\n", 4));
    }

    #[test]
    fn the_terminal_has_the_size_of_ours_and_is_restored() {
        let size = nix::pty::Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        let ours = nix::pty::openpty(Some(&size), None).unwrap();
        let before = nix::sys::termios::tcgetattr(&ours.slave).unwrap();
        let dup = || Stdio::from(ours.slave.try_clone().unwrap());
        let script = "stty size; echo ready $PPID.; read a; stty size; echo done";
        let mut child = command(script).stdin(dup()).stdout(dup()).spawn().unwrap();
        let mut seen = String::new();
        let mut until = |words: &str| {
            let mut buffer = [0; 512];
            while !seen.contains(words) {
                let n = nix::unistd::read(&ours.master, &mut buffer).unwrap();
                seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
            seen.clone()
        };
        let ready = until(".\r\n");
        let supervisor = ready.trim_end_matches(".\r\n").rsplit(' ').next().unwrap();
        assert_ne!(nix::sys::termios::tcgetattr(&ours.slave).unwrap(), before);
        sys::set_window_size(ours.master.as_fd(), 44, 88).unwrap();
        sys::kill(supervisor.parse().unwrap(), libc::SIGWINCH).unwrap();
        nix::unistd::write(&ours.master, b"go\n").unwrap();
        until("done");
        child.wait().unwrap();
        assert!(seen.contains("33 77\r\n") && seen.contains("44 88\r\n"), "{seen}");
        assert_eq!(nix::sys::termios::tcgetattr(&ours.slave).unwrap(), before);
    }
}
