//! CRI servers side by side: pods from scratch and exec probes, taking turns on the same images and plugins; time from
//! outside, CPU time as the kernel accounts it to the server with all that it starts. `integration/bench-cri.sh` starts the servers.
//!
//! cri-bench compare TIMES IMAGE NAME=SOCKET=HANDLER...   medians as a Markdown table; the first server is ours
//! cri-bench memory IMAGE NAME=SOCKET=HANDLER...          what stands by a pod, in private memory, as a Markdown table
//! cri-bench many FROM TO IMAGE SOCKET                    makes pods of those numbers, of the host's network, with a container each
//! cri-bench execs TIMES SOCKET                            that many exec probes in the first container that is listed
//! cri-bench serves SOCKET                                waits until a server that is being started lists its pods
//! cri-bench list SOCKET                                  how long lists take: two lines of NAME MILLISECONDS

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rrun_proto::v1;
use rrun_proto::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Exec probes per pod.
const EXECS: u32 = 10;

/// What is compared, in the table's order, and the bar: the most that ours may be of a peer's.
const ROWS: [(&str, Option<f64>); 7] = [
    (SCRATCH, Some(0.5)),
    (SCRATCH_CPU, Some(1.0 / 3.0)),
    (EXEC, None),
    (EXEC_CPU, Some(0.2)),
    (SANDBOX, None),
    (REMOVE, None),
    (REMOVE_CPU, None),
];
const SANDBOX: &str = "RunPodSandbox, ms";
const SCRATCH: &str = "pod from scratch, ms";
const SCRATCH_CPU: &str = "pod from scratch, CPU ms";
const EXEC: &str = "exec probe, ms";
const EXEC_CPU: &str = "exec probe, CPU ms";
const REMOVE: &str = "stop and remove the pod, ms";
const REMOVE_CPU: &str = "stop and remove the pod, CPU ms";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["compare", times, image, ref servers @ ..] => compare(times.parse()?, image, servers).await,
        ["memory", image, ref servers @ ..] => memory(image, servers).await,
        ["many", from, to, image, socket] => many(from.parse()?..to.parse()?, image, socket).await,
        ["execs", times, socket] => execs(times.parse()?, socket).await,
        ["serves", socket] => serves(socket).await,
        ["list", socket] => list(socket).await,
        _ => Err("usage: compare TIMES IMAGE NAME=SOCKET=HANDLER... | memory IMAGE NAME=SOCKET=HANDLER... | many FROM TO IMAGE SOCKET | execs TIMES SOCKET | serves SOCKET | list SOCKET".into()),
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

/// The servers of the command line.
fn servers(words: &[&str]) -> Result<Vec<Server>> {
    words
        .iter()
        .map(|word| {
            let parts: Vec<&str> = word.split('=').collect();
            let [name, socket, handler] = parts[..] else { return Err(format!("{word}: NAME=SOCKET=HANDLER").into()) };
            let folder = Path::new(socket).parent().and_then(Path::file_name).ok_or("SOCKET: no folder")?;
            let cgroup = format!("bench-{}", folder.display());
            let (name, handler, client) = (name.to_owned(), handler.to_owned(), connect(socket)?);
            Ok(Server { name, cgroup, handler, client, seen: BTreeMap::new() })
        })
        .collect()
}

