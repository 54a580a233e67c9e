//! ExecSync.

use tests::host::wait_until;
use tonic::Code;

use crate::client::{script, security};
use crate::node::Node;
use crate::node_or_skip;

const IDLE: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";

#[test]
fn output_and_code_come_back() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = script(IDLE);
    config.envs = vec![rrun_proto::v1::KeyValue { key: "SET".into(), value: "by the pod".into() }];
    config.working_dir = "/data".into();
    security(&mut config).run_as_user = Some(rrun_proto::v1::Int64Value { value: 1000 });
    let container = pod.start(&config);
    let answer = container.exec(&["/bin/sh", "-c", "echo out; echo errors >&2; exit 7"], 20).unwrap();
    assert_eq!((&answer.stdout[..], &answer.stderr[..], answer.exit_code), (&b"out\n"[..], &b"errors\n"[..], 7));
    assert_eq!(container.sh("id -u; pwd; echo $SET"), "1000\n/data\nby the pod", "as the container's own process");
    let killed = container.exec(&["/bin/sh", "-c", "kill -9 $$"], 20).unwrap();
    assert_eq!(killed.exit_code, 137);
    assert_eq!(container.exec(&["/bin/true"], 0).unwrap().exit_code, 0, "no limit of time");
    let stdin = container.exec(&["/bin/cat"], 20).unwrap();
    assert_eq!((stdin.exit_code, stdin.stdout.len()), (0, 0), "its input is empty");
    pod.end();
}

#[test]
fn a_timeout_kills_the_processes() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script(IDLE));
    let late = container.exec(&["/bin/sh", "-c", "sleep 4321 & sleep 4321"], 1).unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert!(late.message().contains("timed out"), "{late:?}");
    let sleeps = || container.sh("ps | grep -c '[s]leep 4321' || true");
    assert!(wait_until(10, || sleeps() == "0"), "{}", container.sh("ps"));
    pod.end();
}

#[test]
fn output_beyond_the_limit_is_dropped() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script(IDLE));
    let answer = container.exec(&["/bin/sh", "-c", "head -c 40000000 /dev/zero; head -c 1000 /dev/zero >&2; exit 3"], 60).unwrap();
    // All of an answer must fit in the 16 MiB that kubelet takes.
    let (out, errors) = (answer.stdout.len(), answer.stderr.len());
    assert!((15 << 20..16 << 20).contains(&out) && errors == 1000 && out + errors < 16 << 20, "{out} {errors}");
    assert_eq!(answer.exit_code, 3);
    pod.end();
}

#[test]
fn children_in_the_background_do_not_hold_the_call() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script(IDLE));
    let answer = container.exec(&["/bin/sh", "-c", "sleep 1000 & echo done"], 60).unwrap();
    assert_eq!((&answer.stdout[..], answer.exit_code), (&b"done\n"[..], 0));
    pod.end();
}

#[test]
fn a_cancelled_call_kills_its_process() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script(IDLE));
    let mut client = node.cri().runtime;
    let mut request = tonic::Request::new(rrun_proto::v1::ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: vec!["/bin/sleep".into(), "8765".into()],
        timeout: 0,
    });
    request.set_timeout(std::time::Duration::from_millis(500));
    crate::client::wait(async move { client.exec_sync(request).await }).unwrap_err();
    assert!(wait_until(10, || container.sh("ps | grep -c '[s]leep 8765' || true") == "0"), "{}", container.sh("ps"));
    pod.end();
}

#[test]
fn what_cannot_be_executed_is_told() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script(IDLE));
    for words in [&["/no/such/program"][..], &["/etc"], &["/etc/passwd"]] {
        let failed = container.exec(words, 20).unwrap_err();
        assert!(failed.message().contains(words[0]), "{failed:?}");
    }
    assert_eq!(container.exec(&[], 20).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(container.exec(&["true"], -1).unwrap_err().code(), Code::InvalidArgument);
    container.stop(10).unwrap();
    assert_eq!(container.exec(&["true"], 20).unwrap_err().code(), Code::FailedPrecondition);
    pod.end();
}

#[test]
fn many_at_once() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script(IDLE));
    std::thread::scope(|scope| {
        for number in 0..16 {
            let container = &container;
            scope.spawn(move || assert_eq!(container.sh(&format!("sleep 0.2; echo {number}")), number.to_string()));
        }
    });
    pod.end();
}
