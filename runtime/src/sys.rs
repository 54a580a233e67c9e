//! The system calls that `nix` lacks or would make slower, and the only `unsafe` code of the crate.
//!
//! Every function here is safe to call: it takes borrowed descriptors and checked strings, sets
//! `O_CLOEXEC` itself, retries on `EINTR` where the call may be repeated, and answers with the
//! call's errno. Numbers and layouts are the kernel's user interface (`linux/mount.h`,
//! `linux/sched.h`, `linux/openat2.h`, `linux/seccomp.h`).
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod entry;

use nix::errno::Errno;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_void};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Errno>;

/// Where a path starts that is looked up in the current directory.
pub const CWD: BorrowedFd<'static> = {
    // SAFETY: AT_FDCWD is not a descriptor and is never closed; every *at call accepts it.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
};

/// Descriptor 0.
pub const STDIN: BorrowedFd<'static> = standard(0);
/// Descriptor 1.
pub const STDOUT: BorrowedFd<'static> = standard(1);
/// Descriptor 2.
pub const STDERR: BorrowedFd<'static> = standard(2);

const fn standard(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: 0 to 2 belong to the whole process and are never closed, only replaced; where one
    // was not open from the start, calls on it answer EBADF.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn check(ret: c_long) -> Result<c_long> {
    if ret < 0 { Err(Errno::last()) } else { Ok(ret) }
}

fn check_fd(ret: c_long) -> Result<OwnedFd> {
    let fd = check(ret)? as RawFd;
    // SAFETY: the call has just returned this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn retry<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => (),
            other => return other,
        }
    }
}

// ---- processes ---------------------------------------------------------------------------------

/// What [`clone`] returned, and where.
#[derive(Debug)]
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the caller: the new process's id in the caller's PID namespace, and its pidfd where the
    /// kernel knows them.
    Parent(i32, Option<OwnedFd>),
}

/// `clone3(2)` without shared memory: a fork with `flags` (`CLONE_NEW*`, `CLONE_PARENT`), a pidfd,
/// and on cgroup v2 straight into the cgroup whose folder is `cgroup`. Kernels before 5.3 (no
/// clone3) get `clone(2)`; there `cgroup` must be `None` (`ENOSYS` otherwise).
///
/// The caller must have one thread only: the child may then use everything the parent could.
pub fn clone(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: c_int = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        // CLONE_PARENT forbids an exit signal of its own: the child takes its creator's.
        exit_signal: if flags & libc::CLONE_PARENT as u64 != 0 { 0 } else { libc::SIGCHLD as u64 },
        ..Default::default()
    };
    // The folder's descriptor makes the structure one word longer (kernel 5.7); without it the
    // first version of the structure does.
    let mut size = std::mem::offset_of!(CloneArgs, set_tid);
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
        size = size_of::<CloneArgs>();
    }
    // SAFETY: without CLONE_VM the child has its own copy of this stack and of all memory, as
    // after fork; args and pidfd live until the call returns.
    let ret = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) });
    let ret = match ret {
        Err(Errno::ENOSYS) if cgroup.is_none() => {
            let low = (args.flags | args.exit_signal) as libc::c_ulong;
            // SAFETY: as above; a null stack makes the child use its copy of this one. clone(2)
            // puts the pidfd where parent_tid points. Both architectures we know take the first
            // three arguments in this order.
            check(unsafe { libc::syscall(libc::SYS_clone, low, null_mut::<c_void>(), &raw mut pidfd, 0, 0) })
        }
        other => other,
    }?;
    if ret == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel put a new descriptor there, or left it at -1.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok(Cloned::Parent(ret as i32, pidfd))
}

/// `pidfd_open(2)`; `ENOSYS` before Linux 5.3.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: plain integers.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// `pidfd_send_signal(2)` of signal number `signal` (0 only asks whether the process is there).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: no siginfo is passed.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null::<c_void>(), 0) })?;
    Ok(())
}

/// `pidfd_getfd(2)` (Linux 5.6): a copy of another process's descriptor.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd> {
    // SAFETY: plain integers.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })
}

/// `kill(2)` by number, for real-time signals too, which nix's type leaves out.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::kill(pid, signal) } as c_long)?;
    Ok(())
}

