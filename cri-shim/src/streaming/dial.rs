//! Connects to a port of a pod: `localhost` within its network namespace, IPv4 before IPv6. A backend calls it for pods
//! whose network is a namespace of this kernel.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpSocket;
use tokio::time::timeout;

/// Nobody answers on localhost later than this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to `localhost:port` in the network namespace that `netns` pins; `None` is the host's own, for a pod with
/// hostNetwork. The socket is not blocking.
pub async fn localhost(netns: Option<&Path>, port: u16) -> anyhow::Result<OwnedFd> {
    let (v4, v6) = match netns {
        None => sockets()?,
        Some(path) => {
            let pin = std::fs::File::open(path).with_context(|| format!("open network namespace {}", path.display()))?;
            sockets_in(pin.into()).await.with_context(|| format!("make a socket in network namespace {}", path.display()))?
        }
    };
    let first = match connect(v4, SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(socket) => return Ok(socket),
        // Somebody listens, and does not like us.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(error.into()),
        Err(error) => error,
    };
    let Some(v6) = v6 else { return Err(first).with_context(|| format!("connect to 127.0.0.1:{port}")) };
    match connect(v6, SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await {
        Ok(socket) => Ok(socket),
        Err(second) => anyhow::bail!("connect to localhost:{port}: 127.0.0.1: {first}; ::1: {second}"),
    }
}

async fn connect(socket: OwnedFd, address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = TcpSocket::from_std_stream(socket.into());
    let stream = timeout(CONNECT_TIMEOUT, socket.connect(address)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream.into_std()?.into())
}

/// A socket stays in the namespace it was made in, whoever connects it: so a thread enters the namespace, makes the sockets
/// and ends, and no thread of ours is ever left elsewhere.
async fn sockets_in(netns: OwnedFd) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let (send, made) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("dial".into()).spawn(move || {
        let enter = move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network));
        let _ = send.send(enter.map_err(io::Error::from).and_then(|()| sockets()));
    })?;
    made.await.map_err(|_| io::Error::other("the thread that makes it ended early"))?
}

/// A socket for IPv4, and one for IPv6 where the kernel has it.
fn sockets() -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let make = |family| socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None);
    Ok((make(AddressFamily::INET)?, make(AddressFamily::INET6).ok()))
}
