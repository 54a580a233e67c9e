//! CheckpointPod and RestorePod.

use super::*;

/// As [`COUNT`], but the number is in the pod's shared memory, and the script ends where it is not.
const SHARED: &str = "echo 0 >/dev/shm/n; trap 'echo bye; exit 5' TERM
    while :; do read i </dev/shm/n || exit 9; i=$((i+1)); echo $i >/dev/shm/n; echo $i; sleep 0.02; done";

/// A new, empty folder.
fn folder(node: &Node) -> PathBuf {
    let path = node.dir().join(format!("pod-checkpoint-{}", unique()));
    fs::create_dir(&path).unwrap();
    path
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

impl Pod<'_> {
    fn checkpoint(&self, containers: &[&Container], to: &Path) -> Result<(), Status> {
        let request = v1::CheckpointPodRequest {
            pod_sandbox_id: self.id.clone(),
            output_path: to.display().to_string(),
            container_ids: containers.iter().map(|container| container.id.clone()).collect(),
            ..Default::default()
        };
        self.node.cri().checkpoint_pod(request).map(drop)
    }
}

/// The request that restores containers in a new pod.
fn pod_request(node: &Node, from: &Path, containers: &[&v1::ContainerConfig]) -> v1::RestorePodRequest {
    v1::RestorePodRequest {
        checkpoint_path: from.display().to_string(),
        config: Some(crate::client::pod_config(node)),
        container_configs: containers.iter().map(|config| (*config).clone()).collect(),
        ..Default::default()
    }
}

/// The pod and the containers of an answer, by the names of these.
fn restored<'a>(node: &'a Node, request: &v1::RestorePodRequest, answer: v1::RestorePodResponse) -> (Pod<'a>, Vec<Container<'a>>) {
    let pod = Pod { node, id: answer.pod_sandbox_id, config: request.config.clone().unwrap() };
    let ids = request.container_configs.iter().map(|config| {
        let name = &config.metadata.as_ref().unwrap().name;
        let found: Vec<_> = answer.restored_containers.iter().filter(|container| container.name == *name).collect();
        assert_eq!(found.len(), 1, "{name}: {:?}", answer.restored_containers);
        Container { node, id: found[0].container_id.clone() }
    });
    let containers = ids.collect();
    assert_eq!(answer.restored_containers.len(), request.container_configs.len());
    (pod, containers)
}

#[test]
fn containers_saved_at_one_moment_come_back_in_a_new_pod() {
    let node = criu_or_skip!(Node::shared());
    let pod = node.pod();
    let (one, two, other) = (script(SHARED), script(COUNT), script(COUNT));
    let (first, second, third) = (pod.start(&one), pod.start(&two), pod.start(&other));
    first.counts_beyond(5);
    second.counts_beyond(5);
    assert_eq!(second.sh("echo written >/file; mknod /dev/shm/fifo p; echo kept >/dev/shm/kept"), "");
    let to = folder(node);
    pod.checkpoint(&[&second, &first], &to).unwrap_or_else(|status| panic!("{status:?}\n{}", node.log_tail()));
    let saved = (first.count(), second.count());
    for container in [&first, &second, &third] {
        container.counts_beyond(container.count());
        container.assert_no_rest();
    }
    assert_eq!(names(&to), ["checkpoint"]);
    let checkpoint = to.join("checkpoint");
    let mut wanted = [format!("{}.tar", first.id), format!("{}.tar", second.id), "pod.json".into(), "shm.tar".into()];
    wanted.sort();
    assert_eq!(names(&checkpoint), wanted);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&checkpoint), mode(&checkpoint.join("shm.tar")), mode(&checkpoint.join(&wanted[0]))), (0o700, 0o600, 0o600));
    // What came later is not in it.
    assert_eq!(second.sh("echo later >/file; rm /dev/shm/kept"), "");
    pod.end();
    let before = run("find", &[to.to_str().unwrap(), "-printf", "%P %s %m %T@\n"]);

    let request = pod_request(node, &to, &[&one, &two]);
    let answer = node.cri().restore_pod(request.clone()).unwrap_or_else(|status| panic!("{status:?}\n{}", node.log_tail()));
    let again = node.cri().restore_pod(request.clone()).unwrap();
    assert_eq!(again, answer, "the same request finds the same pod");
    let (new, containers) = restored(node, &request, answer);
    assert!(new.is_ready());
    for container in &containers {
        let status = container.status();
        assert_eq!((status.state(), status.started_at), (ContainerCreated, 0));
        assert_eq!(status.annotations["restored"], "true");
        assert_eq!(status.image.unwrap().image, crate::image::BASE);
        container.start().unwrap_or_else(|status| panic!("{status:?}\n{}", node.log_tail()));
    }
    // One of them counts in the memory that they share: with another moment's it would miss or repeat a number.
    containers[0].counts_beyond(saved.0 + 5);
    containers[1].counts_beyond(saved.1 + 5);
    assert_eq!(containers[1].sh("cat /file /dev/shm/kept; test -p /dev/shm/fifo && echo fifo"), "written\nkept\nfifo");
    let taken = |request: v1::RestorePodRequest| {
        let status = node.cri().restore_pod(request).unwrap_err();
        assert!(status.code() == Code::AlreadyExists && status.message().contains("is not as this checkpoint left it"), "{status:?}");
    };
    taken(request);
    for container in containers {
        container.stop(20).unwrap();
        assert_eq!(container.status().exit_code, 5);
    }
    new.end();
    // A pod with the same names that nothing was restored into.
    let plain = node.pod();
    plain.create(&one).unwrap();
    plain.create(&two).unwrap();
    taken(v1::RestorePodRequest { config: Some(plain.config.clone()), ..pod_request(node, &to, &[&one, &two]) });
    assert_eq!(node.containers_of(&plain.id).len(), 2);
    plain.end();
    assert_eq!(run("find", &[to.to_str().unwrap(), "-printf", "%P %s %m %T@\n"]), before, "the checkpoint was changed");
    fs::remove_dir_all(to).unwrap();
}

