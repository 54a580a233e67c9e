//! The default seccomp profile: what a container may ask of the kernel that does not ask for more.
//!
//! An allow-list, complete to Linux 7.1. A call that is known and not here is answered EPERM; one that is newer than the
//! newest here, ENOSYS, by the OCI runtime, so that programs take their fallback. Left out on purpose are the kernel's
//! keyrings, io_uring and userfaultfd (rich sources of kernel bugs), and what needs a capability that the container
//! does not have.

use oci_spec::runtime::Capability;

/// Calls for everybody.
#[rustfmt::skip]
pub(super) const ALLOWED: &[&[&str]] = &[
    // Processes, threads, signals: who they are, how they end, how they are scheduled.
    &["execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue", "futex_time64", "futex_wait",
      "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getcpu", "getpgid", "getpgrp", "getpid", "getppid",
      "getpriority", "getrlimit", "getrusage", "getsid", "gettid", "ioprio_get", "ioprio_set", "kill", "landlock_add_rule",
      "landlock_create_ruleset", "landlock_restrict_self", "membarrier", "pause", "pidfd_open", "pidfd_send_signal", "prctl",
      "prlimit64", "process_mrelease", "restart_syscall", "rseq", "rseq_slice_yield", "rt_sigaction", "rt_sigpending",
      "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64",
      "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity", "sched_getattr",
      "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_rr_get_interval_time64", "sched_setaffinity",
      "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp", "set_robust_list", "set_thread_area",
      "set_tid_address", "setpgid", "setpriority", "setrlimit", "setsid", "sigaltstack", "signalfd", "signalfd4",
      "sigprocmask", "sigreturn", "tgkill", "times", "tkill", "ugetrlimit", "uretprobe", "vfork", "wait4", "waitid", "waitpid"],
    // Users, groups, capabilities.
    &["capget", "capset", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32",
      "getresgid", "getresgid32", "getresuid", "getresuid32", "getuid", "getuid32", "setfsgid", "setfsgid32", "setfsuid",
      "setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32", "setregid", "setregid32", "setresgid", "setresgid32",
      "setresuid", "setresuid32", "setreuid", "setreuid32", "setuid", "setuid32", "umask"],
    // Memory.
    &["brk", "madvise", "map_shadow_stack", "memfd_create", "memfd_secret", "mincore", "mlock", "mlock2", "mlockall", "mmap",
      "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free",
      "pkey_mprotect", "remap_file_pages"],
    // Time.
    &["adjtimex", "alarm", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64", "clock_gettime",
      "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "getitimer", "gettimeofday", "nanosleep", "setitimer", "time",
      "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime",
      "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64"],
    // Waiting for events.
    &["_newselect", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait",
      "epoll_wait_old", "eventfd", "eventfd2", "fanotify_mark", "inotify_add_watch", "inotify_init", "inotify_init1",
      "inotify_rm_watch", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup",
      "io_submit", "poll", "ppoll", "ppoll_time64", "pselect6", "pselect6_time64", "select"],
    // Files.
    &["_llseek", "access", "cachestat", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range",
      "creat", "dup", "dup2", "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fchdir", "fchmod",
      "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr", "file_getattr",
      "file_setattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs",
      "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futimesat", "getcwd", "getdents", "getdents64",
      "getxattr", "getxattrat", "ioctl", "lchown", "lchown32", "lgetxattr", "link", "linkat", "listmount", "listxattr",
      "listxattrat", "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64", "mkdir", "mkdirat", "mknod",
      "mknodat", "name_to_handle_at", "newfstatat", "open", "openat", "openat2", "pipe", "pipe2", "pread64", "preadv",
      "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "removexattr",
      "removexattrat", "rename", "renameat", "renameat2", "rmdir", "sendfile", "sendfile64", "setxattr", "setxattrat",
      "splice", "stat", "stat64", "statfs", "statfs64", "statmount", "statx", "symlink", "symlinkat", "sync",
      "sync_file_range", "syncfs", "tee", "truncate", "truncate64", "unlink", "unlinkat", "utime", "utimensat",
      "utimensat_time64", "utimes", "vmsplice", "write", "writev"],
    // Sockets and IPC.
    &["accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "ipc", "listen", "mq_getsetattr",
      "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend", "mq_timedsend_time64", "mq_unlink",
      "msgctl", "msgget", "msgrcv", "msgsnd", "recv", "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "semctl", "semget",
      "semop", "semtimedop", "semtimedop_time64", "send", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shmat", "shmctl",
      "shmdt", "shmget", "shutdown", "socketcall", "socketpair"],
    // The host's name and figures, random bytes, hardware.
    &["getrandom", "riscv_hwprobe", "sysinfo", "uname"],
];

/// Calls of an architecture, by the names that Rust gives it.
#[rustfmt::skip]
pub(super) const BY_ARCHITECTURE: &[(&[&str], &[&str])] = &[
    (&["x86_64"], &["arch_prctl", "modify_ldt"]),
    (&["x86"], &["modify_ldt"]),
    (&["aarch64", "arm"], &["arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2"]),
    (&["powerpc64"], &["swapcontext", "sync_file_range2"]),
    (&["riscv64"], &["riscv_flush_icache"]),
    (&["s390x"], &["s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"]),
];

/// Calls that come with a capability; the kernel asks for the same one again.
#[rustfmt::skip]
pub(super) const BY_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::Bpf, &["bpf"]),
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::Perfmon, &["perf_event_open"]),
    (Capability::SysAdmin, &[
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "listns", "lookup_dcookie",
        "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "mount", "mount_setattr", "move_mount", "open_tree",
        "open_tree_attr", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns", "syslog",
        "umount", "umount2", "unshare",
    ]),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace"]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::Syslog, &["syslog"]),
];

/// Calls among processes of one user, safe since Linux 4.8, which checks a tracer's own filter.
pub(super) const TRACING: &[&str] = &["process_vm_readv", "process_vm_writev", "ptrace"];

/// The personalities that change nothing of address randomisation: PER_LINUX, PER_LINUX32, both with UNAME26, and the
/// question for the present one.
pub(super) const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The flags of `clone` that make namespaces.
pub(super) const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The kernel's cryptography: a container has no use for it, and CVE-2026-31431 was behind it.
pub(super) const AF_ALG: u64 = 38;

/// Sockets between a virtual machine and its host know nothing of network namespaces.
pub(super) const AF_VSOCK: u64 = 40;
