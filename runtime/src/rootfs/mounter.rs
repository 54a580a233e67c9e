//! Makes the mounts of a plan inside the container's mount namespace, in the order of the list, each
//! on a target that was resolved below the container's root.

use super::attach::{self, Copy, Filesystem, Target, apply_options, make_readonly};
use super::mounts::{Kind, MountOp, check_proc};
use super::options::attr;
use super::{cgroup, copy_up, devices, failed, idmap, paths};
use crate::sys::{self, MountAttr, Spent};
use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchownat};
use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// What the parent opened for an entry, because the container's init may not be able to.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// A detached copy of the source.
    pub copy: Option<OwnedFd>,
    /// The parent has to map it, when its turn comes.
    pub by_parent: bool,
    /// The user namespace that carries the mapping.
    pub id_map: Option<OwnedFd>,
}

/// Makes the mounts of a plan, inside the container's mount namespace.
pub(super) struct Mounter<'a> {
    fetch: &'a dyn Fn(usize) -> Result<OwnedFd>,
    pub plan: &'a super::Plan,
    pub root: BorrowedFd<'a>,
    /// The tmpfs of ours at /dev, which later targets may be straight below.
    pub dev: Option<OwnedFd>,
    /// The procfs at /proc.
    pub proc: Option<OwnedFd>,
    /// To be made read-only at the end.
    pub readonly: Vec<OwnedFd>,
    spent: Spent,
}

