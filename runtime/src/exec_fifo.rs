//! The gate between `create` and `start`: a fifo in the container's folder.
//!
//! ```text
//! create   make the fifo, open it with O_PATH, hand that descriptor to init
//! init     open it for writing through /proc/self/fd: blocks until start opens the reading end
//! start    open it for reading, remove its name, wait
//! init     execve: the close-on-exec write end closes, start sees the hang-up: success
//!          execve fails: init writes one line, start reads it: start's own error
//! ```

use crate::sys;
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY, O_WRONLY, PIPE_BUF};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::mkfifo;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Name of the fifo in the container's folder.
pub const NAME: &str = "exec.fifo";

/// Makes `exec.fifo` in the container's folder `dir`; an `O_PATH` descriptor of it, for [`wait`].
///
/// Everyone may write (0622): init opens it as the container's user, who may be anybody.
pub fn create(dir: &Path) -> Result<OwnedFd> {
    let path = dir.join(NAME);
    let mode = Mode::from_bits_truncate(0o622);
    mkfifo(&path, mode).with_context(|| format!("mkfifo {}", path.display()))?;
    let opened = fchmodat(sys::CWD, &path, mode, FchmodatFlags::FollowSymlink)
        .and_then(|()| sys::openat(sys::CWD, &c_path(&path)?, O_PATH | O_NOFOLLOW, 0))
        .with_context(|| format!("open {}", path.display()));
    if opened.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    opened
}

/// In init, when all is done: waits until `start` lets it go. `fifo` is what [`create`] gave,
/// `procfs` a mount of proc that is known to be one (`self/fd/N` is looked up in it).
///
/// The answer is the write end. It must stay open and close-on-exec: closing it tells `start` that
/// the container's process runs. If that comes to nothing, [`fail`] tells why.
pub fn wait(procfs: BorrowedFd<'_>, fifo: BorrowedFd<'_>) -> Result<OwnedFd> {
    // A magic link, followed on purpose: it is our own descriptor, in a proc that is genuine.
    let path = CString::new(format!("self/fd/{}", fifo.as_raw_fd()))?;
    sys::openat(procfs, &path, O_WRONLY, 0).with_context(|| format!("open {NAME} for writing"))
}

/// In init, when its last steps failed: the line that becomes `start`'s error.
pub fn fail(write_end: BorrowedFd<'_>, error: &anyhow::Error) {
    let line = crate::log::message(error).replace('\n', " ");
    // One write of at most PIPE_BUF bytes is read whole. Nobody to read it is nobody to tell.
    let _ = sys::write(write_end, &line.as_bytes()[..line.len().min(PIPE_BUF)]);
}

/// `start`: lets init go and waits until it runs the container's process, or says why it does not.
///
/// `fifo` is the fifo's path, `init` a pidfd of init. Before Linux 5.3 there are none: then
/// `alive`, asked every 10 ms, tells whether init is there.
pub fn release(fifo: &Path, init: Option<BorrowedFd<'_>>, alive: impl Fn() -> bool) -> Result<()> {
    const TAKEN: &str = "cannot start an already running container";
    // Opened before it is removed: of two callers the one that removes the name has started it.
    let reader = match sys::openat(sys::CWD, &c_path(fifo)?, O_RDONLY | O_NONBLOCK | O_NOFOLLOW, 0) {
        Err(Errno::ENOENT) => bail!(TAKEN),
        other => other.with_context(|| format!("open {}", fifo.display()))?,
    };
    match std::fs::remove_file(fifo) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!(TAKEN),
        other => other.with_context(|| format!("remove {}", fifo.display()))?,
    }
    let timeout = if init.is_some() { PollTimeout::NONE } else { PollTimeout::from(10u8) };
    loop {
        let (written, gone) = watch(reader.as_fd(), init, timeout)?;
        if written {
            return outcome(reader.as_fd());
        }
        if gone || init.is_none() && !alive() {
            // What init did before it died may have come after the fifo was looked at.
            if watch(reader.as_fd(), None, PollTimeout::ZERO)?.0 {
                return outcome(reader.as_fd());
            }
            bail!("container init died before it was started");
        }
    }
}

/// Polls both: whether the fifo has a line or a hang-up, and whether init is gone.
fn watch(reader: BorrowedFd<'_>, init: Option<BorrowedFd<'_>>, timeout: PollTimeout) -> Result<(bool, bool)> {
    let mut polled = [PollFd::new(reader, PollFlags::POLLIN), PollFd::new(init.unwrap_or(reader), PollFlags::POLLIN)];
    let count = 1 + usize::from(init.is_some());
    match poll(&mut polled[..count], timeout) {
        Ok(_) | Err(Errno::EINTR) => (),
        Err(e) => return Err(e).context("poll"),
    }
    let happened = |p: &PollFd<'_>| p.any().unwrap_or(false);
    Ok((happened(&polled[0]), count == 2 && happened(&polled[1])))
}

/// The writer has hung up, or has written why it failed.
fn outcome(reader: BorrowedFd<'_>) -> Result<()> {
    let mut line = [0; PIPE_BUF];
    match nix::unistd::read(reader, &mut line).context("read exec.fifo")? {
        0 => Ok(()),
        n => Err(anyhow!("{}", String::from_utf8_lossy(&line[..n]))),
    }
}

fn c_path(path: &Path) -> sys::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    struct Gate {
        dir: std::path::PathBuf,
        fifo: OwnedFd,
    }

    impl Gate {
        fn new(name: &str) -> Gate {
            let dir = std::env::temp_dir().join(format!("rrun-fifo-{name}-{}", std::process::id()));
            std::fs::create_dir(&dir).unwrap();
            let fifo = create(&dir).unwrap();
            Gate { dir, fifo }
        }

        /// `start`, while a thread of ours is the init that waits and then does `then`.
        fn start(&self, then: fn(OwnedFd)) -> Result<()> {
            let procfs = sys::openat(sys::CWD, c"/proc", O_PATH, 0).unwrap();
            let this = sys::pidfd_open(std::process::id() as i32).unwrap();
            std::thread::scope(|s| {
                s.spawn(|| then(wait(procfs.as_fd(), self.fifo.as_fd()).unwrap()));
                release(&self.dir.join(NAME), Some(this.as_fd()), || true)
            })
        }
    }

    impl Drop for Gate {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn hang_up_is_success_and_the_second_start_loses() {
        let gate = Gate::new("ok");
        gate.start(drop).unwrap();
        let again = release(&gate.dir.join(NAME), None, || true).unwrap_err();
        assert_eq!(again.to_string(), "cannot start an already running container");
    }

    #[test]
    fn a_failure_becomes_the_error_of_start() {
        let gate = Gate::new("fail");
        let error = gate.start(|end| fail(end.as_fd(), &anyhow!("no such file\nor directory").context("exec /x"))).unwrap_err();
        assert_eq!(error.to_string(), "exec /x: no such file or directory");
    }

    #[test]
    fn init_that_died_does_not_hang_start() {
        let gate = Gate::new("dead");
        let mut child = Command::new("true").spawn().unwrap();
        let pidfd = sys::pidfd_open(child.id() as i32).unwrap();
        let error = release(&gate.dir.join(NAME), Some(pidfd.as_fd()), || true).unwrap_err();
        assert!(error.to_string().contains("died before"), "{error}");
        child.wait().unwrap();
    }

    #[test]
    fn without_pidfds_life_is_asked_for() {
        let gate = Gate::new("old");
        let error = release(&gate.dir.join(NAME), None, || false).unwrap_err();
        assert!(error.to_string().contains("died before"), "{error}");
    }
}