/// `waitpid(2)`: the id and the raw status of a child that ended, `None` with `WNOHANG` where
/// there is none yet. Raw, because nix knows no death by a real-time signal.
pub fn waitpid(pid: i32, flags: c_int) -> Result<Option<(i32, c_int)>> {
    let mut status: c_int = 0;
    // SAFETY: the kernel writes one int.
    let pid = retry(|| check(unsafe { libc::waitpid(pid, &raw mut status, flags) } as c_long))?;
    Ok((pid != 0).then_some((pid as i32, status)))
}

/// `signal(2)` with `SIG_DFL`: undoes what the caller's caller ignored.
pub fn default_action(signal: c_int) -> Result<()> {
    // SAFETY: no handler of ours is installed.
    if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR { Err(Errno::last()) } else { Ok(()) }
}

/// From now on ends the process with 128 + n, the shell's word for it: process 1 of a PID namespace is deaf to
/// a signal whose action is the default one. `execve` puts that back.
pub fn end_at(signal: c_int) -> Result<()> {
    extern "C" fn end(signal: c_int) {
        exit_now(128 + signal)
    }
    let handler: extern "C" fn(c_int) = end;
    // SAFETY: the handler makes one system call and touches nothing.
    if unsafe { libc::signal(signal, handler as libc::sighandler_t) } == libc::SIG_ERR { Err(Errno::last()) } else { Ok(()) }
}

/// Marks every descriptor from `first` to `last` close-on-exec, or closes them all.
pub fn close_range(first: u32, last: u32, cloexec: bool) -> Result<()> {
    let flags = if cloexec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: with CLOEXEC nothing is closed now; without, the caller vows to use none of them
    // again (inherited ones, which nobody here owns).
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last as c_uint, flags) })?;
    Ok(())
}

/// Closes descriptors, neighbours in one call.
pub fn close_all(descriptors: Vec<OwnedFd>) {
    let mut left: Vec<RawFd> = descriptors.into_iter().map(IntoRawFd::into_raw_fd).collect();
    left.sort_unstable();
    for run in left.chunk_by(|a, b| a + 1 == *b) {
        // Of a run that is not empty; nobody else owns any of it.
        let (first, last) = (run[0], run[run.len() - 1]);
        if first == last || close_range(first as u32, last as u32, false).is_err() {
            for &fd in run {
                // SAFETY: taken from its owner above, and still open.
                drop(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
}

/// Descriptors that are done with. Closed together, which takes a fraction of the calls.
#[derive(Debug, Default)]
pub struct Spent(Vec<OwnedFd>);

impl Spent {
    /// Adds one. Not many wait at a time: there is a limit on open ones.
    pub fn add(&mut self, fd: OwnedFd) {
        const MOST: usize = 64;
        self.0.push(fd);
        if self.0.len() == MOST {
            close_all(std::mem::take(&mut self.0));
        }
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        close_all(std::mem::take(&mut self.0));
    }
}

/// `fcntl(F_SETFD)`: whether `fd` survives `execve`.
pub fn set_cloexec(fd: RawFd, cloexec: bool) -> Result<()> {
    let flag = if cloexec { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: changes one flag of a descriptor; EBADF where it is none.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, flag) } as c_long)?;
    Ok(())
}

/// Whether a descriptor of this number came with the caller: those of ours are close-on-exec.
pub fn is_inherited(fd: RawFd) -> bool {
    // SAFETY: asks for a flag only.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) } as c_long) == Ok(0)
}

/// Takes ownership of a descriptor that this process was started with (`--preserve-fds`,
/// `LISTEN_FDS`). `None` where it is not open.
pub fn inherited_fd(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: asks for a flag only.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) } as c_long).ok()?;
    // SAFETY: it is open, and whoever started us left it to us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads a file of the kernel's or of ours, `room` bytes or somewhat more, with as few system calls as
/// there can be: no question for its size before, none for more after a piece that left room.
pub fn read_file(path: &std::path::Path, room: usize) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut file = std::fs::File::open(path)?;
    let mut data = vec![0; room];
    let mut len = 0;
    loop {
        len += file.read(&mut data[len..])?;
        if len < data.len() {
            data.truncate(len);
            return Ok(data);
        }
        data.resize(2 * len, 0);
    }
}

