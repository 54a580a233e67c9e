//! mounts: every kind and option, propagation, order, and the root file system itself.

use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use tests::{Runtime, has_option, host, mount_at, require};

/// A folder of the test's with `file` in it, for binding.
fn source(rt: &Runtime, name: &str) -> String {
    let dir = rt.dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(dir.join("file"), name).unwrap();
    dir.to_str().unwrap().to_string()
}

#[test]
fn the_default_mounts() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle());
    for (target, kind) in
        [("/proc", "proc"), ("/dev", "tmpfs"), ("/dev/pts", "devpts"), ("/dev/shm", "tmpfs"), ("/dev/mqueue", "mqueue"), ("/sys", "sysfs")]
    {
        assert_eq!(mount_at(&report, target)["type"], kind, "{target}");
    }
    assert!(has_option(&mount_at(&report, "/")["options"], "ro"));
    assert!(has_option(&mount_at(&report, "/sys")["options"], "ro"));
    let shm = mount_at(&report, "/dev/shm");
    for option in ["nosuid", "noexec", "nodev"] {
        assert!(has_option(&shm["options"], option), "{shm}");
    }
    assert!(has_option(&shm["super"], "size=65536k") || has_option(&shm["super"], "size=64m"), "{shm}");
}

#[test]
fn nothing_of_the_host_s_mounts_is_seen() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle());
    let targets: Vec<&str> = report["mounts"].as_array().unwrap().iter().map(|m| m["target"].as_str().unwrap()).collect();
    for target in &targets {
        assert!(*target == "/" || ["/proc", "/dev", "/sys"].iter().any(|p| target.starts_with(p)), "{targets:#?}");
    }
}

#[test]
fn read_only_and_writable_root() {
    let rt = Runtime::new();
    let actions = ["create /new x", "mkdir /folder"];
    let result = rt.tries(rt.bundle(), &actions);
    assert_eq!(result, json!({"create /new x": "EROFS", "mkdir /folder": "EROFS"}));
    let result = rt.tries(rt.bundle().writable(), &actions);
    assert_eq!(result, json!({"create /new x": "ok", "mkdir /folder": "ok"}));
}

#[test]
fn bind_of_a_folder_and_of_a_file_make_their_targets() {
    let rt = Runtime::new();
    let dir = source(&rt, "shared");
    let file = format!("{dir}/file");
    let bundle = rt.bundle().mount("/a/b", "bind", &dir, &["bind"]).mount("/c/d.txt", "none", &file, &["rbind", "ro"]);
    let result = rt.tries(bundle, &["read /a/b/file", "read /c/d.txt", "create /a/b/new x", "open /c/d.txt w"]);
    assert_eq!(result["read /a/b/file"], "shared");
    assert_eq!(result["read /c/d.txt"], "shared");
    assert_eq!(result["create /a/b/new x"], "ok");
    assert_eq!(result["open /c/d.txt w"], "EROFS");
    assert_eq!(fs::read_to_string(format!("{dir}/new")).unwrap(), "x");
}

#[test]
fn a_relative_source_is_the_bundle_s() {
    let rt = Runtime::new();
    let bundle = rt.bundle().folder("/in");
    fs::create_dir(bundle.dir.join("data")).unwrap();
    fs::write(bundle.dir.join("data/file"), "here").unwrap();
    let result = rt.tries(bundle.mount("/in", "bind", "data", &["bind"]), &["read /in/file"]);
    assert_eq!(result["read /in/file"], "here");
}

