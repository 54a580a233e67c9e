//! ContainerStats, PodSandboxStats and the metrics of CRI, read from the kernel's files when somebody asks.
//!
//! A reading is good for a second, so that calls that come together share it; the CPU rate is that between two readings,
//! the first of which is the container's start. Nothing runs between calls. All functions block: the RPCs call them by
//! `spawn_blocking`.

mod cgroup;
mod disk;
mod metrics;
mod network;
mod processes;
mod read;
mod rpc;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rrun_proto::v1;

use cgroup::{Cgroup, Pressure, Stall, Usage};
use disk::Disk;
pub use metrics::descriptors;
use read::Reader;
pub use rpc::{container, containers, metrics, pod, pods, writable_layers};

/// A reading is not repeated for so long.
const FRESH: Duration = Duration::from_secs(1);

/// A container as the statistics need it.
#[derive(Debug, Clone)]
pub struct Container<'a> {
    /// Its id.
    pub id: &'a str,
    /// What comes back in the answer.
    pub attributes: v1::ContainerAttributes,
    /// Its first process; `None` unless it runs.
    pub pid: Option<i32>,
    /// When it began to run, in nanoseconds since the epoch.
    pub started_at: i64,
    /// Its image's name.
    pub image: &'a str,
    /// Its writable layer.
    pub upper: &'a Path,
    /// Its limits, as last set.
    pub resources: Option<&'a v1::LinuxContainerResources>,
}

/// A pod as the statistics need it.
#[derive(Debug, Clone)]
pub struct Pod<'a> {
    /// Its id.
    pub id: &'a str,
    /// What comes back in the answer.
    pub attributes: v1::PodSandboxAttributes,
    /// `linux.cgroup_parent` of its configuration.
    pub cgroup_parent: &'a str,
    /// Its network namespace; `None`: the host's, of which nothing is shown.
    pub netns: Option<&'a Path>,
    /// A process in its network namespace, where one is known (its init, its monitor's child).
    pub pid: Option<i32>,
    /// When it was made, in nanoseconds since the epoch.
    pub created_at: i64,
}

/// The readings, by container and pod id. One for the daemon.
#[derive(Debug)]
pub struct Stats {
    /// What ImageFsInfo calls the file system of writable layers.
    mountpoint: String,
    readings: Mutex<HashMap<String, Arc<Mutex<Reading>>>>,
}

/// What was read last of a container or pod.
#[derive(Debug, Default)]
struct Reading {
    pid: i32,
    cgroup: Option<Cgroup>,
    usage: Usage,
    read: Option<Instant>,
    /// The last reading has what only metrics need.
    complete: bool,
    rate: Option<u64>,
    disk: Arc<Disk>,
    processes: processes::Processes,
}

impl Stats {
    /// No readings yet. `mountpoint` is what ImageFsInfo calls the file system of writable layers.
    pub fn new(mountpoint: &Path) -> Stats {
        Stats { mountpoint: mountpoint.to_string_lossy().into_owned(), readings: Mutex::default() }
    }

