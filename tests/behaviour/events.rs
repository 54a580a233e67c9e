//! `events`: the usage in runc's shape, at intervals, and kills for want of memory.

use serde_json::{Value, json};
use tests::{Runtime, cgroup, host, require};

const SLEEP: [&str; 2] = ["/probe", "sleep"];

fn lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn usage_once() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    let resources = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 42}});
    let c = rt.start(rt.bundle().args(SLEEP).set("/linux/resources", resources));
    let done = rt.call(["events", "--stats", &c.id]).run().ok();
    assert!(done.stdout.starts_with(&format!(r#"{{"type":"stats","id":"{}","data":{{"cpu":{{"usage":{{"#, c.id)), "{}", done.stdout);
    assert_eq!(done.stdout.lines().count(), 1);
    let data = done.json()["data"].clone();
    for name in ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"] {
        assert!(data.get(name).is_some(), "{name} in {data}");
    }
    assert!(data["cpu"]["usage"]["kernel"].is_u64() && data["cpu"]["usage"]["user"].is_u64());
    if cgroup::has("memory") {
        assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
        assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
        assert!(data["memory"]["raw"].as_object().unwrap().len() > 10);
    }
    if cgroup::has("pids") {
        assert_eq!(data["pids"], json!({"current": 1, "limit": 42}));
    }
    if host::cgroup_version() == 1 && cgroup::has("cpuset") {
        assert!(!data["cpuset"]["cpus"].as_array().unwrap().is_empty(), "{data}");
    }
    if host::cgroup_version() == 2 && std::fs::read_to_string("/sys/fs/cgroup/cpu.pressure").is_ok() {
        assert!(data["cpu"]["psi"]["some"]["avg10"].is_number(), "{data}");
    }
}

#[test]
fn usage_again_and_again_until_the_container_is_gone() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    require!(cgroup::has("memory"), "the memory controller");
    let c = rt.start(rt.bundle().args(SLEEP));
    let events = rt.call(["events", "--interval", "20ms", &c.id]).spawn();
    assert!(host::wait_until(20, || lines(&events.stdout()).len() >= 3), "{}", events.stdout());
    c.end();
    let done = events.wait().ok();
    assert!(lines(&done.stdout).iter().all(|line| line["type"] == "stats" && line["id"] == c.id.as_str()));
}

#[test]
fn a_kill_for_want_of_memory() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    require!(cgroup::has("memory"), "the memory controller");
    let limit = 32 << 20;
    let bundle = rt.bundle().shell().args(["/bin/sh", "-c", "sleep 60"]);
    let c = rt.start(bundle.set("/linux/resources", json!({"memory": {"limit": limit, "swap": limit}})));
    let events = rt.call(["events", "--interval", "1h", &c.id]).spawn();
    // The hog must not run before somebody watches.
    host::wait_until(20, || std::fs::read_link(format!("/proc/{}/fd/3", events.pid())).is_ok());
    let hog = "a=x; while :; do a=$a$a; done";
    assert!(host::wait_until(30, || {
        c.exec(&[], &["/bin/sh", "-c", hog]).run();
        events.stdout().contains(&format!(r#"{{"type":"oom","id":"{}"}}"#, c.id))
    }));
    c.end();
    events.wait().ok();
}

#[test]
fn what_cannot_be_watched() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups");
    let c = rt.start(rt.bundle().args(SLEEP));
    rt.call(["events", "--interval", "0s", &c.id]).fails(1, &["duration interval must be greater than 0"]);
    rt.call(["events", "--interval", "often", &c.id]).run().fails(1, &["often"]);
    rt.call(["events", "--stats", "nobody"]).fails(1, &["container does not exist"]);
    c.kill("KILL");
    c.wait_status("stopped");
    rt.call(["events", "--stats", &c.id]).fails(1, &["is not running"]);
}
