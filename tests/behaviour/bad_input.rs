//! Bad input: one line that names the field or path, the cause and the remedy; exit code 1; and
//! nothing left behind.

use serde_json::{Value, json};
use std::fs;
use tests::runtime::Kind;
use tests::{Bundle, Done, Runtime, host, require};

/// The call must have failed in rrun's way (a peer: somehow), and nothing may be left.
#[track_caller]
fn refused(rt: &Runtime, done: Done, texts: &[&str]) {
    if rt.kind() == Kind::Rrun {
        done.fails(1, texts).one_line();
    } else {
        assert!(done.code() != 0 || rt.differs(&format!("takes {}", texts.join(" "))), "{done}");
        // A peer that takes it has made a container; one that does not may leave its folder.
        rt.call(["list", "-q"]).ok().stdout.lines().for_each(|id| drop(rt.call(["delete", "-f", id]).run()));
    }
    rt.assert_nothing_left();
}

#[track_caller]
fn refuses(rt: &Runtime, bundle: Bundle, texts: &[&str]) {
    refused(rt, rt.container(bundle).create(), texts);
}

#[test]
fn no_configuration() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle());
    let path = c.bundle.dir.join("config.json");
    fs::remove_file(&path).unwrap();
    refused(&rt, c.create(), &["config.json", "no such file", "--bundle"]);
    fs::create_dir(&path).unwrap();
    refused(&rt, c.create(), &["config.json", "is a directory"]);
    let done = rt.call(["create", "--bundle", "/no/such/bundle", &c.id]).run();
    refused(&rt, done, &["/no/such/bundle"]);
}

#[test]
fn a_configuration_that_is_no_json() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle());
    let path = c.bundle.dir.join("config.json");
    for text in ["", "{", "[]", "null", "\"text\"", "{\"ociVersion\": \"1.0.2\",}", "\u{1}\u{2}"] {
        fs::write(&path, text).unwrap();
        refused(&rt, c.create(), &[path.to_str().unwrap()]);
    }
    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    refused(&rt, c.create(), &[path.to_str().unwrap()]);
}

#[test]
fn fields_of_the_wrong_type_are_named() {
    let rt = Runtime::new();
    let cases = [
        ("/process/args", json!("sh"), "process.args"),
        ("/process/args", json!([1]), "process.args[0]"),
        ("/process/env", json!({"A": "b"}), "process.env"),
        ("/process/user", json!("root"), "process.user"),
        ("/process/user/uid", json!("0"), "process.user.uid"),
        ("/process/user/uid", json!(-1), "process.user.uid"),
        ("/process/terminal", json!(1), "process.terminal"),
        ("/process/capabilities", json!(["CAP_KILL"]), "process.capabilities"),
        ("/root", json!("rootfs"), "root"),
        ("/mounts", json!({}), "mounts"),
        ("/mounts/0", json!("/proc"), "mounts[0]"),
        ("/mounts/0/options", json!("ro"), "mounts[0].options"),
        ("/linux/namespaces", json!({"pid": true}), "linux.namespaces"),
        ("/linux/resources", json!({"memory": {"limit": "64M"}}), "linux.resources.memory.limit"),
        ("/linux/resources", json!({"pids": {"limit": 1.5}}), "linux.resources.pids.limit"),
        ("/linux/maskedPaths", json!("/proc/kcore"), "linux.maskedPaths"),
        ("/hooks", json!({"prestart": {"path": "/bin/true"}}), "hooks.prestart"),
        ("/annotations", json!({"a": 1}), "annotations"),
    ];
    for (pointer, value, field) in cases {
        refuses(&rt, rt.bundle().set(pointer, value), &["config.json", field]);
    }
}

#[test]
fn versions() {
    let rt = Runtime::new();
    for version in [json!("2.0.0"), json!(""), json!("one"), json!("0.9.0")] {
        refuses(&rt, rt.bundle().set("/ociVersion", version), &["ociVersion"]);
    }
    refuses(&rt, rt.bundle().unset("/ociVersion"), &["ociVersion"]);
    // Newer ones of the same line are taken.
    let newer = rt.container(rt.bundle().set("/ociVersion", json!("1.99.0")));
    if rt.kind() == Kind::Rrun {
        newer.run().ok();
    }
}

