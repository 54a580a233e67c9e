//! Port-forward: for each connection of the client's user a pair of streams, data and error, and a socket of the pod.
//!
//! Each direction ends by itself: the client's end of data shuts the pod's socket for writing, the pod's end of file ends
//! both streams, as client-go waits for the error stream before it closes its user's connection. What breaks (the pod resets
//! its connection, the client resets a stream) breaks this pair and no other.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::channel::Channel;
use super::channels::{self, Channels, Piece};
use super::fds::{Inlet, pump, watched};
use super::link::{Gone, Link, Outgoing, Patience};
use super::spdy::frame::Reset;
use super::spdy::headers::Headers;
use super::spdy::session::{Handler, Session};
use super::{Backend, PortForward, websocket};

/// How long a client may take to open the second stream of a pair.
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Pairs that may be open on one connection.
const PAIRS: usize = 1000;
/// When the pod has ended its direction, how long the client's may go on without being read to its end.
const AFTER_POD: Duration = Duration::from_secs(30);
/// When the client has gone, how long the pod has to take what it sent before.
const AFTER_CLIENT: Duration = Duration::from_secs(5);

/// Serves port-forwards over SPDY streams; `tunnel` says that the SPDY is in a WebSocket. Returns when the connection is to
/// be closed.
pub(super) async fn serve_spdy<B: Backend>(
    link: Link,
    tunnel: bool,
    request: PortForward,
    backend: Arc<B>,
    idle: Duration,
) -> anyhow::Result<()> {
    let Link { mut incoming, outgoing, controls, patience, activity } = link;
    let session = Session::new(outgoing.clone());
    let (leaving, left) = watch::channel(false);
    let pod = Arc::new(Pod { id: request.pod, backend });
    let mut pairs = Pairs { pod, opening: HashMap::new(), streams: HashMap::new(), left, tasks: JoinSet::new() };
    let result = tokio::select! {
        result = session.run(&mut incoming, tunnel.then(websocket::Parser::default), &patience, &mut pairs) => result,
        result = controls.run(&outgoing) => result.map_err(Into::into),
        () = activity.idle(idle) => Err(anyhow!("nothing was sent for {} s", idle.as_secs())),
    };
    finish(pairs.tasks, leaving).await;
    result
}

/// Serves port-forwards over the channels of a WebSocket: two for each port of the request, data and error.
pub(super) async fn serve_websocket<B: Backend>(
    link: Link,
    base64: bool,
    request: PortForward,
    backend: Arc<B>,
    idle: Duration,
) -> anyhow::Result<()> {
    let Link { mut incoming, outgoing, controls, patience, activity } = link;
    let (leaving, left) = watch::channel(false);
    let pod = Arc::new(Pod { id: request.pod, backend });
    let (mut pairs, mut tasks) = (Vec::new(), JoinSet::new());
    for (index, port) in request.ports.iter().enumerate() {
        let number =
            u8::try_from(2 * index).map_err(|_| anyhow!("{} ports are more than a WebSocket has channels for", request.ports.len()))?;
        let [data, error] = [number, number + 1].map(|number| Channel::websocket(outgoing.clone(), number, base64));
        for channel in [&data, &error] {
            channel.write_copy(&port.to_le_bytes()).await?;
        }
        let pair = Arc::new(Pair::default());
        pairs.push(pair.clone());
        let (pod, left, port) = (pod.clone(), left.clone(), *port);
        tasks.spawn(async move { forward(&pod, port, &pair, &data, &error, left).await });
    }
    let all_done = async {
        while tasks.join_next().await.is_some() {}
        outgoing.websocket_close(websocket::CLOSE_NORMAL).await;
        outgoing.controls_written().await;
    };
    let channels = Channels::new(base64, false);
    let mut numbers = Numbers(pairs);
    let read = channels::read(&mut incoming, &outgoing, channels, &patience, &mut numbers);
    let result = tokio::select! {
        result = read => result,
        result = controls.run(&outgoing) => result.map_err(Into::into),
        () = activity.idle(idle) => Err(anyhow!("nothing was sent for {} s", idle.as_secs())),
        () = all_done => Ok(()),
    };
    finish(tasks, leaving).await;
    result
}

