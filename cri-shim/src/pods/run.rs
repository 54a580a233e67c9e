//! RunPodSandbox. The record comes first, so that whatever happens afterwards is found and taken down again.

use std::path::PathBuf;
use std::sync::Arc;

use rrun_proto::v1;
use tonic::Status;

use super::{Pod, blocking, files, network, options};
use crate::containers::oci;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::record;
use crate::shim::{Shim, new_id, now};
use crate::step;

/// Makes a sandbox ready; answers its id. The same request again joins the running one, or finds its sandbox.
pub async fn run(shim: &Shim, request: v1::RunPodSandboxRequest) -> Result<String, Status> {
    let config = request.config.ok_or_else(|| Error::InvalidArgument("config is missing".into()))?;
    let key = name(&config)?;
    let (shim, handler) = (shim.clone(), request.runtime_handler);
    let job = {
        let shim = shim.clone();
        let ready = async |pod: &Arc<Pod>| Ok(pod.update("pod ready", |record| (record.ready, record.acknowledged) = (true, true)).await?);
        async move { run_one(&shim, config, handler, ready).await }
    };
    shim.jobs.run(format!("pod {key}"), job).await
}

/// What tells a sandbox from all others: its metadata.
pub fn name(config: &v1::PodSandboxConfig) -> Result<String> {
    let Some(data) = &config.metadata else {
        return Err(Error::InvalidArgument("config.metadata is missing".into()));
    };
    for (field, value) in [("name", &data.name), ("namespace", &data.namespace), ("uid", &data.uid)] {
        if value.is_empty() {
            return Err(Error::InvalidArgument(format!("config.metadata.{field} is empty")));
        }
    }
    Ok(format!("{}_{}_{}_{}", data.name, data.namespace, data.uid, data.attempt))
}

/// Makes a sandbox, which `finish` makes ready and acknowledges; or finds the one of that name.
pub(crate) async fn run_one(
    shim: &Shim,
    config: v1::PodSandboxConfig,
    handler: String,
    finish: impl AsyncFnOnce(&Arc<Pod>) -> Result<(), Status>,
) -> Result<String, Status> {
    if let Some(pod) = shim.pods().into_iter().find(|pod| pod.record().config.metadata == config.metadata) {
        return match pod.record().ready {
            true => Ok(pod.id.clone()),
            false => Err(Error::AlreadyExists(format!(
                "pod sandbox {} has this name and attempt and is not ready: remove it, or ask for a higher attempt",
                pod.id
            ))
            .into()),
        };
    }
    let runtime = shim.runtimes.get(&handler)?;
    let features = oci::features(&runtime.features, &shim.host);
    oci::check_pod(&config, &handler, features, &shim.host)?;
    let id = new_id()?;
    let pod = Pod::new(new_record(shim, id, config, handler)?, &shim.config);
    let (dir, run_dir) = (pod.dir.clone(), pod.run_dir.clone());
    blocking(move || {
        for path in [dir, run_dir] {
            std::fs::create_dir_all(&path).map_err(|e| anyhow::anyhow!("make {}: {e}", path.display()))?;
        }
        Ok(())
    })
    .await?;
    pod.update("pod reserved", |_| {}).await?;
    shim.add_pod(pod.clone());
    let made = match make(shim, &pod).await {
        Ok(()) => finish(&pod).await,
        Err(error) => Err(error.into()),
    };
    match made {
        Ok(()) => {
            super::status::publish(shim, &pod, v1::ContainerEventType::ContainerCreatedEvent);
            super::status::publish(shim, &pod, v1::ContainerEventType::ContainerStartedEvent);
            Ok(pod.id.clone())
        }
        Err(error) => {
            // What cannot be taken down now stays as a sandbox that is not ready, for kubelet to stop and remove.
            if let Err(second) = super::remove::remove_one(shim, &pod).await {
                tracing::warn!(pod = pod.id, "after a failed start: {second}");
                pod.update("pod kept", |record| record.acknowledged = true).await?;
            }
            Err(error)
        }
    }
}

