//! The cgroup parent of a pod. Kubelet makes its own before it asks for the pod; where a caller names one that is not there,
//! the OCI runtime makes it with the first container, and it goes with the pod. (systemd removes its own slices.)

use std::fs;
use std::path::{Path, PathBuf};

use rrun_proto::v1;

use crate::error::{Error, Result};

/// The part of the pod's cgroup parent that is not there yet: the folder that begins it, relative to the hierarchies' roots.
/// Blocks.
///
/// # Errors
/// `InvalidArgument` where a file is on the way.
pub(super) fn missing(config: &v1::PodSandboxConfig) -> Result<Option<PathBuf>> {
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.trim_start_matches('/'));
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

/// Removes what the first container of the pod made: `from` and what is below it on the way to the parent. A cgroup that is
/// in use stays. Blocks.
pub(super) fn remove(config: &v1::PodSandboxConfig, from: &Path) {
    let Some(linux) = &config.linux else { return };
    let parent = Path::new(linux.cgroup_parent.trim_start_matches('/'));
    for root in hierarchies() {
        for path in parent.ancestors().take_while(|path| path.starts_with(from)) {
            if fs::remove_dir(root.join(path)).is_err() {
                break; // gone, or somebody else's by now
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
