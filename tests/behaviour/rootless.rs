//! An ordinary user: with nothing set up, with subordinate ids, with a delegated cgroup.

use serde_json::{Value, json};
use std::fs;
use tests::runtime::{Kind, program};
use tests::{Call, Container, Runtime, cgroup, host, require};

/// A user that no file knows.
const USER: u32 = 23456;

/// Runs the tests below as that user when we are root, else as ourselves.
fn runtime() -> Runtime {
    if host::is_root() { Runtime::rootless(USER) } else { Runtime::new() }
}

/// Whether that user can get at the program under test.
fn reachable() -> bool {
    let mut probe = std::process::Command::new("setpriv");
    probe.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups"]).arg(&program().0).arg("--version");
    !host::is_root() || probe.output().is_ok_and(|o| o.status.success())
}

macro_rules! require_user {
    () => {
        require!(reachable(), "setpriv, and a program that other users may run ({})", program().0.display());
        require!(!runtime().differs("rootless here"), "this peer wants cgroup v2");
    };
}

#[test]
fn a_container_with_nothing_set_up() {
    require_user!();
    let rt = runtime();
    let report = rt.report(rt.bundle());
    let uid = rt.user.unwrap_or_else(|| nix::unistd::getuid().as_raw());
    assert_eq!(report["pid"], 1);
    assert_eq!(report["uid_map"], json!([format!("0 {uid} 1")]));
    assert_eq!(report["setgroups"], "deny");
    assert_eq!(report["status"]["Uid"], "0\t0\t0\t0");
    assert_eq!(report["hostname"], "probe");
    for kernel in ["pid", "ipc", "uts", "mnt", "user"] {
        assert_ne!(report["ns"][kernel], host::namespace("self", kernel), "{kernel}");
    }
}

#[test]
fn the_life_of_a_container() {
    require_user!();
    let rt = runtime();
    let c = rt.container(rt.bundle().args(["/probe", "sleep"]));
    c.create().ok();
    assert_eq!(c.status(), "created");
    c.call(["start"]).ok();
    assert_eq!(c.status(), "running");
    c.exec(&[], &["/probe", "exit", "9"]).run().exits(9);
    assert_eq!(rt.call(["list", "-q"]).ok().stdout.trim(), c.id);
    c.delete().exits(1);
    c.kill("KILL").ok();
    c.wait_status("stopped");
    c.delete().ok();
    rt.assert_nothing_left();
}

#[test]
fn files_and_devices() {
    require_user!();
    let rt = runtime();
    let actions = [
        "open /dev/null rw",
        "open /dev/zero r",
        "open /dev/ptmx rw",
        "create /dev/shm/x x",
        "create /new x",
        "list /sys",
        "read /proc/1/comm",
    ];
    let result = rt.tries(rt.bundle().writable(), &actions);
    for action in &actions[..5] {
        assert_eq!(result[action], "ok", "{action}");
    }
    assert!(result["list /sys"].as_str().unwrap().contains("kernel"), "{result}");
}

#[test]
fn an_exec_with_a_terminal() {
    require_user!();
    let rt = runtime();
    let c = rt.start(rt.bundle().args(["/probe", "sleep"]));
    let socket = tests::terminal::ConsoleSocket::listen(&rt.dir().join("console"));
    fs::set_permissions(&socket.path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    c.exec(&["-t", "-d", "--console-socket", socket.path.to_str().unwrap()], &["/probe", "size"]).ok();
    let (_, terminal) = socket.receive();
    terminal.wait_for("size ");
    terminal.write("\u{3}");
}

#[test]
fn it_says_once_what_it_goes_without() {
    require_user!();
    let rt = runtime();
    require!(rt.kind() == Kind::Rrun, "rrun's own words");
    require!(host::is_root() || !delegated(), "a user without a delegated cgroup");
    let c = rt.container(rt.bundle().args(["/probe", "exit"]).set("/linux/resources/pids", json!({"limit": 10})));
    let done = c.run().ok();
    let lines: Vec<&str> = done.stderr.lines().filter(|l| l.contains("cgroup")).collect();
    assert_eq!(lines.len(), 1, "{done}");
    let quiet = rt.container(rt.bundle().args(["/probe", "exit"])).run().ok();
    assert!(quiet.stderr.lines().count() <= 1, "{quiet}");
}

#[test]
fn mappings_without_rights() {
    require_user!();
    let rt = runtime();
    let map = json!([{"containerID": 0, "hostID": 1700000000, "size": 65536}]);
    let c = rt.container(rt.bundle().set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map));
    let done = c.create();
    if rt.kind() == Kind::Rrun {
        done.fails(1, &["map", "subuid"]).one_line();
    } else {
        assert_ne!(done.code(), 0, "{done}");
    }
    rt.assert_nothing_left();
}

#[test]
fn groups_without_rights() {
    require_user!();
    let rt = runtime();
    let c = rt.container(rt.bundle().set("/process/user", json!({"uid": 0, "gid": 0, "additionalGids": [5]})));
    let done = c.create();
    assert_eq!(done.code(), 1, "{done}");
    if rt.kind() == Kind::Rrun {
        done.fails(1, &["additionalGids"]).one_line();
    }
    rt.assert_nothing_left();
}

#[test]
fn the_state_root_is_the_user_s_own() {
    require_user!();
    let rt = runtime();
    let c = rt.container(rt.bundle().args(["/probe", "sleep"]));
    let dir = rt.dir().join("runtime-dir");
    fs::create_dir(&dir).unwrap();
    if let Some(user) = rt.user {
        std::os::unix::fs::chown(&dir, Some(user), Some(user)).unwrap();
    }
    let call = |args: &[&str]| rt.bare().env("XDG_RUNTIME_DIR", &dir).args(args);
    call(&["run", "-d", "--bundle", c.bundle.dir.to_str().unwrap(), &c.id]).ok();
    let name = match rt.kind() {
        Kind::Rrun => "rrun",
        Kind::Runc => "runc",
        Kind::Crun => "crun",
    };
    assert!(dir.join(name).join(&c.id).exists());
    call(&["delete", "--force", &c.id]).ok();
    assert!(!dir.join(name).join(&c.id).exists());
}