#[test]
fn root_file_systems_that_are_none() {
    let rt = Runtime::new();
    refuses(&rt, rt.bundle().unset("/root"), &["root"]);
    refuses(&rt, rt.bundle().set("/root/path", json!("")), &["root.path"]);
    refuses(&rt, rt.bundle().set("/root/path", json!("absent")), &["root", "absent", "no such file or directory"]);
    let bundle = rt.bundle();
    fs::write(bundle.dir.join("file"), "").unwrap();
    refuses(&rt, bundle.set("/root/path", json!("file")), &["root", "file", "not a directory"]);
}

#[test]
fn processes_that_are_none() {
    let rt = Runtime::new();
    refuses(&rt, rt.bundle().args([] as [&str; 0]), &["process.args", "empty"]);
    refuses(&rt, rt.bundle().unset("/process/args"), &["process.args"]);
    refuses(&rt, rt.bundle().unset("/process"), &["process"]);
    refuses(&rt, rt.bundle().set("/process/cwd", json!("relative")), &["process.cwd", "absolute"]);
    refuses(&rt, rt.bundle().unset("/process/cwd"), &["process", "cwd"]);
    refuses(&rt, rt.bundle().file("/file", "").set("/process/cwd", json!("/file")), &["cwd", "/file", "not a directory"]);
    refuses(&rt, rt.bundle().set("/process/rlimits", json!([{"type": "RLIMIT_WHAT", "soft": 1, "hard": 1}])), &["rlimits", "RLIMIT_WHAT"]);
    refuses(&rt, rt.bundle().set("/process/rlimits", json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}])), &["rlimits"]);
}

#[test]
fn namespaces() {
    let rt = Runtime::new();
    refuses(&rt, rt.bundle().namespace("galaxy", None), &["linux.namespaces", "galaxy"]);
    let twice = rt.bundle().set("/linux/namespaces/-", json!({"type": "pid"}));
    refuses(&rt, twice, &["linux.namespaces", "pid", "twice"]);
    let absent = rt.bundle().namespace("ipc", Some("/proc/1/ns/absent".as_ref()));
    refuses(&rt, absent, &["linux.namespaces", "/proc/1/ns/absent", "no such file or directory"]);
    let plain = rt.bundle().namespace("ipc", Some("/etc/passwd".as_ref()));
    refuses(&rt, plain, &["linux.namespaces", "/etc/passwd"]);
    let other = rt.bundle().namespace("ipc", Some("/proc/self/ns/uts".as_ref()));
    refuses(&rt, other, &["linux.namespaces", "/proc/self/ns/uts"]);
    refuses(&rt, rt.bundle().without_namespace("uts"), &["hostname", "uts"]);
    if !rt.is_rootless() {
        let offsets = json!({"boottime": {"secs": 1}});
        refuses(&rt, rt.bundle().set("/linux/timeOffsets", offsets), &["timeOffsets", "time"]);
        refuses(&rt, rt.bundle().namespace("user", None), &["uidMappings"]);
        let map = json!([{"containerID": 0, "hostID": 100000, "size": 0}]);
        let empty = rt.bundle().user_namespace(100000).set("/linux/uidMappings", map);
        refuses(&rt, empty, &["uidMappings"]);
    }
}

