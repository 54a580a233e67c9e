//! Cgroups: where a container's are, how its processes get in, its limits, its end.
//!
//! One [`Cgroup`] drives v1, v2 and the hybrid of both, by the files themselves or through systemd:
//! `plan` decides, `record` goes to disk, `create` (or `adopt`) makes, `entry` lets further
//! processes in, `remove` leaves nothing. `hierarchies.rs` finds what is mounted, `v1.rs` and
//! `v2.rs` know the files, `limits.rs` writes them, `devices.rs` filters devices, `folder.rs` holds
//! what both versions share; `plan.rs`, `make.rs` and `entry.rs` are parts of [`Cgroup`].
//!
//! Invariant: only a folder strictly below the mount point of its hierarchy is made or removed.

mod dbus;
mod device_program;
mod devices;
mod entry;
mod folder;
mod gvariant;
mod hierarchies;
mod limits;
#[cfg(test)]
mod live;
mod make;
mod oom;
mod plan;
mod properties;
mod record;
mod stats;
mod systemd;
mod v1;
mod v2;
mod wire;

use anyhow::{Context, Result, bail};
use folder::Folder;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use oci_spec::runtime::{Linux, LinuxResources};
pub use oom::{OomWatch, Seen};
use record::Hierarchy;
pub use record::{Driver, Record};
pub use stats::Stats;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The layout of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Hierarchies of v1 only.
    V1,
    /// Controllers on v1, and a v2 hierarchy beside them.
    Hybrid,
    /// One v2 hierarchy.
    V2,
}

/// How a new process gets into a container's cgroups.
#[derive(Debug)]
pub enum Entry {
    /// It stays where it is.
    None,
    /// It is cloned into this v2 cgroup (`CLONE_INTO_CGROUP`).
    Into(OwnedFd),
    /// It writes "0" into each of these, back to back, before it does anything else.
    Write(Vec<OwnedFd>),
    /// It waits until its parent has called [`Cgroup::adopt`] (create) or [`Cgroup::attach`] (exec).
    Adopt,
}

/// A hierarchy as a mount of type `cgroup` shows it in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Folder name below `/sys/fs/cgroup`: `cpu,cpuacct`, `systemd`, `unified`.
    pub name: String,
    /// Further names that point there: `cpu` and `cpuacct`.
    pub links: Vec<String>,
    /// The container's own folder on the host.
    pub host_dir: PathBuf,
    /// Where the hierarchy is mounted on the host.
    pub mountpoint: PathBuf,
    /// Mount options of v1: `cpu,cpuacct`, `name=systemd`; empty for cgroup2.
    pub options: String,
    /// File system type `cgroup2`.
    pub v2: bool,
}

/// A container's cgroups.
#[derive(Debug)]
pub struct Cgroup {
    record: Record,
    /// Controllers at the v2 mount point, known after `plan`.
    available: Vec<String>,
    warnings: Vec<String>,
    /// The one connection, once it is needed.
    systemd: RefCell<Option<systemd::Systemd>>,
}

impl Cgroup {
    /// What goes into `state.json` before anything is made.
    pub fn record(&self) -> Record {
        self.record.clone()
    }

    /// From a record; touches nothing.
    pub fn open(record: &Record) -> Result<Cgroup> {
        for h in record.ours() {
            hierarchies::check_below(&h.dir, &h.mountpoint).context("state.json: cgroup")?;
        }
        Ok(Cgroup { record: record.clone(), available: Vec::new(), warnings: Vec::new(), systemd: RefCell::new(None) })
    }

    /// What the container goes without, a line each, to be said once.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The layout of the host, as `plan` found it.
    pub fn version(&self) -> Version {
        let any = |v2: bool| self.record.hierarchies.iter().any(|h| h.v2 == v2);
        match (any(false), any(true)) {
            (true, true) => Version::Hybrid,
            (false, true) => Version::V2,
            _ => Version::V1,
        }
    }

    /// Whether the container has a cgroup of its own in any hierarchy.
    pub fn exists(&self) -> bool {
        self.ours().next().is_some()
    }

    /// Changes the limits; where it holds device rules these replace all that there are.
    pub fn update(&self, r: &LinuxResources) -> Result<()> {
        limits::check(r)?;
        let devices = r.devices().as_ref().is_some_and(|d| !d.is_empty());
        if !self.exists() && (devices || !limits::is_empty(r)) {
            bail!("the container has no cgroup of its own whose limits could change");
        }
        if let Some(unified) = self.unified() {
            let available = v2::controllers(&unified.dir).unwrap_or_default();
            self.check_available(r, &available)?;
        } else {
            self.check_available(r, &[])?;
        }
        let mut r = Cow::Borrowed(r);
        if let Some([unit, _]) = &self.record.unit {
            let v2 = self.version() == Version::V2;
            let now = |file: &str| folder::read_file(&self.unified()?.dir, file).ok();
            r = Cow::Owned(properties::held(&r, &now("cpu.max").unwrap_or_default()));
            if let Some(h) = self.unified().filter(|_| v2) {
                // systemd writes at once what would kill.
                v2::check_usage(&h.dir, &r)?;
            }
            let rules = devices::Rules::new(r.devices().as_deref().unwrap_or_default())?;
            self.systemd(|systemd| {
                let mut properties = systemd.limits(&r, v2, now)?;
                if devices && !self.record.rootless {
                    properties.extend(systemd.devices(&rules));
                }
                systemd.set(unit, properties)
            })?;
        }
        self.limit(&r, true)?;
        if devices { self.filter_devices(&r, true).map(drop) } else { Ok(()) }
    }

