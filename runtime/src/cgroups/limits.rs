//! Limits as data: what to write into which file, and the one place that writes them.
//!
//! `v1.rs` and `v2.rs` turn `linux.resources` into a flat list of [`Write`]s; [`apply`] interprets
//! it. In the hybrid layout both lists are used, each for the controllers its hierarchies have.

use super::folder::Folder;
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxPids, LinuxResources};
use std::borrow::Cow;

/// One value for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// The controller whose hierarchy has the file.
    pub(super) controller: Cow<'static, str>,
    /// The field below `linux.resources` that asked for it.
    pub(super) field: Cow<'static, str>,
    /// The file's name.
    pub(super) file: Cow<'static, str>,
    /// What to write.
    pub(super) value: String,
    /// What to do where the kernel has no such file.
    pub(super) missing: Missing,
}

/// See [`Write::missing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// An error.
    Fail,
    /// Nothing: the kernel behaves as asked without it.
    Skip,
    /// This instead.
    Instead(Box<Write>),
}

/// `pids.limit`: below 0 none. 0 is written as 1, as systemd's TasksMax has to be and as runc does; nobody can fork with
/// either.
pub(super) fn pids(limits: LinuxPids) -> Write {
    let value = match limits.limit() {
        ..0 => "max".to_owned(),
        limit => limit.max(1).to_string(),
    };
    Write::new("pids", "pids.limit", "pids.max", value)
}

impl Write {
    pub(super) fn new(
        controller: &'static str,
        field: impl Into<Cow<'static, str>>,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
    ) -> Write {
        Write { controller: controller.into(), field: field.into(), file: file.into(), value: value.to_string(), missing: Missing::Fail }
    }

    pub(super) fn or_skip(mut self) -> Write {
        self.missing = Missing::Skip;
        self
    }

    pub(super) fn or(mut self, other: Write) -> Write {
        self.missing = Missing::Instead(Box::new(other));
        self
    }
}

/// Writes the values in order. One that the kernel refuses because it does not fit its neighbour's
/// old value (a memory limit above memory+swap, a period too short for the quota) is tried again
/// after the others. With `changed` only what differs from the present value is written.
pub(super) fn apply(folder: &Folder, writes: &[&Write], changed: bool) -> Result<()> {
    let mut postponed = Vec::new();
    for write in writes {
        if let Err(e) = put(folder, write, changed)? {
            if !matches!(e, Errno::EINVAL | Errno::EBUSY) || writes.len() == 1 {
                return Err(refused(folder, write, e));
            }
            postponed.push(write);
        }
    }
    for write in postponed {
        if let Err(e) = put(folder, write, changed)? {
            return Err(refused(folder, write, e));
        }
    }
    Ok(())
}

/// The outer error is final, the inner one the kernel's answer to the value.
fn put(folder: &Folder, write: &Write, changed: bool) -> Result<nix::Result<()>> {
    if changed && folder.read(&write.file).is_ok_and(|now| now.trim_end() == write.value) {
        return Ok(Ok(()));
    }
    match folder.write(&write.file, &write.value) {
        Err(Errno::ENOENT) => match &write.missing {
            Missing::Skip => Ok(Ok(())),
            Missing::Instead(other) => put(folder, other, changed),
            Missing::Fail => bail!("linux.resources.{}: this kernel's cgroup has no file {}", write.field, folder.name(&write.file)),
        },
        other => Ok(other),
    }
}

fn refused(folder: &Folder, write: &Write, e: Errno) -> anyhow::Error {
    let path = folder.name(&write.file);
    if e == Errno::EBUSY && write.controller == "memory" {
        let read = |names: [&str; 2]| {
            let text = names.iter().find_map(|n| folder.read(n).ok());
            text.map_or_else(|| "unknown".to_owned(), |t| t.trim_end().to_owned())
        };
        let (now, peak) = (read(["memory.usage_in_bytes", "memory.current"]), read(["memory.max_usage_in_bytes", "memory.peak"]));
        return anyhow!(
            "linux.resources.{}: unable to set memory limit to {} (current usage: {now}, peak usage: {peak})",
            write.field,
            write.value
        );
    }
    anyhow!(e).context(format!("linux.resources.{}: write {:?} to {path}", write.field, write.value))
}

/// Asks for nothing that would need a controller but devices.
pub(super) fn is_empty(r: &LinuxResources) -> bool {
    asked(r).is_empty()
}

