//! Every message of the protocol. Numbers and tags are for ever ([`crate::wire`] has the rules).
//!
//! Paths are absolute and those of the host. Times are nanoseconds since 1970. `code` is the exit
//! code as the shell has it: 128 + n for signal n.

crate::messages! {
    // Requests.

    /// First on every connection. Answer: [`Welcome`].
    Hello = 1 {
        /// The daemon's [`crate::wire::VERSION`].
        version: u64 = 1,
    }
    /// Makes the pod's namespaces and pins them by bind mounts: an empty path means that the pod has none of
    /// that kind of its own. The files are made where missing. After a failure the caller takes down whatever
    /// is there ([`crate::pins::unpin`]). Answer: [`SandboxMade`].
    MakeSandbox = 2 {
        /// Set in the new UTS namespace.
        hostname: String = 1,
        /// Where the IPC namespace is pinned.
        ipc_path: String = 2,
        /// Where the UTS namespace is pinned.
        uts_path: String = 3,
        /// Where the network namespace is pinned; its loopback is set up.
        net_path: String = 4,
        /// Where the user namespace is pinned; it owns all the others.
        user_path: String = 5,
        /// Where the PID namespace is pinned; it gets an init (see [`SandboxMade`]).
        pid_path: String = 6,
        /// Lines of `/proc/PID/uid_map`: "inside outside length".
        uid_maps: Vec<String> = 7,
        /// Lines of `/proc/PID/gid_map`.
        gid_maps: Vec<String> = 8,
        /// "net.ipv4.ip_forward=1": written inside the new namespaces.
        sysctls: Vec<String> = 9,
    }
    /// Makes a container by `RUNTIME ARGS create` and keeps its standard streams. Answer: [`Created`];
    /// `Failed` has the runtime's text, and nothing of the container is left in the monitor (the caller still
    /// runs `RUNTIME delete --force`).
    Create = 3 {
        /// The container's.
        id: String = 1,
        /// The OCI runtime's program.
        runtime: String = 2,
        /// Its global arguments: `--root`, `--systemd-cgroup`, …
        args: Vec<String> = 3,
        /// The folder of config.json.
        bundle: String = 4,
        /// An existing folder (the container's, under /run) for the FIFOs stdin, stdout, stderr and the pid
        /// file `pid`.
        dir: String = 5,
        /// Whether there is a standard input; else it is /dev/null.
        stdin: bool = 6,
        /// Standard input ends when the first attach that has one ends.
        stdin_once: bool = 7,
        /// The process has a terminal (config.json must say so too).
        tty: bool = 8,
        /// The CRI log file; empty: none. Its folder must be there.
        log_path: String = 9,
        /// The longest content of a log line; 0: 16384. Clamped to 1 MiB.
        log_line_max: u64 = 10,
        /// Where the exit record goes, before the exit is reported.
        exit_path: String = 11,
        /// The runtime is killed after that; 0: never.
        timeout_ms: u64 = 12,
        /// The runtime may be executed by descriptor, from a read-only mount of its file: one that would make such a mount
        /// itself each time is spared it.
        read_only: bool = 13,
    }
    /// `RUNTIME start ID`. Answer: [`Done`].
    Start = 4 {
        /// The container's.
        id: String = 1,
        /// The runtime is killed after that; 0: never.
        timeout_ms: u64 = 2,
    }
    /// `RUNTIME exec --detach --process FILE ID`. Descriptors: Stdin, Stdout, Stderr, the process's ends (absent:
    /// /dev/null; none with `tty`). Answer: [`ExecStarted`], later the event [`ExecExited`] with this request's
    /// number, on this connection only. `Failed` has the runtime's text and exit code.
    Exec = 5 {
        /// The container's.
        id: String = 1,
        /// The OCI process object, a JSON file.
        process: String = 2,
        /// The process has a terminal (the file must say so too).
        tty: bool = 3,
        /// Its process group is killed after that, counted from the request; 0: never.
        timeout_ms: u64 = 4,
        /// Its process group is killed when the connection ends. Without it the process sees the hang-up of its
        /// terminal or the end of its streams, whose other ends the daemon held.
        dies_with_connection: bool = 5,
    }
    /// Sends a signal to an exec's process group; also while the runtime still starts it. Answer: [`Done`],
    /// also where it has ended.
    KillExec = 6 {
        /// The number of its [`Exec`] request.
        exec: u32 = 1,
        /// SIGKILL when 0.
        signal: u32 = 2,
    }
    /// One more client of a container's streams. Answer: [`Attached`].
    Attach = 7 {
        /// The container's.
        id: String = 1,
        /// Wants to write.
        stdin: bool = 2,
        /// Wants standard output (with a terminal: all).
        stdout: bool = 3,
        /// Wants standard error.
        stderr: bool = 4,
    }
    /// The size of a container's terminal. Answer: [`Done`].
    Resize = 8 {
        /// The container's.
        id: String = 1,
        /// Columns.
        width: u16 = 2,
        /// Rows.
        height: u16 = 3,
    }
    /// Goes on in a new file at the log's path, at a line boundary. After a failure the old file stays in use and
    /// no new one exists. Answer: [`Done`].
    ReopenLog = 9 {
        /// The container's.
        id: String = 1,
    }
    /// Forgets a container that has ended, and removes what the monitor made in its folder; an unknown id is
    /// success. Answer: [`Done`].
    Remove = 10 {
        /// The container's.
        id: String = 1,
    }
    /// Kills the init of the PID namespace, if there is one, and with it everything in there. Pins stay: the
    /// daemon removes them. Answer: [`Done`], when it has ended; `Failed` if it has not after 10 seconds.
    StopSandbox = 11 {
    }
    /// Ends the monitor; refused while a container runs. Answer: [`Done`], then the connection ends.
    Shutdown = 12 {
    }
    /// All containers. Answer: a [`SandboxMade`] if there is an init, a [`ContainerState`] each, then [`Done`].
    State = 13 {
    }
    /// Takes over a container whose monitor died. Descriptors: Pidfd (opened before it was reaped), Pty.
    /// Without a pidfd the container is found by `pid` and `start_time`. An exit that an exit record at
    /// `create.exit_path` or the pidfd knows is reported by [`Exited`] as ever. Answer: [`Created`].
    Adopt = 14 {
        /// What it was made with.
        create: Create = 1,
        /// Its first process.
        pid: u32 = 2,
        /// Field 22 of /proc/PID/stat.
        start_time: u64 = 3,
        /// Start was done.
        started: bool = 4,
    }
    /// Goes on as another program file with all state and descriptors, this connection included; it waits until
    /// no runtime is at work. Answer: [`Done`], from the new program; `Failed`: the old one goes on.
    Upgrade = 15 {
        /// The new program.
        program: String = 1,
    }
    /// Takes over the init of the pod's PID namespace from a monitor that died. Answer: [`Done`].
    AdoptInit = 16 {
        /// Its number.
        init_pid: u32 = 1,
        /// Field 22 of /proc/PID/stat.
        init_start_time: u64 = 2,
    }
    /// Makes a container whose processes come back from a checkpoint, by `RUNTIME ARGS restore --detach`: [`Create`], and it
    /// runs. Answer: [`Created`], or `Failed` as there.
    Restore = 17 {
        /// What it is made with.
        create: Create = 1,
        /// Further arguments of `restore`: `--image-path`, `--work-path`, …
        args: Vec<String> = 2,
    }

    // Answers.

    /// It is done.
    Done = 64 {
    }
    /// It failed.
    Failed = 65 {
        /// One line. Of a runtime: the last line of its log as it is (JSON).
        text: String = 1,
        /// The exit code of the runtime, 0 if it was not that.
        code: u32 = 2,
        /// What was named is not known here.
        not_found: bool = 3,
        /// The runtime (or what it waited for) took longer than the request allowed.
        timed_out: bool = 4,
    }
    /// Who answers.
    Welcome = 66 {
        /// The monitor's [`crate::wire::VERSION`].
        version: u64 = 1,
        /// Its process.
        pid: u32 = 2,
        /// Its release.
        build: String = 3,
    }
    /// The sandbox is there.
    SandboxMade = 67 {
        /// The init of its PID namespace; 0 without one. It outlives the monitor.
        init_pid: u32 = 1,
        /// Field 22 of /proc/PID/stat.
        init_start_time: u64 = 2,
    }
    /// The container is made. Descriptors: Pidfd, and Pty with a terminal, else Stdout and Stderr: the ends that the
    /// monitor reads from. Who keeps them keeps what the container writes while its monitor is dead.
    Created = 68 {
        /// Its first process.
        pid: u32 = 1,
        /// Field 22 of /proc/PID/stat.
        start_time: u64 = 2,
    }
    /// Descriptors: Session and, if there is an input to write to, Stdin.
    ///
    /// Session is a SOCK_SEQPACKET socket. Each packet to the client is a byte, 1 for standard output, 2 for
    /// standard error, and then data. A client that does not read loses output, never the container or the
    /// log: once there is room again, a packet of the byte 0 and 8 bytes says how many bytes were lost. The
    /// container's end closes it. The client writes nothing to it: shutting down its writing side says that its
    /// input has ended, closing it that it goes. Input is written to Stdin (the FIFO, or the terminal's
    /// master, not blocking), and that descriptor closed when input ends, else the container cannot see the end.
    Attached = 69 {
    }
    /// The process runs. Descriptors: Pidfd, and Pty with a terminal.
    ExecStarted = 70 {
        /// Its number.
        pid: u32 = 1,
    }
    /// One container, in answer to [`State`]. Descriptors: as in [`Created`], the pidfd while it lives.
    ContainerState = 71 {
        /// The container's.
        id: String = 1,
        /// Its first process; 0 while it is being made.
        pid: u32 = 2,
        /// Field 22 of /proc/PID/stat.
        start_time: u64 = 3,
        /// Start was done.
        started: bool = 4,
        /// How it ended, if it has.
        exited: Option<Exited> = 5,
        /// Log lines dropped.
        log_lines_dropped: u64 = 6,
        /// Execs that run in it.
        execs: u32 = 7,
        /// Clients attached.
        clients: u32 = 8,
    }

    // Events.

    /// A container has ended; its record is on disk.
    Exited = 128 {
        /// The container's.
        id: String = 1,
        /// The exit code; 255 if `unknown`.
        code: u32 = 2,
        /// The signal that ended it, or 0.
        signal: u32 = 3,
        /// The out-of-memory killer struck in its cgroup. It was the reason if `code` is 137.
        oom: bool = 4,
        /// When.
        finished_at: u64 = 5,
        /// It was adopted, and neither record nor pidfd know how it ended.
        unknown: bool = 6,
    }
    /// An exec's process has ended.
    ExecExited = 129 {
        /// The number of its [`Exec`] request.
        exec: u32 = 1,
        /// The exit code.
        code: u32 = 2,
        /// The signal that ended it, or 0.
        signal: u32 = 3,
        /// It was killed by its timeout.
        timed_out: bool = 4,
    }
    /// Log lines could not be written (full disk); told when it begins and when it is over.
    LogErrors = 130 {
        /// The container's.
        id: String = 1,
        /// Lines dropped in all.
        dropped: u64 = 2,
        /// The system's error; empty when lines are written again.
        text: String = 3,
    }
}
