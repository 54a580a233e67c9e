//! Protection of the runtime's own binary against being written to from a container (CVE-2019-5736):
//! `create`, `run` and `exec` go on from a read-only clone of it, so that whoever gets hold of
//! `/proc/PID/exe` of a process of ours holds a file that cannot be written.
//!
//! The clone is a detached read-only mount of the binary (`open_tree`, `mount_setattr`), which costs one
//! more `execve` of a small static file; where that is not possible, a sealed memfd.

use crate::sys::{self, MountAttr};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::statvfs::{FsFlags, fstatvfs};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// Tells the copy that it is one; should the kernel not agree, the copy gives up instead of making another.
const MARK: &str = "_RRUN_SEALED";
const MOUNT_ATTR_RDONLY: u64 = 1;

/// Returns when the running binary cannot be written to through `/proc/PID/exe`; otherwise executes
/// such a copy with the same arguments and does not return.
pub fn ensure() -> Result<()> {
    let exe = sys::openat(sys::CWD, c"/proc/self/exe", libc::O_PATH, 0).context("open /proc/self/exe")?;
    if is_safe(exe.as_fd())? {
        return Ok(());
    }
    if std::env::var_os(MARK).is_some() {
        bail!("cannot protect the runtime's binary: its copy is writable (is {MARK} set in the environment?)");
    }
    match read_only_clone(exe.as_fd()) {
        Ok(clone) => execute(clone.as_fd(), "its read-only clone"),
        Err(Errno::EPERM | Errno::ENOSYS | Errno::EINVAL) => execute(sealed_copy()?.as_fd(), "its sealed copy"),
        Err(e) => Err(e).context("protect the runtime's binary: clone its mount read-only"),
    }
}

/// Whether nobody in a container can write to it: on a read-only mount, a sealed memfd, or, for an
/// ordinary user, a file of the host's root, whom no container of this user can be.
fn is_safe(exe: BorrowedFd<'_>) -> Result<bool> {
    if fstatvfs(exe).context("statfs of /proc/self/exe")?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(true);
    }
    let stat = nix::sys::stat::fstat(exe).context("stat of /proc/self/exe")?;
    if !nix::unistd::geteuid().is_root() && stat.st_uid == 0 && stat.st_mode & 0o022 == 0 {
        return Ok(true);
    }
    if stat.st_nlink != 0 {
        // A memfd has no name.
        return Ok(false);
    }
    let readable = sys::openat(sys::CWD, c"/proc/self/exe", libc::O_RDONLY, 0).context("open /proc/self/exe")?;
    Ok(fcntl(&readable, FcntlArg::F_GET_SEALS).is_ok_and(|seals| seals & SealFlag::F_SEAL_WRITE.bits() != 0))
}

fn read_only_clone(exe: BorrowedFd<'_>) -> sys::Result<OwnedFd> {
    let clone = sys::open_tree(exe, c"", sys::OPEN_TREE_CLONE | sys::AT_EMPTY_PATH)?;
    sys::mount_setattr(clone.as_fd(), false, &MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })?;
    Ok(clone)
}

fn sealed_copy() -> Result<OwnedFd> {
    let copy = sys::memfd(c"rrun").context("memfd_create for the runtime's binary")?;
    let mut source = std::fs::File::open("/proc/self/exe").context("open /proc/self/exe")?;
    let mut target = std::fs::File::from(copy);
    std::io::copy(&mut source, &mut target).context("copy the runtime's binary")?;
    let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&target, FcntlArg::F_ADD_SEALS(seals)).context("seal the copy of the runtime's binary")?;
    Ok(target.into())
}

fn execute(file: BorrowedFd<'_>, what: &str) -> Result<()> {
    let c = |text: std::ffi::OsString| CString::new(text.into_vec()).context("an argument with a null byte");
    let argv: Vec<CString> = std::env::args_os().map(c).collect::<Result<_>>()?;
    let mark = (MARK.into(), "1".into());
    let env: Vec<CString> = std::env::vars_os()
        .chain([mark])
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c(name)
        })
        .collect::<Result<_>>()?;
    let errno = sys::execveat(file, c"", &argv, &env, libc::AT_EMPTY_PATH);
    Err(errno).with_context(|| format!("execute {what}"))
}
