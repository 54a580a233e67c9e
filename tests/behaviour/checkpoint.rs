//! Checkpoint and restore by CRIU: what was running goes on where it was. Left out where there is no CRIU that
//! works on this kernel.

use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use tests::terminal::ConsoleSocket;
use tests::{Bundle, Container, Runtime, host};

/// Why nothing can be checkpointed here.
pub(crate) fn hindrance(rt: &Runtime) -> Option<String> {
    if rt.is_rootless() || !host::is_root() {
        return Some("root: CRIU needs it".into());
    }
    let checked = Command::new("criu").arg("check").stdin(Stdio::null()).output();
    match checked {
        Err(_) => Some("criu".into()),
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("a criu that 'criu check' is content with: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

macro_rules! needs_criu {
    ($rt:expr) => {
        if let Some(reason) = $crate::checkpoint::hindrance(&$rt) {
            tests::host::skip(&format!("needs {reason}"));
            return;
        }
    };
}
pub(crate) use needs_criu;

mod flags;

/// Counts in a file of the root file system, which outlives the container.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.05; done";

pub(crate) fn counter(rt: &Runtime) -> Bundle {
    rt.bundle().shell().writable().args(["/bin/sh", "-c", COUNT])
}

pub(crate) fn count(c: &Container<'_>) -> u64 {
    fs::read_to_string(c.bundle.rootfs().join("count")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

#[track_caller]
pub(crate) fn wait_beyond(c: &Container<'_>, least: u64) -> u64 {
    assert!(host::wait_until(20, || count(c) > least), "counts no further than {}", count(c));
    count(c)
}

/// Runs it, detached.
fn start(rt: &Runtime, bundle: Bundle) -> Container<'_> {
    let c = rt.container(bundle);
    streams(rt, c.run_with(&["-d"])).ok();
    c
}

/// The standard streams of a call are files in the test's folder, where the runtime takes these into a checkpoint.
fn streams(rt: &Runtime, call: tests::Call) -> tests::Call {
    if !rt.differs("checkpoint with files as streams") {
        return call;
    }
    call.stdio(|command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    })
}

/// The folders that the flags name.
pub(crate) fn folders(rt: &Runtime) -> (String, String) {
    (rt.dir().join("images").display().to_string(), rt.dir().join("work").display().to_string())
}

pub(crate) fn checkpoint(c: &Container<'_>, flags: &[&str]) {
    let (images, work) = folders(c.rt);
    c.call(["checkpoint", "--image-path", &images, "--work-path", &work].iter().chain(flags)).ok();
}

pub(crate) fn restore(c: &Container<'_>, flags: &[&str]) {
    let (images, work) = folders(c.rt);
    let bundle = c.bundle.dir.display().to_string();
    streams(c.rt, c.call(["restore", "-d", "--bundle", &bundle, "--image-path", &images, "--work-path", &work].iter().chain(flags))).ok();
}

/// Gives the container another id and another cgroup, whose path is the answer.
fn another_id(c: &mut Container<'_>) -> String {
    c.id = c.rt.id();
    let config = c.bundle.dir.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let place = format!("/{}", c.id);
    spec["linux"]["cgroupsPath"] = json!(place);
    fs::write(&config, spec.to_string()).unwrap();
    place
}

#[test]
fn a_process_goes_on_where_it_was() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = start(&rt, counter(&rt));
    wait_beyond(&c, 5);
    checkpoint(&c, &[]);
    let saved = count(&c);
    c.call(["state"]).fails(1, &["does not exist"]);
    let pid_file = rt.dir().join("pid");
    restore(&c, &["--pid-file", pid_file.to_str().unwrap()]);
    assert!(wait_beyond(&c, saved) > saved, "it began anew");
    assert_eq!(c.status(), "running");
    assert_eq!(fs::read_to_string(pid_file).unwrap(), c.pid().to_string());
    assert_eq!(c.exec(&[], &["/bin/sh", "-c", "echo inside"]).ok().stdout, "inside\n");
    // And once more, from what was restored.
    checkpoint(&c, &[]);
    restore(&c, &[]);
    wait_beyond(&c, saved);
    c.end();
}

#[test]
fn it_may_run_on() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = start(&rt, counter(&rt));
    let before = wait_beyond(&c, 2);
    checkpoint(&c, &["--leave-running"]);
    assert_eq!(c.status(), "running");
    wait_beyond(&c, before);
    c.end();
}

#[test]
fn another_id_another_cgroup() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let mut c = start(&rt, counter(&rt).namespace("cgroup", None));
    wait_beyond(&c, 2);
    checkpoint(&c, &[]);
    let place = another_id(&mut c);
    let saved = count(&c);
    restore(&c, &[]);
    wait_beyond(&c, saved);
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
    assert!(cgroups.lines().any(|l| l.ends_with(&place)), "{cgroups}");
    c.end();
}

