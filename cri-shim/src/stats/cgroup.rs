//! Where a container's or pod's cgroups are, and what the kernel's files in them say, v1, v2 and both side by side.
//!
//! A file that is missing (a controller that is off, a kernel without it) leaves its figures 0 or `None`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use super::read::{Reader, flat, number};

/// Where hierarchies are mounted: by controller, and v2 by the empty name.
static MOUNTS: LazyLock<HashMap<String, PathBuf>> =
    LazyLock::new(|| mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()));

/// The folders of one cgroup.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cgroup {
    /// In each v1 hierarchy, by controller.
    v1: HashMap<String, PathBuf>,
    /// In v2.
    v2: Option<PathBuf>,
    /// Its path in the hierarchy of the memory controller.
    pub path: String,
}

/// What is read on each call, in bytes and nanoseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Usage {
    /// When, in nanoseconds since the epoch.
    pub at: i64,
    pub cpu: Cpu,
    pub memory: Memory,
    /// Tasks, and how many there may be.
    pub tasks: u64,
    pub tasks_max: Option<u64>,
    /// Pressure of cpu, memory and io.
    pub pressure: [Option<Pressure>; 3],
    /// Only in a complete reading.
    pub io: Vec<Io>,
    /// Only in a complete reading.
    pub huge: Vec<Huge>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cpu {
    pub usage: u64,
    pub user: u64,
    pub system: u64,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled: u64,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Memory {
    pub usage: u64,
    pub peak: u64,
    pub cache: u64,
    pub anonymous: u64,
    pub kernel: u64,
    pub mapped: u64,
    pub inactive_file: u64,
    pub swap: u64,
    pub faults: u64,
    pub major_faults: u64,
    /// How often the limit was hit.
    pub failures: u64,
    pub oom_kills: u64,
    pub limit: Option<u64>,
    /// Of swap alone.
    pub swap_limit: Option<u64>,
}

impl Memory {
    /// What cannot be given back at once.
    pub(super) fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }
}

/// `*.pressure`: shares of the last 10, 60 and 300 seconds in percent, and the total.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Stall {
    pub averages: [f64; 3],
    pub total: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Pressure {
    pub some: Stall,
    pub full: Stall,
}

/// A block device's traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Io {
    pub device: (u64, u64),
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Huge {
    pub size: String,
    pub usage: u64,
    pub peak: u64,
}

impl Cgroup {
    /// The cgroups that a process is in; `None` once it is gone.
    pub(super) fn of_process(pid: i32) -> Option<Cgroup> {
        Cgroup::parse(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?, &MOUNTS)
    }

