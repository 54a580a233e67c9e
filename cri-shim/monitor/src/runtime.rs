//! Executing the OCI runtime: one program per job, which the loop hears of again when it has ended.

use crate::container::{Container, ContainerEnds};
use crate::oom;
use anyhow::{Context, Result};
use rrun_monitor::socket;
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

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
    pub(crate) log: String,
}

/// What a runtime is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Create,
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
    /// Starts `RUNTIME ARGS create`, `start` or `exec` for this container. `number` makes its files' names its own.
    pub(crate) fn execute(&self, number: u32, work: Work, process: Option<&str>, tty: bool, ends: ContainerEnds) -> Result<Job> {
        let (log, pid_file) = (self.file(&format!("log.{number}")), self.file(&format!("pid.{number}")));
        let console = tty.then(|| Console::listen(format!("tty.{number}"))).transpose()?;
        let mut command = Command::new(&self.create.runtime);
        command.args(&self.create.args).args(["--log", &log, "--log-format", "json"]);
        match &work {
            Work::Create => command.args(["create", "--bundle", &self.create.bundle, "--pid-file", &pid_file]),
            Work::Start => command.arg("start"),
            Work::Exec { .. } => command.args(["exec", "--detach", "--pid-file", &pid_file, "--process", process.unwrap_or_default()]),
        };
        if let Some(console) = &console {
            command.args(["--console-socket", &console.path]);
        }
        let stream = |end: Option<OwnedFd>| end.map_or_else(Stdio::null, Stdio::from);
        command.arg(&self.create.id).process_group(0);
        command.stdin(stream(ends.stdin)).stdout(stream(ends.stdout)).stderr(stream(ends.stderr));
        crate::sys::with_empty_mask(&mut command);
        let score = if let Work::Exec { .. } = work { self.oom_score } else { 0 };
        // Dropping the handle neither waits nor kills: the loop reaps.
        let child = with_oom_score(score, || command.spawn());
        let pid = child.with_context(|| format!("execute the OCI runtime {}", self.create.runtime))?.id();
        Ok(Job { request: 0, connection: 0, container: self.key, work, pid, console, deadline: None, timed_out: false, pid_file, log })
    }
}

/// What is started here inherits the score, which for exec nobody sets later.
fn with_oom_score<T>(score: i32, start: impl FnOnce() -> T) -> T {
    let own = oom::score_of("self").filter(|own| *own != score);
    own.inspect(|_| oom::set_score(score));
    let started = start();
    own.inspect(|own| oom::set_score(*own));
    started
}

impl Job {
    /// After the runtime has ended with this code: the process it made and its terminal's master; for start 0.
    pub(crate) fn finish(&mut self, code: u32) -> Result<(u32, Option<OwnedFd>), Failure> {
        let text = if code == 0 { None } else { std::fs::read_to_string(&self.log).ok() };
        let _ = rustix::fs::unlink(&self.log);
        let pid = std::fs::read_to_string(&self.pid_file).ok().and_then(|t| t.trim().parse().ok());
        if self.work != Work::Start {
            let _ = rustix::fs::unlink(&self.pid_file);
        }
        let console = self.console.take();
        if code != 0 {
            let last = text.as_deref().and_then(|t| t.lines().rev().find(|l| !l.trim().is_empty()));
            let text = last.map_or_else(|| format!("the OCI runtime ended with code {code} and said nothing"), str::to_owned);
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
