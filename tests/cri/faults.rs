//! Daemon, monitor, both or the machine die: nothing is lost, nothing is left, and kubelet's retry works.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::Signal::SIGKILL;
use nix::sys::signal::kill;
use nix::unistd::Pid as Process;
use rrun_proto::v1;
use rrun_proto::v1::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use tests::host::wait_until;
use tonic::{Code, Status};

use crate::client::{Container, Pod, namespaces, pod_config, script};
use crate::node::{Network, Node};
use crate::node_or_skip;

/// What kubelet does when a call ends without an answer: the daemon comes back, the same call again.
#[track_caller]
fn retried<T>(node: &Node, what: &str, mut call: impl FnMut() -> Result<T, Status>) -> T {
    loop {
        match call() {
            Ok(answer) => return answer,
            Err(_) if node.daemon_has_ended() => {
                node.wait_for_daemon();
                node.start_daemon(&[]);
            }
            Err(status) => panic!("{what}: {status:?}\n{}", node.log_tail()),
        }
    }
}

/// The whole life of a pod with a container, as kubelet drives it.
#[track_caller]
fn live(node: &Node) {
    let mut config = pod_config(node);
    namespaces(&mut config).network = v1::NamespaceMode::Pod.into();
    namespaces(&mut config).pid = v1::NamespaceMode::Pod.into();
    let id = retried(node, "run", || node.run_pod(&config));
    let pod = Pod { node, id, config };
    let mut config = script("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done");
    let mut container = retried(node, "create", || pod.create(&config));
    let running = |container: &Container| container.start();
    loop {
        // Its state tells what became of a start without an answer.
        let state = retried(node, "status", || {
            let request = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
            node.cri().container_status(request).map(|answer| answer.status.unwrap().state())
        });
        match state {
            ContainerRunning => break,
            ContainerCreated => match running(&container) {
                Ok(()) => break,
                Err(_) if node.daemon_has_ended() => {
                    node.wait_for_daemon();
                    node.start_daemon(&[]);
                }
                Err(status) => panic!("start: {status:?}\n{}", node.log_tail()),
            },
            _ => {
                config.metadata.as_mut().unwrap().attempt += 1;
                container = retried(node, "create again", || pod.create(&config));
            }
        }
    }
    container.wait_for_line("up");
    let answer = retried(node, "exec", || container.exec(&["/bin/echo", "in it"], 20));
    assert_eq!(answer.stdout, b"in it\n");
    retried(node, "stop", || container.stop(20));
    let status = retried(node, "status", || {
        let request = v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        node.cri().container_status(request).map(|answer| answer.status.unwrap())
    });
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (ContainerExited, 0, "Completed"));
    retried(node, "stop pod", || pod.stop());
    retried(node, "remove container", || container.remove());
    retried(node, "remove pod", || pod.remove());
}

#[test]
fn the_daemon_dies_at_every_step() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let notes = node.dir().join("steps");
    node.kill_daemon(SIGKILL);
    node.start_daemon(&[("RRUN_CRI_STEPS", notes.to_str().unwrap())]);
    live(&node);
    node.assert_empty();
    let text = fs::read_to_string(&notes).unwrap();
    let mut seen = BTreeSet::new();
    let steps: Vec<_> = text.lines().filter(|step| seen.insert(*step)).collect();
    assert!(steps.len() > 20, "{steps:?}");
    for step in steps {
        node.kill_daemon(SIGKILL);
        node.start_daemon(&[("RRUN_CRI_DIE_AT", step)]);
        let before = node.starts();
        eprintln!("dies at {step:?}");
        live(&node);
        // What runs in the background after the last answer dies a moment later.
        let died = wait_until(5, || node.starts() > before || node.daemon_has_ended());
        assert!(died, "step {step:?} was not reached");
        if node.daemon_has_ended() {
            node.wait_for_daemon();
            node.start_daemon(&[]);
        }
        node.assert_empty();
    }
}

/// The pod's monitor, as the host numbers it.
#[track_caller]
pub(crate) fn monitor(node: &Node, pod: &str) -> Process {
    let found = find_monitor(node, pod);
    Process::from_raw(found.unwrap_or_else(|| panic!("no monitor of {pod}: {:#?}", node.processes())))
}

/// It works in the pod's run folder.
fn find_monitor(node: &Node, pod: &str) -> Option<i32> {
    let all = node.processes().into_iter().filter(|(_, command)| command.contains("rrun-monitor serve")).map(|(pid, _)| pid);
    let here = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|path| path.ends_with(pod));
    all.into_iter().find(here)
}

