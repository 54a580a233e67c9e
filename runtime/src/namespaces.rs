//! The namespaces of a container: which are made, which are joined by path, in what order.

use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::Linux;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The time namespace (nix has no name for it).
pub const NEWTIME: u64 = 0x80;
/// The user namespace.
pub const NEWUSER: u64 = nix::libc::CLONE_NEWUSER as u64;
/// The mount namespace.
pub const NEWNS: u64 = nix::libc::CLONE_NEWNS as u64;
/// The PID namespace.
pub const NEWPID: u64 = nix::libc::CLONE_NEWPID as u64;
/// The IPC namespace.
pub const NEWIPC: u64 = nix::libc::CLONE_NEWIPC as u64;
/// The network namespace.
pub const NEWNET: u64 = nix::libc::CLONE_NEWNET as u64;
/// The cgroup namespace.
pub const NEWCGROUP: u64 = nix::libc::CLONE_NEWCGROUP as u64;
/// The UTS namespace.
pub const NEWUTS: u64 = nix::libc::CLONE_NEWUTS as u64;

/// All kinds by their names in /proc/PID/ns, in the order in which they are joined.
pub const NAMES: [(&str, u64); 8] = [
    ("user", NEWUSER),
    ("ipc", NEWIPC),
    ("uts", NEWUTS),
    ("net", NEWNET),
    ("pid", NEWPID),
    ("cgroup", NEWCGROUP),
    ("time", NEWTIME),
    ("mnt", NEWNS),
];

/// A namespace that exists already.
#[derive(Debug)]
pub struct Joined {
    /// Its `CLONE_NEW*` flag.
    pub kind: u64,
    /// It, opened.
    pub fd: OwnedFd,
    /// How an error names it.
    pub name: String,
}

impl Joined {
    /// Whether the caller is in it.
    pub fn is_ours(&self) -> bool {
        let ours =
            NAMES.into_iter().find(|(_, kind)| *kind == self.kind).map(|(name, _)| std::fs::metadata(format!("/proc/self/ns/{name}")));
        let (Some(Ok(ours)), Ok(theirs)) = (ours, nix::sys::stat::fstat(&self.fd)) else { return false };
        (ours.dev(), ours.ino()) == (theirs.st_dev, theirs.st_ino)
    }
}

/// `linux.namespaces` of a configuration.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// `CLONE_NEW*` flags of those to be made.
    pub new: u64,
    /// Those to be joined.
    pub joined: Vec<Joined>,
    /// What goes into `/proc/self/timens_offsets`, empty when nothing.
    pub time_offsets: String,
}

impl Namespaces {
    /// Reads `linux.namespaces` and `linux.timeOffsets`, and opens what is to be joined.
    pub fn new(linux: Option<&Linux>) -> Result<Namespaces> {
        let mut all = Namespaces::default();
        let Some(linux) = linux else { return Ok(all) };
        for (i, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let kind = namespace.typ() as u64;
            if all.has(kind) {
                bail!("linux.namespaces[{i}].type: {} is there twice", namespace.typ());
            }
            let Some(path) = namespace.path().as_ref().filter(|p| !p.as_os_str().is_empty()) else {
                all.new |= kind;
                continue;
            };
            let name = format!("linux.namespaces[{i}].path: {}", path.display());
            if !path.is_absolute() {
                bail!("{name}: not an absolute path");
            }
            let fd: OwnedFd = std::fs::File::open(path).with_context(|| name.clone())?.into();
            if sys::fstype(fd.as_fd()).with_context(|| name.clone())? != NSFS_MAGIC {
                bail!("{name}: not a namespace (name a file such as /proc/PID/ns/net, or a bind mount of one)");
            }
            all.joined.push(Joined { kind, fd, name });
        }
        all.time_offsets = time_offsets(linux)?;
        if !all.time_offsets.is_empty() && all.new & NEWTIME == 0 {
            bail!("linux.timeOffsets: needs a new time namespace in linux.namespaces");
        }
        Ok(all)
    }

    /// Whether the container has a namespace of this kind that is not the caller's.
    pub fn has(&self, kind: u64) -> bool {
        self.new & kind != 0 || self.joins(kind)
    }

    /// Whether a namespace of this kind is joined by path.
    pub fn joins(&self, kind: u64) -> bool {
        self.joined.iter().any(|j| j.kind == kind)
    }

    /// All kinds that are not the caller's, as `CLONE_NEW*` flags.
    pub fn kinds(&self) -> u64 {
        self.joined.iter().fold(self.new, |kinds, j| kinds | j.kind)
    }

    /// Whether an intermediate process must make init. Only then: a user namespace is joined, or a
    /// new one must not exist yet while other namespaces are joined, or must exist already when the
    /// time namespace is made, so that it owns it.
    pub fn needs_hop(&self) -> bool {
        let joined_others = self.joined.iter().any(|j| j.kind != NEWUSER);
        self.joins(NEWUSER) || (self.new & NEWUSER != 0 && (joined_others || self.new & NEWTIME != 0))
    }

