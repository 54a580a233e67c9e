//! Hostile root file systems and containers: what every published advisory taught.

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tests::runtime::program;
use tests::{Bundle, Runtime, host, require};

/// Something of the host's that must stay as it is.
struct Canary {
    dir: PathBuf,
    before: Vec<String>,
}

impl Canary {
    fn new(rt: &Runtime) -> Canary {
        let dir = rt.dir().join("canary");
        fs::create_dir_all(dir.join("folder")).unwrap();
        fs::write(dir.join("file"), "untouched").unwrap();
        fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        let before = listing(&dir);
        Canary { dir, before }
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(listing(&self.dir), self.before);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.to_str().unwrap()), "{mounts}");
    }
}

/// Every file below with its type, mode, owner and content.
fn listing(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        let content = if meta.is_file() { fs::read_to_string(entry.path()).unwrap_or_default() } else { String::new() };
        lines.push(format!("{} {:o} {}:{} {content:?}", entry.path().display(), meta.mode(), meta.uid(), meta.gid()));
        if meta.is_dir() {
            lines.extend(listing(&entry.path()));
        }
    }
    lines.sort();
    lines
}

/// Runs it, however it ends: it may be refused, but must not touch the host.
#[track_caller]
fn runs_or_is_refused(rt: &Runtime, bundle: Bundle, canary: &Canary) -> Option<Value> {
    let done = rt.container(bundle).run();
    canary.assert_untouched();
    rt.assert_nothing_left();
    (done.code() == 0).then(|| done.json())
}

#[test]
fn a_number_is_an_id_and_no_name() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: more than one id");
    let passwd = "root:x:0:0::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n";
    let bundle = || rt.bundle().file("/etc/passwd", passwd).file("/etc/group", "1000:x:0:\n");
    let report = rt.report(bundle().set("/process/user", json!({"uid": 1000, "gid": 1000})));
    assert_eq!(report["status"]["Uid"], "1000\t1000\t1000\t1000");
    let c = rt.start(bundle().args(["/probe", "sleep"]));
    for (user, uid, gid) in [("1000", 1000, 0), ("1", 1, 0), ("1:1", 1, 1), ("0:1000", 0, 1000)] {
        let seen = c.exec(&["-u", user], &["/probe", "report"]).ok().json();
        assert_eq!(seen["status"]["Uid"], format!("{uid}\t{uid}\t{uid}\t{uid}"), "{user}");
        assert_eq!(seen["status"]["Gid"], format!("{gid}\t{gid}\t{gid}\t{gid}"), "{user}");
    }
    for user in ["-1", "1x", "", "4294967296", " 1", "1:", ":1", "0x1"] {
        if user == "4294967296" && rt.differs("ids beyond 32 bits") {
            continue;
        }
        let done = c.exec(&["-u", user], &["/probe", "report"]).run();
        let uid = if done.code() == 0 { done.json()["status"]["Uid"].clone() } else { Value::Null };
        assert!(done.code() != 0 || (user.is_empty() && uid == "0\t0\t0\t0"), "{user:?} was taken as {uid}");
    }
}

#[test]
fn no_folder_of_the_host_is_seen_while_exec_enters() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(["/probe", "watch", "3"]));
    let created = c.create().ok();
    c.call(["start"]).ok();
    assert!(host::wait_until(20, || created.output_now().contains("ready")));
    while c.status() == "running" {
        c.exec(&[], &["/probe", "exit"]).run();
    }
    let result: Value = serde_json::from_str(created.output_now().lines().nth(1).unwrap()).unwrap();
    assert_eq!(result["folders"], json!([]), "{result}");
}

/// A copy of the program under test, which an attack may spoil, and its content.
fn victim(rt: &Runtime) -> (String, Vec<u8>) {
    let path = rt.dir().join("victim");
    let content = fs::read(&program().0).unwrap();
    host::write_program(&path, &content);
    (path.display().to_string(), content)
}

