//! Limits as the kernel really holds them, on v1 and v2; update; where cgroups are and how they go.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tests::{Runtime, cgroup, host, require};

const SLEEP: [&str; 2] = ["/probe", "sleep"];
const MIB: i64 = 1 << 20;

/// One limit: what the configuration says, and what the kernel's file must hold on v1 and on v2.
struct Limit {
    resources: Value,
    v1: &'static [(&'static str, &'static str, &'static str)],
    v2: &'static [(&'static str, &'static str, &'static str)],
}

fn limits() -> Vec<Limit> {
    vec![
        Limit {
            resources: json!({"memory": {"limit": 64 * MIB, "reservation": 32 * MIB}}),
            v1: &[("memory", "memory.limit_in_bytes", "67108864"), ("memory", "memory.soft_limit_in_bytes", "33554432")],
            v2: &[("memory", "memory.max", "67108864"), ("memory", "memory.low", "33554432")],
        },
        Limit {
            resources: json!({"memory": {"limit": 64 * MIB, "swap": 96 * MIB}}),
            v1: &[("memory", "memory.limit_in_bytes", "67108864"), ("memory", "memory.memsw.limit_in_bytes", "100663296")],
            v2: &[("memory", "memory.max", "67108864"), ("memory", "memory.swap.max", "33554432")],
        },
        Limit {
            resources: json!({"memory": {"limit": 64 * MIB, "swap": -1}}),
            v1: &[("memory", "memory.memsw.limit_in_bytes", "9223372036854771712")],
            v2: &[("memory", "memory.swap.max", "max")],
        },
        Limit { resources: json!({"memory": {"swappiness": 11}}), v1: &[("memory", "memory.swappiness", "11")], v2: &[] },
        Limit {
            resources: json!({"memory": {"limit": 64 * MIB, "disableOOMKiller": true}}),
            v1: &[("memory", "memory.oom_control", "oom_kill_disable 1\nunder_oom 0\noom_kill 0")],
            v2: &[],
        },
        Limit { resources: json!({"pids": {"limit": 42}}), v1: &[("pids", "pids.max", "42")], v2: &[("pids", "pids.max", "42")] },
        Limit { resources: json!({"pids": {"limit": 0}}), v1: &[("pids", "pids.max", "1")], v2: &[("pids", "pids.max", "1")] },
        Limit { resources: json!({"pids": {"limit": -1}}), v1: &[("pids", "pids.max", "max")], v2: &[("pids", "pids.max", "max")] },
        Limit {
            resources: json!({"cpu": {"quota": 25000, "period": 50000}}),
            v1: &[("cpu", "cpu.cfs_quota_us", "25000"), ("cpu", "cpu.cfs_period_us", "50000")],
            v2: &[("cpu", "cpu.max", "25000 50000")],
        },
        Limit {
            resources: json!({"cpu": {"quota": 30000}}),
            v1: &[("cpu", "cpu.cfs_quota_us", "30000"), ("cpu", "cpu.cfs_period_us", "100000")],
            v2: &[("cpu", "cpu.max", "30000 100000")],
        },
        Limit {
            resources: json!({"cpu": {"quota": 30000, "period": 100000, "burst": 10000}}),
            v1: &[("cpu", "cpu.cfs_burst_us", "10000")],
            v2: &[("cpu", "cpu.max.burst", "10000")],
        },
        Limit { resources: json!({"cpu": {"shares": 512}}), v1: &[("cpu", "cpu.shares", "512")], v2: &[("cpu", "cpu.weight", "20|58|59")] },
        Limit { resources: json!({"cpu": {"idle": 1}}), v1: &[("cpu", "cpu.idle", "1")], v2: &[("cpu", "cpu.idle", "1")] },
        Limit {
            resources: json!({"cpu": {"cpus": "0", "mems": "0"}}),
            v1: &[("cpuset", "cpuset.cpus", "0"), ("cpuset", "cpuset.mems", "0")],
            v2: &[("cpuset", "cpuset.cpus", "0"), ("cpuset", "cpuset.mems", "0")],
        },
        Limit {
            resources: json!({"unified": {"memory.high": "50331648", "pids.max": "33"}}),
            v1: &[],
            v2: &[("memory", "memory.high", "50331648"), ("pids", "pids.max", "33")],
        },
    ]
}