#[test]
fn the_terminal_comes_over_the_console_socket() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let bundle = rt.bundle().shell().set("/process/terminal", json!(true));
    let c = rt.container(bundle.args(["/bin/sh", "-c", "a=before; echo ready; while read b; do echo $a-$b; done"]));
    let socket = ConsoleSocket::listen(&rt.dir().join("console"));
    c.run_with(&["-d", "--console-socket", socket.path.to_str().unwrap()]).ok();
    let (_, terminal) = socket.receive();
    terminal.wait_for("ready");
    checkpoint(&c, &[]);
    drop(terminal);
    let second = ConsoleSocket::listen(&rt.dir().join("console2"));
    restore(&c, &["--console-socket", second.path.to_str().unwrap()]);
    let (name, terminal) = second.receive();
    if !rt.differs("name of a restored terminal") {
        assert_eq!(name, b"/dev/ptmx");
    }
    terminal.write("after\n");
    terminal.wait_for("before-after");
    c.end();
}

#[test]
fn pipes_are_replaced_and_the_end_is_told() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = rt.container(rt.bundle().shell().args(["/bin/sh", "-c", "a=one; echo ready; read b; echo $a-$b; exit 7"]));
    let piped = |call: tests::Call| {
        call.stdio(|command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        })
        .spawn()
    };
    let mut first = piped(c.run_with(&["-d"]));
    let mut output = std::io::BufReader::new(first.child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let _input = first.child.stdin.take();
    checkpoint(&c, &[]);
    let (images, work) = folders(&rt);
    let bundle = c.bundle.dir.display().to_string();
    let mut second = piped(c.call(["restore", "--bundle", &bundle, "--image-path", &images, "--work-path", &work]));
    std::io::Write::write_all(&mut second.child.stdin.take().unwrap(), b"two\n").unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(second.child.stdout.as_mut().unwrap(), &mut rest).unwrap();
    assert_eq!(rest, "one-two\n");
    assert_eq!(second.child.wait().unwrap().code(), Some(7));
    rt.assert_nothing_left();
}

#[test]
fn bind_mounts_and_masks_are_the_hosts() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let shared = rt.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    let bundle = counter(&rt)
        .mount("/data", "bind", shared.to_str().unwrap(), &["rbind", "rw"])
        .mount("/data/deeper", "tmpfs", "tmpfs", &["size=64k"])
        .set("/linux/maskedPaths", json!(["/proc/kcore", "/proc/scsi", "/proc/timer_list"]))
        .set("/linux/readonlyPaths", json!(["/proc/sys"]));
    let c = start(&rt, bundle);
    wait_beyond(&c, 2);
    c.exec(&[], &["/bin/sh", "-c", "echo kept >/data/deeper/file"]).ok();
    checkpoint(&c, &[]);
    fs::write(shared.join("new"), "of the host").unwrap();
    let saved = count(&c);
    restore(&c, &[]);
    wait_beyond(&c, saved);
    let look = "cat /data/new /data/deeper/file; wc -c </proc/timer_list; echo x 2>/dev/null >/proc/sys/kernel/hostname || echo denied";
    let seen = c.exec(&[], &["/bin/sh", "-c", look]).ok().stdout;
    assert_eq!(seen.lines().map(str::trim).collect::<Vec<_>>(), ["of the hostkept", "0", "denied"]);
    c.end();
}