/// The controllers that a configuration needs: the names on v1 and on v2 (empty where that version
/// has none) and the field that asks.
pub(super) fn asked(r: &LinuxResources) -> Vec<(&'static str, &'static str, String)> {
    let mut asked: Vec<(&str, &str, String)> = Vec::new();
    let mut need = |v1: &'static str, v2: &'static str, field: &str| asked.push((v1, v2, field.to_owned()));
    if let Some(m) = r.memory() {
        let numbers = [m.limit(), m.reservation(), m.swap()];
        if numbers.iter().any(|n| n.is_some_and(|n| n != 0)) {
            need("memory", "memory", "memory");
        }
    }
    if let Some(c) = r.cpu() {
        let set = |n: Option<u64>| n.is_some_and(|n| n != 0);
        if set(c.shares()) || set(c.period()) || c.quota().is_some_and(|q| q != 0) || c.burst().is_some() || c.idle().is_some() {
            need("cpu", "cpu", "cpu");
        }
        if set(c.realtime_period()) || c.realtime_runtime().is_some_and(|n| n != 0) {
            need("cpu", "", "cpu.realtimeRuntime");
        }
        let text = |t: &Option<String>| t.as_ref().is_some_and(|t| !t.is_empty());
        if text(c.cpus()) || text(c.mems()) {
            need("cpuset", "cpuset", if text(c.cpus()) { "cpu.cpus" } else { "cpu.mems" });
        }
    }
    if r.pids().is_some() {
        need("pids", "pids", "pids.limit");
    }
    if let Some(b) = r.block_io() {
        let lists =
            [b.throttle_read_bps_device(), b.throttle_write_bps_device(), b.throttle_read_iops_device(), b.throttle_write_iops_device()];
        let listed =
            lists.iter().any(|l| l.as_ref().is_some_and(|l| !l.is_empty())) || b.weight_device().as_ref().is_some_and(|l| !l.is_empty());
        if listed || b.weight().is_some_and(|w| w != 0) {
            need("blkio", "io", "blockIO");
        }
        if b.leaf_weight().is_some_and(|w| w != 0) {
            need("blkio", "", "blockIO.leafWeight");
        }
    }
    if r.hugepage_limits().as_ref().is_some_and(|l| !l.is_empty()) {
        need("hugetlb", "hugetlb", "hugepageLimits");
    }
    if r.rdma().as_ref().is_some_and(|l| !l.is_empty()) {
        need("rdma", "rdma", "rdma");
    }
    if let Some(n) = r.network() {
        if n.class_id().is_some_and(|c| c != 0) {
            need("net_cls", "", "network.classID");
        }
        if n.priorities().as_ref().is_some_and(|l| !l.is_empty()) {
            need("net_prio", "", "network.priorities");
        }
    }
    asked
}

/// Checks what the kernel would take for something else, or would refuse with a bare EINVAL.
pub(super) fn check(r: &LinuxResources) -> Result<()> {
    if let Some(swappiness) = r.memory().as_ref().and_then(|m| m.swappiness())
        && swappiness > 100
        && swappiness != u64::MAX
    {
        bail!("linux.resources.memory.swappiness: {swappiness} is not within 0 to 100");
    }
    if let Some(shares) = r.cpu().as_ref().and_then(|c| c.shares())
        && shares == 1
    {
        bail!("linux.resources.cpu.shares: the minimum allowed cpu-shares is 2");
    }
    if let Some(idle) = r.cpu().as_ref().and_then(|c| c.idle())
        && !(0..=1).contains(&idle)
    {
        bail!("linux.resources.cpu.idle: {idle} is neither 0 nor 1");
    }
    for limit in r.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_alphanumeric()) {
            bail!("linux.resources.hugepageLimits: {size:?} is not a page size such as \"2MB\"");
        }
    }
    for key in r.unified().iter().flatten().map(|(key, _)| key) {
        if key.contains('/') {
            bail!("linux.resources.unified: {key:?} must be a file name (no slashes)");
        }
        if key.find('.').is_none_or(|at| at == 0) {
            bail!("linux.resources.unified: {key:?} must be in the form CONTROLLER.PARAMETER");
        }
    }
    for device in r.devices().iter().flatten() {
        super::devices::check(device)?;
    }
    Ok(())
}

/// What is asked for and has no effect, said rather than ignored in silence.
pub(super) fn ignored(r: &LinuxResources, v2: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(m) = r.memory() {
        if m.kernel().is_some() || m.kernel_tcp().is_some() {
            notes.push("linux.resources.memory.kernel: ignored, the kernel no longer has this limit".to_owned());
        }
        if v2 && m.swappiness().is_some_and(|s| s != u64::MAX) {
            notes.push("linux.resources.memory.swappiness: ignored, cgroup v2 has no such setting".to_owned());
        }
        if v2 && m.disable_oom_killer() == Some(true) {
            notes.push("linux.resources.memory.disableOOMKiller: ignored, cgroup v2 has no such setting".to_owned());
        }
    }
    notes
}

/// `MAJOR:MINOR`.
pub(super) fn device(major: i64, minor: i64) -> Result<String> {
    if major < 0 || minor < 0 {
        bail!("linux.resources.blockIO: {major}:{minor} is not a device number");
    }
    Ok(format!("{major}:{minor}"))
}

/// The lines of `rdma.max`, the same on both versions.
pub(super) fn rdma(r: &LinuxResources) -> Vec<Write> {
    let line = |(device, limit): (&String, &oci_spec::runtime::LinuxRdma)| {
        let number = |n: Option<u32>| n.map_or_else(|| "max".to_owned(), |n| n.to_string());
        let value = format!("{device} hca_handle={} hca_object={}", number(limit.hca_handles()), number(limit.hca_objects()));
        Write::new("rdma", "rdma", "rdma.max", value)
    };
    r.rdma().iter().flatten().map(line).collect()
}

/// Opens `dir` and applies what of `writes` belongs to one of `controllers`.
pub(super) fn apply_in(dir: &std::path::Path, writes: &[Write], ours: impl Fn(&str) -> bool, changed: bool) -> Result<()> {
    let ours: Vec<&Write> = writes.iter().filter(|w| ours(&w.controller)).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let folder = Folder::open(dir).with_context(|| format!("the cgroup {}", dir.display()))?;
    apply(&folder, &ours, changed)
}
