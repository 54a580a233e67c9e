//! ListMetricDescriptors and ListPodSandboxMetrics: the names that dashboards know from cAdvisor.
//!
//! CRI carries whole numbers, so that times are whole seconds. Every value has the labels of its descriptor, in order.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rrun_proto::v1;

use super::cgroup::{Cgroup, Io, Usage};
use super::processes::Counts;
use super::read::Reader;
use super::{Container, Pod, Stats, network};

/// Labels of every metric, in the alphabet's order.
const BASE: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Name, further labels, help. A name that ends in `_total` is a counter, any other a gauge.
#[rustfmt::skip]
const METRICS: &[(&str, &[&str], &str)] = &[
    ("container_blkio_device_usage_total", &["device", "major", "minor", "operation"], "Bytes moved to and from a block device."),
    ("container_cpu_cfs_periods_total", &[], "CPU quota periods that have passed."),
    ("container_cpu_cfs_throttled_periods_total", &[], "CPU quota periods in which the container was held back."),
    ("container_cpu_cfs_throttled_seconds_total", &[], "Time for which the container was held back by its CPU quota."),
    ("container_cpu_system_seconds_total", &[], "CPU time spent in the kernel."),
    ("container_cpu_usage_seconds_total", &["cpu"], "CPU time used."),
    ("container_cpu_user_seconds_total", &[], "CPU time spent outside the kernel."),
    ("container_file_descriptors", &[], "Open file descriptors."),
    ("container_fs_inodes_free", &[], "Free inodes of the file system that holds the writable layer."),
    ("container_fs_inodes_total", &[], "Inodes of the file system that holds the writable layer."),
    ("container_fs_limit_bytes", &[], "Size of the file system that holds the writable layer."),
    ("container_fs_reads_bytes_total", &["device"], "Bytes read from a block device."),
    ("container_fs_reads_total", &["device"], "Reads from a block device."),
    ("container_fs_usage_bytes", &[], "Bytes that the writable layer holds."),
    ("container_fs_writes_bytes_total", &["device"], "Bytes written to a block device."),
    ("container_fs_writes_total", &["device"], "Writes to a block device."),
    ("container_hugetlb_max_usage_bytes", &["pagesize"], "Most huge pages in use at a time, in bytes."),
    ("container_hugetlb_usage_bytes", &["pagesize"], "Huge pages in use, in bytes."),
    ("container_last_seen", &[], "When the container was last seen, in seconds since the epoch."),
    ("container_memory_cache", &[], "Page cache in bytes."),
    ("container_memory_failcnt", &[], "How often the memory limit was hit."),
    ("container_memory_failures_total", &["failure_type", "scope"], "Page faults."),
    ("container_memory_kernel_usage", &[], "Kernel memory in bytes."),
    ("container_memory_mapped_file", &[], "Mapped files in bytes."),
    ("container_memory_max_usage_bytes", &[], "Most memory in use at a time, in bytes."),
    ("container_memory_rss", &[], "Anonymous memory in bytes."),
    ("container_memory_swap", &[], "Swap in use in bytes."),
    ("container_memory_usage_bytes", &[], "Memory in use in bytes, caches included."),
    ("container_memory_working_set_bytes", &[], "Memory in use in bytes that cannot be given back at once."),
    ("container_network_receive_bytes_total", &["interface"], "Bytes received."),
    ("container_network_receive_errors_total", &["interface"], "Errors in receiving."),
    ("container_network_receive_packets_dropped_total", &["interface"], "Received packets that were dropped."),
    ("container_network_receive_packets_total", &["interface"], "Packets received."),
    ("container_network_transmit_bytes_total", &["interface"], "Bytes sent."),
    ("container_network_transmit_errors_total", &["interface"], "Errors in sending."),
    ("container_network_transmit_packets_dropped_total", &["interface"], "Packets to be sent that were dropped."),
    ("container_network_transmit_packets_total", &["interface"], "Packets sent."),
    ("container_oom_events_total", &[], "Processes killed because memory ran out."),
    ("container_pressure_cpu_stalled_seconds_total", &[], "Time in which no task could go on for want of CPU."),
    ("container_pressure_cpu_waiting_seconds_total", &[], "Time in which some task could not go on for want of CPU."),
    ("container_pressure_io_stalled_seconds_total", &[], "Time in which no task could go on for want of IO."),
    ("container_pressure_io_waiting_seconds_total", &[], "Time in which some task could not go on for want of IO."),
    ("container_pressure_memory_stalled_seconds_total", &[], "Time in which no task could go on for want of memory."),
    ("container_pressure_memory_waiting_seconds_total", &[], "Time in which some task could not go on for want of memory."),
    ("container_processes", &[], "Processes."),
    ("container_sockets", &[], "Open sockets."),
    ("container_spec_cpu_period", &[], "CPU quota period in microseconds."),
    ("container_spec_cpu_quota", &[], "CPU quota in microseconds per period; absent without one."),
    ("container_spec_cpu_shares", &[], "CPU shares."),
    ("container_spec_memory_limit_bytes", &[], "Memory limit; 0 without one."),
    ("container_spec_memory_reservation_limit_bytes", &[], "Memory below which nothing is taken back; 0 without one."),
    ("container_spec_memory_swap_limit_bytes", &[], "Limit of memory and swap together; 0 without one."),
    ("container_start_time_seconds", &[], "When the container was started, in seconds since the epoch."),
    ("container_threads", &[], "Threads."),
    ("container_threads_max", &[], "How many threads there may be; 0 without a limit."),
    ("container_ulimits_soft", &["ulimit"], "Soft limits of the first process; absent where there is none."),
];

