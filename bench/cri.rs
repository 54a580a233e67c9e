//! CRI servers side by side: pods from scratch and exec probes, taking turns on the same images and plugins; time from
//! outside, CPU time as the kernel accounts it to the server with all that it starts. `integration/bench-cri.sh` starts the servers.
//!
//! cri-bench compare TIMES IMAGE NAME=SOCKET=HANDLER...   medians as a Markdown table; the first server is ours
//! cri-bench many FROM TO IMAGE SOCKET                    makes pods of those numbers, of the host's network, with a container each
//! cri-bench list SOCKET                                  how long lists take

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use rrun_proto::v1;
use rrun_proto::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Exec probes per pod.
const EXECS: u32 = 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["compare", times, image, ref servers @ ..] => compare(times.parse()?, image, servers).await,
        ["many", from, to, image, socket] => many(from.parse()?..to.parse()?, image, socket).await,
        ["list", socket] => list(socket).await,
        _ => Err("usage: compare TIMES IMAGE NAME=SOCKET=HANDLER... | many FROM TO IMAGE SOCKET | list SOCKET".into()),
    }
}

/// A server under test. Its cgroup and that of its pods are below `bench-FOLDER`, in every hierarchy; FOLDER is its socket's.
struct Server {
    name: String,
    cgroup: String,
    handler: String,
    client: RuntimeServiceClient<Channel>,
    seen: BTreeMap<&'static str, Vec<f64>>,
}

async fn compare(times: u32, image: &str, servers: &[&str]) -> Result<()> {
    let mut all = Vec::new();
    for server in servers {
        let mut parts = server.split('=');
        let (Some(name), Some(socket), Some(handler)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(format!("{server}: NAME=SOCKET=HANDLER").into());
        };
        let (name, handler, client) = (name.to_owned(), handler.to_owned(), connect(socket)?);
        let folder = Path::new(socket).parent().and_then(Path::file_name).ok_or("SOCKET: no folder")?;
        let cgroup = format!("bench-{}", folder.display());
        all.push(Server { name, cgroup, handler, client, seen: BTreeMap::new() });
    }
    for round in 0..=times {
        let first = round as usize % all.len();
        let count = all.len();
        for turn in 0..count {
            all[(first + turn) % count].live(round, image).await?;
        }
        if round == 0 {
            all.iter_mut().for_each(|server| server.seen.clear()); // the first one warms caches
        }
    }
    print(&all);
    Ok(())
}

impl Server {
    /// A pod's whole life.
    async fn live(&mut self, round: u32, image: &str) -> Result<()> {
        let pod = pod_config(&format!("bench-{round}"), &format!("/{}/pods", self.cgroup), false);
        let mut client = self.client.clone();
        let (start, cpu) = (Instant::now(), self.cpu()?);
        let request = v1::RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: self.handler.clone() };
        let id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        self.note("RunPodSandbox, ms", start.elapsed());
        let container = make_container(&mut client, &id, &pod, image).await?;
        self.note("pod from scratch, ms", start.elapsed());
        let made = self.cpu()?;
        self.seen.entry("pod from scratch, CPU ms").or_default().push(made - cpu);
        let start = Instant::now();
        for _ in 0..EXECS {
            let cmd = vec!["/bin/true".to_owned()];
            let request = v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 10 };
            let exit = client.exec_sync(request).await?.into_inner().exit_code;
            if exit != 0 {
                return Err(format!("{}: an exec of /bin/true exits {exit}", self.name).into());
            }
        }
        self.note("exec probe, ms", start.elapsed() / EXECS);
        let probed = self.cpu()?;
        self.seen.entry("exec probe, CPU ms").or_default().push((probed - made) / f64::from(EXECS));
        let start = Instant::now();
        client.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        client.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        self.note("stop and remove the pod, ms", start.elapsed());
        let removed = self.cpu()?;
        self.seen.entry("stop and remove the pod, CPU ms").or_default().push(removed - probed);
        Ok(())
    }

    fn note(&mut self, what: &'static str, time: Duration) {
        self.seen.entry(what).or_default().push(time.as_secs_f64() * 1e3);
    }

    /// CPU time of the server, all it started, and its pods, in milliseconds.
    fn cpu(&self) -> Result<f64> {
        if let Ok(text) = std::fs::read_to_string(format!("/sys/fs/cgroup/cpuacct/{}/cpuacct.usage", self.cgroup)) {
            return Ok(text.trim().parse::<f64>()? / 1e6);
        }
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{}/cpu.stat", self.cgroup))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).ok_or("cpu.stat without usage_usec")?;
        Ok(usage.parse::<f64>()? / 1e3)
    }
}

