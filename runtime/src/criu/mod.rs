//! The conversation with CRIU, which saves processes and brings them back.
//!
//! `criu swrk FD` serves one request on a `SOCK_SEQPACKET` socket: a request goes in, notifications
//! come out and are answered one by one, the response ends it. Field numbers are those of CRIU's
//! `images/rpc.proto`.

pub mod confined;
mod mounts;
mod options;
mod wire;

pub use mounts::{External, externals};
pub use options::{CgroupMode, Options};

use crate::sys;
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair};
use std::ffi::OsStr;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use wire::{Message, Value, fields};

/// What is asked for (`criu_req_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Save everything.
    Dump = 1,
    /// Bring it back.
    Restore = 2,
    /// Save the memory alone and let go on.
    PreDump = 4,
}

/// What an error begins with that CRIU told.
const FAILED: &str = "criu failed";
const NOTIFY: i64 = 6;
const FEATURE_CHECK: i64 = 9;

/// What CRIU says on its way.
#[derive(Debug)]
pub struct Notification {
    /// `post-dump`, `setup-namespaces`, `post-restore`, …
    pub name: String,
    /// The process it is about.
    pub pid: i32,
    /// With `orphan-pts-master` the terminal's master.
    pub fd: Option<OwnedFd>,
}

/// A CRIU that waits for its request.
#[derive(Debug)]
pub struct Criu {
    socket: OwnedFd,
    child: Child,
}

impl Criu {
    /// Starts it. `inherited` stay open in it under their own numbers. With `stdio` it has our standard
    /// streams, which a restored process takes over.
    pub fn start(inherited: &[OwnedFd], stdio: bool) -> Result<Criu> {
        let program = find()?;
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).context("socketpair")?;
        for fd in inherited.iter().chain([&theirs]) {
            sys::set_cloexec(fd.as_raw_fd(), false).context("fcntl(F_SETFD)")?;
        }
        let mut command = Command::new(&program);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        if !stdio {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        // An ignored SIGCHLD, as some caller may have left it, would take its status from us.
        sys::default_action(nix::libc::SIGCHLD).context("SIGCHLD")?;
        let child = command.spawn().with_context(|| program.display().to_string())?;
        for fd in inherited {
            sys::set_cloexec(fd.as_raw_fd(), true).context("fcntl(F_SETFD)")?;
        }
        Ok(Criu { socket, child })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends the request and answers notifications until it is done.
    pub fn serve(mut self, request: Request, options: &Options, answer: impl FnMut(Notification) -> Result<()>) -> Result<()> {
        let mut message = Message::default();
        message.number(1, request as i64);
        message.nested(2, &options.message());
        let served = self.converse(&message, answer);
        if served.is_err() {
            // Before the answer to its notification it would go on; dead, it undoes nothing and does no more.
            let _ = self.child.kill();
        }
        drop(self.socket);
        let status = self.child.wait().context("wait for criu")?;
        served?;
        // After a pre-dump it waits for the next request, and ends badly without one.
        if !status.success() && request != Request::PreDump {
            match status.signal() {
                Some(signal) => bail!("criu was killed by signal {signal}"),
                None => bail!("{FAILED}: {status}"),
            }
        }
        Ok(())
    }

    fn converse(&self, request: &Message, mut answer: impl FnMut(Notification) -> Result<()>) -> Result<()> {
        self.send(request)?;
        loop {
            let (bytes, fd) = self.receive()?;
            let response = Response::read(&bytes);
            if !response.success {
                let why = if response.message.is_empty() { String::new() } else { format!(" ({})", response.message) };
                bail!("{FAILED}: type {} errno {}{why}", type_name(response.kind), response.errno);
            }
            if response.kind != NOTIFY {
                return Ok(());
            }
            answer(Notification { name: response.script, pid: response.pid, fd })?;
            let mut done = Message::default();
            done.number(1, NOTIFY);
            done.switch(3, true);
            self.send(&done)?;
        }
    }

    fn send(&self, message: &Message) -> Result<()> {
        let flags = MsgFlags::MSG_NOSIGNAL;
        nix::sys::socket::send(self.socket.as_raw_fd(), message.as_bytes(), flags).context("send to criu")?;
        Ok(())
    }

    fn receive(&self) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut buffer = vec![0; 64 * 1024];
        let mut space = nix::cmsg_space!([i32; 1]);
        loop {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let (length, fd) = match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(Errno::EINTR) => continue,
                Err(Errno::ECONNRESET) => (0, None),
                Err(e) => return Err(e).context("receive from criu"),
                Ok(got) => {
                    let rights = |m| if let ControlMessageOwned::ScmRights(fds) = m { fds.first().copied() } else { None };
                    let fd = got.cmsgs().ok().and_then(|mut all| all.find_map(rights));
                    (got.bytes, fd.and_then(sys::inherited_fd))
                }
            };
            if length == 0 {
                bail!("criu ended without an answer");
            }
            buffer.truncate(length);
            return Ok((buffer, fd));
        }
    }
}

