//! Executing the OCI runtime: one program per job, which the loop hears of again when it has ended.

use crate::container::{Container, ContainerEnds};
use crate::oom::OwnScore;
use crate::program::Programs;
use anyhow::{Context, Result};
use rrun_monitor::socket;
use rustix::fs::{MemfdFlags, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// A runtime at work.
#[derive(Debug)]
pub(crate) struct Job {
    /// The request it is for, and its connection.
    pub(crate) request: u32,
    pub(crate) connection: u32,
    pub(crate) container: u32,
    pub(crate) work: Work,
    /// The runtime's process, the leader of its group.
    pub(crate) pid: u32,
    pub(crate) console: Option<Console>,
    /// Milliseconds of the monotonic clock.
    pub(crate) deadline: Option<u64>,
    pub(crate) timed_out: bool,
    pub(crate) pid_file: String,
    /// A memory file: a runtime that succeeds has nothing to say.
    pub(crate) log: File,
}

/// What is the same for all runtimes that the monitor executes.
#[derive(Debug, Default)]
pub(crate) struct Executor {
    pub(crate) programs: Programs,
    pub(crate) score: OwnScore,
}

/// What a runtime is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Create,
    /// With further arguments.
    Restore(Vec<String>),
    Start,
    /// `killed`: by a request that came before the process was there.
    Exec {
        dies_with_connection: bool,
        killed: Option<u32>,
    },
}

/// The socket on which the runtime hands over a terminal's master.
#[derive(Debug)]
pub(crate) struct Console {
    listener: OwnedFd,
    name: String,
    /// How the runtime reaches it: short, as a socket's address must be, whatever the pod's folder is called.
    path: String,
}

/// The last line of a failed runtime's log and its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    pub(crate) code: u32,
}

impl Container {
    /// Starts `RUNTIME ARGS create`, `restore`, `start` or `exec` for this container. `number` makes its files' names its own.
    pub(crate) fn execute(
        &self,
        by: &mut Executor,
        number: u32,
        work: Work,
        process: Option<&str>,
        tty: bool,
        ends: ContainerEnds,
    ) -> Result<Job> {
        let log = File::from(rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC).context("memfd_create")?);
        let log_path = format!("/proc/{}/fd/{}", std::process::id(), log.as_raw_fd());
        let pid_file = self.file(&format!("pid.{number}"));
        let console = tty.then(|| Console::listen(format!("tty.{number}"))).transpose()?;
        let mut words = vec![self.create.runtime.as_str()];
        words.extend(self.create.args.iter().map(String::as_str));
        words.extend(["--log", &log_path, "--log-format", "json"]);
        match &work {
            Work::Create => words.extend(["create", "--bundle", &self.create.bundle, "--pid-file", &pid_file]),
            Work::Restore(args) => {
                words.extend(["restore", "--detach", "--bundle", &self.create.bundle, "--pid-file", &pid_file]);
                words.extend(args.iter().map(String::as_str));
            }
            Work::Start => words.push("start"),
            Work::Exec { .. } => words.extend(["exec", "--detach", "--pid-file", &pid_file, "--process", process.unwrap_or_default()]),
        }
        if let Some(console) = &console {
            words.extend(["--console-socket", &console.path]);
        }
        words.push(&self.create.id);
        let words = words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>().context("an argument of the OCI runtime")?;
        let runtime = &self.create.runtime;
        let program = if self.create.read_only { by.programs.executable(runtime) } else { runtime.clone() };
        let program = CString::new(program)?;
        let streams = [&ends.stdin, &ends.stdout, &ends.stderr].map(|end| end.as_ref().map(AsFd::as_fd));
        let score = if let Work::Exec { .. } = work { self.oom_score } else { 0 };
        let pid = by.score.lend(score, || crate::sys::spawn(&program, &words, streams));
        let pid = pid.with_context(|| format!("execute the OCI runtime {runtime}"))?;
        Ok(Job { request: 0, connection: 0, container: self.key, work, pid, console, deadline: None, timed_out: false, pid_file, log })
    }
}

impl Job {
    /// After the runtime has ended with this code: the process it made and its terminal's master; for start 0.
    pub(crate) fn finish(&mut self, code: u32) -> Result<(u32, Option<OwnedFd>), Failure> {
        let text = (code != 0).then(|| self.last_words());
        let pid = std::fs::read_to_string(&self.pid_file).ok().and_then(|t| t.trim().parse().ok());
        if self.work != Work::Start {
            let _ = rustix::fs::unlink(&self.pid_file);
        }
        let console = self.console.take();
        if code != 0 {
            let text = text.filter(|t| !t.is_empty()).unwrap_or_else(|| format!("the OCI runtime ended with code {code} and said nothing"));
            return Err(Failure { text, code });
        }
        let failure = |text: String| Failure { text, code: 0 };
        let master = console.map(Console::receive).transpose().map_err(|e| failure(format!("{e:#}")))?;
        match (pid, &self.work) {
            (_, Work::Start) => Ok((0, None)),
            (Some(pid), _) => Ok((pid, master)),
            (None, _) => Err(failure(format!("the OCI runtime succeeded without writing {}", self.pid_file))),
        }
    }
}

impl Job {
    /// The last line of the log.
    fn last_words(&self) -> String {
        const MOST: u64 = 16 << 10;
        let length = self.log.metadata().map_or(0, |m| m.len());
        let mut text = vec![0; length.min(MOST) as usize];
        let _ = self.log.read_exact_at(&mut text, length.saturating_sub(MOST));
        String::from_utf8_lossy(&text).lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().to_owned()
    }
}

impl Console {
    /// In the monitor's working folder, the pod's.
    fn listen(name: String) -> Result<Console> {
        let path = format!("/proc/{}/cwd/{name}", std::process::id());
        let socket = || -> rustix::io::Result<OwnedFd> {
            let _ = rustix::fs::unlink(&name);
            let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
            bind(&listener, &SocketAddrUnix::new(&name)?)?;
            listen(&listener, 1)?;
            Ok(listener)
        };
        let listener = socket().with_context(|| format!("listen for the terminal at {path}"))?;
        Ok(Console { listener, name, path })
    }

    /// The master, which a runtime that has succeeded has sent: it waits in the socket.
    fn receive(self) -> Result<OwnedFd> {
        let connection =
            accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).context("the OCI runtime sent no terminal")?;
        let (_, fds) = socket::receive(connection.as_fd(), &mut [0; 4096]).context("the OCI runtime sent no terminal")?;
        let master = fds.into_iter().next().context("the OCI runtime sent no terminal")?;
        rustix::fs::fcntl_getfl(&master)
            .and_then(|flags| rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK))
            .context("terminal")?;
        Ok(master)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = rustix::fs::unlink(&self.name);
    }
}