fn pointers(list: &[CString]) -> Vec<*const c_char> {
    list.iter().map(|s| s.as_ptr()).chain([null()]).collect()
}

/// A file that an argument names; `-` is standard input.
pub fn read_input(path: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    let mut data = Vec::new();
    match path == std::path::Path::new("-") {
        true => std::io::Read::read_to_end(&mut std::io::stdin(), &mut data)?,
        false => std::io::Read::read_to_end(&mut std::fs::File::open(path)?, &mut data)?,
    };
    Ok(data)
}

/// `execve(2)` with strings prepared before; returns only on failure. Not `execveat`: a seccomp
/// profile may allow the one and not the other.
pub fn execve(path: &CStr, argv: &[CString], envp: &[CString]) -> Errno {
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: both arrays end in a null pointer and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::last()
}

/// `execveat(2)`; with an empty `path` and `AT_EMPTY_PATH` the descriptor itself is executed.
pub fn execveat(dir: BorrowedFd<'_>, path: &CStr, argv: &[CString], envp: &[CString], flags: c_int) -> Errno {
    let (argv, envp) = (pointers(argv), pointers(envp));
    // SAFETY: both arrays end in a null pointer and their strings outlive the call.
    unsafe { libc::syscall(libc::SYS_execveat, dir.as_raw_fd(), path.as_ptr(), argv.as_ptr(), envp.as_ptr(), flags) };
    Errno::last()
}

/// Whether this program was executed by descriptor (`AT_EXECFN` of the auxiliary vector).
pub fn executed_by_descriptor() -> bool {
    // SAFETY: the kernel's pointer to a string that ends in a null byte, or 0.
    let name = unsafe { libc::getauxval(libc::AT_EXECFN) as *const c_char };
    // SAFETY: as above.
    !name.is_null() && unsafe { CStr::from_ptr(name) }.to_bytes().starts_with(b"/dev/fd/")
}

/// Ends this process at once, without running destructors or flushing anything.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// The effective user id that the program was started with, which the kernel has left in its memory.
pub fn started_as() -> u32 {
    // SAFETY: reads a table of the process's own.
    unsafe { libc::getauxval(libc::AT_EUID) as u32 }
}

/// `prctl(2)` with plain integer arguments.
pub fn prctl(option: c_int, arg2: u64, arg3: u64) -> Result<c_long> {
    // SAFETY: the options used here (PDEATHSIG, DUMPABLE, KEEPCAPS, NO_NEW_PRIVS, CAPBSET_*,
    // CAP_AMBIENT, CHILD_SUBREAPER, SECUREBITS) take integers, never pointers.
    check(unsafe { libc::prctl(option, arg2, arg3, 0, 0) } as c_long)
}

/// `prctl(PR_SET_NAME)`: the name in `/proc/self/comm`, of which the kernel keeps 15 bytes.
pub fn set_name(name: &CStr) -> Result<()> {
    // SAFETY: the kernel reads up to 16 bytes, or to the null byte.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) } as c_long)?;
    Ok(())
}

/// The three capability sets of the calling process, one bit per capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSets {
    /// What the kernel checks against.
    pub effective: u64,
    /// What may become effective.
    pub permitted: u64,
    /// What survives `execve` of a file that inherits.
    pub inheritable: u64,
}

/// `capset(2)`.
pub fn capset(sets: CapSets) -> Result<()> {
    let header = [0x2008_0522u32, 0];
    let half = |shift: u32| [(sets.effective >> shift) as u32, (sets.permitted >> shift) as u32, (sets.inheritable >> shift) as u32];
    let data = [half(0), half(32)];
    // SAFETY: header is version 3 and this process; data is its two triples.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) })?;
    Ok(())
}

/// `capget(2)` of the calling process.
pub fn capget() -> Result<CapSets> {
    let header = [0x2008_0522u32, 0];
    let mut data = [[0u32; 3]; 2];
    // SAFETY: header is version 3 and this process; the kernel writes two triples.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    let set = |i: usize| u64::from(data[0][i]) | u64::from(data[1][i]) << 32;
    Ok(CapSets { effective: set(0), permitted: set(1), inheritable: set(2) })
}