    /// The flags for the clone that makes init: all new ones but the cgroup namespace (unshared
    /// after joining, else its root would be the caller's cgroup) and the time namespace (clone3
    /// puts only the children of an `unshare` into it).
    pub fn clone_flags(&self) -> u64 {
        self.new & !(NEWCGROUP | NEWTIME)
    }

    /// Joins, in the calling process, all namespaces of which `wanted` says so; the mount namespace
    /// last, because it replaces `/`. The user namespace is joined when its turn comes; what was
    /// forbidden before is tried once more after it.
    pub fn join(&self, wanted: impl Fn(u64) -> bool) -> Result<()> {
        let order = |kind: u64| if kind == NEWNS { 2 } else { u8::from(kind == NEWUSER) };
        let mut waiting: Vec<&Joined> = self.joined.iter().filter(|j| wanted(j.kind)).collect();
        waiting.sort_by_key(|j| order(j.kind));
        let mut forbidden = Vec::new();
        for joined in waiting {
            match enter(joined) {
                Err(Errno::EPERM) if joined.kind != NEWUSER => forbidden.push(joined),
                other => other.with_context(|| format!("{}: setns", joined.name))?,
            }
        }
        for joined in forbidden {
            enter(joined).with_context(|| format!("{}: setns", joined.name))?;
        }
        Ok(())
    }
}

fn enter(joined: &Joined) -> nix::Result<()> {
    setns(joined.fd.as_fd(), flags(joined.kind))
}

fn flags(kinds: u64) -> CloneFlags {
    CloneFlags::from_bits_retain(kinds as i32)
}

/// `setns(2)` of all `kinds` of the process behind `pidfd` at once (Linux 5.8), or one by one.
pub fn join_process(pidfd: Option<&OwnedFd>, pid: i32, kinds: u64) -> Result<()> {
    if kinds == 0 {
        return Ok(());
    }
    if let Some(pidfd) = pidfd {
        match setns(pidfd.as_fd(), flags(kinds)) {
            // Older kernels take no pidfd here.
            Err(Errno::EINVAL) => (),
            other => return other.context("setns by pidfd of the container's init"),
        }
    }
    let mut all = Namespaces::default();
    for (name, kind) in NAMES {
        if kinds & kind != 0 {
            let path = format!("/proc/{pid}/ns/{name}");
            let fd = std::fs::File::open(&path).with_context(|| path.clone())?.into();
            all.joined.push(Joined { kind, fd, name: path });
        }
    }
    all.join(|_| true)
}

/// The file of the caller's time offsets. The right to write is that of its opener, who must have
/// power over the user namespace that will own the time namespace.
pub fn open_time_offsets() -> Result<File> {
    File::options().write(true).open("/proc/self/timens_offsets").context("open /proc/self/timens_offsets")
}

/// Makes the new time namespace for the caller's children and sets its offsets.
pub fn unshare_time(offsets: &str, mut file: File) -> Result<()> {
    unshare(flags(NEWTIME)).context("linux.namespaces: unshare of the time namespace")?;
    if !offsets.is_empty() {
        file.write_all(offsets.as_bytes()).with_context(|| format!("linux.timeOffsets: write {offsets:?} to /proc/self/timens_offsets"))?;
    }
    Ok(())
}

/// Unshares the cgroup namespace, whose root becomes the caller's cgroup.
pub fn unshare_cgroup() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare of the cgroup namespace")
}

/// A namespace of the caller's children, put back on drop: what a parent has changed for the one
/// child it clones must not hold for its hooks.
#[derive(Debug)]
pub struct Borrowed {
    own: OwnedFd,
    kind: u64,
}

impl Borrowed {
    /// Remembers the caller's own namespace of this kind (`pid` or `time`).
    pub fn remember(kind: u64) -> Result<Borrowed> {
        let name = if kind == NEWPID { "pid" } else { "time" };
        let path = format!("/proc/self/ns/{name}");
        let own = std::fs::File::open(&path).with_context(|| path.clone())?.into();
        Ok(Borrowed { own, kind })
    }

    /// Puts it back.
    pub fn restore(self) -> Result<()> {
        setns(self.own.as_fd(), flags(self.kind)).context("setns back to the runtime's own namespace")
    }
}

/// Whether the caller is in the initial user namespace, whose inode number is fixed
/// (`PROC_USER_INIT_INO`).
pub fn in_initial_user_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/user").is_ok_and(|link| link.as_os_str() == "user:[4026531837]")
}

fn time_offsets(linux: &Linux) -> Result<String> {
    let mut text = String::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            bail!("linux.timeOffsets: unknown clock {clock:?} (known: monotonic, boottime)");
        }
        text.push_str(&format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0)));
    }
    Ok(text)
}
