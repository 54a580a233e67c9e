//! `mounts`: what every container has, the pod's files, what CDI devices bring, and the container's own mounts, which
//! come last and win. Sources were found by `sources`.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount, MountBuilder};
use rrun_proto::v1::{self, MountPropagation};

use super::{Found, HostMount, Input, PidNamespace, invalid};
use crate::error::{Error, Result};

/// The texts of failed recursive read-only mounts begin with it; kubelet looks for it.
const RRO_UNSUPPORTED: &str = "RROUnsupported";

/// All mounts in their order, each beneath the ones it needs.
pub(super) fn mounts(input: &Input<'_>, found: &Found) -> Result<Vec<Mount>> {
    let mut own: Vec<(PathBuf, Mount)> = Vec::new();
    for (index, mount) in found.mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let destination = destination(&mount.mount.container_path, &field)?;
        own.push((destination.clone(), bind(input, mount, &destination, &field)?));
    }
    let taken = |path: &Path| own.iter().any(|(destination, _)| destination == path);
    let mut all: Vec<Mount> = standard(input)?.into_iter().filter(|mount| !taken(mount.destination())).collect();
    let mut extra = Vec::new();
    for mount in pod_files(input)?.into_iter().chain(found.cdi.mounts()?) {
        if !taken(mount.destination()) {
            extra.push(mount);
        }
    }
    extra.extend(own.into_iter().map(|(_, mount)| mount));
    // A mount over another's parent would hide it. The order of equals stays.
    extra.sort_by_key(|mount| mount.destination().components().count());
    // /dev/shm and the like replace what is there by default.
    all.retain(|mount| extra.iter().all(|other| other.destination() != mount.destination()));
    all.append(&mut extra);
    Ok(all)
}

/// All that can be wrong with the container's mounts without a look at the host.
pub(super) fn check(input: &Input<'_>) -> Result<()> {
    for (index, mount) in input.config.mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let destination = destination(&mount.container_path, &field)?;
        bind(input, &HostMount { mount: mount.clone(), source: PathBuf::from("/") }, &destination, &field)?;
    }
    Ok(())
}

/// The propagation of the root: what shares mounts with the host needs it of the mount above, too.
pub(super) fn rootfs_propagation(found: &Found) -> Option<String> {
    let most = found.mounts.iter().map(|m| m.mount.propagation()).max_by_key(|p| match p {
        MountPropagation::PropagationPrivate => 0,
        MountPropagation::PropagationHostToContainer => 1,
        MountPropagation::PropagationBidirectional => 2,
    })?;
    match most {
        MountPropagation::PropagationPrivate => None,
        MountPropagation::PropagationHostToContainer => Some("rslave".to_owned()),
        MountPropagation::PropagationBidirectional => Some("rshared".to_owned()),
    }
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Result<Mount> {
    let builder = MountBuilder::default().destination(destination).typ(typ).source(source);
    let options: Vec<String> = options.iter().map(ToString::to_string).collect();
    builder.options(options).build().map_err(|error| anyhow::Error::from(error).into())
}

/// The kernel's file systems.
fn standard(input: &Input<'_>) -> Result<Vec<Mount>> {
    let privileged = input.security().privileged;
    let access = if privileged { "rw" } else { "ro" };
    let user = input.pod.namespaces.user.is_some();
    let host_network = input.pod.namespaces.network.is_none();
    let mut all = vec![
        match &input.pod.namespaces.pid {
            // A user namespace has no right to mount the host's procfs anew.
            PidNamespace::Host if user => mount("/proc", "bind", "/proc", &["rbind", "nosuid", "noexec", "nodev"])?,
            _ => mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        },
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"])?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        match user && host_network {
            // Nor the sysfs of the host's network.
            true => mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", access])?,
            false => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access])?,
        },
    ];
    all.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access])?);
    Ok(all)
}