    fn parse(text: &str, mounts: &HashMap<String, PathBuf>) -> Option<Cgroup> {
        let mut found = Cgroup { v1: HashMap::new(), v2: None, path: String::new() };
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            for controller in controllers.split(',') {
                let Some(mount) = mounts.get(controller) else { continue };
                let folder = mount.join(path.trim_start_matches('/'));
                match controller {
                    "" => found.v2 = Some(folder),
                    _ => _ = found.v1.insert(controller.to_owned(), folder),
                }
                if controller == "memory" || (controller.is_empty() && found.path.is_empty()) {
                    path.clone_into(&mut found.path);
                }
            }
        }
        // The root of v2 on a host that uses v1 is everybody's.
        if !found.v1.is_empty() && found.v2 == mounts.get("").cloned() {
            found.v2 = None;
        }
        Some(found)
    }

    /// A pod's cgroup by its configuration's `cgroup_parent`; `None` where there is none.
    pub(super) fn of_pod(parent: &str) -> Option<Cgroup> {
        let path = match parent {
            "" | "/" => return None,
            _ if parent.ends_with(".slice") && !parent.contains('/') => expand_slice(parent),
            _ => format!("/{}", parent.trim_matches('/')),
        };
        let folder = |mount: &PathBuf| Some(mount.join(path.trim_start_matches('/'))).filter(|folder| folder.exists());
        let v1: HashMap<_, _> =
            MOUNTS.iter().filter(|(name, _)| !name.is_empty()).filter_map(|(name, mount)| Some((name.clone(), folder(mount)?))).collect();
        let v2 = MOUNTS.get("").and_then(folder);
        (!v1.is_empty() || v2.is_some()).then_some(Cgroup { v1, v2, path })
    }

    /// The folder of a controller and whether it is v2's.
    fn folder(&self, controller: &str) -> Option<(&Path, bool)> {
        match self.v1.get(controller) {
            Some(folder) => Some((folder, false)),
            None => self.v2.as_deref().map(|folder| (folder, true)),
        }
    }

    /// What CRI's statistics need, or with `complete` what the metrics need, too; `None` if it is gone.
    pub(super) fn read(&self, reader: &mut Reader, complete: bool) -> Option<Usage> {
        let (cpu, memory) = (self.cpu(reader, complete), self.memory(reader));
        if cpu.is_none() && memory.is_none() {
            return None;
        }
        let mut usage = Usage {
            at: super::now(),
            cpu: cpu.unwrap_or_default(),
            memory: memory.unwrap_or_default(),
            tasks: self.folder("pids").and_then(|(folder, _)| reader.number(folder, "pids.current")).unwrap_or(0),
            pressure: ["cpu.pressure", "memory.pressure", "io.pressure"].map(|file| {
                let text = reader.text(self.v2.as_deref()?, file)?;
                Some(pressure(text))
            }),
            ..Usage::default()
        };
        if complete {
            self.complete(reader, &mut usage);
        }
        Some(usage)
    }

    fn complete(&self, reader: &mut Reader, usage: &mut Usage) {
        if let Some((folder, _)) = self.folder("pids") {
            usage.tasks_max = reader.number(folder, "pids.max");
        }
        if let Some((folder, v2)) = self.folder("memory") {
            let memory = &mut usage.memory;
            let (peak, events) = if v2 { ("memory.peak", "memory.events") } else { ("memory.max_usage_in_bytes", "memory.oom_control") };
            memory.peak = reader.number(folder, peak).unwrap_or(0);
            let events = reader.text(folder, events).unwrap_or_default();
            memory.oom_kills = flat(events, "oom_kill").unwrap_or(0);
            memory.failures = flat(events, "max").unwrap_or(0);
            if !v2 {
                memory.failures = reader.number(folder, "memory.failcnt").unwrap_or(0);
                memory.kernel = reader.number(folder, "memory.kmem.usage_in_bytes").unwrap_or(0);
            }
        }
        usage.io = self.io(reader);
        usage.huge = self.huge(reader);
    }

    fn cpu(&self, reader: &mut Reader, complete: bool) -> Option<Cpu> {
        let mut cpu = Cpu::default();
        let (folder, v2) = self.folder("cpu")?;
        if v2 || complete {
            let stat = reader.text(folder, "cpu.stat")?;
            let get = |name| flat(stat, name).unwrap_or(0);
            (cpu.periods, cpu.throttled_periods) = (get("nr_periods"), get("nr_throttled"));
            if v2 {
                (cpu.usage, cpu.user, cpu.system) = (get("usage_usec") * 1000, get("user_usec") * 1000, get("system_usec") * 1000);
                cpu.throttled = get("throttled_usec") * 1000;
            } else {
                cpu.throttled = get("throttled_time");
            }
        }
        if let Some((folder, false)) = self.folder("cpuacct") {
            cpu.usage = reader.number(folder, "cpuacct.usage")?;
            if complete {
                let stat = reader.text(folder, "cpuacct.stat").unwrap_or_default();
                // In ticks of 1/100 s, on every architecture that Linux shows to programs.
                let get = |name| flat(stat, name).unwrap_or(0) * 10_000_000;
                (cpu.user, cpu.system) = (get("user"), get("system"));
            }
        }
        Some(cpu)
    }

    fn memory(&self, reader: &mut Reader) -> Option<Memory> {
        let (folder, v2) = self.folder("memory")?;
        let mut memory = Memory::default();
        let files: [&str; 3] = if v2 {
            ["memory.current", "memory.max", "memory.swap.max"]
        } else {
            ["memory.usage_in_bytes", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        };
        memory.usage = reader.number(folder, files[0])?;
        // v1 says "no limit" by a number near the largest.
        let real = |limit: &u64| *limit < 1 << 60;
        memory.limit = reader.number(folder, files[1]).filter(real);
        memory.swap_limit = reader.number(folder, files[2]).filter(real);
        if v2 {
            memory.swap = reader.number(folder, "memory.swap.current").unwrap_or(0);
        } else {
            memory.swap_limit = memory.swap_limit.map(|both| both.saturating_sub(memory.limit.unwrap_or(both)));
        }
        let names: [&str; 7] = match v2 {
            true => ["anon", "file", "kernel", "file_mapped", "inactive_file", "pgfault", "pgmajfault"],
            false => ["total_rss", "total_cache", "", "total_mapped_file", "total_inactive_file", "total_pgfault", "total_pgmajfault"],
        };
        let stat = reader.text(folder, "memory.stat").unwrap_or_default();
        for line in stat.lines() {
            let Some((name, value)) = line.split_once(' ') else { continue };
            let place = match names.iter().position(|known| *known == name) {
                Some(0) => &mut memory.anonymous,
                Some(1) => &mut memory.cache,
                Some(2) => &mut memory.kernel,
                Some(3) => &mut memory.mapped,
                Some(4) => &mut memory.inactive_file,
                Some(5) => &mut memory.faults,
                Some(6) => &mut memory.major_faults,
                None if name == "total_swap" => &mut memory.swap,
                _ => continue,
            };
            *place = number(value).unwrap_or(0);
        }
        Some(memory)
    }

    fn io(&self, reader: &mut Reader) -> Vec<Io> {
        match self.folder("blkio") {
            Some((folder, false)) => {
                let mut all = Vec::new();
                for (file, bytes) in [("blkio.throttle.io_service_bytes_recursive", true), ("blkio.throttle.io_serviced_recursive", false)]
                {
                    io_v1(reader.text(folder, file).unwrap_or_default(), bytes, &mut all);
                }
                all
            }
            Some((folder, true)) => io_v2(reader.text(folder, "io.stat").unwrap_or_default()),
            None => Vec::new(),
        }
    }

    fn huge(&self, reader: &mut Reader) -> Vec<Huge> {
        let Some((folder, v2)) = self.folder("hugetlb") else { return Vec::new() };
        let (now, peak) = if v2 { ("current", "current") } else { ("usage_in_bytes", "max_usage_in_bytes") };
        let mut all = Vec::new();
        for size in HUGE_SIZES.iter() {
            if let Some(usage) = reader.number(folder, &format!("hugetlb.{size}.{now}")) {
                let peak = reader.number(folder, &format!("hugetlb.{size}.{peak}")).unwrap_or(usage);
                all.push(Huge { size: size.clone(), usage, peak });
            }
        }
        all
    }

    /// The processes in it and in the cgroups below it.
    pub(super) fn processes(&self, reader: &mut Reader) -> Vec<i32> {
        let folder = self.folder("pids").or_else(|| self.folder("memory")).or_else(|| self.folder("cpu"));
        let mut all = Vec::new();
        if let Some((folder, _)) = folder {
            collect_processes(folder, reader, &mut all, 0);
        }
        all
    }
}