#[test]
fn the_runtime_s_own_file_is_not_overwritten_through_exec() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: an ordinary user cannot write to it anyhow");
    let (path, before) = victim(&rt);
    let root = rt.root().display().to_string();
    let bundle = rt.bundle().privileged().program("/script", "#!/proc/self/exe\n").args(["/probe", "overwrite", "4"]);
    let c = rt.container(bundle);
    let created = c.create().ok();
    c.call(["start"]).ok();
    assert!(host::wait_until(20, || created.output_now().contains("ready")));
    while c.status() == "running" {
        for program in ["/proc/self/exe", "/script", "/probe"] {
            rt.shell("exec \"$@\"", &[&path, "--root", &root, "exec", &c.id, program, "state"]).run();
        }
    }
    let result: Value = serde_json::from_str(created.output_now().lines().nth(1).unwrap()).unwrap();
    assert!(fs::read(&path).unwrap() == before, "the program was overwritten: {result}");
}

#[test]
fn the_runtime_s_own_file_is_not_overwritten_through_an_entrypoint() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: an ordinary user cannot write to it anyhow");
    let (path, before) = victim(&rt);
    let root = rt.root().display().to_string();
    // The attacker looks on from the same PID namespace.
    let watcher = rt.start(rt.bundle().privileged().args(["/probe", "overwrite", "3"]));
    let ns = PathBuf::from(format!("/proc/{}/ns/pid", watcher.pid()));
    for (n, program) in ["/proc/self/exe", "/script"].iter().cycle().enumerate().take(12) {
        let bundle = rt.bundle().privileged().program("/script", "#!/proc/self/exe\n").namespace("pid", Some(&ns));
        let c = rt.container(bundle.args([program, "state"]));
        let dir = c.bundle.dir.display().to_string();
        let done = rt.shell("exec \"$@\"", &[&path, "--root", &root, "run", "--bundle", &dir, &c.id]).run();
        assert!(n > 0 || !done.stderr.contains("Permission denied"), "{done}");
    }
    watcher.wait_status("stopped");
    assert!(fs::read(&path).unwrap() == before, "the program was overwritten");
}

#[test]
fn nothing_is_mounted_over_proc() {
    let rt = Runtime::new();
    let canary = Canary::new(&rt);
    let source = canary.path("folder");
    for target in ["/proc", "/proc/self/attr", "/proc/sys", "/proc/self", "/proc/1/root", "/proc/../proc/sys"] {
        for (kind, options) in [("bind", &["bind"][..]), ("tmpfs", &[])] {
            let source = if kind == "bind" { source.as_str() } else { "tmpfs" };
            let done = rt.container(rt.bundle().mount(target, kind, source, options)).run();
            assert_ne!(done.code(), 0, "{kind} at {target}: {done}");
            rt.assert_nothing_left();
        }
    }
    canary.assert_untouched();
    // What lxcfs does is fine.
    let file = canary.path("file");
    let result = rt.tries(rt.bundle().mount("/proc/uptime", "bind", &file, &["bind", "ro"]), &["stat /proc/uptime"]);
    assert!(result["stat /proc/uptime"].as_str().unwrap().starts_with("file 0640"), "{result}");
}

#[test]
fn proc_and_sys_may_be_no_links() {
    let rt = Runtime::new();
    let canary = Canary::new(&rt);
    // An ordinary user's /sys is a bind of the host's, which may well be somewhere else.
    for name in if rt.is_rootless() { &["/proc"][..] } else { &["/proc", "/sys"] } {
        for target in [canary.path("folder"), "/elsewhere".into(), "/../../../../../../tmp".into()] {
            let bundle = rt.bundle().folder("/elsewhere").symlink(name, &target);
            let done = rt.container(bundle).run();
            assert_ne!(done.code(), 0, "{name} -> {target}: {done}");
            canary.assert_untouched();
            rt.assert_nothing_left();
        }
    }
}

