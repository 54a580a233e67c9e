//! cgroup v2: `linux.resources` as files, the conversions from v1's units, handing controllers
//! down, the freezer.

use super::folder::{self, Folder};
use super::limits::{self, Missing, Write, device, rdma};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};
use std::path::Path;
use std::time::Duration;

/// What `r` asks of v2 controllers, in the order to be written. `now` answers with the present
/// content of a file, asked for where a value is one half of what v2 has as one: the period without
/// its quota, swap without the limit of memory.
pub(super) fn writes(r: &LinuxResources, now: impl Fn(&str) -> Option<String>) -> Result<Vec<Write>> {
    let mut list = Vec::new();
    r.cpu().iter().for_each(|c| cpu(c, &now, &mut list));
    if let Some(m) = r.memory() {
        memory(m, &now, &mut list)?;
    }
    if let Some(pids) = r.pids() {
        list.push(limits::pids(*pids));
    }
    if let Some(io) = r.block_io() {
        block_io(io, &mut list)?;
    }
    for limit in r.hugepage_limits().iter().flatten() {
        let (size, value) = (limit.page_size(), max(limit.limit()));
        list.push(Write::new("hugetlb", "hugepageLimits", format!("hugetlb.{size}.max"), &value));
        list.push(Write::new("hugetlb", "hugepageLimits", format!("hugetlb.{size}.rsvd.max"), &value).or_skip());
    }
    list.extend(rdma(r));
    let mut unified: Vec<_> = r.unified().iter().flatten().collect();
    unified.sort_unstable();
    for (file, value) in unified {
        // An idle group has no weight that could be set.
        if file == "cpu.weight" && is_idle(r) {
            continue;
        }
        let controller = file.split('.').next().unwrap_or_default().to_owned();
        // Some files take one line at a time.
        for line in value.lines() {
            list.push(Write {
                controller: controller.clone().into(),
                field: format!("unified[{file:?}]").into(),
                file: file.clone().into(),
                value: line.to_owned(),
                missing: Missing::Fail,
            });
        }
    }
    Ok(list)
}

/// Whether `unified` makes the group idle.
pub(super) fn is_idle(r: &LinuxResources) -> bool {
    r.unified().as_ref().is_some_and(|u| u.get("cpu.idle").is_some_and(|v| v.trim() == "1"))
}

/// v1's "-1" is v2's "max".
fn max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn cpu(c: &LinuxCpu, now: impl Fn(&str) -> Option<String>, list: &mut Vec<Write>) {
    if let Some(idle) = c.idle() {
        list.push(Write::new("cpu", "cpu.idle", "cpu.idle", idle));
    }
    // An idle group has no weight that could be set.
    if let Some(shares) = c.shares().filter(|&s| s != 0 && c.idle() != Some(1)) {
        list.push(Write::new("cpu", "cpu.shares", "cpu.weight", weight_of_shares(shares)));
    }
    if let Some(burst) = c.burst() {
        list.push(Write::new("cpu", "cpu.burst", "cpu.max.burst", burst));
    }
    let (quota, period) = (c.quota().filter(|&q| q != 0), c.period().filter(|&p| p != 0));
    let field = if quota.is_some() { "cpu.quota" } else { "cpu.period" };
    match (quota, period) {
        (Some(quota), Some(period)) => list.push(Write::new("cpu", field, "cpu.max", format!("{} {period}", max(quota)))),
        (Some(quota), None) => list.push(Write::new("cpu", field, "cpu.max", max(quota))),
        (None, Some(period)) => {
            let max = now("cpu.max").unwrap_or_default();
            let quota = max.split_whitespace().next().unwrap_or("max");
            list.push(Write::new("cpu", field, "cpu.max", format!("{quota} {period}")));
        }
        (None, None) => (),
    }
    for (text, field, file) in [(c.cpus(), "cpu.cpus", "cpuset.cpus"), (c.mems(), "cpu.mems", "cpuset.mems")] {
        if let Some(value) = text.as_ref().filter(|t| !t.is_empty()) {
            list.push(Write::new("cpuset", field, file, value));
        }
    }
}

fn memory(m: &LinuxMemory, now: impl Fn(&str) -> Option<String>, list: &mut Vec<Write>) -> Result<()> {
    let limit = m.limit().filter(|&l| l != 0);
    let swap = match (m.swap().filter(|&s| s != 0), limit) {
        (None, Some(-1)) => Some(-1),
        (None, _) => None,
        (Some(swap), limit) => {
            let limit = limit.or_else(|| now("memory.max")?.trim_end().parse().ok());
            Some(swap_alone(swap, limit)?)
        }
    };
    if let Some(swap) = swap {
        let write = Write::new("memory", "memory.swap", "memory.swap.max", max(swap));
        // Where the kernel does not count swap, none and any amount are what there is.
        list.push(if swap <= 0 { write.or_skip() } else { write });
    }
    if let Some(limit) = limit {
        list.push(Write::new("memory", "memory.limit", "memory.max", max(limit)));
    }
    if let Some(reservation) = m.reservation().filter(|&l| l != 0) {
        list.push(Write::new("memory", "memory.reservation", "memory.low", max(reservation)));
    }
    Ok(())
}

