//! The Node Resource Interface: plugins that are told of pods and containers, and adjust them. What containerd and CRI-O
//! speak, in the form of version 0.12.
//!
//! Plugins connect to a socket (`nri.socket`), or are programs that the daemon starts (`nri.plugin_dir`); both sides speak
//! ttrpc ([`frames`], [`connection`]). They run as root and are trusted as root: an adjustment may mount or start anything.
//! Who does not answer in time, hangs up, or sends what is not the protocol is left behind ([`plugin`]).
//!
//! One request is before the plugins at a time, in the order of their indices; of two that want the same value the request
//! fails ([`collect`]). No pod and no container is lost to a plugin that comes late: it is told of all there are while
//! nothing is made or removed ([`Guard`]).

mod adjust;
mod collect;
mod connection;
mod describe;
mod frames;
mod message;
mod owners;
mod plugin;
mod update;

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use oci_spec::runtime::Spec;
use rrun_proto::nri::{self, Event};
use rrun_proto::v1;
use serde_json::{Map, Value};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{MutexGuard, OwnedRwLockReadGuard, RwLock};

use crate::containers::Container;
use crate::error::{Error, Result};
use crate::pods::Pod;
use crate::shim::Shim;
use collect::Collected;
use message::Message;
use plugin::{Installed, Plugin};

/// The plugins.
#[derive(Default)]
pub struct Nri {
    plugins: tokio::sync::Mutex<Vec<Arc<Plugin>>>,
    /// Held for writing while a plugin is told of all there is.
    gate: Arc<RwLock<()>>,
    told: Mutex<Told>,
}

/// Of which containers plugins were told what.
#[derive(Default)]
struct Told {
    created: HashSet<String>,
    stopped: HashSet<String>,
}

/// As long as it is held, no plugin is told of all there is: from before plugins are asked about what is made or removed
/// until it is there or gone.
pub struct Guard(#[allow(dead_code)] OwnedRwLockReadGuard<()>);

impl Nri {
    async fn guard(&self) -> Guard {
        Guard(self.gate.clone().read_owned().await)
    }

    /// The plugins in their order, those that are gone left out; nobody else asks them meanwhile.
    async fn plugins(&self) -> MutexGuard<'_, Vec<Arc<Plugin>>> {
        let mut plugins = self.plugins.lock().await;
        plugins.retain(|plugin| !plugin.is_closed());
        plugins
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hangs up on all plugins, which ends those that were started here.
    pub async fn stop(&self) {
        for plugin in self.plugins.lock().await.drain(..) {
            plugin.close();
        }
    }
}

/// Starts the installed plugins, waits for them to register, and takes others from now on.
pub async fn start(shim: &Shim) {
    let settings = &shim.config.nri;
    if settings.disable {
        return;
    }
    let installed = plugin::start_installed(settings);
    let joining = installed.into_iter().map(|(socket, installed)| {
        let shim = shim.clone();
        tokio::spawn(async move { join(&shim, socket, Some(installed)).await })
    });
    for joining in joining.collect::<Vec<_>>() {
        let _ = joining.await;
    }
    match listen(shim).await {
        Ok(listener) => _ = tokio::spawn(accept(shim.clone(), listener)),
        Err(error) => tracing::warn!("NRI: no plugin can connect: {error:#}; set nri.socket, or nri.disable"),
    }
}

async fn listen(shim: &Shim) -> anyhow::Result<UnixListener> {
    let path = &shim.config.nri.socket;
    let folder = path.parent().filter(|folder| !folder.exists());
    let listener = crate::server::bind(path).await?;
    if let Some(folder) = folder {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).with_context(|| format!("chmod {}", folder.display()))?;
    }
    Ok(listener)
}

