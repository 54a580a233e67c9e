//! Containers: states, reasons, exit codes, names, lists, what the image gives and the pod changes.

use std::collections::BTreeMap;

use rrun_proto::v1;
use rrun_proto::v1::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use tests::known;
use tonic::Code;

use crate::client::{Pod, command, script};
use crate::image;
use crate::node::Node;
use crate::node_or_skip;

#[test]
fn a_container_goes_through_its_states() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = script("echo up; sleep 1000");
    config.labels = BTreeMap::from([("app".into(), "x".into())]);
    config.annotations = BTreeMap::from([("note".into(), "y".into())]);
    let container = pod.create(&config).unwrap();
    let status = container.status();
    assert_eq!(status.state(), ContainerCreated);
    assert!(status.created_at > 1_700_000_000_000_000_000 && status.started_at == 0 && status.finished_at == 0, "{status:?}");
    assert_eq!((&status.metadata, &status.labels, &status.annotations), (&config.metadata, &config.labels, &config.annotations));
    assert_eq!(status.image.unwrap().image, image::BASE);
    assert!(status.image_ref.starts_with("sha256:") && status.image_ref == status.image_id, "{}", status.image_ref);
    assert_eq!(status.user.unwrap().linux.unwrap().uid, 0);
    container.start().unwrap();
    container.wait_for_line("up");
    let status = container.status();
    assert_eq!(status.state(), ContainerRunning);
    assert!(status.started_at >= status.created_at && status.finished_at == 0, "{status:?}");
    let again = container.start().unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again:?}");
    assert!(container.info()["pid"].as_i64().unwrap() > 1);
    assert_eq!(container.info()["runtimeSpec"]["process"]["args"][0], "/bin/sh");
    container.stop(0).unwrap();
    let status = container.status();
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (ContainerExited, 137, "Error"));
    assert!(status.finished_at >= status.started_at, "{status:?}");
    assert_eq!(container.info()["pid"], 0);
    container.stop(10).unwrap();
    container.remove().unwrap();
    container.remove().unwrap();
    let gone = node.cri().container_status(v1::ContainerStatusRequest { container_id: container.id.clone(), verbose: false });
    assert_eq!(gone.unwrap_err().code(), Code::NotFound);
    assert!(std::path::Path::new(&status.log_path).exists(), "logs are kubelet's to remove");
    pod.end();
}

#[test]
fn ends_have_codes_and_reasons() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    for (text, code, reason) in [
        ("exit 0", 0, "Completed"),
        ("exit 7", 7, "Error"),
        ("exit 255", 255, "Error"),
        // A process 1 ignores signals without a handler: its child does not.
        ("sh -c 'kill -SEGV $$'; exit $?", 139, "Error"),
        ("sh -c 'kill -KILL $$'; exit $?", 137, "Error"),
    ] {
        let status = pod.start(&script(text)).ended();
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{text}: {status:?}");
    }
    pod.end();
}

#[test]
fn what_cannot_be_started_is_an_ended_container() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    for (program, words) in [
        ("/no/such/program", "no such file"),
        ("no-such-program", "not found"),
        ("/etc/passwd", "permission denied"),
        ("/etc", "is a directory"),
        ("/etc/not-a-program", "exec format"),
    ] {
        let container = pod.create(&command(&[program])).unwrap();
        // The others fail before their execve, which runc's `start` does not wait for.
        if words == "exec format" && known::differs(tests::runtime::program().1, "execve failure") {
            container.start().unwrap();
            assert_eq!(container.ended().exit_code, 255);
            container.remove().unwrap();
            continue;
        }
        let failed = container.start().unwrap_err();
        assert!(failed.message().to_lowercase().contains(words) && failed.message().contains(program), "{program}: {failed:?}");
        let status = container.status();
        assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (ContainerExited, 128, "StartError"), "{status:?}");
        assert!(status.message.to_lowercase().contains(words), "{status:?}");
        assert!(status.finished_at > 0);
        container.stop(1).unwrap();
        container.remove().unwrap();
        node.assert_gone(&[container.id]);
    }
    pod.end();
}

#[test]
fn folders_nested_without_end_are_counted_and_removed() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    // Each round puts what there is below a thousand new folders: no path that it names is too long.
    let nest = r"p=$(yes d | head -n 1000 | tr '\n' /); mkdir t; for i in $(seq 10); do mkdir -p n/$p; mv t n/$p; mv n t; done";
    let container = pod.start(&script(&format!("cd /; {nest}; echo nested; sleep 1000")));
    container.wait_for_line("nested");
    let stats = node.cri().container_stats(v1::ContainerStatsRequest { container_id: container.id.clone() }).unwrap().stats.unwrap();
    assert!(stats.writable_layer.as_ref().unwrap().inodes_used.unwrap().value > 10_000, "{stats:?}");
    container.remove().unwrap();
    pod.end();
}

#[test]
fn a_repeated_create_joins_or_finds_the_first() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let config = script("sleep 1000");
    let ids: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| pod.create(&config).unwrap().id)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let container = pod.create(&config).unwrap();
    assert_eq!(container.id, ids[0]);
    container.start().unwrap();
    let taken = pod.create(&config).map(|container| container.id).unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists, "{taken:?}");
    assert!(taken.message().contains(&container.id), "{taken:?}");
    let mut next = config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(pod.create(&next).unwrap().id, container.id, "the attempt is part of the name");
    container.remove().unwrap();
    assert_ne!(pod.create(&config).unwrap().id, container.id, "the name is free once it is removed");
    pod.end();
}

