//! A plugin: how it comes to be known, what it is asked, and what becomes of one that does not answer.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rrun_proto::nri;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tonic::{Code, Status};

use super::connection::{CallError, Connection};
use super::frames::DATA_MAX;
use super::message::Message;
use crate::config;
use crate::shim::Shim;

/// The version of NRI whose messages are spoken here.
const NRI_VERSION: &str = "v0.12.5";
/// Every event that there is.
const ALL_EVENTS: i32 = (1 << nri::Event::ValidateContainerAdjustment as i32) - 1;
/// What a message may have beside pods and containers.
const SLACK: usize = 1024;

/// A plugin that is registered and configured.
pub(super) struct Plugin {
    /// Two digits and its name, `10-logger`: plugins are asked in the order of these.
    pub name: String,
    events: i32,
    policy: nri::FailurePolicy,
    connection: Arc<Connection>,
    /// It knows some events by `StateChange` only, as plugins from before NRI 0.10 do.
    old_form: AtomicBool,
    patience: Duration,
    /// For all there is at once, it gets as long as for registering.
    synchronize: Duration,
}

/// A plugin's program that was started.
pub(super) struct Installed {
    name: String,
    configuration: String,
    child: Child,
}

/// Whoever registers: name and index.
type Registration = oneshot::Sender<Result<String, String>>;

impl Plugin {
    /// Waits for a plugin on `socket` to register, and configures it. One of the plugin folder has its name already.
    ///
    /// # Errors
    /// It does not in time, or not as it should; it is hung up on, and killed if it was started here.
    pub(super) async fn register(shim: &Shim, socket: UnixStream, installed: Option<Installed>) -> Result<Plugin> {
        let settings = &shim.config.nri;
        let (registration, registered) = oneshot::channel();
        let registration = Arc::new(Mutex::new(Some(registration)));
        let serving = shim.clone();
        let connection = Connection::start(socket, move |method, message| serve(serving.clone(), registration.clone(), method, message));
        let (given, configuration) = match installed {
            None => (None, String::new()),
            Some(Installed { name, configuration, mut child }) => {
                let end = connection.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        // The socket may live on in a child of its own.
                        _ = child.wait() => end.close(),
                        () = end.ended() => { let _ = child.kill().await; }
                    }
                });
                (Some(name), configuration)
            }
        };
        let plugin = async {
            let patience = Duration::from_secs(settings.registration_seconds);
            let name = tokio::select! {
                name = registered => name.map_err(|_| anyhow!("the plugin hung up before it registered"))?.map_err(anyhow::Error::msg)?,
                () = connection.ended() => bail!("the plugin hung up before it registered"),
                () = tokio::time::sleep(patience) => bail!("the plugin did not register within {patience:?}"),
            };
            let name = given.unwrap_or(name);
            configure(&connection, name, configuration, settings).await
        };
        let plugin = plugin.await;
        if plugin.is_err() {
            connection.close();
        }
        plugin
    }

    /// Whether it is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Hangs up, which ends one that was started here.
    pub(super) fn close(&self) {
        self.connection.close();
    }

    /// Whether it wants to hear of an event.
    pub(super) fn wants(&self, event: nri::Event) -> bool {
        self.events & 1 << (event as i32 - 1) != 0
    }

    /// Tells it all pods and containers there are, in as many messages as it takes; answers the updates that it wants.
    pub(super) async fn synchronize(
        &self,
        mut pods: Vec<nri::PodSandbox>,
        mut containers: Vec<nri::Container>,
    ) -> Result<Vec<nri::ContainerUpdate>> {
        let parts = async {
            loop {
                let mut room = DATA_MAX - SLACK;
                let pods = split(&mut pods, &mut room);
                let request = nri::SynchronizeRequest { pods, containers: split(&mut containers, &mut room), more: false };
                let more = room == 0;
                let request = nri::SynchronizeRequest { more, ..request };
                let answer: nri::SynchronizeResponse = self.connection.call("Synchronize", &request, self.synchronize).await?;
                if !more {
                    return Ok(answer.update);
                }
                ensure!(answer.more && answer.update.is_empty(), "it does not know of synchronization in parts");
            }
        };
        let answer = tokio::time::timeout(self.synchronize, parts).await;
        let answer = answer.unwrap_or_else(|_| Err(CallError::Late(self.synchronize).into()));
        if answer.is_err() {
            self.close();
        }
        answer.with_context(|| format!("Synchronize of NRI plugin {}", self.name))
    }

    /// Asks it. `None`: it does not want to hear of that event, or is gone and the request goes on without it.
    ///
    /// # Errors
    /// Its own, and where it wants so (`fail_request`) those of its connection.
    pub(super) async fn ask<T: Message>(&self, event: nri::Event, method: &str, message: &impl Message) -> Result<Option<T>> {
        if !self.wants(event) || self.is_closed() {
            return Ok(None);
        }
        match self.connection.call(method, message, self.patience).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => self.failed(method, error).map(|()| None),
        }
    }

    /// Asks it for what has no answer but success, by the event's method, or in the old form.
    pub(super) async fn tell(&self, event: nri::Event, method: &str, message: &impl Message, change: &nri::StateChangeEvent) -> Result<()> {
        if !self.wants(event) || self.is_closed() {
            return Ok(());
        }
        if !self.old_form.load(Ordering::Relaxed) {
            match self.connection.call::<nri::Empty>(method, message, self.patience).await {
                Err(CallError::Refused(Code::Unimplemented, _)) => self.old_form.store(true, Ordering::Relaxed),
                Err(error) => return self.failed(method, error),
                Ok(nri::Empty {}) => return Ok(()),
            }
        }
        let change = nri::StateChangeEvent { event: event.into(), ..change.clone() };
        match self.connection.call::<nri::Empty>("StateChange", &change, self.patience).await {
            // It knows neither.
            Err(CallError::Refused(Code::Unimplemented, _)) | Ok(nri::Empty {}) => Ok(()),
            Err(error) => self.failed(method, error),
        }
    }

    /// What a failed call means for the plugin and for the request.
    fn failed(&self, method: &str, error: CallError) -> Result<()> {
        let ours = matches!(error, CallError::Refused(..));
        let kept = self.policy.keep_connected && matches!(error, CallError::Late(_));
        if !(ours || kept) {
            tracing::error!(plugin = self.name, "NRI: {method}: {error}: the plugin is left behind");
            self.close();
        }
        if ours || self.policy.fail_request {
            bail!("NRI plugin {}: {method}: {error}", self.name);
        }
        tracing::warn!(plugin = self.name, "NRI: {method}: {error}: the request goes on without it");
        Ok(())
    }
}

