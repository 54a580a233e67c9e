//! The daemon's side of a pod's monitor (`cri-shim/monitor`; `rrun_monitor::messages` says what each request does).
//!
//! ```ignore
//! let (monitor, mut events) = match Monitor::connect(&pod_dir).await {
//!     Err(Error::Gone) => Monitor::start(&program, &pod_dir).await?,     // then adopt() each container
//!     connected => connected?,                                           // then state(): what happened meanwhile
//! };
//! let made = monitor.create(&Create { id, runtime, args, bundle, dir, exit_path, ..Create::default() }).await?;
//! monitor.start_container(&id, timeout).await?;
//! while let Some(event) = events.recv().await { /* Exited, LogErrors; None: the monitor is gone */ }
//! ```
//!
//! Dropping all clones closes the connection: execs that die with it are killed, everything else goes on.

pub use rrun_monitor::messages::{ContainerState, Create, ExecExited, Exited, LogErrors, MakeSandbox, SandboxMade, Welcome};
pub use rrun_monitor::pins::unpin;

use rrun_monitor::messages as m;
use rrun_monitor::socket;
use rrun_monitor::wire::{self, Malformed, Message, Packet, Role};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::trace::Span;

/// The socket's name in the pod's folder.
pub const SOCKET: &str = "monitor.sock";

/// The result of a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a request to a monitor can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens or the connection ended: the monitor has died, or never was.
    #[error("the pod's monitor is gone")]
    Gone,
    /// The monitor answered that it failed.
    #[error("{text}")]
    Failed {
        /// One line; the OCI runtime's own words if it was that.
        text: String,
        /// The OCI runtime's exit code, else 0.
        code: u32,
        /// What was named (a container) is not known to the monitor.
        not_found: bool,
        /// The time that the request allowed ran out.
        timed_out: bool,
    },
    /// Anything else.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    /// The monitor's words are not understood.
    #[error("the pod's monitor: {0}")]
    Malformed(#[from] Malformed),
}

impl From<Error> for crate::error::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Gone => Self::Unavailable(error.to_string()),
            Error::Failed { text, timed_out: true, .. } => Self::DeadlineExceeded(text),
            Error::Failed { text, not_found: true, .. } => Self::NotFound(text),
            other => Self::Internal(anyhow::Error::new(other)),
        }
    }
}

/// What a monitor tells unasked. Events of the time without a connection are not repeated: ask [`Monitor::state`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container has ended; its exit record is on disk.
    Exited(Exited),
    /// A container's log cannot be written, or can be again.
    LogErrors(LogErrors),
}

/// The events of one connection, in order; it ends with the connection.
pub type Events = mpsc::UnboundedReceiver<Event>;

/// A connection to a monitor; clones share it.
#[derive(Debug, Clone)]
pub struct Monitor {
    connection: Arc<Open>,
    welcome: Arc<Welcome>,
}

/// A container that is made or adopted.
#[derive(Debug)]
pub struct Created {
    /// Its first process.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// Keep it: it is how the exit code survives the monitor's death. None only for an adopted one that has ended.
    pub pidfd: Option<OwnedFd>,
    /// The terminal's master, for the monitor's successor.
    pub pty: Option<OwnedFd>,
    /// The output FIFOs. Keep them open, and never read: they hold what a container writes while its monitor is dead.
    pub streams: Vec<OwnedFd>,
}

/// One container in the answer of [`Monitor::state`].
#[derive(Debug)]
pub struct Seen {
    /// What is known of it.
    pub state: ContainerState,
    /// Of its first process, while it lives.
    pub pidfd: Option<OwnedFd>,
    /// The terminal's master.
    pub pty: Option<OwnedFd>,
    /// As in [`Created`].
    pub streams: Vec<OwnedFd>,
}

/// What an exec is to have.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// The container's id.
    pub id: String,
    /// The OCI process object, a JSON file that is there until the exec has started.
    pub process: PathBuf,
    /// With a terminal: the other three do not count.
    pub tty: bool,
    /// Standard input is a pipe, else /dev/null.
    pub stdin: bool,
    /// Standard output is a pipe, else /dev/null.
    pub stdout: bool,
    /// Standard error is a pipe, else /dev/null.
    pub stderr: bool,
    /// Its process group is killed after that.
    pub timeout: Option<Duration>,
    /// Its process group is killed when the daemon's connection ends (exec-sync, probes).
    pub dies_with_connection: bool,
}

