//! What a container has used: the kernel's figures of both cgroup versions in the one shape that
//! `events` prints, which is runc's (v1's, with v2's figures converted into it). A file that is not
//! there leaves its figures 0 or out.

use super::Cgroup;
use super::record::Hierarchy;
use crate::json::{Write, Writer, written};
use crate::sys;
use std::collections::BTreeMap;
use std::path::Path;

/// All figures of one moment.
#[derive(Debug, Default)]
pub struct Stats {
    cpu: Cpu,
    cpuset: Cpuset,
    memory: Memory,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<String, Hugetlb>,
    /// `intel_rdt`, which the caller fills.
    pub intel_rdt: BTreeMap<String, String>,
    network_interfaces: Null,
}

/// A figure that is left out where it is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count(u64);

impl Write for Count {
    fn write(&self, writer: &mut Writer) {
        self.0.write(writer);
    }

    fn is_absent(&self) -> bool {
        self.0 == 0
    }
}

/// runc's, for want of devices that it made.
#[derive(Debug, Default)]
struct Null;

impl Write for Null {
    fn write(&self, writer: &mut Writer) {
        None::<u64>.write(writer);
    }
}

#[derive(Debug, Default)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    psi: Option<Psi>,
}

/// Nanoseconds.
#[derive(Debug, Default)]
struct CpuUsage {
    total: Count,
    percpu: Option<Vec<u64>>,
    percpu_kernel: Option<Vec<u64>>,
    percpu_user: Option<Vec<u64>>,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default)]
struct Throttling {
    periods: Count,
    throttled_periods: Count,
    throttled_time: Count,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Default, PartialEq)]
struct Psi {
    some: Pressure,
    full: Pressure,
}

#[derive(Debug, Default, PartialEq)]
struct Pressure {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

#[derive(Debug, Default)]
struct Cpuset {
    cpus: Option<Vec<u32>>,
    cpu_exclusive: u64,
    mems: Option<Vec<u32>>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Default)]
struct Memory {
    cache: Count,
    usage: MemoryUsage,
    swap: MemoryUsage,
    kernel: MemoryUsage,
    kernel_tcp: MemoryUsage,
    raw: Option<BTreeMap<String, u64>>,
    psi: Option<Psi>,
}

#[derive(Debug, Default)]
struct MemoryUsage {
    limit: u64,
    usage: Count,
    max: Count,
    failcnt: u64,
}

#[derive(Debug, Default)]
struct Pids {
    current: Count,
    limit: Count,
}

#[derive(Debug, Default)]
struct Blkio {
    service_bytes: Option<Vec<BlkioEntry>>,
    serviced: Option<Vec<BlkioEntry>>,
    queued: Option<Vec<BlkioEntry>>,
    service_time: Option<Vec<BlkioEntry>>,
    wait_time: Option<Vec<BlkioEntry>>,
    merged: Option<Vec<BlkioEntry>>,
    time: Option<Vec<BlkioEntry>>,
    sectors: Option<Vec<BlkioEntry>>,
    psi: Option<Psi>,
}

#[derive(Debug, Default, PartialEq)]
struct BlkioEntry {
    major: Count,
    minor: Count,
    op: Option<String>,
    value: Count,
}

#[derive(Debug, Default)]
struct Hugetlb {
    usage: Count,
    max: Count,
    failcnt: u64,
}

written! { Stats;
    "cpu" => cpu,
    "cpuset" => cpuset,
    "memory" => memory,
    "pids" => pids,
    "blkio" => blkio,
    "hugetlb" => hugetlb,
    "intel_rdt" => intel_rdt,
    "network_interfaces" => network_interfaces,
}
written! { Cpu; "usage" => usage, "throttling" => throttling, "psi" => psi, }
written! { CpuUsage;
    "total" => total,
    "percpu" => percpu,
    "percpu_kernel" => percpu_kernel,
    "percpu_user" => percpu_user,
    "kernel" => kernel,
    "user" => user,
}
written! { Throttling; "periods" => periods, "throttledPeriods" => throttled_periods, "throttledTime" => throttled_time, }
written! { Psi; "some" => some, "full" => full, }
written! { Pressure; "avg10" => avg10, "avg60" => avg60, "avg300" => avg300, "total" => total, }
written! { Cpuset;
    "cpus" => cpus,
    "cpu_exclusive" => cpu_exclusive,
    "mems" => mems,
    "mem_hardwall" => mem_hardwall,
    "mem_exclusive" => mem_exclusive,
    "memory_migrate" => memory_migrate,
    "memory_spread_page" => memory_spread_page,
    "memory_spread_slab" => memory_spread_slab,
    "memory_pressure" => memory_pressure,
    "sched_load_balance" => sched_load_balance,
    "sched_relax_domain_level" => sched_relax_domain_level,
}
written! { Memory;
    "cache" => cache,
    "usage" => usage,
    "swap" => swap,
    "kernel" => kernel,
    "kernelTCP" => kernel_tcp,
    "raw" => raw,
    "psi" => psi,
}
written! { MemoryUsage; "limit" => limit, "usage" => usage, "max" => max, "failcnt" => failcnt, }
written! { Pids; "current" => current, "limit" => limit, }
written! { Blkio;
    "ioServiceBytesRecursive" => service_bytes,
    "ioServicedRecursive" => serviced,
    "ioQueueRecursive" => queued,
    "ioServiceTimeRecursive" => service_time,
    "ioWaitTimeRecursive" => wait_time,
    "ioMergedRecursive" => merged,
    "ioTimeRecursive" => time,
    "sectorsRecursive" => sectors,
    "psi" => psi,
}
written! { BlkioEntry; "major" => major, "minor" => minor, "op" => op, "value" => value, }
written! { Hugetlb; "usage" => usage, "max" => max, "failcnt" => failcnt, }