#[test]
fn per_mount_options() {
    let rt = Runtime::new();
    let dir = source(&rt, "shared");
    let cases: &[(&str, &str)] = &[
        ("ro", "ro"),
        ("nosuid", "nosuid"),
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("noatime", "noatime"),
        ("nodiratime", "nodiratime"),
        ("relatime", "relatime"),
        ("nosymfollow", "nosymfollow"),
    ];
    let mut bundle = rt.bundle();
    // What a bind has of the host's access times is locked in a user namespace.
    let locked = |option: &str| rt.is_rootless() && option.ends_with("atime");
    for (option, _) in cases {
        bundle = bundle.mount(&format!("/tmpfs/{option}"), "tmpfs", "tmpfs", &[option]);
        if !locked(option) {
            bundle = bundle.mount(&format!("/bind/{option}"), "bind", &dir, &["bind", option]);
        }
    }
    bundle = bundle.mount("/plain", "tmpfs", "tmpfs", &["strictatime", "rw", "suid", "dev", "exec", "symfollow"]);
    if !rt.differs("defaults") {
        bundle = bundle.mount("/defaults", "tmpfs", "tmpfs", &["defaults"]);
    }
    let report = rt.report(bundle);
    for (option, shown) in cases {
        if rt.differs(option) {
            continue;
        }
        for kind in if locked(option) { &["tmpfs"][..] } else { &["tmpfs", "bind"] } {
            let mount = mount_at(&report, &format!("/{kind}/{option}"));
            assert!(has_option(&mount["options"], shown), "{kind} {option}: {mount}");
        }
    }
    assert_eq!(mount_at(&report, "/plain")["options"], "rw");
}

#[test]
fn super_block_options() {
    let rt = Runtime::new();
    let bundle = rt.bundle().mount("/t", "tmpfs", "name", &["size=1m", "mode=1750", "nr_inodes=100", "sync"]);
    let c = rt.container(bundle.args(["/probe", "report"]));
    let report = c.run().ok().json();
    let mount = mount_at(&report, "/t");
    for option in ["size=1024k", "mode=1750", "nr_inodes=100", "sync"] {
        assert!(has_option(&mount["super"], option), "{option}: {mount}");
    }
    assert_eq!(mount["source"], "name");
    let result = rt.tries(rt.bundle().mount("/t", "tmpfs", "name", &["mode=1750"]), &["stat /t"]);
    assert!(result["stat /t"].as_str().unwrap().starts_with("dir 1750 0:0"), "{result}");
}

#[test]
fn an_option_nobody_knows_is_refused() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().mount("/t", "tmpfs", "tmpfs", &["no-such-option=1"]));
    c.run().fails(1, &["/t"]);
    rt.assert_nothing_left();
}

#[test]
fn a_bind_keeps_the_locked_flags_of_its_source_or_gets_its_own() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a mount to bind");
    let dir = source(&rt, "source");
    let setup = format!("mount -t tmpfs -o nosuid,nodev,noexec,noatime t {dir}; mkdir {dir}/sub");
    let c = rt.container(rt.bundle().mount("/in", "bind", &dir, &["bind", "ro"]));
    let report = c.run_after(&setup).ok().json();
    assert!(has_option(&mount_at(&report, "/in")["options"], "ro"), "{}", report["mounts"]);
}

#[test]
fn rbind_takes_submounts_and_bind_does_not() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a mount to bind");
    let dir = source(&rt, "source");
    let setup = format!("mkdir {dir}/sub; mount -t tmpfs t {dir}/sub; echo deep > {dir}/sub/file");
    let actions = ["/probe", "try", "read /r/sub/file", "read /b/sub/file"];
    let bundle = rt.bundle().args(actions).mount("/r", "bind", &dir, &["rbind"]).mount("/b", "bind", &dir, &["bind"]);
    let result = rt.container(bundle).run_after(&setup).ok().json();
    assert_eq!(result, json!({"read /r/sub/file": "deep", "read /b/sub/file": "ENOENT"}));
}

