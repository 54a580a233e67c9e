//! The HTTP side: tokens out, connections in, and the upgrade of a request to the protocol it asks for.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Poll_, Poll};
use std::time::Duration;

use anyhow::{Context, anyhow};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::link::{Carries, Link};
use super::protocol::{self, Protocol};
use super::remote_command::Command;
use super::tokens::Tokens;
use super::{Attach, Backend, Exec, PortForward, Streams, port_forward, remote_command, tls, websocket};
use crate::config;
use crate::error::{Error, Result};

/// How long a connection may take to its request: TLS, then the head.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that answers nothing is given up after the first time, asked every second time, so often.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

const PROTOCOL_HEADER: &str = "x-stream-protocol-version";
const ACCEPTED_HEADER: &str = "x-accepted-stream-protocol-versions";
const WS_PROTOCOL: &str = "sec-websocket-protocol";
const WS_KEY: &str = "sec-websocket-key";
const WS_VERSION: &str = "sec-websocket-version";
const WS_ACCEPT: &str = "sec-websocket-accept";

enum Waiting {
    Exec(Exec),
    Attach(Attach),
    PortForward(PortForward),
}

struct State {
    tokens: Tokens<Waiting>,
    base: String,
    idle: Duration,
}

/// Gives out URLs. It is cheap to clone.
#[derive(Clone)]
pub struct Urls(Arc<State>);

impl Urls {
    /// The URL of an exec. InvalidArgument when the streams make no sense, ResourceExhausted when too many requests wait.
    pub fn exec(&self, request: Exec) -> Result<String> {
        check(request.streams)?;
        if request.command.is_empty() {
            return Err(Error::InvalidArgument("cmd is empty: name a program".into()));
        }
        self.url("exec", Waiting::Exec(request))
    }

    /// The URL of an attach, with the same errors.
    pub fn attach(&self, request: Attach) -> Result<String> {
        check(request.streams)?;
        self.url("attach", Waiting::Attach(request))
    }

    /// The URL of a port-forward, with the same errors.
    pub fn port_forward(&self, request: PortForward) -> Result<String> {
        self.url("portforward", Waiting::PortForward(request))
    }

    fn url(&self, verb: &str, request: Waiting) -> Result<String> {
        Ok(format!("{}/{verb}/{}", self.0.base, self.0.tokens.insert(request)?))
    }
}

fn check(streams: Streams) -> Result<()> {
    if streams.tty && streams.stderr {
        return Err(Error::InvalidArgument("tty and stderr are both set: a terminal has one output".into()));
    }
    if !streams.stdin && !streams.stdout && !streams.stderr {
        return Err(Error::InvalidArgument("none of stdin, stdout and stderr is set".into()));
    }
    Ok(())
}

/// The server, listening but not yet answering.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    state: Arc<State>,
}

/// Listens as the settings say.
pub async fn bind(settings: &config::Streaming) -> anyhow::Result<(Urls, Listener)> {
    let tls = tls::acceptor(&settings.tls_cert, &settings.tls_key)?;
    let (address, port) = (settings.address.as_str(), settings.port);
    let tcp = TcpListener::bind((address, port))
        .await
        .with_context(|| format!("listen on streaming.address {address:?}, streaming.port {port}"))?;
    let local = tcp.local_addr().context("getsockname of the streaming server")?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://{}", reachable(local));
    let state = Arc::new(State { tokens: Tokens::default(), base, idle: Duration::from_secs(settings.idle_seconds) });
    Ok((Urls(state.clone()), Listener { tcp, tls, state }))
}

