//! The conversation between rrun (the parent) and the process it makes.
//!
//! One `SOCK_SEQPACKET` pair, one packet per message, descriptors beside it. The child asks and
//! waits; the parent answers `Done`. So the child is a straight list of steps and the parent is one
//! loop (parent.rs). End-of-file in the child means that the parent is dead: it exits. End-of-file
//! in the parent means that `execve` succeeded (the socket is close-on-exec) or that the child died.
//!
//! ```text
//!  parent                                   child (hop, then init or exec)
//!    │ ── clone3 ───────────────────────────▶ │
//!    │ ◀──────────────────────────── MapIds ── │  a new user namespace waits for its id maps
//!    │ ── Done ─────────────────────────────▶ │
//!    │ ◀────────────────────── Forked(pid) ── │  the hop made init and leaves
//!    │ ── Done ─────────────────────────────▶ │  to init, which waits until the parent knows it
//!    │ ◀──────────────────────── JoinCgroup ── │  systemd makes the scope around a living process
//!    │ ── Done ─────────────────────────────▶ │
//!    │ ◀──────────────────────── NetDevices ── │  the network namespace is there
//!    │ ── Done ─────────────────────────────▶ │
//!    │ ◀──────────────────── Source(number) ── │  the source of an id-mapped mount of a user namespace
//!    │ ── Done + fd ────────────────────────▶ │
//!    │ ◀───────────────────────────── Hooks ── │  mounts are there: prestart, createRuntime
//!    │ ── Done ─────────────────────────────▶ │
//!    │ ◀──────────────────── Terminal + fd ── │  the pty's master, when we relay it ourselves
//!    │ ◀─────────────────── Listener(number) ── │  seccomp notifications: the parent fetches the descriptor
//!    │ ── Done ─────────────────────────────▶ │
//!    │ ◀───────────────────── Warning(text) ── │  any time; no answer
//!    │ ◀──────────────────────────── Limits ── │  resource limits and OOM score, before ids change
//!    │ ── Done ─────────────────────────────▶ │
//!    │ ◀───────────────────────────── Ready ── │  the record with its pid is saved (exec: Leaving, no answer)
//!    │ ── Done ─────────────────────────────▶ │  from here on the child outlives its parent
//!    │ ◀────────────── Failed(text) or EOF ── │  (create: the exec fifo takes over)
//! ```

use crate::sys;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The longest text of a message, in bytes; a longer one is cut.
const MAX_TEXT: usize = 4000;

/// What a message means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Child: write my id maps.
    MapIds = b'm',
    /// Hop: init is this process.
    Forked = b'f',
    /// Child: put me into the cgroup.
    JoinCgroup = b'c',
    /// Child: move the network devices.
    NetDevices = b'n',
    /// Child: give me the source of a mount.
    Source = b's',
    /// Child: run the runtime's hooks.
    Hooks = b'h',
    /// Child: the terminal's master.
    Terminal = b't',
    /// Child: the seccomp notification descriptor.
    Listener = b'l',
    /// Child: tell the user.
    Warning = b'w',
    /// Child: set my resource limits and OOM score.
    Limits = b'u',
    /// Child: all is done but the last steps.
    Ready = b'r',
    /// Child, instead of `Ready` where the parent has nothing left to do: `execve` is next.
    Leaving = b'x',
    /// Child: this went wrong.
    Failed = b'!',
    /// Parent: go on.
    Done = b'd',
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::{
            Done, Failed, Forked, Hooks, JoinCgroup, Leaving, Limits, Listener, MapIds, NetDevices, Ready, Source, Terminal, Warning,
        };
        [MapIds, Forked, JoinCgroup, NetDevices, Source, Hooks, Limits, Terminal, Listener, Warning, Ready, Leaving, Failed, Done]
            .into_iter()
            .find(|&k| k as u8 == byte)
    }
}

/// One packet.
#[derive(Debug)]
pub struct Message {
    /// What it means.
    pub kind: Kind,
    /// Its text, where it has one.
    pub text: String,
    /// Its descriptor, where it has one.
    pub fd: Option<OwnedFd>,
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Both ends: the parent's and the child's.
    pub fn pair() -> sys::Result<(Channel, Channel)> {
        let (a, b) = socketpair(nix::sys::socket::AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Channel(a), Channel(b)))
    }

    /// Sends one message, with a descriptor or to a child that may be dead.
    pub fn send(&self, kind: Kind, text: &str, fd: Option<&OwnedFd>) -> sys::Result<()> {
        let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
        let head = [kind as u8];
        let parts = [IoSlice::new(&head), IoSlice::new(text)];
        let fds = fd.map(|fd| [fd.as_raw_fd()]);
        let control: Vec<_> = fds.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        sendmsg::<()>(self.0.as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// The next message; `None` at end-of-file.
    pub fn receive(&self) -> sys::Result<Option<Message>> {
        let mut buffer = [0u8; MAX_TEXT + 1];
        let mut space = nix::cmsg_space!([i32; 1]);
        let (length, fd) = loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(Errno::EINTR) => (),
                // The other end was closed with a packet of ours unread: it is gone all the same.
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(e) => return Err(e),
                Ok(got) => {
                    let fd = got.cmsgs().ok().and_then(|mut all| {
                        all.find_map(|m| match m {
                            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                            _ => None,
                        })
                    });
                    break (got.bytes, fd.and_then(sys::inherited_fd));
                }
            }
        };
        if length == 0 {
            return Ok(None);
        }
        let kind = Kind::from_byte(buffer[0]).ok_or(Errno::EPROTO)?;
        Ok(Some(Message { kind, text: String::from_utf8_lossy(&buffer[1..length]).into_owned(), fd }))
    }

    /// The child's word. Like the answer to [`Channel::ask`] by the plainest of calls, which a seccomp
    /// filter that is already loaded must allow anyway. A parent that is gone ends this process.
    pub fn tell(&self, kind: Kind, text: &str) -> sys::Result<()> {
        let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
        sys::write(self.0.as_fd(), &[&[kind as u8], text].concat()).map(drop)
    }

    /// The child's question: tells, and waits for `Done`. A parent that is gone ends this process.
    pub fn ask(&self, kind: Kind, text: &str) -> sys::Result<()> {
        self.tell(kind, text)?;
        let mut answer = [0u8; 1];
        match nix::unistd::read(&self.0, &mut answer) {
            Ok(1) if answer[0] == Kind::Done as u8 => Ok(()),
            _ => sys::exit_now(1),
        }
    }
}

impl Channel {
    /// The child's question for a descriptor.
    pub fn fetch(&self, kind: Kind, text: &str) -> anyhow::Result<OwnedFd> {
        self.tell(kind, text)?;
        match self.receive()? {
            Some(Message { kind: Kind::Done, fd: Some(fd), .. }) => Ok(fd),
            _ => sys::exit_now(1),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_with_its_text_and_descriptor() {
        let (a, b) = Channel::pair().unwrap();
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        a.send(Kind::Terminal, "text", Some(&file)).unwrap();
        let got = b.receive().unwrap().unwrap();
        assert_eq!((got.kind, got.text.as_str()), (Kind::Terminal, "text"));
        assert!(got.fd.is_some());
    }

    #[test]
    fn a_long_text_is_cut_and_a_closed_end_is_none() {
        let (a, b) = Channel::pair().unwrap();
        a.send(Kind::Failed, &"x".repeat(10_000), None).unwrap();
        drop(a);
        assert_eq!(b.receive().unwrap().unwrap().text.len(), MAX_TEXT);
        assert!(b.receive().unwrap().is_none());
    }
}
