//! A container made from a checkpoint: its archive is unpacked into the container's own folder, its writable layer filled,
//! and StartContainer has the OCI runtime restore it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use oci_spec::runtime::Spec;
use rrun_proto::v1;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{CONFIG, CRIO_LOG, ConfigDump, DELETED, IMAGES, LOG, ROOTFS_DIFF, SPEC};
use crate::containers::Container;
use crate::error::{Error, Result};
use crate::images::{Credentials, Image, Reference, disk_full, upper};
use crate::pods::{Pod, blocking, remove_folder};
use crate::shim::Shim;

/// The most that a file of JSON in an archive may hold.
const MAX_JSON: u64 = 4 << 20;
/// The most of an old log that is taken over.
const MAX_LOG: u64 = 256 << 20;
/// Mounts that every container of a pod has, and not all runtimes make.
const POD_FILES: [&str; 4] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/dev/shm"];

/// Where a checkpoint is.
pub(in crate::containers) enum Source {
    /// In a file, plain or compressed.
    Archive(PathBuf),
    /// Unpacked, in the layers of an image.
    Image(Arc<Image>),
    /// One of a pod's checkpoint: the request names the image and the process as they were.
    OfPod(File),
}

impl Source {
    /// The checkpoint that a container's image names, if it names one.
    pub(in crate::containers) fn of(shim: &Shim, config: &v1::ContainerConfig) -> Result<Option<Source>> {
        let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        if !name.starts_with('/') {
            return Ok(shim.images.lookup(name).filter(|image| image.checkpoint).map(Source::Image));
        }
        match fs::metadata(name) {
            Ok(data) if data.is_file() => Ok(Some(Source::Archive(name.into()))),
            Ok(_) => {
                Err(Error::InvalidArgument(format!("image {name:?} is no regular file: a path must be that of a checkpoint's archive")))
            }
            Err(error) => Err(Error::NotFound(format!("image {name:?}: {error}; a path must be that of a checkpoint's archive"))),
        }
    }
}

/// What is known of a checkpoint from its own words: which image it needs, and what is mounted where.
#[derive(Default)]
pub(in crate::containers) struct Dump {
    config: ConfigDump,
    spec: SpecDump,
    /// The request's process must be the checkpoint's.
    exact: bool,
}

/// What is looked at of `spec.dump`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecDump {
    process: ProcessDump,
    mounts: Vec<MountDump>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ProcessDump {
    terminal: bool,
    args: Vec<String>,
    cwd: PathBuf,
    env: Vec<String>,
    user: UserDump,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase")]
struct UserDump {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MountDump {
    destination: PathBuf,
    #[serde(rename = "type")]
    kind: Option<String>,
    options: Option<Vec<String>>,
}

impl MountDump {
    fn is_bind(&self) -> bool {
        let bind = |option: &String| matches!(option.as_str(), "bind" | "rbind");
        self.kind.as_deref() == Some("bind") || self.options.iter().flatten().any(bind)
    }
}

/// Unpacks a checkpoint into a container's new folder `dir` and finds the image that it was made on, which takes the
/// checkpoint's place in `config`.
pub(in crate::containers) async fn take(
    shim: &Shim,
    pod: &Pod,
    dir: &Path,
    source: Source,
    config: &mut v1::ContainerConfig,
) -> Result<Arc<Dump>> {
    if pod.namespaces().user.is_some() {
        return Err(Error::FailedPrecondition(format!(
            "pod sandbox {} has a user namespace, and CRIU cannot restore into one: restore in a pod without",
            pod.id
        )));
    }
    let asked = config.image.clone().unwrap_or_default();
    let (name, folder) = (asked.image.clone(), folder_in(dir));
    let dump = blocking(move || unpack(source, &folder).map_err(|error| wrong(&name, error))).await?;
    if dump.spec.process.terminal != config.tty {
        let text = if config.tty { "has no terminal: leave tty out" } else { "has a terminal: set tty" };
        return Err(Error::InvalidArgument(format!("tty: the checkpoint's container {text}")));
    }
    let base = match dump.exact {
        true => image_asked_for(shim, &dump.config, &asked.image)?,
        false => base_image(shim, &dump.config, &asked.image).await?,
    };
    // As containerd has them.
    let mut facts = vec![("restored", "true".to_owned()), ("checkpointedAt", dump.config.checkpointed_time.clone())];
    if !dump.exact {
        let spec = config.image.get_or_insert_default();
        spec.image.clone_from(&base.id);
        spec.user_specified_image = Some(&dump.config.rootfs_image).filter(|name| !name.is_empty()).unwrap_or(&base.id).clone();
        facts.push(("checkpointImage", if asked.user_specified_image.is_empty() { asked.image } else { asked.user_specified_image }));
    }
    config.annotations.extend(facts.into_iter().map(|(key, value)| (key.to_owned(), value)));
    Ok(Arc::new(dump))
}

fn wrong(name: &str, error: anyhow::Error) -> Error {
    match disk_full(&error) {
        true => Error::ResourceExhausted(format!("image {name:?}: {error:#}")),
        false => Error::InvalidArgument(format!("image {name:?}: not a checkpoint that can be restored: {error:#}")),
    }
}

fn folder_in(dir: &Path) -> PathBuf {
    dir.join("restore")
}

fn unpack(source: Source, folder: &Path) -> anyhow::Result<Dump> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| format!("make {}", folder.display()))?;
    let exact = matches!(source, Source::OfPod(_));
    match source {
        Source::Archive(path) => upper::unpack_all(File::open(path)?, folder)?,
        Source::Image(image) => copy_image(&image, folder)?,
        Source::OfPod(archive) => upper::unpack_all(archive, folder)?,
    }
    let root = open_folder(folder)?;
    check_images(&root)?;
    Ok(Dump { config: read_json(&root, CONFIG)?, spec: read_json(&root, SPEC)?, exact })
}

