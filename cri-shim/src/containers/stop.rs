//! StopContainer: the stop signal once, SIGKILL when the grace is over. Calls beside each other each keep their own time,
//! so the shortest grace wins.

use std::sync::Arc;
use std::time::Duration;

use rrun_proto::v1;
use rustix::process::Signal;
use tonic::Status;

use super::Container;
use crate::error::{Error, Result};
use crate::shim::Shim;

/// How long the kernel may take to end a killed process.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// Stops a container after at most `grace` seconds. An unknown id is success.
pub async fn stop(shim: &Shim, id: &str, grace: i64) -> Result<(), Status> {
    let Ok(container) = shim.container(id) else { return Ok(()) };
    stop_one(shim, &container, grace).await.map_err(Status::from)
}

/// Kills all containers of a pod.
pub async fn stop_all(shim: &Shim, pod: &str) -> Result<()> {
    let containers = shim.containers_of(pod);
    let stopped = containers.into_iter().map(|container| {
        let shim = shim.clone();
        tokio::spawn(async move {
            stop_one(&shim, &container, 0).await?;
            super::clean_up(&shim, &container).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
            Ok::<_, Error>(())
        })
    });
    for result in stopped.collect::<Vec<_>>() {
        result.await.map_err(|error| anyhow::anyhow!("stop a container: {error}"))??;
    }
    Ok(())
}

/// The whole of it.
pub(crate) async fn stop_one(shim: &Shim, container: &Arc<Container>, grace: i64) -> Result<()> {
    if container.state() != v1::ContainerState::ContainerRunning {
        // A process that waits to be started is `clean_up`'s.
        return Ok(());
    }
    if grace > 0 {
        if !container.record().stop_signalled {
            // Sent before it is recorded: a daemon that dies in between sends it twice rather than never.
            let mut sent = Ok(());
            let send = |record: &mut crate::record::Container| {
                if !record.stop_signalled {
                    sent = container.signal(kernel_signal(record.stop_signal));
                    record.stop_signalled = sent.is_ok();
                }
            };
            container.update("container stop signal", send).await?;
            sent?;
        }
        if tokio::time::timeout(Duration::from_secs(grace as u64), container.wait()).await.is_ok() {
            return Ok(());
        }
    }
    let _ = shim;
    container.signal(Signal::KILL)?;
    match tokio::time::timeout(KILL_PATIENCE, container.wait()).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::DeadlineExceeded(format!("container {} was killed and does not end: {}", container.id, stuck(container)))),
    }
}

/// What a process that cannot be killed waits for.
fn stuck(container: &Container) -> String {
    let Some(process) = container.record().process else { return "its process is unknown".into() };
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", process.pid)).unwrap_or_default();
    let status = read("status");
    let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("gone").trim().to_owned();
    let at = read("stack").lines().next().unwrap_or("").trim().to_owned();
    format!("process {} is in state {state}, in the kernel at {at:?}", process.pid)
}

fn kernel_signal(number: i32) -> Signal {
    crate::sys::signal(number).unwrap_or(Signal::TERM)
}