const TALKS: &str = "i=0; trap 'echo bye; exit 5' TERM; while :; do i=$((i+1)); echo $i; sleep 0.02; done";

/// The numbers that a container printed: one after the other, none missing.
#[track_caller]
fn numbers(container: &Container) -> usize {
    let all: Vec<_> = container.log().into_iter().filter_map(|line| line.text.parse::<usize>().ok()).collect();
    assert_eq!(all, (1..=all.len()).collect::<Vec<_>>(), "lines are missing");
    all.len()
}

#[test]
fn exits_and_output_are_kept_while_the_daemon_is_away() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let pod = node.pod();
    let (talks, ends) = (pod.start(&script(TALKS)), pod.start(&script("sleep 0.5; echo last words; exit 6")));
    let created = pod.create(&script("echo later")).unwrap();
    node.kill_daemon(SIGKILL);
    std::thread::sleep(std::time::Duration::from_secs(1));
    node.start_daemon(&[]);
    let status = ends.ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (6, "Error"));
    assert!(status.finished_at > status.started_at && status.started_at > 0);
    assert_eq!(ends.log()[0].text, "last words");
    assert_eq!(talks.status().state(), ContainerRunning);
    let before = numbers(&talks);
    assert!(wait_until(10, || numbers(&talks) > before));
    assert_eq!(created.status().state(), ContainerCreated);
    created.start().unwrap();
    created.ended();
    assert_eq!(created.log()[0].text, "later");
    assert_eq!(talks.sh("echo still here"), "still here");
    talks.stop(20).unwrap();
    assert_eq!(talks.status().exit_code, 5);
    pod.end();
    node.assert_empty();
}

#[test]
fn a_dead_monitor_has_a_successor() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let pod = node.pod_with(|config| namespaces(config).pid = v1::NamespaceMode::Pod.into());
    let (talks, other) = (pod.start(&script(TALKS)), pod.start(&script("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")));
    other.wait_for_line("up");
    for round in 0..3 {
        let old = monitor(&node, &pod.id);
        kill(old, SIGKILL).unwrap();
        let new = || find_monitor(&node, &pod.id).is_some_and(|pid| pid != old.as_raw());
        assert!(wait_until(10, new), "no successor\n{}", node.log_tail());
        let before = numbers(&talks);
        assert!(wait_until(10, || numbers(&talks) > before), "round {round}: the log goes on\n{}", node.log_tail());
        assert_eq!(talks.status().state(), ContainerRunning);
        assert!(wait_until(10, || talks.exec(&["true"], 5).is_ok_and(|answer| answer.exit_code == 0)), "{}", node.log_tail());
    }
    // It is not its parent any more: the code comes from the pidfd.
    other.stop(20).unwrap();
    assert_eq!((other.status().exit_code, other.status().reason.as_str()), (9, "Error"));
    talks.stop(20).unwrap();
    assert_eq!(talks.status().exit_code, 5);
    let third = pod.start(&script("exit 3"));
    assert_eq!(third.ended().exit_code, 3, "new containers are made by the successor");
    pod.end();
    node.assert_empty();
}

#[test]
fn monitor_and_daemon_die_together() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let pod = node.pod();
    let (talks, ends) = (pod.start(&script(TALKS)), pod.start(&script("sleep 3; exit 6")));
    let recorded = pod.start(&script("exit 8"));
    recorded.ended();
    node.kill_daemon(SIGKILL);
    kill(monitor(&node, &pod.id), SIGKILL).unwrap();
    let lives = || node.processes().iter().any(|(_, command)| command.contains("sleep 3; exit 6"));
    assert!(wait_until(20, || !lives()));
    node.start_daemon(&[]);
    assert_eq!(recorded.status().exit_code, 8, "there is a record");
    let status = ends.ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"), "nobody saw it: nothing is invented");
    assert_eq!(talks.status().state(), ContainerRunning);
    let before = talks.log().len();
    assert!(wait_until(10, || talks.log().len() > before), "the log goes on\n{}", node.log_tail());
    assert_eq!(talks.sh("echo still here"), "still here");
    talks.stop(20).unwrap();
    assert_eq!(talks.status().exit_code, 5, "the daemon holds its pidfd again");
    pod.end();
    node.assert_empty();
}