/// The channels of a WebSocket: 2i is the data of pair i.
struct Numbers(Vec<Arc<Pair>>);

impl channels::Handler for Numbers {
    async fn piece(&mut self, piece: Piece<'_>, patience: &Patience) -> Result<(), Gone> {
        let Piece::Data(number, bytes) = piece else { return Ok(()) };
        match self.0.get(usize::from(number / 2)) {
            Some(pair) if number % 2 == 0 => pair.inlet.push(bytes, patience).await,
            _ => Ok(()),
        }
    }
}

/// Lets pods take what clients sent before they left.
async fn finish(mut tasks: JoinSet<()>, leaving: watch::Sender<bool>) {
    leaving.send_replace(true);
    let _ = timeout(AFTER_CLIENT, async { while tasks.join_next().await.is_some() {} }).await;
}

/// Where to connect.
struct Pod<B> {
    id: String,
    backend: Arc<B>,
}

/// What the reader of the connection has of a pair.
#[derive(Default)]
struct Pair {
    inlet: Inlet,
    cancel: Notify,
}

/// A pair that has one of its streams.
struct Opening {
    pair: Arc<Pair>,
    port: u16,
    kind: Kind,
    stream: u32,
    /// Takes the data and the error stream.
    complete: oneshot::Sender<(Channel, Channel)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// The pairs of a SPDY connection.
struct Pairs<B> {
    pod: Arc<Pod<B>>,
    /// Pairs with one stream, by request id.
    opening: HashMap<String, Opening>,
    /// Data streams of all pairs.
    streams: HashMap<u32, Arc<Pair>>,
    left: watch::Receiver<bool>,
    tasks: JoinSet<()>,
}

impl<B: Backend> Pairs<B> {
    /// Puts a new stream into its pair, accepts it, and lets a pair begin that is complete.
    async fn join(&mut self, session: &mut Session, stream: u32, headers: &Headers) -> Result<(), Reset> {
        let kind = match headers.get("streamtype") {
            Some("data") => Kind::Data,
            Some("error") => Kind::Error,
            _ => return Err(Reset::Protocol),
        };
        let port = headers.get("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0).ok_or(Reset::Protocol)?;
        // Old clients give no request id: their data stream comes right after its error stream.
        let id = match (headers.get("requestid"), kind) {
            (Some(id), _) if id.len() <= 64 => format!("request {id}"),
            (Some(_), _) => return Err(Reset::Protocol),
            (None, Kind::Error) => format!("stream {stream}"),
            (None, Kind::Data) => format!("stream {}", stream.saturating_sub(2)),
        };
        self.sweep();
        if let Some(opening) = self.opening.get(&id) {
            if opening.kind == kind || opening.port != port {
                return Err(Reset::Protocol);
            }
        } else if self.streams.len() + self.opening.len() >= PAIRS {
            return Err(Reset::Refused);
        }
        session.accept(stream).await;
        let pair = match self.opening.remove(&id) {
            Some(Opening { pair, stream: other, complete, .. }) => {
                let (data, error) = if kind == Kind::Data { (stream, other) } else { (other, stream) };
                let _ = complete.send((Channel::spdy(session.out.clone(), data), Channel::spdy(session.out.clone(), error)));
                pair
            }
            None => {
                let (complete, streams) = oneshot::channel();
                let pair = Arc::new(Pair::default());
                self.opening.insert(id, Opening { pair: pair.clone(), port, kind, stream, complete });
                let first = Channel::spdy(session.out.clone(), stream);
                self.tasks.spawn(serve_pair(self.pod.clone(), port, pair.clone(), session.out.clone(), first, streams, self.left.clone()));
                pair
            }
        };
        if kind == Kind::Data {
            self.streams.insert(stream, pair);
        }
        Ok(())
    }

    /// Forgets pairs whose task has ended.
    fn sweep(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.opening.retain(|_, opening| !opening.complete.is_closed());
        self.streams.retain(|_, pair| Arc::strong_count(pair) > 1);
    }
}

impl<B: Backend> Handler for Pairs<B> {
    async fn open(&mut self, session: &mut Session, stream: u32, headers: Headers) {
        if let Err(why) = self.join(session, stream, &headers).await {
            session.refuse(stream, why).await;
        }
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], patience: &Patience) -> Result<(), Gone> {
        match self.streams.get(&stream) {
            Some(pair) => pair.inlet.push(bytes, patience).await,
            None => Ok(()),
        }
    }