/// A running exec. Its descriptors do not block and close on exec; closing them is the hang-up for the process.
#[derive(Debug)]
pub struct ExecProcess {
    /// The process.
    pub pid: u32,
    /// To write to.
    pub stdin: Option<OwnedFd>,
    /// To read from; ends when the last process that has it ends, which may be after `exited`.
    pub stdout: Option<OwnedFd>,
    /// To read from.
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, in place of the three ([`resize`] sets its size).
    pub pty: Option<OwnedFd>,
    /// Comes once, when the process ends; an error when the connection ended before.
    pub exited: oneshot::Receiver<ExecExited>,
    /// For [`Monitor::kill_exec`].
    pub exec: u32,
}

impl Monitor {
    /// Connects to the monitor of the pod with this state folder. [`Error::Gone`] if there is none.
    pub async fn connect(pod_dir: &Path) -> Result<(Monitor, Events)> {
        let socket = socket::connect_to(&pod_dir.join(SOCKET)).map_err(|e| match e {
            Errno::CONNREFUSED | Errno::NOENT => Error::Gone,
            e => Error::Io("connect to the pod's monitor", e.into()),
        })?;
        let (connection, events) = Connection::open(socket)?;
        let (welcome, _) = connection.ask::<m::Hello, Welcome>(&m::Hello { version: wire::VERSION }, &[]).await?;
        Ok((Monitor { connection, welcome: Arc::new(welcome) }, events))
    }

    /// Starts the monitor program for the pod with this existing state folder and connects. It writes nothing but
    /// its last words, into `monitor.log` there. It must be known that no other is alive ([`Monitor::connect`]).
    pub async fn start(program: &Path, pod_dir: &Path) -> Result<(Monitor, Events)> {
        let failed = |e: io::Error| Error::Io("start the pod's monitor", e);
        let listener = socket::listen_at(&pod_dir.join(SOCKET)).map_err(|e| failed(e.into()))?;
        let log = std::fs::File::options().append(true).create(true).open(pod_dir.join("monitor.log")).map_err(failed)?;
        let mut command = tokio::process::Command::new(program);
        command.arg("serve").stdin(listener).stdout(Stdio::null()).stderr(log);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").current_dir(pod_dir);
        let mut child = command.spawn().map_err(|e| failed(io::Error::new(e.kind(), format!("{}: {e}", program.display()))))?;
        // It holds the listener, which must end with the monitor.
        drop(command);
        tokio::spawn(async move { child.wait().await });
        Self::connect(pod_dir).await
    }

    /// Who answers: the monitor's protocol version, process and release.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Whether the connection has ended.
    pub fn is_gone(&self) -> bool {
        self.connection.waiting().closed
    }

    /// Makes and pins the pod's namespaces.
    pub async fn make_sandbox(&self, sandbox: &MakeSandbox) -> Result<SandboxMade> {
        self.ask(sandbox, &[]).await
    }

    /// Kills the init of the pod's PID namespace. The caller removes the pins ([`unpin`]).
    pub async fn stop_sandbox(&self) -> Result<()> {
        self.done(&m::StopSandbox {}).await
    }

    /// Makes a container with the OCI runtime.
    pub async fn create(&self, container: &Create) -> Result<Created> {
        self.created(container, &[]).await
    }

    /// Makes a container with the OCI runtime's `restore` and these arguments of it: it runs.
    pub async fn restore(&self, container: &Create, args: Vec<String>) -> Result<Created> {
        self.created(&m::Restore { create: container.clone(), args }, &[]).await
    }

    /// Starts a container with the OCI runtime.
    pub async fn start_container(&self, id: &str, timeout: Option<Duration>) -> Result<()> {
        self.done(&m::Start { id: id.into(), timeout_ms: milliseconds(timeout) }).await
    }

