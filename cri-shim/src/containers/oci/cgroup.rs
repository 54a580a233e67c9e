//! `linux.cgroupsPath`.

use std::path::{Component, Path, PathBuf};

use super::{CgroupDriver, invalid};
use crate::config::Config;
use crate::error::Result;

/// Bytes of a file's name.
const NAME_MAX: usize = 255;

/// A container's cgroup: `SLICE:PREFIX:ID` for systemd, which makes `PREFIX-ID.scope` of it, and `/PARENT/ID` else.
/// Without a parent, containers are in `system.slice`, or at the top.
///
/// # Errors
/// `InvalidArgument` for a parent that leads elsewhere.
pub fn cgroups_path(parent: &str, id: &str, driver: CgroupDriver, settings: &Config) -> Result<PathBuf> {
    check_parent(parent, driver)?;
    match driver {
        CgroupDriver::Systemd => {
            let slice = Path::new(parent).file_name().map_or_else(|| "system.slice".into(), |name| name.to_string_lossy());
            Ok(PathBuf::from(format!("{slice}:{}:{id}", settings.cgroup_prefix)))
        }
        CgroupDriver::Cgroupfs => Ok(Path::new("/").join(parent.trim_start_matches('/')).join(id)),
    }
}

/// Refuses a parent that is no path beneath the hierarchy, or for systemd no slice.
pub(super) fn check_parent(parent: &str, driver: CgroupDriver) -> Result<()> {
    let field = "linux.cgroup_parent";
    if Path::new(parent).components().any(|part| part == Component::ParentDir) || parent.contains('\0') {
        return Err(invalid(format!("{field}: {parent:?} does not stay beneath the cgroup hierarchy")));
    }
    if let Some(name) = parent.split('/').find(|name| name.len() > NAME_MAX) {
        return Err(invalid(format!("{field}: {name:?} is longer than the kernel's {NAME_MAX} bytes")));
    }
    if driver == CgroupDriver::Systemd && !parent.is_empty() && !parent.ends_with(".slice") {
        return Err(invalid(format!("{field}: {parent:?} is not a slice, and the cgroup driver is systemd; let kubelet use it too")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use CgroupDriver::*;

    #[test]
    fn both_drivers() {
        let settings = Config::default();
        for (parent, driver, path) in [
            ("/kubepods/burstable/pod1", Cgroupfs, "/kubepods/burstable/pod1/c"),
            ("kubepods", Cgroupfs, "/kubepods/c"),
            ("/test.slice", Cgroupfs, "/test.slice/c"),
            ("", Cgroupfs, "/c"),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
                Systemd,
                "kubepods-burstable-pod1.slice:cri-containerd:c",
            ),
            ("test.slice", Systemd, "test.slice:cri-containerd:c"),
            ("", Systemd, "system.slice:cri-containerd:c"),
        ] {
            assert_eq!(cgroups_path(parent, "c", driver, &settings).unwrap(), Path::new(path));
        }
        assert!(cgroups_path(&format!("/kubepods/{}", "x".repeat(256)), "c", Cgroupfs, &settings).is_err());
        assert!(cgroups_path("/kubepods/../x", "c", Cgroupfs, &settings).is_err());
        assert!(cgroups_path("/kubepods", "c", Systemd, &settings).unwrap_err().to_string().contains("not a slice"));
    }
}