#[test]
fn a_network_namespace_of_the_host_is_kept() {
    let rt = Runtime::new();
    needs_criu!(rt);
    // Held by a process of ours, at a path that stays.
    let mut holder = Command::new("unshare").args(["--net", "sleep", "100"]).stdin(Stdio::null()).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    assert!(host::wait_until(20, || fs::metadata(&path).unwrap().ino() != fs::metadata("/proc/self/ns/net").unwrap().ino()));
    let c = start(&rt, counter(&rt).without_namespace("network").namespace("network", Some(path.as_ref())));
    wait_beyond(&c, 2);
    checkpoint(&c, &[]);
    let saved = count(&c);
    restore(&c, &[]);
    wait_beyond(&c, saved);
    let inode = |p: &str| fs::metadata(p).unwrap().ino();
    assert_eq!(inode(&format!("/proc/{}/ns/net", c.pid())), inode(&path));
    c.end();
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn memory_may_be_saved_before() {
    let rt = Runtime::new();
    needs_criu!(rt);
    if !Command::new("criu").args(["check", "--feature", "mem_dirty_track"]).output().unwrap().status.success() {
        host::skip("needs a kernel that tracks changed memory (CONFIG_MEM_SOFT_DIRTY)");
        let c = start(&rt, counter(&rt));
        let (images, _) = folders(&rt);
        c.call(["checkpoint", "--pre-dump", "--image-path", &images]).fails(1, &["missing features: [MemTrack]"]);
        assert_eq!(c.status(), "running");
        return;
    }
    let c = start(&rt, counter(&rt));
    let parent = rt.dir().join("parent");
    c.call(["checkpoint", "--pre-dump", "--image-path", parent.to_str().unwrap()]).ok();
    assert_eq!(c.status(), "running");
    checkpoint(&c, &["--parent-path", "../parent"]);
    let saved = count(&c);
    restore(&c, &[]);
    wait_beyond(&c, saved);
    c.end();
}

#[test]
fn hooks_run_at_the_restore() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let log = rt.dir().join("hooks");
    let hook = |name: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("echo {name} >>{}", log.display())]}]);
    let c = start(&rt, counter(&rt).set("/hooks", json!({"createRuntime": hook("createRuntime"), "poststop": hook("poststop")})));
    wait_beyond(&c, 2);
    checkpoint(&c, &[]);
    restore(&c, &[]);
    c.end();
    let ran = fs::read_to_string(log).unwrap();
    assert_eq!(ran.lines().collect::<Vec<_>>(), ["createRuntime", "poststop", "createRuntime", "poststop"]);
}

#[test]
fn what_is_wrong_is_one_line_and_leaves_nothing() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = start(&rt, counter(&rt));
    wait_beyond(&c, 1);
    let (images, work) = folders(&rt);
    let fails = |flags: &[&str], text: &str| {
        c.call(["checkpoint", "--image-path", &images].iter().chain(flags)).fails(1, &[text]);
        assert_eq!(c.status(), "running");
    };
    fails(&["--manage-cgroups-mode", "some"], "invalid manage-cgroups-mode value");
    fails(&["--parent-path", "/absolute"], "--parent-path");
    fails(&["--parent-path", "../missing"], "--parent-path");
    fails(&["--page-server", "nowhere"], "--page-server");
    fails(&["--empty-ns", "mount"], "is not supported");
    c.end();
    let created = rt.container(counter(&rt));
    created.create().ok();
    created.call(["checkpoint", "--image-path", &images]).fails(1, &["cannot be checkpointed in created state"]);
    created.call(["delete"]).ok();
    let bundle = created.bundle.dir.display().to_string();
    let empty = rt.dir().join("empty");
    fs::create_dir(&empty).unwrap();
    let from = |path: &str| created.call(["restore", "-d", "--bundle", &bundle, "--work-path", &work, "--image-path", path]);
    from(empty.to_str().unwrap()).fails(1, &["descriptors.json"]);
    rt.assert_nothing_left();
    // CRIU's own failure, and what is in its log.
    fs::write(empty.join("descriptors.json"), "[\"\",\"\",\"\"]").unwrap();
    from(empty.to_str().unwrap()).fails(1, &["criu failed: type RESTORE"]);
    rt.assert_nothing_left();
}