    /// Runs one more process in a container. An error's `code` is the OCI runtime's exit code.
    pub async fn exec(&self, exec: &Exec) -> Result<ExecProcess> {
        let failed = |e: Errno| Error::Io("make a pipe", e.into());
        let (mut ours, mut theirs, mut roles) = ([None, None, None], Vec::new(), Vec::new());
        for (i, role) in [Role::Stdin, Role::Stdout, Role::Stderr].into_iter().enumerate() {
            if exec.tty || ![exec.stdin, exec.stdout, exec.stderr][i] {
                continue;
            }
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
            let (our, their) = if role == Role::Stdin { (write, read) } else { (read, write) };
            rustix::io::ioctl_fionbio(&our, true).map_err(failed)?;
            ours[i] = Some(our);
            theirs.push(their);
            roles.push(role);
        }
        let request = m::Exec {
            id: exec.id.clone(),
            process: text(&exec.process)?,
            tty: exec.tty,
            timeout_ms: milliseconds(exec.timeout),
            dies_with_connection: exec.dies_with_connection,
        };
        let number = self.connection.number();
        let exited = self.connection.expect_exit(number);
        let fds: Vec<(Role, BorrowedFd<'_>)> = roles.into_iter().zip(theirs.iter().map(AsFd::as_fd)).collect();
        let asked = self.connection.ask_as::<m::Exec, m::ExecStarted>(number, &request, &fds).await;
        drop(theirs);
        let (started, mut fds) = asked.inspect_err(|_| drop(self.connection.waiting().exits.remove(&number)))?;
        let pty = fds.take_fd(Role::Pty);
        if let Some(pty) = &pty {
            rustix::io::ioctl_fionbio(pty, true).map_err(|e| Error::Io("terminal", e.into()))?;
        }
        let [stdin, stdout, stderr] = ours;
        Ok(ExecProcess { pid: started.pid, stdin, stdout, stderr, pty, exited, exec: number })
    }

    /// Signals an exec's process group (0: SIGKILL).
    pub async fn kill_exec(&self, exec: u32, signal: u32) -> Result<()> {
        self.done(&m::KillExec { exec, signal }).await
    }

    /// One more client of a container's streams.
    pub async fn attach(&self, id: &str, stdin: bool, stdout: bool, stderr: bool) -> Result<Attachment> {
        let request = m::Attach { id: id.into(), stdin, stdout, stderr };
        let (_, mut fds) = self.connection.ask::<_, m::Attached>(&request, &[]).await?;
        let session = fds.take_fd(Role::Session).ok_or(Malformed("an attach without its socket"))?;
        rustix::io::ioctl_fionbio(&session, true).map_err(|e| Error::Io("attach", e.into()))?;
        let session = watch(session).map_err(|e| Error::Io("attach", e))?;
        Ok(Attachment { session, stdin: fds.take_fd(Role::Stdin) })
    }

    /// Sets the size of a container's terminal.
    pub async fn resize(&self, id: &str, width: u16, height: u16) -> Result<()> {
        self.done(&m::Resize { id: id.into(), width, height }).await
    }

    /// Goes on in a new log file.
    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        self.done(&m::ReopenLog { id: id.into() }).await
    }

    /// Forgets a container that has ended; an unknown one is success.
    pub async fn remove(&self, id: &str) -> Result<()> {
        self.done(&m::Remove { id: id.into() }).await
    }

    /// All containers, and the init of the PID namespace: what a daemon asks after it has reconnected.
    pub async fn state(&self) -> Result<(SandboxMade, Vec<Seen>)> {
        let (mut sandbox, mut containers) = (SandboxMade::default(), Vec::new());
        let number = self.connection.number();
        let mut answers = self.connection.send(number, &m::State {}, &[]).await?;
        loop {
            let mut answer = answers.next().await?;
            if let Some(state) = answer.message::<ContainerState>().transpose()? {
                let (pidfd, pty) = (answer.take_fd(Role::Pidfd), answer.take_fd(Role::Pty));
                containers.push(Seen { state, pidfd, pty, streams: streams(&mut answer) });
            } else if let Some(made) = answer.message::<SandboxMade>().transpose()? {
                sandbox = made;
            } else {
                expect::<m::Done>(&answer)?;
                return Ok((sandbox, containers));
            }
        }
    }

    /// Hands a dead monitor's container to this one. An exit that has happened comes as an event, as ever.
    pub async fn adopt(
        &self,
        create: &Create,
        pid: u32,
        start_time: u64,
        started: bool,
        pidfd: Option<BorrowedFd<'_>>,
        pty: Option<BorrowedFd<'_>>,
    ) -> Result<Created> {
        let fds: Vec<_> = pidfd.map(|f| (Role::Pidfd, f)).into_iter().chain(pty.map(|f| (Role::Pty, f))).collect();
        self.created(&m::Adopt { create: create.clone(), pid, start_time, started }, &fds).await
    }

    /// Hands the init of the pod's PID namespace to this monitor.
    pub async fn adopt_init(&self, sandbox: &SandboxMade) -> Result<()> {
        self.done(&m::AdoptInit { init_pid: sandbox.init_pid, init_start_time: sandbox.init_start_time }).await
    }

    /// Lets the monitor go on as another program file; nothing is lost.
    pub async fn upgrade(&self, program: &Path) -> Result<()> {
        self.done(&m::Upgrade { program: text(program)? }).await
    }