#[test]
fn mounts() {
    let rt = Runtime::new();
    let cases: &[(Value, &[&str])] = &[
        (
            json!({"destination": "/in", "type": "bind", "source": "/no/such/source", "options": ["bind"]}),
            &["/no/such/source", "no such file or directory"],
        ),
        (json!({"destination": "/in", "type": "no-such-fs", "source": "x"}), &["/in", "no-such-fs"]),
        (json!({"destination": "", "type": "tmpfs", "source": "x"}), &["mounts[", "destination"]),
        (json!({"type": "tmpfs", "source": "x"}), &["mounts[", "destination"]),
        (json!({"destination": "/in", "type": "tmpfs", "source": "x", "options": ["size=lots"]}), &["/in", "size", "lots"]),
        (json!({"destination": "/in", "type": "bind", "source": "/etc", "options": ["bind", "idmap"]}), &["/in", "idmap"]),
        (json!({"destination": "/probe/below", "type": "tmpfs", "source": "x"}), &["/probe/below", "not a directory"]),
        (json!({"destination": "/probe", "type": "bind", "source": "/etc", "options": ["bind"]}), &["/probe"]),
    ];
    for (mount, texts) in cases {
        // idmap without a mapping needs a user namespace to take it from.
        if texts.contains(&"idmap") && rt.is_rootless() {
            continue;
        }
        refuses(&rt, rt.bundle().set("/mounts/-", mount.clone()), texts);
    }
    refuses(&rt, rt.bundle().set("/linux/rootfsPropagation", json!("sideways")), &["rootfsPropagation", "sideways"]);
}

#[test]
fn the_rest_of_linux() {
    let rt = Runtime::new();
    refuses(&rt, rt.bundle().set("/linux/personality", json!({"domain": "CP/M"})), &["personality", "CP/M"]);
    refuses(&rt, rt.bundle().set("/hooks/prestart", json!([{"path": "relative"}])), &["hooks.prestart[0].path", "absolute"]);
    refuses(&rt, rt.bundle().set("/hooks/poststop", json!([{"path": "/bin/true", "timeout": -1}])), &["hooks.poststop[0].timeout"]);
    if !rt.is_rootless() {
        let device = json!([{"path": "/dev/x", "type": "z", "major": 1, "minor": 1}]);
        refuses(&rt, rt.bundle().set("/linux/devices", device), &["linux.devices[0]"]);
        refuses(&rt, rt.bundle().set("/linux/resources/devices", json!([{"allow": true, "access": "q"}])), &["linux.resources.devices"]);
    }
}

#[test]
fn a_security_module_that_is_not_there() {
    let rt = Runtime::new();
    require!(!std::path::Path::new("/sys/kernel/security/apparmor/profiles").exists(), "a kernel without AppArmor");
    refuses(&rt, rt.bundle().set("/process/apparmorProfile", json!("some-profile")), &["apparmor", "some-profile"]);
    require!(!std::path::Path::new("/sys/fs/selinux/enforce").exists(), "a kernel without SELinux");
    if rt.kind() == Kind::Rrun {
        refuses(&rt, rt.bundle().set("/process/selinuxLabel", json!("system_u:system_r:container_t:s0")), &["selinux"]);
    }
}

#[test]
fn cgroups_that_cannot_be_written() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroup file systems made read-only");
    let c = rt.container(rt.bundle());
    let setup = "for d in $(sed -n \"s/^[^ ]* [^ ]* [^ ]* [^ ]* \\(\\/sys\\/fs\\/cgroup[^ ]*\\) .* cgroup2* .*/\\1/p\" /proc/self/mountinfo); do mount -o remount,bind,ro $d; done";
    let done = rt.call_after(setup, ["create", "--bundle", c.bundle.dir.to_str().unwrap(), &c.id]).run();
    refused(&rt, done, &["cgroup", "read-only file system"]);
}

#[test]
fn state_roots_that_are_none() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle());
    let file = rt.dir().join("file");
    fs::write(&file, "").unwrap();
    for root in [file.clone(), file.join("below")] {
        let done = rt.bare().arg("--root").arg(&root).args(["create", "--bundle"]).arg(&c.bundle.dir).arg(&c.id).run();
        refused(&rt, done, &[file.to_str().unwrap()]);
    }
}

#[test]
fn files_that_cannot_be_written() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle());
    let done = c.create_with(&["--pid-file", "/no/such/folder/pid"]).run();
    refused(&rt, done, &["/no/such/folder", "no such file or directory"]);
    let done = rt
        .bare()
        .args(["--log", "/no/such/folder/log", "--root"])
        .arg(rt.root())
        .args(["create", "--bundle"])
        .arg(&c.bundle.dir)
        .arg(&c.id)
        .run();
    refused(&rt, done, &["/no/such/folder/log"]);
    let done = c.create_with(&["--preserve-fds", "3"]).run();
    refused(&rt, done, &["preserve", "3"]);
    if !rt.differs("pidfd socket") {
        let done = c.create_with(&["--pidfd-socket", "/no/such/socket"]).run();
        refused(&rt, done, &["/no/such/socket"]);
    }
}

