//! create, start, run, state, kill, delete, list, ps, pause and resume.

use serde_json::json;
use std::fs;
use tests::{Runtime, host, require};

/// The probe asleep: a container that lives until it is killed.
const SLEEP: [&str; 2] = ["/probe", "sleep"];

#[test]
fn a_container_goes_from_created_to_running_to_stopped() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(SLEEP));
    c.create().ok();
    let state = c.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], c.id.as_str());
    assert_eq!(state["bundle"], c.bundle.dir.to_str().unwrap());
    assert!(state["pid"].as_i64().unwrap() > 1, "{state}");
    c.call(["start"]).ok();
    assert_eq!(c.status(), "running");
    c.kill("KILL").ok();
    c.wait_status("stopped");
    let pid = c.state()["pid"].clone();
    assert!(pid == 0 || pid.is_null(), "a stopped container has no pid: {pid}");
    c.delete().ok();
    c.call(["state"]).fails(1, &["does not exist"]);
}

#[test]
fn run_gives_back_the_exit_status() {
    let rt = Runtime::new();
    for code in [0, 1, 7, 255] {
        rt.container(rt.bundle().args(["/probe", "exit", &code.to_string()])).run().exits(code);
        rt.assert_nothing_left();
    }
}

#[test]
fn run_gives_back_128_and_the_signal() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(SLEEP));
    let running = c.run_with(&[]).spawn();
    assert!(host::wait_until(20, || rt.root().join(&c.id).exists() && c.call(["state"]).run().stdout.contains("running")));
    c.kill("KILL").ok();
    running.wait().exits(137);
}

#[test]
fn run_passes_output_through() {
    let rt = Runtime::new();
    let done = rt.container(rt.bundle().args(["/probe", "say", "hello"])).run().ok();
    // An ordinary user is told what there is no cgroup for.
    let stderr: Vec<&str> = done.stderr.lines().filter(|l| !l.contains("level=warning")).collect();
    assert_eq!((done.stdout.as_str(), stderr.as_slice()), ("hello\n", ["hello"].as_slice()));
}

#[test]
fn run_passes_input_through() {
    let rt = Runtime::new();
    let done = rt.container(rt.bundle().args(["/probe", "echo"])).run_with(&[]).input("a line\n").ok();
    assert_eq!(done.stdout, "a line\n");
}

#[test]
fn run_forwards_signals() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(["/probe", "trap", "9"]));
    let running = c.run_with(&[]).spawn();
    running.wait_for("ready");
    for signal in [nix::sys::signal::SIGUSR1, nix::sys::signal::SIGHUP, nix::sys::signal::SIGTERM] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid()), signal).unwrap();
        running.wait_for(&format!("\n{}\n", signal as i32));
    }
    running.wait().exits(9);
}

#[test]
fn run_detached_leaves_it_running() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(SLEEP));
    c.run_with(&["--detach"]).ok();
    assert_eq!(c.status(), "running");
    c.end();
}

#[test]
fn run_keep_leaves_the_container() {
    let rt = Runtime::new();
    require!(!rt.differs("run --keep"), "this runtime has no run --keep");
    let c = rt.container(rt.bundle().args(["/probe", "exit", "3"]));
    c.run_with(&["--keep"]).run().exits(3);
    assert_eq!(c.status(), "stopped");
    c.delete().ok();
}

#[test]
fn kill_sends_term_by_default_and_knows_names_and_numbers() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(["/probe", "trap"]));
    let created = c.create().ok();
    c.call(["start"]).ok();
    let sees = |text: &str| assert!(host::wait_until(20, || created.output_now().contains(text)), "{text}: {}", created.output_now());
    sees("ready");
    for (word, number) in [("USR1", 10), ("SIGUSR2", 12), ("1", 1), ("WINCH", 28), ("RTMIN+1", 35)] {
        if word == "RTMIN+1" && rt.differs("kill RTMIN+1") {
            continue;
        }
        c.kill(word).ok();
        sees(&format!("\n{number}\n"));
    }
    c.call(["kill"]).ok();
    sees("\n15\n");
    c.wait_status("stopped");
    c.delete().ok();
}

#[test]
fn kill_rejects_what_is_no_signal() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    c.kill("NONSENSE").fails(1, &["NONSENSE"]);
    assert_eq!(c.status(), "running");
}

