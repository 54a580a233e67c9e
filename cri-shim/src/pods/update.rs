//! UpdatePodSandboxResources: the pod's cgroup is kubelet's own; what is told here is kept for those who ask.

use rrun_proto::v1;

use crate::error::Result;
use crate::shim::Shim;

/// Notes a pod's new size.
pub async fn update_resources(shim: &Shim, request: v1::UpdatePodSandboxResourcesRequest) -> Result<()> {
    let pod = shim.pod(&request.pod_sandbox_id)?;
    let _open = pod.open("UpdatePodSandboxResources").await?;
    crate::nri::update_pod_sandbox(shim, &pod, request.overhead.as_ref(), request.resources.as_ref()).await?;
    pod.update("pod resources", |record| {
        let linux = record.config.linux.get_or_insert_default();
        linux.overhead = request.overhead.or(linux.overhead.take());
        linux.resources = request.resources.or(linux.resources.take());
    })
    .await?;
    crate::nri::post_update_pod_sandbox(shim, &pod).await;
    Ok(())
}
