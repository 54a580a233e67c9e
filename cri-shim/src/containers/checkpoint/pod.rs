//! CheckpointPod and RestorePod: containers of one pod that were frozen together, in one folder.
//!
//! ```text
//! FOLDER/checkpoint/      root's alone; it is there once all of it is
//!   pod.json              [`PodDump`]
//!   ID.tar                a container's archive, as CheckpointContainer writes it
//!   shm.tar               the pod's shared memory, /dev/shm, in the form of a layer
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use futures_util::future::join_all;
use rrun_monitor::clock;
use rrun_proto::v1;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::archive::InTime;
use super::restore::{Source, open_folder, read_json};
use super::save::{archive, can_be_saved, dump, in_time, json_text, prepare, refused, remove_rest, work_folder, write};
use crate::containers::{Container, create};
use crate::error::{Error, Result};
use crate::images::{disk_full, upper};
use crate::pods::{self, Pod, blocking};
use crate::runtime::Runtime;
use crate::shim::{Shim, now};
use crate::{step, tree};

const FOLDER: &str = "checkpoint";
const POD: &str = "pod.json";
const SHM: &str = "shm.tar";
/// The most that [`SHM`] may hold: all of a full /dev/shm, and what describes it.
const MAX_SHM: u64 = 80 << 20;
/// Of [`PodDump`].
const VERSION: u32 = 1;

/// `pod.json`.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodDump {
    /// [`VERSION`] of who wrote it.
    version: u32,
    /// The pod's id.
    id: String,
    /// The runtime handler.
    runtime: String,
    /// RFC 3339.
    checkpointed_time: String,
    /// The archives by their containers' names.
    containers: BTreeMap<String, String>,
}

/// Saves running containers of a pod at one moment: all of them are frozen before the first is saved, and go on before
/// the archives are written. Past the deadline nothing is kept.
pub async fn checkpoint_pod(shim: &Shim, request: v1::CheckpointPodRequest, deadline: Option<Instant>) -> Result<(), Status> {
    no_options(&request.options)?;
    let pod = shim.pod(&request.pod_sandbox_id)?;
    let containers = selected(shim, &pod, &request.container_ids)?;
    let output = absolute(&request.output_path)?;
    let ids: Vec<_> = containers.iter().map(|container| container.id.as_str()).collect();
    let (job, shim) = (format!("checkpoint {} {}", ids.join(" "), output.display()), shim.clone());
    let work = {
        let shim = shim.clone();
        async move { save(&shim, &pod, &containers, output, deadline).await.map(|()| String::new()).map_err(Status::from) }
    };
    shim.jobs.run(job, work).await.map(drop)
}

fn no_options(options: &BTreeMap<String, String>) -> Result<()> {
    match options.keys().next() {
        Some(key) => Err(Error::InvalidArgument(format!("options: {key:?} is not known; there are none"))),
        None => Ok(()),
    }
}

/// By id, so that two that ask for the same ones do not wait for each other.
fn selected(shim: &Shim, pod: &Pod, ids: &[String]) -> Result<Vec<Arc<Container>>> {
    let wrong = |what: String| Err(Error::InvalidArgument(format!("container_ids: {what}")));
    let mut containers = ids.iter().map(|id| shim.container(id)).collect::<Result<Vec<_>>>()?;
    containers.sort_by(|a, b| a.id.cmp(&b.id));
    if containers.is_empty() {
        return wrong("is empty; name the running containers to save".into());
    }
    if let Some(pair) = containers.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return wrong(format!("{} is named twice", pair[0].id));
    }
    let mut names = BTreeSet::new();
    for container in &containers {
        if container.pod != pod.id {
            return wrong(format!("{} is not of pod sandbox {}", container.id, pod.id));
        }
        if !names.insert(name(container)) {
            return wrong(format!("two have the name {:?}", name(container)));
        }
        can_be_saved("CheckpointPod", container)?;
    }
    Ok(containers)
}

fn name(container: &Container) -> String {
    container.record().config.metadata.clone().unwrap_or_default().name
}

fn absolute(text: &str) -> Result<PathBuf> {
    match Path::new(text).is_absolute() {
        true => Ok(text.into()),
        false => Err(Error::InvalidArgument(format!("output_path {text:?}: must be the absolute path of an empty folder"))),
    }
}