#[test]
fn what_is_wrong_with_a_request_for_a_checkpoint_is_said() {
    let node = criu_or_skip!(Node::shared());
    let (pod, elsewhere) = (node.pod(), node.pod());
    let (first, other) = (pod.start(&script(COUNT)), elsewhere.start(&script("sleep 1000")));
    let (created, ended) = (pod.create(&script("sleep 1000")).unwrap(), pod.start(&script("true")));
    ended.ended();
    let to = folder(node);
    fs::write(node.dir().join("file"), "").unwrap();
    let good = v1::CheckpointPodRequest {
        pod_sandbox_id: pod.id.clone(),
        output_path: to.display().to_string(),
        container_ids: vec![first.id.clone()],
        ..Default::default()
    };
    type Change<'a> = &'a dyn Fn(&mut v1::CheckpointPodRequest);
    let ids = |ids: &[&Container]| ids.iter().map(|container| container.id.clone()).collect::<Vec<_>>();
    let cases: &[(Change, Code, &str)] = &[
        (&|r| r.pod_sandbox_id = "none".into(), Code::NotFound, "none"),
        (&|r| r.container_ids = vec!["none".into()], Code::NotFound, "none"),
        (&|r| r.container_ids.clear(), Code::InvalidArgument, "container_ids: is empty"),
        (&|r| r.container_ids = ids(&[&first, &first]), Code::InvalidArgument, "is named twice"),
        (&|r| r.container_ids = ids(&[&first, &other]), Code::InvalidArgument, "is not of pod sandbox"),
        (&|r| r.container_ids = ids(&[&first, &created]), Code::FailedPrecondition, "is created, not running"),
        (&|r| r.container_ids = ids(&[&first, &ended]), Code::FailedPrecondition, "is exited, not running"),
        (&|r| r.output_path = "some/folder".into(), Code::InvalidArgument, "absolute path of an empty folder"),
        (&|r| r.output_path.push_str("/missing"), Code::InvalidArgument, "give an empty folder"),
        (&|r| r.output_path = node.dir().display().to_string(), Code::InvalidArgument, "is not empty"),
        (&|r| r.output_path = node.dir().join("file").display().to_string(), Code::InvalidArgument, "give an empty folder"),
        (&|r| drop(r.options.insert("speed".into(), "high".into())), Code::InvalidArgument, "options: \"speed\" is not known"),
    ];
    for (change, code, words) in cases {
        let mut request = good.clone();
        change(&mut request);
        let status = node.cri().checkpoint_pod(request).unwrap_err();
        assert!(status.code() == *code && status.message().contains(words), "{words}: {status:?}");
        assert!(names(&to).is_empty());
    }
    // More than can be given back.
    assert_eq!(first.sh("truncate -s 1G /dev/shm/holes"), "");
    let status = pod.checkpoint(&[&first], &to).unwrap_err();
    assert!(status.message().contains("larger than it is"), "{status:?}");
    assert_eq!(first.sh("rm /dev/shm/holes"), "");
    first.counts_beyond(first.count());
    assert!(names(&to).is_empty());
    // One that cannot be frozen: the others go on, and nothing is kept.
    let frozen = pod.start(&script(COUNT));
    frozen.counts_beyond(1);
    let rrun = format!("{} --root {}", crate::node::program("RRUN", "rrun").display(), node.dir().join("run/runtimes/rrun").display());
    let pause = |command: &str| node.sh(&format!("{rrun} {command} {}", frozen.id));
    pause("pause");
    let status = pod.checkpoint(&[&first, &frozen], &to).unwrap_err();
    assert!(status.message().contains("paused"), "{status:?}");
    pause("resume");
    for container in [&first, &frozen] {
        container.counts_beyond(container.count());
        container.assert_no_rest();
    }
    assert!(names(&to).is_empty());
    pod.checkpoint(&[&first], &to).unwrap();
    pod.end();
    elsewhere.end();
    fs::remove_dir_all(to).unwrap();
}

