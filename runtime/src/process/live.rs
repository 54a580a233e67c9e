//! A short-lived process that changes the mounts of a running container.
//!
//! It joins the container's namespaces but that of PIDs, so no process of the container ever sees it, and it
//! goes on when its parent is killed: a list of mounts is added or not.

use super::protocol::{Channel, Kind};
use crate::container::Container;
use crate::namespaces::{self, NEWIPC, NEWNET, NEWNS, NEWUSER};
use crate::rootfs::{self, Home, Mounts, Root};
use crate::sys;
use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

/// Adds mounts: made where the host's files are seen, with the power over them that the container's init had,
/// and attached in the container.
pub fn add_mounts(container: &Container, mut mounts: Mounts) -> Result<()> {
    in_child(|| {
        let privileged = sys::started_as() == 0;
        if privileged {
            Home::leave()?;
        }
        mounts.open()?;
        let way = Way::open(container)?;
        way.join(NEWUSER | NEWNET | NEWIPC)?;
        if !privileged || container.record.namespaces & NEWUSER != 0 {
            // Where the container's user namespace owns the copy of the host's tree, the flags of the host's mounts
            // are locked in it.
            Home::leave()?;
        }
        mounts.make()?;
        let root = way.enter()?;
        mounts.attach(root.as_fd(), way.procfs.as_fd())
    })
}

/// Removes the mounts at `destinations`; see [`rootfs::remove`].
pub fn remove_mounts(container: &Container, destinations: &[PathBuf], kept: &[PathBuf]) -> Result<()> {
    in_child(|| {
        let way = Way::open(container)?;
        way.join(NEWUSER)?;
        let root = way.enter()?;
        rootfs::remove(root.as_fd(), way.procfs.as_fd(), destinations, kept)
    })
}

/// The way into a container, open before the first step is taken on it.
struct Way<'a> {
    container: &'a Container,
    pidfd: Option<OwnedFd>,
    mounts: File,
    /// The host's.
    procfs: OwnedFd,
}

impl<'a> Way<'a> {
    fn open(container: &'a Container) -> Result<Way<'a>> {
        super::hide()?;
        let path = format!("/proc/{}/ns/mnt", container.record.pid);
        let pidfd = sys::pidfd_open(container.record.pid).ok();
        let mounts = File::open(&path).context(path)?;
        let procfs = sys::openat(sys::CWD, c"/proc", libc::O_PATH | libc::O_DIRECTORY, 0).context("open /proc")?;
        // What was opened is init's if init is there still.
        if !container.alive() {
            bail!(crate::container::Error::NotRunning);
        }
        Ok(Way { container, pidfd, mounts, procfs })
    }

    /// Joins the container's namespaces of these kinds, where they are not the caller's; root in its user namespace.
    fn join(&self, kinds: u64) -> Result<()> {
        let kinds = kinds & self.container.record.namespaces;
        if kinds & NEWUSER != 0 {
            super::drop_groups()?;
        }
        namespaces::join_process(self.pidfd.as_ref(), self.container.record.pid, kinds)?;
        if kinds & NEWUSER != 0 {
            super::become_root()?;
        }
        Ok(())
    }

    /// Joins its mount namespace, last of all.
    fn enter(&self) -> Result<Root> {
        setns(&self.mounts, CloneFlags::from_bits_retain(NEWNS as i32)).context("setns to the container's mount namespace")?;
        Root::current()
    }
}

/// Runs `steps` in a child and waits for its end.
fn in_child(steps: impl FnOnce() -> Result<()>) -> Result<()> {
    let (ours, theirs) = Channel::pair().context("socketpair")?;
    match sys::clone(0, None).context("clone3")? {
        sys::Cloned::Child => {
            drop(ours);
            let told = match steps() {
                Ok(()) => theirs.tell(Kind::Ready, ""),
                Err(error) => theirs.tell(Kind::Failed, &crate::log::message(&error)),
            };
            sys::exit_now(i32::from(told.is_err()))
        }
        sys::Cloned::Parent(pid, _) => {
            drop(theirs);
            let said = ours.receive();
            let _ = waitpid(Pid::from_raw(pid), None);
            match said.context("receive from the process in the container")? {
                Some(message) if message.kind == Kind::Ready => Ok(()),
                Some(message) => bail!("{}", message.text),
                None => bail!("the process that joined the container died"),
            }
        }
    }
}
