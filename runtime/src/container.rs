//! A container on disk: its folder below the state root, its record, its derived status, its teardown.
//!
//! ```text
//! ROOT/ID/            0700
//!   state.json        the record: what was made or will be made (0600, replaced by rename)
//!   config.json       the bundle's configuration as it was at create (exec, update and hooks read it)
//!   mounts.json       its mounts, once `mounts` has changed them
//!   exec.fifo         there from create until start
//! ```
//!
//! What will be made is recorded before it is made, so that [`Container::destroy`], which runs for
//! `delete`, for `delete --force` and for a failed create alike, finds all of it at any moment.

use crate::bundle;
use crate::cgroups;
use crate::intel_rdt::Groups;
use crate::json::{self, document, written};
use crate::namespaces::NEWPID;
use crate::sys;
use crate::{hooks, notify};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use oci_spec::runtime::{Hooks, Mount, Spec};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The layout version of [`Record`]; a folder of another version is refused, not guessed at.
const RECORD_VERSION: u32 = 1;

/// Folder in a container's, there while CRIU restores it: where it finds the root file system.
pub const RESTORE_ROOT: &str = "criu-root";

/// Errors that callers tell apart by their text (containerd, CRI-O and Podman match these words).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No container of that id.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The id has characters outside `[A-Za-z0-9_+.-]`, or is `.` or `..`.
    InvalidId,
    /// The container of that id must be stopped for this.
    NotStopped(String, Status),
    /// It is not running.
    NotRunning,
    /// It is paused.
    Paused,
    /// It is not paused.
    NotPaused,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFound => f.write_str("container does not exist"),
            Error::AlreadyExists => f.write_str("container with given ID already exists"),
            Error::InvalidId => f.write_str("invalid container ID format"),
            Error::NotStopped(id, status) => write!(f, "cannot delete container {id} that is not stopped: {status}"),
            Error::NotRunning => f.write_str("container not running"),
            Error::Paused => f.write_str("container paused"),
            Error::NotPaused => f.write_str("container not paused"),
        }
    }
}

impl std::error::Error for Error {}

/// A container's status, derived from what is there (runtime-spec, "State").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Being made; or its creator died on the way.
    Creating,
    /// Waits for `start`.
    Created,
    /// Its process runs.
    Running,
    /// Frozen.
    Paused,
    /// Its process is gone.
    Stopped,
}

impl Status {
    /// Its name in documents.
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What `state.json` holds.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// The `ociVersion` of its configuration.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Process id of init in the runtime's PID namespace; 0 until it is made.
    pub pid: i32,
    /// Start time of init in clock ticks since boot (`/proc/PID/stat`, field 22): tells it from
    /// a later process of the same number.
    pub start_time: u64,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// RFC 3339 with nanoseconds, UTC.
    pub created: String,
    /// User id of the caller of create.
    pub owner: u32,
    /// The configuration's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Where its cgroups are.
    pub cgroup: cgroups::Record,
    /// It was made without privileges over the host.
    pub rootless: bool,
    /// Its namespaces that are not the runtime's, as `CLONE_NEW*` flags: what `exec` joins.
    pub namespaces: u64,
    /// Its user namespace has no more than the caller's single group: setgroups is forbidden in it.
    pub single_group: bool,
    /// Its groups of resctrl.
    pub intel_rdt: Option<Groups>,
    /// It has a socket for sd_notify in its folder.
    pub notify: bool,
    /// Its configuration has hooks: `start` and `delete` must read it.
    pub hooks: bool,
    /// Its mounts were changed since: `mounts.json` has them.
    pub mounts: bool,
}

document! { Record;
    "version" => version,
    "ociVersion" => oci_version,
    "id" => id,
    "pid" => pid,
    "startTime" => start_time,
    "bundle" => bundle,
    "rootfs" => rootfs,
    "created" => created,
    "owner" => owner,
    "annotations" => annotations,
    "cgroup" => cgroup,
    "rootless" => rootless,
    "namespaces" => namespaces,
    "singleGroup" => single_group,
    "intelRdt" => intel_rdt,
    "notify" => notify,
    "hooks" => hooks,
    "mounts" => mounts,
}

