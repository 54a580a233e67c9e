//! The one table of commands and flags: parsing, help, man pages and completions all read it.
//! A command line looks at one row only.

use super::parse::Parsed;
use super::{Globals, convert};
use crate::commands;
use anyhow::Result;

/// A flag, `--name` or `-name`.
#[derive(Debug)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    /// Its one-letter form.
    pub(super) letter: Option<char>,
    /// What its value is called in help texts; `None` for a switch.
    pub(super) value: Option<&'static str>,
    pub(super) help: &'static str,
    /// Accepted, and shown nowhere.
    pub(super) hidden: bool,
}

/// A command.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    /// The operands as a usage line shows them.
    pub(super) operands: &'static str,
    /// How many operands it takes, at least and at most.
    pub(super) count: (usize, usize),
    /// What looks like a flag after the first operand is an operand.
    pub(super) stop: bool,
    pub(super) flags: &'static [Flag],
    pub(super) about: &'static str,
    pub(super) run: fn(&Globals, &Parsed) -> Result<i32>,
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, letter: None, value: None, help, hidden: false }
}

const fn value(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, letter: None, value: Some(value), help, hidden: false }
}

impl Flag {
    const fn letter(mut self, letter: char) -> Flag {
        self.letter = Some(letter);
        self
    }

    const fn hidden(mut self) -> Flag {
        self.hidden = true;
        self
    }
}

/// The row of a command.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|c| c.name == name)
}

const BUNDLE: Flag = value("bundle", "DIR", "folder that holds config.json (default: the current one)").letter('b');
const CONSOLE_SOCKET: Flag = value("console-socket", "PATH", "unix socket that receives the terminal's master end");
const PIDFD_SOCKET: Flag = value("pidfd-socket", "PATH", "unix socket that receives a pidfd of the process");
const PID_FILE: Flag = value("pid-file", "PATH", "file to write the process id to");
const PRESERVE_FDS: Flag = value("preserve-fds", "N", "pass N descriptors from 3 on (after those of $LISTEN_FDS) to the process");
const DETACH: Flag = switch("detach", "return once the process runs").letter('d');
const CONFIG: Flag = value("config", "FILE", "read this file instead of the bundle's config.json").letter('f');
const NO_PIVOT: Flag = switch("no-pivot", "use chroot instead of pivot_root: for a root file system on a ramdisk only");
const NO_NEW_KEYRING: Flag = switch("no-new-keyring", "stay in the caller's session keyring");
const NO_SUBREAPER: Flag = switch("no-subreaper", "do not adopt orphaned processes");

const IMAGE_PATH: Flag = value("image-path", "DIR", "folder of the checkpoint");
const WORK_PATH: Flag = value("work-path", "DIR", "folder for criu's log and other files");
const TCP_ESTABLISHED: Flag = switch("tcp-established", "keep open TCP connections");
const LINK_REMAP: Flag = switch("link-remap", "keep open files that were removed");
const EXT_UNIX_SK: Flag = switch("ext-unix-sk", "keep unix sockets to processes outside");
const SHELL_JOB: Flag = switch("shell-job", "its terminal is the caller's");
const LAZY_PAGES: Flag = switch("lazy-pages", "bring memory when it is asked for");
const FILE_LOCKS: Flag = switch("file-locks", "keep file locks");
const MANAGE_CGROUPS: Flag = value("manage-cgroups-mode", "MODE", "what to keep of cgroups: soft, full, strict or ignore");
const EMPTY_NS: Flag = value("empty-ns", "KIND", "leave out the properties of a namespace (network)");
const AUTO_DEDUP: Flag = switch("auto-dedup", "drop memory from the checkpoint once it is taken over");