#[test]
fn kill_of_a_stopped_container_says_it_is_not_running() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(["/probe", "exit"]));
    c.wait_status("stopped");
    let text = if rt.differs("kill stopped text") { "kill container" } else { "container not running" };
    c.kill("TERM").fails(1, &[text]);
    c.call(["kill", "--all"]).arg("KILL").run();
    c.delete().ok();
}

#[test]
fn kill_reaches_a_created_container() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle());
    c.create().ok();
    c.kill("KILL").ok();
    c.wait_status("stopped");
    c.call(["start"]).fails(1, &[]);
    c.delete().ok();
}

#[test]
fn a_created_container_ends_at_the_signals_that_ask_for_it() {
    let rt = Runtime::new();
    for signal in ["TERM", "INT", "HUP"] {
        let c = rt.container(rt.bundle());
        c.create().ok();
        // By its number or by a pidfd, as --pidfd-socket hands out: process 1 of its namespace must not be deaf.
        c.kill(signal).ok();
        c.wait_status("stopped");
        c.delete().ok();
    }
}

#[test]
fn delete_refuses_a_running_container_unless_forced() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let text = if rt.differs("delete running text") { "is not in" } else { "that is not stopped: running" };
    c.delete().fails(1, &[text, &c.id]);
    assert_eq!(c.status(), "running");
    c.call(["delete", "--force"]).ok();
    rt.assert_nothing_left();
}

#[test]
fn delete_removes_a_created_container() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle());
    c.create().ok();
    c.delete().ok();
    rt.assert_nothing_left();
}

#[test]
fn delete_force_of_a_missing_container_is_fine_and_plain_delete_is_not() {
    let rt = Runtime::new();
    rt.call(["delete", "--force", "rt-never-made"]).ok();
    rt.call(["delete", "rt-never-made"]).fails(1, &["does not exist"]);
}

#[test]
fn delete_takes_processes_that_outlived_init() {
    let rt = Runtime::new();
    // Without a PID namespace the children outlive process 1.
    require!(host::is_root(), "root: a container that shares the host's PID namespace");
    let c = rt.container(rt.bundle().args(["/probe", "children", "3"]).without_namespace("pid"));
    let created = c.create().ok();
    c.call(["start"]).ok();
    assert!(host::wait_until(20, || created.output_now().contains("ready")));
    c.kill("KILL").ok();
    c.wait_status("stopped");
    c.call(["delete", "--force"]).ok();
    rt.assert_nothing_left();
}

/// As runc: with the host's PIDs what is left of the container can still be killed.
#[test]
fn kill_reaches_processes_that_outlived_init() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a container that shares the host's PID namespace");
    let c = rt.container(rt.bundle().args(["/probe", "children", "3"]).without_namespace("pid"));
    let created = c.create().ok();
    c.call(["start"]).ok();
    assert!(host::wait_until(20, || created.output_now().contains("ready")));
    let pid = c.call(["state"]).ok().json()["pid"].to_string();
    rt.shell("kill -KILL \"$1\"", &[&pid]).ok();
    c.wait_status("stopped");
    c.kill("TERM").fails(1, &["container not running"]);
    c.kill("KILL").ok();
    c.delete().ok();
    rt.assert_nothing_left();
}

#[test]
fn kill_all_reaches_every_process_of_a_shared_pid_namespace() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a container that shares the host's PID namespace");
    let c = rt.container(rt.bundle().args(["/probe", "children", "2"]).without_namespace("pid"));
    let created = c.create().ok();
    c.call(["start"]).ok();
    assert!(host::wait_until(20, || created.output_now().contains("ready")));
    c.call(["kill", "--all"]).arg("KILL").ok();
    c.wait_status("stopped");
    c.delete().ok();
    rt.assert_nothing_left();
}

#[test]
fn start_twice_and_start_of_a_stopped_container_fail() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let texts = if rt.differs("start texts") {
        ["", ""]
    } else {
        ["cannot start an already running container", "cannot start a container that has stopped"]
    };
    c.call(["start"]).fails(1, &[texts[0]]);
    c.kill("KILL").ok();
    c.wait_status("stopped");
    c.call(["start"]).fails(1, &[texts[1]]);
}

