//! The six kinds of hooks: order, namespaces, state, failure, timeout.

use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use tests::{Bundle, Runtime, host, require};

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

fn log(rt: &Runtime) -> PathBuf {
    let dir = rt.dir().join("hooks");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A hook that runs `script` with a shell; `$LOG` is a folder that the container sees too.
fn hook(rt: &Runtime, script: &str) -> Value {
    let env = [format!("LOG={}", log(rt).display()), "PATH=/bin:/usr/bin".into()];
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": env})
}

/// A bundle whose container can run the same hooks (a shell, and the log's folder).
fn bundle(rt: &Runtime) -> Bundle {
    let dir = log(rt).display().to_string();
    rt.bundle().shell().args(["/probe", "sleep"]).mount(&dir, "bind", &dir, &["bind"])
}

fn read(rt: &Runtime, name: &str) -> String {
    fs::read_to_string(log(rt).join(name)).unwrap_or_default()
}

#[test]
fn every_kind_at_its_time_with_its_state() {
    let rt = Runtime::new();
    require!(host::busybox().is_some(), "a static busybox (busybox-static)");
    let mut bundle = bundle(&rt).set("/annotations", json!({"a": "b"}));
    for kind in KINDS {
        for number in [1, 2] {
            let script = format!("cat > $LOG/{kind}.state; echo {kind}{number} >> $LOG/order");
            bundle = bundle.set(&format!("/hooks/{kind}/-"), hook(&rt, &script));
        }
    }
    let c = rt.container(bundle);
    c.create().ok();
    let pid = c.pid();
    let order = |kinds: &[&str]| kinds.iter().flat_map(|k| [format!("{k}1\n"), format!("{k}2\n")]).collect::<String>();
    let early = rt.differs("poststart time");
    if !early {
        assert_eq!(read(&rt, "order"), order(&KINDS[..3]));
    }
    c.call(["start"]).ok();
    assert!(host::wait_until(10, || read(&rt, "order").contains("poststart2")));
    if !early {
        assert_eq!(read(&rt, "order"), order(&KINDS[..5]));
    }
    c.kill("KILL").ok();
    c.wait_status("stopped");
    c.delete().ok();
    if !early {
        assert_eq!(read(&rt, "order"), order(&KINDS));
    }
    let statuses = ["creating", "creating", "creating", "created", "running", "stopped"];
    for (kind, status) in KINDS.iter().zip(statuses) {
        let text = read(&rt, &format!("{kind}.state"));
        let state: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{kind}: {e}: {text}"));
        assert_eq!(state["id"], c.id.as_str(), "{kind}");
        assert_eq!(state["bundle"], c.bundle.dir.to_str().unwrap(), "{kind}");
        assert_eq!(state["annotations"], json!({"a": "b"}), "{kind}");
        if !(early && *kind == "poststart") {
            assert_eq!(state["status"], status, "{kind}");
        }
        let seen = state["pid"].as_i64().unwrap_or(0);
        match *kind {
            "poststop" => assert!(seen == 0, "{kind}: {seen}"),
            // Inside the container's PID namespace the runtime may tell the inner number.
            "createContainer" | "startContainer" => assert!(seen == 1 || seen == i64::from(pid), "{kind}: {seen}"),
            _ => assert_eq!(seen, i64::from(pid), "{kind}"),
        }
    }
}

#[test]
fn hooks_run_in_the_namespaces_of_their_kind() {
    let rt = Runtime::new();
    require!(host::busybox().is_some(), "a static busybox (busybox-static)");
    let mut bundle = bundle(&rt);
    for kind in KINDS {
        bundle = bundle.set(&format!("/hooks/{kind}/-"), hook(&rt, &format!("ls -l /proc/self/ns/mnt /proc/self/ns/uts > $LOG/{kind}")));
    }
    // ls of the container is busybox's; both print the link's target.
    let c = rt.start(bundle);
    let inside = [host::namespace(&c.pid().to_string(), "mnt"), host::namespace(&c.pid().to_string(), "uts")];
    let outside = [host::namespace("self", "mnt"), host::namespace("self", "uts")];
    assert!(host::wait_until(10, || read(&rt, "poststart").contains("uts")));
    c.end();
    for kind in KINDS {
        let expected = if ["createContainer", "startContainer"].contains(&kind) { &inside } else { &outside };
        let seen = read(&rt, kind);
        for namespace in expected {
            assert!(seen.contains(namespace.as_str()) || rt.is_rootless(), "{kind}: {seen} has no {namespace}");
        }
    }
}

#[test]
fn early_hooks_run_before_the_root_is_entered() {
    let rt = Runtime::new();
    let bundle = rt.bundle().set("/hooks/createContainer/-", hook(&rt, "test -d $LOG && echo host > $LOG/create"));
    rt.container(bundle).run().ok();
    assert_eq!(read(&rt, "create"), "host\n");
}

/// As runc: it can name what is in the root by a relative path.
#[test]
fn a_create_container_hook_works_in_the_root() {
    let rt = Runtime::new();
    let bundle = rt.bundle().set("/hooks/createContainer/-", hook(&rt, "test -e ./probe && echo here > $LOG/cwd"));
    rt.container(bundle).run().ok();
    assert_eq!(read(&rt, "cwd"), "here\n");
}

/// As runc.
#[test]
fn a_start_hook_without_an_environment_has_the_process_s() {
    let rt = Runtime::new();
    require!(host::busybox().is_some(), "a static busybox (busybox-static)");
    let mut one = hook(&rt, "test \"$ONE\" = two && test -n \"$HOME\"");
    one.as_object_mut().unwrap().remove("env");
    let c = rt.container(
        bundle(&rt).args(["/probe", "exit"]).set("/process/env/-", json!("ONE=two")).set("/hooks/startContainer/-", one.clone()),
    );
    c.run().ok();
    // Its own, though empty, takes the place.
    one["env"] = json!([]);
    let c = rt.container(bundle(&rt).args(["/probe", "exit"]).set("/process/env/-", json!("ONE=two")).set("/hooks/startContainer/-", one));
    c.run().fails(1, &["error running startContainer hook #0"]);
}

#[test]
fn arguments_and_environment_are_the_hook_s_own() {
    let rt = Runtime::new();
    let script = "echo \"$0 $1 $2 $A\" > $LOG/args; env > $LOG/env";
    let mut one = hook(&rt, script);
    one["args"] = json!(["ignored", "-c", script, "zero", "one", "two words"]);
    one["env"].as_array_mut().unwrap().push(json!("A=value"));
    let c = rt.container(rt.bundle().set("/hooks/createRuntime/-", one));
    c.run_with(&[]).env("LEAK", "1").ok();
    assert_eq!(read(&rt, "args"), "zero one two words value\n");
    assert!(!read(&rt, "env").contains("LEAK"), "{}", read(&rt, "env"));
}

#[test]
fn a_failing_hook_fails_the_command_and_leaves_nothing() {
    let rt = Runtime::new();
    require!(host::busybox().is_some(), "a static busybox (busybox-static)");
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let failing = hook(&rt, "cat >/dev/null; echo the reason >&2; exit 7");
        let hooks = format!("/hooks/{kind}/-");
        let c = rt.container(bundle(&rt).set(&hooks, hook(&rt, "cat >/dev/null; echo fine >&2")).set(&hooks, failing));
        // Which one it was, its status and what it said.
        c.create().fails(1, &[&format!("error running {kind} hook #1: exit status 7, stdout: , stderr: the reason")]);
        rt.assert_nothing_left();
    }
}