impl Cgroup {
    /// Reads the figures of the container's cgroups.
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        for h in self.ours() {
            let files = Files(&h.dir);
            if h.v2 {
                stats.add_v2(&files, |controller| self.ours().any(|v1| v1.has(controller)));
            } else {
                stats.add_v1(&files, h);
            }
        }
        stats
    }
}

/// The files of a cgroup.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn text(&self, name: &str) -> Option<String> {
        String::from_utf8(sys::read_file(&self.0.join(name), 4096).ok()?).ok()
    }

    /// A file of one number; `max` is the largest there is.
    fn number(&self, name: &str) -> Option<u64> {
        number(self.text(name)?.trim_end())
    }

    fn count(&self, name: &str) -> Count {
        Count(self.number(name).unwrap_or(0))
    }

    /// A file of lines `KEY NUMBER`.
    fn table(&self, name: &str) -> Option<BTreeMap<String, u64>> {
        let text = self.text(name)?;
        let line = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), number(value)?))
        };
        Some(text.lines().filter_map(line).collect())
    }

    fn pressure(&self, name: &str) -> Option<Psi> {
        self.text(name).map(|text| psi(&text))
    }
}

fn number(text: &str) -> Option<u64> {
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

/// No limit is 0.
fn limit(count: Count) -> Count {
    Count(if count.0 == u64::MAX { 0 } else { count.0 })
}

fn psi(text: &str) -> Psi {
    let line = |name: &str| {
        let mut pressure = Pressure::default();
        let fields = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        for (key, value) in fields.split_whitespace().filter_map(|f| f.split_once('=')) {
            match key {
                "avg10" => pressure.avg10 = value.parse().unwrap_or_default(),
                "avg60" => pressure.avg60 = value.parse().unwrap_or_default(),
                "avg300" => pressure.avg300 = value.parse().unwrap_or_default(),
                "total" => pressure.total = value.parse().unwrap_or_default(),
                _ => (),
            }
        }
        pressure
    };
    Psi { some: line("some "), full: line("full ") }
}

/// `0-2,5` as 0, 1, 2, 5.
fn list(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.trim_end().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        all.extend(from.parse::<u32>().ok()?..=to.parse().ok()?);
    }
    Some(all)
}

/// The sizes of huge pages, as cgroup files are named: `2MB`.
fn huge_pages() -> Vec<String> {
    let name = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(match kib {
            1_048_576.. => format!("{}GB", kib >> 20),
            1024.. => format!("{}MB", kib >> 10),
            _ => format!("{kib}KB"),
        })
    };
    std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten().filter_map(name).collect()
}