/// All metrics, for ListMetricDescriptors.
pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    let descriptor = |(name, labels, help): &(&str, &[&str], &str)| v1::MetricDescriptor {
        name: name.to_string(),
        help: help.to_string(),
        label_keys: BASE.iter().chain(*labels).map(ToString::to_string).collect(),
    };
    METRICS.iter().map(descriptor).collect()
}

/// Values with one set of base labels and one time.
struct Values {
    base: Vec<String>,
    at: i64,
    list: Vec<v1::Metric>,
}

impl Values {
    fn new(labels: [&str; BASE.len()], at: i64) -> Values {
        Values { base: labels.map(str::to_owned).into(), at, list: Vec::with_capacity(METRICS.len()) }
    }

    fn put(&mut self, name: &'static str, value: u64) {
        self.put_with(name, &[], value);
    }

    fn put_with(&mut self, name: &'static str, labels: &[&str], value: u64) {
        let metric_type = if name.ends_with("_total") { v1::MetricType::Counter } else { v1::MetricType::Gauge };
        self.list.push(v1::Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: metric_type.into(),
            label_values: self.base.iter().cloned().chain(labels.iter().map(ToString::to_string)).collect(),
            value: super::value(value),
        });
    }

    fn cpu_and_memory(&mut self, usage: &Usage) {
        const SECOND: u64 = 1_000_000_000;
        self.put_with("container_cpu_usage_seconds_total", &["total"], usage.cpu.usage / SECOND);
        self.put("container_cpu_user_seconds_total", usage.cpu.user / SECOND);
        self.put("container_cpu_system_seconds_total", usage.cpu.system / SECOND);
        self.put("container_cpu_cfs_periods_total", usage.cpu.periods);
        self.put("container_cpu_cfs_throttled_periods_total", usage.cpu.throttled_periods);
        self.put("container_cpu_cfs_throttled_seconds_total", usage.cpu.throttled / SECOND);
        let memory = &usage.memory;
        self.put("container_memory_cache", memory.cache);
        self.put("container_memory_failcnt", memory.failures);
        self.put("container_memory_kernel_usage", memory.kernel);
        self.put("container_memory_mapped_file", memory.mapped);
        self.put("container_memory_max_usage_bytes", memory.peak);
        self.put("container_memory_rss", memory.anonymous);
        self.put("container_memory_swap", memory.swap);
        self.put("container_memory_usage_bytes", memory.usage);
        self.put("container_memory_working_set_bytes", memory.working_set());
        self.put("container_oom_events_total", memory.oom_kills);
        for scope in ["container", "hierarchy"] {
            self.put_with("container_memory_failures_total", &["pgfault", scope], memory.faults);
            self.put_with("container_memory_failures_total", &["pgmajfault", scope], memory.major_faults);
        }
        let names = [
            ("container_pressure_cpu_waiting_seconds_total", "container_pressure_cpu_stalled_seconds_total"),
            ("container_pressure_memory_waiting_seconds_total", "container_pressure_memory_stalled_seconds_total"),
            ("container_pressure_io_waiting_seconds_total", "container_pressure_io_stalled_seconds_total"),
        ];
        for ((waiting, stalled), pressure) in names.into_iter().zip(usage.pressure) {
            if let Some(pressure) = pressure {
                self.put(waiting, pressure.some.total / SECOND);
                self.put(stalled, pressure.full.total / SECOND);
            }
        }
    }

    fn devices(&mut self, usage: &Usage) {
        for io in &usage.io {
            let Io { device: (major, minor), read_bytes, write_bytes, reads, writes } = *io;
            let device = device_name(major, minor);
            let (major, minor) = (major.to_string(), minor.to_string());
            for (operation, bytes) in [("Read", read_bytes), ("Write", write_bytes)] {
                self.put_with("container_blkio_device_usage_total", &[&device, &major, &minor, operation], bytes);
            }
            self.put_with("container_fs_reads_bytes_total", &[&device], read_bytes);
            self.put_with("container_fs_writes_bytes_total", &[&device], write_bytes);
            self.put_with("container_fs_reads_total", &[&device], reads);
            self.put_with("container_fs_writes_total", &[&device], writes);
        }
        for huge in &usage.huge {
            self.put_with("container_hugetlb_usage_bytes", &[&huge.size], huge.usage);
            self.put_with("container_hugetlb_max_usage_bytes", &[&huge.size], huge.peak);
        }
    }

    fn processes(&mut self, usage: &Usage, counts: &Counts) {
        self.put("container_processes", counts.processes);
        self.put("container_file_descriptors", counts.descriptors);
        self.put("container_sockets", counts.sockets);
        self.put("container_threads", usage.tasks);
        self.put("container_threads_max", usage.tasks_max.unwrap_or(0));
        if let Some(files) = counts.open_files {
            self.put_with("container_ulimits_soft", &["max_open_files"], files);
        }
    }

    fn specification(&mut self, resources: &v1::LinuxContainerResources) {
        let or_zero = |number: i64| u64::try_from(number).unwrap_or(0);
        self.put("container_spec_cpu_period", if resources.cpu_period > 0 { or_zero(resources.cpu_period) } else { 100_000 });
        if resources.cpu_quota > 0 {
            self.put("container_spec_cpu_quota", or_zero(resources.cpu_quota));
        }
        self.put("container_spec_cpu_shares", if resources.cpu_shares > 0 { or_zero(resources.cpu_shares) } else { 1024 });
        self.put("container_spec_memory_limit_bytes", or_zero(resources.memory_limit_in_bytes));
        let low = resources.unified.get("memory.low").and_then(|low| low.parse().ok()).unwrap_or(0);
        self.put("container_spec_memory_reservation_limit_bytes", low);
        self.put("container_spec_memory_swap_limit_bytes", or_zero(resources.memory_swap_limit_in_bytes));
    }

    fn file_system(&mut self, folder: &Path, used: u64) {
        self.put("container_fs_usage_bytes", used);
        if let Ok(system) = rustix::fs::statvfs(folder) {
            self.put("container_fs_limit_bytes", system.f_blocks * system.f_frsize);
            self.put("container_fs_inodes_total", system.f_files);
            self.put("container_fs_inodes_free", system.f_ffree);
        }
    }

    fn interface(&mut self, interface: &network::Interface) {
        let labels = [interface.name.as_str()];
        let network::Interface { received, sent, .. } = interface;
        self.put_with("container_network_receive_bytes_total", &labels, received.bytes);
        self.put_with("container_network_receive_errors_total", &labels, received.errors);
        self.put_with("container_network_receive_packets_dropped_total", &labels, received.dropped);
        self.put_with("container_network_receive_packets_total", &labels, received.packets);
        self.put_with("container_network_transmit_bytes_total", &labels, sent.bytes);
        self.put_with("container_network_transmit_errors_total", &labels, sent.errors);
        self.put_with("container_network_transmit_packets_dropped_total", &labels, sent.dropped);
        self.put_with("container_network_transmit_packets_total", &labels, sent.packets);
    }
}