/// `setgroups(2)`, `setresgid(2)`, `setresuid(2)` by their raw numbers: glibc's wrappers would
/// signal threads that do not exist.
pub fn setgroups(groups: &[u32]) -> Result<()> {
    // SAFETY: the pointer covers `len` group ids.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// See [`setgroups`]: all three group ids of the calling thread.
pub fn setresgid(gid: u32) -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    Ok(())
}

/// See [`setgroups`]: all three user ids of the calling thread.
pub fn setresuid(uid: u32) -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// `keyctl(KEYCTL_JOIN_SESSION_KEYRING)`: a new session keyring of that name; its serial number.
pub fn join_session_keyring(name: &CStr) -> Result<i32> {
    // SAFETY: name ends in a null byte.
    Ok(check(unsafe { libc::syscall(libc::SYS_keyctl, 1, name.as_ptr(), 0, 0, 0) })? as i32)
}

/// Adds `bits` to a key's permissions (`KEYCTL_DESCRIBE`, `KEYCTL_SETPERM`).
pub fn add_key_permissions(key: i32, bits: u32) -> Result<()> {
    let mut text = [0u8; 512];
    // SAFETY: the kernel writes at most the length given.
    let n = check(unsafe { libc::syscall(libc::SYS_keyctl, 6, key, text.as_mut_ptr(), text.len(), 0) })? as usize;
    // "type;uid;gid;perm;description"
    let perm = std::str::from_utf8(&text[..n.min(text.len())])
        .ok()
        .and_then(|t| t.split(';').nth(3))
        .and_then(|p| u32::from_str_radix(p, 16).ok())
        .ok_or(Errno::EINVAL)?;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_keyctl, 5, key, perm | bits, 0, 0) })?;
    Ok(())
}

/// `seccomp(SECCOMP_SET_MODE_FILTER)`. With `SECCOMP_FILTER_FLAG_NEW_LISTENER` in `flags` the
/// answer is the notification descriptor.
pub fn seccomp_load(program: &[libc::sock_filter], flags: u32) -> Result<Option<OwnedFd>> {
    let fprog = libc::sock_fprog { len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?, filter: program.as_ptr().cast_mut() };
    const SET_MODE_FILTER: c_int = 1;
    // SAFETY: fprog describes a slice that outlives the call; the kernel only reads it.
    let ret = check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const fprog) })?;
    // SAFETY: with NEW_LISTENER the kernel returns a new descriptor.
    Ok((flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 != 0).then(|| unsafe { OwnedFd::from_raw_fd(ret as RawFd) }))
}

/// libseccomp's token of the architecture it was built for.
pub fn seccomp_native_arch() -> u32 {
    // SAFETY: takes nothing and reads a constant.
    unsafe { libseccomp_sys::seccomp_arch_native() }
}

/// The number of a system call in libseccomp's tables: negative for one that the architecture with
/// this token lacks or multiplexes, `None` for an unknown name or architecture.
pub fn seccomp_resolve(arch: u32, name: &CStr) -> Option<i32> {
    // SAFETY: libseccomp reads the string and its own tables, nothing else.
    let number = unsafe { libseccomp_sys::seccomp_syscall_resolve_name_arch(arch, name.as_ptr()) };
    (number != libseccomp_sys::__NR_SCMP_ERROR).then_some(number)
}

/// Whether the kernel knows a `SECCOMP_FILTER_FLAG_*`: with it, the missing filter is the first mistake.
pub fn seccomp_flag_available(flag: u32) -> bool {
    // SAFETY: the kernel refuses the null pointer; no filter is loaded.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flag, null::<c_void>()) };
    Errno::last() == Errno::EFAULT
}

/// `prlimit(2)`: sets a resource limit of process `pid` (0 is the caller), for every resource number
/// the kernel knows.
pub fn prlimit(pid: i32, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = [soft, hard];
    // SAFETY: rlimit64 is two u64.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, limit.as_ptr(), null_mut::<c_void>()) })?;
    Ok(())
}

/// `getrlimit` through `prlimit(2)`: soft and hard limit.
pub fn getrlimit(resource: u32) -> Result<(u64, u64)> {
    let mut limit = [0u64; 2];
    // SAFETY: rlimit64 is two u64; pid 0 is the caller.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, null::<c_void>(), limit.as_mut_ptr()) })?;
    Ok((limit[0], limit[1]))
}

