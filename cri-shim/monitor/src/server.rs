//! The loop: waits, reads what containers write, answers the daemon, reaps.
//!
//! One thread, and no allocation while containers only write. Whoever waits for something slow (a runtime at work)
//! has an entry in a list; the loop itself never waits but in [`Poller::wait`].

use crate::clock::monotonic_ms;
use crate::container::{Buffers, Container};
use crate::log::Stream;
use crate::oom::OwnScore;
use crate::poller::{EVENTS, Poller, Token};
use crate::runtime::{Executor, Job};
use anyhow::{Context, Result};
use rrun_monitor::messages::{self as m};
use rrun_monitor::socket;
use rrun_monitor::wire::{self, Message, Packet, Role};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Everything the monitor knows.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) poller: Poller,
    pub(crate) listener: OwnedFd,
    pub(crate) children: OwnedFd,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) containers: Vec<Container>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) execs: Vec<ExecProcess>,
    /// Ended while a runtime was at work: it may be what that runtime is about to name.
    unclaimed: Vec<(u32, i32)>,
    /// The init of the pod's PID namespace.
    pub(crate) init: m::SandboxMade,
    /// Its descriptor and deadline while it is to end, and who waits for that.
    stopping: Option<(OwnedFd, u64)>,
    stop_requests: Vec<(u32, u32)>,
    pub(crate) last_key: u32,
    pub(crate) upgrade: Option<(u32, String)>,
    pub(crate) ends: bool,
    pub(crate) buffers: Buffers,
    pub(crate) executor: Executor,
    packet: Box<[u8]>,
    answer: Vec<u8>,
}

/// The connection of the daemon. There is one at a time: a newer one takes its place.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) key: u32,
    pub(crate) socket: OwnedFd,
}

/// A process made by exec.
#[derive(Debug)]
pub(crate) struct ExecProcess {
    pub(crate) request: u32,
    pub(crate) connection: u32,
    pub(crate) container: u32,
    pub(crate) pid: u32,
    pub(crate) deadline: Option<u64>,
    pub(crate) timed_out: bool,
    pub(crate) dies_with_connection: bool,
}

/// Why a request was not done.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) m::Failed);

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Refusal {
        Refusal(m::Failed { text: format!("{error:#}"), ..m::Failed::default() })
    }
}

impl Refusal {
    pub(crate) fn not_found(id: &str) -> Refusal {
        Refusal(m::Failed { text: format!("container {id}: the pod's monitor does not know it"), not_found: true, ..m::Failed::default() })
    }
}

impl Server {
    pub(crate) fn new(listener: OwnedFd) -> Result<Server> {
        let children = crate::sys::child_signals().context("signalfd")?;
        let poller = Poller::new().context("epoll_create")?;
        poller.add(&listener, Token::Listener, EventFlags::IN).context("watch the socket")?;
        poller.add(&children, Token::Children, EventFlags::IN).context("watch for children")?;
        Ok(Server {
            poller,
            listener,
            children,
            daemon: None,
            containers: Vec::new(),
            jobs: Vec::new(),
            execs: Vec::new(),
            unclaimed: Vec::new(),
            init: m::SandboxMade::default(),
            stopping: None,
            stop_requests: Vec::new(),
            last_key: 0,
            upgrade: None,
            ends: false,
            buffers: Buffers::new(),
            executor: Executor { score: OwnScore::open(), ..Executor::default() },
            packet: socket::packet_buffer(),
            answer: Vec::new(),
        })
    }

    /// Until the daemon ends it.
    pub(crate) fn run(&mut self) -> Result<()> {
        let mut events = [(Token::Listener, EventFlags::empty()); EVENTS];
        // Whoever ended while a predecessor handed over.
        self.reap();
        while !self.ends {
            let count = self.poller.wait(&mut events, self.next_deadline()).context("epoll_wait")?;
            for (token, flags) in &events[..count] {
                self.event(*token, *flags);
            }
            self.enforce_deadlines();
            self.upgrade_if_idle();
        }
        Ok(())
    }