/// Containers may make cgroups of their own; nobody nests them deeper than that.
fn collect_processes(folder: &Path, reader: &mut Reader, all: &mut Vec<i32>, depth: u32) {
    all.extend(reader.text(folder, "cgroup.procs").unwrap_or_default().lines().filter_map(|line| line.parse::<i32>().ok()));
    if depth < 8 {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                collect_processes(&entry.path(), reader, all, depth + 1);
            }
        }
    }
}

/// The kernel's sizes of huge pages (`2MB`).
static HUGE_SIZES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| {
        let kilobytes: u64 = entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(match kilobytes {
            _ if kilobytes.is_multiple_of(1 << 20) => format!("{}GB", kilobytes >> 20),
            _ if kilobytes.is_multiple_of(1 << 10) => format!("{}MB", kilobytes >> 10),
            _ => format!("{kilobytes}KB"),
        })
    };
    entries.filter_map(name).collect()
});

/// Mounts of cgroup hierarchies by controller, from /proc/self/mountinfo.
fn mounts(table: &str) -> HashMap<String, PathBuf> {
    let mut found = HashMap::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (mut left, mut right) = (left.split(' '), right.split(' '));
        let (Some(place), Some(typ), Some(options)) = (left.nth(4), right.next(), right.nth(1)) else { continue };
        match typ {
            "cgroup2" => _ = found.entry(String::new()).or_insert_with(|| PathBuf::from(place)),
            "cgroup" => {
                for controller in options.split(',').filter(|option| !matches!(*option, "rw" | "ro") && !option.contains('=')) {
                    found.entry(controller.to_owned()).or_insert_with(|| PathBuf::from(place));
                }
            }
            _ => (),
        }
    }
    found
}

