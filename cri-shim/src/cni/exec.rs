//! Runs one plugin once: environment, stdin, what it answers, its time limit. Called by `chain`.
//!
//! A plugin leads its own process group; when its time is over, or its caller is gone, the whole group is killed.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use super::error::{Failure, PluginError};
use crate::config::Cni;

/// Bytes of an answer that are read; no result of a pod comes near.
const MAX_OUTPUT: usize = 1 << 20;
/// How often and how long a plugin that is just being written ("text file busy") is waited for.
const BUSY_TRIES: u32 = 25;
const BUSY_WAIT: Duration = Duration::from_millis(200);

/// One run of a plugin.
#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    pub(super) command: &'static str,
    pub(super) plugin: &'a str,
    pub(super) network: &'a str,
    pub(super) container_id: &'a str,
    pub(super) netns: &'a str,
    pub(super) ifname: &'a str,
    /// CNI_ARGS, ready made.
    pub(super) args: &'a str,
    pub(super) stdin: Vec<u8>,
}

/// Finds and runs plugins.
#[derive(Clone, Debug)]
pub(super) struct Exec {
    bin_dirs: Vec<PathBuf>,
    timeout: Duration,
}

impl Exec {
    pub(super) fn new(settings: &Cni) -> Exec {
        Exec { bin_dirs: settings.bin_dirs.clone(), timeout: Duration::from_secs(settings.timeout_seconds) }
    }

    /// The same with no more than `limit` of patience.
    pub(super) fn within(&self, limit: Duration) -> Exec {
        Exec { timeout: self.timeout.min(limit), ..self.clone() }
    }

    /// Runs the plugin and returns what it wrote to its output when it succeeded.
    pub(super) async fn run(&self, call: &Call<'_>) -> Result<Vec<u8>, PluginError> {
        self.outcome(call).await.map_err(|failure| PluginError {
            plugin: call.plugin.to_owned(),
            network: call.network.to_owned(),
            command: call.command,
            failure,
        })
    }

    /// Path of a plugin's program.
    pub(super) fn find(&self, plugin: &str) -> Result<PathBuf, Failure> {
        let found = self.bin_dirs.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file());
        found.ok_or_else(|| Failure::Missing {
            searched: self.bin_dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", "),
        })
    }

    async fn outcome(&self, call: &Call<'_>) -> Result<Vec<u8>, Failure> {
        let (mut child, stdout, stderr) = self.start(call).await?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));
        let mut out = Capture::new(stdout).map_err(Failure::Spawn)?;
        let mut err = Capture::new(stderr).map_err(Failure::Spawn)?;
        let stdin = child.stdin.take();
        let talk = async {
            tokio::join!(feed(stdin, &call.stdin), out.fill(), err.fill());
            std::future::pending::<()>().await;
        };
        // The plugin's own exit ends it: a child that it leaves behind with its pipes open does not.
        let exit = async {
            tokio::select! {
                status = child.wait() => status,
                () = talk => unreachable_wait(),
            }
        };
        let Ok(status) = tokio::time::timeout(self.timeout, exit).await else {
            group.kill();
            // Killed, so it ends at once, unless the kernel holds it; then tokio reaps it later.
            let _ = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
            return Err(Failure::Timeout { seconds: self.timeout.as_secs(), stderr: err.finish() });
        };
        group.0 = None;
        let status = status.map_err(Failure::Spawn)?;
        out.drain();
        err.drain();
        if status.success() && !err.bytes.is_empty() {
            tracing::debug!(plugin = call.plugin, pod = call.container_id, "{}: {}", call.command, shorten(&err.bytes));
        }
        answer(status, out, err)
    }

    async fn start(&self, call: &Call<'_>) -> Result<(Child, OwnedFd, OwnedFd), Failure> {
        let program = self.find(call.plugin)?;
        let path = self.bin_dirs.iter().map(|d| d.as_os_str()).collect::<Vec<_>>().join(":".as_ref());
        let mut tries = 0;
        loop {
            let (out_read, out_write) = pipe()?;
            let (err_read, err_write) = pipe()?;
            let spawned = Command::new(&program)
                .env_remove("NOTIFY_SOCKET")
                .env("CNI_COMMAND", call.command)
                .env("CNI_CONTAINERID", call.container_id)
                .env("CNI_NETNS", call.netns)
                .env("CNI_IFNAME", call.ifname)
                .env("CNI_ARGS", call.args)
                .env("CNI_PATH", &path)
                .current_dir("/")
                .process_group(0)
                .stdin(Stdio::piped())
                .stdout(Stdio::from(out_write))
                .stderr(Stdio::from(err_write))
                .spawn();
            match spawned {
                Ok(child) => return Ok((child, out_read, err_read)),
                Err(e) if e.kind() == ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                    tries += 1;
                    tokio::time::sleep(BUSY_WAIT).await;
                }
                Err(e) => return Err(Failure::Spawn(e)),
            }
        }
    }
}