impl Stats {
    fn add_v1(&mut self, files: &Files<'_>, h: &Hierarchy) {
        let ticks = |n: Option<&u64>| n.map_or(0, |n| n * 10_000_000);
        if h.has("cpu") {
            let table = files.table("cpu.stat").unwrap_or_default();
            let get = |key| Count(table.get(key).copied().unwrap_or(0));
            self.cpu.throttling =
                Throttling { periods: get("nr_periods"), throttled_periods: get("nr_throttled"), throttled_time: get("throttled_time") };
        }
        if h.has("cpuacct") {
            let table = files.table("cpuacct.stat").unwrap_or_default();
            let usage = &mut self.cpu.usage;
            (usage.user, usage.kernel) = (ticks(table.get("user")), ticks(table.get("system")));
            usage.total = files.count("cpuacct.usage");
            usage.percpu = files.text("cpuacct.usage_percpu").map(|t| t.split_whitespace().filter_map(|n| n.parse().ok()).collect());
            let all = files.text("cpuacct.usage_all").unwrap_or_default();
            let column = |n| all.lines().skip(1).filter_map(|l| l.split(' ').nth(n)?.parse().ok()).collect::<Vec<u64>>();
            usage.percpu_user = Some(column(1)).filter(|l| !l.is_empty());
            usage.percpu_kernel = Some(column(2)).filter(|l| !l.is_empty());
        }
        if h.has("cpuset") {
            let get = |name: &str| files.number(&format!("cpuset.{name}")).unwrap_or(0);
            self.cpuset = Cpuset {
                cpus: files.text("cpuset.cpus").and_then(|t| list(&t)),
                cpu_exclusive: get("cpu_exclusive"),
                mems: files.text("cpuset.mems").and_then(|t| list(&t)),
                mem_hardwall: get("mem_hardwall"),
                mem_exclusive: get("mem_exclusive"),
                memory_migrate: get("memory_migrate"),
                memory_spread_page: get("memory_spread_page"),
                memory_spread_slab: get("memory_spread_slab"),
                memory_pressure: get("memory_pressure"),
                sched_load_balance: get("sched_load_balance"),
                sched_relax_domain_level: files
                    .text("cpuset.sched_relax_domain_level")
                    .and_then(|t| t.trim_end().parse().ok())
                    .unwrap_or(0),
            };
        }
        if h.has("memory") {
            let usage = |name: &str| MemoryUsage {
                limit: files.number(&format!("memory.{name}limit_in_bytes")).unwrap_or(0),
                usage: files.count(&format!("memory.{name}usage_in_bytes")),
                max: files.count(&format!("memory.{name}max_usage_in_bytes")),
                failcnt: files.number(&format!("memory.{name}failcnt")).unwrap_or(0),
            };
            let raw = files.table("memory.stat");
            self.memory = Memory {
                cache: Count(raw.as_ref().and_then(|r| r.get("cache").copied()).unwrap_or(0)),
                usage: usage(""),
                swap: usage("memsw."),
                kernel: usage("kmem."),
                kernel_tcp: usage("kmem.tcp."),
                raw,
                psi: None,
            };
        }
        if h.has("pids") {
            self.pids = Pids { current: files.count("pids.current"), limit: limit(files.count("pids.max")) };
        }
        if h.has("blkio") {
            self.blkio = blkio(files);
        }
        if h.has("hugetlb") {
            self.hugetlb = hugetlb(files, ".usage_in_bytes", ".max_usage_in_bytes", |name| files.number(&format!("{name}.failcnt")));
        }
    }

    /// What v1 hierarchies beside it hold is theirs to tell.
    fn add_v2(&mut self, files: &Files<'_>, on_v1: impl Fn(&str) -> bool) {
        if !on_v1("pids") && !on_v1("freezer") {
            let listed = || files.text("cgroup.procs").map(|t| t.lines().count() as u64);
            let current = files.number("pids.current").or_else(listed).unwrap_or(0);
            self.pids = Pids { current: Count(current), limit: limit(files.count("pids.max")) };
        }
        if !on_v1("cpuacct") {
            let table = files.table("cpu.stat").unwrap_or_default();
            let get = |key| table.get(key).copied().unwrap_or(0);
            let usage = &mut self.cpu.usage;
            usage.total = Count(get("usage_usec") * 1000);
            (usage.user, usage.kernel) = (get("user_usec") * 1000, get("system_usec") * 1000);
            self.cpu.throttling = Throttling {
                periods: Count(get("nr_periods")),
                throttled_periods: Count(get("nr_throttled")),
                throttled_time: Count(get("throttled_usec") * 1000),
            };
            self.cpu.psi = files.pressure("cpu.pressure");
        }
        if !on_v1("memory") {
            self.memory = memory(files);
        }
        if !on_v1("blkio") {
            self.blkio = io(&files.text("io.stat").unwrap_or_default());
            self.blkio.psi = files.pressure("io.pressure");
        }
        if !on_v1("hugetlb") {
            let failures = |name: &str| files.table(&format!("{}.events", name.trim_end_matches(".rsvd")))?.get("max").copied();
            self.hugetlb = hugetlb(files, ".current", "", failures);
        }
    }
}

/// v2's, with swap as v1 counts it: together with memory.
fn memory(files: &Files<'_>) -> Memory {
    let usage = |name: &str| MemoryUsage {
        limit: files.number(&format!("memory.{name}max")).unwrap_or(0),
        usage: files.count(&format!("memory.{name}current")),
        max: files.count(&format!("memory.{name}peak")),
        failcnt: 0,
    };
    let (memory, mut swap) = (usage(""), usage("swap."));
    swap.usage.0 += memory.usage.0;
    swap.limit = swap.limit.saturating_add(memory.limit);
    swap.max = Count(0);
    let raw = files.table("memory.stat");
    Memory {
        cache: Count(raw.as_ref().and_then(|r| r.get("file").copied()).unwrap_or(0)),
        usage: memory,
        swap,
        raw,
        psi: files.pressure("memory.pressure"),
        ..Memory::default()
    }
}