impl<'a> Mounter<'a> {
    pub(super) fn new(plan: &'a super::Plan, root: BorrowedFd<'a>, fetch: &'a dyn Fn(usize) -> Result<OwnedFd>) -> Mounter<'a> {
        Mounter { fetch, plan, root, dev: None, proc: None, readonly: Vec::new(), spent: Spent::default() }
    }

    /// Makes all mounts.
    pub(super) fn run(&mut self) -> Result<()> {
        for (i, op) in self.plan.mounts.iter().enumerate() {
            // In runc's words, which its callers look for.
            self.make(i, op).with_context(|| format!("error mounting {}", op.label))?;
        }
        Ok(())
    }

    fn make(&mut self, i: usize, op: &'a MountOp) -> Result<()> {
        if op.destination == Path::new("/dev") {
            self.dev = None;
        }
        match &op.kind {
            Kind::Bind(path) => self.bind(i, op, path),
            Kind::Filesystem(filesystem) => self.filesystem(op, filesystem),
            Kind::Cgroup => {
                let target = self.folder(op)?;
                cgroup::mount(&target, op, &self.plan.cgroups, &mut self.spent)?;
                self.spent.add(target.fd);
                Ok(())
            }
        }
    }

    fn bind(&mut self, i: usize, op: &'a MountOp, path: &Path) -> Result<()> {
        let copy = match self.plan.sources.get(i) {
            Some(source) if source.by_parent => Copy::Detached((self.fetch)(i)?),
            source => open_source(op, path, source)?,
        };
        if op.destination == Path::new("/proc") && sys::fstype(copy.as_fd())? != super::PROC_MAGIC {
            bail!("\"/proc\" cannot be mounted because it is not of type proc");
        }
        let target = self.target(op, || match paths::kind(&copy) {
            Ok(SFlag::S_IFDIR) => paths::Missing::Folder,
            _ => paths::Missing::File,
        })?;
        let mount = copy.mount(&target)?;
        apply_options(mount.as_fd(), &op.options, true, op.options.bind != Some(true))?;
        self.spent.add(target.fd);
        self.spent.add(mount);
        Ok(())
    }

    fn filesystem(&mut self, op: &'a MountOp, filesystem: &Filesystem) -> Result<()> {
        let target = self.folder(op)?;
        let mount = match fitted(op, filesystem, &target)?.mount(&target) {
            Err(error) if self.plan.user_namespace && is_refused(&error) => self.host_copy(op, &target, error)?,
            other => other?,
        };
        if op.options.copy_up {
            copy_up(&target, mount.as_fd())?;
        }
        apply_options(mount.as_fd(), &op.options, false, true)?;
        self.spent.add(target.fd);
        self.keep(op, mount)
    }

    /// Remembers the mounts that later steps need.
    fn keep(&mut self, op: &'a MountOp, mount: OwnedFd) -> Result<()> {
        if op.is_dev_tmpfs() {
            devices::make(self.root, Some(mount.as_fd()), &self.plan.devices, self.plan.bind_devices)?;
            if op.is_readonly() {
                self.readonly.push(mount.try_clone()?);
            }
            self.dev = Some(mount);
        } else if op.destination == Path::new("/proc") {
            self.proc = Some(mount);
        } else if op.is_readonly() && op.ends_readonly() {
            self.readonly.push(mount);
        } else {
            self.spent.add(mount);
        }
        Ok(())
    }

    /// The target of a file system: a folder.
    fn folder(&self, op: &'a MountOp) -> Result<Target<'a>> {
        if let (Some(mount), Some(name)) = (&self.dev, op.destination.file_name())
            && op.destination.parent() == Some(Path::new("/dev"))
        {
            // Straight below a mount that nobody else can reach: no link can be in the way.
            let made = match mkdirat(mount, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) => 1,
                Err(Errno::EEXIST) => 0,
                Err(errno) => return Err(failed("mkdir")(errno)),
            };
            let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_DIRECTORY;
            let fd = sys::openat(mount.as_fd(), &paths::c(name)?, flags, 0).map_err(failed("open"))?;
            return Ok(Target { root: self.root, path: &op.destination, fd, made });
        }
        self.target(op, || paths::Missing::Folder)
    }

    /// The target of a mount, made where it is missing.
    fn target(&self, op: &'a MountOp, missing: impl Fn() -> paths::Missing) -> Result<Target<'a>> {
        let path = op.destination.as_path();
        let mut made = 0;
        let fd = match paths::open_plain(self.root, path, OFlag::O_PATH) {
            Ok(fd) => fd,
            Err(Errno::ELOOP) if matches!(op.fstype(), b"proc" | b"sysfs") => {
                bail!(
                    "the destination is a symbolic link in the root file system: {} must be mounted on ordinary directory",
                    path.display()
                )
            }
            Err(Errno::ENOENT | Errno::ELOOP) => {
                let found = paths::walk(self.root, path, missing()).map_err(not_made)?;
                if found.path != path {
                    check_proc(&found.path, &op.kind)?;
                    if sys::fstype(found.fd.as_fd())? == super::PROC_MAGIC && !found.path.starts_with("/proc") {
                        bail!("the destination is a link to a procfs");
                    }
                }
                made = found.made;
                found.fd
            }
            Err(errno) => return Err(failed("open the destination")(errno)),
        };
        Ok(Target { root: self.root, path, fd, made })
    }

    /// In a user namespace that does not own the network, IPC or PID namespace the kernel refuses a
    /// new sysfs, mqueue or procfs. The container then gets the host's, which shows the same.
    fn host_copy(&self, op: &MountOp, target: &Target<'_>, error: anyhow::Error) -> Result<OwnedFd> {
        let path = match op.fstype() {
            b"sysfs" => "/sys",
            b"mqueue" => "/dev/mqueue",
            b"proc" if !self.plan.new_pid_namespace => "/proc",
            b"proc" => {
                return Err(error.context(
                    "a user namespace may mount procfs only where a whole one is visible; here parts of /proc are covered (a container?)",
                ));
            }
            _ => return Err(error),
        };
        let Ok(copy) = Copy::of_path(Path::new(path), true) else { return Err(error) };
        let mount = copy.mount(target).with_context(|| format!("the host's {path} in its place"))?;
        let attributes = op.options.attributes() & (attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC);
        let wanted = MountAttr { set: attributes, ..MountAttr::default() };
        attach::set_attributes(mount.as_fd(), true, &wanted)
            .or_else(|errno| if errno == Errno::ENOSYS { attach::set_attributes(mount.as_fd(), false, &wanted) } else { Err(errno) })
            .map_err(failed("mount_setattr"))?;
        Ok(mount)
    }
}

/// The source of a bind mount as a detached copy, id-mapped where that was asked for.
fn open_source(op: &MountOp, path: &Path, source: Option<&Source>) -> Result<Copy> {
    let recursive = op.options.bind == Some(true);
    let prepared = source.and_then(|s| s.copy.as_ref());
    let copy = match (Copy::of_path(path, recursive), prepared) {
        // Only the host's root may go there: then the parent's copy serves.
        (Err(Errno::EACCES), Some(copy)) => Copy::Detached(slave(copy)?),
        (Err(errno), _) => return Err(missing_source(path, errno)),
        (Ok(copy), _) => copy,
    };
    if let Some(namespace) = source.and_then(|s| s.id_map.as_ref()) {
        if matches!(copy, Copy::Place(..)) {
            bail!(idmap::TOO_OLD);
        }
        idmap::apply(copy.as_fd(), namespace.as_fd(), op.options.idmap == Some(true))?;
    }
    Ok(copy)
}

/// The same, never the place itself.
pub(super) fn detached_source(op: &MountOp, path: &Path, source: Option<&Source>) -> Result<OwnedFd> {
    match open_source(op, path, source)? {
        Copy::Detached(copy) => Ok(copy),
        Copy::Place(..) => bail!(idmap::TOO_OLD),
    }
}

/// A copy made in the host's mount namespace, as one made in the container's would be: it hears of
/// the host's mounts and unmounts, and tells nobody of its own.
fn slave(copy: &OwnedFd) -> Result<OwnedFd> {
    let wanted = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
    attach::set_attributes(copy.as_fd(), true, &wanted).map_err(failed("mount_setattr(MS_SLAVE)"))?;
    Ok(copy.try_clone()?)
}

/// Why the source of a bind mount cannot be had.
pub(super) fn missing_source(path: &Path, errno: Errno) -> anyhow::Error {
    match errno {
        Errno::ENOENT => anyhow!("{}: no such file or directory; the source does not exist on the host", path.display()),
        Errno::EINVAL => anyhow::Error::new(errno)
            .context("open_tree: in a user namespace a folder with mounts below it can only be bound with them (option rbind)"),
        Errno::ENOSYS => anyhow!(idmap::TOO_OLD),
        errno => anyhow::Error::new(errno).context(format!("open_tree {}", path.display())),
    }
}

/// Why a destination that is missing cannot be made.
pub(super) fn not_made(errno: Errno) -> anyhow::Error {
    match errno {
        Errno::EROFS => anyhow!("the destination does not exist and cannot be made: the file system there is read-only"),
        errno => failed("make the destination")(errno),
    }
}

/// The file system as it suits its target: of a tmpfs the mode of the image's folder shows through.
pub(super) fn fitted<'f>(op: &MountOp, filesystem: &'f Filesystem, target: &Target<'_>) -> Result<Cow<'f, Filesystem>> {
    let mut filesystem = Cow::Borrowed(filesystem);
    if op.fstype() == b"tmpfs" && !op.options.has_data("mode") && target.made == 0 {
        filesystem.to_mut().option("mode", Some(&format!("{:o}", fstat(&target.fd)?.st_mode & 0o7777)))?;
    }
    Ok(filesystem)
}

/// Whether a file system may not be mounted by us.
fn is_refused(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Errno>(), Some(Errno::EPERM))
}

/// Fills a fresh tmpfs with what it covers, which its target's descriptor still shows.
pub(super) fn copy_up(target: &Target<'_>, mount: BorrowedFd<'_>) -> Result<()> {
    copy_up::copy(target.fd.as_fd(), mount)?;
    let stat = fstat(&target.fd)?;
    match fchownat(mount, "", Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)), AtFlags::AT_EMPTY_PATH) {
        Err(Errno::EINVAL | Errno::EPERM) => Ok(()),
        other => other.map_err(failed("tmpcopyup: chown")),
    }
}

/// Makes what was kept writable read-only.
pub(super) fn finish(mounts: &[OwnedFd]) -> Result<()> {
    for mount in mounts {
        make_readonly(mount.as_fd()).map_err(failed("mount_setattr(read-only)"))?;
    }
    Ok(())
}