pub(super) fn open_folder(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

/// CRIU opens its images by name: none may be a link to a file of the host's.
fn check_images(root: &OwnedFd) -> anyhow::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let images = rustix::fs::openat(root, IMAGES, flags, Mode::empty()).with_context(|| format!("{IMAGES}/"))?;
    for entry in Dir::read_from(&images).context("read")? {
        let name = entry.context("read")?.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&images, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).context("stat")?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(anyhow!("{IMAGES}/{}: is not a regular file", name.to_string_lossy()));
        }
    }
    Ok(())
}

pub(super) fn read_json<T: DeserializeOwned>(root: &OwnedFd, name: &str) -> anyhow::Result<T> {
    let file = upper::open_file(root, OsStr::new(name))?.with_context(|| format!("has no {name}"))?;
    let mut text = Vec::new();
    file.take(MAX_JSON + 1).read_to_end(&mut text).with_context(|| format!("{name}: read"))?;
    if text.len() as u64 > MAX_JSON {
        return Err(anyhow!("{name}: larger than {} MiB", MAX_JSON >> 20));
    }
    serde_json::from_slice(&text).with_context(|| name.to_owned())
}

/// Copies what is needed out of an image's layers: of each name the uppermost one.
fn copy_image(image: &Image, folder: &Path) -> anyhow::Result<()> {
    let mut layers = Vec::new();
    for layer in image.layers.iter().rev() {
        layers.push(rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context("open a layer")?);
    }
    let mut names: Vec<PathBuf> = [CONFIG, SPEC, ROOTFS_DIFF, DELETED, LOG, CRIO_LOG].map(PathBuf::from).into();
    fs::create_dir(folder.join(IMAGES)).context("mkdir")?;
    let mut seen = BTreeSet::new();
    for layer in &layers {
        let images = match beneath(layer, Path::new(IMAGES), OFlags::DIRECTORY) {
            Err(Errno::NOENT) => continue,
            images => images.with_context(|| format!("{IMAGES}/"))?,
        };
        for entry in Dir::read_from(&images).context("read")? {
            let name = entry.context("read")?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." && seen.insert(name.clone()) {
                names.push(Path::new(IMAGES).join(name));
            }
        }
    }
    for name in names {
        for layer in &layers {
            let file = match beneath(layer, &name, OFlags::NONBLOCK) {
                Err(Errno::NOENT) => continue,
                file => File::from(file.with_context(|| format!("{}: open", name.display()))?),
            };
            if !file.metadata().context("stat")?.is_file() {
                return Err(anyhow!("{} is not a regular file", name.display()));
            }
            let mut copy = File::create_new(folder.join(&name)).with_context(|| format!("{}: make", name.display()))?;
            std::io::copy(&mut &file, &mut copy).with_context(|| format!("{}: copy", name.display()))?;
            break;
        }
    }
    Ok(())
}

