//! CheckpointContainer. The container is frozen while CRIU saves its memory and its writable layer is copied, and goes on
//! before the archive is written.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rrun_monitor::clock;
use rrun_proto::v1;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde_json::json;
use tonic::Status;

use super::archive::{InTime, pack};
use super::{BIND_MOUNTS, CONFIG, ConfigDump, DELETED, IMAGES, LOG, ROOTFS_DIFF, SPEC, STATUS, TIMES};
use crate::containers::Container;
use crate::error::{Error, Result};
use crate::images::upper;
use crate::pods::{Pod, blocking, remove_folder};
use crate::runtime::Runtime;
use crate::shim::{Shim, now};
use crate::{step, tree};

/// How long the monitor may take to read what a container has written.
const LOGGING: Duration = Duration::from_secs(1);

/// How long recovery waits for an OCI runtime that the daemon before has left at work.
const LEFT_AT_WORK: Duration = Duration::from_secs(3600);

/// Writes a checkpoint of a running container, which goes on. When the request's time is over the answer is
/// `DeadlineExceeded`; CRIU is not stopped half-way, which could end the container, but what it makes is removed.
pub async fn checkpoint(shim: &Shim, request: v1::CheckpointContainerRequest) -> Result<(), Status> {
    let container = shim.container(&request.container_id)?;
    can_be_saved("CheckpointContainer", &container)?;
    let location = Location::find(&request.location, &container.id)?;
    let patience = match u64::try_from(request.timeout) {
        Ok(0) => None,
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => return Err(Error::InvalidArgument(format!("timeout: {} is negative; 0 is none", request.timeout)).into()),
    };
    let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
    let (job, shim) = (format!("checkpoint {} {}", container.id, location.path().display()), shim.clone());
    let work = {
        let shim = shim.clone();
        async move { save(&shim, &container, location, deadline).await.map(|()| String::new()).map_err(Status::from) }
    };
    let saved = shim.jobs.run(job, work);
    match patience {
        None => saved.await.map(drop),
        Some(patience) => match tokio::time::timeout(patience, saved).await {
            Ok(saved) => saved.map(drop),
            Err(_) => Err(too_late().into()),
        },
    }
}

fn too_late() -> Error {
    Error::DeadlineExceeded("not done in the time that the request allows; nothing is kept".into())
}

/// Fails once the request's time is over.
pub(super) fn in_time(deadline: Option<Instant>) -> Result<()> {
    match deadline.is_some_and(|at| at <= Instant::now()) {
        true => Err(too_late()),
        false => Ok(()),
    }
}

/// A running container that is not being stopped; `what` is asked for.
pub(super) fn can_be_saved(what: &str, container: &Container) -> Result<()> {
    container.running(what)?;
    match container.record().stop_signalled {
        true => Err(Error::FailedPrecondition(format!("{what}: container {} is being stopped", container.id))),
        false => Ok(()),
    }
}

/// Where the archive goes: a file in a folder, beside it while it is being written.
struct Location {
    folder: PathBuf,
    name: std::ffi::OsString,
    partial: String,
}

impl Location {
    fn find(text: &str, id: &str) -> Result<Location> {
        let wrong = |what: String| Err(Error::InvalidArgument(format!("location {text:?}: {what}")));
        let path = Path::new(text);
        if !path.is_absolute() {
            return wrong(
                "must be the absolute path of the file to write; to have an image, add the archive to an empty one and \
                 annotate that with org.criu.checkpoint.container.name"
                    .into(),
            );
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return wrong("names no file".into()) };
        match fs::metadata(folder) {
            Ok(data) if data.is_dir() => {}
            Ok(_) => return wrong(format!("{} is no folder", folder.display())),
            Err(error) => return wrong(format!("folder {}: {error}; make it first", folder.display())),
        }
        let location = Location { folder: folder.to_owned(), name: name.to_owned(), partial: format!(".checkpoint-{id:.32}.partial") };
        match fs::symlink_metadata(location.path()) {
            Ok(data) if !data.is_file() => wrong("is there and is no regular file; remove it, or name another".into()),
            _ => Ok(location),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn open_folder(&self) -> anyhow::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.folder, flags, Mode::empty()).with_context(|| format!("open {}", self.folder.display()))
    }

