//! A checkpoint's images are as hostile as an image's files: what they hold gets nothing that the configuration does not
//! give. They are made here from a container that may more; a configuration that gives less restores them.

use crate::checkpoint::{checkpoint, count, counter, folders, needs_criu, restore, wait_beyond};
use serde_json::{Value, json};
use std::fs;
use tests::{Bundle, Container, Runtime};

/// Changes one field of a bundle's config.json.
fn change(c: &Container<'_>, pointer: &str, value: Value) {
    let config = c.bundle.dir.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[key] = value;
    fs::write(&config, spec.to_string()).unwrap();
}

/// Checkpoints `bundle`, and restores it with `less` in its configuration: that is refused with `text`, and nothing has run.
#[track_caller]
fn refused(rt: &Runtime, bundle: Bundle, less: &[(&str, Value)], text: &str) {
    let c = rt.start(bundle);
    wait_beyond(&c, 1);
    checkpoint(&c, &[]);
    for (pointer, value) in less {
        change(&c, pointer, value.clone());
    }
    let saved = count(&c);
    if rt.differs("restore beyond the configuration") {
        c.call(["delete", "-f"]).run();
        return;
    }
    let (images, work) = folders(rt);
    let bundle = c.bundle.dir.display().to_string();
    c.call(["restore", "-d", "--bundle", &bundle, "--image-path", &images, "--work-path", &work]).fails(1, &[text]);
    rt.assert_nothing_left();
    assert_eq!(count(&c), saved, "it ran");
}

#[test]
fn credentials() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let less = ["bounding", "effective", "permitted"].map(|set| (format!("/process/capabilities/{set}"), json!(["CAP_KILL"])));
    let less: Vec<_> = less.iter().map(|(pointer, value)| (pointer.as_str(), value.clone())).collect();
    refused(&rt, counter(&rt), &less, "process.capabilities: the checkpoint has more");
    let bundle = counter(&rt).set("/process/noNewPrivileges", json!(false));
    refused(&rt, bundle, &[("/process/noNewPrivileges", json!(true))], "process.noNewPrivileges");
    let bundle = counter(&rt).set("/process/noNewPrivileges", json!(true));
    refused(&rt, bundle, &[("/process/user/uid", json!(1000))], "process.user.uid: the checkpoint has a process of root");
    let filter = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]});
    refused(&rt, counter(&rt), &[("/linux/seccomp", filter)], "linux.seccomp");
}

#[test]
fn namespaces() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = counter(&rt).without_namespace("ipc");
    let own = json!(["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind})));
    refused(&rt, c, &[("/linux/namespaces", own)], "linux.namespaces: the checkpoint is not in a ipc namespace of its own");
}

#[test]
fn mounts() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let without =
        |c: &Bundle| json!(c.config["mounts"].as_array().unwrap().iter().filter(|m| m["destination"] != "/extra").collect::<Vec<_>>());
    let more = counter(&rt).mount("/extra", "proc", "proc", &[]);
    let less = without(&more);
    refused(&rt, more, &[("/mounts", less)], "/extra: restored as a mount (proc");

    // A file that is open for writing on what is to be read-only.
    let shared = rt.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    let writer = counter(&rt).args(["/bin/sh", "-c", "exec 3>/extra/open; i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.05; done"]);
    let bundle = writer.mount("/extra", "bind", shared.to_str().unwrap(), &["bind"]);
    let mounts = with_option(&bundle, "ro");
    refused(&rt, bundle, &[("/mounts", mounts)], "/extra: protect as config.json asks");
    refused(&rt, counter(&rt), &[("/root/readonly", json!(true))], "root.readonly: restored writable");
}

/// The mounts of a bundle, the last with one more option.
fn with_option(bundle: &Bundle, option: &str) -> Value {
    let mut mounts = bundle.config["mounts"].clone();
    let last = mounts.as_array().unwrap().len() - 1;
    mounts[last]["options"].as_array_mut().unwrap().push(json!(option));
    mounts
}

#[test]
fn mounts_are_protected_as_the_configuration_asks() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let shared = rt.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    for (kind, source, option) in [("bind", shared.to_str().unwrap(), "ro"), ("tmpfs", "tmpfs", "noexec")] {
        let bundle = counter(&rt).mount("/extra", kind, source, if kind == "bind" { &["bind"] } else { &[] });
        let mounts = with_option(&bundle, option);
        let c = rt.start(bundle);
        wait_beyond(&c, 1);
        checkpoint(&c, &[]);
        change(&c, "/mounts", mounts);
        let saved = count(&c);
        restore(&c, &[]);
        wait_beyond(&c, saved);
        if !rt.differs("restore beyond the configuration") {
            let mountinfo = fs::read_to_string(format!("/proc/{}/mountinfo", c.pid())).unwrap();
            let line = mountinfo.lines().find(|l| l.contains(" /extra ")).unwrap();
            assert!(line.split(' ').nth(5).unwrap().split(',').any(|flag| flag == option), "{line}");
        }
        c.end();
    }
}

/// It has no namespaces any more, and needs none.
#[test]
fn a_zombie_comes_back() {
    let rt = Runtime::new();
    needs_criu!(rt);
    // What the shell becomes waits for nobody.
    let c = rt.start(rt.bundle().shell().writable().args(["/bin/sh", "-c", "sleep 0 & exec sleep 1000"]));
    let zombie = || c.exec(&[], &["/bin/sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status"]).run().stdout;
    assert!(tests::host::wait_until(20, || !zombie().is_empty()));
    checkpoint(&c, &[]);
    restore(&c, &[]);
    assert!(!zombie().is_empty());
    c.end();
}

/// They are no reason to refuse: other runtimes mask other paths.
#[test]
fn masks_come_with_the_restore() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = rt.start(counter(&rt).unset("/linux/maskedPaths").unset("/linux/readonlyPaths"));
    wait_beyond(&c, 1);
    checkpoint(&c, &[]);
    change(&c, "/linux/maskedPaths", json!(["/proc/timer_list", "/proc/scsi", "/proc/not-there"]));
    change(&c, "/linux/readonlyPaths", json!(["/proc/sys"]));
    let saved = count(&c);
    restore(&c, &[]);
    wait_beyond(&c, saved);
    let look = "wc -c </proc/timer_list; ls -A /proc/scsi; echo x 2>/dev/null >/proc/sys/kernel/hostname || echo denied";
    let seen = c.exec(&[], &["/bin/sh", "-c", look]).ok().stdout;
    assert_eq!(seen.lines().map(str::trim).collect::<Vec<_>>(), ["0", "denied"]);
    // And once more, with the masks in the images.
    checkpoint(&c, &[]);
    restore(&c, &[]);
    c.end();
}
