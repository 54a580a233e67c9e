//! What CRI asks for and what the image says, as the OCI specification's `config.json`.
//!
//! [`find`] looks up on the host and in the image what the answer depends on (mount sources, devices, the user, CDI
//! specifications, seccomp profiles); [`spec`] is a pure function of that. `containers::create` calls both before
//! anything is made, so that a wrong field is `InvalidArgument` with its name and leaves nothing behind.

mod annotations;
mod capabilities;
pub mod cdi;
mod cgroup;
pub mod devices;
pub mod host;
mod lsm;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;
mod sources;
mod sysctls;
#[cfg(test)]
mod tests;
mod users;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxBuilder, LinuxSeccomp, RootBuilder, Spec};
use rrun_proto::v1;
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
pub use capabilities::DEFAULT as DEFAULT_CAPABILITIES;
pub use cgroup::cgroups_path;
pub use host::{CgroupDriver, Features, Host, features};
pub use lsm::{container_labels, load_default_profile, pod_labels};
pub use process::{stop_signal, stop_signal_name};
pub use resources::{undo_resources, update_resources};
pub use sysctls::sysctls;

/// The version of the runtime specification that our documents need: id-mapped mounts came with it, and older runtimes
/// refuse what is newer.
const OCI_VERSION: &str = "1.1.0";

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
    /// The container's SELinux labels; empty where SELinux is off.
    pub selinux: &'a Labels,
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

impl Namespaces {
    /// Whose files are whose.
    pub fn owners(&self) -> crate::images::upper::Owners {
        use crate::images::upper::{Owners, Range};
        let range = |maps: &[v1::IdMapping]| {
            maps.first().map_or_else(Range::default, |map| Range { inside: map.container_id, outside: map.host_id, length: map.length })
        };
        self.user.as_ref().map_or_else(Owners::default, |user| Owners { uids: range(&user.uids), gids: range(&user.gids) })
    }
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

/// SELinux labels, as `USER:ROLE:TYPE:LEVEL`; empty: none.
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
    pub devices: Vec<devices::Device>,
    /// What CDI devices ask for.
    pub cdi: cdi::Edits,
    /// The seccomp profile; `None`: unconfined.
    pub seccomp: Option<LinuxSeccomp>,
    /// The AppArmor profile; `None`: unconfined.
    pub apparmor: Option<String>,
}

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

/// Uid, gid and supplementary groups of an image's `User`, its names looked up beneath `root`.
pub fn image_user(user: &str, root: BorrowedFd<'_>) -> Result<(u32, u32, Vec<u32>)> {
    let image = ImageConfig { user: user.to_owned(), ..ImageConfig::default() };
    let user = users::of_container(&v1::LinuxContainerSecurityContext::default(), &image, root)?;
    Ok((user.uid, user.gid, user.groups))
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
    namespaces::check_container(input)?;
    let user = users::of_container(input.security(), input.image, image)?;
    let found = Found {
        user,
        devices: devices::of_container(input)?,
        cdi: cdi::of_container(input)?,
        seccomp: seccomp::of_container(input)?,
        apparmor: lsm::apparmor(input)?,
        mounts: Vec::new(),
    };
    // All that can be refused is refused before a host folder is made.
    spec(input, &found)?;
    mounts::check(input)?;
    Ok(Found { mounts: sources::of_container(input, image_volumes)?, ..found })
}

/// The specification of a container.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn spec(input: &Input<'_>, found: &Found) -> Result<Spec> {
    let security = input.security();
    let (masked, readonly) = match security.privileged {
        true => (Vec::new(), Vec::new()),
        false => (security.masked_paths.clone(), security.readonly_paths.clone()),
    };
    let parent = input.pod.config.linux.as_ref().map_or("", |linux| &linux.cgroup_parent);
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces::namespaces(input)?)
        .resources(resources::resources(input, found)?)
        .cgroups_path(cgroups_path(parent, input.id, input.host.cgroup_driver, input.settings)?)
        .masked_paths(masked)
        .readonly_paths(readonly)
        .build()
        .map_err(anyhow::Error::from)?;
    let nodes: Vec<_> = found.devices.iter().chain(&found.cdi.devices).map(|device| device.node.clone()).collect();
    linux.set_devices(Some(nodes).filter(|nodes| !nodes.is_empty())).set_seccomp(found.seccomp.clone());
    linux.set_rootfs_propagation(mounts::rootfs_propagation(found)).set_mount_label(label(&input.selinux.mount));
    let root = RootBuilder::default().path(input.rootfs).readonly(security.readonly_rootfs);
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned()).set_root(Some(root.build().map_err(anyhow::Error::from)?));
    spec.set_process(Some(process::process(input, found)?)).set_mounts(Some(mounts::mounts(input, found)?));
    spec.set_hostname(None).set_hooks(found.cdi.hooks()).set_annotations(Some(annotations::annotations(input)));
    spec.set_linux(Some(linux));
    Ok(spec)
}

/// Bytes of a host name (`__NEW_UTS_LEN`).
const HOSTNAME_MAX: usize = 64;

/// Checks a pod's configuration: namespaces, sysctls, cgroup parent, what the handler can do. RunPodSandbox calls it
/// before it makes anything.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn check_pod(config: &v1::PodSandboxConfig, handler: &str, features: Features, host: &Host) -> Result<()> {
    if config.hostname.len() > HOSTNAME_MAX {
        return Err(invalid(format!("hostname: {:?} is longer than the kernel's {HOSTNAME_MAX} bytes", config.hostname)));
    }
    let Some(linux) = &config.linux else { return Ok(()) };
    cgroup::check_parent(&linux.cgroup_parent, host.cgroup_driver)?;
    let security = linux.security_context.clone().unwrap_or_default();
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(invalid("linux.security_context.run_as_group: set without run_as_user"));
    }
    let options = security.namespace_options.unwrap_or_default();
    namespaces::check_pod(&options, handler, features)?;
    sysctls::check(&linux.sysctls, &options)
}

impl Input<'_> {
    /// The security context, empty where there is none.
    fn security(&self) -> &v1::LinuxContainerSecurityContext {
        static NONE: std::sync::LazyLock<v1::LinuxContainerSecurityContext> = std::sync::LazyLock::new(Default::default);
        self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).unwrap_or(&NONE)
    }

    fn pod_security(&self) -> Option<&v1::LinuxSandboxSecurityContext> {
        self.pod.config.linux.as_ref()?.security_context.as_ref()
    }

    fn resources(&self) -> Option<&v1::LinuxContainerResources> {
        self.config.linux.as_ref()?.resources.as_ref()
    }
}

/// An SELinux label, `None` where there is none.
fn label(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

/// A wrong field; the text begins with its name.
fn invalid(text: impl Into<String>) -> Error {
    Error::InvalidArgument(text.into())
}