    fn event(&mut self, token: Token, flags: EventFlags) {
        match token {
            Token::Listener => self.accept(),
            Token::Children => {
                let mut drained = [0; 128];
                let _ = rustix::io::read(&self.children, &mut drained);
                self.reap();
            }
            Token::Daemon(key) => self.daemon_event(key),
            Token::Stdout(key) => self.read(key, Stream::Stdout),
            Token::Stderr(key) => self.read(key, Stream::Stderr),
            Token::Session(key) => {
                if let Some(container) = self.containers.iter_mut().find(|c| c.sessions.iter().any(|s| s.key == key)) {
                    container.session_event(key, flags, &self.poller);
                }
            }
            Token::Pidfd(key) => self.adopted_ended(key, flags),
            Token::Init => self.init_stopped(None),
        }
    }

    fn read(&mut self, key: u32, stream: Stream) {
        if let Some(at) = self.containers.iter().position(|c| c.key == key) {
            let container = &mut self.containers[at];
            container.read(stream, &mut self.buffers, &self.poller);
            if container.log.failing().is_some() != container.log_failing {
                self.tell_log_errors(at);
            }
        }
    }

    fn tell_log_errors(&mut self, at: usize) {
        let container = &mut self.containers[at];
        container.log_failing = !container.log_failing;
        let text = container.log.failing().map_or(String::new(), |e| format!("{}: {}", container.create.log_path, std::io::Error::from(e)));
        let event = m::LogErrors { id: container.create.id.clone(), dropped: container.log.dropped(), text };
        self.tell(&event);
    }

