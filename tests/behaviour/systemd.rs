//! The systemd driver: scopes, their properties, limits, and the other themes under it.

use serde_json::json;
use std::process::Command;
use tests::{Container, Runtime, cgroup, host, require};

const SLEEP: [&str; 2] = ["/probe", "sleep"];

/// Whether there is a systemd that will make scopes for us.
fn usable() -> bool {
    host::has_systemd() && (host::is_root() || std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some())
}

/// One property of a unit, as systemctl tells it.
fn property(unit: &str, name: &str) -> String {
    let mut systemctl = Command::new("systemctl");
    if !host::is_root() {
        systemctl.arg("--user");
    }
    let output = systemctl.args(["show", "--value", "--property", name, unit]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

/// A container of that id in the scope that `path` names.
fn start<'a>(rt: &'a Runtime, resources: serde_json::Value) -> (Container<'a>, String) {
    let id = rt.id();
    let slice = if host::is_root() { "system.slice" } else { "user.slice" };
    let bundle = rt.bundle().args(SLEEP).set("/linux/resources", resources);
    let c = rt.container(bundle.set("/linux/cgroupsPath", json!(format!("{slice}:rrun:{id}"))));
    c.create().ok();
    c.call(["start"]).ok();
    (c, format!("rrun-{id}.scope"))
}

#[test]
fn a_container_is_a_scope() {
    require!(usable(), "systemd");
    let rt = Runtime::systemd();
    let (c, unit) = start(&rt, json!({}));
    assert_eq!(property(&unit, "ActiveState"), "active");
    assert!(cgroup::dir(c.pid(), "").to_string_lossy().contains(&unit), "{}", cgroup::dir(c.pid(), "").display());
    assert_eq!(property(&unit, "Delegate"), "yes");
    assert!(!property(&unit, "Description").is_empty());
    c.end();
    assert!(host::wait_until(10, || property(&unit, "ActiveState") == "inactive"), "{}", property(&unit, "ActiveState"));
    rt.assert_nothing_left();
}

#[test]
fn limits_are_properties_too() {
    require!(usable(), "systemd");
    require!(host::cgroup_version() == 2, "cgroup v2");
    let rt = Runtime::systemd();
    let limits = json!({"memory": {"limit": 67108864}, "pids": {"limit": 44}, "cpu": {"quota": 50000, "period": 100000}});
    let (c, unit) = start(&rt, limits);
    assert_eq!(property(&unit, "MemoryMax"), "67108864");
    assert_eq!(property(&unit, "TasksMax"), "44");
    assert_eq!(property(&unit, "CPUQuotaPerSecUSec"), "500ms");
    let parent = |file: &str| cgroup::read(c.pid(), "memory", file).unwrap();
    assert_eq!(parent("memory.max"), "67108864");
    c.call(["update", "--memory", "50331648", "--pids-limit", "55"]).ok();
    assert_eq!(property(&unit, "MemoryMax"), "50331648");
    assert_eq!(property(&unit, "TasksMax"), "55");
    assert_eq!(parent("memory.max"), "50331648");
    c.end();
}

#[test]
fn limits_survive_a_reload_and_so_do_devices() {
    require!(usable() && host::is_root(), "systemd, as root");
    let rt = Runtime::systemd();
    let rules = json!({"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}], "pids": {"limit": 66}});
    let bundle = rt.bundle().privileged().args(SLEEP).set("/linux/resources", rules);
    let c = rt.start(bundle);
    let check = || {
        let result = c.tries(&["open /dev/kmsg1 r", "open /dev/null rw", "open /dev/mem1 r"]);
        assert_eq!(
            (&result["open /dev/kmsg1 r"], &result["open /dev/null rw"], &result["open /dev/mem1 r"]),
            (&json!("ok"), &json!("ok"), &json!("EPERM"))
        );
        assert_eq!(cgroup::read(c.pid(), "pids", "pids.max").unwrap(), "66");
    };
    c.tries(&["mknod /dev/kmsg1 c 1 11", "mknod /dev/mem1 c 1 1"]);
    check();
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
    check();
    c.end();
}

#[test]
fn annotations_become_properties() {
    require!(usable(), "systemd");
    let rt = Runtime::systemd();
    let id = rt.id();
    let slice = if host::is_root() { "system.slice" } else { "user.slice" };
    let bundle = rt.bundle().args(SLEEP).set("/linux/cgroupsPath", json!(format!("{slice}:rrun:{id}")));
    let bundle = bundle.set(
        "/annotations",
        json!({"org.systemd.property.TimeoutStopUSec": "uint64 7000000", "org.systemd.property.Description": "'a test'"}),
    );
    let c = rt.start(bundle);
    let unit = format!("rrun-{id}.scope");
    assert_eq!(property(&unit, "TimeoutStopUSec"), "7s");
    assert_eq!(property(&unit, "Description"), "a test");
    c.end();
}

#[test]
fn a_path_that_is_no_scope_is_refused() {
    require!(usable(), "systemd");
    let rt = Runtime::systemd();
    let paths =
        [("/absolute/path", "/absolute/path"), ("a:b", "a:b"), ("not-a-slice:rrun:x", "not-a-slice"), ("system.slice:rrun:", "scope")];
    for (path, word) in paths {
        let c = rt.container(rt.bundle().set("/linux/cgroupsPath", json!(path)));
        let done = c.create();
        assert_ne!(done.code(), 0, "{done}");
        if rt.kind() == tests::runtime::Kind::Rrun {
            done.fails(1, &["cgroupsPath", word]).one_line();
        }
        rt.assert_nothing_left();
    }
}

#[test]
fn the_other_themes_under_systemd() {
    require!(usable() && std::env::var_os("RRUN_TEST_GLOBALS").is_none(), "systemd");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["lifecycle::", "cgroups::", "devices::", "exec::exec", "bad_input::namespaces", "hooks::a_fail"]);
    let output = command.env("RRUN_TEST_GLOBALS", "--systemd-cgroup").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}