#[test]
fn a_link_in_the_way_of_a_mount_ends_the_restore() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let (shared, canary) = (rt.dir().join("shared"), rt.dir().join("canary"));
    fs::create_dir(&shared).unwrap();
    fs::create_dir(&canary).unwrap();
    let c = start(&rt, counter(&rt).mount("/data", "bind", shared.to_str().unwrap(), &["rbind", "rw"]));
    wait_beyond(&c, 2);
    checkpoint(&c, &[]);
    let data = c.bundle.rootfs().join("data");
    fs::remove_dir(&data).unwrap();
    std::os::unix::fs::symlink(&canary, &data).unwrap();
    let (images, work) = folders(&rt);
    let bundle = c.bundle.dir.display().to_string();
    let done = c.call(["restore", "-d", "--bundle", &bundle, "--image-path", &images, "--work-path", &work]).run();
    assert_ne!(done.status.code(), Some(0), "{}", done.stderr);
    rt.assert_nothing_left();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(canary.to_str().unwrap()), "{mounts}");
}

#[test]
fn a_mount_may_be_where_a_link_of_the_image_leads() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let shared = rt.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "of the host").unwrap();
    let bundle = counter(&rt).folder("/real/data").symlink("/data", "/real/data");
    let c = rt.start(bundle.mount("/data", "bind", shared.to_str().unwrap(), &["bind"]));
    for _ in 0..2 {
        let saved = wait_beyond(&c, count(&c) + 1);
        checkpoint(&c, &[]);
        restore(&c, &[]);
        wait_beyond(&c, saved);
        assert_eq!(c.exec(&[], &["/bin/sh", "-c", "cat /data/file"]).ok().stdout, "of the host");
    }
    c.end();
}

#[test]
fn a_link_to_a_place_without_a_name_is_refused() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let shared = rt.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    let c = rt.start(counter(&rt).mount("/a/data", "bind", shared.to_str().unwrap(), &["bind"]));
    wait_beyond(&c, 1);
    // A mount point's parent can be renamed, from inside too.
    let (a, b) = (c.bundle.rootfs().join("a"), c.bundle.rootfs().join("b"));
    let swap = |target: &str| {
        fs::rename(&a, &b).unwrap();
        fs::create_dir(&a).unwrap();
        std::os::unix::fs::symlink(target, a.join("data")).unwrap();
    };
    let back = || {
        fs::remove_dir_all(&a).unwrap();
        fs::rename(&b, &a).unwrap();
    };
    let (images, work) = folders(&rt);
    for (target, is_there) in [("/b/data]:/name", true), ("/b/data]:/name", false), ("/", true)] {
        swap(target);
        if is_there {
            fs::create_dir_all(b.join("data]:/name")).unwrap();
        }
        c.call(["checkpoint", "--image-path", &images]).fails(1, &["invalid external mount destination"]);
        assert_eq!(c.status(), "running");
        if is_there {
            fs::remove_dir_all(b.join("data]:")).unwrap();
        }
        back();
    }
    checkpoint(&c, &[]);
    swap("/b/data]:/name");
    let bundle = c.bundle.dir.display().to_string();
    let call = ["restore", "-d", "--bundle", &bundle, "--image-path", &images, "--work-path", &work];
    c.call(call).fails(1, &["invalid external mount destination"]);
    assert!(!b.join("data]:").exists());
    rt.assert_nothing_left();
}

#[test]
fn a_mount_that_would_end_criu_s_key_is_refused() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let shared = rt.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    let c = start(&rt, counter(&rt).mount("/a]:b", "bind", shared.to_str().unwrap(), &["rbind"]));
    wait_beyond(&c, 1);
    let (images, _) = folders(&rt);
    let text: &[&str] = if rt.differs("text of a mount that CRIU cannot name") { &[] } else { &["/a]:b", "CRIU cannot name"] };
    c.call(["checkpoint", "--image-path", &images]).fails(1, text);
    assert_eq!(c.status(), "running");
    c.end();
}

#[test]
fn podman_s_questions_are_answered() {
    let rt = Runtime::new();
    rt.call(["checkpoint", "--help"]).ok();
    let done = rt.call(["restore", "--lsm-mount-context"]).run();
    assert!(done.stderr.contains("flag needs an argument"), "{}", done.stderr);
}
