//! Exec and attach: the streams of a client, the descriptors of a process, and the status at the end.
//!
//! The order at the end is an interface. A client may leave as soon as it has seen the end of stdout, so the status and the
//! end of the error stream go first, all output before them; and then the client closes the connection, not this side,
//! unless it takes too long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::io::Errno;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::channel::Channel;
use super::channels::{self, Channels, Piece};
use super::fds::{Inlet, errno, pump, watched};
use super::link::{Gone, Link, Outgoing, Patience};
use super::protocol::Version;
use super::spdy::frame::Reset;
use super::spdy::headers::Headers;
use super::spdy::session::{Handler, Session};
use super::status::Outcome;
use super::terminal::Terminal;
use super::{Attach, Backend, Exec, Process, Streams, websocket};

/// How long a client may take to open its streams.
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to close the connection when it has been told everything.
const LINGER: Duration = Duration::from_secs(10);
/// Streams beyond the ones that are expected, which are accepted and ignored.
const EXTRA_STREAMS: usize = 16;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const NAMES: [&str; 5] = ["stdin", "stdout", "stderr", "error", "resize"];

/// What a client asks for.
pub(super) enum Command {
    Exec(Exec),
    Attach(Attach),
}

impl Command {
    fn streams(&self) -> Streams {
        match self {
            Command::Exec(exec) => exec.streams,
            Command::Attach(attach) => attach.streams,
        }
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Gathering,
    Running,
    Finished,
}

/// Serves a command over SPDY streams. Returns when the connection is to be closed.
pub(super) async fn serve_spdy<B: Backend>(
    mut link: Link,
    version: Version,
    command: Command,
    backend: Arc<B>,
    idle: Duration,
) -> anyhow::Result<()> {
    let (phase, phases) = watch::channel(Phase::Gathering);
    let session = Session::new(link.outgoing.clone());
    let mut streams = SpdyStreams {
        expected: expected(command.streams(), version),
        roles: Vec::new(),
        extra: 0,
        input: Arc::default(),
        attach: matches!(command, Command::Attach(_)),
        command: Some((command, backend)),
        process: None,
        version,
        phase: Arc::new(phase),
        tasks: JoinSet::new(),
    };
    tokio::select! {
        result = session.run(&mut link.incoming, None, &link.patience, &mut streams) => result,
        result = link.controls.run(&link.outgoing) => Ok(result?),
        () = link.activity.idle(idle) => bail!("nothing was sent for {} s", idle.as_secs()),
        result = over(phases) => result,
    }
}

/// Serves a command over the channels of a WebSocket.
pub(super) async fn serve_websocket<B: Backend>(
    link: Link,
    version: Version,
    base64: bool,
    command: Command,
    backend: Arc<B>,
    idle: Duration,
) -> anyhow::Result<()> {
    let (phase, phases) = watch::channel(Phase::Running);
    let (out, wanted, input) = (link.outgoing.clone(), command.streams(), Arc::new(Input::default()));
    let channel = |number| Channel::websocket(out.clone(), number, base64);
    let client = Client {
        error: channel(ERROR),
        stdout: wanted.stdout.then(|| channel(STDOUT)),
        stderr: (wanted.stderr && !wanted.tty).then(|| channel(STDERR)),
        others: Vec::new(),
    };
    // It tells the client that the channels are there.
    client.stdout.as_ref().or(client.stderr.as_ref()).unwrap_or(&client.error).write_copy(&[]).await?;
    let mut tasks = JoinSet::new();
    let run_input = input.clone();
    let run_out = out.clone();
    let attach = matches!(command, Command::Attach(_));
    let process = launch(command, backend);
    tasks.spawn(async move {
        if run(process, attach, &client, &run_input, version).await.is_ok() {
            run_out.websocket_close(websocket::CLOSE_NORMAL).await;
        }
        phase.send_replace(Phase::Finished);
    });
    let Link { mut incoming, outgoing, controls, patience, activity } = link;
    let channels = Channels::new(base64, version >= Version::V5);
    let mut numbers = Numbers { wanted, input };
    let read = channels::read(&mut incoming, &outgoing, channels, &patience, &mut numbers);
    let result = tokio::select! {
        result = read => result,
        result = controls.run(&outgoing) => Ok(result?),
        () = activity.idle(idle) => Err(anyhow!("nothing was sent for {} s", idle.as_secs())),
        result = over(phases) => result,
    };
    drop(tasks);
    result
}

/// Returns when a connection has nothing more to do.
async fn over(mut phases: watch::Receiver<Phase>) -> anyhow::Result<()> {
    let gathered = phases.wait_for(|phase| *phase != Phase::Gathering);
    if timeout(CREATION_TIMEOUT, gathered).await.is_err() {
        bail!("the client did not open all streams within {} s", CREATION_TIMEOUT.as_secs());
    }
    let _ = phases.wait_for(|phase| *phase == Phase::Finished).await;
    sleep(LINGER).await;
    Ok(())
}

/// The kinds of streams that a client opens.
fn expected(streams: Streams, version: Version) -> Vec<u8> {
    let kinds = [
        (ERROR, true),
        (STDIN, streams.stdin),
        (STDOUT, streams.stdout),
        (STDERR, streams.stderr && !streams.tty),
        (RESIZE, streams.tty && version >= Version::V3),
    ];
    kinds.into_iter().filter_map(|(kind, wanted)| wanted.then_some(kind)).collect()
}

/// What comes from the client.
#[derive(Default)]
struct Input {
    stdin: Inlet,
    terminal: Terminal,
}

/// What goes to the client.
struct Client {
    error: Channel,
    stdout: Option<Channel>,
    stderr: Option<Channel>,
    others: Vec<Channel>,
}

/// The channels of a WebSocket.
struct Numbers {
    wanted: Streams,
    input: Arc<Input>,
}

impl channels::Handler for Numbers {
    async fn piece(&mut self, piece: Piece<'_>, patience: &Patience) -> Result<(), Gone> {
        match piece {
            Piece::Data(STDIN, bytes) if self.wanted.stdin => self.input.stdin.push(bytes, patience).await?,
            Piece::Data(RESIZE, bytes) if self.wanted.tty => self.input.terminal.text(bytes),
            Piece::End(STDIN) => self.input.stdin.end(),
            _ => {}
        }
        Ok(())
    }
}

/// The streams of a SPDY connection.
struct SpdyStreams<B> {
    expected: Vec<u8>,
    /// Accepted streams and their kinds.
    roles: Vec<(u32, u8)>,
    extra: usize,
    input: Arc<Input>,
    attach: bool,
    /// What is to be begun yet.
    command: Option<(Command, Arc<B>)>,
    process: Option<Launch>,
    version: Version,
    phase: Arc<watch::Sender<Phase>>,
    tasks: JoinSet<()>,
}

impl<B: Backend> SpdyStreams<B> {
    fn role(&self, stream: u32) -> Option<u8> {
        self.roles.iter().find(|(id, _)| *id == stream).map(|(_, kind)| *kind)
    }

