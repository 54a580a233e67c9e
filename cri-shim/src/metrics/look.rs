//! What is looked at when somebody scrapes: pods, containers, monitors, images, our own process.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use rrun_proto::v1;

use super::family::{braces, head};
use crate::shim::Shim;

/// All of it, as text. Blocks.
pub(super) fn looked_at(shim: &Shim, text: &mut String) {
    head(text, "rrun_cri_build_info", "gauge", "1, with the version as a label.");
    let _ = writeln!(text, "rrun_cri_build_info{} 1", braces([("version", env!("CARGO_PKG_VERSION"))]));
    let pods = shim.pods();
    let ready = pods.iter().filter(|pod| pod.record().ready).count();
    gauges(text, "rrun_cri_pods", "Pod sandboxes by state.", [("ready", ready), ("notready", pods.len() - ready)]);
    let mut containers: BTreeMap<&str, usize> = ["created", "exited", "running", "unknown"].map(|state| (state, 0)).into();
    for container in shim.containers() {
        let state = match container.state() {
            v1::ContainerState::ContainerCreated => "created",
            v1::ContainerState::ContainerRunning => "running",
            v1::ContainerState::ContainerExited => "exited",
            v1::ContainerState::ContainerUnknown => "unknown",
        };
        *containers.entry(state).or_default() += 1;
    }
    gauges(text, "rrun_cri_containers", "Containers by state.", containers);
    let monitors: Vec<u32> = pods.iter().filter_map(|pod| Some(pod.monitor().ok()?.welcome().pid)).collect();
    gauge(text, "rrun_cri_monitors", "Monitors of pods that we are connected to.", monitors.len());
    let resident: u64 = monitors.iter().filter_map(|pid| memory(&pid.to_string(), "RssAnon:")).sum();
    gauge(text, "rrun_cri_monitor_memory_bytes", "Resident memory of all monitors that is not of files.", resident);
    gauge(text, "rrun_cri_images", "Images in the store.", shim.images.list().len());
    process(text);
}

/// The names that Prometheus's own libraries use.
fn process(text: &mut String) {
    if let Some(resident) = memory("self", "VmRSS:") {
        gauge(text, "process_resident_memory_bytes", "Resident memory of the daemon.", resident);
    }
    let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    gauge(text, "process_open_fds", "Open file descriptors of the daemon.", descriptors);
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    head(text, "process_cpu_seconds_total", "counter", "CPU time of the daemon.");
    let _ = writeln!(text, "process_cpu_seconds_total {}", (field(14) + field(15)) / 100.0);
    gauge(text, "process_threads", "Threads of the daemon.", field(20));
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    if let Some(uptime) = uptime.split(' ').next().and_then(|up| up.parse::<f64>().ok()) {
        let age = uptime - field(22) / 100.0;
        gauge(
            text,
            "process_start_time_seconds",
            "When the daemon was started, in seconds since the epoch.",
            crate::shim::now() as f64 / 1e9 - age,
        );
    }
}

/// A figure of /proc/PID/status, in bytes.
fn memory(process: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

fn gauge(text: &mut String, name: &str, help: &str, value: impl std::fmt::Display) {
    head(text, name, "gauge", help);
    let _ = writeln!(text, "{name} {value}");
}

fn gauges<'a>(text: &mut String, name: &str, help: &str, values: impl IntoIterator<Item = (&'a str, usize)>) {
    head(text, name, "gauge", help);
    for (state, value) in values {
        let _ = writeln!(text, "{name}{} {value}", braces([("state", state)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process() {
        let mut text = String::new();
        process(&mut text);
        let value = |name: &str| -> f64 { text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap() };
        assert!(value("process_resident_memory_bytes ") > 1e6 && value("process_open_fds ") >= 3.0);
        let started = value("process_start_time_seconds ");
        assert!((crate::shim::now() as f64 / 1e9 - started) < 86400.0, "{text}");
    }
}
