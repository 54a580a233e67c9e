//! Tests against the cgroups of this machine: natively (v1 or hybrid), in a guest (v2, systemd).
//! They say so and pass where this user may make none.

use super::*;
use oci_spec::runtime::LinuxBuilder;
use std::process::{Child, Command};

/// A plan for a path of its own, or `None` with the reason said.
fn plan(name: &str, resources: &str) -> Option<Cgroup> {
    let rootless = !nix::unistd::geteuid().is_root();
    let mut linux = LinuxBuilder::default().resources(serde_json::from_str::<LinuxResources>(resources).unwrap());
    if !rootless {
        linux = linux.cgroups_path(format!("/rrun-test-{}-{name}/inner", std::process::id()));
    }
    let linux = linux.namespaces(vec![]).build().unwrap();
    let cgroup = Cgroup::plan(Some(&linux), &format!("rrun-test-{}-{name}", std::process::id()), Driver::Cgroupfs, rootless);
    match cgroup {
        Ok(cgroup) if cgroup.exists() => Some(cgroup),
        Ok(cgroup) => {
            println!("SKIP: no cgroup that this user may make: {:?}", cgroup.warnings());
            None
        }
        Err(e) => {
            println!("SKIP: {e:#}");
            None
        }
    }
}

/// Removes the cgroup, and the folder above it that the test's path has.
fn finish(cgroup: &Cgroup) {
    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    for h in cgroup.ours() {
        assert!(!h.dir.exists(), "{}", h.dir.display());
        if let Some(parent) = h.dir.parent().filter(|p| p.to_string_lossy().contains("rrun-test")) {
            let _ = folder::remove_empty(parent);
        }
    }
}

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap()
}

fn sleeper(cgroup: &Cgroup) -> Child {
    let child = Command::new("sleep").arg("60").spawn().unwrap();
    let Entry::Write(files) = cgroup.entry(&[], 0).and_then(Entry::by_write).unwrap() else { panic!("no files") };
    for file in &files {
        folder::write_once(file, &child.id().to_string()).unwrap();
    }
    child
}

fn read(cgroup: &Cgroup, v1: &str, v2: &str) -> String {
    let found = cgroup.ours().find_map(|h| folder::read_file(&h.dir, if h.v2 { v2 } else { v1 }).ok());
    found.unwrap_or_else(|| panic!("neither {v1} nor {v2}")).trim_end().to_owned()
}

