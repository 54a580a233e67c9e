//! The end of a container's process: noted, told, and what the container had in this boot taken down. Its record, its
//! log and its writable layer stay until it is removed.

use std::sync::Arc;

use rrun_proto::v1;
use tonic::Status;

use super::Container;
use crate::error::Result;
use crate::pods::blocking;
use crate::record::Exit;
use crate::rootfs::unmount_and_remove;
use crate::shim::Shim;
use crate::step;

/// Notes how a container ended (the record of it is on disk) and tells the readers of events; then cleans up in the
/// background, for which nobody has to wait.
pub async fn exited(shim: &Shim, container: &Arc<Container>, exit: Exit) {
    let _started = container.starting.lock().await;
    // What the daemon has noted comes first: the process of a failed start has an end, too.
    if !container.set_exit(container.record().end.clone().unwrap_or(exit)) {
        return;
    }
    super::publish(shim, container, v1::ContainerEventType::ContainerStoppedEvent);
    let (shim, container) = (shim.clone(), container.clone());
    tokio::spawn(async move {
        if let Err(error) = clean_up(&shim, &container).await {
            tracing::warn!(container = container.id, "clean up: {}; it is tried again at removal", error.message());
        }
    });
}

/// Removes cgroup, runtime state, mounts and FIFOs of a container that has ended. May be repeated; joins the one that runs.
pub async fn clean_up(shim: &Shim, container: &Arc<Container>) -> Result<(), Status> {
    let (name, container, shim) = (format!("clean up {}", container.id), container.clone(), shim.clone());
    let job = {
        let shim = shim.clone();
        async move { clean_up_one(&shim, &container).await.map(|()| String::new()).map_err(Status::from) }
    };
    shim.jobs.run(name, job).await.map(drop)
}

/// Whether the OCI runtime has a state of the container: also when daemon and monitor died while it was made.
pub fn knows(shim: &Shim, runtime: &str, id: &str) -> bool {
    shim.config.state.join("runtimes").join(runtime).join(id).exists()
}

async fn clean_up_one(shim: &Shim, container: &Arc<Container>) -> Result<()> {
    if container.exit().is_some() {
        crate::nri::stop_container(shim, container).await;
    }
    let record = container.record();
    let pod = shim.pod(&container.pod)?;
    let runtime = shim.runtimes.get(&pod.record().handler)?;
    if record.process.is_some() || record.end.is_some() || knows(shim, &runtime.name, &container.id) {
        runtime.delete(&container.id).await?;
        if let Ok(monitor) = pod.monitor() {
            let _ = monitor.remove(&container.id).await; // one that is gone has forgotten it
        }
    }
    container.hold(None, None);
    if record.restore {
        super::checkpoint::forget(container).await?;
    }
    step::reached("container process gone");
    let run_dir = container.run_dir.clone();
    blocking(move || {
        if let Ok(volumes) = std::fs::read_dir(run_dir.join("volumes")) {
            for volume in volumes.flatten() {
                unmount_and_remove(&volume.path())?;
            }
        }
        if let Ok(layers) = std::fs::read_dir(run_dir.join("lower")) {
            for layer in layers.flatten() {
                unmount_and_remove(&layer.path())?;
            }
        }
        Ok(unmount_and_remove(&run_dir.join("rootfs"))?)
    })
    .await?;
    step::reached("container mounts gone");
    Ok(())
}
