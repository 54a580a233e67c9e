//! Create, start, end, record, remove.

use super::{is_alive, kill, log_of, pod};
use rrun_cri::monitor::{Create, Error, Monitor};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::Duration;

#[tokio::test]
async fn a_container_runs_ends_and_is_recorded() {
    let pod = pod!();
    let create = pod.container("echo out; echo err >&2; exit 7");
    let created = pod.monitor.create(&create).await.unwrap();
    assert!(is_alive(created.pid) && created.start_time > 0 && created.pidfd.is_some() && created.pty.is_none());
    pod.monitor.start_container(&create.id, None).await.unwrap();
    let exited = pod.exited(&create.id).await;
    assert_eq!((exited.code, exited.signal, exited.oom, exited.unknown), (7, 0, false, false));
    let record = rrun_monitor::exit_record::read(Path::new(&create.exit_path)).unwrap().unwrap();
    assert_eq!((record.code, record.finished_at), (7, exited.finished_at));
    let mut log = log_of(&create);
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out"]);
    pod.monitor.remove(&create.id).await.unwrap();
    pod.monitor.remove(&create.id).await.unwrap();
    let left: Vec<_> = fs::read_dir(&create.dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|name| name == "log" || name == "exit.json"), "{left:?}");
    pod.monitor.shutdown().await.unwrap();
    assert!(tests::host::wait_until(10, || !is_alive(pod.pid())));
}

#[tokio::test]
async fn a_signal_is_told_as_one() {
    let pod = pod!();
    let create = pod.container("kill -9 $$; sleep 100");
    // In its own PID namespace a first process survives its own signals.
    let created = pod.start(&create).await;
    kill(created.pid, 9);
    let exited = pod.exited(&create.id).await;
    assert_eq!((exited.code, exited.signal), (137, 9));
}

#[tokio::test]
async fn what_the_runtime_says_is_handed_on_and_nothing_is_left() {
    let pod = pod!();
    let bundle = pod.bundle("true").set("/root/path", json!("nowhere"));
    let create = pod.container_of(bundle);
    let Err(Error::Failed { text, code, .. }) = pod.monitor.create(&create).await else { panic!("created") };
    assert!(text.contains("nowhere") && code != 0, "{text}");
    assert!(fs::read_dir(&create.dir).unwrap().all(|e| e.unwrap().file_name() == "log"));
    assert!(pod.monitor.state().await.unwrap().1.is_empty());
    // The same id can be used again.
    let again = pod.container("true");
    let again = Create { id: create.id.clone(), ..again };
    assert_eq!(pod.run(&again).await.code, 0);
}

#[tokio::test]
async fn a_program_that_is_not_there_fails_the_start() {
    let pod = pod!();
    let create = pod.container_of(pod.rt.bundle().args(["/nowhere"]));
    let failed = match pod.monitor.create(&create).await {
        Ok(_) => pod.monitor.start_container(&create.id, None).await.unwrap_err(),
        Err(e) => e,
    };
    assert!(failed.to_string().contains("/nowhere"), "{failed}");
}

#[tokio::test]
async fn wrong_requests() {
    let pod = pod!();
    let good = pod.container("sleep 100");
    for (bad, says) in [
        (Create { runtime: "/nowhere/runc".into(), ..good.clone() }, "/nowhere/runc"),
        (Create { log_path: "/nowhere/log".into(), ..good.clone() }, "/nowhere/log"),
        (Create { dir: "/nowhere".into(), ..good.clone() }, "/nowhere"),
        (Create { bundle: "/nowhere".into(), ..good.clone() }, "/nowhere"),
    ] {
        let error = pod.monitor.create(&bad).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    pod.start(&good).await;
    assert!(pod.monitor.create(&good).await.unwrap_err().to_string().contains("already"));
    assert!(pod.monitor.remove(&good.id).await.unwrap_err().to_string().contains("not ended"));
    assert!(pod.monitor.shutdown().await.unwrap_err().to_string().contains("not ended"));
    for error in [
        pod.monitor.start_container("nobody", None).await.unwrap_err(),
        pod.monitor.attach("nobody", true, true, true).await.unwrap_err(),
        pod.monitor.reopen_log("nobody").await.unwrap_err(),
        pod.monitor.resize("nobody", 1, 1).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Failed { not_found: true, .. }), "{error:?}");
    }
    assert!(pod.monitor.resize(&good.id, 1, 1).await.unwrap_err().to_string().contains("no terminal"));
}