async fn configure(connection: &Arc<Connection>, name: String, config: String, settings: &config::Nri) -> Result<Plugin> {
    let patience = Duration::from_secs(settings.request_seconds);
    let request = nri::ConfigureRequest {
        config,
        runtime_name: "rrun-cri".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        registration_timeout: settings.registration_seconds as i64 * 1000,
        request_timeout: patience.as_millis() as i64,
        nri_version: NRI_VERSION.into(),
    };
    let answer: nri::ConfigureResponse =
        connection.call("Configure", &request, patience).await.with_context(|| format!("configure NRI plugin {name}"))?;
    ensure!(answer.events & !ALL_EVENTS == 0, "NRI plugin {name} wants events that are not known: {:#x}", answer.events & !ALL_EVENTS);
    Ok(Plugin {
        name,
        events: if answer.events == 0 { ALL_EVENTS } else { answer.events },
        policy: answer.failure_policy.unwrap_or_default(),
        connection: connection.clone(),
        old_form: AtomicBool::new(false),
        patience,
        synchronize: Duration::from_secs(settings.registration_seconds),
    })
}

/// Calls of a plugin.
async fn serve(shim: Shim, registration: Arc<Mutex<Option<Registration>>>, method: String, message: Vec<u8>) -> Result<Vec<u8>, Status> {
    match method.as_str() {
        "RegisterPlugin" => {
            let request = nri::RegisterPluginRequest::decode(&message).map_err(Status::invalid_argument)?;
            let name = check(&request.plugin_idx, &request.plugin_name);
            let Some(waiting) = registration.lock().unwrap_or_else(PoisonError::into_inner).take() else {
                return Err(Status::failed_precondition("it is registered already"));
            };
            let answer = name.clone().map(|_| nri::Empty {}.encode()).map_err(Status::invalid_argument);
            let _ = waiting.send(name);
            answer
        }
        "UpdateContainers" => {
            let request = nri::UpdateContainersRequest::decode(&message).map_err(Status::invalid_argument)?;
            let failed = super::update::apply(&shim, request.update).await.into_iter().map(|(update, _)| update).collect();
            super::update::evict(&request.evict);
            Ok(nri::UpdateContainersResponse { failed }.encode())
        }
        _ => Err(Status::unimplemented(format!("there is no method {method}"))),
    }
}

