//! A container's cgroup as the host sees it, whatever the hierarchy and the driver.

use crate::host;
use std::fs;
use std::path::PathBuf;

/// The folder of process `pid` in the hierarchy of `controller` (any name will do on v2).
pub fn dir(pid: i32, controller: &str) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let root = PathBuf::from("/sys/fs/cgroup");
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next(), parts.next().unwrap(), parts.next().unwrap());
        let path = path.trim_start_matches('/');
        if host::cgroup_version() == 2 && controllers.is_empty() {
            return root.join(path);
        }
        if host::cgroup_version() == 1 && controllers.split(',').any(|c| c == controller) {
            return root.join(controller).join(path);
        }
    }
    panic!("no {controller} in {text}")
}

/// What a file of that folder holds, or `None` where this kernel has no such file.
pub fn read(pid: i32, controller: &str, file: &str) -> Option<String> {
    fs::read_to_string(dir(pid, controller).join(file)).ok().map(|t| t.trim_end().to_string())
}

/// Whether `controller` can be used: mounted on v1, available at our own place on v2.
pub fn has(controller: &str) -> bool {
    match host::cgroup_version() {
        1 => PathBuf::from("/sys/fs/cgroup").join(controller).exists(),
        _ => {
            let place = if host::is_root() { "/sys/fs/cgroup".into() } else { dir(std::process::id() as i32, "") };
            let listed = |dir: PathBuf| fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
            listed(place).split_whitespace().any(|c| c == controller)
        }
    }
}