async fn compare(times: u32, image: &str, words: &[&str]) -> Result<()> {
    let mut all = servers(words)?;
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
        let pod = pod_config(&format!("bench-{}-{round}", self.handler), &format!("/{}/pods", self.cgroup), false);
        let mut client = self.client.clone();
        self.settle().await?;
        let (start, cpu) = (Instant::now(), self.cpu()?);
        let request = v1::RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: self.handler.clone() };
        let id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        self.note(SANDBOX, start.elapsed());
        let container = make_container(&mut client, &id, &pod, image, 0).await?;
        self.note(SCRATCH, start.elapsed());
        let made = self.cpu()?;
        self.seen.entry(SCRATCH_CPU).or_default().push(made - cpu);
        let start = Instant::now();
        for _ in 0..EXECS {
            let cmd = vec!["/bin/true".to_owned()];
            let request = v1::ExecSyncRequest { container_id: container.clone(), cmd, timeout: 10 };
            let exit = client.exec_sync(request).await?.into_inner().exit_code;
            if exit != 0 {
                return Err(format!("{}: an exec of /bin/true exits {exit}", self.name).into());
            }
        }
        self.note(EXEC, start.elapsed() / EXECS);
        let probed = self.cpu()?;
        self.seen.entry(EXEC_CPU).or_default().push((probed - made) / f64::from(EXECS));
        let start = Instant::now();
        client.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        client.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        self.note(REMOVE, start.elapsed());
        self.settle().await?;
        let removed = self.cpu()?;
        self.seen.entry(REMOVE_CPU).or_default().push(removed - probed);
        Ok(())
    }

    /// A pod of the host's network with so many containers: its id, and theirs.
    async fn pod_of(&self, name: &str, containers: usize, image: &str) -> Result<(String, Vec<String>)> {
        let pod = pod_config(&format!("{name}-{}", self.handler), &format!("/{}/pods", self.cgroup), true);
        let mut client = self.client.clone();
        let request = v1::RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: self.handler.clone() };
        let id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let mut ids = Vec::new();
        for number in 0..containers {
            ids.push(make_container(&mut client, &id, &pod, image, number as u32).await?);
        }
        Ok((id, ids))
    }

    fn note(&mut self, what: &'static str, time: Duration) {
        self.seen.entry(what).or_default().push(time.as_secs_f64() * 1e3);
    }

    /// Waits until the server is at rest, so that what it does after its answers is not counted as the next pod's.
    async fn settle(&self) -> Result<()> {
        let mut before = self.cpu()?;
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            let now = self.cpu()?;
            if now - before < 0.5 {
                break;
            }
            before = now;
        }
        Ok(())
    }

    /// CPU time of the server, all it started, and its pods, in milliseconds.
    fn cpu(&self) -> Result<f64> {
        if let Ok(text) = fs::read_to_string(format!("/sys/fs/cgroup/cpuacct/{}/cpuacct.usage", self.cgroup)) {
            return Ok(text.trim().parse::<f64>()? / 1e6);
        }
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{}/cpu.stat", self.cgroup))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).ok_or("cpu.stat without usage_usec")?;
        Ok(usage.parse::<f64>()? / 1e3)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(servers: &[Server]) {
    let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    let peers: String = names[1..].iter().map(|name| format!(" ratio to {name} |")).collect();
    println!("| median | {} |{peers} bar | met |", names.join(" | "));
    println!("|---|{}", "--:|".repeat(2 * names.len() + 1));
    for (what, bar) in ROWS {
        let values: Vec<f64> = servers.iter().map(|server| median(&server.seen[what])).collect();
        let cells: Vec<String> = values.iter().map(|value| format!("{value:.1}")).collect();
        let ratios: Vec<f64> = values[1..].iter().map(|value| values[0] / value).collect();
        let cells_of_ratios: String = ratios.iter().map(|ratio| format!(" {ratio:.2} |")).collect();
        let bar = bar.map_or("| |".to_owned(), |bar| {
            let met = if ratios.iter().all(|ratio| *ratio <= bar) { "yes" } else { "no" };
            format!("{bar:.2} | {met} |")
        });
        println!("| {what} | {} |{cells_of_ratios} {bar}", cells.join(" | "));
    }
}

/// Private_Dirty (`/proc/PID/smaps_rollup`) of what a server keeps beside a pod's containers, in three situations.
async fn memory(image: &str, words: &[&str]) -> Result<()> {
    let all = servers(words)?;
    let mut rows =
        ["a pod with one container (of two)", "a pod with five containers", "the same after 100 execs"].map(|what| (what, vec![]));
    for server in &all {
        let mut client = server.client.clone();
        let before = beside_pods();
        let mut made = Vec::new();
        for number in 0..2 {
            made.push(server.pod_of(&format!("memory-{number}"), 1, image).await?.0);
        }
        rows[0].1.push(private(&before)? / 2.0);
        let before = beside_pods();
        let (five, containers) = server.pod_of("memory-five", 5, image).await?;
        rows[1].1.push(private(&before)?);
        for number in 0..100 {
            let cmd = vec!["/bin/true".to_owned()];
            let container_id = containers[number % containers.len()].clone();
            client.exec_sync(v1::ExecSyncRequest { container_id, cmd, timeout: 10 }).await?;
        }
        rows[2].1.push(private(&before)?);
        made.push(five);
        for id in made {
            client.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
            client.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        }
    }
    let names: Vec<&str> = all.iter().map(|server| server.name.as_str()).collect();
    println!("| Private_Dirty, KiB | {} | bar | met |", names.join(" | "));
    println!("|---|{}", "--:|".repeat(names.len() + 2));
    for ((what, values), bar) in rows.iter().zip([307.0, 1024.0, 1024.0]) {
        let cells: Vec<String> = values.iter().map(|value| format!("{value:.0}")).collect();
        let met = if values[0] <= bar { "yes" } else { "no" };
        println!("| {what} | {} | {bar:.0} | {met} |", cells.join(" | "));
    }
    Ok(())
}

/// The processes that stand beside containers: monitors, shims, pauses.
fn beside_pods() -> BTreeSet<u32> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|pid: &u32| {
            let program = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let program = String::from_utf8_lossy(program.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
            ["rrun-monitor", "containerd-shim-runc-v2", "pause"].iter().any(|name| program.rsplit('/').next() == Some(name))
        })
        .collect()
}

