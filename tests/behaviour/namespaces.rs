//! namespaces: made, shared, joined by path; user mappings; time offsets.

use serde_json::{Value, json};
use std::path::PathBuf;
use tests::{Container, Runtime, host, require};

const SLEEP: [&str; 2] = ["/probe", "sleep"];

/// The configuration's word for a namespace, and the kernel's.
const KINDS: [(&str, &str); 6] =
    [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("mount", "mnt"), ("cgroup", "cgroup")];

fn path_of(c: &Container, kernel: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/{kernel}", c.pid()))
}

#[test]
fn listed_namespaces_are_new_and_others_are_the_host_s() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle());
    for (word, kernel) in KINDS {
        let listed = rt.bundle().config["linux"]["namespaces"].as_array().unwrap().contains(&json!({"type": word}));
        let same = report["ns"][kernel] == host::namespace("self", kernel);
        assert_eq!(same, !listed, "{word}: {}", report["ns"][kernel]);
    }
    assert_eq!(report["pid"], 1);
    let own = host::namespace("self", "user");
    assert_eq!(report["ns"]["user"] == own, !rt.is_rootless());
}

#[test]
fn namespaces_left_out_are_shared() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: containers without some namespaces");
    for (word, kernel) in KINDS.into_iter().filter(|(w, _)| *w != "mount") {
        let mut bundle = rt.bundle().without_namespace(word);
        if word == "uts" {
            bundle = bundle.unset("/hostname");
        }
        let report = rt.report(bundle);
        assert_eq!(report["ns"][kernel], host::namespace("self", kernel), "{word}");
    }
}

#[test]
fn a_new_network_namespace_has_only_a_loopback_that_is_up() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: the rootless configuration shares the network");
    let report = rt.report(rt.bundle());
    let lo: Vec<&String> = report["net"].as_object().unwrap().keys().filter(|k| *k == "lo").collect();
    assert_eq!(lo.len(), 1);
    let flags = u32::from_str_radix(report["net"]["lo"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & 1, 1, "IFF_UP: {flags:#x}");
    assert!(report["net"]["eth0"].is_null(), "{}", report["net"]);
}

#[test]
fn namespaces_are_joined_by_path() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: joining");
    let first = rt.start(rt.bundle().args(SLEEP));
    for (word, kernel) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")] {
        let path = path_of(&first, kernel);
        let mut bundle = rt.bundle().namespace(word, Some(&path));
        if word == "uts" {
            bundle = bundle.unset("/hostname");
        }
        if word == "cgroup" && rt.differs("join a cgroup namespace") {
            continue;
        }
        let report = rt.report(bundle);
        assert_eq!(report["ns"][kernel], host::namespace(&first.pid().to_string(), kernel), "{word}");
    }
}

#[test]
fn a_pid_namespace_is_joined_by_path() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: joining");
    let first = rt.start(rt.bundle().args(SLEEP));
    let c = rt.container(rt.bundle().namespace("pid", Some(&path_of(&first, "pid"))));
    let report = c.run().ok().json();
    assert_eq!(report["ns"]["pid"], host::namespace(&first.pid().to_string(), "pid"));
    assert_ne!(report["pid"], 1);
    let second = rt.start(rt.bundle().args(SLEEP).namespace("pid", Some(&path_of(&first, "pid"))));
    assert_eq!(second.status(), "running");
    second.end();
    first.end();
}

#[test]
fn all_namespaces_of_a_pod() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: joining");
    let first = rt.start(rt.bundle().args(SLEEP).user_namespace(100000));
    let mut bundle = rt.bundle().unset("/hostname").user_namespace(100000);
    for (word, kernel) in [("user", "user"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("pid", "pid")] {
        bundle = bundle.namespace(word, Some(&path_of(&first, kernel)));
    }
    let report = rt.report(bundle);
    for kernel in ["user", "net", "ipc", "uts", "pid"] {
        assert_eq!(report["ns"][kernel], host::namespace(&first.pid().to_string(), kernel), "{kernel}");
    }
    assert_eq!(report["hostname"], "probe");
}

#[test]
fn user_mappings_are_written_as_given() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: mappings of other ids");
    let uids = json!([{"containerID": 0, "hostID": 100000, "size": 1000}, {"containerID": 1000, "hostID": 200000, "size": 5}]);
    let gids = json!([{"containerID": 0, "hostID": 100000, "size": 10}, {"containerID": 20, "hostID": 300000, "size": 7}]);
    let bundle = rt.bundle().user_namespace(100000).set("/linux/uidMappings", uids).set("/linux/gidMappings", gids);
    let report = rt.report(bundle);
    assert_eq!(report["uid_map"], json!(["0 100000 1000", "1000 200000 5"]));
    assert_eq!(report["gid_map"], json!(["0 100000 10", "20 300000 7"]));
    assert_eq!(report["status"]["Uid"], "0\t0\t0\t0");
    for option in ["proc", "dev", "sys"] {
        assert!(report["mounts"].as_array().unwrap().iter().any(|m| m["target"] == format!("/{option}")), "{option}");
    }
}