/// The specification's state document.
#[derive(Debug)]
pub struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
    pid: i32,
    bundle: &'a Path,
    annotations: &'a BTreeMap<String, String>,
}

written! { State<'a>;
    "ociVersion" => oci_version,
    "id" => id,
    "status" => status,
    "pid" => pid,
    "bundle" => bundle,
    "annotations" => annotations,
}

impl Record {
    /// The state (runtime-spec, "State") that hooks and seccomp listeners read.
    pub fn state<'a>(&'a self, status: &'a str, pid: i32) -> State<'a> {
        State { oci_version: &self.oci_version, id: &self.id, status, pid, bundle: &self.bundle, annotations: &self.annotations }
    }

    /// Runs the hooks of one kind, `pid` being the container's process as they can see it, `env` the environment of
    /// those that have none of their own.
    pub fn run_hooks(&self, kind: hooks::Kind, all: &Hooks, pid: i32, env: &[CString]) -> Result<()> {
        let list = kind.of(all);
        if list.is_empty() {
            return Ok(());
        }
        hooks::run(kind, list, json::text(&self.state(kind.status(), pid)).as_bytes(), env)
    }
}

/// A container's folder, opened.
#[derive(Debug)]
pub struct Container {
    /// `ROOT/ID`, absolute.
    pub dir: PathBuf,
    /// Its record.
    pub record: Record,
}

