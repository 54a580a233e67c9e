//! Keeps a container from overwriting the runtime's own program file (CVE-2019-5736).
//!
//! While rrun is at work in a container, `/proc/PID/exe` leads there to the host's file, and an
//! entry point of `/proc/self/exe` even runs it. So create, run and exec start themselves again
//! from a file that nobody can open for writing: a read-only detached copy of the mount it is on,
//! or, where the kernel or the rights for that are missing, a sealed copy in memory.
//! state, start, kill, delete, list never enter a container and do without.

use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access, geteuid};
use std::ffi::{CStr, CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const EXE: &CStr = c"/proc/self/exe";
/// Set to the process id, which survives `execve`, so that a kernel on which none of this works
/// ends in an error and not in a loop.
const AGAIN: &str = "_RRUN_SEALED";

/// Makes sure that the running program's file cannot be written through this process. Where it
/// could, the program starts again with the same arguments: called before anything else is done.
pub fn ensure() -> Result<()> {
    let again = std::env::var_os(AGAIN).is_some_and(|pid| pid == *std::process::id().to_string());
    if sys::executed_by_descriptor() {
        // The process would be called by its number.
        let name = std::env::args_os().next().and_then(|a| Path::new(&a).file_name().map(OsString::from));
        let _ = CString::new(name.unwrap_or_default().into_vec()).map(|name| sys::set_name(&name));
    }
    if is_read_only()? || again && is_sealed()? || is_out_of_reach() {
        return Ok(());
    }
    if again {
        bail!("cannot protect the runtime's program file from the container: it is still writable after it was started from a copy");
    }
    let argv: Vec<CString> = std::env::args_os().map(|a| CString::new(a.into_vec())).collect::<Result<_, _>>()?;
    let mut envp = Vec::new();
    for (name, value) in std::env::vars_os().filter(|(name, _)| name != AGAIN) {
        envp.push(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?);
    }
    envp.push(CString::new(format!("{AGAIN}={}", std::process::id()))?);
    let start = |exe: OwnedFd| sys::execveat(exe.as_fd(), c"", &argv, &envp, libc::AT_EMPTY_PATH);
    // What the mount does not allow, memory may: its failures are not told.
    if let Ok(exe) = read_only_copy() {
        start(exe);
    }
    let errno = start(sealed_copy().context("cannot protect the runtime's program file from the container: copy it to memory")?);
    Err(errno).context("cannot protect the runtime's program file from the container: execute the copy in memory")
}

fn is_read_only() -> Result<bool> {
    let mount = statvfs(EXE).context("/proc/self/exe (is /proc mounted?)")?;
    Ok(mount.flags().contains(FsFlags::ST_RDONLY))
}

/// A rootless container has no more rights over the file than its user: one who neither owns it
/// nor may write to it cannot harm it.
fn is_out_of_reach() -> bool {
    let user = geteuid();
    !user.is_root()
        && access(EXE, AccessFlags::W_OK) == Err(Errno::EACCES)
        && std::fs::metadata("/proc/self/exe").is_ok_and(|m| m.uid() != user.as_raw())
}

/// What keeps a memory file as it is, for ever.
fn seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

fn is_sealed() -> Result<bool> {
    let exe = sys::openat(sys::CWD, EXE, libc::O_RDONLY, 0).context("open /proc/self/exe")?;
    // EINVAL: not a memory file.
    Ok(fcntl(&exe, FcntlArg::F_GET_SEALS).is_ok_and(|have| SealFlag::from_bits_truncate(have).contains(seals())))
}

/// The program's file on a mount of its own, read-only and attached nowhere (Linux 5.12, and
/// CAP_SYS_ADMIN over the mount namespace).
fn read_only_copy() -> sys::Result<OwnedFd> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let copy = sys::open_tree(sys::CWD, EXE, sys::OPEN_TREE_CLONE)?;
    sys::mount_setattr(copy.as_fd(), false, &sys::MountAttr { set: MOUNT_ATTR_RDONLY, ..sys::MountAttr::default() })?;
    Ok(copy)
}

/// The program's bytes in a memory file that nothing can change any more.
fn sealed_copy() -> Result<OwnedFd> {
    let mut copy = File::from(sys::memfd(c"rrun").context("memfd_create")?);
    std::io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals())).context("seal it")?;
    Ok(copy.into())
}
