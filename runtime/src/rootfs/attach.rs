//! Making mounts: a new file system or a copy of what is somewhere, built detached and attached by
//! descriptor. The first `ENOSYS` of a call sends it and all that follow to [`super::fallback`].

use super::fallback;
use super::options::{Options, attr};
use super::{failed, paths};
use crate::sys::{self, MountAttr};
use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::stat::SFlag;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// `fsopen`, `fsconfig`, `fsmount`: Linux 5.2.
static NO_FSOPEN: AtomicBool = AtomicBool::new(false);
/// `open_tree`, `move_mount`: Linux 5.2.
static NO_OPEN_TREE: AtomicBool = AtomicBool::new(false);
/// `mount_setattr`: Linux 5.12.
static NO_SETATTR: AtomicBool = AtomicBool::new(false);

/// The kernel takes values up to this many bytes through `fsconfig`; longer ones go to `mount(2)`.
const MAX_VALUE: usize = 255;

/// The attributes that are set or not, each by itself.
pub(super) const PLAIN: u64 = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC | attr::NOSYMFOLLOW;

/// Where a mount goes: a descriptor, and the way to find it again once it is covered.
#[derive(Debug)]
pub(super) struct Target<'a> {
    /// The container's root.
    pub root: BorrowedFd<'a>,
    /// The path below it.
    pub path: &'a Path,
    /// `O_PATH` descriptor of what will be covered.
    pub fd: OwnedFd,
    /// How many of the last components of the path had to be made.
    pub made: usize,
}

/// A file system to be mounted.
#[derive(Clone, Debug)]
pub(super) struct Filesystem {
    /// `proc`, `tmpfs`, …
    pub fstype: CString,
    /// What mountinfo shows as its source.
    pub source: CString,
    /// Its own options.
    pub data: Vec<(CString, Option<CString>)>,
    /// Generic options of the superblock (`ro`, `sync`, …).
    pub superblock: Vec<&'static CStr>,
    /// `MOUNT_ATTR_*` of the mount.
    pub attributes: u64,
    /// The same flags for `mount(2)`.
    pub flags: u64,
}

impl Filesystem {
    /// A file system without options.
    pub(super) fn new(fstype: &str, source: &str) -> Result<Filesystem> {
        Ok(Filesystem {
            fstype: CString::new(fstype)?,
            source: CString::new(source)?,
            data: Vec::new(),
            superblock: Vec::new(),
            attributes: 0,
            flags: 0,
        })
    }

    /// Adds an option.
    pub(super) fn option(&mut self, key: &str, value: Option<&str>) -> Result<()> {
        self.data.push((CString::new(key)?, value.map(CString::new).transpose()?));
        Ok(())
    }

    /// What the new calls cannot say.
    fn needs_mount(&self) -> bool {
        let long = |value: &Option<CString>| value.as_ref().is_some_and(|v| v.as_bytes().len() > MAX_VALUE);
        self.flags & libc::MS_I_VERSION != 0 || self.data.iter().any(|(_, value)| long(value))
    }

    /// Builds the mount without attaching it. `None` where only [`fallback`] can.
    pub(super) fn detached(&self) -> Result<Option<OwnedFd>> {
        if NO_FSOPEN.load(Relaxed) || self.needs_mount() {
            return Ok(None);
        }
        let context = match sys::fsopen(&self.fstype) {
            Err(Errno::ENOSYS) => {
                NO_FSOPEN.store(true, Relaxed);
                return Ok(None);
            }
            Err(Errno::ENODEV) => bail!("fsopen: this kernel has no file system {:?}", self.fstype),
            other => other.map_err(failed("fsopen"))?,
        };
        let context = context.as_fd();
        let wrap = |call: String| {
            move |errno: Errno| {
                let said = sys::fscontext_messages(context);
                anyhow::Error::new(errno).context(if said.is_empty() { call } else { format!("{call}: {said}") })
            }
        };
        if !self.source.is_empty() {
            sys::fsconfig_string(context, c"source", &self.source).map_err(wrap("fsconfig(source)".into()))?;
        }
        for flag in &self.superblock {
            sys::fsconfig_flag(context, flag).map_err(wrap(format!("fsconfig({flag:?})")))?;
        }
        for (key, value) in &self.data {
            match value {
                Some(value) => sys::fsconfig_string(context, key, value).map_err(wrap(format!("option {key:?} = {value:?}")))?,
                None => sys::fsconfig_flag(context, key).map_err(wrap(format!("option {key:?}")))?,
            }
        }
        sys::fsconfig_create(context).map_err(wrap("fsconfig(create)".into()))?;
        sys::fsmount(context, self.attributes).map_err(wrap("fsmount".into())).map(Some)
    }