impl Container {
    /// Makes the folder of a new container and writes its first record: from here on
    /// [`Container::destroy`] knows it.
    pub fn reserve(root: &Path, mut record: Record, config: &[u8]) -> Result<Container> {
        check_id(&record.id)?;
        let dir = root.join(&record.id);
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        let made = match builder.create(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                builder.recursive(true).create(root).with_context(|| format!("state root {}", root.display()))?;
                builder.recursive(false).create(&dir)
            }
            other => other,
        };
        match made {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Err(Error::AlreadyExists.into()),
            other => other.with_context(|| format!("make the container's folder {} (choose another with --root)", dir.display()))?,
        }
        record.version = RECORD_VERSION;
        let container = Container { dir, record };
        let written = container
            .save()
            .and_then(|()| write_new(&container.dir.join("config.json"), config).context("write the container's copy of config.json"));
        if let Err(e) = written {
            let _ = std::fs::remove_dir_all(&container.dir);
            return Err(e);
        }
        Ok(container)
    }

    /// Reads the record of container `id` below `root`.
    pub fn load(root: &Path, id: &str) -> Result<Container> {
        check_id(id)?;
        let dir = root.join(id);
        let path = dir.join("state.json");
        let json = match sys::read_file(&path, 4096) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if dir.is_dir() {
                    bail!("{}: missing; the container's folder is damaged (remove it with 'delete --force {id}')", path.display());
                }
                return Err(Error::NotFound.into());
            }
            other => other.with_context(|| path.display().to_string())?,
        };
        let damaged = || format!("{}: damaged, or of another version of rrun (remove it with 'delete --force {id}')", path.display());
        let (record, _): (Record, _) = json::parse(&json).with_context(damaged)?;
        if record.version != RECORD_VERSION {
            bail!(
                "{}: version {} of the record, this rrun reads {RECORD_VERSION} (use the rrun that made it, or 'delete --force {id}')",
                path.display(),
                record.version
            );
        }
        Ok(Container { dir, record })
    }

    /// Writes the record: a temporary name, then a rename.
    pub fn save(&self) -> Result<()> {
        self.replace("state.json", json::text(&self.record).as_bytes())
    }

    fn replace(&self, name: &str, data: &[u8]) -> Result<()> {
        let temporary = self.dir.join(format!(".{name}"));
        let path = self.dir.join(name);
        write_new(&temporary, data).and_then(|()| std::fs::rename(&temporary, &path)).with_context(|| format!("write {}", path.display()))
    }

    /// The configuration as it was at create, but for mounts that were changed since.
    pub fn config(&self) -> Result<Spec> {
        let mut spec: Spec = self.read("config.json")?;
        if self.record.mounts {
            spec.set_mounts(Some(self.read("mounts.json")?));
        }
        Ok(spec)
    }

    fn read<T: bundle::Read>(&self, name: &str) -> Result<T> {
        let path = self.dir.join(name);
        let json = sys::read_file(&path, 16384).with_context(|| path.display().to_string())?;
        bundle::parse(&json).with_context(|| path.display().to_string())
    }

    /// Keeps what its mounts are from now on.
    pub fn save_mounts(&mut self, list: &[Mount]) -> Result<()> {
        self.replace("mounts.json", json::text(&list).as_bytes())?;
        self.record.mounts = true;
        self.save()
    }

    /// Waits until no other command changes the container's mounts, and keeps them away until dropped.
    pub fn lock(&self) -> Result<Flock<File>> {
        let folder = File::open(&self.dir).with_context(|| self.dir.display().to_string())?;
        Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("flock of the container's folder")
    }

    /// Path of the fifo that gates start.
    pub fn exec_fifo(&self) -> PathBuf {
        self.dir.join("exec.fifo")
    }

    /// The cgroups of the container.
    pub fn cgroup(&self) -> Result<cgroups::Cgroup> {
        cgroups::Cgroup::open(&self.record.cgroup)
    }

    /// A pidfd of init, or `None` when it is gone (or a zombie). `Err(ENOSYS)` never: before Linux
    /// 5.3 see [`Container::alive`].
    pub fn pidfd(&self) -> Result<Option<OwnedFd>> {
        if self.record.pid == 0 {
            return Ok(None);
        }
        let fd = match sys::pidfd_open(self.record.pid) {
            Ok(fd) => fd,
            Err(Errno::ESRCH) => return Ok(None),
            Err(e) => return Err(e).context("pidfd_open"),
        };
        // The start time is read after the descriptor is held, so that the number cannot change hands between.
        Ok(self.alive().then_some(fd))
    }

    /// Whether init is there and no zombie.
    pub fn alive(&self) -> bool {
        self.record.pid != 0 && start_time(self.record.pid) == Some(self.record.start_time)
    }

    /// Sends a signal to init. SIGKILL reaches a frozen container, and where init is not the first
    /// process of a PID namespace, whose end is the end of all others, it reaches them all.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if signal != nix::libc::SIGKILL {
            return self.signal_init(signal);
        }
        // Asked before the signal: afterwards there may be nobody to ask.
        let all = !self.rules_its_pids();
        let cgroup = self.cgroup()?;
        match self.signal_init(signal) {
            // With the host's PIDs the others outlive init.
            Err(e)
                if self.record.namespaces & NEWPID == 0 && e.downcast_ref() == Some(&Error::NotRunning) && !cgroup.pids()?.is_empty() => {}
            other => other?,
        }
        if all {
            cgroup.kill(signal)?;
        } else if cgroup.frozen()? {
            cgroup.freeze(false)?;
        }
        Ok(())
    }

    /// Sends a signal to every process of the container.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        let cgroup = self.cgroup()?;
        if cgroup.pids()?.is_empty() {
            return self.signal_init(signal);
        }
        cgroup.kill(signal)
    }

    fn signal_init(&self, signal: i32) -> Result<()> {
        let sent = match self.pidfd() {
            Ok(None) => return Err(Error::NotRunning.into()),
            Ok(Some(pidfd)) => sys::pidfd_send_signal(pidfd.as_fd(), signal),
            Err(e) if e.downcast_ref() == Some(&Errno::ENOSYS) => match self.alive() {
                true => sys::kill(self.record.pid, signal),
                false => Err(Errno::ESRCH),
            },
            Err(e) => return Err(e),
        };
        match sent {
            Err(Errno::ESRCH) => Err(Error::NotRunning.into()),
            other => other.with_context(|| format!("signal {signal} to process {}", self.record.pid)),
        }
    }

    /// Whether init is process 1 of its PID namespace.
    fn rules_its_pids(&self) -> bool {
        let status = sys::read_file(Path::new(&format!("/proc/{}/status", self.record.pid)), 4096).unwrap_or_default();
        // "NSpid: 4711 1": its number in every namespace from ours to its own.
        let numbers = status.split(|&b| b == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"));
        numbers.is_some_and(|n| n.ends_with(b"\t1"))
    }

    /// The derived status.
    pub fn status(&self) -> Result<Status> {
        if self.record.pid == 0 {
            return Ok(Status::Creating);
        }
        if !self.alive() {
            return Ok(Status::Stopped);
        }
        if self.record.cgroup.frozen()? {
            return Ok(Status::Paused);
        }
        let waits = nix::unistd::access(&self.exec_fifo(), nix::unistd::AccessFlags::F_OK).is_ok();
        Ok(if waits { Status::Created } else { Status::Running })
    }

    /// Removes everything that the record names: processes, cgroups, the folder. Every step may
    /// find its object gone; running it twice is harmless. Hooks are the caller's business.
    pub fn destroy(&self) -> Result<()> {
        let cgroup = self.cgroup()?;
        if let Ok(Some(pidfd)) = self.pidfd() {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), nix::libc::SIGKILL);
        }
        cgroup.remove().context("remove the container's cgroup")?;
        if let Some(groups) = &self.record.intel_rdt {
            groups.remove()?;
        }
        if self.record.notify {
            notify::remove(&self.dir);
        }
        remove_folder(&self.dir)
    }
}