/// The first real block device: its numbers, for I/O limits.
fn block_device() -> Option<(u64, u64)> {
    let entries = fs::read_dir("/sys/block").ok()?.flatten();
    let numbers = entries.filter(|e| e.path().join("device").exists() || e.file_name().to_string_lossy().starts_with("ubd"));
    let text = fs::read_to_string(numbers.map(|e| e.path()).min()?.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[test]
fn limits_reach_the_kernel() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    for limit in limits() {
        let files = if host::cgroup_version() == 1 { limit.v1 } else { limit.v2 };
        let usable = files.iter().all(|(controller, ..)| cgroup::has(controller));
        if files.is_empty() || !usable {
            continue;
        }
        let c = rt.start(rt.bundle().args(SLEEP).set("/linux/resources", limit.resources.clone()));
        for (controller, file, value) in files {
            let Some(seen) = cgroup::read(c.pid(), controller, file) else {
                host::skip(&format!("a kernel with {file}"));
                continue;
            };
            assert!(value.split('|').any(|v| v == seen), "{file} is {seen:?}, not {value:?}, of {}", limit.resources);
        }
        c.end();
        rt.assert_nothing_left();
    }
}

#[test]
fn throttling_of_block_devices() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    let Some((major, minor)) = block_device() else { return host::skip("a block device") };
    require!(cgroup::has(if host::cgroup_version() == 1 { "blkio" } else { "io" }), "the io controller");
    let rate = |n: i64| json!([{"major": major, "minor": minor, "rate": n}]);
    let resources = json!({"blockIO": {
        "throttleReadBpsDevice": rate(1048576), "throttleWriteBpsDevice": rate(2097152),
        "throttleReadIOPSDevice": rate(100), "throttleWriteIOPSDevice": rate(200),
    }});
    let c = rt.start(rt.bundle().args(SLEEP).set("/linux/resources", resources));
    if host::cgroup_version() == 2 {
        let seen = cgroup::read(c.pid(), "io", "io.max").unwrap();
        assert_eq!(seen, format!("{major}:{minor} rbps=1048576 wbps=2097152 riops=100 wiops=200"));
    } else {
        for (file, n) in [("read_bps", 1048576), ("write_bps", 2097152), ("read_iops", 100), ("write_iops", 200)] {
            let seen = cgroup::read(c.pid(), "blkio", &format!("blkio.throttle.{file}_device")).unwrap();
            assert_eq!(seen, format!("{major}:{minor} {n}"), "{file}");
        }
    }
}

#[test]
fn huge_page_limits() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    require!(cgroup::has("hugetlb"), "the hugetlb controller in this hierarchy");
    let limits = json!([{"pageSize": "2MB", "limit": 4 * MIB}]);
    let c = rt.start(rt.bundle().args(SLEEP).set("/linux/resources/hugepageLimits", limits));
    let file = if host::cgroup_version() == 1 { "hugetlb.2MB.limit_in_bytes" } else { "hugetlb.2MB.max" };
    assert_eq!(cgroup::read(c.pid(), "hugetlb", file).unwrap(), "4194304");
}

#[test]
fn a_memory_limit_bites() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && cgroup::has("memory"), "root: the memory controller");
    let bundle = || rt.bundle().set("/linux/resources/memory", json!({"limit": 32 * MIB, "swap": 32 * MIB}));
    rt.container(bundle().args(["/probe", "fill", "200"])).run().exits(137);
    rt.container(bundle().args(["/probe", "fill", "4"])).run().ok();
}