    /// Begins with the first stream, so that an exec starts while the client opens the others; what it writes waits for
    /// them. One with a terminal waits itself: it may ask for the size at once, which comes by the last stream.
    fn begin(&mut self, out: &Arc<Outgoing>) {
        let complete = self.roles.len() >= self.expected.len();
        if let Some((command, backend)) = self.command.take_if(|(command, _)| complete || !command.streams().tty) {
            self.process = Some(launch(command, backend));
        }
        if !complete {
            return;
        }
        let Some(process) = self.process.take() else { return };
        let mut channels = self.roles.iter().map(|(stream, kind)| (*kind, Channel::spdy(out.clone(), *stream))).collect::<Vec<_>>();
        let mut take = |kind| channels.iter().position(|(k, _)| *k == kind).map(|at| channels.swap_remove(at).1);
        let (Some(error), stdout, stderr) = (take(ERROR), take(STDOUT), take(STDERR)) else { return };
        let client = Client { error, stdout, stderr, others: channels.into_iter().map(|(_, channel)| channel).collect() };
        let (input, version, phase, out) = (self.input.clone(), self.version, self.phase.clone(), out.clone());
        let attach = self.attach;
        phase.send_replace(Phase::Running);
        self.tasks.spawn(async move {
            out.controls_written().await;
            // It fails only when the client has gone, and then the reader ends too.
            let _ = run(process, attach, &client, &input, version).await;
            phase.send_replace(Phase::Finished);
        });
    }
}

impl<B: Backend> Handler for SpdyStreams<B> {
    async fn open(&mut self, session: &mut Session, stream: u32, headers: Headers) {
        let kind = headers.get("streamtype").and_then(|name| NAMES.iter().position(|known| *known == name)).map(|kind| kind as u8);
        match kind {
            Some(kind) if self.expected.contains(&kind) && !self.roles.iter().any(|(_, have)| *have == kind) => {
                self.roles.push((stream, kind));
                session.accept(stream).await;
                self.begin(&session.out);
            }
            // A client that opens one more waits for the answer, and a refusal makes some wait for half a minute.
            _ if self.extra < EXTRA_STREAMS => {
                self.extra += 1;
                session.accept(stream).await;
            }
            _ => session.refuse(stream, Reset::Refused).await,
        }
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], patience: &Patience) -> Result<(), Gone> {
        match self.role(stream) {
            Some(STDIN) => self.input.stdin.push(bytes, patience).await,
            Some(RESIZE) => {
                self.input.terminal.text(bytes);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, stream: u32) {
        if self.role(stream) == Some(STDIN) {
            self.input.stdin.end();
        }
    }

    fn reset(&mut self, stream: u32) {
        // The first version has no half-close: its clients reset stdin.
        self.end(stream);
    }
}

/// A process that is on its way.
type Launch = Pin<Box<dyn Future<Output = anyhow::Result<Process>> + Send>>;

/// An exec starts at once, an attachment when it is awaited: then its streams are there, and nothing of its output is lost.
fn launch<B: Backend>(command: Command, backend: Arc<B>) -> Launch {
    match command {
        Command::Exec(exec) => {
            let started = tokio::spawn(async move { backend.exec(exec).await });
            Box::pin(async move { started.await.context("start the process")? })
        }
        Command::Attach(attach) => Box::pin(async move { backend.attach(attach).await }),
    }
}

/// Sees a process to its end and tells the client. An error means that the client has gone.
async fn run(process: Launch, attach: bool, client: &Client, input: &Input, version: Version) -> io::Result<()> {
    let outcome = match process.await {
        Ok(process) => copy(process, client, input).await?,
        Err(error) => {
            input.stdin.discard();
            Outcome::Failed(error)
        }
    };
    // An attachment ends well however its container ended.
    let outcome = match outcome {
        Outcome::Exited(_) if attach => Outcome::Exited(0),
        outcome => outcome,
    };
    let ends = client.stdout.iter().chain(&client.stderr).chain(&client.others).cloned().collect::<Vec<_>>();
    client.error.finish(&outcome.text(version), &ends).await
}

/// Copies between a process and its client until the process has ended and all its output is written.
async fn copy(process: Process, client: &Client, input: &Input) -> io::Result<Outcome> {
    let fds = || {
        let [stdin, stdout, stderr] = [process.stdin, process.stdout, process.stderr].map(|fd| fd.map(watched).transpose());
        io::Result::Ok((stdin?, stdout?, stderr?))
    };
    let (stdin, stdout, stderr) = match fds() {
        Ok(fds) => fds,
        Err(error) => return Ok(Outcome::Failed(anyhow!(error).context("watch the process's descriptors"))),
    };
    if let Some(terminal) = process.terminal {
        input.terminal.connect(terminal);
    }
    let (ended, ends) = watch::channel(false);
    let wait = async {
        let code = process.wait.await;
        ended.send_replace(true);
        Ok(code)
    };
    let output = |fd: Option<_>, channel: &Option<Channel>| {
        let (ends, channel) = (ends.clone(), channel.clone());
        async move {
            match (fd, channel) {
                (Some(fd), Some(channel)) => pump(fd, &channel, Some(ends)).await.or_else(ignore_broken_fd),
                _ => Ok(()),
            }
        }
    };
    let feed = async {
        match stdin {
            // A process that closes its stdin goes on; what is sent to it is dropped.
            Some(stdin) => drop(input.stdin.drain(stdin).await),
            None => input.stdin.discard(),
        }
        std::future::pending::<()>().await
    };
    let result = tokio::select! {
        result = async { tokio::try_join!(wait, output(stdout, &client.stdout), output(stderr, &client.stderr)) } => result,
        () = feed => return Ok(Outcome::Exited(0)),
    };
    input.stdin.discard();
    let (code, (), ()) = result?;
    Ok(code.map_or_else(Outcome::Failed, Outcome::Exited))
}

/// The other end of a process's socket may be reset, which is its end; errors of the connection stay.
fn ignore_broken_fd(error: io::Error) -> io::Result<()> {
    match errno(error) {
        Errno::CONNRESET => Ok(()),
        error => Err(error.into()),
    }
}