    /// Makes the file that is to become the archive.
    fn begin(&self, folder: &OwnedFd) -> Result<File> {
        let _ = rustix::fs::unlinkat(folder, &self.partial, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(folder, &self.partial, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(file.into()),
            Err(error @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => Err(Error::PermissionDenied(format!(
                "location: make a file in {}: {error}; name a folder that can be written",
                self.folder.display()
            ))),
            Err(error) => Err(anyhow::Error::from(error).context(format!("location: make a file in {}", self.folder.display())).into()),
        }
    }
}

async fn save(shim: &Shim, container: &Arc<Container>, location: Location, deadline: Option<Instant>) -> Result<()> {
    let _alone = container.checkpointing.lock().await;
    can_be_saved("CheckpointContainer", container)?;
    let pod = shim.pod(&container.pod)?;
    let runtime = shim.runtimes.get(&pod.record().handler)?;
    let partial = location.folder.join(&location.partial);
    container.update("checkpoint begun", |record| record.checkpoint = Some(partial)).await?;
    let made = make(shim, &pod, container, &runtime, location, deadline).await;
    let removed = remove_rest(container).await;
    made?;
    removed
}

async fn make(
    shim: &Shim,
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    runtime: &Runtime,
    location: Location,
    deadline: Option<Instant>,
) -> Result<()> {
    let work = work_folder(container);
    let folder = location.open_folder()?;
    let file = location.begin(&folder)?;
    let lock = prepare(shim, pod, container, runtime).await?;
    runtime.pause(&container.id).await?;
    step::reached("checkpoint frozen");
    let dumped = dump(pod, container, runtime, lock, deadline).await;
    let thawed = runtime.resume(&container.id).await;
    dumped?;
    thawed?;
    step::reached("checkpoint goes on");
    blocking(move || {
        archive(&work, file, deadline)?;
        in_time(deadline)?;
        step::reached("checkpoint written");
        rustix::fs::renameat(&folder, &location.partial, &folder, &location.name)
            .with_context(|| format!("location: rename to {}", location.path().display()))?;
        Ok(rustix::fs::fsync(&folder).with_context(|| format!("location: sync {}", location.folder.display()))?)
    })
    .await
}

/// Makes the work folder, with what is known before the container is frozen; gives its lock.
pub(super) async fn prepare(shim: &Shim, pod: &Pod, container: &Container, runtime: &Runtime) -> Result<File> {
    let dumps = dumps(shim, pod, container, runtime)?;
    let (from, to) = (container.run_dir.join("config.json"), work_folder(container));
    blocking(move || {
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        remove_folder(&to)?;
        builder.create(&to).and_then(|()| builder.create(to.join(IMAGES))).with_context(|| format!("make {}", to.display()))?;
        let lock = File::open(&to).with_context(|| format!("open {}", to.display()))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(|| format!("lock {}", to.display()))?;
        let spec = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
        write(&to, BIND_MOUNTS, &bind_mounts(&spec)?)?;
        write(&to, SPEC, &spec)?;
        for (name, text) in dumps {
            write(&to, name, &text)?;
        }
        Ok(lock)
    })
    .await
}

/// Writes the archive of a work folder. Blocks.
pub(super) fn archive(work: &Path, file: File, deadline: Option<Instant>) -> Result<()> {
    let mut out = InTime { inner: file, deadline };
    pack(work, &mut out).map_err(refused)?;
    Ok(out.inner.sync_all().context("sync the archive")?)
}

/// The memory, then the writable layer and the log as they are at that moment.
pub(super) async fn dump(
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    runtime: &Runtime,
    lock: File,
    deadline: Option<Instant>,
) -> Result<()> {
    let work = work_folder(container);
    until_logged(container).await;
    in_time(deadline)?;
    runtime.checkpoint(&container.id, &work.join(IMAGES), &work, lock).await?;
    step::reached("checkpoint dumped");
    let (upper, owners, log) = (container.dir.join("upper"), pod.namespaces().owners(), container.record().log_path.clone());
    blocking(move || {
        let path = work.join(ROOTFS_DIFF);
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let hidden = upper::save(&upper, owners, InTime { inner: file, deadline }).map_err(refused)?;
        let hidden: Vec<_> = hidden.iter().filter_map(|path| Some(format!("/{}", str::from_utf8(path).ok()?))).collect();
        if !hidden.is_empty() {
            write(&work, DELETED, &json_text(&json!(hidden))?)?;
        }
        // It may have been rotated away: then there is none.
        if let Some(mut log) = File::open(&log).ok().filter(|log| log.metadata().is_ok_and(|data| data.is_file())) {
            let path = work.join(LOG);
            let inner = File::create(&path).with_context(|| format!("make {}", path.display()))?;
            std::io::copy(&mut log, &mut InTime { inner, deadline }).context("copy the log").map_err(refused)?;
        }
        Ok(())
    })
    .await
}

/// Waits until the monitor has read what the frozen container wrote: CRIU saves what is left in the FIFOs, and it would be in
/// the log twice. A monitor that is gone reads nothing.
async fn until_logged(container: &Container) {
    let open = |name| {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(container.run_dir.join(name), flags, Mode::empty()).ok()
    };
    let streams: Vec<_> = ["stdout", "stderr"].into_iter().filter_map(open).collect();
    let until = Instant::now() + LOGGING;
    while Instant::now() < until && streams.iter().any(|stream| rustix::io::ioctl_fionread(stream).is_ok_and(|bytes| bytes > 0)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) fn refused(error: anyhow::Error) -> Error {
    let late = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
    };
    if error.chain().any(late) {
        return too_late();
    }
    match crate::images::disk_full(&error) {
        true => Error::ResourceExhausted(format!("checkpoint: {error:#}")),
        false => error.context("checkpoint").into(),
    }
}

/// What is written of the container besides its memory and files.
fn dumps(shim: &Shim, pod: &Pod, container: &Container, runtime: &Runtime) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let (record, status) = (container.record(), container.to_status(shim));
    let name = status.metadata.as_ref().map_or("", |data| &data.name);
    let names = pod.record().config.metadata.clone().unwrap_or_default();
    let time = |nanoseconds: i64| clock::text(u64::try_from(nanoseconds).unwrap_or(0));
    let image = container.image.as_deref();
    let first = |names: fn(&crate::images::Image) -> &Vec<String>| image.and_then(|image| names(image).first().cloned());
    let config = ConfigDump {
        id: container.id.clone(),
        name: format!("{name}_{}_{}_{}", names.name, names.namespace, names.uid),
        rootfs_image: record.config.image.as_ref().map_or_else(String::new, |image| image.image.clone()),
        rootfs_image_ref: first(|image| &image.repo_digests).unwrap_or_else(|| record.image_id.clone()),
        rootfs_image_name: first(|image| &image.repo_tags).unwrap_or_else(|| record.image_id.clone()),
        runtime: runtime.name.clone(),
        created_time: time(record.created_at),
        checkpointed_time: time(now()),
        restored: record.config.annotations.contains_key("restored"),
    };
    let times = json!({
        "Version": "v1", "CreatedAt": record.created_at, "StartedAt": record.started_at, "FinishedAt": 0, "ExitCode": 0,
        "Pid": record.process.map_or(0, |process| process.pid), "Reason": "", "Message": "",
    });
    Ok(vec![(CONFIG, json_text(&json!(config))?), (STATUS, json_text(&json!(status))?), (TIMES, json_text(&times)?)])
}

/// The bind mounts of a specification, in CRI-O's form; what every container has is not among them.
fn bind_mounts(spec: &[u8]) -> Result<Vec<u8>> {
    let spec: serde_json::Value = serde_json::from_slice(spec).context("config.json")?;
    let mut list = Vec::new();
    for mount in spec["mounts"].as_array().into_iter().flatten() {
        let text = |key: &str| mount[key].as_str().unwrap_or_default();
        if text("type") != "bind" || ["/dev", "/dev/shm", "/proc", "/run", "/sys"].contains(&text("destination")) {
            continue;
        }
        let data = fs::metadata(text("source")).with_context(|| format!("mount source {}", text("source")))?;
        list.push(json!({
            "source": text("source"), "destination": text("destination"), "permissions": data.mode() & 0o777,
            "file_type": if data.is_dir() { "directory" } else { "file" },
        }));
    }
    json_text(&json!(list))
}

pub(super) fn json_text(value: &serde_json::Value) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(value).context("JSON")?)
}