#[test]
fn a_hook_that_a_signal_ends_is_told_so() {
    let rt = Runtime::new();
    require!(host::busybox().is_some(), "a static busybox (busybox-static)");
    let c = rt.container(bundle(&rt).set("/hooks/createRuntime/-", hook(&rt, "kill -SYS $$")));
    c.create().fails(1, &["error running createRuntime hook #0: signal: bad system call"]);
    rt.assert_nothing_left();
}

#[test]
fn a_failing_start_hook_stops_the_container() {
    let rt = Runtime::new();
    require!(host::busybox().is_some(), "a static busybox (busybox-static)");
    let failing = hook(&rt, "exit 7");
    let c = rt.container(bundle(&rt).args(["/bin/sh", "-c", "echo ran > $LOG/ran"]).set("/hooks/startContainer/-", failing));
    c.create().ok();
    let start = c.call(["start"]).run();
    if !rt.differs("startContainer failure") {
        start.fails(1, &["startContainer hook #0"]);
    }
    c.wait_status("stopped");
    assert_eq!(read(&rt, "ran"), "");
    c.delete().ok();
}

#[test]
fn hooks_that_do_not_exist() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().set("/hooks/createRuntime/-", json!({"path": "/no/such/hook"})));
    c.create().fails(1, &["createRuntime hook #0", "/no/such/hook", "no such file or directory"]);
    rt.assert_nothing_left();
}

#[test]
fn a_timeout_ends_the_hook() {
    let rt = Runtime::new();
    let mut slow = hook(&rt, "echo $$ > $LOG/pid; exec sleep 60");
    slow["timeout"] = json!(1);
    let c = rt.container(rt.bundle().set("/hooks/createRuntime/-", slow));
    let start = std::time::Instant::now();
    c.create().fails(1, &["createRuntime hook #0"]);
    assert!(start.elapsed().as_secs() < 20);
    let pid = read(&rt, "pid").trim().to_string();
    assert!(host::wait_until(5, || !PathBuf::from(format!("/proc/{pid}")).exists()), "the hook still runs");
    rt.assert_nothing_left();
}

#[test]
fn a_failing_poststop_does_not_keep_the_container() {
    let rt = Runtime::new();
    let bundle = rt.bundle().args(["/probe", "exit"]).set("/hooks/poststop/-", hook(&rt, "exit 1"));
    let bundle = bundle.set("/hooks/poststop/-", hook(&rt, "echo second > $LOG/second"));
    let c = rt.start(bundle);
    c.wait_status("stopped");
    c.delete();
    rt.assert_nothing_left();
    if !rt.differs("poststop failure") {
        assert_eq!(read(&rt, "second"), "second\n");
    }
}

#[test]
fn delete_force_runs_poststop_too() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(["/probe", "sleep"]).set("/hooks/poststop/-", hook(&rt, "echo done > $LOG/done")));
    c.call(["delete", "--force"]).ok();
    assert_eq!(read(&rt, "done"), "done\n");
}

#[test]
fn a_hook_can_move_something_into_the_container_s_network() {
    let rt = Runtime::new();
    require!(!rt.is_rootless() && host::find("ip").is_some(), "root, and ip (iproute2)");
    let script = "pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p'); ip link add type veth peer netns $pid name inside 2> $LOG/error \
        || ip link add name vt$pid type veth peer name inside netns $pid 2>> $LOG/error";
    let report = rt.report(rt.bundle().set("/hooks/createRuntime/-", hook(&rt, script)));
    require!(!read(&rt, "error").contains("nknown device type"), "a kernel with veth");
    assert!(report["net"]["inside"].is_string(), "{} {}", report["net"], read(&rt, "error"));
}
