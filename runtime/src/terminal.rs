//! Terminals: the container's pty, the console socket that gets its master, the caller's own tty.
//!
//! In init: [`open_pty`] on the container's own ptmx, send or hand over the master, [`attach`].
//! In the runtime: [`check`], [`connect`] before anything is made, [`RawMode`] while attached.

use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc::{O_DIRECTORY, O_NOCTTY, O_PATH, O_RDWR};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown};
use std::ffi::CString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Checks that `process.terminal`, `--console-socket` and detaching (`create`, `--detach`) go
/// together. The texts are runc's: callers look for them.
pub fn check(terminal: bool, detach: bool, console_socket: bool) -> Result<()> {
    if detach && terminal && !console_socket {
        bail!("cannot allocate tty if runc will detach without setting console socket");
    }
    if console_socket && !(detach && terminal) {
        bail!("cannot use console socket if runc will not detach or allocate tty");
    }
    Ok(())
}

/// Connects to a socket of the caller (`AF_UNIX`, stream).
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let what = || format!("socket {}", path.display());
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).with_context(what)?;
    let connected = match UnixAddr::new(path) {
        Err(Errno::ENAMETOOLONG) => connect_long(&socket, path),
        address => address.and_then(|a| nix::sys::socket::connect(socket.as_raw_fd(), &a)),
    };
    match connected {
        Ok(()) => Ok(socket),
        Err(Errno::ECONNREFUSED) => {
            let is_socket = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket());
            bail!("{}: {}", what(), if is_socket { "nobody listens on it" } else { "not a socket" })
        }
        Err(Errno::EPROTOTYPE) => bail!("{}: not a stream socket", what()),
        Err(e) => Err(e).with_context(what),
    }
}

/// An address holds 107 bytes: reach a longer path's last component through its opened folder.
fn connect_long(socket: &OwnedFd, path: &Path) -> nix::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::ENAMETOOLONG) };
    let parent = CString::new(parent.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let folder = sys::openat(sys::CWD, &parent, O_PATH | O_DIRECTORY, 0)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(&short)?)
}

/// Sends a descriptor with `name` as the message's bytes, as runc sends a pty's master
/// (`/dev/ptmx`) and a pidfd.
pub fn send_fd(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    let fds = [fd.as_raw_fd()];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(name.as_bytes())],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    sent.with_context(|| format!("send the descriptor of {name}"))?;
    Ok(())
}

