//! The two directions of an upgraded connection. Whoever has bytes for the client writes whole frames through the one
//! [`Outgoing`]; whoever has bytes from it may make the connection wait, with [`Incoming`]'s patience.
//!
//! A frame is built in front of its payload, in the buffer that the payload was read into: one read, one write, no copy
//! between. Memory is bounded: a client that does not read makes writers wait, and they make the process wait.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::sync::{Mutex, OnceCell, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::websocket;

/// Room before the payload: a SPDY head within a WebSocket head, or that and a channel's number.
const HEAD_ROOM: usize = 8 + websocket::HEAD_LIMIT;
/// Most bytes that are read at once, from the client or from a process: what a pipe holds.
pub(super) const PIECE: usize = 64 << 10;
/// Control frames that may wait for a client that does not read, before its own frames have to wait.
const CONTROL_FRAMES: usize = 256;
/// After a client has hung up, how long bytes it sent before may wait for their reader without progress.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);
/// How often a client hears from a server that makes it wait; less than the pong deadline of client-go (61 s).
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// Bytes on their way to the client, with room for heads before them.
pub(super) struct Chunk {
    buffer: Vec<u8>,
    start: usize,
}

impl Chunk {
    /// An empty chunk with room for `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Chunk {
        let mut buffer = Vec::with_capacity(HEAD_ROOM + capacity);
        buffer.resize(HEAD_ROOM, 0);
        Chunk { buffer, start: HEAD_ROOM }
    }

    /// A chunk with a copy of `bytes`.
    pub(super) fn from(bytes: &[u8]) -> Chunk {
        let mut chunk = Chunk::new(bytes.len());
        chunk.buffer.extend_from_slice(bytes);
        chunk
    }

    /// Empties it for the next payload.
    pub(super) fn clear(&mut self) {
        self.buffer.truncate(HEAD_ROOM);
        self.start = HEAD_ROOM;
    }

    /// Where to append the payload: the capacity is the one it was made with.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Puts a head before what is there.
    pub(super) fn prepend(&mut self, head: &[u8]) {
        match self.start.checked_sub(head.len()) {
            Some(start) => {
                self.buffer[start..self.start].copy_from_slice(head);
                self.start = start;
            }
            None => {
                self.buffer.splice(..self.start, head.iter().copied());
                self.start = 0;
            }
        }
    }

    /// Everything there is.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }
}