#[test]
fn a_restore_that_fails_leaves_nothing() {
    let node = criu_or_skip!(Node::new(Network::Cheap));
    let pod = node.pod();
    let (mut one, two) = (script(COUNT), script(COUNT));
    one.envs = vec![v1::KeyValue { key: "A".into(), value: "1".into() }];
    let (first, second) = (pod.start(&one), pod.start(&two));
    first.counts_beyond(1);
    second.counts_beyond(1);
    let to = folder(&node);
    pod.checkpoint(&[&first, &second], &to).unwrap();
    let archive = to.join("checkpoint").join(format!("{}.tar", second.id));
    pod.end();
    let refused = |what: &str, code: Code, words: &str, request: v1::RestorePodRequest| {
        let status = node.cri().restore_pod(request).unwrap_err();
        assert!(status.code() == code && status.message().contains(words), "{what}: {status:?}");
        node.assert_empty();
    };
    type Change<'a> = &'a dyn Fn(&mut v1::RestorePodRequest);
    let maps = vec![v1::IdMapping { host_id: 2_000_000, container_id: 0, length: 65536 }];
    let user = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: maps.clone(), gids: maps };
    let cases: &[(Change, Code, &str)] = &[
        (&|r| r.config = None, Code::InvalidArgument, "config is missing"),
        (&|r| r.config.as_mut().unwrap().metadata.as_mut().unwrap().uid.clear(), Code::InvalidArgument, "config.metadata.uid"),
        (&|r| r.checkpoint_path = "a/b".into(), Code::InvalidArgument, "absolute path"),
        (&|r| r.checkpoint_path.push_str("/missing"), Code::InvalidArgument, "not a pod's checkpoint"),
        (&|r| r.checkpoint_path = node.dir().display().to_string(), Code::InvalidArgument, "not a pod's checkpoint"),
        (&|r| r.runtime_handler = "none".into(), Code::InvalidArgument, "runtime_handler \"none\" is not configured"),
        (&|r| drop(r.options.insert("a".into(), "b".into())), Code::InvalidArgument, "options: \"a\" is not known"),
        (&|r| r.container_configs.clear(), Code::InvalidArgument, "container_configs: is empty"),
        (&|r| drop(r.container_configs.pop()), Code::InvalidArgument, "which the checkpoint has"),
        (&|r| r.container_configs.push(script(COUNT)), Code::InvalidArgument, "the checkpoint has no container"),
        (&|r| r.container_configs.push(one.clone()), Code::InvalidArgument, "two have the name"),
        (&|r| r.container_configs[1].metadata = None, Code::InvalidArgument, "[1].metadata.name is empty"),
        (&|r| r.container_configs[1].image = None, Code::InvalidArgument, "[1].image.image is empty"),
        // These are found when the first container has been made.
        (
            &|r| r.container_configs[1].command = vec!["true".into()],
            Code::FailedPrecondition,
            "command and args: the checkpoint's process has",
        ),
        (&|r| r.container_configs[1].working_dir = "/tmp".into(), Code::FailedPrecondition, "working_dir: the checkpoint's process has"),
        (&|r| r.container_configs[1].envs = one.envs.clone(), Code::FailedPrecondition, "has no A=1"),
        (&|r| r.container_configs[1].tty = true, Code::InvalidArgument, "has no terminal"),
        (
            &|r| security(&mut r.container_configs[1]).run_as_user = Some(v1::Int64Value { value: 7 }),
            Code::FailedPrecondition,
            "user and groups: the checkpoint's process has",
        ),
        (
            &|r| {
                namespaces(r.config.as_mut().unwrap()).network = v1::NamespaceMode::Pod.into();
                namespaces(r.config.as_mut().unwrap()).userns_options = Some(user.clone());
                for config in &mut r.container_configs {
                    security(config).namespace_options.get_or_insert_default().userns_options = Some(user.clone());
                }
            },
            Code::FailedPrecondition,
            "CRIU cannot restore into one",
        ),
    ];
    for (change, code, words) in cases {
        let mut request = pod_request(&node, &to, &[&one, &two]);
        change(&mut request);
        refused(words, *code, words, request);
    }
    // The folder is somebody's who may be wrong, or evil.
    let (json, request) = (to.join("checkpoint/pod.json"), || pod_request(&node, &to, &[&one, &two]));
    let text = fs::read_to_string(&json).unwrap();
    let name = archive.file_name().unwrap().to_str().unwrap();
    for (from, into, words) in [
        ("\"version\": 1", "\"version\": 2", "version 2, this rrun-cri reads 1"),
        (name, "../pod.json", "the archive of"),
        (name, "missing.tar", "missing.tar, of container"),
        ("\"version\": 1", "version", "pod.json"),
    ] {
        assert!(text.contains(from), "{text}");
        fs::write(&json, text.replace(from, into)).unwrap();
        refused(into, Code::InvalidArgument, words, request());
    }
    fs::write(&json, &text).unwrap();
    let moved = to.join("moved");
    fs::rename(&archive, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &archive).unwrap();
    refused("a link", Code::InvalidArgument, "open", request());
    fs::remove_file(&archive).unwrap();
    fs::write(&archive, "no archive").unwrap();
    refused("no archive", Code::InvalidArgument, "not a checkpoint that can be restored", request());
    fs::remove_file(&archive).unwrap();
    fs::rename(&moved, &archive).unwrap();
    let request = request();
    let answer = node.cri().restore_pod(request.clone()).unwrap();
    let (pod, containers) = restored(&node, &request, answer);
    containers.iter().for_each(|container| container.start().unwrap());
    containers.iter().for_each(|container| assert!(container.counts_beyond(container.count()) > 1));
    pod.end();
    node.assert_empty();
}

