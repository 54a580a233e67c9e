//! System calls that rustix does not have, or has only as unsafe functions. All unsafe code of the monitor.
#![allow(unsafe_code)]

use rustix::io::{Errno, Result};
use rustix::process::Pid;
use std::ffi::{CStr, CString};
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

/// Starts a program as the leader of a process group, with this process's environment and no signal blocked or ignored: its
/// process. std's Command would hand on our own mask, with which a shell that waits never sees SIGCHLD, or copy our memory
/// to change it. `streams` are its standard ones, /dev/null where there is none.
pub(crate) fn spawn(program: &CStr, arguments: &[CString], streams: [Option<BorrowedFd<'_>>; 3]) -> std::io::Result<u32> {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    let argv: Vec<*mut libc::c_char> = arguments.iter().map(|a| a.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
    let done = |error: libc::c_int| if error == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(error)) };
    let mut pid = 0;
    // SAFETY: both objects are set up by their init functions before anything else sees them, and destroyed once; all
    // strings and arrays live until the call returns and end with a null; no other thread changes the environment.
    unsafe {
        let (mut actions, mut attributes) = (std::mem::zeroed(), std::mem::zeroed());
        done(libc::posix_spawn_file_actions_init(&mut actions))?;
        libc::posix_spawnattr_init(&mut attributes);
        let mut prepared = Ok(());
        for (number, stream) in (0..).zip(streams) {
            prepared = prepared.and(done(match stream {
                Some(fd) => libc::posix_spawn_file_actions_adddup2(&mut actions, fd.as_raw_fd(), number),
                None => libc::posix_spawn_file_actions_addopen(&mut actions, number, c"/dev/null".as_ptr(), libc::O_RDWR, 0),
            }));
        }
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::posix_spawnattr_setsigmask(&mut attributes, &set);
        // All: of those that are left out the C library asks one by one what they do.
        libc::sigfillset(&mut set);
        libc::posix_spawnattr_setsigdefault(&mut attributes, &set);
        libc::posix_spawnattr_setpgroup(&mut attributes, 0);
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETPGROUP;
        libc::posix_spawnattr_setflags(&mut attributes, flags as libc::c_short);
        let spawned =
            prepared.and_then(|()| done(libc::posix_spawn(&mut pid, program.as_ptr(), &actions, &attributes, argv.as_ptr(), environ)));
        libc::posix_spawnattr_destroy(&mut attributes);
        libc::posix_spawn_file_actions_destroy(&mut actions);
        spawned.map(|()| pid as u32)
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