#[test]
fn a_small_memory_limit_does_not_keep_it_from_starting() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && cgroup::has("memory"), "root: the memory controller");
    require!(!rt.differs("small memory limit"), "this peer needs more");
    let bundle = rt.bundle().args(["/probe", "exit", "3"]).set("/linux/resources/memory", json!({"limit": 2 * MIB}));
    rt.container(bundle).run().exits(3);
}

#[test]
fn a_process_limit_bites() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && cgroup::has("pids"), "root: the pids controller");
    let bundle = rt.bundle().args(["/probe", "children", "20"]).set("/linux/resources/pids", json!({"limit": 8}));
    rt.container(bundle).run().exits(95);
}

#[test]
fn a_cpu_limit_bites() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && cgroup::has("cpu"), "root: the cpu controller");
    let bundle = rt.bundle().args(["/probe", "spin", "1500"]).set("/linux/resources/cpu", json!({"quota": 20000, "period": 100000}));
    let done = rt.container(bundle).run().ok();
    let numbers: Vec<u64> = done.stdout.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(numbers[0] * 2 < numbers[1], "used {} of {} ms with a fifth of a processor", numbers[0], numbers[1]);
}

#[test]
fn a_cpu_set_is_what_the_process_may_use() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && cgroup::has("cpuset"), "root: the cpuset controller");
    let result = rt.tries(rt.bundle().set("/linux/resources/cpu", json!({"cpus": "0"})), &["cpus"]);
    assert_eq!(result["cpus"], "1");
}

#[test]
fn update_by_flags() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    let v1 = host::cgroup_version() == 1;
    let c = rt.start(rt.bundle().args(SLEEP).set("/linux/resources", json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 20}})));
    let pid = c.pid();
    // Flags, controller, file and value on v1, file and value on v2.
    type Case = (&'static [&'static str], &'static str, &'static str, &'static str, &'static str, &'static str);
    let cases: &[Case] = &[
        (&["--memory", "50M"], "memory", "memory.limit_in_bytes", "52428800", "memory.max", "52428800"),
        (&["--memory", "100663296", "--memory-swap", "-1"], "memory", "memory.limit_in_bytes", "100663296", "memory.max", "100663296"),
        (&["--memory-reservation", "20M"], "memory", "memory.soft_limit_in_bytes", "20971520", "memory.low", "20971520"),
        (&["--pids-limit", "10"], "pids", "pids.max", "10", "pids.max", "10"),
        // As runc writes it: systemd takes no 0, and nobody can fork with either.
        (&["--pids-limit", "0"], "pids", "pids.max", "1", "pids.max", "1"),
        (&["--pids-limit", "10"], "pids", "pids.max", "10", "pids.max", "10"),
        (&["--cpu-period", "90000", "--cpu-quota", "63000"], "cpu", "cpu.cfs_quota_us", "63000", "cpu.max", "63000 90000"),
        (&["--cpu-share", "256"], "cpu", "cpu.shares", "256", "cpu.weight", "10|29|35"),
        (&["--cpuset-cpus", "0"], "cpuset", "cpuset.cpus", "0", "cpuset.cpus", "0"),
        (&["--cpu-idle", "1"], "cpu", "cpu.idle", "1", "cpu.idle", "1"),
    ];
    for (flags, controller, v1_file, v1_value, v2_file, v2_value) in cases {
        if !cgroup::has(controller) || rt.differs(flags[0]) {
            continue;
        }
        let done = c.call(["update"].iter().chain(*flags)).ok();
        let (file, value) = if v1 { (v1_file, v1_value) } else { (v2_file, v2_value) };
        let seen = cgroup::read(pid, controller, file).unwrap();
        assert!(value.split('|').any(|v| v == seen), "{file} is {seen:?}, not {value:?}\n{done}");
    }
    c.call(["update", "--memory", "lots"]).fails(1, &["lots"]);
    c.call(["update", "--pids-limit", "x"]).fails(1, &["x"]);
    assert_eq!(c.status(), "running");
}

