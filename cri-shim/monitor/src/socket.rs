//! Packets with descriptors over a SOCK_SEQPACKET socket, for both sides. Nothing here blocks.

use crate::wire::{MAX_FDS, MAX_PACKET};
use rustix::io::{Errno, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, recvmsg, sendmsg, socket_with,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// Sends one packet; `Errno::AGAIN` if there is no room.
pub fn send(socket: BorrowedFd<'_>, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop)
}

/// Receives one packet into `buffer`: its length (0: the other side is gone) and its descriptors. `Errno::AGAIN` if
/// there is none; `Errno::MSGSIZE` if it did not fit.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok((received.bytes, fds))
}

/// Listens at `path`, in place of what a dead listener left there. A path too long for a socket address
/// (107 bytes) works as well: it is reached through a descriptor of its folder.
pub fn listen_at(path: &Path) -> Result<OwnedFd> {
    let socket = seqpacket()?;
    let _ = rustix::fs::unlink(path);
    with_address(path, |address| bind(&socket, address))?;
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o600))?;
    listen(&socket, 8)?;
    Ok(socket)
}

/// Connects to a listener at `path`.
pub fn connect_to(path: &Path) -> Result<OwnedFd> {
    let socket = seqpacket()?;
    with_address(path, |address| connect(&socket, address))?;
    Ok(socket)
}

fn seqpacket() -> Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn with_address<T>(path: &Path, act: impl FnOnce(&SocketAddrUnix) -> Result<T>) -> Result<T> {
    if let Ok(address) = SocketAddrUnix::new(path) {
        return act(&address);
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&folder);
    act(&SocketAddrUnix::new(Path::new(&format!("/proc/self/fd/{number}")).join(name))?)
}

/// A buffer for [`receive`].
pub fn packet_buffer() -> Box<[u8]> {
    vec![0; MAX_PACKET].into_boxed_slice()
}
