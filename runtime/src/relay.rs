//! Bytes between a container's pty and the runtime's own standard streams.
//!
//! [`crate::supervise`] polls what [`Relay::polled`] names and then calls [`Relay::turn`]. Nothing
//! here blocks, and the O_NONBLOCK of descriptions shared with the caller's shell is left alone:
//! terminals and pipes are opened again for ourselves, other files wait for poll.

use crate::sys;
use crate::terminal::{RawMode, plain_line_ends};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{O_NOCTTY, O_NONBLOCK, O_RDONLY, O_WRONLY, PIPE_BUF};
use nix::poll::{PollFd, PollFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{isatty, read, write};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A container's pty, connected to standard input and output.
#[derive(Debug)]
pub struct Relay {
    master: OwnedFd,
    /// Tells edges of `master`: it wakes us when there is nothing to poll for, because the
    /// container closed its end (which poll would report without end) but may open it again.
    edges: Epoll,
    asleep: bool,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    input: Buffer,
    output: Buffer,
    /// Restores the caller's terminal when the relay ends.
    _raw: Option<RawMode>,
}

impl Relay {
    /// Connects `master`; the caller's terminal, if standard input is one, is raw from here on.
    pub fn new(master: OwnedFd) -> Result<Relay> {
        let edges = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll")?;
        let both = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        edges.add(&master, EpollEvent::new(both, 0)).context("epoll of the pty")?;
        // Nobody else uses the description by now: init has closed its copy, or is about to.
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).context("the pty")?;
        if !isatty(sys::STDOUT).unwrap_or(false) {
            plain_line_ends(master.as_fd());
        }
        let relay = Relay {
            master,
            edges,
            asleep: false,
            stdin: open_again(sys::STDIN, O_RDONLY),
            stdout: open_again(sys::STDOUT, O_WRONLY),
            input: Buffer::default(),
            output: Buffer::default(),
            _raw: RawMode::enter(sys::STDIN)?,
        };
        relay.resize();
        Ok(relay)
    }

    /// Gives the pty the size of the caller's terminal, if there is one that has a size. With all
    /// three streams redirected it is the controlling one.
    pub fn resize(&self) {
        let size = [sys::STDOUT, sys::STDIN, sys::STDERR].into_iter().find_map(|tty| sys::window_size(tty).ok());
        let own = || sys::openat(sys::CWD, c"/dev/tty", O_RDONLY | O_NOCTTY, 0).and_then(|tty| sys::window_size(tty.as_fd())).ok();
        let size = size.or_else(own);
        if let Some((rows, columns)) = size
            && (rows, columns) != (0, 0)
        {
            let _ = sys::set_window_size(self.master.as_fd(), rows, columns);
        }
    }

    /// What to wait for: standard input, standard output, the pty. `idle` stands where there is
    /// nothing to wait for.
    pub fn polled<'a>(&'a self, idle: BorrowedFd<'a>) -> [PollFd<'a>; 3] {
        let none = || PollFd::new(idle, PollFlags::empty());
        let wait = |fd: &'a Option<OwnedFd>, wanted: bool, flags| match fd {
            Some(fd) if wanted => PollFd::new(fd.as_fd(), flags),
            _ => none(),
        };
        let mut pty = PollFlags::empty();
        pty.set(PollFlags::POLLIN, self.output.is_empty());
        pty.set(PollFlags::POLLOUT, !self.input.is_empty());
        [
            wait(&self.stdin, self.input.is_empty(), PollFlags::POLLIN),
            wait(&self.stdout, !self.output.is_empty(), PollFlags::POLLOUT),
            if self.asleep { PollFd::new(self.edges.0.as_fd(), PollFlags::POLLIN) } else { PollFd::new(self.master.as_fd(), pty) },
        ]
    }

    /// Moves what can be moved; `ready` is in the order of [`Relay::polled`].
    pub fn turn(&mut self, ready: [bool; 3]) {
        let [stdin, stdout, pty] = ready;
        if pty && std::mem::take(&mut self.asleep) {
            let _ = self.edges.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO);
        } else if pty {
            let moved = [self.read_pty(), self.write_pty()];
            self.asleep = moved == [false, false];
        }
        if stdin && let Some(fd) = &self.stdin {
            match self.input.fill(fd.as_fd()) {
                Moved::Nothing => (),
                Moved::Some => self.asleep = false,
                // The container keeps its terminal; there is only nothing more to type.
                Moved::End => self.stdin = None,
            }
        }
        if stdout {
            self.asleep = false;
            self.write_stdout();
        }
    }

    /// After the container's process has ended: takes what its pty still holds, at most `budget`
    /// bytes, since others may go on writing. Where there is something to write, the descriptor
    /// to wait for.
    pub fn take_rest(&mut self, budget: &mut usize) -> Option<BorrowedFd<'_>> {
        while self.output.is_empty() && *budget > 0 && self.read_pty() {
            *budget = budget.saturating_sub(PIPE_BUF);
        }
        self.stdout.as_ref().filter(|_| !self.output.is_empty()).map(AsFd::as_fd)
    }

    /// Whether bytes came. The kernel delivers what was written before the other end closed
    /// before it says EIO.
    fn read_pty(&mut self) -> bool {
        let moved = self.output.is_empty() && self.output.fill(self.master.as_fd()) == Moved::Some;
        if self.stdout.is_none() {
            self.output = Buffer::default();
        }
        moved
    }

    fn write_pty(&mut self) -> bool {
        !self.input.is_empty() && self.input.drain(self.master.as_fd()) == Moved::Some
    }

    /// An output that is closed or broken swallows the rest: the container goes on.
    fn write_stdout(&mut self) {
        if let Some(fd) = &self.stdout
            && self.output.drain(fd.as_fd()) == Moved::End
        {
            self.stdout = None;
            self.output = Buffer::default();
        }
    }
}

/// A standard stream as a description of our own where that can be had, and is needed: a terminal
/// or a pipe may block in the middle of a write. `None` where it is closed.
fn open_again(fd: BorrowedFd<'_>, flags: i32) -> Option<OwnedFd> {
    let kind = SFlag::from_bits_truncate(fstat(fd).ok()?.st_mode) & SFlag::S_IFMT;
    let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    if [SFlag::S_IFCHR, SFlag::S_IFIFO].contains(&kind)
        && let Ok(own) = sys::openat(sys::CWD, &path, flags | O_NONBLOCK | O_NOCTTY, 0)
    {
        return Some(own);
    }
    fd.try_clone_to_owned().ok()
}

#[derive(Debug, PartialEq, Eq)]
enum Moved {
    Some,
    Nothing,
    End,
}

/// Bytes on their way. At most as many as a pipe takes without blocking once poll says so.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    sent: usize,
}

impl Buffer {
    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn fill(&mut self, from: BorrowedFd<'_>) -> Moved {
        self.sent = 0;
        self.bytes.resize(PIPE_BUF, 0);
        let result = read(from, &mut self.bytes);
        self.bytes.truncate(result.unwrap_or(0));
        match result {
            Ok(0) => Moved::End,
            Ok(_) => Moved::Some,
            Err(Errno::EAGAIN | Errno::EINTR) => Moved::Nothing,
            Err(_) => Moved::End,
        }
    }

    fn drain(&mut self, to: BorrowedFd<'_>) -> Moved {
        match write(to, &self.bytes[self.sent..]) {
            Ok(n) => {
                self.sent += n;
                Moved::Some
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Moved::Nothing,
            Err(_) => Moved::End,
        }
    }
}