fn empty(folder: &Path) -> Result<()> {
    let wrong = |what: String| Err(Error::InvalidArgument(format!("output_path {folder:?}: {what}")));
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => wrong("is not empty; give a folder without anything in it".into()),
        },
        Err(error) => wrong(format!("{error}; give an empty folder")),
    }
}

async fn save(shim: &Shim, pod: &Arc<Pod>, containers: &[Arc<Container>], output: PathBuf, deadline: Option<Instant>) -> Result<()> {
    // It need not stay ready: a pod that is stopped meanwhile need not wait.
    drop(pod.open("CheckpointPod").await?);
    let mut alone = Vec::new();
    for container in containers {
        alone.push(container.checkpointing.lock().await);
        can_be_saved("CheckpointPod", container)?;
    }
    let folder = output.clone();
    blocking(move || empty(&folder)).await?;
    in_time(deadline)?;
    // A name that none other has, who saves others of the pod's containers into the same folder.
    let partial = output.join(format!(".{FOLDER}-{:.32}.partial", containers[0].id));
    let made = make(shim, pod, containers, output, partial, deadline).await;
    for container in containers {
        // It may have been removed meanwhile, its folder with it.
        if let Err(error) = remove_rest(container).await {
            tracing::warn!(container = container.id, "what is left of a checkpoint: {error}");
        }
    }
    made
}

async fn make(
    shim: &Shim,
    pod: &Arc<Pod>,
    containers: &[Arc<Container>],
    output: PathBuf,
    partial: PathBuf,
    deadline: Option<Instant>,
) -> Result<()> {
    let runtime = shim.runtimes.get(&pod.record().handler)?;
    for container in containers {
        let partial = partial.clone();
        container.update("checkpoint begun", |record| record.checkpoint = Some(partial)).await?;
    }
    let folder = partial.clone();
    blocking(move || make_folder(&folder)).await?;
    let mut locks = Vec::new();
    for container in containers {
        locks.push(prepare(shim, pod, container, &runtime).await?);
    }
    save_frozen(pod, containers, &runtime, locks, &partial, deadline).await?;
    step::reached("checkpoint goes on");
    let archives: Vec<_> = containers.iter().map(|container| (work_folder(container), format!("{}.tar", container.id))).collect();
    let dump = PodDump {
        version: VERSION,
        id: pod.id.clone(),
        runtime: runtime.name.clone(),
        checkpointed_time: clock::text(u64::try_from(now()).unwrap_or(0)),
        containers: containers.iter().map(|container| (name(container), format!("{}.tar", container.id))).collect(),
    };
    blocking(move || {
        for (work, name) in archives {
            archive(&work, make_file(&partial.join(name))?, deadline)?;
            pods::remove_folder(&work)?;
        }
        write(&partial, POD, &json_text(&serde_json::to_value(&dump).context("JSON")?)?)?;
        for name in [POD, SHM].into_iter().filter(|name| partial.join(name).exists()) {
            sync(&partial.join(name))?;
        }
        sync(&partial)?;
        in_time(deadline)?;
        step::reached("checkpoint written");
        let to = output.join(FOLDER);
        fs::rename(&partial, &to).with_context(|| format!("output_path: rename to {}", to.display()))?;
        sync(&output).inspect_err(|_| drop(tree::remove_path(&to)))
    })
    .await
}

fn sync(path: &Path) -> Result<()> {
    Ok(File::open(path).and_then(|file| file.sync_all()).with_context(|| format!("output_path: sync {}", path.display()))?)
}

fn make_folder(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem) => {
            Err(Error::PermissionDenied(format!("output_path: make {}: {error}; name a folder that can be written", path.display())))
        }
        made => Ok(made.with_context(|| format!("output_path: make {}", path.display()))?),
    }
}

fn make_file(path: &Path) -> Result<File> {
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    Ok(options.open(path).with_context(|| format!("output_path: make {}", path.display()))?)
}