/// `personality(2)`.
pub fn personality(persona: u64) -> Result<()> {
    // SAFETY: a plain integer.
    check(unsafe { libc::syscall(libc::SYS_personality, persona) })?;
    Ok(())
}

/// `setdomainname(2)`: the NIS domain name of the UTS namespace.
pub fn setdomainname(name: &CStr) -> Result<()> {
    // SAFETY: the pointer covers the length given.
    check(unsafe { libc::setdomainname(name.as_ptr(), name.to_bytes().len()) } as c_long)?;
    Ok(())
}

/// The argument of `sched_setattr(2)`, without its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value of the ordinary policies.
    pub nice: i32,
    /// Static priority of the real-time policies.
    pub priority: u32,
    /// `SCHED_DEADLINE`: nanoseconds.
    pub runtime: u64,
    /// `SCHED_DEADLINE`: nanoseconds.
    pub deadline: u64,
    /// `SCHED_DEADLINE`: nanoseconds.
    pub period: u64,
}

/// `sched_setattr(2)` of the caller.
pub fn sched_setattr(attributes: &SchedAttr) -> Result<()> {
    #[repr(C)]
    struct Kernel {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let SchedAttr { policy, flags, nice, priority, runtime, deadline, period } = *attributes;
    let block = Kernel { size: size_of::<Kernel>() as u32, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the first version of the kernel's structure, whose size it says.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const block, 0) })?;
    Ok(())
}

/// `ioprio_set(2)` of the caller: class in bits 13 on, value below.
pub fn ioprio_set(priority: u32) -> Result<()> {
    const WHO_PROCESS: c_int = 1;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) })?;
    Ok(())
}

/// `sched_setaffinity(2)` of the caller; one bit per CPU.
pub fn sched_setaffinity(mask: &[u64]) -> Result<()> {
    // SAFETY: the pointer covers the size given.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) })?;
    Ok(())
}

/// `set_mempolicy(2)` of the caller: mode with flags, one bit per node.
pub fn set_mempolicy(mode: u32, nodes: &[u64]) -> Result<()> {
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let pointer = if nodes.is_empty() { null() } else { nodes.as_ptr() };
    // SAFETY: the pointer covers the bits given, or is null with none.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })?;
    Ok(())
}

/// `ioctl(SIOCSIFFLAGS)` on `lo` in the current network namespace: the loopback device goes up.
pub fn loopback_up() -> Result<()> {
    // SAFETY: plain integers.
    let socket = check_fd(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) } as c_long)?;
    // SAFETY: an all-zero ifreq is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the kernel reads one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } as c_long)?;
    Ok(())
}

// ---- terminals ---------------------------------------------------------------------------------

/// `ioctl(TIOCSPTLCK, 0)`: unlocks the slave of a pty master.
pub fn unlock_pty(master: BorrowedFd<'_>) -> Result<()> {
    let zero: c_int = 0;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const zero) } as c_long)?;
    Ok(())
}

/// `ioctl(TIOCGPTPEER)`: opens the slave of a pty master without a path (Linux 4.13).
pub fn pty_peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: plain integers.
    check_fd(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) } as c_long)
}

/// `ioctl(TIOCSCTTY)`: makes `tty` the controlling terminal of the calling session leader.
pub fn set_controlling_tty(tty: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: a plain integer.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY, 0) } as c_long)?;
    Ok(())
}

/// `ioctl(TIOCGWINSZ)`: rows and columns.
pub fn window_size(tty: BorrowedFd<'_>) -> Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one winsize.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } as c_long)?;
    Ok((size.ws_row, size.ws_col))
}

/// `ioctl(TIOCSWINSZ)`.
pub fn set_window_size(tty: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one winsize.
    check(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } as c_long)?;
    Ok(())
}

// ---- files -------------------------------------------------------------------------------------

/// Never follow a magic link such as `/proc/PID/fd/N`.
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// Never follow any symbolic link.
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
/// Never leave the file system of the starting folder.
pub const RESOLVE_NO_XDEV: u64 = 0x01;
/// `..` or a link that leaves the starting folder is an error.
pub const RESOLVE_BENEATH: u64 = 0x08;
/// The starting folder is `/` for links and `..`.
pub const RESOLVE_IN_ROOT: u64 = 0x10;

