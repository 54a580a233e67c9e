//! The container's root file system: mounts, devices, masks, and the way in.
//!
//! [`Plan::new`] reads and checks in the parent; [`Plan::prepare`] builds everything in the
//! container's init before the root is entered, through descriptors only; [`Root::pivot`] enters it
//! and [`Root::finish`] closes what had to stay writable. No string path is ever followed inside
//! the root file system: see `paths`.

mod attach;
mod cgroup;
mod confined;
mod copy_up;
mod devices;
mod fallback;
mod idmap;
mod live;
mod masks;
mod mounter;
mod mountinfo;
mod mounts;
mod options;
mod paths;
mod pivot;
mod saved;

pub use confined::confine;
pub use live::{Mounts, remove};
pub use options::mount_options;
pub use saved::{Home, bind_root, check_is, check_key, check_link, clean, is_bind, make_destinations, of_process, resolve, way_home};

use crate::bundle::Bundle;
use crate::cgroups;
use crate::sys;
use anyhow::{Context as _, Result, bail};
use attach::Copy;
use mounter::{Mounter, Source};
use mounts::MountOp;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, umask};
use nix::unistd::fchdir;
use oci_spec::runtime::LinuxIdMapping;
use std::cell::OnceCell;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `PROC_SUPER_MAGIC`.
const PROC_MAGIC: i64 = 0x9fa0;

/// What the plan depends on besides the bundle.
#[derive(Debug)]
pub struct Context<'a> {
    /// The caller is root: it may open mounts for the container that the container's root may not.
    pub privileged: bool,
    /// The container is in a user namespace, new, joined or the caller's own: mknod is impossible.
    pub user_namespace: bool,
    /// The container has a mount namespace of its own or joins one.
    pub new_mount_namespace: bool,
    /// It has a cgroup namespace of its own.
    pub new_cgroup_namespace: bool,
    /// It has a PID namespace of its own.
    pub new_pid_namespace: bool,
    /// It has a network namespace of its own.
    pub new_network_namespace: bool,
    /// Its cgroups.
    pub cgroup_views: Vec<cgroups::View>,
    /// `linux.mountLabel`.
    pub mount_label: Option<&'a str>,
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// Mappings of its user namespace where it is new: user ids, group ids.
    pub id_maps: (&'a [LinuxIdMapping], &'a [LinuxIdMapping]),
    /// The user namespace that it joins.
    pub joined_user_namespace: Option<BorrowedFd<'a>>,
}

impl Context<'_> {
    /// Whether a group id exists in the container; unknown maps are given the benefit of the doubt.
    fn maps_gid(&self, gid: u32) -> bool {
        let holds = |m: &LinuxIdMapping| gid.checked_sub(m.container_id()).is_some_and(|n| n < m.size());
        self.id_maps.1.is_empty() || self.id_maps.1.iter().any(holds)
    }
}

/// Everything about a container's root file system, read and checked.
#[derive(Debug)]
pub struct Plan {
    rootfs: PathBuf,
    readonly: bool,
    /// `linux.rootfsPropagation` as `MS_*` bits.
    propagation: Option<u64>,
    mounts: Vec<MountOp>,
    sources: Vec<Source>,
    /// A copy of the root file system opened by the parent.
    rootfs_copy: Option<OwnedFd>,
    devices: Vec<devices::Node>,
    /// Device nodes are bound from the host.
    bind_devices: bool,
    masked: Vec<String>,
    readonly_paths: Vec<String>,
    label: Option<String>,
    cgroups: cgroup::Cgroups,
    privileged: bool,
    user_namespace: bool,
    mount_namespace: bool,
    new_pid_namespace: bool,
    no_pivot: bool,
}

