//! cgroup v1: `linux.resources` as files, the cpuset that must not be empty, the freezer.

use super::folder::{self, Folder};
use super::limits::{self, Write, device, rdma};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use std::path::Path;
use std::time::{Duration, Instant};

/// What `r` asks of v1 controllers, in the order to be written.
pub(super) fn writes(r: &LinuxResources) -> Result<Vec<Write>> {
    let mut list = Vec::new();
    r.cpu().iter().for_each(|c| cpu(c, &mut list));
    r.memory().iter().for_each(|m| memory(m, &mut list));
    if let Some(pids) = r.pids() {
        list.push(limits::pids(*pids));
    }
    if let Some(io) = r.block_io() {
        block_io(io, &mut list)?;
    }
    for limit in r.hugepage_limits().iter().flatten() {
        let (size, value) = (limit.page_size(), limit.limit());
        list.push(Write::new("hugetlb", "hugepageLimits", format!("hugetlb.{size}.limit_in_bytes"), value));
        list.push(Write::new("hugetlb", "hugepageLimits", format!("hugetlb.{size}.rsvd.limit_in_bytes"), value).or_skip());
    }
    if let Some(network) = r.network() {
        if let Some(class) = network.class_id().filter(|&c| c != 0) {
            list.push(Write::new("net_cls", "network.classID", "net_cls.classid", class));
        }
        for p in network.priorities().iter().flatten() {
            list.push(Write::new("net_prio", "network.priorities", "net_prio.ifpriomap", format!("{} {}", p.name(), p.priority())));
        }
    }
    list.extend(rdma(r));
    Ok(list)
}

fn cpu(c: &LinuxCpu, list: &mut Vec<Write>) {
    if let Some(shares) = c.shares().filter(|&s| s != 0) {
        list.push(Write::new("cpu", "cpu.shares", "cpu.shares", shares));
    }
    if let Some(period) = c.period().filter(|&p| p != 0) {
        list.push(Write::new("cpu", "cpu.period", "cpu.cfs_period_us", period));
    }
    if let Some(burst) = c.burst() {
        list.push(Write::new("cpu", "cpu.burst", "cpu.cfs_burst_us", burst));
    }
    if let Some(quota) = c.quota().filter(|&q| q != 0) {
        list.push(Write::new("cpu", "cpu.quota", "cpu.cfs_quota_us", quota));
    }
    if let Some(idle) = c.idle() {
        list.push(Write::new("cpu", "cpu.idle", "cpu.idle", idle));
    }
    if let Some(period) = c.realtime_period().filter(|&p| p != 0) {
        list.push(Write::new("cpu", "cpu.realtimePeriod", "cpu.rt_period_us", period));
    }
    if let Some(runtime) = c.realtime_runtime().filter(|&t| t != 0) {
        list.push(Write::new("cpu", "cpu.realtimeRuntime", "cpu.rt_runtime_us", runtime));
    }
    for (text, field, file) in [(c.cpus(), "cpu.cpus", "cpuset.cpus"), (c.mems(), "cpu.mems", "cpuset.mems")] {
        if let Some(value) = text.as_ref().filter(|t| !t.is_empty()) {
            list.push(Write::new("cpuset", field, file, value));
        }
    }
}

fn memory(m: &LinuxMemory, list: &mut Vec<Write>) {
    const MEMSW: &str = "memory.memsw.limit_in_bytes";
    let limit = m.limit().filter(|&l| l != 0);
    let swap = m.swap().filter(|&s| s != 0);
    if let Some(limit) = limit {
        list.push(Write::new("memory", "memory.limit", "memory.limit_in_bytes", limit));
    }
    match (limit, swap) {
        // No limit of memory leaves none to memory and swap together.
        (Some(-1), None) => list.push(Write::new("memory", "memory.limit", MEMSW, -1).or_skip()),
        (_, Some(-1)) => list.push(Write::new("memory", "memory.swap", MEMSW, -1).or_skip()),
        (_, Some(swap)) => list.push(Write::new("memory", "memory.swap", MEMSW, swap)),
        _ => (),
    }
    if let Some(reservation) = m.reservation().filter(|&l| l != 0) {
        list.push(Write::new("memory", "memory.reservation", "memory.soft_limit_in_bytes", reservation));
    }
    if m.disable_oom_killer() == Some(true) {
        list.push(Write::new("memory", "memory.disableOOMKiller", "memory.oom_control", 1));
    }
    if let Some(swappiness) = m.swappiness().filter(|&s| s != u64::MAX) {
        list.push(Write::new("memory", "memory.swappiness", "memory.swappiness", swappiness));
    }
}

fn block_io(io: &LinuxBlockIo, list: &mut Vec<Write>) -> Result<()> {
    // The proportional files are the I/O scheduler's: CFQ had the plain names, BFQ has its own.
    let weighted = |field: &'static str, file: &'static str, bfq: &'static str, value: String| {
        Write::new("blkio", field, file, &value).or(Write::new("blkio", field, bfq, &value))
    };
    if let Some(weight) = io.weight().filter(|&w| w != 0) {
        list.push(weighted("blockIO.weight", "blkio.weight", "blkio.bfq.weight", weight.to_string()));
    }
    if let Some(weight) = io.leaf_weight().filter(|&w| w != 0) {
        list.push(Write::new("blkio", "blockIO.leafWeight", "blkio.leaf_weight", weight));
    }
    for d in io.weight_device().iter().flatten() {
        let number = device(d.major(), d.minor())?;
        if let Some(weight) = d.weight() {
            let value = format!("{number} {weight}");
            list.push(weighted("blockIO.weightDevice", "blkio.weight_device", "blkio.bfq.weight_device", value));
        }
        if let Some(weight) = d.leaf_weight() {
            list.push(Write::new("blkio", "blockIO.weightDevice", "blkio.leaf_weight_device", format!("{number} {weight}")));
        }
    }
    let mut throttle = |field: &'static str, file: &'static str, devices: &Option<Vec<LinuxThrottleDevice>>| -> Result<()> {
        for d in devices.iter().flatten() {
            list.push(Write::new("blkio", field, file, format!("{} {}", device(d.major(), d.minor())?, d.rate())));
        }
        Ok(())
    };
    throttle("blockIO.throttleReadBpsDevice", "blkio.throttle.read_bps_device", io.throttle_read_bps_device())?;
    throttle("blockIO.throttleWriteBpsDevice", "blkio.throttle.write_bps_device", io.throttle_write_bps_device())?;
    throttle("blockIO.throttleReadIOPSDevice", "blkio.throttle.read_iops_device", io.throttle_read_iops_device())?;
    throttle("blockIO.throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", io.throttle_write_iops_device())
}