#[test]
fn lists_filter_by_all_that_is_asked() {
    let node = node_or_skip!(Node::shared());
    let (pod, other) = (node.pod(), node.pod());
    let labelled = |text: &str, role: &str| {
        let mut config = script(text);
        config.labels = BTreeMap::from([("role".into(), role.into())]);
        config
    };
    let created = pod.create(&labelled("sleep 1000", "a")).unwrap();
    let running = pod.start(&labelled("sleep 1000", "b"));
    let ended = pod.start(&labelled("exit 0", "b"));
    ended.ended();
    let elsewhere = other.create(&labelled("sleep 1000", "a")).unwrap();
    let of = |filter: v1::ContainerFilter| {
        let list = node.cri().list_containers(v1::ListContainersRequest { filter: Some(filter.clone()) }).unwrap().containers;
        assert_eq!(node.cri().stream_containers(Some(filter)), list, "the streaming list tells the same");
        let mut ids: Vec<_> = list.into_iter().map(|container| container.id).collect();
        ids.sort();
        ids
    };
    let ids = |of: &[&crate::client::Container]| {
        let mut ids: Vec<_> = of.iter().map(|container| container.id.clone()).collect();
        ids.sort();
        ids
    };
    let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state.into() });
    let in_pod = v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let role = |role: &str| BTreeMap::from([("role".to_owned(), role.to_owned())]);
    assert_eq!(of(in_pod.clone()), ids(&[&created, &running, &ended]));
    assert_eq!(of(v1::ContainerFilter { state: state(ContainerCreated), ..in_pod.clone() }), ids(&[&created]));
    assert_eq!(of(v1::ContainerFilter { state: state(ContainerRunning), ..in_pod.clone() }), ids(&[&running]));
    assert_eq!(of(v1::ContainerFilter { state: state(ContainerExited), ..in_pod.clone() }), ids(&[&ended]));
    assert_eq!(of(v1::ContainerFilter { label_selector: role("b"), ..in_pod.clone() }), ids(&[&running, &ended]));
    assert_eq!(of(v1::ContainerFilter { id: elsewhere.id[..12].to_owned(), ..Default::default() }), ids(&[&elsewhere]));
    assert_eq!(of(v1::ContainerFilter { id: elsewhere.id.clone(), ..in_pod }), ids(&[]));
    pod.end();
    other.end();
}

#[test]
fn the_images_configuration_counts_where_the_pod_says_nothing() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = command(&[]);
    config.image = Some(v1::ImageSpec { image: image::FULL.into(), ..Default::default() });
    assert_eq!(pod.output(&config), ["cmd of the image", "/work/here", "image"]);
    let fresh = |config: &v1::ContainerConfig| {
        let mut config = config.clone();
        config.metadata.as_mut().unwrap().attempt += 1;
        config.log_path = format!("{}.log", crate::client::unique());
        config
    };
    let mut config = fresh(&config);
    config.args = vec!["echo args; pwd; echo $FROM".into()];
    config.working_dir = "/made/for/it".into();
    config.envs = vec![v1::KeyValue { key: "FROM".into(), value: "the pod".into() }];
    assert_eq!(pod.output(&config), ["args", "/made/for/it", "the pod"], "arguments replace the image's Cmd alone");
    let mut config = fresh(&config);
    (config.command, config.args) = (vec!["/bin/echo".into()], Vec::new());
    assert_eq!(pod.output(&config), [""], "a command replaces both");
    let mut config = fresh(&config);
    config.command = vec!["/bin/sleep".into(), "1000".into()];
    let container = pod.create(&config).unwrap();
    assert_eq!(container.status().stop_signal(), v1::Signal::Sigusr1, "the image's stop signal");
    pod.end();
}

#[test]
fn the_writable_layer_is_the_containers_own() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    assert_eq!(
        pod.output(&script("echo changed >/data/file; rm -r /data/inner; mkdir /new; cat /data/file; ls /data")),
        ["changed", "file"]
    );
    assert_eq!(pod.output(&script("cat /data/file; ls -d /new /data/inner 2>/dev/null; true")), ["of the image", "/data/inner"]);
    pod.end();
}

#[test]
fn a_stopped_sandbox_takes_no_container() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let created = pod.create(&script("sleep 1000")).unwrap();
    pod.stop().unwrap();
    let refused = pod.create(&script("true")).map(|container| container.id).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains(&pod.id), "{refused:?}");
    assert_eq!(created.start().unwrap_err().code(), Code::FailedPrecondition);
    pod.end();
}

#[test]
fn removing_a_sandbox_removes_what_runs_in_it() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let ids: Vec<_> = (0..3).map(|_| pod.start(&script("sleep 1000")).id).chain([pod.id.clone()]).collect();
    pod.remove().unwrap();
    node.assert_gone(&ids);
    pod.remove().unwrap();
}

#[test]
fn other_runtimes_are_handlers() {
    let node = node_or_skip!(Node::shared());
    tests::require!(tests::host::find("runc").is_some(), "no runc");
    let config = crate::client::pod_config(node);
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "runc".into() };
    let id = node.cri().run_pod_sandbox(request).unwrap().pod_sandbox_id;
    let pod = Pod { node, id, config };
    assert_eq!(pod.status().unwrap().runtime_handler, "runc");
    assert_eq!(pod.output(&script("echo by runc")), ["by runc"]);
    let container = pod.start(&script("trap 'exit 4' TERM; echo up; while :; do sleep 0.05; done"));
    container.wait_for_line("up");
    assert_eq!(container.sh("echo in it"), "in it");
    container.stop(10).unwrap();
    assert_eq!(container.status().exit_code, 4);
    let broken = pod.create(&command(&["/no/such/program"])).unwrap();
    assert!(broken.start().unwrap_err().message().contains("no such file"));
    assert_eq!(broken.status().reason, "StartError");
    pod.end();
}
