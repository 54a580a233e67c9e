//! The raw system call: the probe's only `unsafe`, and the only thing it takes from the C library.
#![allow(unsafe_code)]

use std::ffi::{CString, c_long};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

/// Numbers of the calls that std has no function for.
#[cfg(target_arch = "x86_64")]
pub(crate) mod nr {
    pub(crate) const IOCTL: i64 = 16;
    pub(crate) const KILL: i64 = 62;
    pub(crate) const FLOCK: i64 = 73;
    pub(crate) const UMASK: i64 = 95;
    pub(crate) const RT_SIGPROCMASK: i64 = 14;
    pub(crate) const GETPRIORITY: i64 = 140;
    pub(crate) const SCHED_GETSCHEDULER: i64 = 145;
    pub(crate) const SCHED_GETAFFINITY: i64 = 204;
    pub(crate) const MOUNT: i64 = 165;
    pub(crate) const UMOUNT2: i64 = 166;
    pub(crate) const SETHOSTNAME: i64 = 170;
    pub(crate) const KEYCTL: i64 = 250;
    pub(crate) const IOPRIO_GET: i64 = 252;
    pub(crate) const MKNODAT: i64 = 259;
    pub(crate) const UNSHARE: i64 = 272;
    pub(crate) const SIGNALFD4: i64 = 289;
}

/// Numbers of the calls that std has no function for.
#[cfg(target_arch = "aarch64")]
pub(crate) mod nr {
    pub(crate) const IOCTL: i64 = 29;
    pub(crate) const FLOCK: i64 = 32;
    pub(crate) const KILL: i64 = 129;
    pub(crate) const UMASK: i64 = 166;
    pub(crate) const RT_SIGPROCMASK: i64 = 135;
    pub(crate) const GETPRIORITY: i64 = 141;
    pub(crate) const SCHED_GETSCHEDULER: i64 = 120;
    pub(crate) const SCHED_GETAFFINITY: i64 = 123;
    pub(crate) const MOUNT: i64 = 40;
    pub(crate) const UMOUNT2: i64 = 39;
    pub(crate) const SETHOSTNAME: i64 = 161;
    pub(crate) const KEYCTL: i64 = 219;
    pub(crate) const IOPRIO_GET: i64 = 31;
    pub(crate) const MKNODAT: i64 = 33;
    pub(crate) const UNSHARE: i64 = 97;
    pub(crate) const SIGNALFD4: i64 = 74;
}

/// The call `number` with up to six arguments: what it returned, or its errno.
pub(crate) fn call(number: i64, args: &[usize]) -> Result<i64, i32> {
    let mut a = [0usize; 6];
    a[..args.len()].copy_from_slice(args);
    // SAFETY: the probe is a test program; whoever names a call with pointers passes memory that
    // lives until it returns.
    let ret = unsafe { syscall(number as c_long, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if ret < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(ret as i64) }
}

/// `text` with the zero byte that the kernel wants; empty when it holds one itself.
pub(crate) fn c(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

/// The address of a C string, for [`call`].
pub(crate) fn at(text: &CString) -> usize {
    text.as_ptr() as usize
}

/// Takes over a descriptor that the kernel has just returned.
pub(crate) fn own(fd: i64) -> std::os::fd::OwnedFd {
    // SAFETY: the caller got it from a system call and keeps no copy.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(fd as i32) }
}
