//! Descriptors that arrive as numbers, and calls that nix lacks: the package's only `unsafe` besides the probe's.
#![allow(unsafe_code)]

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Receives one message with the descriptors sent along: its bytes and them.
pub fn receive_fds(stream: &UnixStream) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut bytes = vec![0u8; 4096];
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let (len, raw) = {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        let mut raw = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(fds) = control {
                raw.extend(fds);
            }
        }
        (message.bytes, raw)
    };
    bytes.truncate(len);
    // SAFETY: the kernel has just made these for us, nobody else knows them.
    let fds = raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
    (bytes, fds)
}

/// Sets a terminal's size (`TIOCSWINSZ`), from either side.
pub fn set_window_size(terminal: &impl AsRawFd, rows: u16, columns: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads one winsize, which lives until it returns.
    let ret = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(ret, 0, "TIOCSWINSZ: {}", std::io::Error::last_os_error());
}

/// Takes a read lease on an open file (`F_SETLEASE`, fcntl(2)), until it is closed. `EAGAIN`: it is open for writing somewhere.
pub fn read_lease(file: &impl AsRawFd) -> nix::Result<()> {
    // SAFETY: a descriptor and a number go in, nothing comes back.
    nix::errno::Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) }).map(drop)
}

/// One event of any child or traced process as the kernel words it: its id and the raw status (nix's
/// `waitpid` refuses real-time signals). None: nothing yet, with `WNOHANG`.
pub fn wait_any(flags: i32) -> std::io::Result<Option<(i32, i32)>> {
    let mut status = 0;
    // SAFETY: the kernel writes one int, which lives until the call returns.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, flags | libc::__WALL) };
    if pid < 0 { Err(std::io::Error::last_os_error()) } else { Ok((pid != 0).then_some((pid, status))) }
}

/// Lets a stopped traced process go on to its next system call, with a signal (0: none).
pub fn trace_on(pid: i32, signal: i32) -> std::io::Result<()> {
    // SAFETY: the request takes no pointer.
    let ret = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, signal) };
    if ret < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The number of the system call that a traced process is about to enter; None at its exit.
pub fn entered_call(pid: i32) -> Option<u64> {
    // SAFETY: plain integers: all zero is a value.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the given size into `info`.
    let ret = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size_of_val(&info), &raw mut info) };
    if ret < 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says that `entry` is the member in use.
    Some(unsafe { info.u.entry.nr })
}