#[test]
fn a_user_in_a_user_namespace() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: mappings of other ids");
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 8]});
    let report = rt.report(rt.bundle().user_namespace(100000).set("/process/user", user));
    assert_eq!(report["status"]["Uid"], "1000\t1000\t1000\t1000");
    assert_eq!(report["status"]["Groups"], "7 8");
    let result = rt.tries(rt.bundle().user_namespace(100000), &["stat /", "stat /proc/self", "stat /dev/null"]);
    assert!(result["stat /"].as_str().unwrap().contains(" 0:0 "), "{result}");
}

#[test]
fn standard_streams_belong_to_the_container_s_user() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: more than one id");
    // A pipe's owner decides who may open /proc/self/fd/1 again.
    let bundle = rt.bundle().args(["/probe", "try", "stat /proc/self/fd/1", "open /dev/stdout w"]);
    let c = rt.container(bundle.set("/process/user", json!({"uid": 1000, "gid": 1000})));
    let program = tests::runtime::program().0.display().to_string();
    let (root, dir) = (rt.root().display().to_string(), c.bundle.dir.display().to_string());
    let done = rt.shell("\"$@\" | cat", &[&program, "--root", &root, "run", "-b", &dir, &c.id]).ok();
    assert_eq!(done.json()["open /dev/stdout w"], "ok", "{done}");
}

#[test]
fn time_offsets() {
    let rt = Runtime::new();
    require!(host::has_namespace("time"), "a kernel with time namespaces");
    require!(!rt.is_rootless(), "root: clock offsets");
    let offsets = json!({"monotonic": {"secs": 7881, "nanosecs": 2718281}, "boottime": {"secs": 1337, "nanosecs": 3141519}});
    let report = rt.report(rt.bundle().namespace("time", None).set("/linux/timeOffsets", offsets));
    assert_eq!(report["timens_offsets"], json!(["monotonic 7881 2718281", "boottime 1337 3141519"]));
    assert_ne!(report["ns"]["time"], host::namespace("self", "time"));
    let first = rt.start(rt.bundle().args(SLEEP).namespace("time", None).set("/linux/timeOffsets", json!({"boottime": {"secs": 55}})));
    let report = rt.report(rt.bundle().namespace("time", Some(&path_of(&first, "time"))));
    assert_eq!(report["timens_offsets"], json!(["monotonic 0 0", "boottime 55 0"]));
    let exec = first.exec(&[], &["/probe", "report"]).ok().json();
    assert_eq!(exec["timens_offsets"], report["timens_offsets"]);
}

#[test]
fn time_offsets_inside_a_user_namespace() {
    let rt = Runtime::new();
    require!(host::has_namespace("time"), "a kernel with time namespaces");
    require!(!rt.is_rootless(), "root: mappings of other ids");
    let bundle = rt.bundle().user_namespace(100000).namespace("time", None);
    let report = rt.report(bundle.set("/linux/timeOffsets", json!({"monotonic": {"secs": 100}})));
    assert_eq!(report["timens_offsets"], json!(["monotonic 100 0", "boottime 0 0"]));
}

#[test]
fn a_cgroup_namespace_hides_what_is_above() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup of its own");
    let lines = |v: &Value| v.as_array().unwrap().iter().map(|l| l.as_str().unwrap().to_string()).collect::<Vec<_>>();
    let report = rt.report(rt.bundle());
    for line in lines(&report["cgroup"]) {
        assert!(line.ends_with(":/"), "{line}");
    }
    let c = rt.container(rt.bundle().without_namespace("cgroup"));
    let report = c.run().ok().json();
    assert!(lines(&report["cgroup"]).iter().any(|l| l.ends_with(&c.id)), "{}", report["cgroup"]);
}

#[test]
fn the_loopback_of_a_joined_network_is_left_alone() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && host::find("ip").is_some(), "root, and ip (iproute2)");
    let first = rt.start(rt.bundle().args(SLEEP));
    let pid = first.pid().to_string();
    rt.shell("nsenter -t $1 -n ip link set lo down", &[&pid]).ok();
    let report = rt.report(rt.bundle().namespace("network", Some(&path_of(&first, "net"))));
    assert_eq!(report["net"]["lo"], "0x8");
}