/// Asks whether CRIU and the kernel can do what a request needs: `mem_track` (1) or `lazy_pages` (2).
pub fn check_feature(field: u32, name: &str) -> Result<()> {
    let mut criu = Criu::start(&[], false)?;
    let mut features = Message::default();
    features.switch(field, true);
    let mut message = Message::default();
    message.number(1, FEATURE_CHECK);
    message.nested(5, &features);
    let answered = criu.send(&message).and_then(|()| criu.receive());
    drop(criu.socket);
    criu.child.wait().context("wait for criu")?;
    let (bytes, _) = answered.context("CRIU feature check failed")?;
    let features = fields(&bytes).find_map(|f| if let (8, Value::Bytes(b)) = f { Some(b) } else { None }).unwrap_or_default();
    if !fields(features).any(|f| f == (field, Value::Number(1))) {
        bail!("criu is missing features: [{name}]");
    }
    Ok(())
}

/// Whether there is a `criu`.
pub fn available() -> bool {
    find().is_ok()
}

/// `criu` in `$PATH`, or where administrators' programs are, which not every caller's `$PATH` names.
fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    let executable = |p: &PathBuf| p.is_absolute() && p.is_file() && nix::unistd::access(p, nix::unistd::AccessFlags::X_OK).is_ok();
    folders.map(|f| f.join("criu")).find(executable).context("criu: executable file not found in $PATH (install CRIU 3.0 or newer)")
}

fn type_name(kind: i64) -> &'static str {
    match kind {
        1 => "DUMP",
        2 => "RESTORE",
        4 => "PRE_DUMP",
        NOTIFY => "NOTIFY",
        FEATURE_CHECK => "FEATURE_CHECK",
        _ => "EMPTY",
    }
}

#[derive(Debug, Default)]
struct Response {
    kind: i64,
    success: bool,
    script: String,
    pid: i32,
    errno: i64,
    message: String,
}

impl Response {
    fn read(bytes: &[u8]) -> Response {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let mut response = Response::default();
        for field in fields(bytes) {
            match field {
                (1, Value::Number(n)) => response.kind = n,
                (2, Value::Number(n)) => response.success = n != 0,
                (5, Value::Bytes(notify)) => {
                    for field in fields(notify) {
                        match field {
                            (1, Value::Bytes(b)) => response.script = text(b),
                            (2, Value::Number(n)) => response.pid = n as i32,
                            _ => (),
                        }
                    }
                }
                (7, Value::Number(n)) => response.errno = n,
                (9, Value::Bytes(b)) => response.message = text(b),
                _ => (),
            }
        }
        response
    }
}

/// A failure with CRIU's own last error, of which its answer has the first, often a harmless one. The lines of its log that tell
/// an error, and those before, are warnings.
pub fn explained(failure: anyhow::Error, folder: &Path, log: &str) -> anyhow::Error {
    const BEFORE: usize = 5;
    let path = folder.join(log);
    let Ok(bytes) = std::fs::read(&path) else { return failure };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let is_error = |line: &&str| line.contains("Error");
    let wanted: Vec<usize> = (0..lines.len()).filter(|i| lines[*i..].iter().take(BEFORE + 1).any(is_error)).collect();
    if wanted.is_empty() {
        return failure;
    }
    crate::log::warn(format!("--- Quoting {:?}", path.display().to_string()));
    for i in wanted {
        crate::log::warn(format!("{}:{}", i + 1, lines[i]));
    }
    crate::log::warn("---");
    let last = lines.iter().rev().find(|line| is_error(line) && !line.ends_with("FAILED."));
    match (failure.to_string(), last) {
        // Before CRIU's text stands the time since its start.
        (text, Some(line)) if text.starts_with(FAILED) => {
            let head = text.split_once(" (").map_or(text.as_str(), |(head, _)| head);
            anyhow!("{head} ({})", line.split_once(") ").map_or(*line, |(_, rest)| rest).trim())
        }
        _ => failure,
    }
}

/// Opens a folder for CRIU, which reaches it through our descriptor.
pub fn open_folder(path: &Path, flag: &str) -> Result<OwnedFd> {
    let opened = std::fs::File::open(path).and_then(|f| if f.metadata()?.is_dir() { Ok(f) } else { Err(Errno::ENOTDIR.into()) });
    Ok(opened.with_context(|| format!("{flag} {}", path.display()))?.into())
}

/// The kinds of namespaces that CRIU takes as they are when the configuration names them by path, as it
/// calls them, with the key that both sides of a checkpoint know them by.
pub const EXTERNAL_NAMESPACES: [(u64, &str, &str); 2] =
    [(crate::namespaces::NEWNET, "net", "extRootNetNS"), (crate::namespaces::NEWPID, "pid", "extRootPidNS")];

/// The file with the container's standard streams as they were, beside CRIU's own.
pub const DESCRIPTORS: &str = "descriptors.json";

/// `org.criu.config`: the container's own configuration of CRIU; `None` where the annotation is empty.
pub fn config_file(annotation: Option<&str>) -> Option<&OsStr> {
    match annotation {
        None => Some(OsStr::new("/etc/criu/runc.conf")),
        Some("") => None,
        Some(path) => Some(OsStr::new(path)),
    }
}

/// Whether both are in one time namespace: CRIU restores into a new one.
pub fn same_time_namespace(pid: i32) -> bool {
    let link = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/time")).ok();
    link(&pid.to_string()) == link("self")
}

impl AsFd for Criu {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
