//! Device nodes: the default ones, the configured ones, and what the device cgroup lets through.

use serde_json::json;
use tests::{Bundle, Runtime, host, require};

const DEFAULTS: [(&str, &str); 6] =
    [("null", "1:3"), ("zero", "1:5"), ("full", "1:7"), ("random", "1:8"), ("urandom", "1:9"), ("tty", "5:0")];

#[test]
fn the_default_devices_and_links() {
    let rt = Runtime::new();
    let mut actions: Vec<String> = DEFAULTS.iter().map(|(name, _)| format!("stat /dev/{name}")).collect();
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    actions.extend(links.iter().map(|(name, _)| format!("link /dev/{name}")));
    let result = rt.tries(rt.bundle(), &actions.iter().map(String::as_str).collect::<Vec<_>>());
    for (name, number) in DEFAULTS {
        let stat = result[format!("stat /dev/{name}")].as_str().unwrap();
        assert!(stat.starts_with("char 0666 ") && stat.contains(number), "{name}: {stat}");
    }
    for (name, target) in links {
        assert_eq!(result[format!("link /dev/{name}")], target, "{name}");
    }
}

#[test]
fn the_default_devices_open() {
    let rt = Runtime::new();
    let actions =
        ["open /dev/null rw", "open /dev/zero r", "open /dev/full r", "open /dev/urandom r", "open /dev/ptmx rw", "create /dev/shm/x x"];
    let result = rt.tries(rt.bundle(), &actions);
    for action in actions {
        assert_eq!(result[action], "ok", "{action}");
    }
}

#[test]
fn configured_devices_are_made() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: mknod");
    let devices = json!([
        {"path": "/dev/my-null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 12, "gid": 34},
        {"path": "/dev/deep/er/block", "type": "b", "major": 7, "minor": 200, "fileMode": 0o660},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o622},
        {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 5},
    ]);
    let actions = ["stat /dev/my-null", "stat /dev/deep/er/block", "stat /dev/pipe", "stat /dev/unbuffered"];
    let result = rt.tries(rt.bundle().set("/linux/devices", devices), &actions);
    assert_eq!(result["stat /dev/my-null"], "char 0600 12:34 1:3 0");
    assert_eq!(result["stat /dev/deep/er/block"], "block 0660 0:0 7:200 0");
    assert_eq!(result["stat /dev/pipe"], "fifo 0622 0:0 0:0 0");
    assert!(result["stat /dev/unbuffered"].as_str().unwrap().starts_with("char "), "{result}");
}

#[test]
fn a_device_outside_dev() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: mknod");
    let devices = json!([{"path": "/opt/a/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666}]);
    let result = rt.tries(rt.bundle().writable().set("/linux/devices", devices), &["stat /opt/a/zero"]);
    assert_eq!(result["stat /opt/a/zero"], "char 0666 0:0 1:5 0");
}

#[test]
fn devices_in_a_user_namespace_come_from_the_host() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: mappings of other ids");
    let result =
        rt.tries(rt.bundle().user_namespace(100000), &["stat /dev/null", "open /dev/null rw", "read /dev/zero", "open /dev/ptmx rw"]);
    assert!(result["stat /dev/null"].as_str().unwrap().starts_with("char 0666 "), "{result}");
    assert_eq!(result["open /dev/null rw"], "ok");
    assert_eq!(result["open /dev/ptmx rw"], "ok");
}

fn with_rules(rt: &Runtime, rules: serde_json::Value) -> Bundle {
    rt.bundle().privileged().set("/linux/resources/devices", rules)
}

/// Making and opening a device is refused by the cgroup, or not.
fn tries(rt: &Runtime, bundle: Bundle) -> serde_json::Value {
    let actions = [
        "mknod /dev/kmsg1 c 1 11",
        "open /dev/kmsg1 r",
        "mknod /dev/loop1 b 7 0",
        "open /dev/loop1 r",
        "open /dev/null rw",
        "open /dev/zero r",
        "open /dev/ptmx rw",
    ];
    rt.tries(bundle, &actions)
}

#[test]
fn what_no_rule_allows_is_refused() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a device cgroup");
    let result = tries(&rt, with_rules(&rt, json!([{"allow": false, "access": "rwm"}])));
    assert_eq!(result["open /dev/kmsg1 r"], "EPERM");
    assert_eq!(result["open /dev/loop1 r"], "EPERM");
    // Making nodes is among the defaults, and so are the default devices.
    for action in ["mknod /dev/kmsg1 c 1 11", "mknod /dev/loop1 b 7 0", "open /dev/null rw", "open /dev/zero r", "open /dev/ptmx rw"] {
        assert_eq!(result[action], "ok", "{action}");
    }
}