#[test]
fn a_wrong_memory_policy_is_told_in_runc_s_words() {
    let rt = Runtime::new();
    for (policy, text) in [
        (json!({}), "invalid memory policy"),
        (json!({"mode": "INTERLEAVE", "nodes": "0"}), "invalid memory policy mode"),
        (json!({"nodes": "0-7"}), "invalid memory policy mode"),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["badflag"]}), "invalid memory policy flag"),
        (json!({"mode": "MPOL_DEFAULT", "nodes": "0-7"}), "mode requires 0 nodes but got 8"),
        (json!({"mode": "MPOL_BIND", "nodes": "0-9876543210"}), "invalid memory policy node"),
    ] {
        rt.container(rt.bundle().set("/linux/memoryPolicy", policy)).create().fails(1, &[text]);
    }
}

#[test]
fn a_damaged_folder_is_named_and_delete_force_removes_it() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "rrun's own state.json");
    type Damage = fn(&std::path::Path);
    let damages: [(&str, Damage); 4] = [
        ("empty", |p| fs::write(p, "").unwrap()),
        ("half", |p| fs::write(p, "{\"version\": 1, \"id\":").unwrap()),
        ("other", |p| fs::write(p, "{\"version\": 999999}").unwrap()),
        ("gone", |p| fs::remove_file(p).unwrap()),
    ];
    for (name, damage) in damages {
        let c = rt.container(rt.bundle().args(["/probe", "exit"]));
        c.create().ok();
        c.call(["start"]).ok();
        c.wait_status("stopped");
        let path = rt.root().join(&c.id).join("state.json");
        damage(&path);
        for command in ["state", "start", "kill", "ps", "pause", "delete"] {
            c.call([command]).fails(1, &[path.to_str().unwrap(), "delete --force"]).one_line();
        }
        c.exec(&[], &["/probe"]).fails(255, &[path.to_str().unwrap()]);
        assert!(rt.call(["list"]).run().stdout.starts_with("ID"), "{name}");
        c.call(["delete", "--force"]).ok();
        assert!(!rt.root().join(&c.id).exists(), "{name}");
        // What its record alone knew of may be swept by hand.
        sweep_cgroups("/sys/fs/cgroup".as_ref(), &c.id);
        rt.assert_nothing_left();
    }
}

/// Removes the empty cgroups of a container whose record was lost.
fn sweep_cgroups(dir: &std::path::Path, id: &str) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        if entry.file_name().to_string_lossy().contains(id) {
            let _ = fs::remove_dir(entry.path());
        } else {
            sweep_cgroups(&entry.path(), id);
        }
    }
}

#[test]
fn a_very_long_field_is_a_clear_error() {
    let rt = Runtime::new();
    // The kernel takes 128 KiB in one argument.
    let long = "x".repeat(200_000);
    let done = rt.container(rt.bundle().args(["/probe", "args", &long])).run();
    assert!(done.code() != 0 && done.stderr.contains("argument list too long"), "{}", done.stderr);
    rt.assert_nothing_left();
    let c = rt.container(rt.bundle().set("/annotations", json!({"long": "y".repeat(300_000)})));
    c.run().ok();
    let many: Vec<Value> = (0..2000).map(|n| json!({"containerID": n * 2, "hostID": 100000 + n * 2, "size": 1})).collect();
    if !rt.is_rootless() {
        refuses(&rt, rt.bundle().user_namespace(100000).set("/linux/uidMappings", json!(many)), &["uid", "map"]);
    }
}

#[test]
fn a_bad_call_beside_a_good_container_does_not_disturb_it() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(["/probe", "sleep"]));
    let before = (c.state(), host::namespace(&c.pid().to_string(), "mnt"));
    rt.container(rt.bundle().set("/root/path", json!("absent"))).create().exits(1);
    c.create().exits(1);
    assert_eq!((c.state(), host::namespace(&c.pid().to_string(), "mnt")), before);
    c.end();
}
