//! Device nodes: the ones a container asks for and, for a privileged container, all of the host's.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

use super::{Input, invalid};
use crate::error::Result;

/// A device node and what a container may do with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Of `linux.devices`.
    pub node: LinuxDevice,
    /// Letters of `rwm`.
    pub access: String,
}

/// The devices that a container asks for.
pub(super) fn of_container(input: &Input<'_>) -> Result<Vec<Device>> {
    let mut all = Vec::new();
    let handler = input.settings.runtimes.get(input.pod.handler);
    if input.security().privileged && !handler.is_some_and(|h| h.privileged_without_host_devices) {
        collect(Path::new("/dev"), Path::new("/dev"), "rwm", &mut all).context("the host's devices")?;
    }
    for (index, wish) in input.config.devices.iter().enumerate() {
        let field = format!("devices[{index}]");
        let access = if wish.permissions.is_empty() { "rwm" } else { &wish.permissions };
        if access.chars().any(|c| !"rwm".contains(c)) {
            return Err(invalid(format!("{field}.permissions: {access:?} has other letters than r, w, m")));
        }
        let inside = if wish.container_path.is_empty() { &wish.host_path } else { &wish.container_path };
        if !Path::new(inside).is_absolute() || !Path::new(&wish.host_path).is_absolute() {
            return Err(invalid(format!("{field}: {:?} and {inside:?} have to be absolute paths", wish.host_path)));
        }
        let host = fs::canonicalize(&wish.host_path).map_err(|error| invalid(format!("{field}.host_path: {}: {error}", wish.host_path)))?;
        let before = all.len();
        collect(&host, Path::new(inside), access, &mut all).map_err(|error| invalid(format!("{field}.host_path: {error:#}")))?;
        if all.len() == before {
            return Err(invalid(format!("{field}.host_path: {} is no device and holds none", wish.host_path)));
        }
    }
    // What is asked for by name wins over the host's node at the same path.
    let mut unique: Vec<Device> = Vec::new();
    for device in all {
        unique.retain(|other| other.node.path() != device.node.path());
        unique.push(device);
    }
    Ok(unique)
}

/// The device at `host`, or those beneath it if it is a folder; other files are left out. `inside` is the path in the
/// container.
fn collect(host: &Path, inside: &Path, access: &str, all: &mut Vec<Device>) -> anyhow::Result<()> {
    let metadata = fs::symlink_metadata(host).with_context(|| host.display().to_string())?;
    if !metadata.is_dir() {
        all.extend(node(host, inside, access)?);
        return Ok(());
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(host)
        .with_context(|| host.display().to_string())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        let Some(name) = path.file_name() else { continue };
        // Terminals, shared memory and the like are each container's own; the console is a mount where there is one.
        let own = host == Path::new("/dev") && OWN.iter().any(|own| name == *own);
        if own {
            continue;
        }
        match collect(&path, &inside.join(name), access, all) {
            Err(error) if is_missing(&error) => tracing::debug!("{}: was unplugged just now", path.display()),
            other => other?,
        }
    }
    Ok(())
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.root_cause().downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Entries of /dev that are not taken along with all of it.
const OWN: [&str; 9] = ["console", "fd", "mqueue", "ptmx", "pts", "shm", ".lxc", ".lxd-mounts", ".udev"];

/// A node as the specification has it; `None` for what is no device.
pub(super) fn node(host: &Path, inside: &Path, access: &str) -> anyhow::Result<Option<Device>> {
    let metadata = fs::symlink_metadata(host).with_context(|| host.display().to_string())?;
    let typ = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return Ok(None),
    };
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    let node = LinuxDeviceBuilder::default()
        .path(inside)
        .typ(typ)
        .major(major)
        .minor(minor)
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()?;
    Ok(Some(Device { node, access: access.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_folders() {
        let null = node(Path::new("/dev/null"), Path::new("/dev/x"), "r").unwrap().unwrap();
        assert_eq!((null.node.typ(), null.node.major(), null.node.minor()), (LinuxDeviceType::C, 1, 3));
        assert_eq!(null.node.path(), Path::new("/dev/x"));
        assert!(node(Path::new("/etc/passwd"), Path::new("/x"), "r").unwrap().is_none());
        let mut all = Vec::new();
        collect(Path::new("/dev"), Path::new("/dev"), "rwm", &mut all).unwrap();
        assert!(all.iter().any(|device| device.node.path() == Path::new("/dev/null")));
        for own in ["/dev/ptmx", "/dev/pts/ptmx", "/dev/console"] {
            assert!(all.iter().all(|device| device.node.path() != Path::new(own)), "{own}");
        }
        assert!(collect(Path::new("/nonexistent"), Path::new("/x"), "r", &mut all).is_err());
    }
}