fn print(servers: &[Server]) {
    let median = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    let peers: String = names[1..].iter().map(|name| format!(" to {name} |")).collect();
    println!("| median | {} |{peers}", names.join(" | "));
    println!("|---|{}", "--:|".repeat(2 * names.len() - 1));
    for what in servers[0].seen.keys() {
        let values: Vec<f64> = servers.iter().map(|server| median(&server.seen[what])).collect();
        let cells: Vec<String> = values.iter().map(|value| format!("{value:.1}")).collect();
        let ratios: String = values[1..].iter().map(|value| format!(" {:.2} |", values[0] / value)).collect();
        println!("| {what} | {} |{ratios}", cells.join(" | "));
    }
}

async fn many(numbers: std::ops::Range<u32>, image: &str, socket: &str) -> Result<()> {
    let mut client = connect(socket)?;
    for number in numbers {
        let pod = pod_config(&format!("many-{number}"), "/bench-many", true);
        let request = v1::RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
        let id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        make_container(&mut client, &id, &pod, image).await?;
    }
    Ok(())
}

async fn list(socket: &str) -> Result<()> {
    let mut client = connect(socket)?;
    let (mut pods, mut containers) = (Vec::new(), Vec::new());
    let mut counts = (0, 0);
    for _ in 0..21 {
        let start = Instant::now();
        counts.0 = client.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner().items.len();
        pods.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        counts.1 = client.list_containers(v1::ListContainersRequest::default()).await?.into_inner().containers.len();
        containers.push(start.elapsed().as_secs_f64() * 1e3);
    }
    pods.sort_by(f64::total_cmp);
    containers.sort_by(f64::total_cmp);
    println!("ListPodSandbox of {}: {:.1} ms; ListContainers of {}: {:.1} ms (medians)", counts.0, pods[10], counts.1, containers[10]);
    Ok(())
}

fn connect(socket: &str) -> Result<RuntimeServiceClient<Channel>> {
    let channel = Endpoint::from_shared(format!("unix://{socket}"))?.connect_lazy();
    Ok(RuntimeServiceClient::new(channel).max_decoding_message_size(16 << 20))
}

fn pod_config(name: &str, parent: &str, host: bool) -> v1::PodSandboxConfig {
    let network = if host { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod };
    let options = v1::NamespaceOption { network: network.into(), pid: v1::NamespaceMode::Container.into(), ..Default::default() };
    let context = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata { name: name.into(), uid: name.into(), namespace: "bench".into(), attempt: 0 }),
        hostname: if host { String::new() } else { "bench".into() },
        linux: Some(v1::LinuxPodSandboxConfig { cgroup_parent: parent.into(), security_context: Some(context), ..Default::default() }),
        ..Default::default()
    }
}

async fn make_container(
    client: &mut RuntimeServiceClient<Channel>,
    pod: &str,
    config: &v1::PodSandboxConfig,
    image: &str,
) -> Result<String> {
    let options = config.linux.as_ref().and_then(|linux| linux.security_context.clone()).and_then(|c| c.namespace_options);
    let context = v1::LinuxContainerSecurityContext { namespace_options: options, ..Default::default() };
    let container = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image.into(), ..Default::default() }),
        command: vec!["sleep".into(), "1000000".into()],
        linux: Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
        ..Default::default()
    };
    let (pod_sandbox_id, sandbox_config) = (pod.to_owned(), Some(config.clone()));
    let request = v1::CreateContainerRequest { pod_sandbox_id, config: Some(container), sandbox_config };
    let container_id = client.create_container(request).await?.into_inner().container_id;
    client.start_container(v1::StartContainerRequest { container_id: container_id.clone() }).await?;
    Ok(container_id)
}