/// `a-b.slice` is in `a.slice`.
fn expand_slice(slice: &str) -> String {
    let name = slice.strip_suffix(".slice").unwrap_or(slice);
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| format!("/{}.slice", &name[..end])).collect()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` in microseconds, and the same for `full`.
fn pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut fields = line.split(' ');
        let place = match fields.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for field in fields {
            match field.split_once('=') {
                Some(("avg10", value)) => place.averages[0] = value.parse().unwrap_or(0.0),
                Some(("avg60", value)) => place.averages[1] = value.parse().unwrap_or(0.0),
                Some(("avg300", value)) => place.averages[2] = value.parse().unwrap_or(0.0),
                Some(("total", value)) => place.total = number(value).unwrap_or(0) * 1000,
                _ => (),
            }
        }
    }
    pressure
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((number(major)?, number(minor)?))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`
fn io_v2(text: &str) -> Vec<Io> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let mut io = Io { device: device(fields.next()?)?, ..Io::default() };
        for field in fields {
            match field.split_once('=') {
                Some(("rbytes", value)) => io.read_bytes = number(value)?,
                Some(("wbytes", value)) => io.write_bytes = number(value)?,
                Some(("rios", value)) => io.reads = number(value)?,
                Some(("wios", value)) => io.writes = number(value)?,
                _ => (),
            }
        }
        Some(io)
    };
    text.lines().filter_map(line).collect()
}