/// Their private memory in KiB, without that of those in `before`.
fn private(before: &BTreeSet<u32>) -> Result<f64> {
    let new: Vec<u32> = beside_pods().difference(before).copied().collect();
    if new.is_empty() {
        return Err("nothing stands beside the pod: is it a monitor of another name?".into());
    }
    let mut sum = 0.0;
    for pid in new {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path)?;
        let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).ok_or("smaps_rollup: no Private_Dirty")?;
        sum += line.trim().trim_end_matches(" kB").parse::<f64>()?;
    }
    Ok(sum)
}

async fn many(numbers: std::ops::Range<u32>, image: &str, socket: &str) -> Result<()> {
    let mut client = connect(socket)?;
    for number in numbers {
        let pod = pod_config(&format!("many-{number}"), "/bench-many", true);
        let request = v1::RunPodSandboxRequest { config: Some(pod.clone()), runtime_handler: String::new() };
        let id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        make_container(&mut client, &id, &pod, image, 0).await?;
    }
    Ok(())
}

async fn execs(times: u32, socket: &str) -> Result<()> {
    let mut client = connect(socket)?;
    let listed = client.list_containers(v1::ListContainersRequest::default()).await?.into_inner().containers;
    let container_id = listed.into_iter().next().ok_or("no container to execute in")?.id;
    for _ in 0..times {
        let request = v1::ExecSyncRequest { container_id: container_id.clone(), cmd: vec!["/bin/true".to_owned()], timeout: 10 };
        client.exec_sync(request).await?;
    }
    Ok(())
}

async fn serves(socket: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        match connect(socket)?.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await {
            Err(status) if start.elapsed() > Duration::from_secs(60) => return Err(status.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            Ok(_) => return Ok(()),
        }
    }
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
    println!("ListPodSandbox-of-{} {:.1}", counts.0, median(&pods));
    println!("ListContainers-of-{} {:.1}", counts.1, median(&containers));
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
    attempt: u32,
) -> Result<String> {
    let options = config.linux.as_ref().and_then(|linux| linux.security_context.clone()).and_then(|c| c.namespace_options);
    let context = v1::LinuxContainerSecurityContext { namespace_options: options, ..Default::default() };
    let container = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "main".into(), attempt }),
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