#[test]
fn links_to_the_host_are_followed_inside_only() {
    let rt = Runtime::new();
    let canary = Canary::new(&rt);
    let folder = canary.path("folder");
    let up = format!("../../../../../../../..{folder}");
    for target in [folder.as_str(), up.as_str()] {
        let bundle = rt.bundle().symlink("/link", target).symlink("/deep/link", target);
        let bundle = bundle.mount("/link/made/here", "tmpfs", "t", &[]).mount("/deep/link", "tmpfs", "t", &[]);
        runs_or_is_refused(&rt, bundle.args(["/probe", "try", "list /"]), &canary);
        let bundle = rt.bundle().symlink("/link", target).mount("/link/file", "bind", &canary.path("file"), &["bind"]);
        runs_or_is_refused(&rt, bundle.args(["/probe", "try", "list /"]), &canary);
    }
}

#[test]
fn a_dev_that_is_a_link() {
    let rt = Runtime::new();
    let canary = Canary::new(&rt);
    let folder = canary.path("folder");
    for target in [folder.clone(), format!("/../../../../../..{folder}")] {
        runs_or_is_refused(&rt, rt.bundle().symlink("/dev", &target).args(["/probe", "args"]), &canary);
        // No tmpfs over it: nodes and links would be made right there.
        let mut bundle = rt.bundle().writable().symlink("/dev", &target).args(["/probe", "args"]);
        bundle.config["mounts"].as_array_mut().unwrap().retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
        runs_or_is_refused(&rt, bundle, &canary);
    }
}

/// A bundle whose `/dev` is the image's own.
fn own_dev(rt: &Runtime) -> Bundle {
    let mut bundle = rt.bundle().writable();
    bundle.config["mounts"].as_array_mut().unwrap().retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    bundle
}

#[test]
fn a_dev_null_of_the_image_masks_nothing_else() {
    let rt = Runtime::new();
    let canary = Canary::new(&rt);
    let pattern = "/proc/sys/kernel/core_pattern";
    let before = fs::read_to_string(pattern).unwrap();
    let actions = ["/probe", "try", "write /masked overwritten", "read /masked"];
    for target in [pattern.to_string(), canary.path("file")] {
        let bundle = own_dev(&rt).symlink("/dev/null", &target).file("/masked", "secret").args(actions);
        let result = runs_or_is_refused(&rt, bundle.set("/linux/maskedPaths", json!(["/masked"])), &canary);
        if let Some(result) = result {
            assert_ne!(result["read /masked"], "secret", "{result}");
            assert_ne!(result["read /masked"].as_str().unwrap(), before.trim(), "{result}");
        }
        assert_eq!(fs::read_to_string(pattern).unwrap(), before);
    }
    // A plain file of that name keeps its owner and is no mask either.
    let bundle = own_dev(&rt).file("/dev/null", "mine").file("/masked", "secret").args(actions);
    let path = bundle.rootfs().join("dev/null");
    let owner = fs::metadata(&path).unwrap().uid();
    if let Some(result) = runs_or_is_refused(&rt, bundle.set("/linux/maskedPaths", json!(["/masked"])), &canary) {
        assert!(!["secret", "mine"].contains(&result["read /masked"].as_str().unwrap()), "{result}");
    }
    assert!(!path.exists() || fs::metadata(&path).unwrap().uid() == owner);
}

#[test]
fn a_dev_console_of_the_image_leads_nowhere() {
    let rt = Runtime::new();
    let canary = Canary::new(&rt);
    let socket = tests::terminal::ConsoleSocket::listen(&rt.dir().join("console"));
    for target in [canary.path("new"), canary.path("file"), format!("../../../../../../..{}", canary.path("new"))] {
        let bundle = own_dev(&rt).symlink("/dev/console", &target).set("/process/terminal", json!(true));
        let c = rt.container(bundle.args(["/probe", "exit"]));
        let done = c.create_with(&["--console-socket", socket.path.to_str().unwrap()]).run();
        canary.assert_untouched();
        if done.code() == 0 {
            drop(socket.receive());
            c.call(["delete", "--force"]).ok();
        }
    }
}