/// `8:0 Read 1` and so on, line by line.
fn io_v1(text: &str, bytes: bool, all: &mut Vec<Io>) {
    for line in text.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(operation), Some(value)) = (fields.next().and_then(device), fields.next(), fields.next().and_then(number))
        else {
            continue;
        };
        if !all.iter().any(|io| io.device == device) {
            all.push(Io { device, ..Io::default() });
        }
        let Some(io) = all.iter_mut().find(|io| io.device == device) else { continue };
        match (operation, bytes) {
            ("Read", true) => io.read_bytes = value,
            ("Write", true) => io.write_bytes = value,
            ("Read", false) => io.reads = value,
            ("Write", false) => io.writes = value,
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 29 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
                          31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
                          32 29 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                          33 29 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn folders_of_a_process() {
        let both = Cgroup::parse("3:memory:/pod/c\n2:cpu,cpuacct:/pod/c\n0::/\n", &mounts(HYBRID)).unwrap();
        assert_eq!(both.folder("memory"), Some((Path::new("/sys/fs/cgroup/memory/pod/c"), false)));
        assert_eq!(both.folder("cpuacct"), Some((Path::new("/sys/fs/cgroup/cpu,cpuacct/pod/c"), false)));
        assert_eq!((both.v2.as_ref(), both.path.as_str()), (None, "/pod/c"));
        let v2 = mounts("30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        let only = Cgroup::parse("0::/pod.slice/cri-1.scope\n", &v2).unwrap();
        assert_eq!(only.folder("memory"), Some((Path::new("/sys/fs/cgroup/pod.slice/cri-1.scope"), true)));
        assert!(Cgroup::of_process(i32::MAX).is_none());
        assert!(Cgroup::of_process(std::process::id() as i32).is_some());
    }

    #[test]
    fn slices() {
        assert_eq!(expand_slice("kubepods-burstable-pod1.slice"), "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice");
        assert_eq!(expand_slice("test.slice"), "/test.slice");
        assert!(Cgroup::of_pod("").is_none() && Cgroup::of_pod("/no/such/cgroup").is_none());
    }

    #[test]
    fn the_kernels_texts() {
        let read = pressure("some avg10=0.50 avg60=1.00 avg300=2.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n");
        assert_eq!((read.some.averages, read.some.total, read.full.total), ([0.5, 1.0, 2.0], 7000, 3000));
        let io = io_v2("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n");
        assert_eq!(io[0], Io { device: (8, 0), read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 });
        let mut all = Vec::new();
        io_v1("8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n", true, &mut all);
        io_v1("8:0 Read 5\n", false, &mut all);
        assert_eq!(all, [Io { device: (8, 0), read_bytes: 1, write_bytes: 2, reads: 5, writes: 0 }]);
    }

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("rrun-cri-cgroup-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        for (file, text) in files {
            fs::write(path.join(file), text).unwrap();
        }
        path
    }

    #[test]
    fn both_versions_say_the_same() {
        let v2 = folder(
            "v2",
            &[
                ("cpu.stat", "usage_usec 3000\nuser_usec 2000\nsystem_usec 1000\nnr_periods 4\nnr_throttled 2\nthrottled_usec 5\n"),
                ("memory.current", "1000\n"),
                ("memory.max", "max\n"),
                ("memory.swap.max", "50\n"),
                ("memory.swap.current", "10\n"),
                ("memory.stat", "anon 300\nfile 400\nkernel 60\nfile_mapped 70\ninactive_file 200\npgfault 8\npgmajfault 9\n"),
                ("memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\n"),
                ("pids.current", "3\n"),
                ("pids.max", "max\n"),
            ],
        );
        let v1 = folder(
            "v1",
            &[
                ("cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 5000\n"),
                ("cpuacct.usage", "3000000\n"),
                ("cpuacct.stat", "user 0\nsystem 0\n"),
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
                (
                    "memory.stat",
                    "rss 1\ntotal_rss 300\ntotal_cache 400\ntotal_mapped_file 70\ntotal_inactive_file 200\ntotal_swap 10\ntotal_pgfault 8\ntotal_pgmajfault 9\n",
                ),
                ("memory.failcnt", "5\n"),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
                ("pids.current", "3\n"),
            ],
        );
        let all = ["cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb"].map(|name| (name.to_owned(), v1.clone()));
        let old = Cgroup { v1: all.into(), v2: None, path: "/x".into() };
        let new = Cgroup { v1: HashMap::new(), v2: Some(v2.clone()), path: "/x".into() };
        let mut reader = Reader::default();
        let (old, new) = (old.read(&mut reader, true).unwrap(), new.read(&mut reader, true).unwrap());
        for usage in [&old, &new] {
            assert_eq!((usage.cpu.usage, usage.cpu.throttled, usage.cpu.periods, usage.tasks), (3_000_000, 5000, 4, 3));
            let m = &usage.memory;
            assert_eq!((m.usage, m.working_set(), m.anonymous, m.cache, m.mapped), (1000, 800, 300, 400, 70));
            assert_eq!((m.swap, m.faults, m.major_faults, m.failures, m.oom_kills), (10, 8, 9, 5, 1));
            assert_eq!((m.limit, usage.tasks_max), (None, None));
        }
        assert_eq!((new.memory.kernel, new.memory.swap_limit, old.memory.swap_limit), (60, Some(50), None));
        fs::remove_dir_all(v1).unwrap();
        fs::remove_dir_all(v2).unwrap();
    }
}