impl Plan {
    /// Reads and checks root, mounts, devices, masked and read-only paths. Touches nothing.
    pub fn new(bundle: &Bundle, context: &Context<'_>) -> Result<Plan> {
        let spec = &bundle.spec;
        let linux = spec.linux().as_ref();
        let list = |l: Option<&Option<Vec<String>>>| l.cloned().flatten().unwrap_or_default();
        let propagation = linux.and_then(|l| l.rootfs_propagation().as_deref()).filter(|p| !p.is_empty());
        let plan = Plan {
            rootfs: bundle.rootfs(),
            readonly: spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false),
            propagation: propagation.map(propagation_bits).transpose()?,
            mounts: mounts::plan(spec.mounts().as_deref().unwrap_or_default(), &bundle.dir, &paths::clean(&bundle.rootfs()), context)?,
            sources: Vec::new(),
            rootfs_copy: None,
            devices: devices::plan(linux.and_then(|l| l.devices().as_deref()).unwrap_or_default())?,
            bind_devices: context.user_namespace,
            masked: list(linux.map(|l| l.masked_paths())),
            readonly_paths: list(linux.map(|l| l.readonly_paths())),
            label: context.mount_label.filter(|l| !l.is_empty()).map(str::to_owned),
            cgroups: cgroup::Cgroups::new(context),
            privileged: context.privileged,
            user_namespace: context.user_namespace,
            mount_namespace: context.new_mount_namespace,
            new_pid_namespace: context.new_pid_namespace,
            no_pivot: context.no_pivot,
        };
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        for (field, paths) in [("linux.maskedPaths", &self.masked), ("linux.readonlyPaths", &self.readonly_paths)] {
            if let Some(i) = paths.iter().position(|p| !p.starts_with('/')) {
                bail!("{field}[{i}]: {:?} is not an absolute path", paths[i]);
            }
            if !self.mount_namespace && !paths.is_empty() {
                bail!("{field}: unable to restrict sys entries without a private MNT namespace (see linux.namespaces)");
            }
        }
        Ok(())
    }

    /// Opens, in the parent, what the container's init cannot: user namespaces for id-mapped mounts,
    /// and for a container in a user namespace the sources that only the host's root may reach.
    pub fn open_sources(&mut self) -> Result<()> {
        let inaccessible = self.privileged && self.user_namespace && self.mount_namespace;
        if inaccessible {
            self.rootfs_copy = detached(&self.rootfs, true).ok();
        } else if self.mounts.iter().all(|op| op.id_maps.is_none()) {
            return Ok(());
        }
        for op in &self.mounts {
            let source = match &op.kind {
                mounts::Kind::Bind(path) => self.open_source(op, path, inaccessible).with_context(|| op.label.clone())?,
                _ => Source::default(),
            };
            self.sources.push(source);
        }
        Ok(())
    }

    fn open_source(&self, op: &MountOp, path: &Path, inaccessible: bool) -> Result<Source> {
        let mut source = Source { id_map: op.id_map()?, ..Source::default() };
        source.by_parent = inaccessible && source.id_map.is_some();
        if inaccessible && !source.by_parent {
            // If not, perhaps an earlier mount of the list brings it; init looks again.
            source.copy = detached(path, op.options.bind == Some(true)).ok();
        }
        Ok(source)
    }

    /// In the parent: the source of mount `i` as a detached, id-mapped mount, for the init `pid` in a user
    /// namespace, which may not map it. Looked up where init would: an earlier mount may have brought it.
    pub fn source_for(&self, i: usize, pid: i32) -> Result<OwnedFd> {
        let op = self.mounts.get(i).context("no such mount")?;
        let (mounts::Kind::Bind(path), Some(source)) = (&op.kind, self.sources.get(i)) else { bail!("no source") };
        let home = Home::enter(pid)?;
        let copy = mounter::detached_source(op, path, Some(source));
        home.back()?;
        copy
    }

    /// Builds the root file system in the container's mount namespace, all but the way in.
    ///
    /// `fetch` asks the parent for [`Plan::source_for`].
    pub fn prepare(&self, fetch: &dyn Fn(usize) -> Result<OwnedFd>) -> Result<Root> {
        // Modes are given in full; the process gets its own umask later.
        umask(Mode::empty());
        let root = pivot::attach_root(self).with_context(|| format!("root.path ({})", self.rootfs.display()))?;
        let mut mounter = Mounter::new(self, root.as_fd(), fetch);
        mounter.run()?;
        if mounter.dev.is_none() && self.sets_up_dev() {
            devices::make(root.as_fd(), None, &self.devices, self.bind_devices)?;
        }
        let (proc, readonly) = (mounter.proc.take(), std::mem::take(&mut mounter.readonly));
        drop(mounter);
        let entry = pivot::Entry::new(self);
        let procfs = OnceCell::new();
        match &proc {
            // Made while the host's /proc is still there to allow it.
            None => drop(procfs.set(private_procfs()?)),
            // Made before anything covers it, where it cannot be copied later.
            Some(proc) if entry.isolated && attach::cannot_copy() => drop(fallback::keep_procfs(proc).map(|fd| procfs.set(fd))),
            Some(_) => (),
        }
        masks::make_paths_readonly(root.as_fd(), &self.readonly_paths)?;
        masks::mask(root.as_fd(), &self.masked, self.label.as_deref())?;
        umask(Mode::from_bits_truncate(0o022));
        Ok(Root { fd: root, readonly, readonly_root: self.readonly, propagation: self.propagation, entry, procfs, proc })
    }

    /// Devices are made unless /dev is a bind mount, whose owner is somebody else.
    fn sets_up_dev(&self) -> bool {
        let bound = |op: &&MountOp| op.destination == Path::new("/dev") && matches!(op.kind, mounts::Kind::Bind(_));
        self.mounts.iter().find(bound).is_none()
    }
}

/// The root file system of a container, from inside it.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    /// The procfs at its /proc that we mounted.
    proc: Option<OwnedFd>,
    /// A procfs that nobody else can reach and that nothing covers.
    procfs: OnceCell<OwnedFd>,
    /// Mounts to be made read-only at the end.
    readonly: Vec<OwnedFd>,
    readonly_root: bool,
    propagation: Option<u64>,
    entry: pivot::Entry,
}

impl Root {
    /// The root of the calling process, which has joined a container.
    pub fn current() -> Result<Root> {
        let fd = sys::openat(sys::CWD, c"/", libc::O_PATH | libc::O_DIRECTORY, 0).map_err(failed("open /"))?;
        Ok(Root {
            fd,
            proc: None,
            procfs: OnceCell::new(),
            readonly: Vec::new(),
            readonly_root: false,
            propagation: None,
            entry: pivot::Entry::default(),
        })
    }