/// Removes a container's folder, of which nothing but its own files is expected.
pub fn remove_folder(dir: &Path) -> Result<()> {
    for name in ["exec.fifo", "config.json", ".state.json", "state.json"] {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).with_context(|| format!("remove {}", path.display())),
            _ => (),
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::DirectoryNotEmpty && remove_rare(dir) => remove_folder(dir),
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| format!("remove {}", dir.display())),
        _ => Ok(()),
    }
}

/// What few have: mounts that were changed, and the place of a restore that was killed. Whether there was any.
fn remove_rare(dir: &Path) -> bool {
    let files = ["mounts.json", ".mounts.json"].map(|name| std::fs::remove_file(dir.join(name)).is_ok());
    files.contains(&true) || std::fs::remove_dir(dir.join(RESTORE_ROOT)).is_ok()
}

/// Removes the folder of a container whose record cannot be read, whatever is in it.
pub fn remove_damaged(root: &Path, id: &str) -> Result<()> {
    check_id(id)?;
    let dir = root.join(id);
    std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))
}

/// Checks an id: `[A-Za-z0-9_+.-]`, neither empty nor `.` nor `..`, at most 1024 bytes.
pub fn check_id(id: &str) -> Result<()> {
    let fine = |c: u8| c.is_ascii_alphanumeric() || b"_+.-".contains(&c);
    if id.is_empty() || id == "." || id == ".." || id.len() > 1024 || !id.bytes().all(fine) {
        return Err(Error::InvalidId).with_context(|| format!("{id:?}"));
    }
    Ok(())
}

/// Start time of a process in clock ticks since boot; `None` when it is gone, dead or a zombie.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = sys::read_file(Path::new(&format!("/proc/{pid}/stat")), 1024).ok()?;
    // The second field is the name in parentheses, which may itself hold anything.
    let close = stat.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 2..)?).ok()?;
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn write_new(path: &Path, data: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(data)
}