    fn end(&mut self, stream: u32) {
        if let Some(pair) = self.streams.get(&stream) {
            pair.inlet.end();
        }
    }

    fn reset(&mut self, stream: u32) {
        if let Some(pair) = self.streams.get(&stream) {
            pair.cancel.notify_one();
            pair.inlet.discard();
        }
    }
}

/// Waits for both streams of a pair, then forwards.
async fn serve_pair<B: Backend>(
    pod: Arc<Pod<B>>,
    port: u16,
    pair: Arc<Pair>,
    out: Arc<Outgoing>,
    first: Channel,
    streams: oneshot::Receiver<(Channel, Channel)>,
    left: watch::Receiver<bool>,
) {
    let Ok(Ok((data, error))) = timeout(CREATION_TIMEOUT, streams).await else {
        pair.inlet.discard();
        return first.reset(Reset::Cancel).await;
    };
    out.controls_written().await;
    forward(&pod, port, &pair, &data, &error, left).await;
    pair.inlet.discard();
}

/// Forwards one connection, from dialling the pod to the end of both directions.
async fn forward<B: Backend>(pod: &Pod<B>, port: u16, pair: &Pair, data: &Channel, error: &Channel, mut left: watch::Receiver<bool>) {
    let socket = tokio::select! {
        socket = pod.backend.port_forward(&pod.id, port) => socket,
        () = pair.cancel.notified() => return drop(error.finish(&[], &[]).await),
    };
    let socket = match socket.and_then(|socket: OwnedFd| Ok(watched(socket)?)) {
        Ok(socket) => socket,
        Err(why) if why.downcast_ref::<io::Error>().is_some_and(|why| why.kind() == io::ErrorKind::ConnectionReset) => {
            return break_off(data, error).await;
        }
        Err(why) => {
            pair.inlet.discard();
            let text = format!("forward port {port} of pod {}: {why:#}", pod.id);
            return drop(error.finish(text.as_bytes(), std::slice::from_ref(data)).await);
        }
    };
    let up = pair.inlet.drain(socket.clone());
    let down = async {
        pump(socket.clone(), data, None).await?;
        error.finish(&[], std::slice::from_ref(data)).await
    };
    let broken = async {
        tokio::pin!(up, down);
        tokio::select! {
            up = &mut up => up.is_err() || down.await.is_err(),
                down = &mut down => {
                // The client of a WebSocket has no way to say that it will send nothing more.
                if !data.half_closes() {
                    pair.inlet.end();
                }
                down.is_err() || !matches!(timeout(AFTER_POD, up).await, Ok(Ok(())))
            }
        }
    };
    let left = async { drop(left.wait_for(|left| *left).await) };
    tokio::select! {
        biased;
        // The client waits for the end of the error stream before it is done with the pair.
        () = pair.cancel.notified() => drop(error.finish(&[], &[]).await),
        broken = broken => if broken {
            break_off(data, error).await;
        },
        () = left => {
            pair.inlet.end();
            let _ = timeout(AFTER_CLIENT, pair.inlet.drain(socket)).await;
        }
    }
}

/// The pod has reset its connection, and so does this side with the pair. A text instead would make client-go end its session.
async fn break_off(data: &Channel, error: &Channel) {
    data.reset(Reset::Cancel).await;
    error.reset(Reset::Cancel).await;
}