    /// The statistics of a container; of one that does not run only who it is and its writable layer.
    pub fn container(&self, container: &Container<'_>) -> v1::ContainerStats {
        let content = self.disk(container.id).content(container.upper);
        let reading = self.reading(container.id);
        let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stats = v1::ContainerStats {
            attributes: Some(container.attributes.clone()),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp: content.at,
                fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.mountpoint.clone() }),
                used_bytes: value(content.bytes),
                inodes_used: value(content.inodes),
            }),
            ..Default::default()
        };
        if reading.refresh_container(container, false) {
            let usage = &reading.usage;
            stats.cpu = Some(cpu(usage, reading.rate));
            stats.memory = Some(memory(usage));
            stats.swap = Some(swap(usage));
            stats.io = Some(io(usage));
        }
        stats
    }

    /// The statistics of a pod with those of its containers (the ones that run). Without a cgroup of its own a pod uses
    /// what its containers use.
    pub fn pod(&self, pod: &Pod<'_>, containers: &[Container<'_>]) -> v1::PodSandboxStats {
        let running: Vec<_> = containers.iter().filter(|container| container.pid.is_some()).collect();
        let all: Vec<v1::ContainerStats> = running.iter().map(|container| self.container(container)).collect();
        let mut linux = v1::LinuxPodSandboxStats { network: self.network(pod, containers), containers: all, ..Default::default() };
        let reading = self.reading(pod.id);
        let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
        if reading.refresh_pod(pod, false) {
            let usage = &reading.usage;
            linux.cpu = Some(cpu(usage, reading.rate));
            linux.memory = Some(memory(usage));
            linux.io = Some(io(usage));
            linux.process = Some(v1::ProcessUsage { timestamp: usage.at, process_count: value(usage.tasks) });
        } else {
            linux.cpu = Some(sum_cpu(&linux.containers));
            linux.memory = Some(sum_memory(&linux.containers));
            let tasks = running.iter().map(|container| self.tasks(container.id)).sum();
            linux.process = Some(v1::ProcessUsage { timestamp: now(), process_count: value(tasks) });
        }
        v1::PodSandboxStats { attributes: Some(pod.attributes.clone()), linux: Some(linux) }
    }

    /// What the writable layers of these containers hold together, each as of its last walk.
    pub fn writable_layers(&self, containers: &[Container<'_>]) -> v1::FilesystemUsage {
        let (mut bytes, mut inodes) = (0, 0);
        for container in containers {
            let content = self.disk(container.id).content(container.upper);
            (bytes, inodes) = (bytes + content.bytes, inodes + content.inodes);
        }
        v1::FilesystemUsage {
            timestamp: now(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.mountpoint.clone() }),
            used_bytes: value(bytes),
            inodes_used: value(inodes),
        }
    }

    /// Forgets everything that is not among `ids`. Whoever lists everything calls it with everything.
    pub fn keep(&self, ids: &[&str]) {
        let ids: std::collections::HashSet<&str> = ids.iter().copied().collect();
        self.readings.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| ids.contains(id.as_str()));
    }

    fn reading(&self, id: &str) -> Arc<Mutex<Reading>> {
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        match readings.get(id) {
            Some(reading) => reading.clone(),
            None => readings.entry(id.to_owned()).or_default().clone(),
        }
    }

    /// To be asked without the reading's lock: a walk takes its time.
    fn disk(&self, id: &str) -> Arc<Disk> {
        self.reading(id).lock().unwrap_or_else(PoisonError::into_inner).disk.clone()
    }

    fn tasks(&self, id: &str) -> u64 {
        self.reading(id).lock().unwrap_or_else(PoisonError::into_inner).usage.tasks
    }

    fn network(&self, pod: &Pod<'_>, containers: &[Container<'_>]) -> Option<v1::NetworkUsage> {
        let all = network::interfaces(process_of(pod, containers), pod.netns?);
        let one = |interface: &network::Interface| v1::NetworkInterfaceUsage {
            name: interface.name.clone(),
            rx_bytes: value(interface.received.bytes),
            rx_errors: value(interface.received.errors),
            tx_bytes: value(interface.sent.bytes),
            tx_errors: value(interface.sent.errors),
        };
        let first = network::default(&all);
        let others = all.iter().filter(|interface| Some(*interface) != first).map(one).collect();
        Some(v1::NetworkUsage { timestamp: now(), default_interface: first.map(one), interfaces: others })
    }
}

/// A process in the pod's network namespace.
fn process_of(pod: &Pod<'_>, containers: &[Container<'_>]) -> Option<i32> {
    pod.pid.or_else(|| containers.iter().find_map(|container| container.pid))
}

impl Reading {
    /// Reads a container's cgroup unless that was done just now. False: it does not run.
    fn refresh_container(&mut self, container: &Container<'_>, complete: bool) -> bool {
        let Some(pid) = container.pid else { return false };
        if self.pid != pid || self.cgroup.is_none() {
            self.pid = pid;
            self.cgroup = Cgroup::of_process(pid);
        }
        self.refresh(container.started_at, complete)
    }

    /// Reads a pod's cgroup unless that was done just now. False: it has none.
    fn refresh_pod(&mut self, pod: &Pod<'_>, complete: bool) -> bool {
        if self.cgroup.is_none() {
            self.cgroup = Cgroup::of_pod(pod.cgroup_parent);
        }
        self.refresh(pod.created_at, complete)
    }