pub(super) static GLOBAL_FLAGS: &[Flag] = &[
    value("root", "DIR", "folder of the containers' states (default: /run/rrun, or $XDG_RUNTIME_DIR/rrun without root)"),
    value("log", "FILE", "append log lines to this file (default: standard error)"),
    value("log-format", "FORMAT", "form of log lines: text or json (default: text)"),
    switch("debug", "log debug lines too"),
    switch("systemd-cgroup", "let systemd make the cgroups: linux.cgroupsPath is then SLICE:PREFIX:NAME").letter('s'),
    value("cgroup-manager", "WHO", "who makes the cgroups: cgroupfs, systemd or disabled (default: cgroupfs)"),
    value("rootless", "BOOL", "go on without cgroups that may not be written: true, false or auto (default: auto)"),
    value("log-level", "LEVEL", "debug has the effect of --debug; the others have none").hidden(),
    value("criu", "PATH", "ignored").hidden(),
    switch("help", "show help").letter('h'),
    switch("version", "show the version").letter('v'),
];

pub(super) static COMMANDS: &[Command] = &[
    Command {
        name: "checkpoint",
        summary: "save a running container",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[
            IMAGE_PATH,
            WORK_PATH,
            value("parent-path", "DIR", "folder of an earlier checkpoint, in pre-dumps"),
            switch("leave-running", "do not stop the container"),
            TCP_ESTABLISHED,
            switch("tcp-skip-in-flight", "leave out connections that are being made"),
            LINK_REMAP,
            EXT_UNIX_SK,
            SHELL_JOB,
            LAZY_PAGES,
            value("status-fd", "FD", "descriptor to tell when criu is ready"),
            value("page-server", "ADDRESS:PORT", "page server of criu"),
            FILE_LOCKS,
            switch("pre-dump", "save the memory only, leave the container running"),
            MANAGE_CGROUPS,
            EMPTY_NS,
            AUTO_DEDUP,
        ],
        about: "Saves the processes of a running container with CRIU, which must be installed, and removes the container; 'restore' continues it. Without --image-path the folder is 'checkpoint' in the current one.",
        run: |g, p| commands::checkpoint::run(g, &convert::checkpoint(p)?),
    },
    Command {
        name: "create",
        summary: "create a container",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[BUNDLE, CONFIG, CONSOLE_SOCKET, PIDFD_SOCKET, PID_FILE, NO_PIVOT, NO_NEW_KEYRING, PRESERVE_FDS, NO_SUBREAPER.hidden()],
        about: "Makes a container of a bundle, up to the point where its process would start; 'start' starts it. The bundle is a folder with a config.json and a root file system. The id may have letters, digits and any of _+-.",
        run: |g, p| commands::create::run(g, &convert::create(p)?),
    },
    Command {
        name: "delete",
        summary: "remove a container",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[switch("force", "kill it first if it runs; not an error if there is none").letter('f')],
        about: "Removes what a container left behind: its cgroups and its state. The bundle is not touched.",
        run: |g, p| commands::delete::run(g, &convert::delete(p)?),
    },
    Command {
        name: "events",
        summary: "show a container's events and usage",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[
            switch("stats", "show the usage once and return"),
            value("interval", "DURATION", "time between two shows of the usage (default: 5s)"),
        ],
        about: "Shows a line of JSON for what the container uses, at every interval, and for each time that the kernel kills one of its processes for want of memory, until the container is gone.",
        run: |g, p| commands::events::run(g, &convert::events(p)?),
    },
    Command {
        name: "exec",
        summary: "run another process inside a container",
        operands: "ID COMMAND [ARG...]",
        count: (1, usize::MAX),
        stop: true,
        flags: &[
            CONSOLE_SOCKET,
            PIDFD_SOCKET,
            value("cwd", "DIR", "working directory"),
            value("env", "NAME=VALUE", "add to the environment; may be repeated").letter('e'),
            switch("tty", "give it a terminal").letter('t'),
            value("user", "UID[:GID]", "user, by number").letter('u'),
            value("additional-gids", "GID", "additional group, by number; may be repeated").letter('g'),
            value("process", "FILE", "read the whole process from a JSON file").letter('p'),
            DETACH,
            PID_FILE,
            value("process-label", "LABEL", "SELinux label"),
            value("apparmor", "PROFILE", "AppArmor profile"),
            switch("no-new-privs", "forbid it to gain privileges"),
            value("cap", "CAPABILITY", "add a capability; may be repeated").letter('c'),
            PRESERVE_FDS,
            value("cgroup", "[CTRL,...:]PATH", "a cgroup below the container's; may be repeated on cgroup v1"),
            switch("ignore-paused", "also in a paused container, where it waits for resume"),
            NO_SUBREAPER.hidden(),
        ],
        about: "Runs a command in a running container, or the process of a JSON file as config.json describes one. Flags end at the id.",
        run: |g, p| commands::exec::run(g, &convert::exec(p)?),
    },
    Command {
        name: "features",
        summary: "show what this runtime can do",
        operands: "",
        count: (0, 0),
        stop: false,
        flags: &[],
        about: "Prints the features document of the OCI runtime specification as JSON.",
        run: |_, _| commands::features::run(),
    },
    Command {
        name: "kill",
        summary: "send a signal to a container's process",
        operands: "ID [SIGNAL]",
        count: (1, 2),
        stop: true,
        flags: &[switch("all", "to every process of the container; not an error if it is not running").letter('a')],
        about: "Sends a signal, by name or number, to the container's first process. The default is TERM.",
        run: |g, p| commands::kill::run(g, &convert::kill(p)?),
    },
    Command {
        name: "list",
        summary: "list containers",
        operands: "",
        count: (0, 0),
        stop: false,
        flags: &[value("format", "FORMAT", "table or json (default: table)").letter('f'), switch("quiet", "only the ids").letter('q')],
        about: "Lists the containers below the state root (see --root).",
        run: |g, p| commands::list::run(g, convert::list(p)?),
    },
    Command {
        name: "mounts",
        summary: "add mounts to a running container, or remove them",
        operands: "add|remove ID FILE",
        count: (3, 3),
        stop: false,
        flags: &[],
        about: "Adds the mounts of a JSON file, a list as the field mounts of config.json is one, to a container that runs, waits for start or is paused; or removes what is mounted at their destinations. FILE may be - for standard input. All of the list is done, or nothing. No symbolic link is followed to a destination; what a container has from the beginning (/proc, /sys, /dev and what is masked in them) stays as it is.",
        run: |g, p| commands::mounts::run(g, &convert::mounts(p)?),
    },
    Command {
        name: "pause",
        summary: "freeze a container's processes",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[],
        about: "Freezes all processes of a container; 'resume' lets them go on.",
        run: |g, p| commands::pause::pause(g, &convert::id(p)?),
    },
    Command {
        name: "ps",
        summary: "show a container's processes",
        operands: "ID [PS-OPTION...]",
        count: (1, usize::MAX),
        stop: true,
        flags: &[value("format", "FORMAT", "table or json (default: table)").letter('f')],
        about: "Runs the host's ps with the given options (default: -ef) and shows the container's processes of its output; with json, their ids alone.",
        run: |g, p| commands::ps::run(g, &convert::ps(p)?),
    },
    Command {
        name: "restore",
        summary: "continue a container from a checkpoint",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[
            BUNDLE,
            CONSOLE_SOCKET,
            IMAGE_PATH,
            WORK_PATH,
            TCP_ESTABLISHED,
            switch("tcp-close", "close the connections there were"),
            LINK_REMAP,
            EXT_UNIX_SK,
            SHELL_JOB,
            FILE_LOCKS,
            MANAGE_CGROUPS,
            DETACH,
            PID_FILE,
            NO_SUBREAPER,
            NO_PIVOT,
            EMPTY_NS,
            AUTO_DEDUP,
            LAZY_PAGES,
            value("lsm-profile", "TYPE:NAME", "AppArmor profile or SELinux label to restore with"),
            value("lsm-mount-context", "CONTEXT", "SELinux context of its mounts"),
        ],
        about: "Makes a container of a bundle and of a checkpoint that 'checkpoint' has written, whose processes go on where they were. Unless detached, waits for its first process and exits with its status.",
        run: |g, p| commands::restore::run(g, &convert::restore(p)?),
    },
    Command {
        name: "resume",
        summary: "let a paused container go on",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[],
        about: "Ends what 'pause' began.",
        run: |g, p| commands::pause::resume(g, &convert::id(p)?),
    },
    Command {
        name: "run",
        summary: "create and start a container",
        operands: "ID|DIR",
        count: (1, 1),
        stop: false,
        flags: &[
            BUNDLE,
            CONFIG,
            CONSOLE_SOCKET,
            PIDFD_SOCKET,
            PID_FILE,
            NO_PIVOT,
            NO_NEW_KEYRING,
            PRESERVE_FDS,
            DETACH,
            switch("keep", "do not delete the container when its process ends"),
            NO_SUBREAPER,
        ],
        about: "Creates a container and starts it. Unless detached, waits for its process and exits with its status, or 128 and the number of the signal that killed it. Without --bundle and outside a bundle, the operand may be a bundle's folder, whose name is then the id.",
        run: |g, p| commands::run::run(g, &convert::run(p)?),
    },
    Command {
        name: "spec",
        summary: "write an example config.json",
        operands: "",
        count: (0, 0),
        stop: false,
        flags: &[BUNDLE, switch("rootless", "for an ordinary user")],
        about: "Writes a config.json to start from: a shell in the root file system 'rootfs' of the same folder.",
        run: |_, p| commands::spec::run(&convert::spec(p)?),
    },
    Command {
        name: "start",
        summary: "start a created container's process",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[],
        about: "Lets the process of a container start that 'create' has made.",
        run: |g, p| commands::start::run(g, &convert::id(p)?),
    },
    Command {
        name: "state",
        summary: "show a container's state",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[],
        about: "Prints the state document of the OCI runtime specification as JSON.",
        run: |g, p| commands::state::run(g, &convert::id(p)?),
    },
    Command {
        name: "update",
        summary: "change a container's limits",
        operands: "ID",
        count: (1, 1),
        stop: false,
        flags: &[
            value(
                "resources",
                "FILE",
                "read the limits from a JSON file as linux.resources has them, - for standard input; all other flags are then ignored",
            )
            .letter('r'),
            value("blkio-weight", "N", "weight of block devices, 10 to 1000"),
            value("cpu-period", "USEC", "period of the CPU limit"),
            value("cpu-quota", "USEC", "CPU time per period"),
            value("cpu-burst", "USEC", "CPU time that may be saved up"),
            value("cpu-share", "N", "CPU shares, relative to other containers"),
            value("cpu-rt-period", "USEC", "period of the real-time CPU limit"),
            value("cpu-rt-runtime", "USEC", "real-time CPU time per period"),
            value("cpuset-cpus", "LIST", "CPUs to use"),
            value("cpuset-mems", "LIST", "memory nodes to use"),
            value("cpu-idle", "0|1", "1 runs it only when nothing else wants the CPU"),
            value("kernel-memory", "BYTES", "ignored").hidden(),
            value("kernel-memory-tcp", "BYTES", "ignored").hidden(),
            value("memory", "BYTES", "memory limit; -1 for none; k, m, g may follow"),
            value("memory-reservation", "BYTES", "soft memory limit"),
            value("memory-swap", "BYTES", "limit of memory and swap together; -1 for none"),
            value("pids-limit", "N", "number of processes; -1 for no limit"),
            value("l3-cache-schema", "SCHEMA", "schema of the level 3 cache (Intel RDT)"),
            value("mem-bw-schema", "SCHEMA", "schema of the memory bandwidth (Intel RDT)"),
        ],
        about: "Changes limits of a container. What is not given stays as it is. Device rules are changed by a JSON file that has some.",
        run: |g, p| commands::update::run(g, &convert::update(p)?),
    },
    Command {
        name: "completion",
        summary: "print shell completions",
        operands: "bash|zsh|fish",
        count: (1, 1),
        stop: false,
        flags: &[],
        about: "Prints a completion script for a shell.",
        run: |_, p| super::completion::run(p),
    },
    Command {
        name: "help",
        summary: "show help",
        operands: "[COMMAND]",
        count: (0, 1),
        stop: false,
        flags: &[switch("man", "as a man page")],
        about: "Shows help for rrun or for one command.",
        run: |_, p| super::help::run(p),
    },
];