/// `talk` never ends by itself; the type has to be a wait status.
fn unreachable_wait() -> std::io::Result<ExitStatus> {
    Err(std::io::Error::other("the plugin's pipes ended before the plugin"))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| Failure::Spawn(e.into()))
}

/// Writes the plugin's input; one that does not read it is none of our business.
async fn feed(stdin: Option<tokio::process::ChildStdin>, bytes: &[u8]) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(bytes).await;
    }
}

/// What a finished run means.
fn answer(status: ExitStatus, out: Capture, err: Capture) -> Result<Vec<u8>, Failure> {
    if status.success() {
        if out.cut {
            return Err(Failure::Garbage { problem: format!("more than {MAX_OUTPUT} bytes"), output: out.finish() });
        }
        return Ok(out.bytes);
    }
    match serde_json::from_slice::<ErrorObject>(&out.bytes) {
        Ok(e) => Err(Failure::Reported { code: e.code, msg: e.msg, details: e.details }),
        Err(_) => {
            let output = [err.finish(), out.finish()].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("; ");
            Err(Failure::Crashed { status: status.to_string(), output })
        }
    }
}

/// The specification's error object; plugins leave out what they like, so only `msg` tells it from other JSON.
#[derive(Deserialize)]
struct ErrorObject {
    #[serde(default)]
    code: u64,
    msg: String,
    #[serde(default)]
    details: String,
}

/// A plugin's process group, killed unless the plugin has ended.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first bytes of a stream; the rest is read and dropped so that the writer does not block.
struct Capture {
    pipe: Receiver,
    bytes: Vec<u8>,
    cut: bool,
}

impl Capture {
    fn new(fd: OwnedFd) -> std::io::Result<Capture> {
        Ok(Capture { pipe: Receiver::from_owned_fd(fd)?, bytes: Vec::new(), cut: false })
    }

    /// Reads until the last writer is gone.
    async fn fill(&mut self) {
        let mut buf = [0; 8192];
        while let Ok(n @ 1..) = self.pipe.read(&mut buf).await {
            self.keep(&buf[..n]);
        }
    }

    /// Reads what is there: everything that a plugin which has ended wrote.
    fn drain(&mut self) {
        let mut buf = [0; 8192];
        while let Ok(n @ 1..) = self.pipe.try_read(&mut buf) {
            self.keep(&buf[..n]);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = MAX_OUTPUT - self.bytes.len();
        self.cut |= bytes.len() > room;
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn finish(mut self) -> String {
        self.drain();
        shorten(&self.bytes)
    }
}

/// Output for an error's text.
pub(super) fn shorten(bytes: &[u8]) -> String {
    const MAX: usize = 1024;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX)]);
    if bytes.len() > MAX { format!("{} …", text.trim()) } else { text.trim().to_owned() }
}
