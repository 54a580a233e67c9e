//! The OCI runtimes: the programs behind a pod's runtime handler, and the only place besides the monitor that starts
//! one. Create, start and exec are the monitor's; what needs no parent (delete, update, features) is done here.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::config::Config;
use crate::containers::oci::CgroupDriver;
use crate::error::{Error, Result};

/// How long a command may take that should be a matter of milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a checkpoint may take, which writes all of a container's memory.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(3600);

/// An OCI runtime as a handler uses it.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// The handler's name.
    pub name: String,
    /// The program, absolute.
    pub path: PathBuf,
    /// Arguments before the command's name: the handler's own, the state root, the cgroup driver.
    pub args: Vec<String>,
    /// What `features` printed; empty if the runtime has no such command.
    pub features: Vec<u8>,
    /// It need not be executed from a copy once more if its file is on a read-only mount, as `features` says of rrun.
    pub read_only: bool,
}

/// All handlers.
#[derive(Debug, Clone, Default)]
pub struct Runtimes {
    by_name: BTreeMap<String, Arc<Runtime>>,
    default: String,
}

impl Runtimes {
    /// Looks for every handler's program. One that is not there is left out, with a warning; the default one must be.
    pub async fn find(config: &Config, driver: CgroupDriver) -> anyhow::Result<Runtimes> {
        let mut by_name = BTreeMap::new();
        for (name, runtime) in &config.runtimes {
            match program(&runtime.path) {
                Some(path) => {
                    let mut args = runtime.args.clone();
                    args.extend(["--root".into(), config.state.join("runtimes").join(name).display().to_string()]);
                    if driver == CgroupDriver::Systemd {
                        args.push("--systemd-cgroup".into());
                    }
                    let mut found = Runtime { name: name.clone(), path, args, features: Vec::new(), read_only: false };
                    found.features = found.run(&["features"], None).await.unwrap_or_default();
                    let features = serde_json::from_slice::<serde_json::Value>(&found.features).unwrap_or_default();
                    found.read_only = features["annotations"]["rrun.safe-on-read-only-mount"] == "true";
                    by_name.insert(name.clone(), Arc::new(found));
                }
                None if *name == config.default_runtime => bail!(
                    "default_runtime {name:?}: no program {}; install it or name it in [runtimes.{name}] path",
                    runtime.path.display()
                ),
                None => tracing::debug!(handler = name, path = %runtime.path.display(), "no such program: handler left out"),
            }
        }
        Ok(Runtimes { by_name, default: config.default_runtime.clone() })
    }

    /// The runtime of a handler; the empty name is the default one.
    pub fn get(&self, handler: &str) -> Result<Arc<Runtime>> {
        let name = if handler.is_empty() { &self.default } else { handler };
        self.by_name.get(name).cloned().ok_or_else(|| {
            let known: Vec<_> = self.by_name.keys().map(String::as_str).collect();
            Error::InvalidArgument(format!(
                "runtime_handler {handler:?} is not configured: there are {}; add [runtimes.{handler}] to the settings",
                known.join(", ")
            ))
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Runtime>> {
        self.by_name.values()
    }
}

impl Runtime {
    /// `delete --force`: kills what still runs and removes the container's cgroup and state. Nothing there is success.
    pub async fn delete(&self, id: &str) -> anyhow::Result<()> {
        self.run(&["delete", "--force", id], None).await.map(drop)
    }

    /// `update`: changes the limits of a running container to `resources` (the OCI specification's object).
    pub async fn update(&self, id: &str, resources: &[u8]) -> anyhow::Result<()> {
        self.run(&["update", "--resources", "-", id], Some(resources)).await.map(drop)
    }

    /// `pause`: freezes a running container.
    pub async fn pause(&self, id: &str) -> anyhow::Result<()> {
        self.run(&["pause", id], None).await.map(drop)
    }

    /// `resume`: lets a frozen container go on.
    pub async fn resume(&self, id: &str) -> anyhow::Result<()> {
        self.run(&["resume", id], None).await.map(drop)
    }

    /// `checkpoint`: has CRIU save a container that goes on, into the folder `images`, with its log in `work`. The runtime has
    /// `lock` open for as long as it works.
    pub async fn checkpoint(&self, id: &str, images: &Path, work: &Path, lock: File) -> anyhow::Result<()> {
        let (images, work) = (images.display().to_string(), work.display().to_string());
        let command = ["checkpoint", "--leave-running", "--file-locks", "--image-path", &images, "--work-path", &work, id];
        self.execute(&command, lock.into(), None, CHECKPOINT_PATIENCE).await.map(drop)
    }

    /// Runs a command to its end; its output, or an error with the last line that it wrote.
    async fn run(&self, command: &[&str], input: Option<&[u8]>) -> anyhow::Result<Vec<u8>> {
        let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        self.execute(command, stdin, input, PATIENCE).await
    }

    async fn execute(&self, command: &[&str], stdin: Stdio, input: Option<&[u8]>, patience: Duration) -> anyhow::Result<Vec<u8>> {
        let what = || format!("{} {}", self.path.display(), command.join(" "));
        let mut child = Command::new(&self.path)
            .args(&self.args)
            .args(command)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(what)?;
        if let (Some(bytes), Some(mut stdin)) = (input, child.stdin.take()) {
            // A runtime that reads nothing says why itself.
            let _ = stdin.write_all(bytes).await;
        }
        let output = tokio::time::timeout(patience, child.wait_with_output());
        let output = output.await.map_err(|_| anyhow!("{} took more than {patience:?}", what()))?.with_context(what)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", what(), text.trim_end().lines().last().unwrap_or("failed without a word"));
        }
        Ok(output.stdout)
    }
}

/// A program by path or by name in `PATH`.
pub fn program(name: &Path) -> Option<PathBuf> {
    let runs = |path: &PathBuf| path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    if name.is_absolute() {
        return Some(name.to_owned()).filter(runs);
    }
    // Beside the daemon itself first: that is how the programs are installed.
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside.into_iter().chain(std::env::split_paths(&path)).map(|folder| folder.join(name)).find(runs)
}
