//! Masked paths, read-only paths and sysctls.

use serde_json::json;
use tests::{Runtime, mount_at, require};

#[test]
fn masked_files_are_empty_and_masked_folders_too() {
    let rt = Runtime::new();
    let bundle = rt.bundle().file("/secret", "text").file("/folder/file", "text").folder("/folder/sub");
    let bundle = bundle.set("/linux/maskedPaths", json!(["/secret", "/folder", "/absent", "/proc/meminfo", "/absent/deeper"]));
    let result = rt.tries(bundle, &["read /secret", "list /folder", "create /folder/x x", "read /proc/meminfo", "stat /absent"]);
    assert_eq!(result["read /secret"], "");
    assert_eq!(result["list /folder"], "");
    assert_eq!(result["create /folder/x x"], "EROFS");
    assert_eq!(result["read /proc/meminfo"], "");
    assert_eq!(result["stat /absent"], "ENOENT");
}

#[test]
fn a_path_that_is_named_twice_is_masked_once() {
    let rt = Runtime::new();
    let bundle = rt.bundle().file("/secret", "text").folder("/folder");
    let report = rt.report(bundle.set("/linux/maskedPaths", json!(["/secret", "/folder", "/folder", "/secret"])));
    for path in ["/secret", "/folder"] {
        let count = report["mounts"].as_array().unwrap().iter().filter(|m| m["target"] == path).count();
        assert_eq!(count, 1, "{path}: {}", report["mounts"]);
    }
}

#[test]
fn masked_folders_are_read_only_tmpfs() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle().folder("/folder").set("/linux/maskedPaths", json!(["/folder"])));
    let mount = mount_at(&report, "/folder");
    assert_eq!(mount["type"], "tmpfs");
    assert!(tests::has_option(&mount["options"], "ro"), "{mount}");
}

#[test]
fn readonly_paths() {
    let rt = Runtime::new();
    let bundle = rt.bundle().writable().file("/folder/file", "text").file("/plain", "text");
    let bundle = bundle.set("/linux/readonlyPaths", json!(["/proc/sys", "/folder", "/plain", "/absent"]));
    let result = rt
        .tries(bundle, &["write /proc/sys/kernel/hostname x", "create /folder/x x", "open /plain w", "read /folder/file", "create /new x"]);
    // In a user namespace the sysctl's mode is looked at first.
    assert_eq!(result["write /proc/sys/kernel/hostname x"], if rt.is_rootless() { "EACCES" } else { "EROFS" });
    assert_eq!(result["create /folder/x x"], "EROFS");
    assert_eq!(result["open /plain w"], "EROFS");
    assert_eq!(result["read /folder/file"], "text");
    assert_eq!(result["create /new x"], "ok");
}

#[test]
fn readonly_paths_keep_the_flags_of_the_mount_below() {
    let rt = Runtime::new();
    let bundle = rt.bundle().without_mount("/proc").mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]);
    let report = rt.report(bundle.set("/linux/readonlyPaths", json!(["/proc/sys"])));
    let mount = mount_at(&report, "/proc/sys");
    for option in ["ro", "nosuid", "noexec", "nodev"] {
        assert!(tests::has_option(&mount["options"], option), "{mount}");
    }
}

#[test]
fn readonly_paths_take_what_is_mounted_below() {
    let rt = Runtime::new();
    let bundle = rt.bundle().mount("/top", "tmpfs", "t", &[]).mount("/top/sub", "tmpfs", "t", &[]);
    let result = rt.tries(bundle.set("/linux/readonlyPaths", json!(["/top"])), &["create /top/x x", "create /top/sub/x x"]);
    assert_eq!(result["create /top/x x"], "EROFS");
}

#[test]
fn sysctls_are_set() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: the network is shared, /proc/sys is the host's");
    let sysctl = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "1234", "fs.mqueue.msg_max": "20", "net/ipv4/ip_default_ttl": "99"});
    let actions = [
        "read /proc/sys/net/ipv4/ip_forward",
        "read /proc/sys/kernel/shmmni",
        "read /proc/sys/fs/mqueue/msg_max",
        "read /proc/sys/net/ipv4/ip_default_ttl",
    ];
    let result = rt.tries(rt.bundle().set("/linux/sysctl", sysctl), &actions);
    for (action, value) in actions.iter().zip(["1", "1234", "20", "99"]) {
        assert_eq!(result[action], value, "{action}");
    }
}

#[test]
fn sysctls_of_the_host_are_refused() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: nothing to refuse");
    let before = std::fs::read_to_string("/proc/sys/kernel/panic").unwrap();
    for name in ["kernel.panic", "vm.swappiness", "kernel.core_pattern", "fs.file-max", "kernel.hostname/../panic"] {
        let c = rt.container(rt.bundle().set("/linux/sysctl", json!({name: "1"})));
        c.run().fails(1, &["sysctl", name]);
    }
    let shared = rt.bundle().without_namespace("network").set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    rt.container(shared).run().fails(1, &["sysctl", "net.ipv4.ip_forward"]);
    let shared = rt.bundle().without_namespace("ipc").without_mount("/dev/mqueue").set("/linux/sysctl", json!({"kernel.shmmni": "9"}));
    rt.container(shared).run().fails(1, &["sysctl", "kernel.shmmni"]);
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/panic").unwrap(), before);
    rt.assert_nothing_left();
}

#[test]
fn a_sysctl_that_is_not_there_or_takes_no_such_value() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: the network is shared");
    for (name, value, file) in [("net.ipv4.no_such_thing", "1", "no_such_thing"), ("net.ipv4.ip_forward", "many", "ip_forward")] {
        let c = rt.container(rt.bundle().set("/linux/sysctl", json!({name: value})));
        c.run().fails(1, &[file]);
        rt.assert_nothing_left();
    }
}