/// Freezes all, saves all, and lets all go on, whatever comes of it.
async fn save_frozen(
    pod: &Arc<Pod>,
    containers: &[Arc<Container>],
    runtime: &Runtime,
    locks: Vec<File>,
    folder: &Path,
    deadline: Option<Instant>,
) -> Result<()> {
    let mut frozen = Vec::new();
    let mut done = Ok(());
    for container in containers {
        done = in_time(deadline);
        if done.is_ok() {
            done = runtime.pause(&container.id).await.map_err(Error::from);
        }
        if done.is_err() {
            break;
        }
        frozen.push(container);
    }
    if done.is_ok() {
        step::reached("checkpoint frozen");
        let dumps = containers.iter().zip(locks).map(|(container, lock)| dump(pod, container, runtime, lock, deadline));
        // All of them are over before the first goes on.
        done = join_all(dumps).await.into_iter().collect();
    }
    if done.is_ok() {
        done = save_shm(pod, folder, deadline).await;
    }
    for container in frozen {
        let thawed = runtime.resume(&container.id).await;
        done = done.and(thawed.map_err(Error::from));
    }
    done
}

/// The pod's shared memory folder, unless it is the host's.
fn shm(pod: &Pod) -> Option<PathBuf> {
    pods::files(&pod.record().config, &pod.run_dir).shm.filter(|path| path.starts_with(&pod.run_dir))
}

async fn save_shm(pod: &Pod, folder: &Path, deadline: Option<Instant>) -> Result<()> {
    let (Some(shm), path, owners) = (shm(pod), folder.join(SHM), pod.namespaces().owners()) else { return Ok(()) };
    blocking(move || {
        let out = AtMost { inner: InTime { inner: make_file(&path)?, deadline }, left: MAX_SHM };
        upper::save(&shm, owners, out).map(drop).context("/dev/shm").map_err(refused)
    })
    .await
}

/// A writer with an end.
struct AtMost<W> {
    inner: W,
    left: u64,
}

impl<W: Write> Write for AtMost<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| io::Error::other("its files are larger than it is, by their holes: such ones cannot be saved"))?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Makes a pod and its containers from such a folder; StartContainer lets each go on. On an error nothing is left of it. The
/// same request again joins the running one, or finds its pod, if all of it is there.
pub async fn restore_pod(shim: &Shim, request: v1::RestorePodRequest, deadline: Option<Instant>) -> Result<v1::RestorePodResponse, Status> {
    no_options(&request.options)?;
    let config = request.config.ok_or_else(|| Error::InvalidArgument("config is missing".into()))?;
    let key = pods::name(&config)?;
    let handler = shim.runtimes.get(&request.runtime_handler)?.name.clone();
    let (path, configs) = (request.checkpoint_path, request.container_configs);
    let saved = blocking(move || open(&path)).await?;
    fits(&saved.dump, &handler, &configs)?;
    let (shim, wanted) = (shim.clone(), configs.clone());
    let work = {
        let (shim, handler) = (shim.clone(), request.runtime_handler);
        async move {
            in_time(deadline)?;
            pods::run_one(&shim, config, handler, async |pod| fill(&shim, pod, &saved, configs, deadline).await).await
        }
    };
    // Under RunPodSandbox's name: of two that ask for the same pod one waits for the other.
    let pod_sandbox_id = shim.jobs.run(format!("pod {key}"), work).await?;
    let restored_containers = found(&shim, &pod_sandbox_id, &wanted).ok_or_else(|| not_restored(&pod_sandbox_id))?;
    Ok(v1::RestorePodResponse { pod_sandbox_id, restored_containers })
}

fn not_restored(pod: &str) -> Error {
    Error::AlreadyExists(format!(
        "pod sandbox {pod} has this name and attempt and is not as this checkpoint left it: remove it, or ask for a higher attempt"
    ))
}

/// A pod's checkpoint, opened: nothing of it is looked for by a path.
struct Saved {
    folder: OwnedFd,
    dump: PodDump,
}

impl Saved {
    fn file(&self, name: &str) -> Result<Option<File>> {
        upper::open_file(&self.folder, OsStr::new(name)).map_err(|error| Error::InvalidArgument(format!("checkpoint_path: {error:#}")))
    }

    fn archive(&self, name: &str) -> Result<File> {
        let archive = self.dump.containers.get(name).map(String::as_str).unwrap_or_default();
        // A name in the folder, not a way out of it.
        if archive.is_empty() || archive.contains('/') {
            return Err(Error::InvalidArgument(format!("checkpoint_path: {POD}: the archive of {name:?} is called {archive:?}")));
        }
        self.file(archive)?
            .ok_or_else(|| Error::InvalidArgument(format!("checkpoint_path: {archive}, of container {name:?}, is not there")))
    }
}