/// `openat2(2)`, retried while the kernel asks for it (`EAGAIN`: a rename raced). `O_CLOEXEC` is
/// always set. `ENOSYS` before Linux 5.6.
pub fn openat2(dir: BorrowedFd<'_>, path: &CStr, flags: c_int, mode: u32, resolve: u64) -> Result<OwnedFd> {
    let how = [(flags | libc::O_CLOEXEC) as u32 as u64, u64::from(mode), resolve];
    for _ in 0..128 {
        // SAFETY: open_how is three u64; path ends in a null byte.
        match check_fd(unsafe { libc::syscall(libc::SYS_openat2, dir.as_raw_fd(), path.as_ptr(), how.as_ptr(), 24) }) {
            Err(Errno::EAGAIN | Errno::EINTR) => (),
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}

/// `openat(2)` with `O_CLOEXEC`.
pub fn openat(dir: BorrowedFd<'_>, path: &CStr, flags: c_int, mode: u32) -> Result<OwnedFd> {
    // SAFETY: path ends in a null byte.
    retry(|| check_fd(unsafe { libc::openat(dir.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC, mode) } as c_long))
}

/// `write(2)` of a whole small buffer to a kernel file, which takes it in one piece or not at all.
pub fn write(fd: BorrowedFd<'_>, data: &[u8]) -> Result<usize> {
    // SAFETY: the pointer covers data.len() bytes.
    retry(|| check(unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) } as c_long)).map(|n| n as usize)
}

/// The file system type of what `fd` points at (`statfs.f_type`).
pub fn fstype(fd: BorrowedFd<'_>) -> Result<i64> {
    // SAFETY: an all-zero statfs is a valid value, and the kernel fills it.
    let mut buffer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut buffer) } as c_long)?;
    Ok(buffer.f_type as i64)
}

/// Where something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of its mount; 0 before Linux 5.8.
    pub mount: u64,
    /// Its device, major and minor.
    pub device: (u32, u32),
    /// Its inode.
    pub inode: u64,
    /// Whether it is the root of its mount; false before Linux 5.8.
    pub mount_root: bool,
}

/// `statx(2)`; an empty `path` means `dir` itself.
pub fn place(dir: BorrowedFd<'_>, path: &CStr) -> Result<Place> {
    const STATX_MNT_ID: c_uint = 0x1000;
    const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;
    // SAFETY: an all-zero statx is a valid value, and the kernel fills it; path ends in a null byte.
    let mut buffer: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    // SAFETY: as above.
    check(unsafe { libc::statx(dir.as_raw_fd(), path.as_ptr(), flags, libc::STATX_INO | STATX_MNT_ID, &raw mut buffer) } as c_long)?;
    Ok(Place {
        mount: buffer.stx_mnt_id,
        device: (buffer.stx_dev_major, buffer.stx_dev_minor),
        inode: buffer.stx_ino,
        mount_root: buffer.stx_attributes & STATX_ATTR_MOUNT_ROOT != 0,
    })
}

/// `memfd_create(2)` with sealing allowed.
pub fn memfd(name: &CStr) -> Result<OwnedFd> {
    const MFD_EXEC: c_uint = 0x10;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: name ends in a null byte.
    match check_fd(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags | MFD_EXEC) }) {
        // Before Linux 6.3 the flag is unknown and every memfd may be executed.
        // SAFETY: as above.
        Err(Errno::EINVAL) => check_fd(unsafe { libc::syscall(libc::SYS_memfd_create, name.as_ptr(), flags) }),
        other => other,
    }
}

// ---- mounts ------------------------------------------------------------------------------------

/// `open_tree`: a detached copy of the mount rather than the mount itself.
pub const OPEN_TREE_CLONE: c_uint = 1;
/// Lookup flag shared by the mount calls: `path` may be empty, the descriptor itself is meant.
pub const AT_EMPTY_PATH: c_uint = libc::AT_EMPTY_PATH as c_uint;
/// Lookup flag shared by the mount calls: the whole tree below.
pub const AT_RECURSIVE: c_uint = 0x8000;
/// Lookup flag: do not follow a final symbolic link.
pub const AT_SYMLINK_NOFOLLOW: c_uint = libc::AT_SYMLINK_NOFOLLOW as c_uint;

