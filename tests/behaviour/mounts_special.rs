//! Mounts that need more than one call: tmpcopyup, id-mapped binds, cgroups.

use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tests::{Bundle, Runtime, host, require};

/// A folder of the test's with `file` in it, for binding.
fn source(rt: &Runtime) -> String {
    let dir = rt.dir().join("source");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(dir.join("file"), "source").unwrap();
    dir.to_str().unwrap().to_string()
}

#[test]
fn tmpcopyup_fills_the_tmpfs() {
    let rt = Runtime::new();
    let bundle = rt.bundle().file("/etc/one", "1").file("/etc/sub/two", "22").program("/etc/run", "#!").symlink("/etc/link", "one");
    fs::set_permissions(bundle.rootfs().join("etc"), fs::Permissions::from_mode(0o711)).unwrap();
    let bundle = bundle.mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let rootfs = bundle.rootfs();
    let result = rt.tries(
        bundle,
        &["read /etc/one", "read /etc/sub/two", "stat /etc/run", "link /etc/link", "stat /etc", "create /etc/new x", "open /etc/one w"],
    );
    assert_eq!(result["read /etc/one"], "1");
    assert_eq!(result["read /etc/sub/two"], "22");
    assert_eq!(result["stat /etc/run"], "file 0755 0:0 0:0 2");
    assert_eq!(result["link /etc/link"], "one");
    assert!(result["stat /etc"].as_str().unwrap().starts_with("dir 0711"), "{result}");
    assert_eq!(result["create /etc/new x"], "ok");
    assert!(!rootfs.join("etc/new").exists());
}

#[test]
fn a_tmpfs_takes_the_mode_of_what_it_covers() {
    let rt = Runtime::new();
    let bundle = rt.bundle().folder("/covered");
    fs::set_permissions(bundle.rootfs().join("covered"), fs::Permissions::from_mode(0o1733)).unwrap();
    let result = rt.tries(bundle.mount("/covered", "tmpfs", "tmpfs", &[]), &["stat /covered"]);
    assert!(result["stat /covered"].as_str().unwrap().starts_with("dir 1733"), "{result}");
}

fn idmapped(rt: &Runtime, target: &str, options: &[&str], source: &str) -> Bundle {
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    let mount =
        json!({"destination": target, "type": "bind", "source": source, "options": options, "uidMappings": map, "gidMappings": map});
    rt.bundle().set("/mounts/-", mount)
}

#[test]
fn idmapped_binds() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: id-mapped mounts");
    let dir = source(&rt);
    std::os::unix::fs::chown(format!("{dir}/file"), Some(5), Some(6)).unwrap();
    for option in ["idmap", "ridmap"] {
        let result = rt.tries(idmapped(&rt, "/in", &["rbind", option], &dir), &["stat /in/file"]);
        let stat = result["stat /in/file"].as_str().unwrap();
        assert!(stat.contains(" 100005:100006 "), "{option}: {stat}");
    }
}

#[test]
fn an_idmapped_bind_follows_the_user_namespace() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: id-mapped mounts");
    let dir = source(&rt);
    // Owned by root on the host; seen as root's in the user namespace.
    let bundle = idmapped(&rt, "/in", &["bind", "idmap"], &dir).user_namespace(100000);
    let result = rt.tries(bundle, &["stat /in/file", "create /in/new x"]);
    assert!(result["stat /in/file"].as_str().unwrap().contains(" 0:0 "), "{result}");
    assert_eq!(result["create /in/new x"], "ok");
}

#[test]
fn an_idmapped_bind_follows_a_joined_user_namespace() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: id-mapped mounts");
    let dir = source(&rt);
    let owner = rt.start(rt.bundle().user_namespace(100000).args(["/probe", "sleep"]));
    let path = format!("/proc/{}/ns/user", owner.pid());
    // No mappings of its own: those of the namespace hold.
    let bundle = rt.bundle().namespace("user", Some(Path::new(&path))).mount("/in", "bind", &dir, &["bind", "idmap"]);
    tests::bundle::chown_tree(&bundle.rootfs(), 100000);
    let result = rt.tries(bundle, &["stat /in/file", "create /in/new x"]);
    assert!(result["stat /in/file"].as_str().unwrap().contains(" 0:0 "), "{result}");
    assert_eq!(result["create /in/new x"], "ok");
    owner.end();
}

#[test]
fn an_idmapped_bind_in_a_user_namespace_may_have_an_earlier_mount_as_its_source() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: id-mapped mounts");
    let dir = source(&rt);
    // Nobody but root may go there.
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let bundle = rt.bundle().folder("/first").mount("/first", "bind", &dir, &["bind"]);
    let inside = bundle.rootfs().join("first").display().to_string();
    let bundle = bundle.mount("/second", "bind", &inside, &["bind", "idmap"]).user_namespace(100000);
    let result = rt.tries(bundle, &["stat /second/file", "read /second/file"]);
    assert!(result["stat /second/file"].as_str().unwrap().contains(" 0:0 "), "{result}");
    assert_ne!(result["read /second/file"], "ENOENT");
}

#[test]
fn a_cgroup_mount_shows_the_container_s_own() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup of its own");
    let bundle = rt.bundle().mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]);
    let result = rt
        .tries(bundle.privileged(), &["list /sys/fs/cgroup", "read /sys/fs/cgroup/cgroup.procs", "read /sys/fs/cgroup/pids/cgroup.procs"]);
    if host::cgroup_version() == 2 {
        assert!(result["read /sys/fs/cgroup/cgroup.procs"].as_str().unwrap().contains('1'), "{result}");
    } else {
        assert!(result["list /sys/fs/cgroup"].as_str().unwrap().contains("memory"), "{result}");
        assert_eq!(result["read /sys/fs/cgroup/pids/cgroup.procs"], "1", "{result}");
    }
}

#[test]
fn a_read_only_cgroup_mount_cannot_be_written() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup of its own");
    let file = if host::cgroup_version() == 2 { "/sys/fs/cgroup/cgroup.procs" } else { "/sys/fs/cgroup/pids/cgroup.procs" };
    let action = format!("open {file} w");
    let mount = |options: &[&str]| rt.bundle().mount("/sys/fs/cgroup", "cgroup", "cgroup", options).privileged();
    assert_eq!(rt.tries(mount(&["ro"]), &[&action])[&action], "EROFS");
    assert_eq!(rt.tries(mount(&["rw"]), &[&action])[&action], "ok");
}

#[test]
fn without_a_cgroup_namespace_the_mount_shows_the_same() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup of its own");
    require!(host::cgroup_version() == 1, "cgroup v1 (on v2 the whole hierarchy is shown)");
    let action = "read /sys/fs/cgroup/pids/cgroup.procs";
    let bundle = rt.bundle().without_namespace("cgroup").mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro"]);
    assert_eq!(rt.tries(bundle, &[action])[action], "1");
}
