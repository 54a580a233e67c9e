//! System calls that rustix does not have, or has only as unsafe functions. All unsafe code of the monitor.
#![allow(unsafe_code)]

use rustix::io::{Errno, Result};
use rustix::process::Pid;
use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

/// A copy of this process: its number, or None in the copy.
pub(crate) fn fork() -> Result<Option<Pid>> {
    // SAFETY: the monitor has one thread, so the copy may do whatever the original could.
    Ok(Pid::from_raw(check(unsafe { libc::fork() })?))
}

/// Leaves namespaces of the caller for new ones.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> Result<()> {
    // SAFETY: only CLONE_FILES could take descriptors from their owners, and only namespaces are ever asked for.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Ends the process at once, without what the original has registered for its end.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: it does not return, and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Blocks SIGCHLD and opens it as a descriptor.
pub(crate) fn child_signals() -> Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is a valid value, which sigemptyset sets up; both calls only read it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Lets `command` begin with no signal blocked: std hands on our own mask, and a shell that waits would never see
/// SIGCHLD.
pub(crate) fn with_empty_mask(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and execve only functions that are safe there are called, on a set of the child's own.
    unsafe {
        command.pre_exec(|| {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            match libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// Default actions and an empty mask for all signals, but SIGCHLD ignored: the kernel then reaps children itself.
pub(crate) fn reap_by_kernel() {
    // SAFETY: no handler is installed, and an empty set is a valid one.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, if signal == libc::SIGCHLD { libc::SIG_IGN } else { libc::SIG_DFL });
        }
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Sleeps until a signal's handler has run, which for a process without handlers is never.
pub(crate) fn pause() {
    // SAFETY: no memory is touched.
    unsafe { libc::pause() };
}

/// Closes all descriptors from `first` on. Nobody may own one of them.
pub(crate) fn close_from(first: RawFd) {
    // SAFETY: called where no OwnedFd of such a number exists: at the start, and in the pod's init.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
}

/// Takes over a descriptor by its number; None if none is open there. The caller is its only owner.
pub(crate) fn adopt_fd(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl only asks; the number is one that a predecessor in this process (before execve) or the parent
    // handed over for this, so nobody else owns it.
    unsafe { (libc::fcntl(number, libc::F_GETFD) >= 0).then(|| OwnedFd::from_raw_fd(number)) }
}

/// Executes the program behind a descriptor with an empty environment; returns only with an error.
pub(crate) fn execute(program: BorrowedFd<'_>, arguments: [&CStr; 2]) -> Errno {
    let argv = [arguments[0].as_ptr(), arguments[1].as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both arrays end with a null pointer and live until the call returns.
    unsafe { libc::syscall(libc::SYS_execveat, program.as_raw_fd(), c"".as_ptr(), argv.as_ptr(), envp.as_ptr(), libc::AT_EMPTY_PATH) };
    last_error()
}

/// Makes a detached mount read-only.
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> Result<()> {
    // struct mount_attr: attr_set (MOUNT_ATTR_RDONLY), attr_clr, propagation, userns_fd.
    let attributes: [u64; 4] = [1, 0, 0, 0];
    let size = std::mem::size_of_val(&attributes);
    // SAFETY: the kernel reads `size` bytes of `attributes`.
    let done =
        unsafe { libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, attributes.as_ptr(), size) };
    if done < 0 { Err(last_error()) } else { Ok(()) }
}

/// The wait status of a process that has been reaped by somebody, from a pidfd opened before that (Linux 6.15).
pub(crate) fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    /// struct pidfd_info in its first version.
    #[repr(C)]
    #[derive(Default)]
    struct PidfdInfo {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const PIDFD_GET_INFO: u64 = (3 << 30) | ((std::mem::size_of::<PidfdInfo>() as u64) << 16) | (0xff << 8) | 11;
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request says the size of what `info` points to, and the kernel writes no more than that.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &mut info) };
    (done == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
}
