//! The RPCs of statistics and metrics: what is asked for, gathered from the shim's objects, read off the reactor.

use std::path::PathBuf;
use std::sync::Arc;

use rrun_proto::v1;

use super::{Container, Pod, Stats};
use crate::containers;
use crate::error::Result;
use crate::pods::{self, blocking};
use crate::record;
use crate::shim::{Shim, labels_match};

/// A container with what it lends to [`Container`].
struct OneContainer {
    container: Arc<containers::Container>,
    record: Arc<record::Container>,
    upper: PathBuf,
}

impl OneContainer {
    fn new(container: Arc<containers::Container>) -> OneContainer {
        OneContainer { record: container.record(), upper: container.dir.join("upper"), container }
    }

    fn view(&self) -> Container<'_> {
        let config = &self.record.config;
        let running = self.container.state() == v1::ContainerState::ContainerRunning;
        Container {
            id: &self.container.id,
            attributes: v1::ContainerAttributes {
                id: self.container.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            },
            pid: self.record.process.filter(|_| running).map(|process| process.pid),
            started_at: self.record.started_at,
            image: config
                .image
                .as_ref()
                .map_or("", |image| if image.user_specified_image.is_empty() { &image.image } else { &image.user_specified_image }),
            upper: &self.upper,
            resources: config.linux.as_ref().and_then(|linux| linux.resources.as_ref()),
        }
    }
}

/// A pod with its containers.
struct OnePod {
    id: String,
    record: Arc<record::Pod>,
    containers: Vec<OneContainer>,
}

impl OnePod {
    fn new(shim: &Shim, pod: &pods::Pod) -> OnePod {
        let containers = shim.containers_of(&pod.id).into_iter().map(OneContainer::new).collect();
        OnePod { id: pod.id.clone(), record: pod.record(), containers }
    }

    fn view(&self) -> Pod<'_> {
        let config = &self.record.config;
        Pod {
            id: &self.id,
            attributes: v1::PodSandboxAttributes {
                id: self.id.clone(),
                metadata: config.metadata.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
            },
            cgroup_parent: config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent),
            netns: self.record.netns.as_deref(),
            pid: self.record.init.map(|init| init.pid),
            created_at: self.record.created_at,
        }
    }

    fn containers(&self) -> Vec<Container<'_>> {
        self.containers.iter().map(OneContainer::view).collect()
    }
}

/// ContainerStats.
///
/// # Errors
/// `NotFound`.
pub async fn container(shim: &Shim, id: &str) -> Result<v1::ContainerStats> {
    let one = OneContainer::new(shim.container(id)?);
    read(shim, move |stats| stats.container(&one.view())).await
}

/// ListContainerStats: of those that run.
pub async fn containers(shim: &Shim, filter: Option<v1::ContainerStatsFilter>) -> Result<Vec<v1::ContainerStats>> {
    let filter = filter.unwrap_or_default();
    let asked = |container: &Arc<containers::Container>| {
        container.id.starts_with(&filter.id)
            && container.pod.starts_with(&filter.pod_sandbox_id)
            && container.state() == v1::ContainerState::ContainerRunning
            && labels_match(&filter.label_selector, &container.record().config.labels)
    };
    let all: Vec<_> = shim.containers().into_iter().filter(asked).map(OneContainer::new).collect();
    read(shim, move |stats| all.iter().map(|one| stats.container(&one.view())).collect()).await
}

/// PodSandboxStats.
///
/// # Errors
/// `NotFound`.
pub async fn pod(shim: &Shim, id: &str) -> Result<v1::PodSandboxStats> {
    let one = OnePod::new(shim, &*shim.pod(id)?);
    read(shim, move |stats| stats.pod(&one.view(), &one.containers())).await
}

/// ListPodSandboxStats: of those that are ready.
pub async fn pods(shim: &Shim, filter: Option<v1::PodSandboxStatsFilter>) -> Result<Vec<v1::PodSandboxStats>> {
    let filter = filter.unwrap_or_default();
    let all = ready(shim, |id, record| id.starts_with(&filter.id) && labels_match(&filter.label_selector, &record.config.labels));
    read(shim, move |stats| all.iter().map(|one| stats.pod(&one.view(), &one.containers())).collect()).await
}

/// ListPodSandboxMetrics: of all pods that are ready.
pub async fn metrics(shim: &Shim) -> Result<Vec<v1::PodSandboxMetrics>> {
    let all = ready(shim, |_, _| true);
    read(shim, move |stats| all.iter().map(|one| stats.metrics(&one.view(), &one.containers())).collect()).await
}

/// What the writable layers of all containers hold, for ImageFsInfo.
pub async fn writable_layers(shim: &Shim) -> Result<v1::FilesystemUsage> {
    forget_the_gone(shim);
    let all: Vec<_> = shim.containers().into_iter().map(OneContainer::new).collect();
    read(shim, move |stats| stats.writable_layers(&all.iter().map(OneContainer::view).collect::<Vec<_>>())).await
}

fn ready(shim: &Shim, asked: impl Fn(&str, &record::Pod) -> bool) -> Vec<OnePod> {
    forget_the_gone(shim);
    let pods = shim.pods();
    let is_asked = |pod: &Arc<pods::Pod>| Some(pod.record()).is_some_and(|record| record.ready && asked(&pod.id, &record));
    pods.iter().filter(|pod| is_asked(pod)).map(|pod| OnePod::new(shim, pod)).collect()
}

fn forget_the_gone(shim: &Shim) {
    let (pods, known) = (shim.pods(), shim.containers());
    let ids = pods.iter().map(|pod| pod.id.as_str()).chain(known.iter().map(|container| container.id.as_str()));
    shim.stats.keep(&ids.collect::<Vec<_>>());
}

async fn read<T: Send + 'static>(shim: &Shim, work: impl FnOnce(&Stats) -> T + Send + 'static) -> Result<T> {
    let shim = shim.clone();
    blocking(move || Ok(work(&shim.stats))).await
}