/// The pod's files where the container brings none of its own, and the pod's shared memory.
fn pod_files(input: &Input<'_>) -> Result<Vec<Mount>> {
    let files = input.pod.files;
    let access = if input.security().readonly_rootfs { "ro" } else { "rw" };
    let host_ipc = input.pod.namespaces.ipc.is_none();
    let shm = files.shm.as_deref().or(host_ipc.then_some(Path::new("/dev/shm")));
    let mut all = Vec::new();
    for (destination, source, access) in [
        ("/etc/hostname", files.hostname.as_deref(), access),
        ("/etc/hosts", files.hosts.as_deref(), access),
        ("/etc/resolv.conf", files.resolv_conf.as_deref(), access),
        ("/dev/shm", shm, "rw"),
    ] {
        let Some(source) = source else { continue };
        let mut made = mount(destination, "bind", &source.to_string_lossy(), &["rbind", "rprivate", access])?;
        if let Some(user) = &input.pod.namespaces.user {
            // Files that we made are root's, and the pod's root is somebody else. Its shared memory was made by itself.
            if destination != "/dev/shm" {
                id_map(&mut made, &user.uids, &user.gids)?;
            }
        }
        all.push(made);
    }
    Ok(all)
}

/// One of the container's own mounts.
fn bind(input: &Input<'_>, host: &HostMount, destination: &Path, field: &str) -> Result<Mount> {
    let wish = &host.mount;
    let mut options = vec!["rbind".to_owned(), propagation(wish.propagation()).to_owned(), access(input, wish, field)?.to_owned()];
    for option in &wish.mount_options {
        match option.as_str() {
            "noexec" | "nodev" | "nosuid" => options.push(option.clone()),
            _ => return Err(invalid(format!("{field}.mount_options: {option:?} is not one of noexec, nodev, nosuid"))),
        }
    }
    let builder = MountBuilder::default().destination(destination).typ("bind").source(&host.source).options(options);
    let mut made = builder.build().map_err(anyhow::Error::from)?;
    if wish.uid_mappings.is_empty() != wish.gid_mappings.is_empty() {
        return Err(invalid(format!("{field}: uidMappings and gidMappings go together")));
    }
    if !wish.uid_mappings.is_empty() {
        id_map(&mut made, &wish.uid_mappings, &wish.gid_mappings)?;
    }
    Ok(made)
}

fn propagation(propagation: MountPropagation) -> &'static str {
    match propagation {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    }
}

/// `ro`, `rw`, or `rro` where that is asked for and allowed.
fn access(input: &Input<'_>, mount: &v1::Mount, field: &str) -> Result<&'static str> {
    if !mount.recursive_read_only {
        return Ok(if mount.readonly { "ro" } else { "rw" });
    }
    // No words before the prefix: it is looked for at the start.
    let refuse = |why: &str| Err(Error::InvalidArgument(format!("{RRO_UNSUPPORTED}: {field}.recursive_read_only: {why}")));
    if !mount.readonly {
        return refuse("the mount is not readonly");
    }
    if mount.propagation() != MountPropagation::PropagationPrivate {
        return refuse("the mount's propagation is not PROPAGATION_PRIVATE");
    }
    if !input.features.recursive_read_only_mounts {
        return refuse("the OCI runtime or the kernel (Linux 5.12) has no recursive read-only mounts");
    }
    Ok("rro")
}

/// Maps the owners of a mount's files into the pod's user namespace.
fn id_map(mount: &mut Mount, uids: &[v1::IdMapping], gids: &[v1::IdMapping]) -> Result<()> {
    mount.set_uid_mappings(Some(id_maps(uids)?)).set_gid_mappings(Some(id_maps(gids)?));
    mount.options_mut().get_or_insert_default().push("idmap".to_owned());
    Ok(())
}

fn id_maps(maps: &[v1::IdMapping]) -> Result<Vec<LinuxIdMapping>> {
    let one = |map: &v1::IdMapping| {
        let builder = LinuxIdMappingBuilder::default().container_id(map.container_id).host_id(map.host_id).size(map.length);
        builder.build().map_err(anyhow::Error::from)
    };
    Ok(maps.iter().map(one).collect::<anyhow::Result<_>>()?)
}

/// A container's path with no `.` or empty parts; `..` is refused.
fn destination(path: &str, field: &str) -> Result<PathBuf> {
    let clean: PathBuf = Path::new("/").join(path).components().filter(|part| *part != Component::CurDir).collect();
    if path.is_empty() || path.contains('\0') || clean.components().any(|part| part == Component::ParentDir) || clean == Path::new("/") {
        return Err(invalid(format!("{field}.container_path: {path:?} is no place for a mount")));
    }
    Ok(clean)
}
