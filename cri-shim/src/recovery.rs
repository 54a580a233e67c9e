//! How the daemon finds everything again at its start, and what happens when a monitor dies: the records say what there
//! was, the monitors what happened since, the kernel the rest. Pods are looked after in parallel.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rrun_proto::v1;

use crate::containers::{self, Container};
use crate::error::Result;
use crate::metrics::{LEAKED, SUCCESSORS};
use crate::monitor::{self, Event, Events, Exited, Monitor, SandboxMade, Seen};
use crate::pods::{self, Pod, blocking};
use crate::record::{self, Exit, Process};
use crate::shim::{Shim, now};

/// How long a monitor may take to finish a container that it is making.
const MAKING: Duration = Duration::from_secs(10);

/// Reads all records and takes up every pod where it is. What was never acknowledged is taken down.
pub async fn recover(shim: &Shim) -> anyhow::Result<()> {
    let pods = load(shim).await?;
    let jobs: Vec<_> = pods
        .into_iter()
        .map(|pod| {
            let shim = shim.clone();
            tokio::spawn(async move {
                if let Err(error) = recover_pod(&shim, &pod).await {
                    tracing::error!(pod = pod.id, "recover: {error}");
                }
            })
        })
        .collect();
    for job in jobs {
        job.await.context("recover a pod")?;
    }
    Ok(())
}

/// What belongs to nobody: networks, the OCI runtimes' containers, folders. Runs beside serving.
pub async fn collect_garbage(shim: &Shim) {
    let valid = shim.clone();
    let pods = move || valid.pods().iter().map(|pod| pod.id.clone()).collect::<HashSet<_>>();
    for error in shim.network.gc(pods, |path| shim.pins.is_ours(Path::new(path))).await {
        tracing::warn!("CNI garbage collection: {error}");
    }
    let known = shim.pods().iter().filter_map(|pod| pod.record().netns.clone()).collect();
    for orphan in shim.pins.orphans(&known).unwrap_or_default() {
        tracing::info!(pin = %orphan.display(), "no pod has this network namespace: unpinned");
        LEAKED.add(&["network namespace"], 1);
        if let Err(error) = shim.pins.unpin(&orphan) {
            tracing::warn!("{error:#}");
        }
    }
    for runtime in shim.runtimes.iter() {
        let Ok(folders) = std::fs::read_dir(shim.config.state.join("runtimes").join(&runtime.name)) else { continue };
        for folder in folders.flatten() {
            let id = folder.file_name().to_string_lossy().into_owned();
            let ours = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            if ours && shim.container(&id).is_err() {
                tracing::info!(container = id, "no record of it: deleted");
                LEAKED.add(&["container"], 1);
                if let Err(error) = runtime.delete(&id).await {
                    tracing::warn!(container = id, "delete: {error:#}");
                }
            }
        }
    }
}

/// Pods and containers from their records; folders without one are removed.
async fn load(shim: &Shim) -> anyhow::Result<Vec<Arc<Pod>>> {
    let shim = shim.clone();
    let loaded = blocking(move || {
        let mut pods = Vec::new();
        for id in folders(&shim.config.root.join("pods"))? {
            let dir = shim.config.pod_dir(&id);
            let Some(record) = record::load::<record::Pod>(&dir.join("pod.json"))? else {
                pods::remove_folder(&shim.config.pod_run_dir(&id))?;
                pods::remove_folder(&dir)?;
                continue;
            };
            let pod = Pod::new(record, &shim.config);
            for id in folders(&dir.join("containers"))? {
                load_container(&shim, &pod, &id)?;
            }
            shim.add_pod(pod.clone());
            pods.push(pod);
        }
        for id in folders(&shim.config.state.join("pods"))? {
            if shim.pod(&id).is_err() {
                pods::remove_folder(&shim.config.pod_run_dir(&id))?;
            }
        }
        Ok(pods)
    });
    Ok(loaded.await?)
}

fn load_container(shim: &Shim, pod: &Pod, id: &str) -> Result<()> {
    let dir = pod.dir.join("containers").join(id);
    match record::load::<record::Container>(&dir.join("container.json"))? {
        Some(record) => {
            let exit = record::load::<Exit>(&dir.join("exit.json"))?;
            let image = shim.images.by_id(&record.image_id);
            shim.add_container(Container::new(record, exit, image, &shim.config));
        }
        None => pods::remove_folder(&dir)?,
    }
    Ok(())
}

fn folders(path: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(anyhow::Error::new(error).context(format!("read {}", path.display())).into()),
    };
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