/// The address for the kubelet on this host.
fn reachable(mut local: SocketAddr) -> SocketAddr {
    if local.ip().is_unspecified() {
        local.set_ip(if local.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    local
}

impl Listener {
    /// Serves until it is dropped; all connections end then.
    pub async fn serve<B: Backend>(self, backend: Arc<B>) -> Infallible {
        let mut connections = JoinSet::new();
        loop {
            match self.tcp.accept().await {
                Ok((socket, _)) => {
                    let (tls, state, backend) = (self.tls.clone(), self.state.clone(), backend.clone());
                    connections.spawn(async move {
                        if let Err(error) = connection(socket, tls, state, backend).await {
                            tracing::debug!("streaming connection: {error:#}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("accept a streaming connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

/// What an upgrade leads to.
struct Upgrade {
    on: OnUpgrade,
    protocol: Protocol,
    request: Waiting,
}

/// One connection: a request, its answer, and what it was upgraded to.
async fn connection<B: Backend>(socket: TcpStream, tls: Option<TlsAcceptor>, state: Arc<State>, backend: Arc<B>) -> anyhow::Result<()> {
    prepare(&socket)?;
    let socket = match tls {
        None => Transport::Plain(socket),
        Some(tls) => Transport::Tls(Box::new(timeout(REQUEST_TIMEOUT, tls.accept(socket)).await.context("TLS handshake")??)),
    };
    let upgrade = Arc::new(Mutex::new(None));
    let service = service_fn(|request| {
        let response = match answer(request, &state) {
            Ok((response, wanted)) => {
                *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(wanted);
                response
            }
            Err(refusal) => *refusal,
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades()
        .await;
    let Some(Upgrade { on, protocol, request }) = upgrade.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return Ok(served?);
    };
    let link = link(on, protocol).await?;
    session(link, protocol, request, backend, state.idle).await
}

/// The protocol's own loop.
async fn session<B: Backend>(link: Link, protocol: Protocol, request: Waiting, backend: Arc<B>, idle: Duration) -> anyhow::Result<()> {
    let command = match request {
        Waiting::Exec(exec) => Command::Exec(exec),
        Waiting::Attach(attach) => Command::Attach(attach),
        Waiting::PortForward(forward) => {
            return match protocol {
                Protocol::WebSocket { base64, .. } => port_forward::serve_websocket(link, base64, forward, backend, idle).await,
                _ => port_forward::serve_spdy(link, protocol == Protocol::Tunnel, forward, backend, idle).await,
            };
        }
    };
    match protocol {
        Protocol::Spdy(version) => remote_command::serve_spdy(link, version, command, backend, idle).await,
        Protocol::WebSocket { version, base64 } => remote_command::serve_websocket(link, version, base64, command, backend, idle).await,
        Protocol::SpdyForward | Protocol::Tunnel => Err(anyhow!("a command over a protocol of port-forward")),
    }
}

type Answer = Response<Full<Bytes>>;

/// What a request gets instead of an upgrade. It is boxed, being much larger than what it stands in for.
type Refusal = Box<Answer>;

/// The answer to a request and the upgrade that follows it; or a refusal.
fn answer(mut request: Request<Incoming>, state: &State) -> std::result::Result<(Answer, Upgrade), Refusal> {
    if request.method() != Method::GET && request.method() != Method::POST {
        let mut refusal = refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        return Err(refusal);
    }
    let not_found = || refuse(StatusCode::NOT_FOUND, "no such request, or no longer");
    let mut path = request.uri().path().trim_start_matches('/').split('/');
    let (Some(verb), Some(token), None) = (path.next(), path.next(), path.next()) else { return Err(not_found()) };
    if !["exec", "attach", "portforward"].contains(&verb) {
        return Err(not_found());
    }
    let waiting = state.tokens.take(token).ok_or_else(not_found)?;
    let forward = match (&waiting, verb) {
        (Waiting::Exec(_), "exec") | (Waiting::Attach(_), "attach") => false,
        (Waiting::PortForward(_), "portforward") => true,
        _ => return Err(not_found()),
    };
    let (response, protocol) = switch(request.headers(), forward)?;
    if matches!((&waiting, protocol), (Waiting::PortForward(forward), Protocol::WebSocket { .. }) if forward.ports.is_empty()) {
        return Err(refuse(StatusCode::BAD_REQUEST, "no ports: a WebSocket's channels need them with the request"));
    }
    Ok((response, Upgrade { on: hyper::upgrade::on(&mut request), protocol, request: waiting }))
}

/// The switch to the protocol that a request's headers ask for.
fn switch(headers: &HeaderMap, forward: bool) -> std::result::Result<(Answer, Protocol), Refusal> {
    let upgrade = tokens_of(headers, UPGRADE.as_str());
    let has = |list: &[&str], token: &str| list.iter().any(|value| value.eq_ignore_ascii_case(token));
    if !has(&tokens_of(headers, CONNECTION.as_str()), "upgrade") {
        return Err(refuse(StatusCode::BAD_REQUEST, "not an upgrade: Connection: Upgrade is missing"));
    }
    let mut response = *refuse(StatusCode::SWITCHING_PROTOCOLS, "");
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if has(&upgrade, "websocket") {
        let protocol = switch_websocket(headers, forward, response.headers_mut())?;
        return Ok((response, protocol));
    }
    if !has(&upgrade, "spdy/3.1") {
        return Err(refuse(StatusCode::BAD_REQUEST, "Upgrade: SPDY/3.1 and websocket are spoken here"));
    }
    let offered = tokens_of(headers, PROTOCOL_HEADER);
    if offered.is_empty() {
        return Err(refuse(StatusCode::BAD_REQUEST, "X-Stream-Protocol-Version is missing"));
    }
    let Some((name, protocol)) = protocol::spdy(&offered, forward) else {
        let mut refusal = refuse(StatusCode::FORBIDDEN, "none of the protocols in X-Stream-Protocol-Version is spoken here");
        for name in protocol::spdy_names(forward) {
            refusal.headers_mut().append(ACCEPTED_HEADER, HeaderValue::from_static(name));
        }
        return Err(refusal);
    };
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    response.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from_static(name));
    Ok((response, protocol))
}

fn switch_websocket(headers: &HeaderMap, forward: bool, response: &mut HeaderMap) -> std::result::Result<Protocol, Refusal> {
    if headers.get(WS_VERSION).is_none_or(|version| version != "13") {
        let mut refusal = refuse(StatusCode::UPGRADE_REQUIRED, "Sec-WebSocket-Version: 13 is spoken here");
        refusal.headers_mut().insert(WS_VERSION, HeaderValue::from_static("13"));
        return Err(refusal);
    }
    let key = headers.get(WS_KEY).and_then(|key| key.to_str().ok());
    let key = key.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing"))?;
    let Some((name, protocol)) = protocol::websocket(&tokens_of(headers, WS_PROTOCOL), forward) else {
        return Err(refuse(StatusCode::FORBIDDEN, "none of the protocols in Sec-WebSocket-Protocol is spoken here"));
    };
    let value = |text: &str| HeaderValue::from_str(text).map_err(|_| refuse(StatusCode::BAD_REQUEST, "a header is not text"));
    response.insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.insert(WS_ACCEPT, value(&websocket::accept_key(key))?);
    if let Some(name) = name {
        response.insert(WS_PROTOCOL, value(&name)?);
    }
    Ok(protocol)
}

/// The comma-separated values of all headers of a name.
fn tokens_of<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|value| !value.is_empty()).collect()
}

fn refuse(status: StatusCode, text: &'static str) -> Refusal {
    let line = if text.is_empty() { Bytes::new() } else { Bytes::from(format!("{text}\n")) };
    let mut response = Response::new(Full::new(line));
    *response.status_mut() = status;
    Box::new(response)
}

/// Small frames go at once, and a client that has silently gone is noticed.
fn prepare(socket: &TcpStream) -> anyhow::Result<()> {
    socket.set_nodelay(true).context("TCP_NODELAY")?;
    sockopt::set_socket_keepalive(socket, true).context("SO_KEEPALIVE")?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE.0).context("TCP_KEEPIDLE")?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE.1).context("TCP_KEEPINTVL")?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE.2).context("TCP_KEEPCNT")
}

/// Takes the connection back from hyper.
async fn link(on: OnUpgrade, protocol: Protocol) -> anyhow::Result<Link> {
    let parts = on.await.context("upgrade")?.downcast::<TokioIo<Transport>>().map_err(|_| anyhow!("upgrade of a foreign connection"))?;
    let (early, carries) = (
        parts.read_buf.to_vec(),
        match protocol {
            Protocol::WebSocket { .. } => Carries::WebSocket,
            Protocol::Tunnel => Carries::Tunnel,
            Protocol::Spdy(_) | Protocol::SpdyForward => Carries::Spdy,
        },
    );
    Ok(match parts.io.into_inner() {
        Transport::Plain(socket) => {
            let fd = duplicate(&socket)?;
            let (read, write) = socket.into_split();
            Link::new(read, write, fd, early, carries)
        }
        Transport::Tls(stream) => {
            let fd = duplicate(stream.get_ref().0)?;
            let (read, write) = tokio::io::split(*stream);
            Link::new(read, write, fd, early, carries)
        }
    })
}

fn duplicate(socket: &TcpStream) -> anyhow::Result<OwnedFd> {
    socket.as_fd().try_clone_to_owned().context("dup of a streaming connection")
}

/// A connection, with TLS or without.
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Poll_<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Poll_<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Poll_<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Poll_<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