    /// Enters it; the host's tree is gone afterwards.
    pub fn pivot(&self) -> Result<()> {
        pivot::enter(self.fd.as_fd(), &self.entry)
    }

    /// Makes the folder `path` in it the current one. Never through a magic link: a descriptor of ours
    /// may lead to the host (CVE-2024-21626).
    pub fn enter(&self, path: &CStr) -> sys::Result<()> {
        fchdir(paths::open(self.fd.as_fd(), Path::new(OsStr::from_bytes(path.to_bytes())), OFlag::O_PATH | OFlag::O_DIRECTORY)?)
    }

    /// Makes the folder `path` in it, and all on the way to it.
    pub fn make_folder(&self, path: &CStr) -> sys::Result<()> {
        paths::walk(self.fd.as_fd(), Path::new(OsStr::from_bytes(path.to_bytes())), paths::Missing::Folder).map(drop)
    }

    /// Makes read-only what had to be writable until now, and sets the root's propagation.
    pub fn finish(&self) -> Result<()> {
        mounter::finish(&self.readonly).context("mounts")?;
        if self.readonly_root {
            attach::make_readonly(self.fd.as_fd()).map_err(failed("mount_setattr")).context("root.readonly")?;
        }
        if let Some(bits) = self.propagation {
            // Of the root alone: the other mounts have what their options say.
            let wanted = sys::MountAttr { propagation: bits & !libc::MS_REC, ..sys::MountAttr::default() };
            attach::set_attributes(self.fd.as_fd(), false, &wanted).map_err(failed("mount_setattr")).context("linux.rootfsPropagation")?;
        }
        Ok(())
    }

    /// A procfs for the runtime's own reads and writes, whatever the container has at /proc.
    pub fn procfs(&self) -> Result<BorrowedFd<'_>> {
        if self.procfs.get().is_none() {
            let made = match &self.proc {
                // A copy: without what read-only and masked paths have put on the container's.
                Some(proc) => uncovered(proc)?,
                None => private_procfs()?,
            };
            let _ = self.procfs.set(made);
        }
        let procfs = self.procfs.get().context("procfs")?.as_fd();
        if sys::fstype(procfs)? != PROC_MAGIC {
            bail!("/proc is not a procfs");
        }
        Ok(procfs)
    }

    /// Opens the container's pty multiplexer, `/dev/pts/ptmx`, checked to be one.
    pub fn open_ptmx(&self) -> Result<OwnedFd> {
        devices::open_ptmx(self.fd.as_fd())
    }

    /// Mounts the pty slave on `/dev/console`.
    pub fn attach_console(&self, slave: BorrowedFd<'_>) -> Result<()> {
        devices::attach_console(self.fd.as_fd(), slave).context("/dev/console")
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A writable copy of our own procfs mount.
fn uncovered(proc: &OwnedFd) -> Result<OwnedFd> {
    let Copy::Detached(copy) = Copy::of_fd(proc.as_fd(), false).map_err(failed("open_tree of /proc"))? else {
        // Kernels before 5.2: the mount itself.
        return Ok(proc.try_clone()?);
    };
    let wanted = sys::MountAttr { clear: options::attr::RDONLY, ..sys::MountAttr::default() };
    match sys::mount_setattr(copy.as_fd(), false, &wanted) {
        // Only matters where config.json has a read-only /proc.
        Ok(()) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(copy),
        Err(errno) => Err(failed("mount_setattr")(errno)),
    }
}

/// A procfs of our PID namespace that is mounted nowhere, or where the kernel refuses one the /proc
/// that is there.
fn private_procfs() -> Result<OwnedFd> {
    let filesystem = attach::Filesystem::new("proc", "proc")?;
    match filesystem.detached() {
        Ok(Some(procfs)) => Ok(procfs),
        _ => sys::openat(sys::CWD, c"/proc", libc::O_PATH | libc::O_DIRECTORY, 0)
            .map_err(failed("open /proc"))
            .context("a procfs is needed to set up the process, and none can be mounted"),
    }
}

/// A detached copy of a path of the host, or the reason why there is none.
fn detached(path: &Path, recursive: bool) -> sys::Result<OwnedFd> {
    match Copy::of_path(path, recursive)? {
        Copy::Detached(copy) => Ok(copy),
        Copy::Place(..) => Err(Errno::ENOSYS),
    }
}

fn propagation_bits(name: &str) -> Result<u64> {
    options::propagation(name).with_context(|| {
        format!("linux.rootfsPropagation: {name:?} is none of shared, slave, private, unbindable, rshared, rslave, rprivate, runbindable")
    })
}

/// For `map_err`: names the call.
fn failed(call: &'static str) -> impl Fn(Errno) -> anyhow::Error {
    move |errno| anyhow::Error::new(errno).context(call)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A folder that is removed at the end of a test.
    pub(super) struct Temp(pub(super) PathBuf);

    impl Temp {
        pub(super) fn new() -> Temp {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("rrun-rootfs-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Temp(path)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
