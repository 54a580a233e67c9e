//! The cgroup parent of a pod. Kubelet makes its own before it asks for the pod; where a caller names one that is not there,
//! the OCI runtime makes it with the first container, and it goes with the pod. (systemd removes its own slices.)

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rrun_proto::v1;

use super::Pod;
use crate::error::{Error, Result};

/// The part of the pod's cgroup parent that goes with the pod: the folder that begins it, relative to the hierarchies' roots.
/// What is not there yet is made for this pod; what was made for one of `others` is theirs together. Blocks.
///
/// # Errors
/// `InvalidArgument` where a file is on the way.
pub(super) fn ours<'a>(config: &v1::PodSandboxConfig, others: impl Iterator<Item = &'a Path>) -> Result<Option<PathBuf>> {
    let missing = missing(config)?;
    let parent = Path::new(parent(config));
    // The one that begins first has all the others in it.
    let shared = others.filter(|made| parent.starts_with(made)).map(Path::to_owned);
    Ok(shared.chain(missing).min_by_key(|path| path.components().count()))
}

/// Below the hierarchies' roots; empty: none.
fn parent(config: &v1::PodSandboxConfig) -> &str {
    config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.trim_start_matches('/'))
}

fn missing(config: &v1::PodSandboxConfig) -> Result<Option<PathBuf>> {
    let parent = parent(config);
    if parent.is_empty() || parent.ends_with(".slice") || parent.split('/').any(|name| name == "..") {
        return Ok(None);
    }
    let roots = hierarchies();
    let mut ancestors: Vec<&Path> = Path::new(parent).ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
    ancestors.reverse();
    for path in ancestors {
        if let Some(root) = roots.iter().find(|root| root.join(path).is_file()) {
            let file = root.join(path);
            return Err(Error::InvalidArgument(format!("linux.cgroup_parent: {} is no cgroup but a file in one", file.display())));
        }
        if !roots.iter().any(|root| root.join(path).is_dir()) {
            return Ok(Some(path.to_owned()));
        }
    }
    Ok(None)
}

/// Removes what was made for the pod and those that share it: `from` and what is below it on the way to the parent. What is on
/// the way of one of `others` stays for it, though nothing may be in it yet; so does a cgroup that is in use. Blocks.
pub(super) fn remove(config: &v1::PodSandboxConfig, from: &Path, others: &[Arc<Pod>]) {
    let parent_path = Path::new(parent(config));
    let others: Vec<_> = others.iter().map(|pod| pod.record()).collect();
    let shared = |path: &Path| others.iter().any(|other| Path::new(parent(&other.config)).starts_with(path));
    for root in hierarchies() {
        for path in parent_path.ancestors().take_while(|path| path.starts_with(from) && !shared(path)) {
            match fs::remove_dir(root.join(path)) {
                Err(error) if error.kind() != ErrorKind::NotFound => break, // another pod's too: it goes with the last
                _ => {}
            }
        }
    }
}

/// Where cgroup hierarchies are mounted below /sys/fs/cgroup.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchy = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let path = place.split(' ').nth(4)?;
        (kind.starts_with("cgroup") && path.starts_with("/sys/fs/cgroup")).then(|| PathBuf::from(path))
    };
    mounts.lines().filter_map(hierarchy).collect()
}