impl Stats {
    /// The metrics of a pod and of its running containers. As cAdvisor has it, what the pod's cgroup uses has an empty
    /// `container`, and its network the container `POD`.
    pub fn metrics(&self, pod: &Pod<'_>, containers: &[Container<'_>]) -> v1::PodSandboxMetrics {
        let metadata = pod.attributes.metadata.clone().unwrap_or_default();
        let place = [metadata.namespace.as_str(), metadata.name.as_str()];
        let mut metrics = Vec::new();
        let reading = self.reading(pod.id);
        let mut reading = reading.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let cgroup = reading.refresh_pod(pod, true);
        let path = reading.cgroup.as_ref().map(|cgroup| cgroup.path.clone()).unwrap_or_default();
        if cgroup {
            let mut values = Values::new(["", &path, "", "", place[0], place[1]], reading.usage.at);
            values.cpu_and_memory(&reading.usage);
            metrics = values.list;
        }
        drop(reading);
        if let Some(netns) = pod.netns {
            let mut values = Values::new(["POD", &path, "", pod.id, place[0], place[1]], super::now());
            for interface in network::interfaces(super::process_of(pod, containers), netns) {
                values.interface(&interface);
            }
            metrics.extend(values.list);
        }
        let of_container = |container: &Container<'_>| {
            Some(v1::ContainerMetrics { container_id: container.id.to_owned(), metrics: self.container_metrics(container, place)? })
        };
        v1::PodSandboxMetrics {
            pod_sandbox_id: pod.id.to_owned(),
            metrics,
            container_metrics: containers.iter().filter_map(of_container).collect(),
        }
    }

    fn container_metrics(&self, container: &Container<'_>, [namespace, pod]: [&str; 2]) -> Option<Vec<v1::Metric>> {
        container.pid?;
        let content = self.disk(container.id).content(container.upper);
        let reading = self.reading(container.id);
        let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
        if !reading.refresh_container(container, true) {
            return None;
        }
        let reading = &mut *reading;
        let name = container.attributes.metadata.as_ref().map_or("", |metadata| &metadata.name);
        let path = reading.cgroup.as_ref().map_or("", |cgroup| &cgroup.path);
        let mut values = Values::new([name, path, container.image, container.id, namespace, pod], reading.usage.at);
        values.cpu_and_memory(&reading.usage);
        values.devices(&reading.usage);
        let all = || reading.cgroup.as_ref().map(|cgroup: &Cgroup| cgroup.processes(&mut Reader::default())).unwrap_or_default();
        values.processes(&reading.usage, reading.processes.counts(reading.pid, all));
        values.specification(container.resources.unwrap_or(&v1::LinuxContainerResources::default()));
        values.file_system(container.upper, content.bytes);
        let seconds = |time: i64| u64::try_from(time / 1_000_000_000).unwrap_or(0);
        values.put("container_last_seen", seconds(super::now()));
        values.put("container_start_time_seconds", seconds(container.started_at));
        Some(values.list)
    }
}