/// `10` and `logger` as `10-logger`.
fn check(index: &str, name: &str) -> Result<String, String> {
    if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("plugin index {index:?} is not two digits"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(format!("plugin name {name:?} is not letters, digits and -_.+"));
    }
    Ok(format!("{index}-{name}"))
}

/// Takes from the front of `all` what fits into `room` bytes; room is 0 afterwards if something is left.
fn split<T: Message>(all: &mut Vec<T>, room: &mut usize) -> Vec<T> {
    let mut count = 0;
    for one in all.iter() {
        let size = one.encode().len() + 8; // tag and length
        if size > *room {
            // One that is larger than a message goes alone, and its plugin with it.
            count += usize::from(count == 0 && *room == DATA_MAX - SLACK);
            *room = 0;
            break;
        }
        *room -= size;
        count += 1;
    }
    let rest = all.split_off(count);
    std::mem::replace(all, rest)
}

/// Starts the programs of the plugin folder, `NN-NAME` each.
pub(super) fn start_installed(settings: &config::Nri) -> Vec<(UnixStream, Installed)> {
    let mut programs: Vec<PathBuf> = match std::fs::read_dir(&settings.plugin_dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| crate::runtime::program(path).is_some()).collect(),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!("NRI: read {}: {error}", settings.plugin_dir.display());
            }
            Vec::new()
        }
    };
    programs.sort();
    let mut started = Vec::new();
    for program in programs {
        match start(&program, settings) {
            Ok(one) => started.push(one),
            Err(error) => tracing::warn!("NRI plugin {}: {error:#}", program.display()),
        }
    }
    started
}

fn start(program: &Path, settings: &config::Nri) -> Result<(UnixStream, Installed)> {
    let file = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (index, name) = file.split_once('-').with_context(|| format!("{file:?} is not of the form NN-NAME"))?;
    check(index, name).map_err(anyhow::Error::msg)?;
    let configuration = configuration(&settings.plugin_config_dir, &file, name)?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().context("socketpair")?;
    ours.set_nonblocking(true).context("socketpair")?;
    let mut command = Command::new(program);
    command.env_clear().env("NRI_PLUGIN_NAME", name).env("NRI_PLUGIN_IDX", index).env("NRI_PLUGIN_SOCKET", "3");
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    crate::sys::pass_as_3(&mut command, theirs.into()).context("dup")?;
    let child = command.spawn().context("start it")?;
    Ok((UnixStream::from_std(ours).context("socketpair")?, Installed { name: file, configuration, child }))
}

/// `NN-NAME.conf`, else `NAME.conf`, else nothing.
fn configuration(folder: &Path, file: &str, name: &str) -> Result<String> {
    for path in [folder.join(format!("{file}.conf")), folder.join(format!("{name}.conf"))] {
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            text => return text.with_context(|| format!("read {}", path.display())),
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_plugins() {
        assert_eq!(check("10", "a.b+c-d_1").unwrap(), "10-a.b+c-d_1");
        for (index, name) in [("1", "a"), ("1a", "a"), ("100", "a"), ("10", ""), ("10", "a/b")] {
            assert!(check(index, name).is_err(), "{index} {name}");
        }
    }

    #[test]
    fn what_does_not_fit_goes_in_parts() {
        let pod = |size: usize| nri::PodSandbox { id: "x".repeat(size), ..nri::PodSandbox::default() };
        let mut pods = vec![pod(3 << 20), pod(3 << 20), pod(5)];
        let mut room = DATA_MAX - SLACK;
        assert_eq!(split(&mut pods, &mut room).len(), 1);
        assert_eq!((room, pods.len()), (0, 2));
        room = DATA_MAX - SLACK;
        assert_eq!(split(&mut pods, &mut room).len(), 2);
        assert!(room > 0 && pods.is_empty());
        let mut pods = vec![pod(DATA_MAX), pod(1)];
        assert_eq!(split(&mut pods, &mut room).len(), 0, "after others it has to wait");
        room = DATA_MAX - SLACK;
        assert_eq!(split(&mut pods, &mut room).len(), 1, "alone it is refused");
    }
}