#[test]
fn update_by_resources_from_a_file_or_standard_input() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && cgroup::has("memory") && cgroup::has("pids"), "root: memory and pids controllers");
    let c = rt.start(rt.bundle().args(SLEEP));
    let (limit, pids) = if host::cgroup_version() == 1 { ("memory.limit_in_bytes", "pids.max") } else { ("memory.max", "pids.max") };
    let text = json!({"memory": {"limit": 40 * MIB}, "pids": {"limit": 30}}).to_string();
    let file = rt.dir().join("resources.json");
    fs::write(&file, &text).unwrap();
    c.call(["update", "--resources", file.to_str().unwrap()]).ok();
    assert_eq!(cgroup::read(c.pid(), "memory", limit).unwrap(), "41943040");
    assert_eq!(cgroup::read(c.pid(), "pids", pids).unwrap(), "30");
    // CRI-O's line; what is not named stays.
    rt.call(["update", "--resources", "-", &c.id]).input(r#"{"pids": {"limit": 31}}"#).ok();
    assert_eq!(cgroup::read(c.pid(), "memory", limit).unwrap(), "41943040");
    assert_eq!(cgroup::read(c.pid(), "pids", pids).unwrap(), "31");
    c.call(["update", "--resources", "-"]).input("{").fails(1, &[]);
    c.call(["update", "--resources", "/no/such"]).fails(1, &["/no/such"]);
}

#[test]
fn memory_and_swap_change_in_the_order_the_kernel_takes() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && cgroup::has("memory"), "root: the memory controller");
    let c = rt.start(rt.bundle().args(SLEEP).set("/linux/resources/memory", json!({"limit": 64 * MIB, "swap": 64 * MIB})));
    let (file, swap) = if host::cgroup_version() == 1 {
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    } else {
        ("memory.max", "memory.swap.max")
    };
    for size in [256, 32, 128] {
        let size = size * MIB;
        let text = json!({"memory": {"limit": size, "swap": size}}).to_string();
        c.call(["update", "--resources", "-"]).input(&text).ok();
        assert_eq!(cgroup::read(c.pid(), "memory", file).unwrap(), size.to_string());
        let expected = if host::cgroup_version() == 1 { size.to_string() } else { "0".into() };
        assert_eq!(cgroup::read(c.pid(), "memory", swap).unwrap(), expected);
    }
}

#[test]
fn update_keeps_device_rules() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && cgroup::has("pids"), "root: cgroups");
    let c = rt.start(rt.bundle().privileged().args(SLEEP));
    c.call(["update", "--pids-limit", "50"]).ok();
    let result = c.tries(&["mknod /dev/kmsg1 c 1 11", "open /dev/kmsg1 r", "open /dev/null rw"]);
    assert_eq!((&result["open /dev/kmsg1 r"], &result["open /dev/null rw"]), (&json!("EPERM"), &json!("ok")));
}

#[test]
fn a_limit_below_what_is_used_is_checked_before_it_is_set() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && cgroup::has("memory") && host::cgroup_version() == 2, "root, and the memory controller of cgroup v2");
    let bundle = rt.bundle().set("/linux/resources", json!({"memory": {"limit": 64 * MIB}}));
    let c = rt.start(bundle.args(SLEEP));
    let resources = json!({"memory": {"limit": 4096, "checkBeforeUpdate": true}}).to_string();
    assert_ne!(c.call(["update", "--resources", "-"]).input(&resources).run().code(), 0);
    assert_eq!(cgroup::read(c.pid(), "memory", "memory.max").unwrap(), (64 * MIB).to_string());
    assert_eq!(c.status(), "running");
}

#[test]
fn update_of_a_stopped_container_fails() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    let c = rt.start(rt.bundle().args(["/probe", "exit"]));
    c.wait_status("stopped");
    c.call(["update", "--pids-limit", "50"]).fails(1, &[]);
}

