//! UpdateContainerResources and ReopenContainerLog.

use anyhow::Context;
use oci_spec::runtime::LinuxResources;
use rrun_proto::{nri, v1};
use serde_json::Value;

use super::{Container, oci};
use crate::error::{Error, Result};
use crate::pods::blocking;
use crate::runtime::Runtime;
use crate::shim::Shim;

/// Changes the limits of a created or running container: all of them or none.
pub async fn update(shim: &Shim, request: v1::UpdateContainerResourcesRequest) -> Result<()> {
    let container = shim.container(&request.container_id)?;
    let Some(mut wanted) = request.linux else { return Ok(()) };
    if container.exit().is_some() {
        return Err(Error::FailedPrecondition(format!("UpdateContainerResources: container {} has ended", container.id)));
    }
    let more = crate::nri::update_container(shim, &container, &mut wanted).await?;
    set_resources(shim, &container, &wanted, &more).await?;
    crate::nri::post_update_container(shim, &container).await;
    Ok(())
}

/// Changes limits without asking NRI plugins: `more` is what they want, of which `wanted` has what CRI has words for.
pub async fn set_resources(
    shim: &Shim,
    container: &Container,
    wanted: &v1::LinuxContainerResources,
    more: &nri::LinuxResources,
) -> Result<()> {
    let pod = shim.pod(&container.pod)?;
    let record = container.record();
    let current = record.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let (resources, now) = oci::update_resources(&current, wanted, &shim.host)?;
    let mut resources = serde_json::to_value(resources).context("resources")?;
    if let Value::Object(resources) = &mut resources {
        crate::nri::set_resources(resources, more)?;
    }
    if container.state() == v1::ContainerState::ContainerRunning {
        change(&*shim.runtimes.get(&pod.record().handler)?, &container.id, &resources, oci::undo_resources(&current, wanted, &shim.host)?)
            .await?;
    }
    let path = container.run_dir.join("config.json");
    blocking(move || {
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut spec: Value = serde_json::from_slice(&text).with_context(|| format!("{}", path.display()))?;
        // Device rules are no limits: they stay as they are.
        resources["devices"] = spec["linux"]["resources"]["devices"].take();
        spec["linux"]["resources"] = resources;
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&spec).context("config.json")?)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(())
    })
    .await?;
    container.update("container resources", |record| record.config.linux.get_or_insert_default().resources = Some(now)).await?;
    Ok(())
}

/// Has the runtime change limits; where it fails half-way, what it had changed goes back to what `undo` says.
async fn change(runtime: &Runtime, id: &str, resources: &Value, undo: LinuxResources) -> Result<()> {
    let text = resources.to_string();
    let Err(error) = runtime.update(id, text.as_bytes()).await else { return Ok(()) };
    if let Err(second) = runtime.update(id, &serde_json::to_vec(&undo).context("resources")?).await {
        tracing::warn!(container = id, "limits are not what they were before an update that failed: {second:#}");
    }
    Err(error.into())
}

/// Goes on in a new log file.
pub async fn reopen_log(shim: &Shim, id: &str) -> Result<()> {
    let container = shim.container(id)?;
    container.running("ReopenContainerLog")?;
    Ok(shim.pod(&container.pod)?.monitor()?.reopen_log(&container.id).await?)
}