/// Sends the master of a container's pty to the console socket.
pub fn send_master(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> Result<()> {
    send_fd(socket, master, "/dev/ptmx").context("console socket")
}

/// Both ends of a pty.
#[derive(Debug)]
pub struct Pty {
    /// The end that the caller, or the runtime, reads and writes.
    pub master: OwnedFd,
    /// The container's `/dev/console` and standard streams.
    pub slave: OwnedFd,
}

/// Makes a pty of the container's own `/dev/pts/ptmx`, opened. The slave is opened through the
/// master (Linux 4.13), never by a path, which the container could have changed (CVE-2025-52565).
pub fn open_pty(ptmx: OwnedFd) -> Result<Pty> {
    sys::unlock_pty(ptmx.as_fd()).context("unlock the pty (TIOCSPTLCK); is /dev/pts/ptmx of a devpts mount?")?;
    let slave = sys::pty_peer(ptmx.as_fd()).context("open the pty's other end (TIOCGPTPEER)")?;
    Ok(Pty { master: ptmx, slave })
}

/// Sets a terminal's size (`process.consoleSize`: height and width in characters).
pub fn set_size(tty: BorrowedFd<'_>, height: u64, width: u64) -> Result<()> {
    let short = |n: u64| u16::try_from(n).with_context(|| format!("process.consoleSize: {n} is more than 65535"));
    sys::set_window_size(tty, short(height)?, short(width)?).context("process.consoleSize: TIOCSWINSZ")
}

/// In init, as the leader of a new session: the slave becomes its controlling terminal and its
/// standard streams.
pub fn attach(slave: OwnedFd) -> Result<()> {
    sys::set_controlling_tty(slave.as_fd()).context("make the pty the controlling terminal (TIOCSCTTY)")?;
    dup2_stdin(&slave).and_then(|()| dup2_stdout(&slave)).and_then(|()| dup2_stderr(&slave)).context("dup2 of the pty")
}

/// In init: gives the standard streams to the container's user `uid` (of the current user
/// namespace), so that `/dev/stdout` and the like can be opened again by name. Devices stay as they
/// are (`/dev/null`, the caller's own terminal), unless they are the container's `terminal`; so
/// does what may not be changed.
pub fn own_stdio(uid: u32, terminal: bool) -> Result<()> {
    for fd in [sys::STDIN, sys::STDOUT, sys::STDERR] {
        let Ok(stat) = fstat(fd) else { continue };
        let is_device = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
        if stat.st_uid == uid || is_device && !terminal {
            continue;
        }
        match fchown(fd, Some(Uid::from_raw(uid)), None) {
            // Not mapped, not ours, or on a read-only mount: the stream works without it.
            Ok(()) | Err(Errno::EINVAL | Errno::EPERM | Errno::EROFS | Errno::ENOSYS) => (),
            Err(e) => return Err(e).with_context(|| format!("process.user: give descriptor {} to user {uid}", fd.as_raw_fd())),
        }
    }
    Ok(())
}

/// Opens `/dev/null` on the standard descriptors that are closed, so that no file opened later
/// becomes somebody's standard output. One call where all are open.
pub fn hold_stdio() -> Result<()> {
    let mut standard = [sys::STDIN, sys::STDOUT, sys::STDERR].map(|fd| PollFd::new(fd, PollFlags::empty()));
    poll(&mut standard, PollTimeout::ZERO).context("poll the standard streams")?;
    for stream in standard {
        if stream.revents().is_some_and(|r| r.contains(PollFlags::POLLNVAL)) {
            // The lowest free number is the one that is missing: they are visited in order.
            let null = sys::openat(sys::CWD, c"/dev/null", O_RDWR | O_NOCTTY, 0).context("/dev/null")?;
            sys::set_cloexec(null.as_raw_fd(), false).context("/dev/null")?;
            let _ = null.into_raw_fd();
        }
    }
    Ok(())
}

/// Lets a pty pass line ends as they are written, for an output that is no terminal.
pub fn plain_line_ends(pty: BorrowedFd<'_>) {
    if let Ok(mut state) = tcgetattr(pty) {
        state.output_flags.remove(OutputFlags::ONLCR);
        let _ = tcsetattr(pty, SetArg::TCSANOW, &state);
    }
}

/// The caller's terminal in raw mode, until it is dropped. Nothing may end the process but a
/// return from main while this lives: signals are the supervisor's (SIGKILL is beyond help).
#[derive(Debug)]
pub struct RawMode {
    tty: BorrowedFd<'static>,
    before: Termios,
}

impl RawMode {
    /// Raw mode for `tty`; `None` where it is no terminal.
    pub fn enter(tty: BorrowedFd<'static>) -> Result<Option<RawMode>> {
        let Ok(before) = tcgetattr(tty) else { return Ok(None) };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(tty, SetArg::TCSANOW, &raw).context("set the terminal to raw mode")?;
        Ok(Some(RawMode { tty, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // In the background SIGTTOU would stop us right here; blocked, it lets the change through.
        let mut ttou = SigSet::empty();
        ttou.add(Signal::SIGTTOU);
        let mask = ttou.thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let _ = tcsetattr(self.tty, SetArg::TCSANOW, &self.before);
        if let Ok(mask) = mask {
            let _ = mask.thread_set_mask();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::os::unix::net::UnixListener;

    fn folder(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("rrun-terminal-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn ptmx() -> OwnedFd {
        sys::openat(sys::CWD, c"/dev/ptmx", O_RDWR | O_NOCTTY, 0).unwrap()
    }

    #[test]
    fn a_console_socket_may_have_a_long_path() {
        let dir = folder("long");
        let deep = dir.join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        std::os::unix::fs::symlink(&deep, dir.join("s")).unwrap();
        let listener = UnixListener::bind(dir.join("s/console.sock")).unwrap();
        connect(&deep.join("console.sock")).unwrap();
        connect(&dir.join("s/console.sock")).unwrap();
        drop(listener);
        std::fs::write(dir.join("file"), "").unwrap();
        let says = |name: &str, words: &str| {
            let error = format!("{:#}", connect(&dir.join(name)).unwrap_err());
            assert!(error.starts_with("socket ") && error.contains(words), "{error}");
        };
        says("s/console.sock", "nobody listens");
        says("file", "not a socket");
        says("missing", "No such file");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_master_arrives_with_its_name() {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let pty = open_pty(ptmx()).unwrap();
        set_size(pty.slave.as_fd(), 33, 77).unwrap();
        assert!(set_size(pty.slave.as_fd(), 70000, 1).is_err());
        send_master(here.as_fd(), pty.master.as_fd()).unwrap();
        let mut name = [0; 64];
        let mut iov = [std::io::IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let message = recvmsg::<()>(there.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else { panic!("no descriptor") };
        let bytes = message.bytes;
        let master = sys::inherited_fd(fds[0]).unwrap();
        assert_eq!(sys::window_size(master.as_fd()).unwrap(), (33, 77));
        assert_eq!(&name[..bytes], b"/dev/ptmx");
    }

    #[test]
    fn raw_mode_ends_with_its_value() {
        let pty = open_pty(ptmx()).unwrap();
        let tty: &'static OwnedFd = Box::leak(Box::new(pty.slave));
        let before = tcgetattr(tty).unwrap();
        let raw = RawMode::enter(tty.as_fd()).unwrap().unwrap();
        assert_ne!(tcgetattr(tty).unwrap(), before);
        drop(raw);
        assert_eq!(tcgetattr(tty).unwrap(), before);
        let null: &'static std::fs::File = Box::leak(Box::new(std::fs::File::open("/dev/null").unwrap()));
        assert!(RawMode::enter(null.as_fd()).unwrap().is_none());
    }

    #[test]
    fn detaching_with_a_terminal_needs_a_socket() {
        assert!(check(true, true, true).is_ok() && check(true, false, false).is_ok() && check(false, true, false).is_ok());
        let text = |t, d, s| check(t, d, s).unwrap_err().to_string();
        assert_eq!(text(true, true, false), "cannot allocate tty if runc will detach without setting console socket");
        assert_eq!(text(false, true, true), "cannot use console socket if runc will not detach or allocate tty");
        assert_eq!(text(true, false, true), "cannot use console socket if runc will not detach or allocate tty");
    }
}
