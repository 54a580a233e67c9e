//! What each command was asked for: its flags and operands as types, filled by the parser and
//! consumed by the command of the same name. Paths are as typed (relative to the current folder).

use std::path::PathBuf;
use std::time::Duration;

/// The flags before the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Globals {
    /// Absolute path of the state root, `/` excluded.
    pub root: PathBuf,
    /// `--root` was given.
    pub root_given: bool,
    /// Where log lines go; standard error where absent.
    pub log: Option<PathBuf>,
    /// Their form.
    pub log_format: LogFormat,
    /// Debug lines too.
    pub debug: bool,
    /// `--systemd-cgroup`, or `--cgroup-manager` which overrides it.
    pub cgroup_manager: CgroupManager,
    /// `--rootless`; `None` for `auto`.
    pub rootless: Option<bool>,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// logrus's text: `time="…" level=… msg="…"`.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupManager {
    /// We do, in the cgroup file systems.
    #[default]
    Cgroupfs,
    /// systemd does, as scopes.
    Systemd,
    /// Nobody: the container stays in the caller's.
    Disabled,
}

/// `create`; also the part that `run` shares with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Create {
    /// The container's id.
    pub id: String,
    /// `--bundle`; the current folder where absent.
    pub bundle: Option<PathBuf>,
    /// `--config`: another file than the bundle's `config.json`.
    pub config: Option<PathBuf>,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pidfd-socket`.
    pub pidfd_socket: Option<PathBuf>,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// `--preserve-fds`: that many descriptors from 3 on (after those of `LISTEN_FDS`).
    pub preserve_fds: u32,
}

/// `run`. The form `run DIR` arrives here as a bundle and an id made from the folder's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// What it shares with `create`.
    pub create: Create,
    /// `--detach`.
    pub detach: bool,
    /// `--keep`: the container is not deleted when its process ends.
    pub keep: bool,
    /// `--no-subreaper`.
    pub no_subreaper: bool,
}

/// `exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// The container's id.
    pub id: String,
    /// The command and its arguments; empty with `--process`.
    pub args: Vec<String>,
    /// `--process`: a file with the whole process.
    pub process: Option<PathBuf>,
    /// `--console-socket`.
    pub console_socket: Option<PathBuf>,
    /// `--pidfd-socket`.
    pub pidfd_socket: Option<PathBuf>,
    /// `--cwd`.
    pub cwd: Option<PathBuf>,
    /// `--env NAME=VALUE`, added to the container's.
    pub env: Vec<String>,
    /// `--tty`; without it there is none, whatever the container itself has.
    pub tty: bool,
    /// `--user UID[:GID]`.
    pub user: Option<(u32, Option<u32>)>,
    /// `--additional-gids`.
    pub additional_gids: Vec<u32>,
    /// `--detach`.
    pub detach: bool,
    /// `--pid-file`.
    pub pid_file: Option<PathBuf>,
    /// `--process-label`: an SELinux label.
    pub process_label: Option<String>,
    /// `--apparmor`: a profile's name.
    pub apparmor: Option<String>,
    /// `--no-new-privs`; `None` leaves the container's own setting.
    pub no_new_privs: Option<bool>,
    /// `--cap`: capabilities added.
    pub cap: Vec<String>,
    /// `--preserve-fds`.
    pub preserve_fds: u32,
    /// `--cgroup [CONTROLLER[,CONTROLLER]:]PATH` below the container's, as typed.
    pub cgroup: Vec<String>,
    /// `--ignore-paused`: join a paused container nevertheless.
    pub ignore_paused: bool,
}

/// `events`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// The container's id.
    pub id: String,
    /// `--stats`: the usage, once.
    pub stats: bool,
    /// `--interval`.
    pub interval: Duration,
}

/// `start`, `state`, `pause`, `resume`: nothing but an id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Id {
    /// The container's id.
    pub id: String,
}

/// `kill`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The container's id.
    pub id: String,
    /// The signal's number, `SIGTERM` where none is given.
    pub signal: i32,
    /// `--all`: every process of the container.
    pub all: bool,
}

/// `mounts`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// `remove`, not `add`.
    pub remove: bool,
    /// The container's id.
    pub id: String,
    /// The list, `-` for standard input.
    pub file: PathBuf,
}

/// `delete`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delete {
    /// The container's id.
    pub id: String,
    /// `--force`.
    pub force: bool,
}

/// `list`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// `--format json`.
    pub json: bool,
    /// `--quiet`: ids alone.
    pub quiet: bool,
}

/// `ps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ps {
    /// The container's id.
    pub id: String,
    /// `--format json`.
    pub json: bool,
    /// Options for the host's `ps`; `-ef` where none are given.
    pub options: Vec<String>,
}

/// `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    /// `--bundle`; the current folder where absent.
    pub bundle: Option<PathBuf>,
    /// `--rootless`: for an ordinary user.
    pub rootless: bool,
}

/// `update`. Texts are checked where they become resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// The container's id.
    pub id: String,
    /// `--resources FILE`, `-` for standard input: then all others are ignored.
    pub resources: Option<PathBuf>,
    /// The other flags by long name, in the order typed.
    pub values: Vec<(&'static str, String)>,
}

/// What `checkpoint` and `restore` share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Criu {
    /// `--image-path`; `checkpoint` in the current folder where absent.
    pub image_path: Option<PathBuf>,
    /// `--work-path`; the images' folder where absent.
    pub work_path: Option<PathBuf>,
    /// `--tcp-established`.
    pub tcp_established: bool,
    /// `--link-remap`.
    pub link_remap: bool,
    /// `--ext-unix-sk`.
    pub ext_unix_sk: bool,
    /// `--shell-job`.
    pub shell_job: bool,
    /// `--lazy-pages`.
    pub lazy_pages: bool,
    /// `--file-locks`.
    pub file_locks: bool,
    /// `--manage-cgroups-mode`.
    pub cgroup_mode: crate::criu::CgroupMode,
    /// `--empty-ns network`.
    pub empty_network: bool,
    /// `--auto-dedup`.
    pub auto_dedup: bool,
}

/// `checkpoint`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The container's id.
    pub id: String,
    /// What it shares with `restore`.
    pub criu: Criu,
    /// `--parent-path`, relative to the images' folder.
    pub parent_path: Option<PathBuf>,
    /// `--leave-running`.
    pub leave_running: bool,
    /// `--tcp-skip-in-flight`.
    pub tcp_skip_in_flight: bool,
    /// `--status-fd`.
    pub status_fd: Option<i32>,
    /// `--page-server`.
    pub page_server: Option<(String, u16)>,
    /// `--pre-dump`.
    pub pre_dump: bool,
}

/// `restore`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restore {
    /// Id, bundle, `--console-socket`, `--pid-file`, `--no-pivot`.
    pub create: Create,
    /// What it shares with `checkpoint`.
    pub criu: Criu,
    /// `--detach`.
    pub detach: bool,
    /// `--no-subreaper`.
    pub no_subreaper: bool,
    /// `--tcp-close`.
    pub tcp_close: bool,
    /// `--lsm-profile`.
    pub lsm_profile: Option<String>,
    /// `--lsm-mount-context`.
    pub lsm_mount_context: Option<String>,
}
