//! ContainerStatus, ListContainers and the events of containers: from memory.

use std::collections::BTreeMap;

use rrun_proto::v1;
use serde_json::{Value, json};

use super::{Container, oci};
use crate::error::{Error, Result};
use crate::shim::{Shim, labels_match, now};

/// ContainerStatus.
pub async fn status(shim: &Shim, request: &v1::ContainerStatusRequest) -> Result<v1::ContainerStatusResponse> {
    let container = shim.container(&request.container_id)?;
    if !container.record().acknowledged {
        return Err(Error::NotFound(format!("container {} is still being made", container.id)));
    }
    let info = if request.verbose { info(shim, &container).await } else { BTreeMap::new() };
    Ok(v1::ContainerStatusResponse { status: Some(container.to_status(shim)), info })
}

/// ListContainers: what is still being made is not there.
pub fn list(shim: &Shim, filter: Option<&v1::ContainerFilter>) -> Vec<v1::Container> {
    let all = shim.containers();
    let made = all.iter().filter(|container| container.record().acknowledged);
    made.filter(|container| filter.is_none_or(|filter| matches(filter, container))).map(|c| message(c)).collect()
}

fn matches(filter: &v1::ContainerFilter, container: &Container) -> bool {
    container.id.starts_with(&filter.id)
        && container.pod.starts_with(&filter.pod_sandbox_id)
        && filter.state.is_none_or(|state| state.state == i32::from(container.state()))
        && labels_match(&filter.label_selector, &container.record().config.labels)
}

fn message(container: &Container) -> v1::Container {
    let record = container.record();
    v1::Container {
        id: container.id.clone(),
        pod_sandbox_id: container.pod.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_id.clone(),
        state: container.state().into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

impl Container {
    /// Its status.
    pub fn to_status(&self, shim: &Shim) -> v1::ContainerStatus {
        let (record, exit) = (self.record(), self.exit());
        let config = &record.config;
        let mut image = config.image.clone().unwrap_or_default();
        // The name that a person gave is more use than the digest that kubelet resolved it to.
        if let Some(known) = shim.images.lookup(&record.image_id)
            && let Some(name) = known.repo_tags.first().or(known.repo_digests.first())
        {
            image.image = name.clone();
        }
        v1::ContainerStatus {
            id: self.id.clone(),
            metadata: config.metadata.clone(),
            state: self.state().into(),
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: exit.as_ref().map_or(0, |exit| exit.finished_at),
            exit_code: exit.as_ref().map_or(0, |exit| exit.code),
            image: Some(image),
            image_ref: record.image_id.clone(),
            reason: exit.as_ref().map_or_else(String::new, |exit| exit.reason().to_owned()),
            message: exit.as_ref().map_or_else(String::new, |exit| exit.message.clone()),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            mounts: mounts(shim, config),
            log_path: record.log_path.display().to_string(),
            resources: Some(v1::ContainerResources { linux: config.linux.as_ref().and_then(|linux| linux.resources.clone()) }),
            image_id: record.image_id.clone(),
            user: Some(v1::ContainerUser { linux: Some(record.user.clone()) }),
            stop_signal: oci::stop_signal_name(record.stop_signal).into(),
        }
    }
}

/// Mounts as they were asked for; those of images with what PullImage answers for what was mounted (KEP-5365).
fn mounts(shim: &Shim, config: &v1::ContainerConfig) -> Vec<v1::Mount> {
    let mut mounts = config.mounts.clone();
    for image in mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
        if let Some(known) = shim.images.lookup(&image.image) {
            image.image_ref.clone_from(&known.id);
        }
    }
    mounts
}

/// The verbose part, in the shape that containerd gives it: scripts and tracers read `pid` and `runtimeSpec`.
async fn info(shim: &Shim, container: &Container) -> BTreeMap<String, String> {
    let record = container.record();
    let spec = tokio::fs::read(container.run_dir.join("config.json")).await.unwrap_or_default();
    let handler = shim.pod(&container.pod).map(|pod| pod.record().handler.clone()).unwrap_or_default();
    let info = json!({
        "sandboxID": container.pod,
        "pid": if container.exit().is_some() { 0 } else { record.process.map_or(0, |process| process.pid) },
        "removing": false,
        "snapshotKey": container.id,
        "snapshotter": "overlayfs",
        "runtimeType": "oci",
        "runtimeHandler": handler,
        "runtimeOptions": null,
        "config": record.config,
        "runtimeSpec": serde_json::from_slice::<Value>(&spec).unwrap_or(Value::Null),
    });
    [("info".to_owned(), info.to_string())].into()
}

/// Tells readers of events what happened to a container.
pub fn publish(shim: &Shim, container: &Container, kind: v1::ContainerEventType) {
    if !shim.events.has_readers() {
        return;
    }
    let pod = shim.pod(&container.pod).ok();
    shim.events.publish(v1::ContainerEventResponse {
        container_id: container.id.clone(),
        container_event_type: kind.into(),
        created_at: now(),
        pod_sandbox_status: pod.map(|pod| crate::pods::to_status(&pod)),
        containers_statuses: shim.containers_of(&container.pod).iter().map(|other| other.to_status(shim)).collect(),
    });
}