fn beneath(layer: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(layer, path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty(), resolve)
}

/// The image that a request names, which must be the one that the checkpoint's container ran on.
fn image_asked_for(shim: &Shim, dump: &ConfigDump, asked: &str) -> Result<Arc<Image>> {
    let image = shim.images.lookup(asked).ok_or_else(|| Error::NotFound(format!("image {asked:?} is not here: pull it first")))?;
    let is = |name: &String| *name == image.id || shim.images.lookup(name).is_some_and(|other| other.id == image.id);
    match is(&dump.rootfs_image_ref) || is(&dump.rootfs_image_name) {
        true => Ok(image),
        false => Err(Error::FailedPrecondition(format!(
            "image {asked:?}: the checkpoint's container runs on another, {} ({})",
            dump.rootfs_image_name, dump.rootfs_image_ref
        ))),
    }
}

/// The image that a checkpoint's container ran on; pulled if it is not here.
async fn base_image(shim: &Shim, dump: &ConfigDump, checkpoint: &str) -> Result<Arc<Image>> {
    let names = [&dump.rootfs_image_ref, &dump.rootfs_image_name];
    let usable = |image: &Arc<Image>| !image.checkpoint && !image.is_artifact();
    if let Some(image) = names.iter().filter_map(|name| shim.images.lookup(name)).find(usable) {
        return Ok(image);
    }
    let mut why = String::new();
    for name in names {
        let Ok(reference) = Reference::parse(name) else { continue };
        // An id is no name.
        if crate::images::Digest::parse(name).is_ok() {
            continue;
        }
        match shim.puller.pull(&reference, Credentials::Anonymous, |_| {}).await {
            Ok(image) if usable(&image) => return Ok(image),
            Ok(_) => why = format!(": {name} is no image to run"),
            Err(error) => why = format!(": {error}"),
        }
    }
    Err(Error::NotFound(format!(
        "image {checkpoint:?}: the image that it was checkpointed on, {:?} ({}), is not here and cannot be pulled{why}",
        dump.rootfs_image_name, dump.rootfs_image_ref
    )))
}

/// Fills the writable layer of a container that is about to be mounted. Blocks.
pub(in crate::containers) fn fill(container: &Container, image: &Image) -> Result<()> {
    let folder = folder_in(&container.dir);
    let filled = || {
        let root = open_folder(&folder)?;
        let hidden: Vec<String> = match upper::open_file(&root, OsStr::new(DELETED))? {
            Some(_) => read_json(&root, DELETED)?,
            None => Vec::new(),
        };
        let hidden: Vec<_> = hidden.into_iter().map(String::into_bytes).collect();
        let Some(diff) = upper::open_file(&root, OsStr::new(ROOTFS_DIFF))? else { return Ok(()) };
        let path = container.dir.join("upper");
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        upper::load(diff, &path, &hidden, &image.layers).context(ROOTFS_DIFF)?;
        Ok(fs::remove_file(folder.join(ROOTFS_DIFF))?)
    };
    filled().map_err(|error| wrong("the checkpoint", error))
}