/// `open_tree(2)` (Linux 5.2).
pub fn open_tree(dir: BorrowedFd<'_>, path: &CStr, flags: c_uint) -> Result<OwnedFd> {
    // SAFETY: path ends in a null byte.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC as c_uint) })
}

/// `move_mount(2)`: attaches the detached mount `from` on what `to` points at.
pub fn move_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    const F_EMPTY_PATH: c_uint = 4;
    const T_EMPTY_PATH: c_uint = 0x40;
    // SAFETY: both paths are empty strings.
    check(unsafe {
        libc::syscall(libc::SYS_move_mount, from.as_raw_fd(), c"".as_ptr(), to.as_raw_fd(), c"".as_ptr(), F_EMPTY_PATH | T_EMPTY_PATH)
    })?;
    Ok(())
}

/// `move_mount(2)`: attaches the detached mount `from` on what `name` in the folder `dir` is; a link at its
/// end is not followed.
pub fn move_mount_at(from: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    const F_EMPTY_PATH: c_uint = 4;
    // SAFETY: both paths are strings that end.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from.as_raw_fd(), c"".as_ptr(), dir.as_raw_fd(), name.as_ptr(), F_EMPTY_PATH) })?;
    Ok(())
}

/// `fsopen(2)`: a context in which a new mount of that file system type is described.
pub fn fsopen(fstype: &CStr) -> Result<OwnedFd> {
    const FSOPEN_CLOEXEC: c_uint = 1;
    // SAFETY: fstype ends in a null byte.
    check_fd(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) })
}

fn fsconfig(context: BorrowedFd<'_>, command: c_uint, key: Option<&CStr>, value: Option<&CStr>) -> Result<()> {
    let pointer = |s: Option<&CStr>| s.map_or(null(), CStr::as_ptr);
    // SAFETY: the strings end in null bytes or are absent, as the command wants them.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, pointer(key), pointer(value), 0) })?;
    Ok(())
}

/// `fsconfig(FSCONFIG_SET_FLAG)`: an option without a value.
pub fn fsconfig_flag(context: BorrowedFd<'_>, key: &CStr) -> Result<()> {
    fsconfig(context, 0, Some(key), None)
}

/// `fsconfig(FSCONFIG_SET_STRING)`: an option with a value.
pub fn fsconfig_string(context: BorrowedFd<'_>, key: &CStr, value: &CStr) -> Result<()> {
    fsconfig(context, 1, Some(key), Some(value))
}

/// `fsconfig(FSCONFIG_CMD_CREATE)`: makes the superblock, or finds the one there is.
pub fn fsconfig_create(context: BorrowedFd<'_>) -> Result<()> {
    fsconfig(context, 6, None, None)
}

/// The messages that the kernel left in a file system context, for an error's text.
pub fn fscontext_messages(context: BorrowedFd<'_>) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 512];
    // SAFETY: the pointer covers the buffer.
    while let Ok(n) = check(unsafe { libc::read(context.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } as c_long) {
        if n == 0 || text.len() > 2048 {
            break;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        // Each message starts with its level: "e " for errors.
        let message = String::from_utf8_lossy(&buffer[..n as usize]);
        text.push_str(message.get(2..).unwrap_or_default().trim_end());
    }
    text
}

/// `fsmount(2)`: a detached mount of a created context, with `MOUNT_ATTR_*` set.
pub fn fsmount(context: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd> {
    const FSMOUNT_CLOEXEC: c_uint = 1;
    // SAFETY: plain integers.
    check_fd(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as c_uint) })
}

/// The argument of `mount_setattr(2)`, in the kernel's layout (`struct mount_attr`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
    /// With `MOUNT_ATTR_IDMAP`: the user namespace whose mapping applies.
    pub userns_fd: u64,
}

/// `mount_setattr(2)` on what `fd` points at, and with `recursive` on all mounts below it.
pub fn mount_setattr(fd: BorrowedFd<'_>, recursive: bool, attributes: &MountAttr) -> Result<()> {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the structure has the kernel's layout and outlives the call.
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd.as_raw_fd(), c"".as_ptr(), flags, &raw const *attributes, size_of::<MountAttr>())
    })?;
    Ok(())
}

