//! Device nodes and links of the container's /dev: the six that the specification promises, those
//! of `linux.devices`, the links to /proc and to the pty multiplexer.
//!
//! All are made relative to a descriptor, of the tmpfs that was mounted at /dev or of a folder found
//! below the root; the last component is never followed. A node that is there already must be the
//! right one. Where mknod is not possible (user namespaces), the host's node is bound over an empty
//! file, after it was opened and checked.

use super::attach::{Copy, Target};
use super::{failed, paths};
use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstat, major, makedev, minor, mknodat};
use nix::unistd::{AccessFlags, Gid, Uid, UnlinkatFlags, access, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// runtime-spec, "Default Devices"; `/dev/console` and `/dev/ptmx` are made elsewhere.
const DEFAULTS: [(&str, u64, u64); 6] =
    [("/dev/null", 1, 3), ("/dev/zero", 1, 5), ("/dev/full", 1, 7), ("/dev/random", 1, 8), ("/dev/urandom", 1, 9), ("/dev/tty", 5, 0)];

/// runtime-spec, "Dev symbolic links".
const LINKS: [(&str, &str); 4] =
    [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")];

/// A node to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// What to call it in an error.
    label: String,
    /// Absolute path in the container, clean.
    path: PathBuf,
    /// Character, block or fifo.
    kind: SFlag,
    /// Device number; 0 for a fifo.
    number: u64,
    /// Permission bits.
    mode: u32,
    uid: u32,
    gid: u32,
}

/// The nodes of a container: those of `linux.devices`, then the default ones they do not replace.
pub(super) fn plan(list: &[LinuxDevice]) -> Result<Vec<Node>> {
    let mut nodes = Vec::with_capacity(list.len() + DEFAULTS.len());
    for (i, device) in list.iter().enumerate() {
        let label = format!("linux.devices[{i}] ({})", device.path().display());
        let node = node(device, &label).with_context(|| label.clone())?;
        // The multiplexer is the link to pts/ptmx, whatever the configuration says.
        if node.path != Path::new("/dev/ptmx") {
            nodes.push(node);
        }
    }
    for (path, major, minor) in DEFAULTS {
        if !nodes.iter().any(|n| n.path == Path::new(path)) {
            nodes.push(Node {
                label: path.to_owned(),
                path: path.into(),
                kind: SFlag::S_IFCHR,
                number: makedev(major, minor),
                mode: 0o666,
                uid: 0,
                gid: 0,
            });
        }
    }
    Ok(nodes)
}

fn node(device: &LinuxDevice, label: &str) -> Result<Node> {
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => bail!("type \"a\" is for cgroup rules; a node is c, b, u or p"),
    };
    if !device.path().is_absolute() {
        bail!("path: must be absolute");
    }
    let number = if kind == SFlag::S_IFIFO {
        0
    } else {
        let part = |n: i64, name: &str| u64::try_from(n).with_context(|| format!("{name}: {n} is negative"));
        makedev(part(device.major(), "major")?, part(device.minor(), "minor")?)
    };
    Ok(Node {
        label: label.to_owned(),
        path: paths::clean(device.path()),
        kind,
        number,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// Makes nodes and links. `dev` is the tmpfs of ours at /dev, where there is one; `bind`: mknod is
/// impossible.
pub(super) fn make(root: BorrowedFd<'_>, dev: Option<BorrowedFd<'_>>, nodes: &[Node], bind: bool) -> Result<()> {
    let found;
    let dev = match dev {
        Some(dev) => dev,
        None => {
            found = match paths::open(root, Path::new("/dev"), OFlag::O_PATH | OFlag::O_DIRECTORY) {
                Err(Errno::ENOENT) => paths::walk(root, Path::new("/dev"), paths::Missing::Folder).map(|found| found.fd),
                other => other,
            }
            .map_err(failed("open"))
            .context("/dev of the root file system")?;
            found.as_fd()
        }
    };
    for node in nodes {
        make_node(root, dev, node, bind).with_context(|| node.label.clone())?;
    }
    for (name, target) in LINKS {
        link(dev, name, target).with_context(|| format!("/dev/{name}: symlink to {target}"))?;
    }
    if access("/proc/kcore", AccessFlags::F_OK).is_ok() {
        link(dev, "core", "/proc/kcore").context("/dev/core: symlink to /proc/kcore")?;
    }
    make_ptmx(dev).context("/dev/ptmx: symlink to pts/ptmx")
}

/// A link, unless something of that name is there.
fn link(dev: BorrowedFd<'_>, name: &str, target: &str) -> Result<()> {
    match symlinkat(target, dev, name) {
        Err(Errno::EEXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// `/dev/ptmx` must be the container's own multiplexer: what the image has there goes.
fn make_ptmx(dev: BorrowedFd<'_>) -> Result<()> {
    match symlinkat("pts/ptmx", dev, "ptmx") {
        Err(Errno::EEXIST) => {
            unlinkat(dev, "ptmx", UnlinkatFlags::NoRemoveDir)?;
            Ok(symlinkat("pts/ptmx", dev, "ptmx")?)
        }
        other => Ok(other?),
    }
}

fn make_node(root: BorrowedFd<'_>, dev: BorrowedFd<'_>, node: &Node, bind: bool) -> Result<()> {
    let below_dev = node.path.strip_prefix("/dev").ok().filter(|rest| !rest.as_os_str().is_empty());
    let (parent, name) = match below_dev {
        // The usual case needs no lookup: straight below /dev.
        Some(rest) if rest.components().count() == 1 => return make_in(dev, rest.as_os_str(), node, bind),
        Some(rest) => paths::parent(dev, rest),
        None => paths::parent(root, &node.path),
    }
    .map_err(failed("open the node's folder"))?;
    make_in(parent.as_fd(), name, node, bind)
}

fn make_in(folder: BorrowedFd<'_>, name: &OsStr, node: &Node, bind: bool) -> Result<()> {
    if bind {
        return bind_node(folder, name, node);
    }
    match mknodat(folder, name, node.kind, Mode::from_bits_truncate(node.mode), node.number) {
        Err(Errno::EEXIST) => return check_node(folder, name, node),
        Err(Errno::EPERM) if node.kind != SFlag::S_IFIFO => return bind_node(folder, name, node),
        other => other.map_err(failed("mknod"))?,
    }
    if node.uid != 0 || node.gid != 0 {
        let owner = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
        fchownat(folder, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed("chown"))?;
    }
    Ok(())
}

/// What is there already must be this node; its owner and mode are the image's affair.
fn check_node(folder: BorrowedFd<'_>, name: &OsStr, node: &Node) -> Result<()> {
    let fd = sys::openat(folder, &paths::c(name)?, libc::O_PATH | libc::O_NOFOLLOW, 0).map_err(failed("open"))?;
    if !is_node(fd.as_fd(), node)? {
        bail!("the root file system has something else at this path; it must be absent or that device");
    }
    Ok(())
}

fn is_node(fd: BorrowedFd<'_>, node: &Node) -> Result<bool> {
    let found = fstat(fd)?;
    let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
    Ok(kind == node.kind && (kind == SFlag::S_IFIFO || found.st_rdev == node.number))
}

/// Binds the host's node of the same path over an empty file.
fn bind_node(folder: BorrowedFd<'_>, name: &OsStr, node: &Node) -> Result<()> {
    if node.kind == SFlag::S_IFIFO {
        return match mknodat(folder, name, node.kind, Mode::from_bits_truncate(node.mode), 0) {
            Err(Errno::EEXIST) => check_node(folder, name, node),
            other => other.map_err(failed("mknod")),
        };
    }
    let path = paths::c(node.path.as_os_str())?;
    let host = sys::openat(sys::CWD, &path, libc::O_PATH | libc::O_NOFOLLOW, 0)
        .map_err(failed("a user namespace cannot make devices, and the host's node cannot be opened to bind it"))?;
    if !is_node(host.as_fd(), node)? {
        bail!("a user namespace cannot make devices, and the host's node of this path has other numbers");
    }
    let copy = Copy::of_fd(host.as_fd(), false).map_err(failed("open_tree"))?;
    let fd = file(folder, name)?;
    copy.mount(&Target { root: folder, path: Path::new(name), fd, made: 0 }).map(drop)
}

/// An empty file of that name, made where it is missing; never a link.
fn file(folder: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    let name = paths::c(name)?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
    match sys::openat(folder, &name, flags, 0o666) {
        Err(Errno::EEXIST) => (),
        other => return other.map_err(failed("create")),
    }
    let fd = sys::openat(folder, &name, libc::O_PATH | libc::O_NOFOLLOW, 0).map_err(failed("open"))?;
    if paths::kind(&fd)? == SFlag::S_IFLNK {
        bail!("is a symbolic link in the root file system; refusing to mount over it");
    }
    Ok(fd)
}

/// The host's `/dev/null`, opened and checked: what covers masked files.
pub(super) fn host_null() -> Result<OwnedFd> {
    let fd = sys::openat(sys::CWD, c"/dev/null", libc::O_PATH | libc::O_NOFOLLOW, 0).map_err(failed("open /dev/null"))?;
    let found = fstat(&fd)?;
    if found.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFCHR.bits() || found.st_rdev != makedev(1, 3) {
        bail!("/dev/null of the host is not the null device (character 1:3)");
    }
    Ok(fd)
}

/// Opens the container's pty multiplexer, checked to be one.
pub(super) fn open_ptmx(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let fd = paths::open(root, Path::new("/dev/pts/ptmx"), OFlag::O_RDWR | OFlag::O_NOCTTY)
        .map_err(failed("open"))
        .context("/dev/pts/ptmx: a terminal needs a devpts mounted at /dev/pts (see mounts)")?;
    let found = fstat(&fd)?;
    if sys::fstype(fd.as_fd())? != DEVPTS_MAGIC || (major(found.st_rdev), minor(found.st_rdev)) != (5, 2) {
        bail!("/dev/pts/ptmx is not the pty multiplexer of a devpts");
    }
    Ok(fd)
}

/// Mounts the terminal `slave` on the container's `/dev/console`.
pub(super) fn attach_console(root: BorrowedFd<'_>, slave: BorrowedFd<'_>) -> Result<()> {
    let (dev, name) = paths::parent(root, Path::new("/dev/console")).map_err(failed("open /dev"))?;
    let fd = file(dev.as_fd(), name)?;
    let copy = Copy::of_fd(slave, false).map_err(failed("open_tree of the terminal"))?;
    copy.mount(&Target { root: dev.as_fd(), path: Path::new(name), fd, made: 0 }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_devices_replace_default_ones() {
        let mut device = LinuxDevice::default();
        device.set_path("/dev/../dev/null".into()).set_typ(LinuxDeviceType::C).set_major(1).set_minor(3).set_file_mode(Some(0o600));
        let nodes = plan(&[device]).unwrap();
        assert_eq!(nodes.len(), 6);
        assert_eq!((nodes[0].path.as_path(), nodes[0].mode), (Path::new("/dev/null"), 0o600));
    }

    #[test]
    fn wrong_devices_are_named() {
        let mut device = LinuxDevice::default();
        device.set_path("/dev/x".into()).set_typ(LinuxDeviceType::A);
        let error = format!("{:#}", plan(&[device.clone()]).unwrap_err());
        assert!(error.starts_with("linux.devices[0] (/dev/x): type"), "{error}");
        device.set_typ(LinuxDeviceType::B).set_major(-1);
        assert!(format!("{:#}", plan(&[device]).unwrap_err()).contains("major: -1"));
    }

    #[test]
    fn the_hosts_null_device_is_verified() {
        assert!(host_null().is_ok());
    }
}