    /// Mounts it on `target`; a descriptor of the new mount's root.
    pub(super) fn mount(&self, target: &Target<'_>) -> Result<OwnedFd> {
        match self.detached()? {
            Some(mount) => {
                sys::move_mount(mount.as_fd(), target.fd.as_fd()).map_err(|errno| match paths::kind(&target.fd) {
                    Ok(SFlag::S_IFDIR) | Err(_) => failed("move_mount")(errno),
                    Ok(_) => anyhow!("move_mount: the destination is not a folder"),
                })?;
                Ok(mount)
            }
            None => fallback::mount(self, target),
        }
    }
}

/// A copy of what is mounted somewhere.
#[derive(Debug)]
pub(super) enum Copy {
    /// A detached mount.
    Detached(OwnedFd),
    /// Kernels before 5.2: the place itself; `true`: with what is mounted below.
    Place(OwnedFd, bool),
}

impl Copy {
    /// Of a path of the host.
    pub(super) fn of_path(path: &Path, recursive: bool) -> sys::Result<Copy> {
        let path = paths::c(path.as_os_str())?;
        if let Some(copy) = clone_tree(sys::CWD, &path, recursive, 0)? {
            return Ok(Copy::Detached(copy));
        }
        Ok(Copy::Place(sys::openat(sys::CWD, &path, libc::O_PATH, 0)?, recursive))
    }

    /// Of what a descriptor points at.
    pub(super) fn of_fd(fd: BorrowedFd<'_>, recursive: bool) -> sys::Result<Copy> {
        if let Some(copy) = clone_tree(fd, c"", recursive, sys::AT_EMPTY_PATH)? {
            return Ok(Copy::Detached(copy));
        }
        Ok(Copy::Place(fd.try_clone_to_owned().map_err(|_| Errno::last())?, recursive))
    }

    /// Mounts it on `target`; a descriptor of the new mount's root.
    pub(super) fn mount(self, target: &Target<'_>) -> Result<OwnedFd> {
        match self {
            Copy::Detached(copy) => {
                sys::move_mount(copy.as_fd(), target.fd.as_fd()).map_err(|errno| {
                    let folder = |fd: BorrowedFd<'_>| paths::kind(fd).is_ok_and(|kind| kind == SFlag::S_IFDIR);
                    match (folder(copy.as_fd()), folder(target.fd.as_fd())) {
                        (true, false) => anyhow!("move_mount: the source is a folder, the destination is a file"),
                        (false, true) => anyhow!("move_mount: the source is a file, the destination is a folder"),
                        _ => failed("move_mount")(errno),
                    }
                })?;
                Ok(copy)
            }
            Copy::Place(place, recursive) => fallback::bind(place.as_fd(), recursive, target),
        }
    }
}

impl AsFd for Copy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Copy::Detached(fd) | Copy::Place(fd, _) => fd.as_fd(),
        }
    }
}