#[test]
fn masked_and_readonly_paths_that_are_links() {
    let rt = Runtime::new();
    let canary = Canary::new(&rt);
    let folder = canary.path("folder");
    let bundle = rt.bundle().symlink("/masked", &folder).symlink("/readonly", &folder);
    let bundle = bundle.set("/linux/maskedPaths", json!(["/masked"])).set("/linux/readonlyPaths", json!(["/readonly"]));
    runs_or_is_refused(&rt, bundle.args(["/probe", "args"]), &canary);
}

#[test]
fn cwd_does_not_lead_out() {
    let rt = Runtime::new();
    for fd in 3..=20 {
        for cwd in [format!("/proc/self/fd/{fd}"), format!("/proc/self/fd/{fd}/../../../../..")] {
            let done = rt.container(rt.bundle().set("/process/cwd", json!(cwd))).run();
            assert_ne!(done.code(), 0, "{cwd}: {done}");
        }
    }
    rt.assert_nothing_left();
    let c = rt.start(rt.bundle().args(["/probe", "sleep"]).symlink("/way", "/proc/self/fd/7"));
    for fd in 3..=20 {
        c.exec(&["--cwd", &format!("/proc/self/fd/{fd}")], &["/probe", "report"]).run().exits(255);
    }
    let done = c.exec(&["--cwd", "/way"], &["/probe", "report"]).run();
    assert_ne!(done.code(), 0, "{done}");
}

#[test]
fn a_cgroup_mount_without_a_cgroup_namespace_of_an_ordinary_user_is_read_only() {
    let rt = Runtime::new();
    require!(rt.is_rootless() && host::cgroup_version() == 2, "an ordinary user on cgroup v2");
    let bundle = rt.bundle().without_namespace("cgroup").without_mount("/sys");
    let bundle = bundle.mount("/sys", "none", "/sys", &["rbind", "ro"]).mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw"]);
    if let Some(result) =
        rt.container(bundle.args(["/probe", "try", "mkdir /sys/fs/cgroup/x"])).run().ok().json().get("mkdir /sys/fs/cgroup/x")
    {
        assert_eq!(*result, "EROFS");
    }
}

#[test]
fn folders_of_the_state_are_closed_to_others() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(["/probe", "sleep"]));
    let dir = rt.root().join(&c.id);
    let mode = |p: &Path| fs::metadata(p).unwrap().mode() & 0o777;
    assert_eq!(mode(&dir) & 0o066, 0, "others may pass through but not look");
    for entry in fs::read_dir(&dir).unwrap().flatten() {
        assert_eq!(mode(&entry.path()) & 0o022, 0, "{}", entry.path().display());
    }
}

#[test]
fn masks_and_limits_hold_for_root_with_all_capabilities() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: all capabilities");
    let bundle = rt.bundle().privileged().set("/linux/maskedPaths", json!(["/proc/meminfo"]));
    let result = rt
        .tries(bundle, &["read /proc/meminfo", "write /proc/sys/kernel/core_pattern x", "write /proc/sysrq-trigger h", "open /dev/mem r"]);
    assert_eq!(result["read /proc/meminfo"], "");
    assert_eq!(result["write /proc/sys/kernel/core_pattern x"], "EROFS");
    assert!(["EROFS", "ENOENT"].contains(&result["write /proc/sysrq-trigger h"].as_str().unwrap()), "{result}");
    assert_eq!(result["open /dev/mem r"], "ENOENT");
}