/// A call as a user whom /etc/passwd, /etc/subuid and /etc/subgid know, in a mount namespace where
/// those files are the test's.
fn with_subordinate_ids(rt: &Runtime, args: &[&str]) -> Call {
    let file = |name: &str, line: String| {
        let path = rt.dir().join(name);
        let before = fs::read_to_string(format!("/etc/{name}")).unwrap_or_default();
        fs::write(&path, format!("{before}{line}\n")).unwrap();
        path.display().to_string()
    };
    let passwd = file("passwd", format!("rruntest:x:{USER}:{USER}::/:/bin/sh"));
    let group = file("group", format!("rruntest:x:{USER}:"));
    let subuid = file("subuid", "rruntest:300000:70000".into());
    let subgid = file("subgid", "rruntest:400000:70000".into());
    let setup = format!(
        "touch /etc/subuid /etc/subgid
         mount --bind {passwd} /etc/passwd; mount --bind {group} /etc/group
         mount --bind {subuid} /etc/subuid; mount --bind {subgid} /etc/subgid"
    );
    let script = format!("{setup}; exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"");
    let (program, root) = (program().0.display().to_string(), rt.root().display().to_string());
    let head = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", &script, "sh", &program, "--root", &root];
    rt.shell("exec \"$@\"", &head.iter().chain(args).copied().collect::<Vec<_>>()).env("HOME", rt.dir()).env("XDG_RUNTIME_DIR", rt.dir())
}

#[test]
fn subordinate_ids() {
    require_user!();
    require!(host::is_root(), "root, to give a user subordinate ids for a while");
    require!(host::find("newuidmap").is_some(), "newuidmap (uidmap)");
    let rt = runtime();
    let map =
        |own: u32, first: u32| json!([{"containerID": 0, "hostID": own, "size": 1}, {"containerID": 1, "hostID": first, "size": 65536}]);
    let bundle = rt.bundle().set("/linux/uidMappings", map(USER, 300000)).set("/linux/gidMappings", map(USER, 400000));
    let groups = if rt.differs("groups with subordinate ids") { json!([]) } else { json!([7]) };
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": groups});
    let c = rt.container(bundle.set("/process/user", user));
    let report: Value = with_subordinate_ids(&rt, &["run", "--bundle", c.bundle.dir.to_str().unwrap(), &c.id]).ok().json();
    assert_eq!(report["uid_map"], json!([format!("0 {USER} 1"), "1 300000 65536"]));
    assert_eq!(report["gid_map"], json!([format!("0 {USER} 1"), "1 400000 65536"]));
    assert_eq!(report["status"]["Uid"], "1000\t1000\t1000\t1000");
    assert!(groups == json!([]) || report["status"]["Groups"] == "7", "{}", report["status"]["Groups"]);
}

#[test]
fn subordinate_ids_of_somebody_else() {
    require_user!();
    require!(host::is_root(), "root, to give a user subordinate ids for a while");
    require!(host::find("newuidmap").is_some(), "newuidmap (uidmap)");
    let rt = runtime();
    let map = json!([{"containerID": 0, "hostID": USER, "size": 1}, {"containerID": 1, "hostID": 500000, "size": 65536}]);
    let c = rt.container(rt.bundle().set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map));
    let done = with_subordinate_ids(&rt, &["create", "--bundle", c.bundle.dir.to_str().unwrap(), &c.id]).run();
    assert_eq!(done.code(), 1, "{done}");
    if rt.kind() == Kind::Rrun {
        done.fails(1, &["500000", "subuid"]).one_line();
    }
    rt.assert_nothing_left();
}

/// Whether this (ordinary) user has a cgroup v2 of its own to make others in.
fn delegated() -> bool {
    if host::is_root() || host::cgroup_version() != 2 {
        return false;
    }
    let own = cgroup::dir(std::process::id() as i32, "");
    let parent = own.parent().unwrap().to_path_buf();
    [own, parent].iter().any(|d| nix::unistd::access(&d.join("cgroup.procs"), nix::unistd::AccessFlags::W_OK).is_ok())
}

/// Checks that the process limit holds, and that the cgroup goes.
fn limit_holds(rt: &Runtime, c: &Container) {
    c.create().ok();
    c.call(["start"]).ok();
    assert_eq!(cgroup::read(c.pid(), "pids", "pids.max").unwrap(), "11");
    c.call(["update", "--pids-limit", "12"]).ok();
    assert_eq!(cgroup::read(c.pid(), "pids", "pids.max").unwrap(), "12");
    c.call(["pause"]).ok();
    assert_eq!(c.status(), "paused");
    c.call(["resume"]).ok();
    c.end();
    rt.assert_nothing_left();
}

#[test]
fn limits_in_a_delegated_cgroup() {
    require!(delegated(), "an ordinary user with a delegated cgroup v2");
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(["/probe", "sleep"]).set("/linux/resources/pids", json!({"limit": 11})));
    limit_holds(&rt, &c);
}

#[test]
fn limits_through_the_user_s_systemd() {
    require!(delegated() && std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some(), "an ordinary user with a systemd of their own");
    let rt = Runtime::systemd();
    let c = rt.container(rt.bundle().args(["/probe", "sleep"]).set("/linux/resources/pids", json!({"limit": 11})));
    limit_holds(&rt, &c);
}
