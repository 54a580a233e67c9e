//! ExecSync, and what Exec shares with it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use oci_spec::runtime::{Process, Spec};
use rrun_proto::v1;
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
        process: file.0.clone(),
        stdout: true,
        stderr: true,
        timeout,
        dies_with_connection: true,
        ..Exec::default()
    };
    let process = monitor.exec(&exec).await?;
    drop(file);
    let _kill = KillOnDrop { monitor: &monitor, exec: process.exec };
    let limit = shim.config.exec_output_limit;
    let (stdout, stderr) = (Capture::new(process.stdout, limit)?, Capture::new(process.stderr, limit)?);
    let exited = process.exited.await.map_err(|_| Error::Unavailable("the pod's monitor is gone".into()))?;
    if exited.timed_out {
        return Err(Error::DeadlineExceeded(format!("command timed out after {} s", request.timeout)));
    }
    let drain = Duration::from_secs(shim.config.exec_drain_seconds);
    let (mut stdout, mut stderr) = tokio::join!(stdout.finish(drain), stderr.finish(drain));
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

/// Reads a stream in the background: the first bytes are kept, the rest is read and dropped, so that the process does not
/// block.
struct Capture {
    task: tokio::task::JoinHandle<()>,
    kept: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
}

impl Capture {
    fn new(stream: Option<OwnedFd>, limit: usize) -> Result<Capture> {
        let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let into = kept.clone();
        let stream = stream.ok_or_else(|| anyhow::anyhow!("an exec without its streams"))?;
        let mut stream = pipe::Receiver::from_owned_fd(stream).context("exec: read a stream")?;
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                let mut kept = into.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let room = limit.saturating_sub(kept.len()).min(length);
                kept.extend_from_slice(&buffer[..room]);
            }
        });
        Ok(Capture { task, kept })
    }

    /// All of it, or what there is when something else keeps the stream open for longer than `patience`.
    async fn finish(mut self, patience: Duration) -> Vec<u8> {
        if tokio::time::timeout(patience, &mut self.task).await.is_err() {
            self.task.abort();
        }
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// A file that goes when this does.
pub struct ProcessFile(pub PathBuf);

impl Drop for ProcessFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The process object of one more process in a container: the container's own with another command.
pub async fn process_file(container: &Container, command: Vec<String>, tty: bool) -> Result<ProcessFile> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    if command.is_empty() {
        return Err(Error::InvalidArgument("cmd is empty".into()));
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let (config, path) = (container.run_dir.join("config.json"), container.run_dir.join(format!("exec-{number}.json")));
    blocking(move || {
        let text = std::fs::read(&config).with_context(|| format!("read {}", config.display()))?;
        let spec: Spec = serde_json::from_slice(&text).with_context(|| format!("{}", config.display()))?;
        let mut process: Process = spec.process().clone().unwrap_or_default();
        process.set_args(Some(command)).set_terminal(Some(tty));
        let text = serde_json::to_vec(&process).context("process object")?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(ProcessFile(path))
    })
    .await
}