#[test]
fn a_reboot_ends_all_and_leaves_nothing() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let pod = node.pod_with(|config| namespaces(config).network = v1::NamespaceMode::Pod.into());
    let ran = pod.start(&script("sleep 1000"));
    let ended = pod.start(&script("exit 4"));
    ended.ended();
    let created = pod.create(&script("true")).unwrap();
    let hostnet = node.pod();
    node.reboot();
    assert!(!pod.is_ready() && !hostnet.is_ready());
    let status = ran.status();
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (ContainerExited, 255, "Unknown"), "{status:?}");
    assert_eq!(ended.status().exit_code, 4);
    assert_ne!(created.status().state(), ContainerRunning);
    assert!(created.start().is_err());
    // Kubelet makes the next attempt before it removes the old sandbox.
    let mut next = pod.config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    let second = node.pod_with(|config| *config = next);
    assert_eq!(second.output(&script("echo again")), ["again"]);
    assert!(!second.status().unwrap().network.unwrap().ip.is_empty());
    for one in [&pod, &hostnet, &second] {
        one.stop().unwrap();
        one.remove().unwrap();
    }
    node.assert_empty();
}

#[test]
fn daemon_and_monitors_are_killed_again_and_again() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let pods: Vec<_> = (0..3).map(|_| node.pod()).collect();
    let containers: Vec<_> = pods.iter().map(|pod| pod.start(&script(TALKS))).collect();
    for round in 0..4u64 {
        std::thread::scope(|scope| {
            // Something is always under way.
            let (pod, node) = (&pods[0], &node);
            scope.spawn(move || {
                if let Ok(container) = pod.create(&script("true")) {
                    let _ = container.start();
                }
            });
            std::thread::sleep(std::time::Duration::from_millis(7 * round + 3));
            if round % 2 == 0 {
                let _ = kill(monitor(node, &pod.id), SIGKILL);
            }
            node.kill_daemon(SIGKILL);
        });
        node.start_daemon(&[]);
    }
    for container in &containers {
        assert_eq!(container.status().state(), ContainerRunning, "{}", node.log_tail());
        container.stop(20).unwrap();
        assert_eq!(container.status().exit_code, 5);
    }
    for pod in &pods {
        pod.stop().unwrap();
        pod.remove().unwrap();
    }
    node.assert_empty();
}

/// A pod of its own network that must fail; its error.
#[track_caller]
fn refused(node: &Node) -> (v1::PodSandboxConfig, Status) {
    let mut config = pod_config(node);
    namespaces(&mut config).network = v1::NamespaceMode::Pod.into();
    let status = node.run_pod(&config).unwrap_err();
    node.assert_empty();
    (config, status)
}

#[test]
fn plugins_that_misbehave_fail_the_pod_and_leave_nothing() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let version = r#"[ $CNI_COMMAND != VERSION ] || { echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}'; exit; }"#;
    for (what, body, words) in [
        ("hangs", "[ $CNI_COMMAND = DEL ] || sleep 1000", "cheap"),
        ("crashes", "[ $CNI_COMMAND = DEL ] || kill -SEGV $$", "cheap"),
        ("prints garbage", "echo not json", "cheap"),
        (
            "says why",
            r#"[ $CNI_COMMAND = DEL ] || { echo '{"cniVersion":"1.0.0","code":11,"msg":"no room at the inn"}'; exit 1; }"#,
            "no room at the inn",
        ),
        ("gives no address", r#"[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0"}'"#, "address"),
    ] {
        node.write_plugin("cheap", &format!("#!/bin/sh\n{version}\n{body}\n"));
        let (config, status) = refused(&node);
        assert!(status.message().contains(words), "{what}: {status:?}");
        node.set_network(Network::Cheap);
        let id = node.run_pod(&config).unwrap_or_else(|status| panic!("{what}: the retry: {status:?}"));
        Pod { node: &node, id, config }.end();
    }
    // A sandbox whose addresses cannot be given back is not forgotten.
    let pod = node.pod_with(|config| namespaces(config).network = v1::NamespaceMode::Pod.into());
    node.write_plugin(
        "cheap",
        &format!("#!/bin/sh\n{version}\necho '{{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"try later\"}}'; exit 1\n"),
    );
    let status = pod.stop().unwrap_err();
    assert!(status.message().contains("try later"), "{status:?}");
    assert!(!pod.is_ready());
    node.set_network(Network::Cheap);
    pod.end();
    node.assert_empty();
    // No configuration at all.
    fs::rename(node.dir().join("net.d"), node.dir().join("net.away")).unwrap();
    assert!(wait_until(10, || {
        let status = node.cri().status(v1::StatusRequest::default()).unwrap().status.unwrap();
        status.conditions.iter().any(|condition| condition.r#type == "NetworkReady" && !condition.status)
    }));
    let (_, status) = refused(&node);
    assert!(matches!(status.code(), Code::Unavailable | Code::Unknown | Code::FailedPrecondition), "{status:?}");
    node.pod().end();
}