/// v1 (and the specification) limits memory and swap together, v2 swap alone.
pub(super) fn swap_alone(together: i64, memory: Option<i64>) -> Result<i64> {
    match memory {
        _ if together < 0 => Ok(-1),
        // Memory has no limit: the number can only be meant for swap.
        None | Some(-1) => Ok(together),
        Some(memory) if memory < 0 => bail!("linux.resources.memory.limit: {memory} is not a limit (-1 is none)"),
        Some(memory) if together < memory => {
            bail!("linux.resources.memory.swap: {together} is below memory.limit {memory}; it limits memory and swap together")
        }
        Some(memory) => Ok(together - memory),
    }
}

/// v1's cpu.shares (2 to 262144, 1024 by default) as v2's cpu.weight (1 to 10000, 100 by default):
/// the curve through these three points that runc 1.3.2 and crun 1.23 use, 10 to the power of
/// `(l*l + 125*l) / 612 - 7/34` with `l` the binary logarithm of the shares, rounded up.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let l = (shares as f64).log2();
    10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
}

/// v1's blkio.weight (10 to 1000) as v2's io.weight (1 to 10000), linearly.
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight).saturating_sub(10) * 9999 / 990
}

fn block_io(io: &LinuxBlockIo, list: &mut Vec<Write>) -> Result<()> {
    // BFQ has a file of its own in the old units; where it is not there io.weight (blk-iocost) is.
    let weighted = |field: &'static str, device: &str, weight: u16| {
        Write::new("io", field, "io.bfq.weight", format!("{device}{weight}")).or(Write::new(
            "io",
            field,
            "io.weight",
            format!("{device}{}", io_weight(weight)),
        ))
    };
    if let Some(weight) = io.weight().filter(|&w| w != 0) {
        list.push(weighted("blockIO.weight", "", weight));
    }
    for d in io.weight_device().iter().flatten() {
        let number = device(d.major(), d.minor())?;
        if let Some(weight) = d.weight() {
            list.push(weighted("blockIO.weightDevice", &format!("{number} "), weight));
        }
    }
    let mut throttle = |field: &'static str, key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| -> Result<()> {
        for d in devices.iter().flatten() {
            let rate = if d.rate() == 0 { "max".to_owned() } else { d.rate().to_string() };
            list.push(Write::new("io", field, "io.max", format!("{} {key}={rate}", device(d.major(), d.minor())?)));
        }
        Ok(())
    };
    throttle("blockIO.throttleReadBpsDevice", "rbps", io.throttle_read_bps_device())?;
    throttle("blockIO.throttleWriteBpsDevice", "wbps", io.throttle_write_bps_device())?;
    throttle("blockIO.throttleReadIOPSDevice", "riops", io.throttle_read_iops_device())?;
    throttle("blockIO.throttleWriteIOPSDevice", "wiops", io.throttle_write_iops_device())
}

/// Refuses a limit that the present usage exceeds (`memory.checkBeforeUpdate`): v2 would kill.
pub(super) fn check_usage(dir: &Path, r: &LinuxResources) -> Result<()> {
    let Some(m) = r.memory().as_ref().filter(|m| m.check_before_update() == Some(true)) else { return Ok(()) };
    let Some(usage) = folder::read_file(dir, "memory.current").ok().and_then(|t| t.trim_end().parse::<i64>().ok()) else { return Ok(()) };
    for (name, limit) in [("memory+swap", m.swap()), ("memory", m.limit())] {
        if let Some(limit) = limit.filter(|&l| l > 0 && l <= usage) {
            bail!("linux.resources.memory.checkBeforeUpdate: rejecting {name} limit {limit} <= usage {usage}");
        }
    }
    Ok(())
}

/// The controllers that a cgroup may use.
pub(super) fn controllers(dir: &Path) -> nix::Result<Vec<String>> {
    Ok(folder::read_file(dir, "cgroup.controllers")?.split_whitespace().map(str::to_owned).collect())
}

/// Hands every controller of the mount point down to `dir`, one level after the other. A level that
/// does not let us (not delegated, or with processes of its own) is passed over: what is then
/// missing in `dir` is for the caller to judge.
pub(super) fn hand_down(dir: &Path, mountpoint: &Path, wanted: &[String]) -> Result<()> {
    let below = dir.strip_prefix(mountpoint).with_context(|| dir.display().to_string())?;
    let mut level = mountpoint.to_owned();
    for name in below.components() {
        let folder = Folder::open(&level).with_context(|| level.display().to_string())?;
        let all = wanted.iter().map(|c| format!("+{c}")).collect::<Vec<_>>().join(" ");
        match folder.write("cgroup.subtree_control", &all) {
            // Not ours to change; or it has processes of its own, and then even the controllers that
            // could be handed down would make what is below it useless for the others.
            Ok(()) | Err(Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::EBUSY) => (),
            // One of them is not available here: the others are.
            Err(_) => wanted.iter().for_each(|c| _ = folder.write("cgroup.subtree_control", &format!("+{c}"))),
        }
        level.push(name);
    }
    Ok(())
}