/// Holds the mounts of the specification against the checkpoint's: CRIU makes those that there were, no more and no less. The
/// pod's files that the checkpoint's container did not have are left out.
pub(in crate::containers) fn fit(spec: &mut Spec, dump: &Dump, config: &v1::ContainerConfig) -> Result<()> {
    if dump.exact {
        same_process(spec, &dump.spec.process, config)?;
    }
    let bind = |mount: &oci_spec::runtime::Mount| {
        mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
    };
    let before: BTreeSet<_> = dump.spec.mounts.iter().filter(|mount| mount.is_bind()).map(|mount| clean(&mount.destination)).collect();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let asked = |path: &Path| config.mounts.iter().any(|mount| clean(Path::new(&mount.container_path)) == path);
    mounts.retain(|mount| {
        let path = clean(mount.destination());
        !bind(mount) || before.contains(&path) || asked(&path) || !POD_FILES.iter().any(|file| Path::new(file) == path)
    });
    let now: BTreeSet<_> = mounts.iter().filter(|mount| bind(mount)).map(|mount| clean(mount.destination())).collect();
    let list = |paths: Vec<&PathBuf>| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let (missing, new): (Vec<_>, Vec<_>) = (before.difference(&now).collect(), now.difference(&before).collect());
    if !missing.is_empty() {
        return Err(Error::InvalidArgument(format!(
            "mounts: the checkpoint's container has mounts at {}: give one for each",
            list(missing)
        )));
    }
    if !new.is_empty() {
        return Err(Error::InvalidArgument(format!("mounts: the checkpoint's container has no mount at {}: leave it out", list(new))));
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Of the environment what the request has must be there; others may have added to it.
fn same_process(spec: &Spec, before: &ProcessDump, config: &v1::ContainerConfig) -> Result<()> {
    let process = spec.process().clone().unwrap_or_default();
    let other = |field: &str, now: &dyn std::fmt::Debug, before: &dyn std::fmt::Debug| {
        Err(Error::FailedPrecondition(format!("{field}: the checkpoint's process has {before:?}, not {now:?}")))
    };
    let args = process.args().clone().unwrap_or_default();
    if args != before.args {
        return other("command and args", &args, &before.args);
    }
    if clean(process.cwd()) != clean(&before.cwd) {
        return other("working_dir", process.cwd(), &before.cwd);
    }
    let user = UserDump {
        uid: process.user().uid(),
        gid: process.user().gid(),
        additional_gids: process.user().additional_gids().clone().unwrap_or_default(),
    };
    if user != before.user {
        return other("user and groups", &user, &before.user);
    }
    let known = |env: &&v1::KeyValue| {
        let wanted = [env.key.as_bytes(), b"=", &env.value].concat();
        before.env.iter().any(|entry| entry.as_bytes() == wanted)
    };
    match config.envs.iter().find(|env| !known(env)) {
        Some(env) => Err(Error::FailedPrecondition(format!(
            "envs: the checkpoint's process has no {}={}",
            env.key,
            String::from_utf8_lossy(&env.value)
        ))),
        None => Ok(()),
    }
}

/// Without `.`, doubled and trailing slashes.
fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

/// Begins the new log with the old one, where there is an old one and no new one. Blocks.
pub(in crate::containers) fn write_log(container: &Container) -> Result<()> {
    let path = container.record().log_path.clone();
    let root = open_folder(&folder_in(&container.dir))?;
    let old = match upper::open_file(&root, OsStr::new(LOG))? {
        None => upper::open_file(&root, OsStr::new(CRIO_LOG))?,
        old => old,
    };
    let (Some(old), Some(folder)) = (old, path.parent()) else { return Ok(()) };
    fs::create_dir_all(folder).with_context(|| format!("log_path: make {}", folder.display()))?;
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o640);
    let mut new = match options.open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        new => new.with_context(|| format!("log_path: make {}", path.display()))?,
    };
    std::io::copy(&mut old.take(MAX_LOG), &mut new)
        .and_then(|_| new.flush())
        .with_context(|| format!("log_path: write {}", path.display()))?;
    Ok(())
}

/// What the OCI runtime's `restore` is told besides what `create` is.
pub(in crate::containers) async fn restore_args(container: &Container) -> Result<Vec<String>> {
    let folder = folder_in(&container.dir);
    let text = |path: PathBuf| path.display().to_string();
    let mut args = vec!["--image-path".into(), text(folder.join(IMAGES)), "--work-path".into(), text(folder)];
    let path = container.run_dir.join("config.json");
    let config = tokio::fs::read(&path).await.with_context(|| format!("read {}", path.display()))?;
    let spec: serde_json::Value = serde_json::from_slice(&config).context("config.json")?;
    // The new pod's, not the old one's that the images know.
    let label = |value: &serde_json::Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    if let Some(profile) = label(&spec["process"]["apparmorProfile"]) {
        args.extend(["--lsm-profile".into(), format!("apparmor:{profile}")]);
    } else if let Some(profile) = label(&spec["process"]["selinuxLabel"]) {
        args.extend(["--lsm-profile".into(), format!("selinux:{profile}")]);
    }
    if let Some(context) = label(&spec["linux"]["mountLabel"]) {
        args.extend(["--lsm-mount-context".into(), context]);
    }
    Ok(args)
}

/// Removes what a restore was made from. Nothing there is success.
pub(in crate::containers) async fn forget(container: &Container) -> Result<()> {
    let folder = folder_in(&container.dir);
    blocking(move || remove_folder(&folder)).await
}