    /// Ends the monitor, which refuses while a container runs.
    pub async fn shutdown(&self) -> Result<()> {
        self.done(&m::Shutdown {}).await
    }

    async fn created<M: Message>(&self, request: &M, fds: &[(Role, BorrowedFd<'_>)]) -> Result<Created> {
        let (made, mut fds) = self.connection.ask::<_, m::Created>(request, fds).await?;
        let (pidfd, pty) = (fds.take_fd(Role::Pidfd), fds.take_fd(Role::Pty));
        Ok(Created { pid: made.pid, start_time: made.start_time, pidfd, pty, streams: streams(&mut fds) })
    }

    async fn done<M: Message>(&self, request: &M) -> Result<()> {
        self.ask::<M, m::Done>(request, &[]).await.map(drop)
    }

    async fn ask<M: Message, A: Message>(&self, request: &M, fds: &[(Role, BorrowedFd<'_>)]) -> Result<A> {
        Ok(self.connection.ask(request, fds).await?.0)
    }
}

/// The descriptor, watched by the running reactor: also for the ends of an [`ExecProcess`].
#[allow(deprecated, reason = "its unsafe successor exists for types whose descriptor may change: an OwnedFd's cannot")]
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Sets the size of a terminal by its master: an exec's, or a container's.
pub fn resize(pty: impl AsFd, width: u16, height: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(pty, size)?)
}

/// A client of a container's streams; dropping it is going away.
#[derive(Debug)]
pub struct Attachment {
    session: AsyncFd<OwnedFd>,
    /// To write the container's input to (not blocking), if it has one and it was asked for. Drop it when input ends.
    pub stdin: Option<OwnedFd>,
}

/// A piece of a container's output.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// Standard output; with a terminal all output.
    Stdout(&'a [u8]),
    /// Standard error.
    Stderr(&'a [u8]),
    /// This client was too slow: so many bytes are missing here.
    Lost(u64),
    /// The container has ended, or the monitor.
    End,
}

impl Attachment {
    /// The next piece; `buffer` should have room for 64 KiB. Cancel-safe.
    pub async fn next<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Output<'a>> {
        let received = self.session.async_io(Interest::READABLE, |fd| Ok(socket::receive(fd.as_fd(), buffer)?)).await;
        let length = match received {
            Ok((length, _)) => length,
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(e) => return Err(e),
        };
        Ok(match buffer[..length].split_first() {
            None => Output::End,
            Some((1, data)) => Output::Stdout(data),
            Some((2, data)) => Output::Stderr(data),
            Some((_, lost)) => Output::Lost(lost.first_chunk().map_or(0, |n| u64::from_le_bytes(*n))),
        })
    }

    /// Says that this client's input has ended while it still wants output (stdin_once: so has the container's).
    pub fn end_input(&mut self) -> io::Result<()> {
        self.stdin = None;
        Ok(rustix::net::shutdown(self.session.get_ref(), rustix::net::Shutdown::Write)?)
    }
}

fn streams(packet: &mut Packet) -> Vec<OwnedFd> {
    [Role::Stdout, Role::Stderr].into_iter().filter_map(|role| packet.take_fd(role)).collect()
}

fn milliseconds(timeout: Option<Duration>) -> u64 {
    timeout.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX).max(1))
}

fn text(path: &Path) -> Result<String> {
    let error = || Error::Io("path", io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not UTF-8", path.display())));
    path.to_str().map(str::to_owned).ok_or_else(error)
}

/// What the clones of a [`Monitor`] share: with the last one the connection ends, and so does its reader.
#[derive(Debug)]
struct Open(Arc<Connection>);

impl std::ops::Deref for Open {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Both);
    }
}

/// The socket and who waits for what on it.
#[derive(Debug)]
struct Connection {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU32,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    answers: HashMap<u32, mpsc::UnboundedSender<Packet>>,
    exits: HashMap<u32, oneshot::Sender<ExecExited>>,
}

impl Connection {
    fn open(socket: OwnedFd) -> Result<(Arc<Open>, Events)> {
        let socket = watch(socket).map_err(|e| Error::Io("the pod's monitor", e))?;
        let connection = Arc::new(Connection { socket, next: AtomicU32::new(1), waiting: Mutex::default() });
        let (sender, events) = mpsc::unbounded_channel();
        let reader = Arc::clone(&connection);
        tokio::spawn(async move {
            reader.read(&sender).await;
            let mut waiting = reader.waiting();
            *waiting = Waiting { closed: true, ..Waiting::default() };
        });
        Ok((Arc::new(Open(connection)), events))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Request numbers; 0 is for events.
    fn number(&self) -> u32 {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number != 0 {
                return number;
            }
        }
    }