#[tokio::test]
async fn a_runtime_that_hangs_is_killed() {
    let pod = pod!();
    let slow = pod.rt.dir().join("slow");
    tests::host::write_program(&slow, b"#!/bin/sh\nsleep 1000\n");
    let create = Create { runtime: slow.to_str().unwrap().into(), timeout_ms: 100, ..pod.container("true") };
    let error = pod.monitor.create(&create).await.unwrap_err();
    assert!(matches!(error, Error::Failed { timed_out: true, .. }), "{error:?}");
}

#[tokio::test]
async fn the_daemon_comes_back_and_hears_what_happened() {
    let mut pod = pod!();
    let (ends, lives) = (pod.container("sleep 0.3; exit 3"), pod.container("sleep 100"));
    pod.start(&ends).await;
    let created = pod.start(&lives).await;
    let (monitor, events) = Monitor::connect(&pod.dir).await.unwrap();
    // The newer connection has taken the older one's place.
    assert!(tests::host::wait_until(10, || pod.monitor.is_gone()) || pod.monitor.state().await.is_err());
    (pod.monitor, pod.events) = (monitor, tokio::sync::Mutex::new(events));
    assert_eq!(pod.exited(&ends.id).await.code, 3);
    let (monitor, _) = Monitor::connect(&pod.dir).await.unwrap();
    let (sandbox, seen) = monitor.state().await.unwrap();
    assert_eq!((sandbox.init_pid, seen.len()), (0, 2));
    for s in &seen {
        assert!(s.state.started);
        if s.state.id == ends.id {
            assert_eq!(s.state.exited.as_ref().unwrap().code, 3);
        } else {
            assert_eq!((s.state.pid, s.state.start_time), (created.pid, created.start_time));
            assert!(s.state.exited.is_none() && s.pidfd.is_some());
        }
    }
    pod.monitor = monitor;
}

#[tokio::test]
async fn running_out_of_memory_is_seen() {
    let pod = pod!();
    let bundle =
        pod.rt.bundle().args(["/probe", "fill", "64"]).set("/linux/resources", json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}}));
    let create = pod.container_of(bundle);
    let exited = pod.run(&create).await;
    assert_eq!((exited.code, exited.oom), (137, true), "{exited:?}");
}

#[tokio::test]
async fn a_background_child_does_not_hold_up_the_end() {
    let pod = pod!();
    // Without a PID namespace of its own the child lives on and holds the streams.
    let bundle = pod.bundle("(trap '' HUP; sleep 2; echo late; sleep 100) & echo done; exit 4").without_namespace("pid");
    let create = pod.container_of(bundle);
    assert_eq!(pod.run(&create).await.code, 4);
    assert_eq!(log_of(&create), ["stdout F done"]);
    super::wait_for_log(&create, "late");
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn a_user_without_rights_opens_its_streams_by_name() {
    let pod = pod!();
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; exec 3< /dev/stdin; echo more >> /proc/self/fd/1; cat <&3";
    let bundle = pod.bundle(script).set("/process/user", json!({"uid": 1000, "gid": 1000})).symlink("/dev/stdin", "/proc/self/fd/0");
    let create = Create { stdin: true, stdin_once: true, ..pod.container_of(bundle) };
    pod.start(&create).await;
    super::wait_for_log(&create, "more");
    let mut client = pod.monitor.attach(&create.id, true, false, false).await.unwrap();
    super::write_all(client.stdin.as_ref().unwrap(), "in\n");
    client.end_input().unwrap();
    assert_eq!(pod.exited(&create.id).await.code, 0);
    let mut log = log_of(&create);
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F in", "stdout F more", "stdout F out"]);
}
