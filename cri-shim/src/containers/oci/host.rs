//! What the host and an OCI runtime can do, asked once at the daemon's start.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::Context;
use oci_spec::runtime::Capability;
use serde::{Deserialize, Serialize};

use super::{capabilities, resources};
use crate::config::Config;

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupDriver {
    /// The OCI runtime itself.
    #[default]
    Cgroupfs,
    /// systemd, asked by the OCI runtime.
    Systemd,
}

/// What an OCI runtime can do, as RuntimeHandlerFeatures tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Mounts that are read-only with all mounts in them.
    pub recursive_read_only_mounts: bool,
    /// User namespaces with id-mapped mounts.
    pub user_namespaces: bool,
}

/// What the host can do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Host {
    /// Only cgroup v2.
    pub cgroup2: bool,
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// The daemon's bounding set: what a privileged container gets.
    pub capabilities: HashSet<Capability>,
    /// Sizes of huge pages that can be limited (`2MB`).
    pub hugepages: HashSet<String>,
    /// Swap can be limited.
    pub swap: bool,
    /// seccomp filters.
    pub seccomp: bool,
    /// AppArmor is active.
    pub apparmor: bool,
    /// SELinux is active.
    pub selinux: bool,
    /// Where the daemon may not lower it: its own `oom_score_adj`, the least that a container can have.
    pub least_oom_score_adj: Option<i32>,
    /// The kernel's version.
    pub kernel: (u32, u32),
}

impl Host {
    /// Asks the kernel.
    ///
    /// # Errors
    /// A procfs that cannot be read.
    pub fn probe(settings: &Config) -> anyhow::Result<Host> {
        let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
        let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("/proc/self/status: no CapBnd")?;
        let capabilities = capabilities::of_mask(u64::from_str_radix(mask.trim(), 16).context("/proc/self/status: CapBnd")?);
        let own_score = fs::read_to_string("/proc/self/oom_score_adj").context("/proc/self/oom_score_adj")?;
        let own_score = own_score.trim().parse().context("/proc/self/oom_score_adj")?;
        let cgroup2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Ok(Host {
            cgroup2,
            cgroup_driver: cgroup_driver(&settings.cgroup_driver),
            hugepages: hugepages(cgroup2),
            swap: swap(cgroup2),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            apparmor: fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
                && Path::new("/sys/kernel/security/apparmor").exists(),
            selinux: super::lsm::selinux_is_active(),
            least_oom_score_adj: (!capabilities.contains(&Capability::SysResource)).then_some(own_score),
            capabilities,
            kernel: version(&release),
        })
    }
}

fn cgroup_driver(setting: &str) -> CgroupDriver {
    match setting {
        "cgroupfs" => CgroupDriver::Cgroupfs,
        "systemd" => CgroupDriver::Systemd,
        _ if Path::new("/run/systemd/system").exists() => CgroupDriver::Systemd,
        _ => CgroupDriver::Cgroupfs,
    }
}

/// Sizes of huge pages, where there is a controller for them.
fn hugepages(cgroup2: bool) -> HashSet<String> {
    let controlled = match cgroup2 {
        true => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|text| text.split_whitespace().any(|c| c == "hugetlb")),
        false => Path::new("/sys/fs/cgroup/hugetlb").exists(),
    };
    let sizes = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    sizes
        .filter(|_| controlled)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            resources::page_size_name(kilobytes << 10)
        })
        .collect()
}

/// On v2 the root has no memory.swap.max: any cgroup below it tells, and the daemon is in one.
fn swap(cgroup2: bool) -> bool {
    if !cgroup2 {
        return Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists();
    }
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_start_matches('/').to_owned();
    match own.is_empty() {
        true => fs::read_to_string("/proc/swaps").is_ok(),
        false => Path::new("/sys/fs/cgroup").join(own).join("memory.swap.max").exists(),
    }
}

fn version(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// What a handler can do, from what its `features` command prints; a runtime without that command can do neither.
/// Both need Linux 5.12.
pub fn features(output: &[u8], host: &Host) -> Features {
    let json: serde_json::Value = serde_json::from_slice(output).unwrap_or_default();
    let recent = host.kernel >= (5, 12);
    let has = |list: &serde_json::Value, name: &str| list.as_array().is_some_and(|list| list.iter().any(|entry| entry == name));
    Features {
        recursive_read_only_mounts: recent && has(&json["mountOptions"], "rro"),
        user_namespaces: recent
            && has(&json["linux"]["namespaces"], "user")
            && json["linux"]["mountExtensions"]["idmap"]["enabled"] == true
            && Path::new("/proc/self/ns/user").exists(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host() {
        let host = Host::probe(&Config::default()).unwrap();
        assert!(host.kernel >= (4, 0) && !host.capabilities.is_empty());
        assert_eq!(version("6.18.5-x"), (6, 18));
        assert_eq!(version("5.4"), (5, 4));
        assert_eq!(version("odd"), (0, 0));
    }

    #[test]
    fn what_runtimes_print() {
        let host = Host { kernel: (6, 1), ..Host::default() };
        let text = br#"{"mountOptions": ["bind", "rro"],
            "linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": true}}}}"#;
        assert_eq!(features(text, &host), Features { recursive_read_only_mounts: true, user_namespaces: true });
        assert_eq!(features(text, &Host { kernel: (5, 4), ..Host::default() }), Features::default());
        assert_eq!(features(b"unknown command", &host), Features::default());
        assert_eq!(features(br#"{"linux": {"namespaces": ["user"]}}"#, &host), Features::default());
    }
}