pub(super) fn write(folder: &Path, name: &str, text: &[u8]) -> Result<()> {
    let path = folder.join(name);
    Ok(fs::write(&path, text).with_context(|| format!("write {}", path.display()))?)
}

/// On disk, for memory is what it holds.
pub(super) fn work_folder(container: &Container) -> PathBuf {
    container.dir.join("checkpoint")
}

/// Removes what is left of a checkpoint that is over.
pub(super) async fn remove_rest(container: &Container) -> Result<()> {
    let (work, partial) = (work_folder(container), container.record().checkpoint.clone());
    blocking(move || {
        if let Some(partial) = partial {
            // After the rename it is not there.
            let _ = tree::remove_path(&partial);
        }
        remove_folder(&work)
    })
    .await?;
    container.update("checkpoint over", |record| record.checkpoint = None).await
}

/// Takes back a checkpoint that was being made when the daemon ended: waits for the OCI runtime that it left, and lets the
/// container go on.
pub async fn give_up(shim: &Shim, container: &Arc<Container>) -> Result<()> {
    let _alone = container.checkpointing.lock().await;
    let until = Instant::now() + LEFT_AT_WORK;
    while let Ok(folder) = File::open(work_folder(container)) {
        match rustix::fs::flock(folder.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(100)).await,
            _ => break,
        }
    }
    if container.exit().is_none() {
        let runtime = shim.runtimes.get(&shim.pod(&container.pod)?.record().handler)?;
        if let Err(error) = runtime.resume(&container.id).await {
            tracing::debug!(container = container.id, "resume after a checkpoint that was given up: {error:#}");
        }
    }
    remove_rest(container).await
}