#[test]
fn a_deadline_that_passes_leaves_no_frozen_pod() {
    let (node, gate) = criu_or_skip!(slow_node());
    let pod = slow_pod(&node);
    let containers = [pod.start(&script(COUNT)), pod.start(&script(COUNT))];
    containers.iter().for_each(|container| assert!(container.counts_beyond(1) > 1));
    let to = folder(&node);
    let mut request = tonic::Request::new(v1::CheckpointPodRequest {
        pod_sandbox_id: pod.id.clone(),
        output_path: to.display().to_string(),
        container_ids: containers.iter().map(|container| container.id.clone()).collect(),
        ..Default::default()
    });
    request.set_timeout(std::time::Duration::from_millis(500));
    let mut client = node.cri().runtime;
    let status = crate::client::wait(async move { client.checkpoint_pod(request).await }).unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    at_the_gate(&node, " checkpoint ");
    // Open for as many as wait, and for those who come.
    let mut gate_held = fs::File::options().read(true).write(true).open(&gate).unwrap();
    std::io::Write::write_all(&mut gate_held, &b"go\n".repeat(100)).unwrap();
    for container in &containers {
        container.assert_no_rest();
        container.counts_beyond(container.count());
    }
    assert!(wait_until(20, || names(&to).is_empty()), "{:?}", names(&to));
    pod.end();
    node.assert_empty();
    fs::remove_dir_all(gate.parent().unwrap()).unwrap();
}