#[test]
fn without_rules_the_defaults_hold_too() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a device cgroup");
    let result = tries(&rt, rt.bundle().privileged());
    assert_eq!(result["open /dev/kmsg1 r"], "EPERM");
    assert_eq!(result["open /dev/null rw"], "ok");
}

#[test]
fn rules_allow_by_number_type_and_access() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a device cgroup");
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"},
    ]);
    let actions = ["mknod /dev/kmsg1 c 1 11", "open /dev/kmsg1 r", "open /dev/kmsg1 w", "mknod /dev/mem1 c 1 1", "open /dev/mem1 r"];
    let result = rt.tries(with_rules(&rt, rules), &actions);
    assert_eq!(result["open /dev/kmsg1 r"], "ok");
    assert_eq!(result["open /dev/kmsg1 w"], "EPERM");
    assert_eq!(result["open /dev/mem1 r"], "EPERM");
}

#[test]
fn a_whole_major_and_a_later_denial() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a device cgroup");
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "access": "rw"},
        {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "w"},
    ]);
    let actions = ["/probe", "try", "mknod /dev/kmsg1 c 1 11", "open /dev/kmsg1 r", "open /dev/kmsg1 w"];
    let done = rt.container(with_rules(&rt, rules).args(actions)).run();
    // v1 cannot take a part out of what it allows: then the configuration must be refused.
    if host::cgroup_version() == 1 && done.code() != 0 {
        done.fails(1, &["device"]);
        return;
    }
    let result = done.ok().json();
    assert_eq!(result["open /dev/kmsg1 r"], "ok");
    assert_eq!(result["open /dev/kmsg1 w"], "EPERM");
}

#[test]
fn all_devices_may_be_allowed() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a device cgroup");
    let result = tries(&rt, with_rules(&rt, json!([{"allow": true, "access": "rwm"}])));
    assert_eq!(result["open /dev/kmsg1 r"], "ok");
    assert_ne!(result["open /dev/loop1 r"], "EPERM");
}

#[test]
fn console_is_there_only_with_a_terminal() {
    let rt = Runtime::new();
    assert_eq!(rt.tries(rt.bundle(), &["stat /dev/console"])["stat /dev/console"], "ENOENT");
}

#[test]
fn rules_of_a_running_container_change() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a device cgroup");
    require!(rt.kind() == tests::runtime::Kind::Rrun, "a runtime whose update changes device rules");
    let c = rt.start(with_rules(&rt, json!([{"allow": false, "access": "rwm"}])).args(["/probe", "sleep"]));
    let kmsg = || c.tries(&["open /dev/kmsg1 r"])["open /dev/kmsg1 r"].clone();
    assert_eq!(c.tries(&["mknod /dev/kmsg1 c 1 11"])["mknod /dev/kmsg1 c 1 11"], "ok");
    assert_eq!(kmsg(), "EPERM");
    let update = |rules: serde_json::Value| rt.call(["update", "-r", "-", &c.id]).input(&json!({"devices": rules}).to_string()).run();
    update(json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}])).ok();
    assert_eq!(kmsg(), "ok");
    update(json!([{"allow": false, "access": "rwm"}])).ok();
    assert_eq!(kmsg(), "EPERM");
    // No rules leave them as they are.
    update(json!([])).ok();
    assert_eq!(kmsg(), "EPERM");
    update(json!([{"allow": true, "access": "x"}])).fails(1, &["\"x\""]);
    c.end();
}

#[test]
fn letters_that_no_access_has_are_passed_over() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a device cgroup");
    let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rax"});
    let bundle = with_rules(&rt, json!([{"allow": false, "access": "rwm"}, rule]));
    let result = rt.tries(bundle, &["mknod /dev/kmsg1 c 1 11", "open /dev/kmsg1 r", "open /dev/kmsg1 w"]);
    assert_eq!(result["open /dev/kmsg1 r"], "ok", "{result}");
    assert_eq!(result["open /dev/kmsg1 w"], "EPERM", "{result}");
}