#[test]
fn ro_is_for_the_top_and_rro_for_all_below() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a mount to bind");
    let dir = source(&rt, "source");
    let setup = format!("mkdir {dir}/sub; mount -t tmpfs t {dir}/sub");
    let bundle = rt.bundle().mount("/ro", "bind", &dir, &["rbind", "ro"]).mount("/rro", "bind", &dir, &["rbind", "rro"]);
    let bundle = bundle.args(["/probe", "try", "create /ro/x x", "create /ro/sub/x x", "create /rro/x x", "create /rro/sub/y x"]);
    let result = rt.container(bundle).run_after(&setup).ok().json();
    assert_eq!(
        result,
        json!({"create /ro/x x": "EROFS", "create /ro/sub/x x": "ok", "create /rro/x x": "EROFS", "create /rro/sub/y x": "EROFS"})
    );
}

#[test]
fn recursive_attributes() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a mount to bind");
    let dir = source(&rt, "source");
    let setup = format!("mkdir {dir}/sub; mount -t tmpfs t {dir}/sub");
    let cases = [
        ("rnosuid", "nosuid"),
        ("rnodev", "nodev"),
        ("rnoexec", "noexec"),
        ("rnoatime", "noatime"),
        ("rnosymfollow", "nosymfollow"),
        ("rnodiratime", "nodiratime"),
    ];
    let mut bundle = rt.bundle();
    for (option, _) in cases.iter().filter(|(o, _)| !rt.differs(o)) {
        bundle = bundle.mount(&format!("/{option}"), "bind", &dir, &["rbind", option]);
    }
    let report = rt.container(bundle).run_after(&setup).ok().json();
    for (option, shown) in cases.iter().filter(|(o, _)| !rt.differs(o)) {
        for target in [format!("/{option}"), format!("/{option}/sub")] {
            assert!(has_option(&mount_at(&report, &target)["options"], shown), "{target}: {}", report["mounts"]);
        }
    }
}

#[test]
fn propagation_of_each_mount() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a shared mount to bind");
    let dir = source(&rt, "source");
    let setup = format!("mkdir {dir}/sub; mount -t tmpfs t {dir}; mount --make-shared {dir}; mkdir {dir}/sub; mount -t tmpfs t {dir}/sub");
    let mut bundle = rt.bundle();
    for option in ["shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable"] {
        bundle = bundle.mount(&format!("/{option}"), "bind", &dir, &["rbind", option]);
    }
    let report = rt.container(bundle).run_after(&setup).ok().json();
    let optional = |target: &str| mount_at(&report, target)["optional"].as_str().unwrap().to_string();
    for option in ["shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable"] {
        let seen = optional(&format!("/{option}"));
        let fits = match option.trim_start_matches('r') {
            "shared" => seen.contains("shared:"),
            "slave" => seen.contains("master:") && !seen.contains("shared:"),
            "private" => seen.is_empty(),
            _ => seen == "unbindable",
        };
        assert!(fits, "{option}: {seen:?}");
    }
    assert!(optional("/rslave/sub").contains("master:"), "{}", report["mounts"]);
    assert_eq!(optional("/rprivate/sub"), "");
    assert_ne!(optional("/private/sub"), "", "private is not recursive");
}

#[test]
fn root_propagation() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: propagation across user namespaces is always slave");
    for (value, text) in [("private", ""), ("rprivate", ""), ("shared", "shared:"), ("rshared", "shared:"), ("unbindable", "unbindable")] {
        let report = rt.report(rt.bundle().set("/linux/rootfsPropagation", json!(value)));
        let seen = mount_at(&report, "/")["optional"].as_str().unwrap().to_string();
        assert!(seen.contains(text) && (!text.is_empty() || seen.is_empty()), "{value}: {seen:?}");
    }
}

