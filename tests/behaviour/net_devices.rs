//! `linux.netDevices`: devices of the host that move into the container.

use serde_json::json;
use std::process::Command;
use tests::{Runtime, host, require};

const SLEEP: [&str; 2] = ["/probe", "sleep"];

fn ip(args: &str) -> bool {
    Command::new("ip").args(args.split(' ')).output().is_ok_and(|o| o.status.success())
}

/// What `ip` shows in the network namespace of `pid`.
fn shown(pid: i32, args: &str) -> String {
    let namespace = format!("--net=/proc/{pid}/ns/net");
    let output = Command::new("nsenter").args([&namespace, "ip"]).args(args.split(' ')).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_device_moves_with_its_address_under_its_new_name() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && rt.kind() == tests::runtime::Kind::Rrun, "root, and a runtime that moves devices");
    require!(host::find("ip").is_some() && host::find("nsenter").is_some(), "ip and nsenter");
    let number = std::process::id() % 100_000;
    let (one, two) = (format!("rr{number}a"), format!("rr{number}b"));
    require!(ip(&format!("link add {one} type veth peer name {two}")), "virtual network devices");
    assert!(ip(&format!("addr add 10.99.7.1/24 dev {one}")) && ip(&format!("link set {one} up")));
    let devices = json!({&one: {"name": "eth7"}, &two: {}});
    let c = rt.start(rt.bundle().args(SLEEP).set("/linux/netDevices", devices));
    let all = shown(c.pid(), "addr show");
    assert!(all.contains("eth7") && all.contains("10.99.7.1/24") && all.contains(&two), "{all}");
    assert!(shown(c.pid(), "link show eth7").contains("UP"), "{all}");
    assert!(!ip(&format!("link show {one}")), "it is still on the host");
    c.end();
}

#[test]
fn wrong_devices_are_named_and_nothing_is_left() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && rt.kind() == tests::runtime::Kind::Rrun, "root, and a runtime that moves devices");
    let fails = |bundle: tests::Bundle, words: &[&str]| {
        rt.container(bundle).run_with(&[]).fails(1, words);
        rt.assert_nothing_left();
    };
    let with = |devices: serde_json::Value| rt.bundle().args(SLEEP).set("/linux/netDevices", devices);
    fails(with(json!({"no-such-dev": {}})), &["linux.netDevices", "no-such-dev"]);
    fails(with(json!({"lo": {"name": "a/b"}})), &["linux.netDevices", "a/b"]);
    fails(with(json!({"lo": {"name": "a-name-that-is-too-long"}})), &["linux.netDevices", "too-long"]);
    fails(with(json!({"a": {"name": "x"}, "b": {"name": "x"}})), &["linux.netDevices", "\"x\""]);
    fails(with(json!({"lo": {}})).without_namespace("network").without_mount("/sys"), &["without a private NET namespace"]);
}

#[test]
fn intel_rdt_is_refused_where_there_is_none() {
    let rt = Runtime::new();
    require!(rt.kind() == tests::runtime::Kind::Rrun, "rrun's words");
    require!(!std::path::Path::new("/sys/fs/resctrl/schemata").exists(), "a host without resctrl");
    let bundle = rt.bundle().args(SLEEP).set("/linux/intelRdt", json!({"l3CacheSchema": "L3:0=f"}));
    rt.container(bundle).run_with(&[]).fails(1, &["linux.intelRdt", "/sys/fs/resctrl"]);
}
