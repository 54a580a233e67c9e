//! What plugins want of containers that are there.

use rrun_proto::nri;

use super::describe;
use crate::containers;
use crate::error::{Error, Result};
use crate::shim::Shim;

/// Makes updates; answers those that failed, and why.
pub(super) async fn apply(shim: &Shim, updates: Vec<nri::ContainerUpdate>) -> Vec<(nri::ContainerUpdate, Error)> {
    let mut failed = Vec::new();
    for update in updates {
        if let Err(error) = apply_one(shim, &update).await {
            tracing::warn!(container = update.container_id, "NRI: update: {error}");
            failed.push((update, error));
        }
    }
    failed
}

/// Makes updates; fails with the first that must not fail.
pub(super) async fn apply_all(shim: &Shim, updates: Vec<nri::ContainerUpdate>) -> Result<()> {
    match apply(shim, updates).await.into_iter().find(|(update, _)| !update.ignore_failure) {
        Some((update, error)) => Err(anyhow::anyhow!("NRI: update of container {}: {error}", update.container_id).into()),
        None => Ok(()),
    }
}

async fn apply_one(shim: &Shim, update: &nri::ContainerUpdate) -> Result<()> {
    let Some(resources) = update.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else { return Ok(()) };
    let container = shim.container(&update.container_id)?;
    if container.exit().is_some() {
        return Ok(()); // nothing to limit any more
    }
    let mut wanted = rrun_proto::v1::LinuxContainerResources::default();
    describe::cri_resources(resources, &mut wanted);
    containers::set_resources(shim, &container, &wanted, resources).await
}

/// Plugins may ask to evict a container; that is kubelet's to do, and no runtime does it.
pub(super) fn evict(wanted: &[nri::ContainerEviction]) {
    for eviction in wanted {
        tracing::warn!(container = eviction.container_id, "NRI: a plugin wants it evicted, which is not done: {}", eviction.reason);
    }
}
