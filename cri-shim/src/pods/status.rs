//! PodSandboxStatus, ListPodSandbox and the events of sandboxes: from memory.

use std::collections::BTreeMap;

use rrun_proto::v1;
use serde_json::json;

use super::{Pod, options};
use crate::error::Result;
use crate::shim::{Shim, labels_match, now};

/// PodSandboxStatus.
pub fn status(shim: &Shim, request: &v1::PodSandboxStatusRequest) -> Result<v1::PodSandboxStatusResponse> {
    let pod = shim.pod(&request.pod_sandbox_id)?;
    let statuses = shim.containers_of(&pod.id).iter().map(|container| container.to_status(shim)).collect();
    Ok(v1::PodSandboxStatusResponse {
        status: Some(to_status(&pod)),
        info: if request.verbose { info(&pod) } else { BTreeMap::new() },
        containers_statuses: statuses,
        timestamp: now(),
    })
}

/// ListPodSandbox: what is still being made is not there.
pub fn list(shim: &Shim, filter: Option<&v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
    let made = shim.pods().into_iter().filter(|pod| pod.record().acknowledged);
    made.map(|pod| message(&pod)).filter(|pod| filter.is_none_or(|filter| matches(filter, pod))).collect()
}

fn matches(filter: &v1::PodSandboxFilter, pod: &v1::PodSandbox) -> bool {
    pod.id.starts_with(&filter.id)
        && filter.state.is_none_or(|state| state.state == pod.state)
        && labels_match(&filter.label_selector, &pod.labels)
}

fn state(ready: bool) -> v1::PodSandboxState {
    if ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
}

/// A sandbox as lists show it.
pub fn message(pod: &Pod) -> v1::PodSandbox {
    let record = pod.record();
    v1::PodSandbox {
        id: pod.id.clone(),
        metadata: record.config.metadata.clone(),
        state: state(record.ready).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// A sandbox's status.
pub fn to_status(pod: &Pod) -> v1::PodSandboxStatus {
    let record = pod.record();
    let mut ips = record.ips.iter().cloned();
    v1::PodSandboxStatus {
        id: pod.id.clone(),
        metadata: record.config.metadata.clone(),
        state: state(record.ready).into(),
        created_at: record.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options(&record.config)) }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// The verbose part, in the shape that containerd gives it. There is no process of the sandbox: `pid` is its init's, or 0.
fn info(pod: &Pod) -> BTreeMap<String, String> {
    let record = pod.record();
    let netns = record.netns.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    let info = json!({
        "pid": record.init.map_or(0, |init| init.pid),
        "processStatus": if record.ready { "running" } else { "deleted" },
        "netNamespaceClosed": netns.is_empty() || !record.network,
        "image": "",
        "snapshotKey": "",
        "snapshotter": "",
        "runtimeHandler": record.handler,
        "runtimeType": "oci",
        "config": record.config,
        "cniResult": record.cni_result,
        "runtimeSpec": { "linux": { "namespaces": [{ "type": "network", "path": netns }] } },
    });
    [("info".to_owned(), info.to_string())].into()
}

/// Tells readers of events what happened to a sandbox.
pub(crate) fn publish(shim: &Shim, pod: &Pod, kind: v1::ContainerEventType) {
    if !shim.events.has_readers() {
        return;
    }
    shim.events.publish(v1::ContainerEventResponse {
        container_id: pod.id.clone(),
        container_event_type: kind.into(),
        created_at: now(),
        pod_sandbox_status: Some(to_status(pod)),
        containers_statuses: shim.containers_of(&pod.id).iter().map(|container| container.to_status(shim)).collect(),
    });
}