    fn accept(&mut self) {
        while let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            self.disconnect();
            let key = self.new_key();
            if self.poller.add(&socket, Token::Daemon(key), EventFlags::IN).is_ok() {
                self.daemon = Some(Daemon { key, socket });
            }
        }
    }

    /// The daemon has gone, or stopped reading: what was to die with it dies.
    pub(crate) fn disconnect(&mut self) {
        let Some(daemon) = self.daemon.take() else { return };
        self.poller.remove(&daemon.socket);
        for job in &mut self.jobs {
            if let (true, crate::runtime::Work::Exec { dies_with_connection: true, killed }) = (job.connection == daemon.key, &mut job.work)
            {
                *killed = Some(Signal::KILL.as_raw() as u32);
            }
        }
        for exec in self.execs.iter().filter(|e| e.connection == daemon.key && e.dies_with_connection) {
            kill_group(exec.pid, 0);
        }
    }

    fn daemon_event(&mut self, key: u32) {
        let Some(daemon) = self.daemon.as_ref().filter(|d| d.key == key) else { return };
        match socket::receive(daemon.socket.as_fd(), &mut self.packet) {
            Ok((length @ 1.., fds)) => match Packet::parse(&self.packet[..length], fds) {
                Ok(packet) => self.request(packet),
                Err(_) => self.disconnect(),
            },
            Err(Errno::AGAIN | Errno::INTR) => (),
            Ok(_) | Err(_) => self.disconnect(),
        }
    }

    fn request(&mut self, mut packet: Packet) {
        let (id, kind) = (packet.id, packet.kind);
        let refused = match self.handle(&mut packet) {
            Ok(()) => return,
            Err(Refusal(failed)) => failed,
        };
        let text = if refused.text.is_empty() { format!("the pod's monitor does not know the request {kind}") } else { refused.text };
        self.answer(id, &m::Failed { text, ..refused }, &[]);
    }

    /// Does the request and answers it, or leaves it to a job.
    fn handle(&mut self, packet: &mut Packet) -> Result<(), Refusal> {
        let id = packet.id;
        macro_rules! requests {
            ($($message:ident => $handle:expr,)*) => {
                match packet.kind {
                    $(m::$message::KIND => {
                        let message = packet.message::<m::$message>().transpose().map_err(anyhow::Error::from)?.unwrap_or_default();
                        #[allow(clippy::redundant_closure_call, reason = "the closure gives the message its type")]
                        return ($handle)(self, message);
                    })*
                    _ => return Err(Refusal(m::Failed::default())),
                }
            };
        }
        requests! {
            Hello => |s: &mut Server, _: m::Hello| {
                let build = env!("CARGO_PKG_VERSION").to_owned();
                s.answer(id, &m::Welcome { version: wire::VERSION, pid: std::process::id(), build }, &[]);
                Ok(())
            },
            MakeSandbox => |s: &mut Server, m: m::MakeSandbox| {
                let made = crate::sandbox::make(&m)?;
                s.init = made.clone();
                s.answer(id, &made, &[]);
                Ok(())
            },
            AdoptInit => |s: &mut Server, m: m::AdoptInit| {
                s.init = m::SandboxMade { init_pid: m.init_pid, init_start_time: m.init_start_time };
                s.done(id)
            },
            StopSandbox => |s: &mut Server, _: m::StopSandbox| {
                if s.stop_init(id)? { Ok(()) } else { s.done(id) }
            },
            Create => |s: &mut Server, m: m::Create| s.create(id, m, crate::runtime::Work::Create),
            Restore => |s: &mut Server, m: m::Restore| s.create(id, m.create, crate::runtime::Work::Restore(m.args)),
            Start => |s: &mut Server, m: m::Start| s.start(id, &m),
            Exec => |s: &mut Server, m: m::Exec| {
                let ends = crate::container::ContainerEnds {
                    stdin: packet.take_fd(Role::Stdin),
                    stdout: packet.take_fd(Role::Stdout),
                    stderr: packet.take_fd(Role::Stderr),
                };
                s.exec(id, &m, ends)
            },
            KillExec => |s: &mut Server, m: m::KillExec| {
                s.kill_exec(&m);
                s.done(id)
            },
            Attach => |s: &mut Server, m: m::Attach| s.attach(id, &m),
            Resize => |s: &mut Server, m: m::Resize| s.resize(id, &m),
            ReopenLog => |s: &mut Server, m: m::ReopenLog| s.reopen_log(id, &m),
            Remove => |s: &mut Server, m: m::Remove| s.remove(id, &m),
            Shutdown => |s: &mut Server, _: m::Shutdown| s.shutdown(id),
            State => |s: &mut Server, _: m::State| s.state(id),
            Adopt => |s: &mut Server, m: m::Adopt| s.adopt(id, m, packet.take_fd(Role::Pidfd), packet.take_fd(Role::Pty)),
            Upgrade => |s: &mut Server, m: m::Upgrade| {
                s.upgrade = Some((id, m.program));
                Ok(())
            },
        }
    }

    /// Reaps all children that have ended, those included that containers have left behind.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let (pid, status) = (pid.as_raw_nonzero().get() as u32, status.as_raw());
            if let Some(at) = self.jobs.iter().position(|j| j.pid == pid) {
                let job = self.jobs.swap_remove(at);
                self.runtime_ended(job, crate::process::code_and_signal(status).0);
            } else if !self.ended(pid, status) && !self.jobs.is_empty() {
                self.unclaimed.push((pid, status));
            }
        }
        if self.jobs.is_empty() {
            self.unclaimed.clear();
        }
    }

    /// A process that a runtime has just named may have ended before.
    pub(crate) fn claim(&mut self, pid: u32) {
        if let Some(at) = self.unclaimed.iter().position(|(p, _)| *p == pid) {
            let (_, status) = self.unclaimed.swap_remove(at);
            self.ended(pid, status);
        }
    }

    /// Whether the process is one that is known.
    fn ended(&mut self, pid: u32, status: i32) -> bool {
        if let Some(at) = self.containers.iter().position(|c| c.pid == pid && c.child && !c.has_ended()) {
            let (code, signal) = crate::process::code_and_signal(status);
            self.container_ended(at, code, signal, false);
        } else if let Some(at) = self.execs.iter().position(|e| e.pid == pid) {
            let exec = self.execs.swap_remove(at);
            let (code, signal) = crate::process::code_and_signal(status);
            if self.daemon.as_ref().is_some_and(|d| d.key == exec.connection) {
                self.tell(&m::ExecExited { exec: exec.request, code, signal, timed_out: exec.timed_out });
            }
        } else if self.writer_ended(pid) {
        } else if self.init.init_pid == pid {
            self.init_stopped(None);
            self.init = m::SandboxMade::default();
        } else {
            return false;
        }
        true
    }

    /// Whether the end of the pod's init has to be waited for.
    fn stop_init(&mut self, request: u32) -> Result<bool, Refusal> {
        let Some(pidfd) = crate::sandbox::kill_init(&self.init)? else {
            self.init = m::SandboxMade::default();
            return Ok(false);
        };
        if self.stopping.is_none() {
            self.poller.add(&pidfd, Token::Init, EventFlags::IN).context("epoll_ctl")?;
            self.stopping = Some((pidfd, monotonic_ms() + 10_000));
        }
        self.stop_requests.push((request, self.connection()));
        Ok(true)
    }

    fn init_stopped(&mut self, error: Option<String>) {
        let Some((pidfd, _)) = self.stopping.take() else { return };
        self.poller.remove(&pidfd);
        for (request, connection) in std::mem::take(&mut self.stop_requests) {
            match &error {
                _ if connection != self.connection() => (),
                Some(text) => self.answer(request, &m::Failed { text: text.clone(), ..m::Failed::default() }, &[]),
                None => self.answer(request, &m::Done {}, &[]),
            }
        }
        if error.is_none() {
            self.init = m::SandboxMade::default();
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        let jobs = self.jobs.iter().filter(|j| !j.timed_out).filter_map(|j| j.deadline);
        let execs = self.execs.iter().filter(|e| !e.timed_out).filter_map(|e| e.deadline);
        jobs.chain(execs).chain(self.stopping.as_ref().map(|(_, at)| *at)).min().map(|at| at.saturating_sub(monotonic_ms()))
    }

    fn enforce_deadlines(&mut self) {
        if self.next_deadline() != Some(0) {
            return;
        }
        let now = monotonic_ms();
        if self.stopping.as_ref().is_some_and(|(_, at)| *at <= now) {
            let pid = self.init.init_pid;
            self.init_stopped(Some(format!(
                "the init of the pod's PID namespace (process {pid}) does not end: something in there hangs in the kernel"
            )));
        }
        for job in self.jobs.iter_mut().filter(|j| !j.timed_out && j.deadline.is_some_and(|at| at <= now)) {
            job.timed_out = true;
            kill_group(job.pid, 0);
        }
        for exec in self.execs.iter_mut().filter(|e| !e.timed_out && e.deadline.is_some_and(|at| at <= now)) {
            exec.timed_out = true;
            kill_group(exec.pid, 0);
        }
    }

    /// No request waits for its answer.
    pub(crate) fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.stopping.is_none() && self.containers.iter().all(|c| c.recording.is_none())
    }

    pub(crate) fn new_key(&mut self) -> u32 {
        self.last_key += 1;
        self.last_key
    }

    pub(crate) fn connection(&self) -> u32 {
        self.daemon.as_ref().map_or(0, |d| d.key)
    }

    pub(crate) fn done(&mut self, request: u32) -> Result<(), Refusal> {
        self.answer(request, &m::Done {}, &[]);
        Ok(())
    }

    /// An event, if somebody is there to hear it; else the next daemon asks for the state.
    pub(crate) fn tell<M: Message>(&mut self, event: &M) {
        self.answer(0, event, &[]);
    }

    pub(crate) fn answer<M: Message>(&mut self, request: u32, message: &M, fds: &[(Role, BorrowedFd<'_>)]) {
        let Some(daemon) = &self.daemon else { return };
        let mut answer = std::mem::take(&mut self.answer);
        if send(daemon, request, message, fds, &mut answer).is_err() {
            // Nothing may be lost on the way: a daemon that does not read reconnects and asks.
            self.disconnect();
        }
        self.answer = answer;
    }
}

/// To the daemon, without the rest of the server being borrowed.
pub(crate) fn send<M: Message>(
    daemon: &Daemon,
    request: u32,
    message: &M,
    fds: &[(Role, BorrowedFd<'_>)],
    buffer: &mut Vec<u8>,
) -> rustix::io::Result<()> {
    let mut roles = [Role::Pidfd; wire::MAX_FDS];
    let mut borrowed = [daemon.socket.as_fd(); wire::MAX_FDS];
    for (i, (role, fd)) in fds.iter().enumerate() {
        (roles[i], borrowed[i]) = (*role, *fd);
    }
    wire::encode(request, message, &roles[..fds.len()], buffer);
    socket::send(daemon.socket.as_fd(), buffer, &borrowed[..fds.len()])
}

/// Signals a process group whose leader is not reaped yet, so that the number is still its own; 0 is SIGKILL.
pub(crate) fn kill_group(pid: u32, signal: u32) {
    let signal = if signal == 0 { Some(Signal::KILL) } else { Signal::from_named_raw(signal as i32) };
    if let (Some(pid), Some(signal)) = (Pid::from_raw(pid as i32), signal) {
        // The leader itself, in case it has not made its group yet.
        let _ = kill_process_group(pid, signal);
        let _ = kill_process(pid, signal);
    }
}