/// The folders a container named by `path` may be at, one per hierarchy.
fn folders(path: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if host::cgroup_version() == 2 {
        return vec![root.join(path)];
    }
    let hierarchies = fs::read_dir(root).unwrap().flatten().filter(|e| e.path().join("cgroup.procs").exists());
    hierarchies.map(|e| e.path().join(path)).filter(|p| p.exists()).collect()
}

#[test]
fn an_absolute_path_starts_at_the_top_and_parents_are_made() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && rt.globals.is_empty(), "root, and the cgroupfs driver");
    let (outer, name) = (format!("{}outer", rt.id()), rt.id());
    let path = format!("/{outer}/middle/{name}");
    let c = rt.start(rt.bundle().args(SLEEP).set("/linux/cgroupsPath", json!(path)));
    let all = folders(path.trim_start_matches('/'));
    assert!(!all.is_empty());
    for folder in &all {
        let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), c.pid().to_string(), "{}", folder.display());
    }
    c.end();
    for folder in all {
        assert!(!folder.exists(), "{}", folder.display());
        // Parents may be shared by others; who made them removes them.
        let _ = fs::remove_dir(folder.parent().unwrap());
        let _ = fs::remove_dir(folder.parent().unwrap().parent().unwrap());
    }
}

#[test]
fn no_path_and_no_cgroup_namespace_still_give_a_cgroup_of_its_own() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    let c = rt.container(rt.bundle().args(SLEEP).without_namespace("cgroup").set("/linux/cgroupsPath", json!("")));
    c.run_with(&["-d"]).ok();
    let dir = cgroup::dir(c.pid(), "pids");
    assert!(dir.to_string_lossy().contains(&c.id), "{}", dir.display());
    c.end();
    assert!(!dir.exists());
}

#[test]
fn a_cgroup_that_is_in_use_is_refused() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && rt.globals.is_empty(), "root, and the cgroupfs driver");
    require!(!rt.differs("cgroup in use"), "this peer moves in");
    let path = json!(format!("/{}", rt.id()));
    let first = rt.start(rt.bundle().args(SLEEP).set("/linux/cgroupsPath", path.clone()));
    let second = rt.container(rt.bundle().args(SLEEP).set("/linux/cgroupsPath", path));
    second.create().fails(1, &["container's cgroup is not empty", "1 process"]);
    assert!(!rt.root().join(&second.id).exists());
    assert_eq!(first.status(), "running");
    first.end();
}

#[test]
fn cgroups_made_inside_go_with_the_container() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    let bundle = rt.bundle().privileged().mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw"]);
    let c = rt.start(bundle.args(SLEEP));
    let base = if host::cgroup_version() == 1 { "/sys/fs/cgroup/pids" } else { "/sys/fs/cgroup" };
    let result = c.tries(&[&format!("mkdir {base}/a"), &format!("mkdir {base}/a/b"), &format!("list {base}/a")]);
    assert!(result[format!("list {base}/a")].as_str().unwrap().contains('b'), "{result}");
    c.end();
    rt.assert_nothing_left();
}

#[test]
fn limits_that_cannot_be_set_fail_and_leave_nothing() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    let cases = [
        (json!({"cpu": {"cpus": "900-999"}}), "cpuset.cpus"),
        (json!({"cpu": {"quota": 1, "period": 1}}), "cpu"),
        (json!({"unified": {"no.such_file": "1"}}), "no.such_file"),
    ];
    for (resources, word) in cases {
        let c = rt.container(rt.bundle().set("/linux/resources", resources.clone()));
        let done = c.create();
        // v1 has no unified files at all.
        assert_ne!(done.code(), 0, "{resources}: {done}");
        if word != "no.such_file" || host::cgroup_version() == 2 {
            done.fails(1, &[word]);
        }
        rt.assert_nothing_left();
    }
}