fn new_record(shim: &Shim, id: String, config: v1::PodSandboxConfig, handler: String) -> Result<record::Pod> {
    let others: Vec<_> = shim.pods().iter().filter_map(|pod| pod.record().made_cgroup.clone()).collect();
    let made_cgroup = super::cgroup::ours(&config, others.iter().map(PathBuf::as_path))?;
    let own_network = options(&config).network() == v1::NamespaceMode::Pod;
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let selinux = match shim.host.selinux {
        true => oci::pod_labels(context.and_then(|context| context.selinux_options.as_ref()), &id)?,
        false => oci::Labels::default(),
    };
    Ok(record::Pod {
        selinux,
        netns: own_network.then(|| shim.pins.new_path()).transpose()?,
        made_cgroup,
        boot_id: shim.boot_id.clone(),
        created_at: now(),
        id,
        config,
        handler,
        ..record::Pod::default()
    })
}

async fn make(shim: &Shim, pod: &Arc<Pod>) -> Result<()> {
    let record = pod.record();
    let (written, hostname, run_dir) = (record.clone(), pod.hostname(), pod.run_dir.clone());
    blocking(move || Ok(files::make(&written.config, &hostname, &run_dir, &written.selinux.mount)?)).await?;
    step::reached("pod files");
    make_log_directory(&record.config).await?;
    let (monitor, events) = Monitor::start(&shim.monitor_program()?, &pod.run_dir).await?;
    pod.set_monitor(Some(monitor.clone()));
    step::reached("pod monitor");
    let made = monitor.make_sandbox(&sandbox(shim, pod)).await?;
    if made.init_pid != 0 {
        let init = record::Process { pid: made.init_pid as i32, start_time: made.init_start_time };
        pod.update("pod namespaces", |record| record.init = Some(init)).await?;
    }
    if record.netns.is_some() {
        pod.update("pod network begins", |record| record.network = true).await?;
        let result = network::add(shim, pod).await?;
        pod.update("pod network", |record| (record.ips, record.cni_result) = result).await?;
    }
    let _seen = crate::nri::run_pod_sandbox(shim, pod).await?;
    crate::recovery::watch(shim, pod, events);
    Ok(())
}

async fn make_log_directory(config: &v1::PodSandboxConfig) -> Result<()> {
    if config.log_directory.is_empty() {
        return Ok(());
    }
    let path = PathBuf::from(&config.log_directory);
    if !path.is_absolute() {
        return Err(Error::InvalidArgument(format!("config.log_directory {path:?}: give an absolute path")));
    }
    let made = tokio::fs::create_dir_all(&path).await;
    made.map_err(|e| Error::Internal(anyhow::anyhow!("config.log_directory: make {}: {e}", path.display())))
}

fn sandbox(shim: &Shim, pod: &Pod) -> crate::monitor::MakeSandbox {
    let record = pod.record();
    let namespaces = pod.namespaces();
    let text = |path: Option<&std::path::Path>| path.map(|path| path.display().to_string()).unwrap_or_default();
    let maps = |maps: &[v1::IdMapping]| maps.iter().map(|map| format!("{} {} {}", map.container_id, map.host_id, map.length)).collect();
    crate::monitor::MakeSandbox {
        hostname: if namespaces.uts.is_some() { pod.hostname() } else { String::new() },
        ipc_path: text(namespaces.ipc.as_deref()),
        uts_path: text(namespaces.uts.as_deref()),
        net_path: text(namespaces.network.as_deref()),
        user_path: text(namespaces.user.as_ref().map(|user| user.path.as_path())),
        pid_path: match &namespaces.pid {
            oci::PidNamespace::Path(path) => text(Some(path)),
            _ => String::new(),
        },
        uid_maps: namespaces.user.as_ref().map(|user| maps(&user.uids)).unwrap_or_default(),
        gid_maps: namespaces.user.as_ref().map(|user| maps(&user.gids)).unwrap_or_default(),
        sysctls: oci::sysctls(&record.config, &shim.config).iter().map(|(name, value)| format!("{name}={value}")).collect(),
    }
}