/// `mount(2)`, for the fallbacks of older kernels and for changes of propagation.
pub fn mount(source: Option<&CStr>, target: &CStr, fstype: Option<&CStr>, flags: u64, data: Option<&CStr>) -> Result<()> {
    let pointer = |s: Option<&CStr>| s.map_or(null(), CStr::as_ptr);
    // SAFETY: every string ends in a null byte or is absent.
    let result = unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(fstype), flags as libc::c_ulong, pointer(data).cast()) };
    check(c_long::from(result))?;
    Ok(())
}

/// `pivot_root(".", ".")`: the current folder becomes `/`, the old root is stacked on it.
pub fn pivot_root_here() -> Result<()> {
    // SAFETY: constant strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    Ok(())
}

/// `umount2(2)`.
pub fn umount(target: &CStr, flags: c_int) -> Result<()> {
    // SAFETY: target ends in a null byte.
    check(unsafe { libc::umount2(target.as_ptr(), flags) } as c_long)?;
    Ok(())
}

// ---- BPF device programs ---------------------------------------------------------------------------

/// `bpf(2)` with an attribute block of 128 zeroed bytes, of which `attr` are the first words (a
/// 64-bit field is two of them, see [`two_words`]). The block is generous because kernels 6.17 to
/// 7.1 write past a short one on `BPF_PROG_QUERY`; it comes back, since queries answer in it.
///
/// # Safety
/// Words that the command takes for an address must point at memory of the size that the command
/// expects there, valid across the call.
unsafe fn bpf(command: c_int, attr: &[u32]) -> Result<(c_long, [u32; 32])> {
    let mut block = [0u32; 32];
    block[..attr.len()].copy_from_slice(attr);
    // SAFETY: the block is as large as the size says; what it points at is the caller's promise.
    let ret = check(unsafe { libc::syscall(libc::SYS_bpf, command, block.as_mut_ptr(), size_of_val(&block)) })?;
    Ok((ret, block))
}

/// An address as a 64-bit field of a `bpf` attribute.
fn two_words<T>(pointer: *const T) -> [u32; 2] {
    let a = pointer as usize as u64;
    if cfg!(target_endian = "little") { [a as u32, (a >> 32) as u32] } else { [(a >> 32) as u32, a as u32] }
}

const BPF_CGROUP_DEVICE: u32 = 6;

/// `BPF_PROG_LOAD` of a device program; each word is one instruction (`struct bpf_insn`). The
/// kernel's verifier refuses a wrong one (`EINVAL`, `EACCES`).
pub fn load_device_program(code: &[u64]) -> Result<OwnedFd> {
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let ([code_low, code_high], [license_low, license_high]) = (two_words(code.as_ptr()), two_words(c"Apache-2.0".as_ptr()));
    let attr = [BPF_PROG_TYPE_CGROUP_DEVICE, code.len() as u32, code_low, code_high, license_low, license_high];
    // SAFETY: one address is that of the slice whose length stands beside it, the other that of a
    // constant string.
    let (fd, _) = unsafe { bpf(5, &attr) }?;
    check_fd(fd)
}

/// `BPF_PROG_ATTACH`, beside programs that are there: all of them must allow an access.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    const BPF_F_ALLOW_MULTI: u32 = 2;
    // SAFETY: no addresses.
    unsafe { bpf(8, &[cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI]) }?;
    Ok(())
}

/// `BPF_PROG_DETACH`.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: no addresses.
    unsafe { bpf(9, &[cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, BPF_CGROUP_DEVICE]) }?;
    Ok(())
}

/// `BPF_PROG_QUERY`: ids of the device programs attached to this very cgroup, at most 64 (the
/// kernel allows no more).
pub fn attached_device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let [low, high] = two_words(ids.as_mut_ptr());
    // SAFETY: the address is that of `ids`, the count beside it its length.
    let (_, block) = unsafe { bpf(16, &[cgroup.as_raw_fd() as u32, BPF_CGROUP_DEVICE, 0, 0, low, high, ids.len() as u32]) }?;
    Ok(ids[..ids.len().min(block[6] as usize)].to_vec())
}

/// `BPF_PROG_GET_FD_BY_ID`; `ENOENT` when it is gone.
pub fn device_program(id: u32) -> Result<OwnedFd> {
    // SAFETY: no addresses.
    let (fd, _) = unsafe { bpf(13, &[id]) }?;
    check_fd(fd)
}