    /// The processes in it and below it, by their ids in the caller's PID namespace.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut list = Vec::new();
        if let Some(h) = self.primary() {
            folder::pids(&h.dir, &mut list)?;
        }
        Ok(list)
    }

    /// Freezes or thaws all of its processes, and waits until they are.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let done = match self.freezer() {
            Some(h) if h.v2 => v2::freeze(&h.dir, frozen),
            Some(h) => v1::freeze(&h.dir, frozen),
            None => bail!("the container has no cgroup that could be frozen"),
        };
        match done {
            // systemd removes a scope as soon as its last process is gone.
            Err(e) if !frozen && matches!(e.downcast_ref(), Some(Errno::ENOENT | Errno::ENODEV)) => Ok(()),
            other => other,
        }
    }

    /// Whether its processes are frozen.
    pub fn frozen(&self) -> Result<bool> {
        self.record.frozen()
    }

    /// Sends a signal to all of its processes. SIGKILL reaches frozen ones, too.
    pub fn kill(&self, signal: i32) -> Result<()> {
        let kill = signal == nix::libc::SIGKILL;
        let v1_freezer = || self.freezer().filter(|h| !h.v2);
        if kill
            && let Some(h) = self.unified().filter(|h| h.ours)
            && Folder::open(&h.dir).is_ok_and(|f| f.write("cgroup.kill", "1").is_ok())
        {
            if let Some(h) = v1_freezer().filter(|h| v1::frozen(&h.dir).is_ok_and(|f| f)) {
                v1::freeze(&h.dir, false)?;
            }
            return Ok(());
        }
        // Frozen meanwhile, none of them can escape by making another.
        let paused = self.frozen()?;
        let held = paused || self.freeze(true).is_ok();
        for pid in self.pids()? {
            match crate::sys::kill(pid, signal) {
                Ok(()) | Err(Errno::ESRCH) => (),
                Err(e) => return Err(e).with_context(|| format!("signal {signal} to process {pid}")),
            }
        }
        if held && (kill || !paused) {
            self.freeze(false)?;
        }
        Ok(())
    }

    /// Kills what is left and removes the cgroups; finds nothing to do the second time.
    pub fn remove(&self) -> Result<()> {
        if let Some([unit, _]) = &self.record.unit {
            if self.ours().any(|h| h.dir.exists()) {
                // A scope whose last process is gone goes by itself; one that has some would be given
                // time to end them gently.
                self.kill(nix::libc::SIGKILL)?;
                self.systemd(|systemd| systemd.stop(unit))?;
            } else {
                // One that failed stays without its cgroup, for who asks systemd how it ended.
                let _ = self.systemd(|systemd| systemd.forget(unit));
            }
        }
        let mut busy = Vec::new();
        let mut failed = Ok(());
        for h in self.ours() {
            hierarchies::check_below(&h.dir, &h.mountpoint)?;
            match folder::remove_empty(&h.dir) {
                Ok(true) => (),
                Ok(false) => busy.push(h),
                Err(e) => failed = failed.and(Err(e)),
            }
        }
        if !busy.is_empty() {
            self.kill(nix::libc::SIGKILL)?;
            for h in busy {
                failed = failed.and(folder::remove_tree(&h.dir));
            }
        }
        failed
    }

    /// Gives the v2 cgroup to user `uid` of the host, who may then divide it: the folder and the
    /// files that the kernel names (`/sys/kernel/cgroup/delegate`).
    pub fn delegate(&self, uid: u32) -> Result<()> {
        let Some(h) = self.unified().filter(|h| h.ours && self.version() == Version::V2) else { return Ok(()) };
        let names = std::fs::read_to_string("/sys/kernel/cgroup/delegate")
            .unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned());
        let owner = Some(nix::unistd::Uid::from_raw(uid));
        for path in std::iter::once(h.dir.clone()).chain(names.lines().map(|n| h.dir.join(n))) {
            match nix::unistd::chown(&path, owner, None) {
                Ok(()) | Err(Errno::ENOENT) => (),
                Err(e) => return Err(e).with_context(|| format!("give {} to user {uid}", path.display())),
            }
        }
        Ok(())
    }

    /// The hierarchies as mounts of type `cgroup` show them.
    pub fn views(&self) -> Vec<View> {
        let view = |h: &Hierarchy| View {
            name: if h.v2 {
                "unified".to_owned()
            } else {
                h.mountpoint.file_name().map_or_else(|| h.controllers.clone(), |n| n.to_string_lossy().into_owned())
            },
            links: if h.controllers.contains(',') { h.controllers.split(',').map(str::to_owned).collect() } else { Vec::new() },
            host_dir: h.dir.clone(),
            mountpoint: h.mountpoint.clone(),
            options: h.controllers.clone(),
            v2: h.v2,
        };
        self.record.hierarchies.iter().map(view).collect()
    }

    /// Where CRIU may freeze its processes.
    pub fn freezer_folder(&self) -> Option<&Path> {
        self.freezer().map(|h| h.dir.as_path())
    }

    /// Calls systemd over the one connection of this command.
    fn systemd<T>(&self, call: impl FnOnce(&mut systemd::Systemd) -> Result<T>) -> Result<T> {
        let mut slot = self.systemd.borrow_mut();
        match &mut *slot {
            Some(systemd) => call(systemd),
            None => call(slot.insert(systemd::Systemd::connect(self.record.rootless)?)),
        }
    }

    fn ours(&self) -> impl Iterator<Item = &Hierarchy> {
        self.record.ours()
    }

    fn unified(&self) -> Option<&Hierarchy> {
        self.record.hierarchies.iter().find(|h| h.v2)
    }

    fn freezer(&self) -> Option<&Hierarchy> {
        self.record.freezer()
    }

    /// The hierarchy whose list of processes counts.
    fn primary(&self) -> Option<&Hierarchy> {
        self.freezer().or_else(|| self.ours().next())
    }
}
