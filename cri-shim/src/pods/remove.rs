//! RemovePodSandbox.

use std::path::Path;
use std::sync::Arc;

use rrun_proto::v1;
use tonic::Status;

use super::{Pod, blocking, stop};
use crate::containers;
use crate::error::Result;
use crate::shim::Shim;
use crate::{step, tree};

/// Removes a sandbox with its containers. An unknown id is success.
pub async fn remove(shim: &Shim, id: &str) -> Result<(), Status> {
    let Ok(pod) = shim.pod(id) else { return Ok(()) };
    let (name, shim) = (format!("remove pod {}", pod.id), shim.clone());
    let job = {
        let shim = shim.clone();
        async move { remove_one(&shim, &pod).await.map(|()| String::new()).map_err(Status::from) }
    };
    shim.jobs.run(name, job).await.map(drop)
}

/// The whole of it.
pub(crate) async fn remove_one(shim: &Shim, pod: &Arc<Pod>) -> Result<()> {
    // Joins a stop that runs: two teardowns beside each other would run CNI plugins twice.
    stop::stop(shim, &pod.id).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    for container in shim.containers_of(&pod.id) {
        containers::remove(shim, &container.id).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    }
    let _gone = crate::nri::remove_pod_sandbox(shim, pod).await;
    let (run_dir, dir) = (pod.run_dir.clone(), pod.dir.clone());
    remove_cgroup(shim, pod).await?;
    blocking(move || {
        remove_folder(&run_dir)?;
        step::reached("pod run folder gone");
        // The record goes last, and at once: a folder without one belongs to nobody.
        let file = dir.join("pod.json");
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(anyhow::anyhow!("remove {}: {error}", file.display()).into());
            }
            _ => {}
        }
        step::reached("pod record gone");
        remove_folder(&dir)
    })
    .await?;
    shim.forget_pod(&pod.id);
    // One that was removed beside it may have left to it what they shared.
    remove_cgroup(shim, pod).await?;
    super::status::publish(shim, pod, v1::ContainerEventType::ContainerDeletedEvent);
    Ok(())
}

/// Removes the cgroup parents that were made for the pod, but for what others have a part in.
async fn remove_cgroup(shim: &Shim, pod: &Arc<Pod>) -> Result<()> {
    let record = pod.record();
    let Some(from) = record.made_cgroup.clone() else { return Ok(()) };
    let others: Vec<_> = shim.pods().into_iter().filter(|other| other.id != pod.id).collect();
    blocking(move || {
        super::cgroup::remove(&record.config, &from, &others);
        Ok(())
    })
    .await
}

/// Removes a folder of ours with all in it; nothing there is success. Blocks.
pub fn remove_folder(path: &Path) -> Result<()> {
    if !path.is_absolute() || path.components().count() < 4 {
        return Err(anyhow::anyhow!("remove {path:?}: not a folder of ours").into());
    }
    Ok(tree::remove_path(path)?)
}
