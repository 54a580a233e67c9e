//! ExecSync, and what Exec shares with it.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use oci_spec::runtime::Spec;
use rrun_proto::v1;
use rustix::fs::MemfdFlags;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::Container;
use crate::error::{Error, Result};
use crate::monitor::Exec;
use crate::pods::blocking;
use crate::shim::Shim;

/// Runs a command to its end.
pub async fn exec_sync(shim: &Shim, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse> {
    let container = shim.container(&request.container_id)?;
    container.running("ExecSync")?;
    if request.timeout < 0 {
        return Err(Error::InvalidArgument(format!("timeout {} is negative", request.timeout)));
    }
    let timeout = (request.timeout > 0).then(|| Duration::from_secs(request.timeout as u64));
    let monitor = shim.pod(&container.pod)?.monitor()?;
    let file = process_file(&container, request.cmd, false).await?;
    let exec = Exec {
        id: container.id.clone(),
        process: file.path(),
        stdout: true,
        stderr: true,
        timeout,
        dies_with_connection: true,
        ..Exec::default()
    };
    let mut process = monitor.exec(&exec).await?;
    drop(file);
    let _kill = KillOnDrop { monitor: &monitor, exec: process.exec };
    let limit = shim.config.exec_output_limit;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let streams = (receiver(process.stdout)?, receiver(process.stderr)?);
    let mut reading = Box::pin(async { tokio::join!(read(streams.0, &mut stdout, limit), read(streams.1, &mut stderr, limit)) });
    let mut read_all = false;
    let exited = loop {
        tokio::select! {
            exited = &mut process.exited => break exited,
            _ = &mut reading, if !read_all => read_all = true,
        }
    };
    let exited = exited.map_err(|_| Error::Unavailable("the pod's monitor is gone".into()))?;
    if exited.timed_out {
        return Err(Error::DeadlineExceeded(format!("command timed out after {} s", request.timeout)));
    }
    if !read_all {
        // All of it, or what there is when something else keeps the streams open for longer.
        let _ = tokio::time::timeout(Duration::from_secs(shim.config.exec_drain_seconds), &mut reading).await;
    }
    drop(reading);
    std::mem::forget(_kill);
    fit(&mut stdout, &mut stderr);
    Ok(v1::ExecSyncResponse { stdout, stderr, exit_code: exited.code as i32 })
}

/// Cuts both so that they fit in one message, each to half of it at least.
fn fit(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) {
    let room = crate::server::MESSAGE_MAX - 64; // for the exit code, and the tags and lengths
    stdout.truncate(room - stderr.len().min(room / 2));
    stderr.truncate(room - stdout.len());
}

/// A cancelled request kills its process.
struct KillOnDrop<'a> {
    monitor: &'a crate::monitor::Monitor,
    exec: u32,
}

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        let (monitor, exec) = (self.monitor.clone(), self.exec);
        tokio::spawn(async move { monitor.kill_exec(exec, 0).await });
    }
}

fn receiver(stream: Option<OwnedFd>) -> Result<pipe::Receiver> {
    let stream = stream.ok_or_else(|| anyhow::anyhow!("an exec without its streams"))?;
    Ok(pipe::Receiver::from_owned_fd(stream).context("exec: read a stream")?)
}

/// Reads a stream to its end: the first bytes are kept, the rest is read and dropped, so that the process does not block.
async fn read(mut stream: pipe::Receiver, kept: &mut Vec<u8>, limit: usize) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let room = limit.saturating_sub(kept.len()).min(length);
        kept.extend_from_slice(&buffer[..room]);
    }
}

/// A memory file, which the monitor reaches for as long as this is held.
pub struct ProcessFile(OwnedFd);

impl ProcessFile {
    /// For every process of the host's that is root's.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// The process object of one more process in a container: the container's own with another command.
pub async fn process_file(container: &Container, command: Vec<String>, tty: bool) -> Result<ProcessFile> {
    if command.is_empty() {
        return Err(Error::InvalidArgument("cmd is empty".into()));
    }
    let read = || {
        let config = container.run_dir.join("config.json");
        blocking(move || {
            let text = std::fs::read(&config).with_context(|| format!("read {}", config.display()))?;
            let spec: Spec = serde_json::from_slice(&text).with_context(|| format!("{}", config.display()))?;
            Ok(spec.process().clone().unwrap_or_default())
        })
    };
    let mut process = container.process.get_or_try_init(read).await?.clone();
    process.set_args(Some(command)).set_terminal(Some(tty));
    let text = serde_json::to_vec(&process).context("process object")?;
    let file = rustix::fs::memfd_create("process.json", MemfdFlags::CLOEXEC).context("memfd_create")?;
    let mut file = std::fs::File::from(file);
    file.write_all(&text).context("write the process object")?;
    Ok(ProcessFile(file.into()))
}
