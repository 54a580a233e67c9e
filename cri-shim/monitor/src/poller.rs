//! The one place where the monitor waits: epoll, with a token per descriptor.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, Result};
use rustix::time::Timespec;
use std::os::fd::{AsFd, OwnedFd};

/// What a descriptor belongs to; the number is the key of a container or session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Listener,
    Children,
    Daemon(u32),
    Stdout(u32),
    Stderr(u32),
    Session(u32),
    Pidfd(u32),
    Init,
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, key) = match self {
            Token::Listener => (0, 0),
            Token::Children => (1, 0),
            Token::Daemon(key) => (2, key),
            Token::Stdout(key) => (3, key),
            Token::Stderr(key) => (4, key),
            Token::Session(key) => (5, key),
            Token::Pidfd(key) => (6, key),
            Token::Init => (7, 0),
        };
        kind << 32 | u64::from(key)
    }

    fn unpack(data: u64) -> Token {
        let key = data as u32;
        match data >> 32 {
            0 => Token::Listener,
            1 => Token::Children,
            2 => Token::Daemon(key),
            3 => Token::Stdout(key),
            4 => Token::Stderr(key),
            5 => Token::Session(key),
            6 => Token::Pidfd(key),
            _ => Token::Init,
        }
    }
}

/// What a wait can return at once.
pub(crate) const EVENTS: usize = 16;

#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> Result<Poller> {
        Ok(Poller(epoll::create(CreateFlags::CLOEXEC)?))
    }

    /// Hang-ups are told whatever the flags.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> Result<()> {
        epoll::add(&self.0, fd, EventData::new_u64(token.pack()), flags)
    }

    pub(crate) fn change(&self, fd: impl AsFd, token: Token, flags: EventFlags) {
        let _ = epoll::modify(&self.0, fd, EventData::new_u64(token.pack()), flags);
    }

    /// Before the descriptor is closed: a copy of it elsewhere would keep it watched.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits, at most the milliseconds; how many events came.
    pub(crate) fn wait(&self, events: &mut [(Token, EventFlags); EVENTS], milliseconds: Option<u64>) -> Result<usize> {
        let timeout = milliseconds.map(|ms| Timespec { tv_sec: (ms / 1000) as i64, tv_nsec: (ms % 1000 * 1_000_000) as i64 });
        let mut buffer = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS];
        let count = match epoll::wait(&self.0, &mut buffer[..], timeout.as_ref()) {
            Err(Errno::INTR) => 0,
            other => other?,
        };
        for (event, to) in buffer[..count].iter().zip(events.iter_mut()) {
            *to = (Token::unpack(event.data.u64()), event.flags);
        }
        Ok(count)
    }
}