/// When bytes last went by.
pub(super) struct Activity {
    begin: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Activity {
        Activity { begin: Instant::now(), last: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.last.store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Returns when nothing has gone by for `limit`; zero means no limit.
    pub(super) async fn idle(&self, limit: Duration) {
        if limit.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let end = self.begin + Duration::from_millis(self.last.load(Ordering::Relaxed)) + limit;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// The way to the client. Frames are whole and in the order of the calls.
pub(super) struct Outgoing {
    io: Mutex<Output>,
    tunnel: bool,
    control: mpsc::Sender<Control>,
    activity: Arc<Activity>,
}

struct Output {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    /// The rest of a frame whose writer was dropped half-way.
    rest: Vec<u8>,
    /// A WebSocket's close was written: nothing may follow it.
    closed: bool,
}

enum Control {
    Frame(Vec<u8>),
    Close(Vec<u8>),
    Mark(oneshot::Sender<()>),
}

impl Outgoing {
    /// Writes a chunk; waits while the client does not read. If it is dropped half-way, the rest of the frame goes before
    /// the next one.
    pub(super) async fn write(&self, chunk: &mut Chunk) -> io::Result<()> {
        if self.tunnel {
            let (head, length) = websocket::message_head(chunk.bytes().len(), false);
            chunk.prepend(&head[..length]);
        }
        self.write_plain(chunk.bytes()).await
    }

    async fn write_plain(&self, bytes: &[u8]) -> io::Result<()> {
        let mut output = self.io.lock().await;
        if output.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        output.write_rest().await?;
        output.write(bytes).await?;
        self.activity.touch();
        Ok(())
    }

    /// Queues a control frame, which does not wait for the client until there are very many.
    pub(super) async fn control(&self, frame: Vec<u8>) {
        let frame = if self.tunnel {
            let mut chunk = Chunk::from(&frame);
            let (head, length) = websocket::message_head(frame.len(), false);
            chunk.prepend(&head[..length]);
            chunk.bytes().to_vec()
        } else {
            frame
        };
        self.websocket_control(frame).await;
    }

    /// The same for a frame of the WebSocket itself, which a tunnel does not wrap.
    pub(super) async fn websocket_control(&self, frame: Vec<u8>) {
        // It fails only when nothing pumps any more, and then the connection is over.
        let _ = self.control.send(Control::Frame(frame)).await;
    }

    /// Queues a WebSocket's close: the last frame, as whatever is written later fails.
    pub(super) async fn websocket_close(&self, code: u16) {
        let _ = self.control.send(Control::Close(websocket::close(code, ""))).await;
    }

    /// Waits until all control frames queued so far are written.
    pub(super) async fn controls_written(&self) {
        let (mark, reached) = oneshot::channel();
        let _ = self.control.send(Control::Mark(mark)).await;
        let _ = reached.await;
    }
}

impl Output {
    async fn write_rest(&mut self) -> io::Result<()> {
        while !self.rest.is_empty() {
            let count = self.io.write(&self.rest).await?;
            self.rest.drain(..count);
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut frame = Unfinished { output: self, bytes, written: 0 };
        while frame.written < bytes.len() {
            let count = frame.output.io.write(&bytes[frame.written..]).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            frame.written += count;
        }
        drop(frame);
        self.io.flush().await
    }
}

/// A frame that is being written; dropped early, it leaves its rest.
struct Unfinished<'a> {
    output: &'a mut Output,
    bytes: &'a [u8],
    written: usize,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.written > 0 {
            self.output.rest.extend_from_slice(&self.bytes[self.written..]);
        }
    }
}

/// Writes what [`Outgoing::control`] queues. It runs beside the reader of the same connection.
pub(super) struct ControlPump(mpsc::Receiver<Control>);

impl ControlPump {
    pub(super) async fn run(mut self, out: &Outgoing) -> io::Result<()> {
        while let Some(control) = self.0.recv().await {
            match control {
                Control::Frame(frame) => out.write_plain(&frame).await?,
                Control::Close(frame) => {
                    out.write_plain(&frame).await?;
                    out.io.lock().await.closed = true;
                }
                Control::Mark(mark) => drop(mark.send(())),
            }
        }
        Ok(())
    }
}

/// The way from the client.
pub(super) struct Incoming {
    io: Box<dyn AsyncRead + Send + Unpin>,
    buffer: Vec<u8>,
    activity: Arc<Activity>,
}

impl Incoming {
    /// The next bytes, for the reader to change as it likes; empty when the client has gone.
    pub(super) async fn read(&mut self) -> io::Result<&mut [u8]> {
        let length = self.io.read(&mut self.buffer).await?;
        self.activity.touch();
        Ok(&mut self.buffer[..length])
    }
}

/// The client has hung up, and what it sent last finds no reader.
#[derive(Debug, thiserror::Error)]
#[error("the client has gone")]
pub(super) struct Gone;

/// How a reader waits for room: not for ever when the client has hung up, and with a sign of life if the client wants one.
pub(super) struct Patience {
    socket: OwnedFd,
    hang_up: OnceCell<Option<AsyncFd<OwnedFd>>>,
    pongs: Option<Arc<Outgoing>>,
}

impl Patience {
    /// Waits for `progress`.
    pub(super) async fn wait(&self, progress: impl Future<Output = ()>) -> Result<(), Gone> {
        tokio::pin!(progress);
        let gone = async {
            self.hung_up().await;
            sleep(HANG_UP_GRACE).await;
        };
        tokio::pin!(gone);
        loop {
            tokio::select! {
                biased;
                () = &mut progress => return Ok(()),
                () = &mut gone => return Err(Gone),
                () = sleep(SIGN_OF_LIFE) => if let Some(out) = &self.pongs {
                    out.websocket_control(websocket::pong(&[])).await;
                },
            }
        }
    }

    /// Returns when the client has closed its end, whether or not all it sent is read.
    async fn hung_up(&self) {
        let watch = || async { self.socket.try_clone().ok().and_then(|fd| crate::monitor::watch(fd).ok()) };
        match self.hang_up.get_or_init(watch).await {
            // With this interest tokio tells priority data, which nobody sends, and the closing of the read side.
            Some(socket) => drop(socket.ready(Interest::PRIORITY).await),
            None => std::future::pending().await,
        }
    }
}

/// All parts of a connection.
pub(super) struct Link {
    pub(super) incoming: Incoming,
    pub(super) outgoing: Arc<Outgoing>,
    pub(super) controls: ControlPump,
    pub(super) patience: Patience,
    pub(super) activity: Arc<Activity>,
}

/// What a connection carries, as far as its frames matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    /// SPDY.
    Spdy,
    /// WebSocket messages with channels.
    WebSocket,
    /// SPDY in WebSocket messages.
    Tunnel,
}

impl Link {
    /// A connection from its halves and its socket. `early` is what was read with the request's head.
    pub(super) fn new(
        read: impl AsyncRead + Send + Unpin + 'static,
        write: impl AsyncWrite + Send + Unpin + 'static,
        socket: OwnedFd,
        early: Vec<u8>,
        carries: Carries,
    ) -> Link {
        let activity = Arc::new(Activity::new());
        let (control, controls) = mpsc::channel(CONTROL_FRAMES);
        let outgoing = Arc::new(Outgoing {
            io: Mutex::new(Output { io: Box::new(write), rest: Vec::new(), closed: false }),
            tunnel: carries == Carries::Tunnel,
            control,
            activity: activity.clone(),
        });
        let io: Box<dyn AsyncRead + Send + Unpin> =
            if early.is_empty() { Box::new(read) } else { Box::new(io::Cursor::new(early).chain(read)) };
        Link {
            incoming: Incoming { io, buffer: vec![0; PIECE], activity: activity.clone() },
            patience: Patience { socket, hang_up: OnceCell::new(), pongs: (carries != Carries::Spdy).then(|| outgoing.clone()) },
            outgoing,
            controls: ControlPump(controls),
            activity,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_go_before_the_payload() {
        let mut chunk = Chunk::from(b"payload");
        chunk.prepend(b"12345678");
        chunk.prepend(b"abcdefghij");
        assert_eq!(chunk.bytes(), b"abcdefghij12345678payload");
        chunk.prepend(b"more than there is room for ");
        assert_eq!(chunk.bytes(), b"more than there is room for abcdefghij12345678payload");
        chunk.clear();
        assert_eq!(chunk.bytes(), b"");
    }
}