fn clone_tree(dir: BorrowedFd<'_>, path: &CStr, recursive: bool, flags: u32) -> sys::Result<Option<OwnedFd>> {
    if NO_OPEN_TREE.load(Relaxed) {
        return Ok(None);
    }
    let recursive = if recursive { sys::AT_RECURSIVE } else { 0 };
    match sys::open_tree(dir, path, sys::OPEN_TREE_CLONE | recursive | flags) {
        Err(Errno::ENOSYS) => {
            NO_OPEN_TREE.store(true, Relaxed);
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Whether mounts cannot be copied detached here.
pub(super) fn cannot_copy() -> bool {
    NO_OPEN_TREE.load(Relaxed)
}

/// `mount_setattr`, on kernels before 5.12 as much of it as `mount(2)` can do.
pub(super) fn set_attributes(mount: BorrowedFd<'_>, recursive: bool, wanted: &MountAttr) -> sys::Result<()> {
    if !NO_SETATTR.load(Relaxed) {
        match sys::mount_setattr(mount, recursive, wanted) {
            Err(Errno::ENOSYS) => NO_SETATTR.store(true, Relaxed),
            // Before 5.14 the kernel does not know nosymfollow: then it is not set either.
            Err(Errno::EINVAL) if wanted.clear & attr::NOSYMFOLLOW != 0 => {
                return sys::mount_setattr(mount, recursive, &MountAttr { clear: wanted.clear & !attr::NOSYMFOLLOW, ..*wanted });
            }
            other => return other,
        }
    }
    fallback::set_attributes(mount, recursive, wanted)
}

/// Makes one mount read-only and changes nothing else.
pub(super) fn make_readonly(mount: BorrowedFd<'_>) -> sys::Result<()> {
    set_attributes(mount, false, &MountAttr { set: attr::RDONLY, ..MountAttr::default() })
}

/// Changes a fresh mount as its options ask. `single`: nothing is mounted below it, so that one
/// call does for recursive and other changes alike.
pub(super) fn apply_options(mount: BorrowedFd<'_>, options: &Options, bind: bool, single: bool) -> Result<()> {
    let mut own = if bind { bind_attributes(options) } else { MountAttr::default() };
    let mut propagation = options.propagation.as_slice();
    if let [first, rest @ ..] = propagation
        && (single || first & libc::MS_REC == 0)
    {
        own.propagation = first & !libc::MS_REC;
        propagation = rest;
    }
    if own != MountAttr::default() {
        match set_attributes(mount, false, &own) {
            // Flags that a more privileged mount namespace has set are locked here: those that
            // were not asked to go stay. Asking for one to go is an error.
            Err(Errno::EPERM) if bind => set_attributes(mount, false, &MountAttr { clear: unlocked(options, &own), ..own }),
            other => other,
        }
        .map_err(|errno| match errno {
            Errno::EPERM => anyhow::Error::new(errno)
                .context("mount_setattr: a flag of the source's mount is locked in a user namespace and cannot be cleared"),
            errno => failed("mount_setattr")(errno),
        })?;
    }
    for change in propagation {
        let wanted = MountAttr { propagation: change & !libc::MS_REC, ..MountAttr::default() };
        set_attributes(mount, change & libc::MS_REC != 0, &wanted).map_err(failed("mount_setattr(propagation)"))?;
    }
    if let Some((set, clear)) = options.recursive {
        let wanted = MountAttr { set, clear, ..MountAttr::default() };
        set_attributes(mount, true, &wanted).map_err(|errno| match errno {
            Errno::ENOSYS => anyhow!("recursive mount options (rro, rnosuid, …) need Linux 5.12"),
            errno => failed("mount_setattr(AT_RECURSIVE)")(errno),
        })?;
    }
    Ok(())
}

/// What the flags of a bind mount become: without any flag in the options they stay as the source
/// has them; with one, exactly those asked for are set (as runc and its tests have it), except that
/// access time modes stay unless one is named. With `remount` only what is named changes.
fn bind_attributes(options: &Options) -> MountAttr {
    const ATIME_FLAGS: u64 = libc::MS_NOATIME | libc::MS_RELATIME | libc::MS_STRICTATIME | libc::MS_NODIRATIME;
    if !options.mentions_flags() {
        return MountAttr::default();
    }
    let wanted = options.attributes();
    let mut out = MountAttr { set: wanted & PLAIN, clear: PLAIN & !wanted, ..MountAttr::default() };
    if options.set & libc::MS_REMOUNT != 0 {
        out.clear = cleared(options);
    }
    if options.set & ATIME_FLAGS != 0 {
        out.set |= wanted & (attr::ATIME | attr::NODIRATIME);
        out.clear |= attr::ATIME | attr::NODIRATIME & !wanted;
    }
    out
}

/// What may be cleared where flags are locked: what was asked for by name, what cannot be locked,
/// and the access time field, which the kernel compares.
fn unlocked(options: &Options, own: &MountAttr) -> u64 {
    cleared(options) | own.clear & (attr::NOSYMFOLLOW | attr::ATIME | attr::NODIRATIME)
}

/// The flags that options such as `rw` or `exec` clear by name.
fn cleared(options: &Options) -> u64 {
    Options { set: options.clear & !libc::MS_NOATIME & !libc::MS_STRICTATIME & !libc::MS_NODIRATIME, ..Options::default() }.attributes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(text: &str) -> MountAttr {
        bind_attributes(&Options::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>()))
    }

    #[test]
    fn a_bind_without_flags_keeps_all() {
        assert_eq!(attributes("rbind,rprivate"), MountAttr::default());
    }

    #[test]
    fn a_bind_with_a_flag_has_exactly_those_asked_for() {
        let a = attributes("bind,ro,exec");
        assert_eq!(a.set, attr::RDONLY);
        assert_eq!(a.clear, attr::NOSUID | attr::NODEV | attr::NOEXEC | attr::NOSYMFOLLOW);
        let a = attributes("bind,dev");
        assert_eq!((a.set, a.clear & attr::RDONLY), (0, attr::RDONLY));
    }

    #[test]
    fn remount_changes_only_what_is_named() {
        let a = attributes("bind,remount,ro,exec");
        assert_eq!((a.set, a.clear), (attr::RDONLY, attr::NOEXEC));
    }

    #[test]
    fn access_time_stays_unless_named() {
        assert_eq!(attributes("bind,atime").clear & attr::ATIME, 0);
        let a = attributes("bind,nodiratime");
        assert_eq!((a.set & attr::NODIRATIME, a.clear & attr::ATIME), (attr::NODIRATIME, attr::ATIME));
        let a = attributes("bind,strictatime");
        assert_eq!((a.set & attr::ATIME, a.clear & attr::NODIRATIME), (attr::STRICTATIME, attr::NODIRATIME));
    }

    #[test]
    fn locked_flags_stay_unless_asked_to_go() {
        let options = Options::parse(&["bind".into(), "ro".into(), "exec".into()]);
        let own = bind_attributes(&options);
        assert_eq!(unlocked(&options, &own), attr::NOEXEC | attr::NOSYMFOLLOW);
    }
}
