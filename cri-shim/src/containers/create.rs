//! CreateContainer: everything that can be wrong is found here; the process is made by StartContainer.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use rrun_proto::v1;
use rustix::fs::{Mode, OFlags};
use tonic::Status;

use super::checkpoint::{self, Dump, Source};
use super::{Container, oci};
use crate::error::{Error, Result};
use crate::images::Image;
use crate::pods::{Pod, blocking, remove_folder};
use crate::record;
use crate::rootfs::Overlay;
use crate::shim::{Shim, new_id, now};
use crate::step;

/// Makes a container; answers its id. The same request again joins the running one, or finds its container.
pub async fn create(shim: &Shim, request: v1::CreateContainerRequest) -> Result<String, Status> {
    let config = request.config.ok_or_else(|| Error::InvalidArgument("config is missing".into()))?;
    if config.metadata.as_ref().is_none_or(|data| data.name.is_empty()) {
        return Err(Error::InvalidArgument("config.metadata.name is empty".into()).into());
    }
    if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return Err(Error::InvalidArgument("config.image.image is empty".into()).into());
    }
    let pod = shim.pod(&request.pod_sandbox_id)?;
    create_from(shim, pod, config, None).await
}

/// The same, from the checkpoint that is given, if one is.
pub(super) async fn create_from(shim: &Shim, pod: Arc<Pod>, config: v1::ContainerConfig, source: Option<Source>) -> Result<String, Status> {
    let name = config.metadata.clone().unwrap_or_default();
    let (job, shim) = (format!("container {} {} {}", pod.id, name.name, name.attempt), shim.clone());
    let work = {
        let shim = shim.clone();
        async move { create_one(&shim, &pod, config, source).await.map_err(Status::from) }
    };
    shim.jobs.run(job, work).await
}

async fn create_one(shim: &Shim, pod: &Arc<Pod>, mut config: v1::ContainerConfig, source: Option<Source>) -> Result<String> {
    let _open = pod.open("CreateContainer").await?;
    let same = |container: &Arc<Container>| container.record().config.metadata == config.metadata;
    if let Some(container) = shim.containers_of(&pod.id).into_iter().find(same) {
        return match container.state() {
            v1::ContainerState::ContainerCreated => Ok(container.id.clone()),
            _ => Err(Error::AlreadyExists(format!(
                "container {} has this name and attempt: remove it, or ask for a higher attempt",
                container.id
            ))),
        };
    }
    let id = new_id()?;
    let source = if source.is_some() { source } else { Source::of(shim, &config)? };
    let Some(source) = source else { return make(shim, pod, id, config, None).await };
    let dir = pod.dir.join("containers").join(&id);
    let made = match checkpoint::take(shim, pod, &dir, source, &mut config).await {
        Ok(dump) => make(shim, pod, id.clone(), config, Some(dump)).await,
        Err(error) => Err(error),
    };
    if made.is_err() && shim.container(&id).is_err() {
        blocking(move || remove_folder(&dir)).await?;
    }
    made
}