fn open(text: &str) -> Result<Saved> {
    let wrong = |error: anyhow::Error| {
        Error::InvalidArgument(format!("checkpoint_path {text:?}: not a pod's checkpoint that can be restored: {error:#}"))
    };
    if !Path::new(text).is_absolute() {
        return Err(wrong(anyhow::anyhow!("must be an absolute path")));
    }
    let folder = open_folder(&Path::new(text).join(FOLDER)).map_err(wrong)?;
    let dump: PodDump = read_json(&folder, POD).map_err(wrong)?;
    match dump.version {
        VERSION => Ok(Saved { folder, dump }),
        other => Err(wrong(anyhow::anyhow!("{POD}: version {other}, this rrun-cri reads {VERSION}"))),
    }
}

/// Holds the request against what was saved.
fn fits(dump: &PodDump, handler: &str, configs: &[v1::ContainerConfig]) -> Result<()> {
    if dump.runtime != handler {
        return Err(Error::FailedPrecondition(format!(
            "runtime_handler: the checkpoint was made with handler {:?}, not {handler:?}",
            dump.runtime
        )));
    }
    let wrong = |what: String| Err(Error::InvalidArgument(format!("container_configs: {what}")));
    if configs.is_empty() {
        return wrong("is empty; give one for each container of the checkpoint".into());
    }
    let mut names = BTreeSet::new();
    for (index, config) in configs.iter().enumerate() {
        let name = config.metadata.as_ref().map(|data| data.name.as_str()).unwrap_or_default();
        if name.is_empty() {
            return wrong(format!("[{index}].metadata.name is empty"));
        }
        if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
            return wrong(format!("[{index}].image.image is empty"));
        }
        if !names.insert(name) {
            return wrong(format!("two have the name {name:?}"));
        }
    }
    let saved: BTreeSet<_> = dump.containers.keys().map(String::as_str).collect();
    if let Some(name) = saved.difference(&names).next() {
        return wrong(format!("there is none for {name:?}, which the checkpoint has"));
    }
    match names.difference(&saved).next() {
        Some(name) => wrong(format!("the checkpoint has no container {name:?}")),
        None => Ok(()),
    }
}

/// The containers of a restored pod, if all of them are there and none has started.
fn found(shim: &Shim, pod: &str, configs: &[v1::ContainerConfig]) -> Option<Vec<v1::RestoredContainer>> {
    let containers = shim.containers_of(pod);
    let one = |config: &v1::ContainerConfig| {
        let same = |container: &&Arc<Container>| {
            let record = container.record();
            record.config.metadata == config.metadata && record.restore && container.state() == v1::ContainerState::ContainerCreated
        };
        let container = containers.iter().find(same)?;
        Some(v1::RestoredContainer { name: name(container), container_id: container.id.clone() })
    };
    configs.iter().map(one).collect()
}

/// Makes the sandbox ready, and acknowledges it when all is in it.
async fn fill(
    shim: &Shim,
    pod: &Arc<Pod>,
    saved: &Saved,
    configs: Vec<v1::ContainerConfig>,
    deadline: Option<Instant>,
) -> Result<(), Status> {
    pod.update("pod ready", |record| record.ready = true).await?;
    if let (Some(shm), Some(archive)) = (shm(pod), saved.file(SHM)?) {
        // A stop takes the folder's mount away.
        let _open = pod.open("RestorePod").await?;
        blocking(move || {
            upper::load(archive, &shm, &[], &[]).map_err(|error| match disk_full(&error) {
                true => Error::ResourceExhausted(format!("checkpoint_path: {SHM}: {error:#}")),
                false => Error::InvalidArgument(format!("checkpoint_path: {SHM}: {error:#}")),
            })
        })
        .await?;
    }
    for config in &configs {
        in_time(deadline)?;
        let archive = saved.archive(&config.metadata.clone().unwrap_or_default().name)?;
        create::create_from(shim, pod.clone(), config.clone(), Some(Source::OfPod(archive))).await?;
    }
    in_time(deadline)?;
    // Somebody may have made one of that name meanwhile, from its image.
    found(shim, &pod.id, &configs).ok_or_else(|| not_restored(&pod.id))?;
    Ok(pod.update("pod restored", |record| record.acknowledged = true).await?)
}
