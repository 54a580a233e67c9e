//! The streaming server behind Exec, Attach and PortForward: those RPCs give out an URL, good once and for a minute, and the
//! kubelet's connection to it carries the bytes, over SPDY/3.1 or a WebSocket, in every version that clients speak.
//!
//! The daemon only copies between that connection and descriptors which a [`Backend`] hands over; the process, its terminal
//! and its exit code belong to the pod's monitor. So when the daemon dies, the connection ends and nothing else: a container
//! that was attached to and its log go on; a process of an exec sees its terminal hang up (SIGHUP) or, without a terminal,
//! the end of its stdin and EPIPE on output; a pod's socket of a port-forward is closed. A client that leaves does the same.

mod channel;
pub mod channels;
pub mod dial;
mod fds;
mod link;
mod port_forward;
mod protocol;
mod remote_command;
mod server;
pub mod spdy;
mod status;
mod terminal;
mod tls;
mod tokens;
pub mod websocket;

use std::os::fd::OwnedFd;
use std::pin::Pin;

pub use server::{Listener, Urls, bind};

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// Bytes from the client.
    pub stdin: bool,
    /// Bytes to the client; with `tty` all output.
    pub stdout: bool,
    /// The same; not with `tty`.
    pub stderr: bool,
    /// A terminal, with its size.
    pub tty: bool,
}

/// A process to run in a container: CRI's ExecRequest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The container's id.
    pub container: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What the client wants of it.
    pub streams: Streams,
}

/// A container's first process to be attached to: CRI's AttachRequest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The container's id.
    pub container: String,
    /// What the client wants of it; `tty` as the container has it.
    pub streams: Streams,
}

/// A pod whose ports are wanted: CRI's PortForwardRequest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForward {
    /// The pod's id.
    pub pod: String,
    /// The ports of a WebSocket's channels. SPDY clients name them when they open streams.
    pub ports: Vec<u16>,
}

/// A running process, by descriptors: pipes, sockets or a terminal's master. They become non-blocking, each with all who
/// share its open file description. What a client does not want is `None`; a FIFO to read must have its writer.
///
/// When the client leaves, everything in here is dropped: the descriptors close, and `wait` ends unfinished.
pub struct Process {
    /// Takes what the client sends; shut and closed at its end.
    pub stdin: Option<OwnedFd>,
    /// Gives output until end of file, or EIO of a terminal.
    pub stdout: Option<OwnedFd>,
    /// The same; not with a terminal.
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, to resize.
    pub terminal: Option<OwnedFd>,
    /// The exit code when the process has ended, 128 and the signal's number for one that was killed; for an attachment when
    /// it is over, with any code.
    pub wait: Pin<Box<dyn Future<Output = anyhow::Result<i32>> + Send>>,
}

/// What a streaming server needs of the containers' code. Errors go to the client as they are.
pub trait Backend: Send + Sync + 'static {
    /// Starts a process in a container.
    fn exec(&self, request: Exec) -> impl Future<Output = anyhow::Result<Process>> + Send;
    /// Attaches to a container's first process.
    fn attach(&self, request: Attach) -> impl Future<Output = anyhow::Result<Process>> + Send;
    /// A connection to `port` of a pod's localhost, as [`dial::localhost`] makes one.
    fn port_forward(&self, pod: &str, port: u16) -> impl Future<Output = anyhow::Result<OwnedFd>> + Send;
}