#[test]
fn a_cgroup_lives_and_dies() {
    let json = r#"{"memory":{"limit":33554432},"pids":{"limit":20},"cpu":{"shares":512,"quota":20000,"period":50000}}"#;
    let Some(cgroup) = plan("life", json) else { return };
    let none = HashMap::new();
    let entry = cgroup.create(Some(&resources(json)), &none).unwrap();
    assert_eq!(matches!(entry, Entry::Into(_)), cgroup.version() == Version::V2);
    assert_eq!(read(&cgroup, "memory.limit_in_bytes", "memory.max"), "33554432");
    assert_eq!(read(&cgroup, "pids.max", "pids.max"), "20");
    if cgroup.version() == Version::V2 {
        assert_eq!(read(&cgroup, "", "cpu.max"), "20000 50000");
        assert_eq!(read(&cgroup, "", "cpu.weight"), "59");
    } else {
        assert_eq!(read(&cgroup, "cpu.cfs_quota_us", ""), "20000");
    }
    let mut child = sleeper(&cgroup);
    assert_eq!(cgroup.pids().unwrap(), [child.id() as i32]);

    let cgroup = Cgroup::open(&crate::json::parse(crate::json::text(&cgroup.record()).as_bytes()).unwrap().0).unwrap();
    assert!(!cgroup.frozen().unwrap());
    cgroup.freeze(true).unwrap();
    assert!(cgroup.frozen().unwrap());
    cgroup.update(&resources(r#"{"memory":{"limit":67108864},"cpu":{"quota":-1,"period":100000}}"#)).unwrap();
    assert_eq!(read(&cgroup, "memory.limit_in_bytes", "memory.max"), "67108864");
    // A frozen process dies, too, and the cgroup is gone when remove returns.
    std::thread::scope(|s| {
        s.spawn(|| child.wait().unwrap());
        finish(&cgroup);
    });
    assert!(cgroup.pids().unwrap().is_empty());
    assert!(!cgroup.frozen().unwrap());
}

#[test]
fn a_wrong_limit_leaves_nothing() {
    let json = r#"{"cpu":{"cpus":"4000"}}"#;
    let Some(cgroup) = plan("wrong", json) else { return };
    let error = format!("{:#}", cgroup.create(Some(&resources(json)), &HashMap::new()).unwrap_err());
    assert!(error.contains("linux.resources.cpu.cpus"), "{error}");
    for h in cgroup.ours() {
        let parent = h.dir.parent().unwrap();
        let left = h.dir.exists() || parent.ends_with(format!("rrun-test-{}-wrong", std::process::id())) && parent.exists();
        assert!(!left, "{h:?}");
    }
}

#[test]
fn a_taken_cgroup_is_refused() {
    let Some(cgroup) = plan("taken", "{}") else { return };
    cgroup.create(None, &HashMap::new()).unwrap();
    let linux = LinuxBuilder::default().cgroups_path(format!("/rrun-test-{}-taken/inner", std::process::id())).build().unwrap();
    let refusal = || Cgroup::plan(Some(&linux), "id", Driver::Cgroupfs, false).unwrap_err().to_string();
    cgroup.freeze(true).unwrap();
    if nix::unistd::geteuid().is_root() {
        assert!(refusal().contains("unexpectedly frozen"), "{}", refusal());
    }
    cgroup.freeze(false).unwrap();
    let mut child = sleeper(&cgroup);
    if nix::unistd::geteuid().is_root() {
        assert_eq!(refusal(), "container's cgroup is not empty: 1 process(es) found");
    }
    cgroup.kill(nix::libc::SIGKILL).unwrap();
    child.wait().unwrap();
    finish(&cgroup);
}

#[test]
fn an_absent_controller_is_named_and_silence_asks_for_none() {
    let refused = |json: &str| {
        let linux = LinuxBuilder::default().cgroups_path("/rrun-test").resources(resources(json)).build().unwrap();
        Cgroup::plan(Some(&linux), "id", Driver::Cgroupfs, false).map(drop)
    };
    if refused("{}").is_err() {
        println!("SKIP: no cgroups here");
        return;
    }
    let error = refused(r#"{"unified":{"nosuch.max":"1"}}"#).unwrap_err().to_string();
    assert!(error.contains("nosuch"), "{error}");
    let error = refused(r#"{"unified":{"../x.y":"1"}}"#).unwrap_err().to_string();
    assert!(error.contains("no slashes"), "{error}");
    let error = refused(r#"{"rdma":{"mlx5":{"hcaHandles":1}}}"#);
    println!("rdma: {error:?}");
}

#[test]
fn a_sub_cgroup_never_leads_outside() {
    let Some(cgroup) = plan("sub", "{}") else { return };
    cgroup.create(None, &HashMap::new()).unwrap();
    for bad in ["../x", "a/../../b", "/.."] {
        assert!(cgroup.entry(&[bad.to_owned()], 0).is_err(), "{bad}");
    }
    assert!(cgroup.entry(&["not-there".to_owned()], 0).is_err());
    for h in cgroup.ours() {
        std::fs::create_dir(h.dir.join("inner")).unwrap();
    }
    assert!(cgroup.entry(&["inner".to_owned()], 0).is_ok() && cgroup.entry(&["/inner".to_owned()], 0).is_ok());
    finish(&cgroup);
}

/// Asks systemd itself.
fn shown(unit: &str, property: &str) -> String {
    let mut systemctl = Command::new("systemctl");
    if !nix::unistd::geteuid().is_root() {
        systemctl.arg("--user");
    }
    let out = systemctl.args(["show", "--value", "-p", property, unit]).output().unwrap();
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

#[test]
fn a_scope_lives_and_dies() {
    let rootless = !nix::unistd::geteuid().is_root();
    if !Path::new("/run/systemd/system").exists() {
        println!("SKIP: systemd does not run here");
        return;
    }
    let json = r#"{"memory":{"limit":33554432,"swap":33554432},"pids":{"limit":0},"cpu":{"shares":512,"quota":20499,"period":50000,"cpus":"0"},
        "devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"}]}"#;
    let r = resources(json);
    let id = format!("live+{}", std::process::id());
    let linux = LinuxBuilder::default().resources(r.clone()).build().unwrap();
    let cgroup = Cgroup::plan(Some(&linux), &id, Driver::Systemd, rootless).unwrap();
    let annotations = HashMap::from([("org.systemd.property.TimeoutStopSec".to_owned(), "uint64 7".to_owned())]);
    assert!(matches!(cgroup.create(Some(&r), &annotations).unwrap(), Entry::Adopt));
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    cgroup.adopt(child.id() as i32, Some(&r), &annotations).unwrap();

    let unit = format!("rrun-live\\x2b{}.scope", std::process::id());
    assert_eq!(cgroup.record.unit.as_ref().unwrap()[0], unit);
    assert_eq!(cgroup.pids().unwrap(), [child.id() as i32]);
    for (property, value) in [
        ("MemoryMax", "33554432"),
        ("MemorySwapMax", "0"),
        ("TasksMax", "1"),
        ("CPUWeight", "59"),
        ("CPUQuotaPerSecUSec", "410ms"),
        ("AllowedCPUs", "0"),
        ("TimeoutStopUSec", "7s"),
        ("Delegate", "yes"),
        ("ActiveState", "active"),
    ] {
        assert_eq!(shown(&unit, property), value, "{property}");
    }
    assert_eq!(shown(&unit, "DevicePolicy"), if rootless { "auto" } else { "strict" });
    assert_eq!(shown(&unit, "DeviceAllow").contains("/dev/char/10:229 rwm"), !rootless);
    assert_eq!((read(&cgroup, "", "pids.max"), read(&cgroup, "", "cpu.max")), ("1".into(), "20500 50000".into()));

    let cgroup = Cgroup::open(&cgroup.record()).unwrap();
    cgroup.update(&resources(r#"{"memory":{"limit":67108864,"swap":134217728},"pids":{"limit":30}}"#)).unwrap();
    assert_eq!((shown(&unit, "MemoryMax"), shown(&unit, "MemorySwapMax")), ("67108864".into(), "67108864".into()));
    assert_eq!(read(&cgroup, "", "pids.max"), "30");
    for (cpu, quota, period, file) in [
        (r#"{"period":60000}"#, "350ms", "60ms", "21000 60000"),
        (r#"{"quota":30001}"#, "510ms", "60ms", "30600 60000"),
        (r#"{"quota":-1}"#, "infinity", "60ms", "max 60000"),
    ] {
        cgroup.update(&resources(&format!(r#"{{"cpu":{cpu}}}"#))).unwrap();
        assert_eq!((shown(&unit, "CPUQuotaPerSecUSec"), shown(&unit, "CPUQuotaPeriodUSec")), (quota.into(), period.into()), "{cpu}");
        assert_eq!(read(&cgroup, "", "cpu.max"), file, "{cpu}");
    }
    let mut second = Command::new("sleep").arg("60").spawn().unwrap();
    match cgroup.entry(&[], child.id() as i32).unwrap() {
        Entry::Adopt => cgroup.attach(second.id() as i32, &[]).unwrap(),
        entry => {
            assert!(matches!(entry, Entry::Into(_)) && !rootless);
            cgroup.attach(second.id() as i32, &[]).unwrap();
        }
    }
    assert_eq!(cgroup.pids().unwrap().len(), 2);
    cgroup.freeze(true).unwrap();
    std::thread::scope(|s| {
        s.spawn(|| (child.wait().unwrap(), second.wait().unwrap()));
        finish(&cgroup);
    });
    assert_eq!((shown(&unit, "LoadState"), shown(&unit, "ActiveState")), ("not-found".into(), "inactive".into()));
}

#[test]
fn a_scope_of_a_missing_process_is_an_error_and_leaves_nothing() {
    if !Path::new("/run/systemd/system").exists() {
        println!("SKIP: systemd does not run here");
        return;
    }
    let rootless = !nix::unistd::geteuid().is_root();
    let cgroup = Cgroup::plan(None, &format!("none{}", std::process::id()), Driver::Systemd, rootless).unwrap();
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let error = cgroup.adopt(child.id() as i32, None, &HashMap::new()).unwrap_err();
    println!("{error:#}");
    finish(&cgroup);
}

/// Whether a process in the cgroup (none: in this one's) can open a device.
fn opens(cgroup: Option<&Cgroup>, device: &str) -> bool {
    use std::io::Write as _;
    let mut child = Command::new("sh")
        .args(["-c", "read go; : <\"$0\"", device])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    if let Some(cgroup) = cgroup {
        let Entry::Write(files) = cgroup.entry(&[], 0).and_then(Entry::by_write).unwrap() else { panic!("no files") };
        files.iter().for_each(|file| folder::write_once(file, &child.id().to_string()).unwrap());
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    child.wait().unwrap().success()
}

#[test]
fn devices_are_filtered() {
    if !nix::unistd::geteuid().is_root() || !opens(None, "/dev/kmsg") {
        println!("SKIP: needs root and /dev/kmsg");
        return;
    }
    let Some(cgroup) = plan("devices", "{}") else { return };
    cgroup.create(None, &HashMap::new()).unwrap();
    assert!(opens(Some(&cgroup), "/dev/zero") && !opens(Some(&cgroup), "/dev/kmsg"));
    // Again over what is there: the new rules replace the old ones.
    let allow = resources(r#"{"devices":[{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#);
    cgroup.create(Some(&allow), &HashMap::new()).unwrap();
    assert!(opens(Some(&cgroup), "/dev/kmsg"));
    cgroup.create(Some(&resources(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#)), &HashMap::new()).unwrap();
    assert!(opens(Some(&cgroup), "/dev/kmsg"));
    finish(&cgroup);
}

#[test]
fn updates_find_an_order_that_the_kernel_takes() {
    let json = r#"{"memory":{"limit":33554432,"swap":67108864},"cpu":{"quota":20000,"period":50000}}"#;
    let Some(cgroup) = plan("update", json) else { return };
    if let Err(e) = cgroup.create(Some(&resources(json)), &HashMap::new()) {
        // Without swap accounting there is nothing to order.
        println!("SKIP: {e:#}");
        return finish(&cgroup);
    }
    for (limit, swap, quota, period) in
        [(134217728i64, 268435456i64, 5000i64, 10000), (16777216, 16777216, 500000, 1000000), (67108864, -1, -1, 100000)]
    {
        for _ in 0..2 {
            let json = format!(r#"{{"memory":{{"limit":{limit},"swap":{swap}}},"cpu":{{"quota":{quota},"period":{period}}}}}"#);
            cgroup.update(&resources(&json)).unwrap();
            assert_eq!(read(&cgroup, "memory.limit_in_bytes", "memory.max"), limit.to_string());
        }
    }
    // Half of a pair keeps the other half.
    cgroup.update(&resources(r#"{"cpu":{"quota":30000}}"#)).unwrap();
    cgroup.update(&resources(r#"{"cpu":{"period":60000}}"#)).unwrap();
    if cgroup.version() == Version::V2 {
        assert_eq!(read(&cgroup, "", "cpu.max"), "30000 60000");
    }
    let error = format!("{:#}", cgroup.update(&resources(r#"{"pids":{"limit":7},"cpu":{"idle":5}}"#)).unwrap_err());
    assert!(error.contains("linux.resources.cpu.idle"), "{error}");
    finish(&cgroup);
}
