//! Containers: a writable layer over an image, a process that the pod's monitor watches, a log.

mod checkpoint;
mod create;
mod end;
mod exec;
pub mod oci;
mod remove;
mod start;
mod status;
mod stop;
mod stream;
mod update;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rrun_proto::v1;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::images::Image;
use crate::pods::blocking;
use crate::record::{self, Exit, Process};

pub use checkpoint::{checkpoint, checkpoint_pod, give_up, restore_pod};
pub use create::create;
pub use end::{clean_up, exited, knows};
pub use exec::{exec_sync, process_file};
pub use remove::remove;
pub use start::{monitor_request, start};
pub use status::{list, publish, status};
pub use stop::{stop, stop_all};
pub use stream::{Streamer, attach_url, exec_url, port_forward_url};
pub use update::{reopen_log, set_resources, update};

/// A container.
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// The id of its pod sandbox.
    pub pod: String,
    /// The folder of its records and its writable layer.
    pub dir: PathBuf,
    /// The folder of what it has in this boot: the bundle, the root file system, FIFOs.
    pub run_dir: PathBuf,
    record: Mutex<Arc<record::Container>>,
    writing: tokio::sync::Mutex<()>,
    exit: watch::Sender<Option<Exit>>,
    /// Held while it is being started: its end is told after its start.
    starting: tokio::sync::Mutex<()>,
    /// Held while it is being checkpointed.
    checkpointing: tokio::sync::Mutex<()>,
    handles: Mutex<Handles>,
    /// Its first process as config.json has it, once an exec has asked.
    process: tokio::sync::OnceCell<oci_spec::runtime::Process>,
    /// As long as it is held, the image's layers stay.
    pub image: Option<Arc<Image>>,
}

/// What the daemon holds open so that it outlives the monitor.
#[derive(Default, Clone)]
pub struct Handles {
    /// Its first process: where the exit code still comes from when the monitor has died.
    pub pidfd: Option<Arc<OwnedFd>>,
    /// Its terminal's master.
    pub pty: Option<Arc<OwnedFd>>,
}

impl Container {
    /// A container whose record is on disk, or is about to be.
    pub fn new(record: record::Container, exit: Option<Exit>, image: Option<Arc<Image>>, config: &Config) -> Arc<Container> {
        let below = |folder: PathBuf| folder.join("containers").join(&record.id);
        Arc::new(Container {
            id: record.id.clone(),
            pod: record.pod.clone(),
            dir: below(config.pod_dir(&record.pod)),
            run_dir: below(config.pod_run_dir(&record.pod)),
            exit: watch::channel(record.end.clone().or(exit)).0,
            record: Mutex::new(Arc::new(record)),
            writing: tokio::sync::Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            checkpointing: tokio::sync::Mutex::default(),
            handles: Mutex::default(),
            process: tokio::sync::OnceCell::new(),
            image,
        })
    }

    /// What is known of it.
    pub fn record(&self) -> Arc<record::Container> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes its record: on disk first. `step` names the change (see [`crate::step`]).
    pub async fn update(&self, step: &'static str, change: impl FnOnce(&mut record::Container)) -> Result<()> {
        let _writing = self.writing.lock().await;
        let mut new = (*self.record()).clone();
        change(&mut new);
        let (path, new) = (self.dir.join("container.json"), Arc::new(new));
        let written = new.clone();
        blocking(move || Ok(record::save(&path, &*written, step)?)).await?;
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// How it ended, once it has.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_default(),
            Err(_) => Exit::default(), // cannot be: the sender is part of `self`
        }
    }

    /// Notes how it ended; false if that was known.
    fn set_exit(&self, exit: Exit) -> bool {
        self.exit.send_if_modified(|known| {
            let new = known.is_none();
            if new {
                *known = Some(exit);
            }
            new
        })
    }

    /// Its state.
    pub fn state(&self) -> v1::ContainerState {
        if self.exit.borrow().is_some() {
            return v1::ContainerState::ContainerExited;
        }
        match self.record().started_at {
            0 => v1::ContainerState::ContainerCreated,
            _ => v1::ContainerState::ContainerRunning,
        }
    }

    /// Fails unless it runs.
    pub fn running(&self, what: &str) -> Result<()> {
        match self.state() {
            v1::ContainerState::ContainerRunning => Ok(()),
            state => {
                let state = state.as_str_name().trim_start_matches("CONTAINER_").to_lowercase();
                Err(Error::FailedPrecondition(format!("{what}: container {} is {state}, not running", self.id)))
            }
        }
    }

    /// What is held open of it.
    pub fn handles(&self) -> Handles {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Holds these from now on.
    pub fn hold(&self, pidfd: Option<OwnedFd>, pty: Option<OwnedFd>) {
        let handles = Handles { pidfd: pidfd.map(Arc::new), pty: pty.map(Arc::new) };
        *self.handles.lock().unwrap_or_else(PoisonError::into_inner) = handles;
    }

    /// Sends a signal to its first process; one that is gone is success.
    fn signal(&self, signal: Signal) -> Result<()> {
        let handles = self.handles();
        let Some(pidfd) = handles.pidfd.or_else(|| self.record().process.and_then(open_process).map(Arc::new)) else {
            return Ok(());
        };
        match pidfd_send_signal(pidfd.as_fd(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => {
                Err(Error::Internal(anyhow::Error::new(error).context(format!("pidfd_send_signal {signal:?} to container {}", self.id))))
            }
        }
    }
}

/// A pidfd of that very process; none if it is gone.
pub fn open_process(process: Process) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(process.pid)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    (start_time(process.pid)? == process.start_time).then_some(pidfd)
}

/// Field 22 of `/proc/PID/stat`.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold anything: count from behind its bracket.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Kills that very process.
pub fn kill_process(process: Process) {
    if let Some(pidfd) = open_process(process) {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
}