#[test]
fn a_mount_made_on_the_host_later_comes_through_a_slave() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a shared mount to bind");
    let dir = source(&rt, "source");
    let bundle = rt.bundle().args(["/probe", "sleep"]).mount("/in", "bind", &dir, &["rbind", "rslave"]);
    let c = rt.container(bundle.set("/linux/rootfsPropagation", json!("rslave")));
    let script = format!(
        "mount -t tmpfs t {dir}; mount --make-shared {dir}; mkdir {dir}/late
         \"$@\"; mount -t tmpfs t {dir}/late; echo yes > {dir}/late/file; umask 0; : > {dir}/done; exec sleep 60"
    );
    let program = tests::runtime::program().0.display().to_string();
    let (root, bundle) = (rt.root().display().to_string(), c.bundle.dir.display().to_string());
    let args = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        &script,
        "sh",
        &program,
        "--root",
        &root,
        "run",
        "-d",
        "-b",
        &bundle,
        &c.id,
    ];
    let mut host = rt.shell("exec \"$@\"", &args).spawn();
    let seen = host::wait_until(20, || c.exec(&[], &["/probe", "try", "read /in/late/file"]).run().stdout.contains("yes"));
    let _ = host.child.kill();
    host.wait();
    assert!(seen);
}

#[test]
fn mounts_come_in_the_order_given() {
    let rt = Runtime::new();
    let (one, two) = (source(&rt, "one"), source(&rt, "two"));
    let bundle = rt.bundle().mount("/in", "bind", &one, &["bind"]).mount("/in", "bind", &two, &["bind"]);
    let bundle = bundle.mount("/in/deep/er", "tmpfs", "t", &[]);
    let result = rt.tries(bundle, &["read /in/file", "list /in"]);
    assert_eq!(result["read /in/file"], "two");
    assert_eq!(result["list /in"], "deep file");
}

#[test]
fn a_target_that_is_a_link_stays_in_the_root() {
    let rt = Runtime::new();
    let dir = source(&rt, "source");
    let bundle = rt.bundle().folder("/real").symlink("/link", "/real").symlink("/up", "../../../../real/deep");
    let bundle = bundle.mount("/link", "bind", &dir, &["bind"]).mount("/up/x", "tmpfs", "t", &[]);
    let result = rt.tries(bundle, &["read /real/file", "list /real"]);
    assert_eq!(result["read /real/file"], "source");
}

#[test]
fn dots_in_a_target_stay_in_the_root() {
    let rt = Runtime::new();
    let dir = source(&rt, "source");
    let result = rt.tries(rt.bundle().mount("/../../in/./x/../y", "bind", &dir, &["bind"]), &["read /in/y/file"]);
    assert_eq!(result["read /in/y/file"], "source");
}

#[test]
fn a_mount_namespace_shared_with_the_host_is_possible() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: chroot into the root file system");
    require!(!rt.differs("no mount namespace"), "this peer needs /proc");
    let mut bundle = rt.bundle().without_namespace("mount").unset("/linux/maskedPaths").unset("/linux/readonlyPaths").writable();
    bundle.config["mounts"] = json!([]);
    let done = rt.container(bundle.args(["/probe", "try", "list /"])).run().ok();
    assert!(done.json()["list /"].as_str().unwrap().contains("probe"), "{done}");
}

#[test]
fn no_pivot_works_too() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: MS_MOVE of the root");
    let c = rt.container(rt.bundle());
    let report = c.run_with(&["--no-pivot"]).ok().json();
    assert_eq!(report["pid"], 1);
    assert_eq!(mount_at(&report, "/proc")["type"], "proc");
}

#[test]
fn the_root_may_be_anywhere_and_links_lead_to_the_bundle() {
    let rt = Runtime::new();
    let bundle = rt.bundle();
    let absolute = rt.container(bundle.clone().set("/root/path", json!(bundle.rootfs())));
    assert_eq!(absolute.run().ok().json()["pid"], 1);
    let link = rt.dir().join("link");
    std::os::unix::fs::symlink(&bundle.dir, &link).unwrap();
    let c = rt.container(bundle);
    assert_eq!(rt.call(["run", "-b", link.to_str().unwrap(), &c.id]).ok().json()["pid"], 1);
}