async fn accept(shim: Shim, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let shim = shim.clone();
                tokio::spawn(async move { join(&shim, socket, None).await });
            }
            Err(error) => {
                tracing::warn!("NRI: accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// A plugin registers, is told of all there is, and is asked from now on.
async fn join(shim: &Shim, socket: UnixStream, installed: Option<Installed>) {
    let joined = async {
        let plugin = Plugin::register(shim, socket, installed).await?;
        let _alone = shim.nri.gate.write().await;
        let (pods, containers) = everything(shim).await;
        let updates = plugin.synchronize(pods, containers).await?;
        tracing::info!(plugin = plugin.name, "NRI: registered");
        let mut plugins = shim.nri.plugins().await;
        plugins.push(Arc::new(plugin));
        plugins.sort_by(|one, other| one.name[..2].cmp(&other.name[..2]));
        anyhow::Ok(updates)
    };
    match joined.await {
        Ok(updates) => _ = update::apply(shim, updates).await,
        Err(error) => tracing::warn!("NRI: {error:#}"),
    }
}

/// All pods, and the containers that have not ended.
async fn everything(shim: &Shim) -> (Vec<nri::PodSandbox>, Vec<nri::Container>) {
    let pods = shim.pods().iter().filter(|pod| pod.record().acknowledged).map(|pod| describe::pod(pod)).collect();
    let mut containers = Vec::new();
    for container in shim.containers().iter().filter(|container| container.record().acknowledged && container.exit().is_none()) {
        containers.push(describe_container(shim, container).await);
    }
    (pods, containers)
}

async fn describe_container(shim: &Shim, container: &Container) -> nri::Container {
    let text = tokio::fs::read(container.run_dir.join("config.json")).await.unwrap_or_default();
    let config = serde_json::from_slice(&text).unwrap_or(Value::Null);
    describe::container(shim, container, &config)
}

/// Tells all plugins of an event that they can only let pass or fail.
async fn tell(shim: &Shim, event: Event, method: &str, message: &impl Message, change: nri::StateChangeEvent) -> Result<()> {
    for plugin in shim.nri.plugins().await.iter() {
        plugin.tell(event, method, message, &change).await?;
    }
    Ok(())
}

async fn tell_of_pod(shim: &Shim, pod: &Pod, event: Event, method: &str) -> Result<()> {
    if shim.nri.plugins().await.is_empty() {
        return Ok(());
    }
    let pod = Some(describe::pod(pod));
    let change = nri::StateChangeEvent { pod: pod.clone(), ..nri::StateChangeEvent::default() };
    tell(shim, event, method, &nri::PodRequest { pod }, change).await
}

async fn tell_of_container(shim: &Shim, container: &Container, event: Event, method: &str) -> Result<()> {
    if shim.nri.plugins().await.is_empty() {
        return Ok(());
    }
    let request = container_request(shim, container).await;
    let change =
        nri::StateChangeEvent { pod: request.pod.clone(), container: request.container.clone(), ..nri::StateChangeEvent::default() };
    tell(shim, event, method, &request, change).await
}

async fn container_request(shim: &Shim, container: &Container) -> nri::ContainerRequest {
    nri::ContainerRequest {
        pod: shim.pod(&container.pod).ok().map(|pod| describe::pod(&pod)),
        container: Some(describe_container(shim, container).await),
    }
}

fn warn(id: &str, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(id, "{error}");
    }
}

/// A sandbox is made; an error takes it down again. The guard is kept until the sandbox can be seen.
pub async fn run_pod_sandbox(shim: &Shim, pod: &Arc<Pod>) -> Result<Guard> {
    let guard = shim.nri.guard().await;
    tell_of_pod(shim, pod, Event::RunPodSandbox, "RunPodSandbox").await?;
    Ok(guard)
}

/// A sandbox's size is about to change.
pub async fn update_pod_sandbox(
    shim: &Shim,
    pod: &Arc<Pod>,
    overhead: Option<&v1::LinuxContainerResources>,
    resources: Option<&v1::LinuxContainerResources>,
) -> Result<()> {
    let _guard = shim.nri.guard().await;
    let request = nri::UpdatePodSandboxRequest {
        pod: Some(describe::pod(pod)),
        overhead_linux_resources: overhead.map(describe::resources),
        linux_resources: resources.map(describe::resources),
    };
    let change = nri::StateChangeEvent { pod: request.pod.clone(), ..nri::StateChangeEvent::default() };
    tell(shim, Event::UpdatePodSandbox, "UpdatePodSandbox", &request, change).await
}

/// A sandbox's size has changed.
pub async fn post_update_pod_sandbox(shim: &Shim, pod: &Arc<Pod>) {
    let _guard = shim.nri.guard().await;
    warn(&pod.id, tell_of_pod(shim, pod, Event::PostUpdatePodSandbox, "PostUpdatePodSandbox").await);
}

/// A sandbox is being stopped: its containers have ended, its network is still there.
pub async fn stop_pod_sandbox(shim: &Shim, pod: &Arc<Pod>) {
    let _guard = shim.nri.guard().await;
    warn(&pod.id, tell_of_pod(shim, pod, Event::StopPodSandbox, "StopPodSandbox").await);
}

/// A sandbox is being removed. The guard is kept until it is gone.
pub async fn remove_pod_sandbox(shim: &Shim, pod: &Arc<Pod>) -> Guard {
    let guard = shim.nri.guard().await;
    warn(&pod.id, tell_of_pod(shim, pod, Event::RemovePodSandbox, "RemovePodSandbox").await);
    guard
}

/// A container is being made: plugins adjust its configuration; an error takes it down again. The guard is kept until the
/// container can be seen.
pub async fn create_container(shim: &Shim, pod: &Arc<Pod>, container: &Arc<Container>, spec: &Spec) -> Result<(Value, Guard)> {
    let guard = shim.nri.guard().await;
    let mut config = serde_json::to_value(spec).context("config.json")?;
    let plugins = shim.nri.plugins().await;
    if plugins.is_empty() {
        return Ok((config, guard));
    }
    shim.nri.told().created.insert(container.id.clone());
    let pod = Some(describe::pod(pod));
    let before = describe::container(shim, container, &config);
    let mut all = Collected::new(before.clone());
    for plugin in plugins.iter() {
        let request = nri::ContainerRequest { pod: pod.clone(), container: Some(all.container.clone()) };
        let Some(answer) = plugin.ask::<nri::CreateContainerResponse>(Event::CreateContainer, "CreateContainer", &request).await? else {
            continue;
        };
        let adjusted = all.adjust(answer.adjust.unwrap_or_default(), &plugin.name).and_then(|()| all.update(answer.update, &plugin.name));
        adjusted.map_err(|error| anyhow::anyhow!("NRI: {error}"))?;
        update::evict(&answer.evict);
    }
    let request = nri::ValidateContainerAdjustmentRequest {
        pod,
        container: Some(before),
        adjust: Some(all.adjust.clone()),
        update: all.updates.clone(),
        owners: Some(all.owners.message()),
        plugins: plugins.iter().map(instance).collect(),
    };
    validate(&plugins, &request).await?;
    drop(plugins);
    adjust::adjust(&mut config, &all.adjust, &shim.config.cdi_dirs).context("NRI: adjustment")?;
    update::apply_all(shim, all.updates).await?;
    if let Some(resources) = all.adjust.linux.and_then(|linux| linux.resources) {
        let note = |record: &mut crate::record::Container| {
            let linux = record.config.linux.get_or_insert_default();
            describe::cri_resources(&resources, linux.resources.get_or_insert_default());
        };
        container.update("container adjusted", note).await?;
    }
    Ok((config, guard))
}

fn instance(plugin: &Arc<Plugin>) -> nri::PluginInstance {
    let (index, name) = plugin.name.split_once('-').unwrap_or_default();
    nri::PluginInstance { name: name.to_owned(), index: index.to_owned() }
}

/// Every plugin that validates adjustments has to agree, and has to answer; one that was left behind before has no say.
async fn validate(plugins: &[Arc<Plugin>], request: &nri::ValidateContainerAdjustmentRequest) -> Result<()> {
    for plugin in plugins.iter().filter(|plugin| !plugin.is_closed() && plugin.wants(Event::ValidateContainerAdjustment)) {
        let method = "ValidateContainerAdjustment";
        let answer = plugin.ask::<nri::ValidateContainerAdjustmentResponse>(Event::ValidateContainerAdjustment, method, request).await?;
        match answer {
            Some(answer) if answer.reject => {
                return Err(anyhow::anyhow!("NRI plugin {} rejects the adjustment: {}", plugin.name, answer.reason).into());
            }
            Some(_) => {}
            None => return Err(anyhow::anyhow!("NRI plugin {} has not validated the adjustment", plugin.name).into()),
        }
    }
    Ok(())
}

/// A container is made, and [`create_container`]'s guard still held.
pub async fn post_create_container(shim: &Shim, container: &Arc<Container>, _: &Guard) {
    warn(&container.id, tell_of_container(shim, container, Event::PostCreateContainer, "PostCreateContainer").await);
}

/// A container is about to start.
pub async fn start_container(shim: &Shim, container: &Arc<Container>) -> Result<()> {
    let _guard = shim.nri.guard().await;
    tell_of_container(shim, container, Event::StartContainer, "StartContainer").await
}

/// A container runs.
pub async fn post_start_container(shim: &Shim, container: &Arc<Container>) {
    let _guard = shim.nri.guard().await;
    warn(&container.id, tell_of_container(shim, container, Event::PostStartContainer, "PostStartContainer").await);
}

/// A container's limits are about to change; plugins may change them further. Answers what they want beyond CRI's words.
pub async fn update_container(
    shim: &Shim,
    container: &Arc<Container>,
    wanted: &mut v1::LinuxContainerResources,
) -> Result<nri::LinuxResources> {
    let _guard = shim.nri.guard().await;
    let plugins = shim.nri.plugins().await;
    if plugins.is_empty() {
        return Ok(nri::LinuxResources::default());
    }
    let request = container_request(shim, container).await;
    let mut all = Collected::default();
    for plugin in plugins.iter() {
        let mut seen = wanted.clone();
        describe::cri_resources(&own(&all, &container.id), &mut seen);
        let request = nri::UpdateContainerRequest {
            pod: request.pod.clone(),
            container: request.container.clone(),
            linux_resources: Some(describe::resources(&seen)),
        };
        let Some(answer) = plugin.ask::<nri::UpdateContainerResponse>(Event::UpdateContainer, "UpdateContainer", &request).await? else {
            continue;
        };
        all.update(answer.update, &plugin.name).map_err(|error| anyhow::anyhow!("NRI: {error}"))?;
        update::evict(&answer.evict);
    }
    drop(plugins);
    let own = own(&all, &container.id);
    all.updates.retain(|update| update.container_id != container.id);
    update::apply_all(shim, all.updates).await?;
    describe::cri_resources(&own, wanted);
    Ok(own)
}

/// What plugins want of the container that is being updated anyway.
fn own(all: &Collected, id: &str) -> nri::LinuxResources {
    let own = all.updates.iter().find(|update| update.container_id == id);
    own.and_then(|update| update.linux.as_ref()?.resources.clone()).unwrap_or_default()
}

/// A container's limits have changed.
pub async fn post_update_container(shim: &Shim, container: &Arc<Container>) {
    let _guard = shim.nri.guard().await;
    warn(&container.id, tell_of_container(shim, container, Event::PostUpdateContainer, "PostUpdateContainer").await);
}

/// A container has ended; told once. Plugins may give others what it had.
pub async fn stop_container(shim: &Shim, container: &Arc<Container>) {
    let _guard = shim.nri.guard().await;
    let plugins = shim.nri.plugins().await;
    if plugins.is_empty() || !shim.nri.told().stopped.insert(container.id.clone()) {
        return;
    }
    let request = container_request(shim, container).await;
    let mut all = Collected::default();
    for plugin in plugins.iter() {
        match plugin.ask::<nri::UpdateContainerResponse>(Event::StopContainer, "StopContainer", &request).await {
            Ok(None) => {}
            Ok(Some(answer)) => {
                let updated = all.update(answer.update, &plugin.name);
                warn(&container.id, updated.map_err(|error| Error::Internal(anyhow::anyhow!("NRI: {error}"))));
            }
            Err(error) => warn(&container.id, Err(error.into())),
        }
    }
    drop(plugins);
    update::apply(shim, all.updates).await;
}

/// A container is being removed. The guard is kept until it is gone.
pub async fn remove_container(shim: &Shim, container: &Arc<Container>) -> Guard {
    let guard = shim.nri.guard().await;
    // One that failed before plugins were asked about it was never there for them.
    let known = shim.nri.told().created.remove(&container.id) || container.record().acknowledged;
    if known {
        warn(&container.id, tell_of_container(shim, container, Event::RemoveContainer, "RemoveContainer").await);
    }
    shim.nri.told().stopped.remove(&container.id);
    guard
}

/// Changes limits in the object `linux.resources` of the OCI specification.
///
/// # Errors
/// A class that is not known.
pub fn set_resources(to: &mut Map<String, Value>, wanted: &nri::LinuxResources) -> Result<()> {
    Ok(adjust::resources(to, wanted)?)
}
