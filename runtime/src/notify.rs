//! sd_notify(3) for containers, as runc does it: where the caller has `NOTIFY_SOCKET`, the container gets
//! one of its own at `/run/notify/notify.sock`, and its word that it is ready goes to the caller's, with
//! the container's process as the main one.
//!
//! `create` calls [`prepare`] before the plan and [`make_folder`] after the record; `start` and `run` call
//! [`Proxy::open`] before the process runs and [`Proxy::relay`] (or the supervisor [`Proxy::turn`]) after.

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, recv, sendmsg, socket};
use oci_spec::runtime::{MountBuilder, Spec};
use std::ffi::OsString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const FOLDER: &str = "notify";
const NAME: &str = "notify.sock";
const INSIDE: &str = "/run/notify";

/// The caller's socket.
pub fn wanted() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())
}

/// Adds the container's socket to its configuration, `dir` being the folder of its state.
pub fn prepare(spec: &mut Spec, dir: &Path) -> Result<()> {
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
    let mount = MountBuilder::default().destination(INSIDE).source(dir.join(FOLDER)).options(options).build()?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    if let Some(mut process) = spec.process().clone() {
        let mut env = process.env().clone().unwrap_or_default();
        env.push(format!("NOTIFY_SOCKET={INSIDE}/{NAME}"));
        process.set_env(Some(env));
        spec.set_process(Some(process));
    }
    Ok(())
}

/// Makes the folder of the container's socket in the folder of its state.
pub fn make_folder(dir: &Path) -> Result<()> {
    let path = dir.join(FOLDER);
    std::fs::create_dir(&path)
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("make {}", path.display()))
}

/// Removes it and what [`Proxy::open`] made in it.
pub fn remove(dir: &Path) {
    let _ = std::fs::remove_file(dir.join(FOLDER).join(NAME));
    let _ = std::fs::remove_dir(dir.join(FOLDER));
}

/// Between the container's socket and the caller's.
#[derive(Debug)]
pub struct Proxy {
    inside: OwnedFd,
    outside: PathBuf,
}

impl Proxy {
    /// Opens the container's socket, where it has one and the caller, too.
    pub fn open(dir: &Path) -> Result<Option<Proxy>> {
        let Some(outside) = wanted().filter(|_| dir.join(FOLDER).is_dir()) else { return Ok(None) };
        let path = dir.join(FOLDER).join(NAME);
        let inside = datagrams()?;
        bind(inside.as_raw_fd(), &UnixAddr::new(&path)?)
            .map_err(std::io::Error::from)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)))
            .with_context(|| format!("make the socket {}", path.display()))?;
        Ok(Some(Proxy { inside, outside: outside.into() }))
    }

    /// Waits until the container says that it is ready and passes it on, or until its process ends.
    pub fn relay(&self, pid: i32, pidfd: Option<BorrowedFd<'_>>) -> Result<()> {
        loop {
            let mut polled =
                [PollFd::new(self.inside.as_fd(), PollFlags::POLLIN), PollFd::new(pidfd.unwrap_or(self.inside.as_fd()), PollFlags::POLLIN)];
            match poll(&mut polled, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.context("poll")?,
            };
            let ready = polled[0].any() == Some(true);
            if !ready || self.turn(pid)? {
                return Ok(());
            }
        }
    }

    /// Reads what the container said; whether that was its last word.
    pub fn turn(&self, pid: i32) -> Result<bool> {
        let mut buffer = [0u8; 4096];
        let length = recv(self.inside.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap_or(0);
        let said = &buffer[..length];
        if !said.starts_with(b"READY=") {
            return Ok(false);
        }
        let ready = said.split(|&b| b == b'\n').next().unwrap_or_default();
        self.tell(ready, pid).with_context(|| format!("NOTIFY_SOCKET {}", self.outside.display())).map(|()| true)
    }

    /// Tells the caller, and waits until it has taken note (`BARRIER=1`), for up to 30 seconds.
    fn tell(&self, ready: &[u8], pid: i32) -> Result<()> {
        let socket = datagrams()?;
        let address = match self.outside.to_string_lossy().strip_prefix('@') {
            Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
            None => UnixAddr::new(&self.outside)?,
        };
        connect(socket.as_raw_fd(), &address)?;
        let send = |text: &[u8], control: &[ControlMessage<'_>]| {
            sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(text)], control, MsgFlags::MSG_NOSIGNAL, None)
        };
        send(&[ready, b"\n"].concat(), &[])?;
        send(format!("MAINPID={pid}\n").as_bytes(), &[])?;
        let (end, given) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        send(b"BARRIER=1", &[ControlMessage::ScmRights(&[given.as_raw_fd()])])?;
        drop(given);
        let patience = PollTimeout::try_from(Duration::from_secs(30)).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], patience)? == 0 {
            crate::log::warn("Timeout after waiting 30s for barrier. Ignored.");
        }
        Ok(())
    }
}

impl AsFd for Proxy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inside.as_fd()
    }
}

fn datagrams() -> Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("socket")
}

/// How many descriptors the service manager has passed to this process (sd_listen_fds(3)).
pub fn listen_fds() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    match number("LISTEN_PID") {
        Some(pid) if pid == std::process::id() => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}

/// Tells the container's process about them: they begin at 3 there, too.
pub fn pass_listen_fds(spec: &mut Spec, count: u32) {
    if let Some(mut process) = spec.process().clone().filter(|_| count > 0) {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
        spec.set_process(Some(process));
    }
}
