//! Pod sandboxes: pinned namespaces, files, an address, a monitor; no process of their own but, in a shared PID
//! namespace, its init.

mod cgroup;
mod files;
mod network;
mod remove;
mod run;
mod status;
mod stop;
mod update;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rrun_proto::v1;

use crate::config::Config;
use crate::containers::oci;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::record;

pub use files::paths as files;
pub use network::attachment;
pub use remove::{remove, remove_folder};
pub(crate) use run::run_one;
pub use run::{name, run};
pub use status::{list, message, status, to_status};
pub use stop::{stop, tear_down};
pub use update::update_resources;

/// A pod sandbox.
pub struct Pod {
    /// 64 hex digits.
    pub id: String,
    record: Mutex<Arc<record::Pod>>,
    writing: tokio::sync::Mutex<()>,
    monitor: Mutex<Option<Monitor>>,
    /// Held for reading while a container is made or started, for writing while the pod ceases to be ready.
    door: tokio::sync::RwLock<()>,
    /// The folder of its records.
    pub dir: PathBuf,
    /// The folder of what it has in this boot.
    pub run_dir: PathBuf,
}

impl Pod {
    /// A pod whose record is on disk, or is about to be.
    pub fn new(record: record::Pod, config: &Config) -> Arc<Pod> {
        Arc::new(Pod {
            id: record.id.clone(),
            dir: config.pod_dir(&record.id),
            run_dir: config.pod_run_dir(&record.id),
            record: Mutex::new(Arc::new(record)),
            writing: tokio::sync::Mutex::default(),
            monitor: Mutex::default(),
            door: tokio::sync::RwLock::default(),
        })
    }

    /// What is known of it.
    pub fn record(&self) -> Arc<record::Pod> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes its record: on disk first. `step` names the change (see [`crate::step`]).
    pub async fn update(&self, step: &'static str, change: impl FnOnce(&mut record::Pod)) -> Result<()> {
        let _writing = self.writing.lock().await;
        let mut new = (*self.record()).clone();
        change(&mut new);
        let (path, new) = (self.dir.join("pod.json"), Arc::new(new));
        let written = new.clone();
        blocking(move || Ok(record::save(&path, &*written, step)?)).await?;
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Keeps the pod ready for as long as the guard is held.
    ///
    /// # Errors
    /// `FailedPrecondition` where it is not ready; `what` is in the text.
    pub async fn open(&self, what: &str) -> Result<tokio::sync::RwLockReadGuard<'_, ()>> {
        let open = self.door.read().await;
        match self.record().ready {
            true => Ok(open),
            false => Err(Error::FailedPrecondition(format!("{what}: pod sandbox {} is not ready", self.id))),
        }
    }

    /// It takes no more containers.
    async fn close(&self) -> Result<()> {
        let _alone = self.door.write().await;
        self.update("pod not ready", |record| record.ready = false).await
    }

    /// Its monitor's connection.
    ///
    /// # Errors
    /// `FailedPrecondition` where there is none: the sandbox was stopped, or is not made yet.
    pub fn monitor(&self) -> Result<Monitor> {
        let monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner).clone();
        monitor.ok_or_else(|| Error::FailedPrecondition(format!("pod sandbox {} has no monitor: it is not ready", self.id)))
    }

    /// Sets or takes away its monitor's connection.
    pub fn set_monitor(&self, monitor: Option<Monitor>) -> Option<Monitor> {
        std::mem::replace(&mut *self.monitor.lock().unwrap_or_else(PoisonError::into_inner), monitor)
    }

    /// Where a namespace other than the network's is pinned.
    pub fn pin(&self, kind: &str) -> PathBuf {
        self.run_dir.join("ns").join(kind)
    }

    /// The namespaces that its containers join.
    pub fn namespaces(&self) -> oci::Namespaces {
        let record = self.record();
        let options = options(&record.config);
        let user = options.userns_options.as_ref().filter(|user| user.mode() == v1::NamespaceMode::Pod);
        oci::Namespaces {
            network: record.netns.clone(),
            ipc: (options.ipc() != v1::NamespaceMode::Node).then(|| self.pin("ipc")),
            uts: (options.network() != v1::NamespaceMode::Node).then(|| self.pin("uts")),
            pid: match options.pid() {
                v1::NamespaceMode::Node => oci::PidNamespace::Host,
                v1::NamespaceMode::Pod => oci::PidNamespace::Path(self.pin("pid")),
                _ => oci::PidNamespace::Own,
            },
            user: user.map(|user| oci::UserNamespace { path: self.pin("user"), uids: user.uids.clone(), gids: user.gids.clone() }),
        }
    }

    /// The host name that its processes see.
    pub fn hostname(&self) -> String {
        let record = self.record();
        if options(&record.config).network() == v1::NamespaceMode::Node {
            return rustix::system::uname().nodename().to_string_lossy().into_owned();
        }
        record.config.hostname.clone()
    }
}

/// The namespace options of a pod's configuration; absent is all zero, which is the pod's own of everything.
pub fn options(config: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}

/// Runs blocking file work off the reactor.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Internal(anyhow::anyhow!("a step ended without a result: {error}"))),
    }
}