fn hugetlb(files: &Files<'_>, usage: &str, max: &str, failures: impl Fn(&str) -> Option<u64>) -> BTreeMap<String, Hugetlb> {
    let mut all = BTreeMap::new();
    for size in huge_pages() {
        // Reserved pages are counted too, where the kernel does (Linux 5.7).
        let names = [format!("hugetlb.{size}.rsvd"), format!("hugetlb.{size}")];
        let Some((name, n)) = names.iter().find_map(|name| Some((name, files.number(&format!("{name}{usage}"))?))) else { continue };
        let max = if max.is_empty() { Count(0) } else { files.count(&format!("{name}{max}")) };
        all.insert(size, Hugetlb { usage: Count(n), max, failcnt: failures(name).unwrap_or(0) });
    }
    all
}

/// v1's, of whichever I/O scheduler or policy has them.
fn blkio(files: &Files<'_>) -> Blkio {
    let read = |prefix: &str, name: &str| {
        let entries: Vec<BlkioEntry> = files.text(&format!("blkio.{prefix}{name}"))?.lines().filter_map(entry).collect();
        Some(entries).filter(|list| !list.is_empty())
    };
    for (prefix, suffix) in [("bfq.", "_recursive"), ("", "_recursive"), ("throttle.", "_recursive"), ("throttle.", "")] {
        let get = |name: &str| read(prefix, &format!("{name}{suffix}"));
        if let Some(serviced) = get("io_serviced") {
            return Blkio {
                service_bytes: get("io_service_bytes"),
                serviced: Some(serviced),
                queued: get("io_queued"),
                service_time: get("io_service_time"),
                wait_time: get("io_wait_time"),
                merged: get("io_merged"),
                time: get("time"),
                sectors: get("sectors"),
                psi: None,
            };
        }
    }
    Blkio::default()
}

/// `8:0 Read 124`, or `8:0 124`; not the line of the total.
fn entry(line: &str) -> Option<BlkioEntry> {
    let fields: Vec<&str> = line.split([' ', ':']).collect();
    let (op, value) = match fields[..] {
        [_, _, value] => (None, value),
        [_, _, op, value] => (Some(op.to_owned()), value),
        _ => return None,
    };
    let number = |text: &str| text.parse().ok().map(Count);
    Some(BlkioEntry { major: number(fields[0])?, minor: number(fields[1])?, op, value: number(value)? })
}

/// v2's `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io(text: &str) -> Blkio {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let Some((device, fields)) = line.split_once(' ') else { continue };
        for (key, value) in fields.split(' ').filter_map(|f| f.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                _ => continue,
            };
            list.extend(entry(&format!("{device} {op} {value}")));
        }
    }
    let some = |list: Vec<BlkioEntry>| Some(list).filter(|l| !l.is_empty());
    Blkio { service_bytes: some(bytes), serviced: some(operations), ..Blkio::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(list("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(list("\n"), None);
    }

    #[test]
    fn pressure() {
        let text = "some avg10=1.25 avg60=0.00 avg300=0.10 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        assert_eq!(
            json::text(&psi(text)),
            r#"{"some":{"avg10":1.25,"avg60":0,"avg300":0.1,"total":77},"full":{"avg10":0,"avg60":0,"avg300":0,"total":5}}"#
        );
    }

    #[test]
    fn block_devices() {
        assert_eq!(json::text(&entry("8:0 Read 124").unwrap()), r#"{"major":8,"op":"Read","value":124}"#);
        assert!(entry("Total 228").is_none());
        let blkio = io("8:0 rbytes=1 wbytes=2 rios=3 wios=0 dbytes=9 dios=9\n");
        assert_eq!(blkio.service_bytes.unwrap().len(), 2);
        assert_eq!(blkio.serviced.unwrap()[1].value, Count(0));
    }

    #[test]
    fn nothing_used_is_what_runc_prints() {
        let text = json::text(&Stats::default());
        assert!(text.starts_with(r#"{"cpu":{"usage":{"kernel":0,"user":0},"throttling":{}},"cpuset":{"cpu_exclusive":0,"#), "{text}");
        assert!(text.ends_with(r#""pids":{},"blkio":{},"hugetlb":{},"intel_rdt":{},"network_interfaces":null}"#), "{text}");
    }
}