/// `/dev/sda`, or the numbers of a device without a name.
fn device_name(major: u64, minor: u64) -> String {
    static NAMES: Mutex<Option<HashMap<(u64, u64), String>>> = Mutex::new(None);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let name = || {
        let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).unwrap_or_default();
        link.file_name().map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{}", name.to_string_lossy()))
    };
    names.get_or_insert_default().entry((major, minor)).or_insert_with(name).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn fifty_six_names() {
        let all = descriptors();
        let names: HashSet<_> = all.iter().map(|descriptor| descriptor.name.as_str()).collect();
        assert_eq!((all.len(), names.len()), (56, 56));
        assert!(all.iter().all(|descriptor| !descriptor.help.is_empty() && descriptor.label_keys.starts_with(&BASE.map(str::to_owned))));
    }

    /// Our own process stands in for a container.
    #[test]
    fn values_fit_their_descriptors() {
        let upper = std::env::temp_dir().join(format!("rrun-cri-metrics-{}", std::process::id()));
        fs::create_dir_all(&upper).unwrap();
        let stats = Stats::new(&upper);
        let resources = v1::LinuxContainerResources { cpu_quota: 20_000, ..Default::default() };
        let container = Container {
            id: "c",
            attributes: v1::ContainerAttributes {
                metadata: Some(v1::ContainerMetadata { name: "app".into(), attempt: 0 }),
                ..Default::default()
            },
            pid: Some(std::process::id() as i32),
            started_at: super::super::now() - 1_000_000_000,
            image: "image",
            upper: &upper,
            resources: Some(&resources),
        };
        let pod = Pod {
            id: "p",
            attributes: v1::PodSandboxAttributes::default(),
            cgroup_parent: "",
            netns: Some(Path::new("/proc/self/ns/net")),
            pid: None,
            created_at: 1,
        };
        let metrics = stats.metrics(&pod, std::slice::from_ref(&container));
        let widths: HashMap<_, _> = descriptors().into_iter().map(|d| (d.name, d.label_keys.len())).collect();
        let of_container = &metrics.container_metrics[0].metrics;
        for metric in metrics.metrics.iter().chain(of_container) {
            assert_eq!(Some(&metric.label_values.len()), widths.get(&metric.name), "{}", metric.name);
        }
        // All but the network's (the pod's), and what this host may lack: pressure, huge pages, block devices.
        let missing: Vec<_> = widths
            .keys()
            .filter(|name| of_container.iter().all(|metric| metric.name != **name))
            .filter(|name| !["network", "pressure", "hugetlb", "blkio", "fs_reads", "fs_writes"].iter().any(|part| name.contains(part)))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");

        let first = stats.container(&container);
        assert!(first.memory.unwrap().working_set_bytes.is_some() && first.writable_layer.is_some());
        let of_pod = stats.pod(&pod, std::slice::from_ref(&container)).linux.unwrap();
        assert_eq!(of_pod.containers.len(), 1);
        assert!(of_pod.cpu.unwrap().usage_core_nano_seconds.is_some() && of_pod.process.is_some());
        let stopped = stats.container(&Container { pid: None, ..container });
        assert!(stopped.cpu.is_none() && stopped.attributes.is_some());
        stats.keep(&[]);
        fs::remove_dir_all(&upper).unwrap();
    }
}