/// Freezes or thaws, and waits until the kernel says so.
pub(super) fn freeze(dir: &Path, frozen: bool) -> Result<()> {
    let folder = Folder::open(dir).with_context(|| dir.display().to_string())?;
    let tell =
        |value: &str| folder.write("cgroup.freeze", value).with_context(|| format!("write {value} to {}", folder.name("cgroup.freeze")));
    tell(if frozen { "1" } else { "0" })?;
    if frozen && !folder::wait_for_line(&folder, "cgroup.events", "frozen 1", Duration::from_secs(10))? {
        tell("0")?;
        bail!("{}: its processes cannot be frozen", folder.name("cgroup.freeze"));
    }
    Ok(())
}

/// Whether it is told to be frozen: one open, one read. No such cgroup: no.
pub(super) fn frozen(dir: &Path) -> Result<bool> {
    match folder::read_file(dir, "cgroup.freeze") {
        Ok(state) => Ok(state.starts_with('1')),
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(false),
        Err(e) => Err(e).with_context(|| dir.join("cgroup.freeze").display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(json: &str, now: Option<&str>) -> Vec<String> {
        let r: LinuxResources = serde_json::from_str(json).unwrap();
        writes(&r, |_| now.map(str::to_owned)).unwrap().iter().map(|w| format!("{}={}", w.file, w.value)).collect()
    }

    #[test]
    fn shares_become_a_weight() {
        for (shares, weight) in [(2, 1), (1024, 100), (262_144, 10_000), (512, 59), (1, 1), (u64::MAX, 10_000)] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        assert!((2..262_144).step_by(97).all(|s| weight_of_shares(s) <= weight_of_shares(s + 97)));
    }

    #[test]
    fn swap_is_what_is_left_of_memory_and_swap() {
        assert_eq!(swap_alone(300, Some(100)).unwrap(), 200);
        assert_eq!(swap_alone(100, Some(100)).unwrap(), 0);
        assert_eq!(swap_alone(-1, Some(100)).unwrap(), -1);
        assert_eq!(swap_alone(300, None).unwrap(), 300);
        assert_eq!(swap_alone(300, Some(-1)).unwrap(), 300);
        assert!(swap_alone(99, Some(100)).is_err());
        assert_eq!(files(r#"{"memory":{"limit":100,"swap":100}}"#, None), ["memory.swap.max=0", "memory.max=100"]);
        assert_eq!(files(r#"{"memory":{"limit":-1}}"#, None), ["memory.swap.max=max", "memory.max=max"]);
        assert_eq!(files(r#"{"memory":{"swap":150}}"#, Some("100\n")), ["memory.swap.max=50"]);
        assert_eq!(files(r#"{"memory":{"reservation":150}}"#, None), ["memory.low=150"]);
    }

    #[test]
    fn cpu_time() {
        assert_eq!(files(r#"{"cpu":{"quota":5,"period":10,"burst":3}}"#, None), ["cpu.max.burst=3", "cpu.max=5 10"]);
        assert_eq!(files(r#"{"cpu":{"quota":-1}}"#, None), ["cpu.max=max"]);
        assert_eq!(files(r#"{"cpu":{"period":10}}"#, None), ["cpu.max=max 10"]);
        assert_eq!(files(r#"{"cpu":{"period":10}}"#, Some("7 100000\n")), ["cpu.max=7 10"]);
        assert_eq!(files(r#"{"cpu":{"shares":1024,"idle":1}}"#, None), ["cpu.idle=1"]);
        assert_eq!(files(r#"{"cpu":{"shares":1024,"idle":0}}"#, None), ["cpu.idle=0", "cpu.weight=100"]);
    }

    #[test]
    fn weights_of_block_devices() {
        assert_eq!([10, 500, 1000].map(io_weight), [1, 4950, 10_000]);
        let r: LinuxResources = serde_json::from_str(r#"{"blockIO":{"weight":500}}"#).unwrap();
        let list = writes(&r, |_| None).unwrap();
        let Missing::Instead(other) = &list[0].missing else { panic!("{list:?}") };
        assert_eq!((other.file.as_ref(), other.value.as_str()), ("io.weight", "4950"));
        assert_eq!(files(r#"{"blockIO":{"throttleWriteIOPSDevice":[{"major":8,"minor":1,"rate":0}]}}"#, None), ["io.max=8:1 wiops=max"]);
    }

    #[test]
    fn unified_values_are_written_by_line() {
        assert_eq!(
            files(r#"{"unified":{"pids.max":"5","io.max":"8:0 rbps=1\n8:1 rbps=2"}}"#, None),
            ["io.max=8:0 rbps=1", "io.max=8:1 rbps=2", "pids.max=5"]
        );
    }
}
