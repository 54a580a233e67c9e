//! StopPodSandbox, and the teardown that it, RemovePodSandbox, a failed RunPodSandbox and recovery share. Every step
//! may find its object gone.

use std::sync::Arc;

use rrun_proto::v1;
use tonic::Status;

use super::{Pod, blocking, network};
use crate::containers;
use crate::error::Result;
use crate::rootfs::unmount_and_remove;
use crate::shim::Shim;
use crate::step;

/// Stops a sandbox. An unknown id is success.
pub async fn stop(shim: &Shim, id: &str) -> Result<(), Status> {
    let Ok(pod) = shim.pod(id) else { return Ok(()) };
    let (name, shim) = (format!("stop pod {}", pod.id), shim.clone());
    let job = {
        let shim = shim.clone();
        async move { tear_down(&shim, &pod).await.map(|()| String::new()).map_err(Status::from) }
    };
    shim.jobs.run(name, job).await.map(drop)
}

/// Ends the pod's containers, gives back its addresses, takes down its namespaces and mounts, ends its monitor. The record
/// stays.
pub async fn tear_down(shim: &Shim, pod: &Arc<Pod>) -> Result<()> {
    let was_ready = pod.record().ready;
    if was_ready {
        pod.close().await?;
    }
    containers::stop_all(shim, &pod.id).await?;
    if was_ready {
        crate::nri::stop_pod_sandbox(shim, pod).await;
    }
    step::reached("pod containers stopped");
    let record = pod.record();
    if record.network {
        network::del(shim, &record).await?;
        pod.update("pod network given back", |record| record.network = false).await?;
    }
    if let Ok(monitor) = pod.monitor() {
        let _ = monitor.stop_sandbox().await; // a monitor that is gone has no init to end: the next step does
    }
    if let Some(init) = record.init {
        containers::kill_process(init);
    }
    let (run_dir, netns, pins) = (pod.run_dir.clone(), record.netns.clone(), shim.pins.clone());
    blocking(move || {
        for kind in ["pid", "ipc", "uts", "user"] {
            rrun_monitor::pins::unpin(&run_dir.join("ns").join(kind))?;
        }
        if let Some(netns) = &netns {
            pins.unpin(netns)?;
        }
        Ok(unmount_and_remove(&run_dir.join("shm"))?)
    })
    .await?;
    step::reached("pod namespaces gone");
    if let Some(monitor) = pod.set_monitor(None)
        && let Err(error) = monitor.shutdown().await
    {
        tracing::warn!(pod = pod.id, "end the monitor: {error}");
    }
    if was_ready {
        super::status::publish(shim, pod, v1::ContainerEventType::ContainerStoppedEvent);
    }
    Ok(())
}