async fn recover_pod(shim: &Shim, pod: &Arc<Pod>) -> Result<()> {
    let record = pod.record();
    // Whatever becomes of the pod: a monitor that lives has to be told.
    if record.boot_id == shim.boot_id {
        let needed = record.ready || shim.containers_of(&pod.id).iter().any(|container| container.exit().is_none());
        connect(shim, pod, record.acknowledged && needed).await?;
    }
    if !record.acknowledged {
        tracing::info!(pod = pod.id, "was being made when the daemon ended: removed");
        return Ok(pods::remove(shim, &pod.id).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?);
    }
    if record.boot_id != shim.boot_id {
        if record.ready {
            pod.update("pod lost by reboot", |record| record.ready = false).await?;
        }
        for container in shim.containers_of(&pod.id) {
            lost(shim, &container, "the node was restarted").await?;
            if container.record().checkpoint.is_some() {
                containers::give_up(shim, &container).await?;
            }
        }
        return Ok(());
    }
    for container in shim.containers_of(&pod.id) {
        settle(shim, &container).await?;
    }
    if !record.ready {
        // A stop may have been under way; it may be repeated.
        pods::tear_down(shim, pod).await?;
    }
    Ok(())
}

/// Reaches the pod's monitor; where it is gone and `needed`, a successor that takes its containers over.
async fn connect(shim: &Shim, pod: &Arc<Pod>, needed: bool) -> Result<()> {
    let reached = match Monitor::connect(&pod.run_dir).await {
        // It may die while it is asked.
        Ok((monitor, events)) => what_there_is(&monitor).await.map(|there| (monitor, events, there)),
        Err(error) => Err(error),
    };
    let (monitor, events) = match reached {
        Ok((monitor, events, (sandbox, seen))) => {
            let known = seen.iter().map(|one| one.state.id.clone()).collect();
            for one in seen {
                reconnected(shim, one).await?;
            }
            if needed {
                // A successor whose daemon ended before it had handed all over.
                hand_over(shim, pod, &monitor, &sandbox, &known).await?;
            }
            (monitor, events)
        }
        Err(monitor::Error::Gone) if !needed => return Ok(()),
        Err(monitor::Error::Gone) => succeed(shim, pod).await?,
        Err(error) => return Err(error.into()),
    };
    pod.set_monitor(Some(monitor));
    watch(shim, pod, events);
    Ok(())
}

