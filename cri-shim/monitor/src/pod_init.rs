//! The first process of a shared PID namespace: it reaps, ignores every signal but KILL, and shows nothing of the
//! host: its root is empty, it has no descriptors and no rights, and its program file cannot be written.
//!
//! It outlives the monitor, and ends when the sandbox is stopped.

use crate::{program, sys};
use anyhow::{Context, Result, bail};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_move, unmount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, chdir, chroot, pivot_root, set_dumpable_behavior, setsid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, set_name, set_no_new_privs};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

/// The argument that makes the monitor's program an init.
pub(crate) const ARGUMENT: &str = "pod-init";

/// The running program as a file that nobody can write, whatever is done with /proc/1/exe.
pub(crate) struct Program(OwnedFd);

impl Program {
    /// A read-only mount of its own, attached nowhere, or where that cannot be had a sealed copy in memory.
    pub(crate) fn open() -> Result<Program> {
        let copy = || -> Result<OwnedFd> {
            let mut copy = File::from(rustix::fs::memfd_create("pod-init", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
            std::io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
            rustix::fs::fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
            Ok(copy.into())
        };
        Ok(Program(program::read_only("/proc/self/exe").or_else(|_| copy()).context("protect the program file of the pod's init")?))
    }

    /// Starts it in the PID namespace that the caller's children are in; its number, once it has executed.
    pub(crate) fn start(&self) -> Result<u32> {
        let (failed, report) = pipe_with(PipeFlags::CLOEXEC).context("pipe")?;
        let Some(init) = sys::fork().context("fork the pod's init")? else {
            drop(failed);
            let error = self.become_init();
            let _ = rustix::io::write(&report, format!("{error:#}").as_bytes());
            sys::exit_now(1);
        };
        drop(report);
        let mut text = [0; 1024];
        match rustix::io::read(&failed, &mut text).context("the pod's init")? {
            0 => Ok(init.as_raw_nonzero().get() as u32),
            length => bail!("the pod's init: {}", String::from_utf8_lossy(&text[..length])),
        }
    }

    fn become_init(&self) -> anyhow::Error {
        if let Err(error) = prepare() {
            return error;
        }
        anyhow::Error::from(sys::execute(self.0.as_fd(), [c"pod-init", c"pod-init"]))
            .context("execve (rrun-monitor has to be a static program: make build links it so)")
    }
}

/// Leaves the host behind.
fn prepare() -> Result<()> {
    setsid().context("setsid")?;
    // The C library wants these three; the init closes them.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("dup2")?;
    rustix::stdio::dup2_stdout(&null).context("dup2")?;
    rustix::stdio::dup2_stderr(&null).context("dup2")?;
    sys::unshare(UnshareFlags::NEWNS).context("unshare(NEWNS)")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("make mounts private")?;
    // Any folder will do; this one is everywhere.
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", "/proc", "tmpfs", flags, Some(c"size=4k,nr_inodes=1,mode=0555")).context("mount an empty root")?;
    chdir("/proc").context("chdir")?;
    // An initial ramfs cannot be pivoted from.
    if pivot_root(".", ".").is_ok() {
        unmount(".", UnmountFlags::DETACH).context("leave the host's root")?;
    } else {
        mount_move(".", "/").and_then(|()| chroot(".")).context("leave the host's root")?;
    }
    chdir("/").context("chdir")
}

/// The init's life, after its execve.
pub(crate) fn main() -> ! {
    // Its memory is for nobody who is not privileged in the host's own user namespace.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let none = CapabilitySet::empty();
    let _ = set_no_new_privs(true);
    let _ = set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none });
    let _ = set_name(c"pod-init");
    sys::reap_by_kernel();
    sys::close_from(0);
    loop {
        sys::pause();
    }
}
