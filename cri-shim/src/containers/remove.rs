//! RemoveContainer.

use std::sync::Arc;

use rrun_proto::v1;
use tonic::Status;

use super::{Container, stop};
use crate::error::Result;
use crate::pods::{blocking, remove_folder};
use crate::shim::Shim;
use crate::step;

/// Removes a container, killing it first if it runs. An unknown id is success.
pub async fn remove(shim: &Shim, id: &str) -> Result<(), Status> {
    let Ok(container) = shim.container(id) else { return Ok(()) };
    let (name, shim) = (format!("remove {}", container.id), shim.clone());
    let job = {
        let shim = shim.clone();
        async move { remove_one(&shim, &container).await.map(|()| String::new()).map_err(Status::from) }
    };
    shim.jobs.run(name, job).await.map(drop)
}

/// The whole of it.
pub(crate) async fn remove_one(shim: &Shim, container: &Arc<Container>) -> Result<()> {
    stop::stop_one(shim, container, 0).await?;
    super::clean_up(shim, container).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    let _gone = crate::nri::remove_container(shim, container).await;
    let (run_dir, dir) = (container.run_dir.clone(), container.dir.clone());
    blocking(move || {
        remove_folder(&run_dir)?;
        step::reached("container run folder gone");
        remove_folder(&dir)
    })
    .await?;
    step::reached("container record gone");
    shim.forget_container(&container.id);
    super::publish(shim, container, v1::ContainerEventType::ContainerDeletedEvent);
    let images = shim.images.clone();
    // In the background: nobody waits for the space.
    tokio::task::spawn_blocking(move || images.collect());
    Ok(())
}