/// The monitor's containers, once none is being made any more: what is half made cannot be taken down.
async fn what_there_is(monitor: &Monitor) -> monitor::Result<(SandboxMade, Vec<Seen>)> {
    let deadline = Instant::now() + MAKING;
    loop {
        let (sandbox, seen) = monitor.state().await?;
        let making = seen.iter().any(|one| one.state.pid == 0 && one.state.exited.is_none());
        if !making || Instant::now() > deadline {
            return Ok((sandbox, seen));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A new monitor for a pod whose monitor has died.
async fn succeed(shim: &Shim, pod: &Arc<Pod>) -> Result<(Monitor, Events)> {
    tracing::warn!(pod = pod.id, "the monitor is gone: a new one takes over");
    SUCCESSORS.add(&[], 1);
    let (monitor, events) = Monitor::start(&shim.monitor_program()?, &pod.run_dir).await?;
    hand_over(shim, pod, &monitor, &SandboxMade::default(), &HashSet::new()).await?;
    Ok((monitor, events))
}

/// Has a monitor adopt what runs in the pod and what it does not know of yet.
async fn hand_over(shim: &Shim, pod: &Arc<Pod>, monitor: &Monitor, sandbox: &SandboxMade, known: &HashSet<String>) -> Result<()> {
    if let Some(init) = pod.record().init
        && sandbox.init_pid == 0
    {
        monitor.adopt_init(&SandboxMade { init_pid: init.pid as u32, init_start_time: init.start_time }).await?;
    }
    let runtime = shim.runtimes.get(&pod.record().handler)?;
    for container in shim.containers_of(&pod.id).into_iter().filter(|container| !known.contains(&container.id)) {
        let record = container.record();
        let (Some(process), None) = (record.process, container.exit()) else { continue };
        let request = containers::monitor_request(shim, &container, &runtime);
        let held = container.handles();
        use std::os::fd::AsFd;
        let (pidfd, pty) = (held.pidfd.as_ref().map(|fd| fd.as_fd()), held.pty.as_ref().map(|fd| fd.as_fd()));
        let started = record.started_at != 0;
        let adopted = monitor.adopt(&request, process.pid as u32, process.start_time, started, pidfd, pty).await?;
        container.hold(adopted.pidfd, adopted.pty);
    }
    Ok(())
}

/// What a monitor that lived on says of a container.
async fn reconnected(shim: &Shim, seen: Seen) -> Result<()> {
    let Ok(container) = shim.container(&seen.state.id) else { return Ok(()) };
    container.hold(seen.pidfd, seen.pty);
    if let Some(exited) = seen.state.exited {
        containers::exited(shim, &container, to_exit(exited)).await;
    } else if !seen.state.started {
        // StartContainer was in the middle: nobody was told that it runs.
        let process = Process { pid: seen.state.pid as i32, start_time: seen.state.start_time };
        container.update("container never started", |record| (record.process, record.started_at) = (Some(process), 0)).await?;
    }
    Ok(())
}

/// Finishes what the daemon was doing with a container when it ended.
async fn settle(shim: &Shim, container: &Arc<Container>) -> Result<()> {
    let record = container.record();
    let created = container.state() == v1::ContainerState::ContainerCreated;
    if record.checkpoint.is_some() {
        let (shim, container) = (shim.clone(), container.clone());
        tokio::spawn(async move {
            if let Err(error) = containers::give_up(&shim, &container).await {
                tracing::warn!(container = container.id, "a checkpoint that was given up: {error}");
            }
        });
    }
    let runtime = shim.runtimes.get(&shim.pod(&container.pod)?.record().handler)?;
    if !record.acknowledged {
        tracing::info!(container = container.id, "was being made when the daemon ended: removed");
        containers::remove(shim, &container.id).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    } else if container.exit().is_some() {
        containers::clean_up(shim, container).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    } else if created && (record.process.is_some() || containers::knows(shim, &runtime.name, &container.id)) {
        let message = "the daemon ended while it was being started";
        let end = Exit { code: 128, reason: "StartError".into(), message: message.into(), finished_at: now(), oom: false };
        let noted = end.clone();
        container.update("container start given up", |record| record.end = Some(noted)).await?;
        containers::exited(shim, container, end).await;
    }
    Ok(())
}

/// A container whose end nobody saw.
async fn lost(shim: &Shim, container: &Arc<Container>, why: &str) -> Result<()> {
    if container.exit().is_none() {
        let end = Exit { code: 255, reason: "Unknown".into(), message: why.into(), finished_at: now(), oom: false };
        let noted = end.clone();
        container.update("container lost", |record| record.end = Some(noted)).await?;
        containers::exited(shim, container, end).await;
    }
    Ok(())
}

/// Listens to a pod's monitor for as long as the pod has one.
pub fn watch(shim: &Shim, pod: &Arc<Pod>, mut events: Events) {
    let (shim, pod) = (shim.clone(), pod.clone());
    tokio::spawn(async move {
        loop {
            match events.recv().await {
                Some(Event::Exited(exited)) => {
                    if let Ok(container) = shim.container(&exited.id) {
                        containers::exited(&shim, &container, to_exit(exited)).await;
                    }
                }
                Some(Event::LogErrors(errors)) if errors.text.is_empty() => {
                    tracing::warn!(container = errors.id, dropped = errors.dropped, "the log is written again");
                }
                Some(Event::LogErrors(errors)) => {
                    tracing::error!(container = errors.id, dropped = errors.dropped, "the log cannot be written: {}", errors.text);
                }
                None => match replace(&shim, &pod).await {
                    Some(new) => events = new,
                    None => return,
                },
            }
        }
    });
}

/// The events of a successor, where the pod still needs a monitor.
async fn replace(shim: &Shim, pod: &Arc<Pod>) -> Option<Events> {
    pod.monitor().ok()?; // taken away: the end was wanted
    match succeed(shim, pod).await {
        Ok((monitor, events)) => {
            pod.set_monitor(Some(monitor));
            Some(events)
        }
        Err(error) => {
            tracing::error!(pod = pod.id, "no successor for the monitor: {error}; it is tried again at the daemon's next start");
            None
        }
    }
}

fn to_exit(exited: Exited) -> Exit {
    let unknown = exited.unknown;
    Exit {
        code: exited.code as i32,
        oom: exited.oom,
        finished_at: exited.finished_at as i64,
        reason: if unknown { "Unknown".into() } else { String::new() },
        message: if unknown { "its monitor died, and nobody saw how it ended".into() } else { String::new() },
    }
}
