//! System calls that rustix lacks; the only `unsafe` code of this program.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Makes a detached mount map ids by a user namespace (mount_setattr(2), `MOUNT_ATTR_IDMAP`; Linux 5.12, overlay
/// layers 5.19).
pub(crate) fn map_ids(mount: BorrowedFd<'_>, user: BorrowedFd<'_>) -> Result<(), Errno> {
    set_attributes(mount, libc::MOUNT_ATTR_IDMAP, user.as_raw_fd() as u64, 0)
}

/// Makes a mount and all in it read-only (mount_setattr(2)).
pub(crate) fn set_read_only(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    set_attributes(mount, libc::MOUNT_ATTR_RDONLY, 0, libc::AT_RECURSIVE)
}

fn set_attributes(mount: BorrowedFd<'_>, set: u64, user: u64, flags: i32) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: user };
    // SAFETY: the path is an empty C string, and the kernel only reads `attributes`, whose size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}

/// The signal of that number, real-time ones included: systemd as a container's program stops at SIGRTMIN+3.
pub(crate) fn signal(number: i32) -> Option<rustix::process::Signal> {
    use rustix::process::Signal;
    let real_time = (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number);
    // SAFETY: the number is a signal's, and none that the C library keeps for itself.
    Signal::from_named_raw(number).or_else(|| real_time.then(|| unsafe { Signal::from_raw_unchecked(number) }))
}

/// Lets the program that `command` starts find `fd` as its descriptor 3.
pub(crate) fn pass_as_3(command: &mut tokio::process::Command, fd: std::os::fd::OwnedFd) -> Result<(), Errno> {
    // Not 3 itself: dup2(2) of a descriptor to itself would leave it close-on-exec.
    let fd = rustix::io::fcntl_dupfd_cloexec(fd, 10)?;
    // SAFETY: the closure runs between fork and exec and does nothing but a system call.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd.as_raw_fd(), 3) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    Ok(())
}