#[test]
fn a_tracer_in_the_container_sees_no_root_of_the_host_while_exec_enters() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: CAP_SYS_PTRACE over what root has made");
    let canary = Canary::new(&rt);
    let c = rt.container(rt.bundle().privileged().args(["/probe", "roots", "3", &canary.path("file")]));
    let created = c.create().ok();
    c.call(["start"]).ok();
    assert!(host::wait_until(20, || created.output_now().contains("ready")));
    while c.status() == "running" {
        c.exec(&[], &["/probe", "exit"]).run();
    }
    let result: Value = serde_json::from_str(created.output_now().lines().nth(1).unwrap()).unwrap();
    assert_eq!(result["found"], json!([]), "{result}");
}

#[test]
fn minus_one_is_nobody_s_id() {
    // For setresuid(2) it means: as it is, and that is root.
    let rt = Runtime::new();
    for (field, value) in [("uid", json!(u32::MAX)), ("gid", json!(u32::MAX)), ("additionalGids", json!([u32::MAX]))] {
        let done = rt.container(rt.bundle().set(&format!("/process/user/{field}"), value)).run();
        assert_ne!(done.code(), 0, "{field}: {done}");
    }
    rt.assert_nothing_left();
    let c = rt.start(rt.bundle().args(["/probe", "sleep"]));
    for user in ["4294967295", "0:4294967295"] {
        c.exec(&["--user", user], &["/probe", "report"]).run().exits(255);
    }
}

#[test]
fn descriptors_of_the_caller_lead_nobody_out() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a mount namespace to call from");
    let canary = Canary::new(&rt);
    let with_folder = format!("exec 9<{}; exec \"$@\"", canary.dir.display());
    for cwd in ["/proc/self/fd/9", "/proc/self/fd/9/made"] {
        let done = rt.container(rt.bundle().writable().set("/process/cwd", json!(cwd))).run_after(&with_folder);
        assert_ne!(done.code(), 0, "{cwd}: {done}");
        canary.assert_untouched();
    }
    let looks = json!([{"path": "/bin/sh", "args": ["sh", "-c", "test ! -e /proc/self/fd/9"]}]);
    if host::busybox().is_some() {
        let c = rt.container(rt.bundle().shell().set("/hooks/startContainer", looks));
        assert_eq!(c.run_after(&with_folder).code(), 0);
    }
}

/// The classic way out of a chroot: whatever is above the container's root in its mount namespace, a process
/// with CAP_SYS_CHROOT gets there.
#[test]
fn nothing_is_above_the_root_for_who_steps_out_of_it() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: CAP_SYS_CHROOT over the host's own mounts");
    let escape = |bundle: Bundle| bundle.privileged().folder("/only-here").args(["/probe", "try", "escape /tmp"]);
    let inside = |done: tests::call::Done| {
        let seen = done.json()["escape /tmp"].clone();
        assert_eq!(seen, "dev etc only-here probe proc sys tmp", "{done}");
    };
    inside(rt.container(escape(rt.bundle())).run());
    inside(rt.container(escape(rt.bundle())).run_with(&["--no-pivot"]).run());
    let shared = rt.bundle().set("/linux/rootfsPropagation", json!("shared"));
    inside(rt.container(escape(shared)).run());
    require!(rt.can_jail(), "a static runtime: chroot");
    let left = "test -e /proc/self/ns && test -e $jail/proc/self/ns";
    for (mounted, flag) in [(true, ""), (false, ""), (false, "--no-pivot")] {
        let c = rt.container(escape(rt.bundle()));
        inside(rt.in_jail(mounted, &c, &format!("in_jail run {flag} --bundle /bundle $id; {left}")).run());
    }
    // Under a shared mount that is bound on itself there is a second /proc, which nobody can take away.
    let c = rt.container(escape(rt.bundle()));
    let done = rt.in_jail(true, &c, "in_jail run --no-pivot --bundle /bundle $id").run().exits(1);
    assert!(done.stderr.contains("another mount covers it"), "{done}");
}
