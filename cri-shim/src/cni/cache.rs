//! What ADD returned, kept where libcni keeps it: `<cache_dir>/results/<network>-<container id>-<interface>`.
//!
//! Node tools read these files, and a node that moves between runtimes can take its old pods down with them. The file is
//! written before ADD (without a result) and again after it, so that an attachment that may exist has a file. It is not
//! synced: after a power loss nothing in it is needed that the pod's record and the network's configuration do not say.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::is_name;

const KIND: &str = "cniCacheV1";

/// The folder of cached attachments.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

/// One attachment: libcni's `cachedInfo`, field by field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cached {
    kind: String,
    pub(super) container_id: String,
    config: String,
    pub(super) if_name: String,
    pub(super) network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) cni_args: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) capability_args: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Value>,
    /// The file it was read from.
    #[serde(skip)]
    path: PathBuf,
}

impl Cache {
    pub(super) fn new(dir: &Path) -> Cache {
        Cache { dir: dir.to_owned() }
    }

    /// Writes an attachment's file; readers see the old one or the new one.
    pub(super) fn write(&self, cached: &Cached) -> Result<()> {
        let name = cached.file_name()?;
        let results = self.dir.join("results");
        DirBuilder::new().recursive(true).mode(0o700).create(&results).with_context(|| format!("make {}", results.display()))?;
        // Beside the folder: libcni takes every file in it for an attachment.
        let tmp = self.dir.join(format!(".{name}.tmp"));
        let path = results.join(&name);
        let bytes = serde_json::to_vec(cached)?;
        let written = write_private(&tmp, &bytes).and_then(|()| std::fs::rename(&tmp, &path));
        written.inspect_err(|_| drop(std::fs::remove_file(&tmp))).with_context(|| format!("write {}", path.display()))
    }

    /// All attachments of a container; of all containers if `id` is None. Files that are none are left out.
    pub(super) fn find(&self, id: Option<&str>) -> Result<Vec<Cached>> {
        let results = self.dir.join("results");
        let entries = match std::fs::read_dir(&results) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("read folder {}", results.display()))?,
        };
        let part = id.map(|id| format!("-{id}-"));
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("read folder {}", results.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if part.as_ref().is_some_and(|part| !name.contains(part)) {
                continue;
            }
            let Some(cached) = read(&path) else { continue };
            if id.is_none_or(|id| id == cached.container_id) {
                found.push(cached);
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Removes an attachment's file; it may be gone.
    pub(super) fn remove(&self, cached: &Cached) -> Result<()> {
        let path =
            if cached.path.as_os_str().is_empty() { self.dir.join("results").join(cached.file_name()?) } else { cached.path.clone() };
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| format!("remove {}", path.display())),
            _ => Ok(()),
        }
    }
}

impl Cached {
    /// An attachment of `container_id` to the network of `config`.
    pub(super) fn new(network_name: &str, config: &[u8], container_id: &str, if_name: &str, netns: &str) -> Cached {
        Cached {
            kind: KIND.into(),
            container_id: container_id.into(),
            config: STANDARD.encode(config),
            if_name: if_name.into(),
            network_name: network_name.into(),
            netns: netns.into(),
            cni_args: Vec::new(),
            capability_args: Map::new(),
            result: None,
            path: PathBuf::new(),
        }
    }

    /// The network's configuration as it was at ADD.
    pub(super) fn config(&self) -> Result<Vec<u8>> {
        STANDARD.decode(&self.config).context("config: no base64")
    }

    fn file_name(&self) -> Result<String> {
        let interface = !self.if_name.is_empty() && self.if_name.len() < 16 && !self.if_name.contains(['/', ':']);
        anyhow::ensure!(is_name(&self.network_name), "{:?} is no network name", self.network_name);
        anyhow::ensure!(is_name(&self.container_id), "{:?} is no container id", self.container_id);
        anyhow::ensure!(interface, "{:?} is no interface name", self.if_name);
        Ok(format!("{}-{}-{}", self.network_name, self.container_id, self.if_name))
    }
}

fn read(path: &Path) -> Option<Cached> {
    let cached: Cached = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let usable = cached.kind == KIND && !cached.if_name.is_empty() && !cached.network_name.is_empty();
    usable.then(|| Cached { path: path.to_owned(), ..cached })
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}
