//! StartContainer: the monitor has the OCI runtime make the process and start it.

use std::sync::Arc;
use std::time::Duration;

use rrun_proto::v1;
use tonic::Status;

use super::{Container, checkpoint};
use crate::error::{Error, Result};
use crate::monitor::{Create, Monitor};
use crate::pods::Pod;
use crate::record::{Exit, Process};
use crate::runtime::Runtime;
use crate::shim::{Shim, now};

/// How long the OCI runtime may take for one step.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts a created container.
pub async fn start(shim: &Shim, id: &str) -> Result<(), Status> {
    let container = shim.container(id)?;
    let (job, shim) = (format!("start {}", container.id), shim.clone());
    let work = {
        let shim = shim.clone();
        async move { start_one(&shim, &container).await.map(|()| String::new()).map_err(Status::from) }
    };
    shim.jobs.run(job, work).await.map(drop)
}

async fn start_one(shim: &Shim, container: &Arc<Container>) -> Result<()> {
    let pod = shim.pod(&container.pod)?;
    let _open = pod.open("StartContainer").await?;
    if container.state() != v1::ContainerState::ContainerCreated {
        return Err(Error::FailedPrecondition(format!(
            "StartContainer: container {} is in state {}, not CONTAINER_CREATED",
            container.id,
            container.state().as_str_name()
        )));
    }
    let runtime = shim.runtimes.get(&pod.record().handler)?;
    crate::nri::start_container(shim, container).await?;
    let starting = container.starting.lock().await;
    match run(shim, &pod, container, &runtime).await {
        Ok(()) => {
            crate::nri::post_start_container(shim, container).await;
            super::publish(shim, container, v1::ContainerEventType::ContainerStartedEvent);
            Ok(())
        }
        Err(error) => {
            let end = Exit { code: 128, finished_at: now(), reason: "StartError".into(), message: error.to_string(), oom: false };
            let noted = end.clone();
            container.update("container start failed", |record| record.end = Some(noted)).await?;
            drop(starting);
            super::exited(shim, container, end).await;
            Err(error)
        }
    }
}

async fn run(shim: &Shim, pod: &Pod, container: &Arc<Container>, runtime: &Runtime) -> Result<()> {
    if let Some(folder) = container.record().log_path.parent() {
        tokio::fs::create_dir_all(folder).await.map_err(|e| anyhow::anyhow!("log_path: make {}: {e}", folder.display()))?;
    }
    let monitor = pod.monitor()?;
    let request = monitor_request(shim, container, runtime);
    if container.record().restore {
        return restore(container, &monitor, &request).await;
    }
    let created = monitor.create(&request).await?;
    let process = Process { pid: created.pid as i32, start_time: created.start_time };
    container.hold(created.pidfd, created.pty);
    container.update("container process", |record| record.process = Some(process)).await?;
    // Before the process runs: an end is never earlier than the start.
    let started_at = now();
    container.update("container starts", |record| record.started_at = started_at).await?;
    Ok(monitor.start_container(&container.id, Some(PATIENCE)).await?)
}

/// Its processes go on where a checkpoint left them.
async fn restore(container: &Arc<Container>, monitor: &Monitor, request: &Create) -> Result<()> {
    let args = checkpoint::restore_args(container).await?;
    // It runs before anybody hears of it: its end is not before this.
    let started_at = now();
    let created = match monitor.restore(request, args).await {
        Ok(created) => created,
        Err(error) => {
            // The restore's failure is the one to tell; what is left goes with the container.
            let _ = checkpoint::forget(container).await;
            return Err(error.into());
        }
    };
    let process = Process { pid: created.pid as i32, start_time: created.start_time };
    container.hold(created.pidfd, created.pty);
    container.update("container process", |record| record.process = Some(process)).await?;
    container.update("container starts", |record| (record.started_at, record.restore) = (started_at, false)).await?;
    checkpoint::forget(container).await
}

/// What a monitor needs to know of a container, to make it or to take it over.
pub fn monitor_request(shim: &Shim, container: &Container, runtime: &Runtime) -> Create {
    let record = container.record();
    let text = |path: &std::path::Path| path.display().to_string();
    Create {
        id: container.id.clone(),
        runtime: text(&runtime.path),
        args: runtime.args.clone(),
        bundle: text(&container.run_dir),
        dir: text(&container.run_dir),
        stdin: record.config.stdin,
        stdin_once: record.config.stdin_once,
        tty: record.config.tty,
        log_path: text(&record.log_path),
        log_line_max: shim.config.max_log_line.into(),
        exit_path: text(&container.dir.join("exit.json")),
        timeout_ms: PATIENCE.as_millis() as u64,
        read_only: runtime.read_only,
    }
}