#[test]
fn an_id_is_taken_once() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(SLEEP));
    c.create().ok();
    let text = if rt.differs("taken id text") { "already exists" } else { "container with given ID already exists" };
    c.create().fails(1, &[text]);
    assert_eq!(c.status(), "created");
}

#[test]
fn ids_are_checked() {
    let rt = Runtime::new();
    let bundle = rt.container(rt.bundle());
    let dir = bundle.bundle.dir.to_str().unwrap();
    for id in ["", "a/b", "..", ".", "a b", "ä", "../x"] {
        let text = if rt.differs("id text") { "" } else { "container" };
        rt.call(["create", "--bundle", dir, id]).fails(1, &[text]);
    }
    rt.assert_nothing_left();
    let id = format!("{}_A.b+c-9", rt.id());
    rt.call(["create", "--bundle", dir, &id]).ok();
    rt.call(["delete", "--force", &id]).ok();
}

#[test]
fn state_has_the_fields_callers_read() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP).set("/annotations", json!({"a.key": "a <value> & more"})));
    let state = c.state();
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."), "{state}");
    assert_eq!(state["rootfs"], c.bundle.rootfs().to_str().unwrap());
    assert_eq!(state["annotations"], json!({"a.key": "a <value> & more"}));
    let created = state["created"].as_str().unwrap();
    assert!(created.len() > 20 && created.contains('T') && created.ends_with('Z'), "RFC 3339: {created}");
    assert!(state["owner"].is_string(), "{state}");
}

#[test]
fn pid_file_holds_the_pid() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(SLEEP));
    let file = rt.dir().join("the.pid");
    c.create_with(&["--pid-file", file.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), c.pid().to_string());
    let names: Vec<_> = fs::read_dir(rt.dir()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().starts_with(".the.pid")), "temporary file left: {names:?}");
}

#[test]
fn pid_file_of_run_in_the_foreground_too() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(["/probe", "exit", "0"]));
    let file = rt.dir().join("the.pid");
    c.run_with(&["--pid-file", file.to_str().unwrap()]).ok();
    assert!(fs::read_to_string(&file).unwrap().parse::<u32>().unwrap() > 1);
}

#[test]
fn pause_freezes_and_resume_thaws() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup to freeze");
    let c = rt.start(rt.bundle().args(SLEEP));
    c.call(["pause"]).ok();
    assert_eq!(c.status(), "paused");
    c.call(["pause"]).fails(1, &[]);
    let exec = c.exec(&[], &["/probe", "exit"]);
    if !rt.differs("exec in paused") {
        exec.run().fails(255, &["cannot exec in a paused container"]);
    }
    c.call(["resume"]).ok();
    assert_eq!(c.status(), "running");
    let text = if rt.differs("resume text") { "" } else { "container not paused" };
    c.call(["resume"]).fails(1, &[text]);
}

#[test]
fn delete_force_of_a_paused_container() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup to freeze");
    let c = rt.start(rt.bundle().args(["/probe", "children", "2"]));
    c.call(["pause"]).ok();
    c.call(["delete", "--force"]).ok();
    rt.assert_nothing_left();
}

#[test]
fn kill_of_a_paused_container_takes_effect() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup to freeze");
    require!(!rt.differs("kill paused"), "this runtime leaves the signal pending");
    let c = rt.start(rt.bundle().args(SLEEP));
    c.call(["pause"]).ok();
    c.kill("KILL").ok();
    c.wait_status("stopped");
    c.delete().ok();
}

#[test]
fn delete_runs_when_the_bundle_is_gone() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    fs::remove_file(c.bundle.dir.join("config.json")).unwrap();
    if !rt.differs("exec without the bundle") {
        c.exec(&[], &["/probe", "exit", "4"]).run().exits(4);
    }
    c.end();
}

#[test]
fn many_containers_at_once() {
    let rt = Runtime::new();
    let all: Vec<_> = (0..8).map(|_| rt.container(rt.bundle().args(SLEEP))).collect();
    let calls: Vec<_> = all.iter().map(|c| c.create_with(&[]).spawn()).collect();
    calls.into_iter().for_each(|call| drop(call.wait().ok()));
    let listed = rt.call(["list", "-q"]).ok();
    assert_eq!(listed.stdout.lines().count(), 8, "{listed}");
}
