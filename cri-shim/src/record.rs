//! Records on disk, one JSON file each, so that a person can read them with cat: what a pod and a container are, and
//! how a container ended. A record is written to a temporary name, synced and renamed before anything is acknowledged.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rrun_proto::v1;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::containers::oci::Labels;

/// A pod sandbox: `pods/<id>/pod.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// 64 hex digits.
    pub id: String,
    /// As kubelet gave it.
    pub config: v1::PodSandboxConfig,
    /// The runtime handler as asked for; empty: the default one.
    pub handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Whether it takes containers. False while it is being made and once it is being stopped.
    pub ready: bool,
    /// Its id was answered, or was about to be.
    pub acknowledged: bool,
    /// The boot in which its namespaces and mounts were made.
    pub boot_id: String,
    /// Where its network namespace is pinned; none in the host's.
    pub netns: Option<PathBuf>,
    /// Whether CNI plugins were, or may have been, asked for addresses that were not given back yet.
    pub network: bool,
    /// Its addresses, the first one first.
    pub ips: Vec<String>,
    /// What the CNI plugins answered, for verbose status.
    pub cni_result: serde_json::Value,
    /// The init of a shared PID namespace.
    pub init: Option<Process>,
    /// The first folder of the cgroup parent that did not exist before: it goes with the pod, or the last that shares it.
    pub made_cgroup: Option<PathBuf>,
    /// Its SELinux labels; empty where SELinux is off.
    pub selinux: Labels,
}

/// A process that may be gone: the start time tells it from a later one with the same pid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// In the host's PID namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_time: u64,
}

/// A container: `pods/<pod>/containers/<id>/container.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// The id of its pod sandbox.
    pub pod: String,
    /// As kubelet gave it; resources change with UpdateContainerResources.
    pub config: v1::ContainerConfig,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// Nanoseconds since the epoch, as all times here.
    pub created_at: i64,
    /// 0 until it runs.
    pub started_at: i64,
    /// Its first process.
    pub process: Option<Process>,
    /// Its id was answered, or was about to be.
    pub acknowledged: bool,
    /// The boot in which it was started.
    pub boot_id: String,
    /// Absolute; empty: no log.
    pub log_path: PathBuf,
    /// The signal that asks it to end, as a number of this machine.
    pub stop_signal: i32,
    /// User, group and additional groups.
    pub user: v1::LinuxContainerUser,
    /// The stop signal was sent: it is not sent again.
    pub stop_signalled: bool,
    /// It is made from a checkpoint and not started yet.
    pub restore: bool,
    /// A checkpoint of it is being made: the file beside its archive.
    pub checkpoint: Option<PathBuf>,
    /// What the daemon knows of its end where the monitor's record cannot: a failed start, a reboot.
    pub end: Option<Exit>,
}

/// How a container ended: `pods/<pod>/containers/<id>/exit.json` (written by the monitor), or [`Container::end`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exit {
    /// 0 to 255; 128 plus the signal that ended it.
    pub code: i32,
    /// The kernel killed it for memory.
    pub oom: bool,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// A reason other than what follows from the rest (`StartError`, `Unknown`).
    pub reason: String,
    /// For a person.
    pub message: String,
}

impl Exit {
    /// The reason as kubelet shows it (cri.md 1.4).
    pub fn reason(&self) -> &str {
        match self {
            Exit { reason, .. } if !reason.is_empty() => reason,
            Exit { oom: true, code: 137, .. } => "OOMKilled",
            Exit { code: 0, .. } => "Completed",
            _ => "Error",
        }
    }
}

/// Reads a record; none where there is no such file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| format!("record {}", path.display()))?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read record {}", path.display())),
    }
}

/// Writes a record so that after a power loss there is either the old or the new one. `step` names what is recorded.
pub fn save<T: Serialize>(path: &Path, record: &T, step: &str) -> Result<()> {
    crate::step::reached(&format!("before {step}"));
    let text = serde_json::to_vec_pretty(record)?;
    write_synced(path, &text).with_context(|| format!("write record {}", path.display()))?;
    crate::step::reached(&format!("after {step}"));
    Ok(())
}

fn write_synced(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_data()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        let exit = |code, oom| Exit { code, oom, ..Exit::default() };
        assert_eq!(exit(0, false).reason(), "Completed");
        assert_eq!(exit(3, false).reason(), "Error");
        assert_eq!(exit(137, false).reason(), "Error");
        assert_eq!(exit(137, true).reason(), "OOMKilled");
        assert_eq!(exit(1, true).reason(), "Error", "a child was killed, the process went on and failed itself");
        assert_eq!(Exit { code: 255, reason: "Unknown".into(), ..Exit::default() }.reason(), "Unknown");
    }

    #[test]
    fn a_record_reads_back_and_older_ones_lack_fields() {
        let folder = std::env::temp_dir().join(format!("rrun-record-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("pod.json");
        assert!(load::<Pod>(&path).unwrap().is_none());
        save(&path, &Pod { id: "ab".into(), ready: true, ..Pod::default() }, "test").unwrap();
        assert!(load::<Pod>(&path).unwrap().unwrap().ready);
        fs::write(&path, r#"{"id":"cd"}"#).unwrap();
        assert_eq!(load::<Pod>(&path).unwrap().unwrap().id, "cd");
        fs::write(&path, "{").unwrap();
        assert!(format!("{:#}", load::<Pod>(&path).unwrap_err()).contains("pod.json"));
        fs::remove_dir_all(folder).unwrap();
    }
}