/// Gives a new cpuset, and those above it that lack them, the CPUs and memory nodes of its parent:
/// an empty one takes no process. `given` are the files that the configuration sets itself.
pub(super) fn fill_cpuset(dir: &Path, mountpoint: &Path, given: &[&str]) -> Result<()> {
    let parent = dir.parent().unwrap_or(mountpoint);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = inherit(parent, mountpoint, file)?;
        if !given.contains(&file) {
            put(dir, file, &value)?;
        }
    }
    Ok(())
}

/// The value of `file` in `dir`, taken from its parent where it is empty.
fn inherit(dir: &Path, mountpoint: &Path, file: &str) -> Result<String> {
    let value = folder::read_file(dir, file).with_context(|| dir.join(file).display().to_string())?;
    let value = value.trim_end();
    match dir.parent().filter(|_| value.is_empty() && dir != mountpoint) {
        Some(parent) => {
            let value = inherit(parent, mountpoint, file)?;
            put(dir, file, &value)?;
            Ok(value)
        }
        None => Ok(value.to_owned()),
    }
}

fn put(dir: &Path, file: &str, value: &str) -> Result<()> {
    let path = dir.join(file);
    folder::write_file(&path, value).with_context(|| format!("write {value:?} to {}", path.display()))
}

/// Freezes or thaws. The v1 freezer announces nothing and may get stuck half-way when a process is
/// being made meanwhile: then it is thawed for a moment and told again.
pub(super) fn freeze(dir: &Path, frozen: bool) -> Result<()> {
    const FILE: &str = "freezer.state";
    let path = || dir.join(FILE).display().to_string();
    let folder = Folder::open(dir).with_context(|| dir.display().to_string())?;
    let tell = |state: &str| folder.write(FILE, state).with_context(|| format!("write {state:?} to {}", path()));
    if !frozen {
        return tell("THAWED");
    }
    let until = Instant::now() + Duration::from_secs(5);
    for round in 1.. {
        if round % 50 == 1 {
            if round > 1 {
                tell("THAWED")?;
                std::thread::sleep(Duration::from_millis(1));
            }
            tell("FROZEN")?;
        }
        if folder.read(FILE).with_context(path)?.trim_end() == "FROZEN" {
            return Ok(());
        }
        if Instant::now() > until {
            tell("THAWED")?;
            bail!("{}: its processes cannot be frozen", path());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Whether it is frozen, or on the way: one open, one read. No such cgroup: no.
pub(super) fn frozen(dir: &Path) -> Result<bool> {
    match folder::read_file(dir, "freezer.state") {
        Ok(state) => Ok(state.trim_end() != "THAWED"),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENODEV) => Ok(false),
        Err(e) => Err(e).with_context(|| dir.join("freezer.state").display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(json: &str) -> Vec<String> {
        let r: LinuxResources = serde_json::from_str(json).unwrap();
        writes(&r).unwrap().iter().map(|w| format!("{}={}", w.file, w.value)).collect()
    }

    #[test]
    fn memory_comes_before_memory_and_swap() {
        assert_eq!(
            files(r#"{"memory":{"limit":100,"swap":200,"reservation":50,"swappiness":0,"disableOOMKiller":true,"kernel":9}}"#),
            [
                "memory.limit_in_bytes=100",
                "memory.memsw.limit_in_bytes=200",
                "memory.soft_limit_in_bytes=50",
                "memory.oom_control=1",
                "memory.swappiness=0"
            ]
        );
        assert_eq!(files(r#"{"memory":{"limit":-1}}"#), ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"]);
        assert!(files(r#"{"memory":{"limit":0,"swap":0}}"#).is_empty());
    }

    #[test]
    fn zero_processes_is_a_limit() {
        assert_eq!(files(r#"{"pids":{"limit":0}}"#), ["pids.max=1"]);
        assert_eq!(files(r#"{"pids":{"limit":-1}}"#), ["pids.max=max"]);
    }

    #[test]
    fn cpu_and_block_io() {
        assert_eq!(
            files(r#"{"cpu":{"shares":512,"quota":-1,"period":50000,"burst":0,"idle":1,"cpus":"0-1","mems":"0"}}"#),
            [
                "cpu.shares=512",
                "cpu.cfs_period_us=50000",
                "cpu.cfs_burst_us=0",
                "cpu.cfs_quota_us=-1",
                "cpu.idle=1",
                "cpuset.cpus=0-1",
                "cpuset.mems=0"
            ]
        );
        assert_eq!(
            files(
                r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}],"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":77}]}}"#
            ),
            ["blkio.weight=500", "blkio.weight_device=8:0 10", "blkio.throttle.read_bps_device=8:0 77"]
        );
    }
}