#[test]
fn the_daemon_dies_at_every_step_of_a_pods_checkpoint() {
    let node = criu_or_skip!(Node::new(Network::Cheap));
    let notes = node.dir().join("steps");
    let pod = node.pod();
    let containers = [pod.start(&script(COUNT)), pod.start(&script(COUNT))];
    let save = || {
        let to = folder(&node);
        let saved = pod.checkpoint(&[&containers[0], &containers[1]], &to);
        (to, saved)
    };
    node.restart_daemon_with(&[("RRUN_CRI_STEPS", notes.to_str().unwrap())]);
    save().1.unwrap();
    let text = fs::read_to_string(&notes).unwrap();
    let mut steps: Vec<_> = text.lines().collect();
    steps.sort_unstable();
    steps.dedup();
    assert!(steps.contains(&"checkpoint frozen") && steps.contains(&"checkpoint written") && steps.len() >= 8, "{steps:?}");
    for step in steps {
        node.restart_daemon_with(&[("RRUN_CRI_DIE_AT", step)]);
        let (to, saved) = save();
        assert!(saved.is_err() && node.daemon_has_ended(), "{step}: {saved:?}");
        node.wait_for_daemon();
        node.start_daemon(&[]);
        for container in &containers {
            container.assert_no_rest();
            container.counts_beyond(container.count());
        }
        // All of it or nothing.
        assert!(wait_until(20, || names(&to).is_empty() || names(&to) == ["checkpoint"]), "{step}: {:?}", names(&to));
    }
    save().1.unwrap();
    // The machine goes with it.
    node.restart_daemon_with(&[("RRUN_CRI_DIE_AT", "checkpoint written")]);
    let (to, saved) = save();
    assert!(saved.is_err() && names(&to) != ["checkpoint"] && !names(&to).is_empty(), "{saved:?}: {:?}", names(&to));
    node.reboot();
    containers.iter().for_each(Container::assert_no_rest);
    assert!(names(&to).is_empty(), "{:?}", names(&to));
    pod.end();
    node.assert_empty();
}

#[test]
fn the_daemon_dies_at_every_step_of_a_restore() {
    let node = criu_or_skip!(Node::new(Network::Cheap));
    let notes = node.dir().join("steps");
    let pod = node.pod();
    let configs = [script(COUNT), script(COUNT)];
    let containers = [pod.start(&configs[0]), pod.start(&configs[1])];
    containers.iter().for_each(|container| assert!(container.counts_beyond(1) > 1));
    let to = folder(&node);
    pod.checkpoint(&[&containers[0], &containers[1]], &to).unwrap();
    pod.end();
    let request = || pod_request(&node, &to, &[&configs[0], &configs[1]]);
    node.restart_daemon_with(&[("RRUN_CRI_STEPS", notes.to_str().unwrap())]);
    let all = request();
    let answer = node.cri().restore_pod(all.clone()).unwrap();
    let text = fs::read_to_string(&notes).unwrap();
    restored(&node, &all, answer).0.end();
    let mut steps: Vec<_> = text.lines().collect();
    steps.sort_unstable();
    steps.dedup();
    assert!(steps.iter().any(|step| step.contains("container prepared")) && steps.len() >= 10, "{steps:?}");
    for step in steps {
        node.restart_daemon_with(&[("RRUN_CRI_DIE_AT", step)]);
        let request = request();
        let failed = node.cri().restore_pod(request.clone());
        assert!(failed.is_err() && node.daemon_has_ended(), "{step}: {failed:?}");
        node.wait_for_daemon();
        node.start_daemon(&[]);
        // It was removed, or all of it is there.
        node.cri().restore_pod(request.clone()).unwrap_or_else(|status| panic!("{step}: {status:?}"));
        for id in node.cri().stream_pods(None).into_iter().map(|pod| pod.id) {
            Pod { node: &node, id, config: request.config.clone().unwrap() }.end();
        }
        node.assert_empty();
    }
}