    async fn read(&self, events: &mpsc::UnboundedSender<Event>) {
        let mut buffer = socket::packet_buffer();
        loop {
            let received = self.socket.async_io(Interest::READABLE, |fd| Ok(socket::receive(fd.as_fd(), &mut buffer)?)).await;
            let Ok((length @ 1.., fds)) = received else { return };
            if let Ok(packet) = Packet::parse(&buffer[..length], fds) {
                self.dispatch(packet, events);
            }
        }
    }

    fn dispatch(&self, packet: Packet, events: &mpsc::UnboundedSender<Event>) {
        if packet.id != 0 {
            // A waiter that has given up is no longer there: the descriptors are closed.
            if let Some(waiter) = self.waiting().answers.get(&packet.id) {
                let _ = waiter.send(packet);
            }
        } else if let Some(Ok(exited)) = packet.message::<ExecExited>() {
            if let Some(waiter) = self.waiting().exits.remove(&exited.exec) {
                let _ = waiter.send(exited);
            }
        } else if let Some(Ok(exited)) = packet.message() {
            let _ = events.send(Event::Exited(exited));
        } else if let Some(Ok(errors)) = packet.message() {
            let _ = events.send(Event::LogErrors(errors));
        }
    }

    fn expect_exit(&self, number: u32) -> oneshot::Receiver<ExecExited> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        // After the end nobody would answer: the sender is dropped.
        if !waiting.closed {
            waiting.exits.insert(number, sender);
        }
        receiver
    }

    async fn ask<M: Message, A: Message>(&self, request: &M, fds: &[(Role, BorrowedFd<'_>)]) -> Result<(A, Packet)> {
        self.ask_as(self.number(), request, fds).await
    }

    async fn ask_as<M: Message, A: Message>(&self, number: u32, request: &M, fds: &[(Role, BorrowedFd<'_>)]) -> Result<(A, Packet)> {
        let kind = std::any::type_name::<M>().rsplit("::").next().unwrap_or_default();
        let asked = async {
            let answer = self.send(number, request, fds).await?.next().await?;
            Ok((expect(&answer)?, answer))
        };
        Span::child(&format!("monitor: {kind}")).of(asked).await
    }

    async fn send<M: Message>(&self, number: u32, request: &M, fds: &[(Role, BorrowedFd<'_>)]) -> Result<Answers<'_>> {
        let (roles, fds): (Vec<Role>, Vec<BorrowedFd<'_>>) = fds.iter().copied().unzip();
        let mut bytes = Vec::new();
        wire::encode(number, request, &roles, &mut bytes);
        let (sender, receiver) = mpsc::unbounded_channel();
        {
            let mut waiting = self.waiting();
            if waiting.closed {
                return Err(Error::Gone);
            }
            waiting.answers.insert(number, sender);
        }
        let answers = Answers { connection: self, number, receiver };
        let sent = self.socket.async_io(Interest::WRITABLE, |socket| Ok(socket::send(socket.as_fd(), &bytes, &fds)?)).await;
        match sent {
            Ok(()) => Ok(answers),
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Err(Error::Gone),
            Err(e) => Err(Error::Io("send to the pod's monitor", e)),
        }
    }
}

/// The answers to one request; dropping it is giving up.
#[derive(Debug)]
struct Answers<'a> {
    connection: &'a Connection,
    number: u32,
    receiver: mpsc::UnboundedReceiver<Packet>,
}

impl Answers<'_> {
    async fn next(&mut self) -> Result<Packet> {
        self.receiver.recv().await.ok_or(Error::Gone)
    }
}

impl Drop for Answers<'_> {
    fn drop(&mut self) {
        self.connection.waiting().answers.remove(&self.number);
    }
}

/// The message, or the failure that came in its place.
fn expect<A: Message>(packet: &Packet) -> Result<A> {
    if let Some(failed) = packet.message() {
        let m::Failed { text, code, not_found, timed_out } = failed?;
        return Err(Error::Failed { text: runtime_words(text), code, not_found, timed_out });
    }
    Ok(packet.message().ok_or(Malformed("not the kind of answer that was expected"))??)
}

/// The words of a runtime's log line, which is a JSON object with `msg`.
fn runtime_words(line: String) -> String {
    let object = serde_json::from_str::<serde_json::Value>(&line).ok();
    object.and_then(|o| Some(o.get("msg")?.as_str()?.to_owned())).unwrap_or(line)
}