/// Makes it, from a checkpoint that is unpacked in its folder if there is one.
async fn make(shim: &Shim, pod: &Arc<Pod>, id: String, config: v1::ContainerConfig, dump: Option<Arc<Dump>>) -> Result<String> {
    let image = find_image(shim, &config)?;
    let image_config = image_config(&image);
    let record = record::Container {
        id,
        pod: pod.id.clone(),
        log_path: log_path(&pod.record().config, &config),
        stop_signal: oci::stop_signal(&config, &image_config)?,
        config,
        image_id: image.id.clone(),
        created_at: now(),
        boot_id: shim.boot_id.clone(),
        restore: dump.is_some(),
        ..record::Container::default()
    };
    let container = Container::new(record, None, Some(image.clone()), &shim.config);
    let folders = [container.dir.clone(), container.run_dir.clone()];
    blocking(move || {
        for path in folders {
            std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        Ok(())
    })
    .await?;
    container.update("container reserved", |_| {}).await?;
    shim.add_container(container.clone());
    match prepare(shim, pod, &container, &image, dump).await {
        Ok(()) => {
            super::publish(shim, &container, v1::ContainerEventType::ContainerCreatedEvent);
            Ok(container.id.clone())
        }
        Err(error) => {
            if let Err(second) = super::remove::remove_one(shim, &container).await {
                tracing::warn!(container = container.id, "after a failed create: {second}");
                container.update("container kept", |record| record.acknowledged = true).await?;
            }
            Err(error)
        }
    }
}

fn find_image(shim: &Shim, config: &v1::ContainerConfig) -> Result<Arc<Image>> {
    let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let image = shim.images.lookup(name).ok_or_else(|| Error::NotFound(format!("image {name:?} is not here: pull it first")))?;
    match image.is_artifact() {
        true => Err(Error::InvalidArgument(format!("image {name:?} is an artifact: it can be mounted as a volume, not run"))),
        false => Ok(image),
    }
}

/// What the specification takes from an image.
fn image_config(image: &Image) -> oci::ImageConfig {
    let config = image.config.clone();
    oci::ImageConfig {
        user: config.user,
        env: config.env,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        volumes: config.volumes.into_iter().map(|path| (path, serde_json::Value::Null)).collect(),
        working_dir: config.working_dir,
        labels: config.labels,
        stop_signal: config.stop_signal,
    }
}

fn log_path(pod: &v1::PodSandboxConfig, config: &v1::ContainerConfig) -> PathBuf {
    match (pod.log_directory.as_str(), config.log_path.as_str()) {
        ("", _) | (_, "") => PathBuf::new(),
        (folder, file) => PathBuf::from(folder).join(file),
    }
}

/// Mounts the root file system, asks NRI, writes the bundle.
async fn prepare(shim: &Shim, pod: &Arc<Pod>, container: &Arc<Container>, image: &Arc<Image>, dump: Option<Arc<Dump>>) -> Result<()> {
    let (shim_, pod_, container_, image_) = (shim.clone(), pod.clone(), container.clone(), image.clone());
    let (spec, user) = blocking(move || make_spec(&shim_, &pod_, &container_, &image_, dump.as_deref())).await?;
    step::reached("container root file system");
    let (config, seen) = crate::nri::create_container(shim, pod, container, &spec).await?;
    let path = container.run_dir.join("config.json");
    let restored = container.clone();
    blocking(move || {
        if restored.record().restore {
            checkpoint::write_log(&restored)?;
        }
        let text = serde_json::to_vec(&config).context("config.json")?;
        Ok(std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?)
    })
    .await?;
    container.update("container prepared", |record| (record.user, record.acknowledged) = (user, true)).await?;
    crate::nri::post_create_container(shim, container, &seen).await;
    Ok(())
}

fn make_spec(
    shim: &Shim,
    pod: &Pod,
    container: &Container,
    image: &Image,
    dump: Option<&Dump>,
) -> Result<(oci_spec::runtime::Spec, v1::LinuxContainerUser)> {
    let (pod_record, record) = (pod.record(), container.record());
    let runtime = shim.runtimes.get(&pod_record.handler)?;
    let mut namespaces = pod.namespaces();
    target_pid(shim, &record.config, &mut namespaces)?;
    let rootfs = container.run_dir.join("rootfs");
    let user = namespaces.user.as_ref().map(open_user_namespace).transpose()?;
    let mapped = user.as_ref().map(|(fd, uid, gid)| (fd.as_fd(), *uid, *gid));
    let labels = oci::container_labels(&pod_record.config, &record.config, &pod_record.selinux)?;
    if dump.is_some() {
        checkpoint::fill(container, image)?;
    }
    Overlay { layers: &image.layers, writable: Some(&container.dir), target: &rootfs, user: mapped, label: &labels.mount }.mount()?;
    let volumes = mount_image_volumes(shim, container, mapped, &labels.mount)?;
    let input = oci::Input {
        id: &container.id,
        pod: oci::Pod {
            id: &pod.id,
            config: &pod_record.config,
            handler: &runtime.name,
            namespaces: &namespaces,
            hostname: &pod.hostname(),
            files: &crate::pods::files(&pod_record.config, &pod.run_dir),
        },
        config: &record.config,
        image: &image_config(image),
        image_name: record.config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default(),
        selinux: &labels,
        rootfs: &rootfs,
        host: &shim.host,
        features: oci::features(&runtime.features, &shim.host),
        settings: &shim.config,
    };
    let root = rustix::fs::open(&rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {}", rootfs.display()))?;
    let found = oci::find(&input, root.as_fd(), &volumes)?;
    let mut spec = oci::spec(&input, &found)?;
    if let Some(dump) = dump {
        checkpoint::fit(&mut spec, dump, &record.config)?;
    }
    let user = v1::LinuxContainerUser {
        uid: found.user.uid.into(),
        gid: found.user.gid.into(),
        supplemental_groups: found.user.groups.iter().map(|group| i64::from(*group)).collect(),
    };
    Ok((spec, user))
}

/// PID mode TARGET: the namespace of another container of the pod.
fn target_pid(shim: &Shim, config: &v1::ContainerConfig, namespaces: &mut oci::Namespaces) -> Result<()> {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let Some(options) = context.and_then(|context| context.namespace_options.as_ref()) else { return Ok(()) };
    match options.pid() {
        v1::NamespaceMode::Target => {
            let target = shim.container(&options.target_id)?;
            target.running("PID namespace of target_id")?;
            let pid = target.record().process.unwrap_or_default().pid;
            namespaces.pid = oci::PidNamespace::Path(format!("/proc/{pid}/ns/pid").into());
        }
        v1::NamespaceMode::Container => namespaces.pid = oci::PidNamespace::Own,
        v1::NamespaceMode::Node => namespaces.pid = oci::PidNamespace::Host,
        v1::NamespaceMode::Pod => {}
    }
    Ok(())
}

fn open_user_namespace(user: &oci::UserNamespace) -> Result<(std::os::fd::OwnedFd, u32, u32)> {
    let fd = rustix::fs::open(&user.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open the pod's user namespace {}", user.path.display()))?;
    let root = |maps: &[v1::IdMapping]| maps.iter().find(|map| map.container_id == 0).map_or(0, |map| map.host_id);
    Ok((fd, root(&user.uids), root(&user.gids)))
}

/// Mounts with an image: its files, read-only, in the container's run folder; by the mount's index.
fn mount_image_volumes(
    shim: &Shim,
    container: &Container,
    user: Option<(std::os::fd::BorrowedFd<'_>, u32, u32)>,
    label: &str,
) -> Result<HashMap<usize, PathBuf>> {
    let mut volumes = HashMap::new();
    for (index, mount) in container.record().config.mounts.iter().enumerate() {
        let Some(spec) = mount.image.as_ref().filter(|image| !image.image.is_empty()) else { continue };
        let image = shim.images.lookup(&spec.image).ok_or_else(|| {
            Error::NotFound(format!("ImageVolumeMountFailed: mounts[{index}].image {:?} is not here: pull it first", spec.image))
        })?;
        let target = container.run_dir.join("volumes").join(index.to_string());
        Overlay { layers: &image.layers, writable: None, target: &target, user, label }.mount()?;
        volumes.insert(index, sub_path(&target, &mount.image_sub_path, index)?);
    }
    Ok(volumes)
}

/// The folder in the image's files that is asked for, found beneath them.
fn sub_path(root: &std::path::Path, sub_path: &str, index: usize) -> Result<PathBuf> {
    if sub_path.is_empty() {
        return Ok(root.to_owned());
    }
    let failed = |error: rustix::io::Errno| {
        Error::Internal(anyhow::anyhow!(
            "ImageVolumeMountFailed: mounts[{index}].image_sub_path {sub_path:?}: {error}; it must be a path in the image"
        ))
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root_fd = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS | rustix::fs::ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(&root_fd, sub_path, flags, Mode::empty(), resolve).map_err(failed)?;
    // No link is on the way and the mount is read-only: the path stays what it was found to be.
    Ok(root.join(sub_path))
}
