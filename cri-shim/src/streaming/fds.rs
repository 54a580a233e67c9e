//! Between the client's channels and the file descriptors of a process or of a pod's socket: [`Inlet`] towards an fd,
//! [`pump`] away from one. Both are flat in memory, and an fd that is not read stops only the channel that feeds it, up to
//! [`BACKLOG`] bytes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::channel::Channel;
use super::link::{Chunk, Gone, PIECE, Patience};

/// Bytes that wait for an fd before the client has to wait. SPDY has no flow control that its users follow, so the client
/// waits with all its channels.
const BACKLOG: usize = 1 << 20;
/// A backlog that grew beyond this gives its memory back when it is empty.
const KEPT: usize = 64 << 10;
/// After a process has ended, how long others that hold its pipes may be silent before their output is given up.
const DRAIN: Duration = Duration::from_secs(2);

/// Makes an fd ready for tokio. Its open file description becomes non-blocking.
pub(super) fn watched(fd: OwnedFd) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Arc::new(crate::monitor::watch(fd)?))
}

/// Bytes from the client towards an fd, which may come later than they do.
#[derive(Default)]
pub(super) struct Inlet {
    state: Mutex<State>,
    room: Notify,
    work: Notify,
}

#[derive(Default)]
struct State {
    fd: Option<Arc<AsyncFd<OwnedFd>>>,
    backlog: VecDeque<u8>,
    ended: bool,
    failed: Option<Errno>,
}

impl Inlet {
    /// Hands on bytes; waits while there is no room. Bytes for an fd that failed are dropped.
    pub(super) async fn push(&self, mut bytes: &[u8], patience: &Patience) -> Result<(), Gone> {
        loop {
            {
                let mut state = self.state();
                bytes = state.write_or_keep(bytes);
                if !state.backlog.is_empty() || state.failed.is_some() {
                    self.work.notify_one();
                }
            }
            if bytes.is_empty() {
                return Ok(());
            }
            patience.wait(self.room.notified()).await?;
        }
    }

    /// The client will send nothing more.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.work.notify_one();
    }

    /// What was sent and what will be is dropped.
    pub(super) fn discard(&self) {
        let mut state = self.state();
        state.fail(Errno::PIPE);
        state.fd = None;
        self.room.notify_one();
        self.work.notify_one();
    }

    /// Gives the bytes to `fd` as it takes them. Returns at the end, when all are written and the fd has been shut for
    /// writing, or with what the fd failed with. It works only while it is polled.
    pub(super) async fn drain(&self, fd: Arc<AsyncFd<OwnedFd>>) -> Result<(), Errno> {
        self.state().fd = Some(fd.clone());
        loop {
            let waits = {
                let mut state = self.state();
                if let Some(error) = state.failed {
                    state.fd = None;
                    return Err(error);
                }
                if state.backlog.is_empty() && state.ended {
                    state.fd = None;
                    // A socket's other end sees the end of file; with a pipe it is closing that tells it.
                    let _ = rustix::net::shutdown(fd.get_ref(), rustix::net::Shutdown::Write);
                    return Ok(());
                }
                !state.backlog.is_empty()
            };
            if !waits {
                self.work.notified().await;
                continue;
            }
            let mut guard = fd.writable().await.map_err(errno)?;
            let mut state = self.state();
            let written = guard.try_io(|fd| Ok(rustix::io::write(fd, state.backlog.as_slices().0)?));
            match written {
                Ok(Ok(count)) => {
                    state.backlog.drain(..count);
                    if state.backlog.is_empty() && state.backlog.capacity() > KEPT {
                        state.backlog = VecDeque::new();
                    }
                }
                Ok(Err(error)) => state.fail(errno(error)),
                Err(_) => continue,
            }
            self.room.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Writes what the fd takes at once, keeps what there is room for, and returns the rest.
    fn write_or_keep<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        if let Some(fd) = self.fd.clone() {
            while self.failed.is_none() && self.backlog.is_empty() && !bytes.is_empty() {
                match fd.try_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)) {
                    Ok(count) => bytes = &bytes[count..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => self.fail(errno(error)),
                }
            }
        }
        if self.failed.is_some() || self.ended {
            return &[];
        }
        let (keep, rest) = bytes.split_at(bytes.len().min(BACKLOG.saturating_sub(self.backlog.len())));
        self.backlog.extend(keep);
        rest
    }

    fn fail(&mut self, error: Errno) {
        self.failed = Some(error);
        self.backlog = VecDeque::new();
    }
}

/// Copies what an fd gives to a channel until its end; the channel stays open. `ended` says whether the process has ended:
/// then an fd that others hold open is given up when it falls silent.
pub(super) async fn pump(fd: Arc<AsyncFd<OwnedFd>>, channel: &Channel, mut ended: Option<watch::Receiver<bool>>) -> io::Result<()> {
    let mut silence = async || {
        let ended = match &mut ended {
            Some(ended) => ended.wait_for(|ended| *ended).await.is_ok(),
            None => false,
        };
        match ended {
            true => sleep(DRAIN).await,
            false => std::future::pending().await,
        }
    };
    loop {
        let mut ready = tokio::select! {
            biased;
            ready = fd.readable() => ready?,
            () = silence() => return Ok(()),
        };
        // The buffer lives while there is something to read: a connection that is idle holds none.
        let mut chunk = Chunk::new(PIECE);
        loop {
            chunk.clear();
            chunk.buffer().reserve(PIECE);
            match ready.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), spare_capacity(chunk.buffer()))?)) {
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => channel.write(&mut chunk).await?,
                // A terminal whose last user has left.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
    }
}

/// The system's error number in an error of tokio or rustix.
pub(super) fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