    fn refresh(&mut self, began: i64, complete: bool) -> bool {
        let Some(cgroup) = &self.cgroup else { return false };
        let fresh = self.read.is_some_and(|read| read.elapsed() < FRESH);
        if fresh && (self.complete || !complete) {
            return true;
        }
        thread_local! {
            static READER: std::cell::RefCell<Reader> = std::cell::RefCell::default();
        }
        let Some(usage) = READER.with_borrow_mut(|reader| cgroup.read(reader, complete)) else {
            (self.cgroup, self.read) = (None, None);
            return false;
        };
        // A reading for the sake of its completeness comes too soon after the last one for a rate.
        if !fresh {
            let (at, used) = if self.read.is_some() { (self.usage.at, self.usage.cpu.usage) } else { (began, 0) };
            self.rate = rate(usage.at - at, usage.cpu.usage.saturating_sub(used)).or(self.rate);
            self.read = Some(Instant::now());
        }
        self.usage = usage;
        self.complete = complete;
        true
    }
}

/// Nanoseconds of CPU per second.
fn rate(time: i64, used: u64) -> Option<u64> {
    let time = u64::try_from(time).ok().filter(|time| *time > 0)?;
    u64::try_from(u128::from(used) * 1_000_000_000 / u128::from(time)).ok()
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as i64)
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn psi(pressure: Option<Pressure>) -> Option<v1::PsiStats> {
    let data = |stall: Stall| {
        let [avg10, avg60, avg300] = stall.averages;
        Some(v1::PsiData { total: stall.total, avg10, avg60, avg300 })
    };
    pressure.map(|pressure| v1::PsiStats { full: data(pressure.full), some: data(pressure.some) })
}

fn cpu(usage: &Usage, rate: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: usage.at,
        usage_core_nano_seconds: value(usage.cpu.usage),
        usage_nano_cores: rate.and_then(value),
        psi: psi(usage.pressure[0]),
    }
}

fn memory(usage: &Usage) -> v1::MemoryUsage {
    let memory = &usage.memory;
    v1::MemoryUsage {
        timestamp: usage.at,
        working_set_bytes: value(memory.working_set()),
        // Only a limit makes this a figure.
        available_bytes: memory.limit.and_then(|limit| value(limit.saturating_sub(memory.working_set()))),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.anonymous),
        page_faults: value(memory.faults),
        major_page_faults: value(memory.major_faults),
        psi: psi(usage.pressure[1]),
    }
}

fn swap(usage: &Usage) -> v1::SwapUsage {
    let memory = &usage.memory;
    v1::SwapUsage {
        timestamp: usage.at,
        swap_available_bytes: memory.swap_limit.and_then(|limit| value(limit.saturating_sub(memory.swap))),
        swap_usage_bytes: value(memory.swap),
    }
}

fn io(usage: &Usage) -> v1::IoUsage {
    v1::IoUsage { timestamp: usage.at, psi: psi(usage.pressure[2]) }
}

/// Adds up one figure of several.
fn sum<T>(all: &[T], figure: impl Fn(&T) -> Option<v1::UInt64Value>) -> Option<v1::UInt64Value> {
    value(all.iter().filter_map(figure).map(|value| value.value).sum())
}

fn sum_cpu(containers: &[v1::ContainerStats]) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: now(),
        usage_core_nano_seconds: sum(containers, |c| c.cpu.as_ref()?.usage_core_nano_seconds),
        usage_nano_cores: sum(containers, |c| c.cpu.as_ref()?.usage_nano_cores),
        psi: None,
    }
}

fn sum_memory(containers: &[v1::ContainerStats]) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp: now(),
        working_set_bytes: sum(containers, |c| c.memory.as_ref()?.working_set_bytes),
        available_bytes: None,
        usage_bytes: sum(containers, |c| c.memory.as_ref()?.usage_bytes),
        rss_bytes: sum(containers, |c| c.memory.as_ref()?.rss_bytes),
        page_faults: sum(containers, |c| c.memory.as_ref()?.page_faults),
        major_page_faults: sum(containers, |c| c.memory.as_ref()?.major_page_faults),
        psi: None,
    }
}
