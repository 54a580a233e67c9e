//! Pod sandboxes: their states, names, lists, files, namespaces and events.

use std::collections::BTreeMap;

use rrun_proto::v1;
use tonic::Code;

use crate::client::{namespaces, pod_config, script, security};
use crate::node::Node;
use crate::node_or_skip;

#[test]
fn a_pod_lives_and_goes() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod_with(|config| {
        config.labels = BTreeMap::from([("app".into(), "x".into())]);
        config.annotations = BTreeMap::from([("note".into(), "y".into())]);
    });
    assert!(pod.id.len() == 64 && pod.id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", pod.id);
    let status = pod.status().unwrap();
    assert_eq!((status.id.as_str(), status.state()), (pod.id.as_str(), v1::PodSandboxState::SandboxReady));
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!((&status.labels, &status.annotations), (&pod.config.labels, &pod.config.annotations));
    assert!(status.created_at > 1_700_000_000_000_000_000, "{}", status.created_at);
    assert_eq!(status.linux.unwrap().namespaces.unwrap().options.unwrap(), namespaces(&mut pod.config.clone()).clone());
    assert_eq!(status.network.unwrap().ip, "", "a pod of the host's network has no address of its own");
    pod.stop().unwrap();
    assert!(!pod.is_ready());
    pod.stop().unwrap();
    pod.remove().unwrap();
    assert_eq!(pod.status().unwrap_err().code(), Code::NotFound);
    pod.end();
}

#[test]
fn unknown_ids_are_found_gone() {
    let node = node_or_skip!(Node::shared());
    let (cri, id) = (node.cri(), "f".repeat(64));
    cri.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).unwrap();
    cri.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: id.clone() }).unwrap();
    cri.stop_container(v1::StopContainerRequest { container_id: id.clone(), timeout: 0 }).unwrap();
    cri.remove_container(v1::RemoveContainerRequest { container_id: id.clone() }).unwrap();
    let not_found = [
        cri.pod_sandbox_status(v1::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false }).unwrap_err(),
        cri.container_status(v1::ContainerStatusRequest { container_id: id.clone(), verbose: false }).unwrap_err(),
        cri.start_container(v1::StartContainerRequest { container_id: id.clone() }).unwrap_err(),
        cri.create_container(v1::CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(script("true")),
            sandbox_config: Some(pod_config(node)),
        })
        .unwrap_err(),
        cri.exec_sync(v1::ExecSyncRequest { container_id: id.clone(), cmd: vec!["true".into()], timeout: 1 }).unwrap_err(),
        cri.exec(v1::ExecRequest { container_id: id.clone(), cmd: vec!["true".into()], stdout: true, ..Default::default() }).unwrap_err(),
        cri.attach(v1::AttachRequest { container_id: id.clone(), stdout: true, ..Default::default() }).unwrap_err(),
        cri.port_forward(v1::PortForwardRequest { pod_sandbox_id: id.clone(), port: vec![80] }).unwrap_err(),
        cri.reopen_container_log(v1::ReopenContainerLogRequest { container_id: id.clone() }).unwrap_err(),
        cri.update_container_resources(v1::UpdateContainerResourcesRequest { container_id: id.clone(), ..Default::default() }).unwrap_err(),
        cri.update_pod_sandbox_resources(v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id: id.clone(), ..Default::default() })
            .unwrap_err(),
    ];
    for status in not_found {
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert!(status.message().contains(&id), "{status:?}");
    }
    // No id at all is not any object's.
    assert_eq!(
        cri.pod_sandbox_status(v1::PodSandboxStatusRequest::default()).unwrap_err().code(),
        Code::NotFound,
        "an empty id must not match a prefix"
    );
}

#[test]
fn a_repeated_run_joins_or_finds_the_first() {
    let node = node_or_skip!(Node::shared());
    let config = pod_config(node);
    let ids: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| node.run_pod(&config).unwrap())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(node.run_pod(&config).unwrap(), ids[0], "and once more, when it is there");
    let mut next = config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    let second = node.pod_with(|config| *config = next);
    assert_ne!(second.id, ids[0], "the attempt is part of the name");
    second.end();
    crate::client::Pod { node, id: ids[0].clone(), config }.end();
}

#[test]
fn lists_filter_by_all_that_is_asked() {
    let node = node_or_skip!(Node::shared());
    let tag = crate::client::unique().to_string();
    let labels = |role: &str| BTreeMap::from([("tag".to_owned(), tag.clone()), ("role".to_owned(), role.to_owned())]);
    let pods: Vec<_> = ["a", "b", "b"].into_iter().map(|role| node.pod_with(|config| config.labels = labels(role))).collect();
    pods[2].stop().unwrap();
    let of = |filter: v1::PodSandboxFilter| {
        let list = node.cri().list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter.clone()) }).unwrap().items;
        assert_eq!(node.cri().stream_pods(Some(filter)), list, "the streaming list tells the same");
        let mut ids: Vec<_> = list.into_iter().map(|pod| pod.id).collect();
        ids.sort();
        ids
    };
    let ids = |which: &[usize]| {
        let mut ids: Vec<_> = which.iter().map(|index| pods[*index].id.clone()).collect();
        ids.sort();
        ids
    };
    let tagged = v1::PodSandboxFilter { label_selector: BTreeMap::from([("tag".to_owned(), tag.clone())]), ..Default::default() };
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
    assert_eq!(of(tagged.clone()), ids(&[0, 1, 2]));
    assert_eq!(of(v1::PodSandboxFilter { label_selector: labels("b"), ..Default::default() }), ids(&[1, 2]));
    assert_eq!(of(v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxReady), ..tagged.clone() }), ids(&[0, 1]));
    assert_eq!(of(v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxNotready), ..tagged.clone() }), ids(&[2]));
    assert_eq!(of(v1::PodSandboxFilter { id: pods[1].id[..13].to_owned(), ..tagged.clone() }), ids(&[1]), "a prefix of an id");
    assert_eq!(of(v1::PodSandboxFilter { id: pods[0].id.clone(), label_selector: labels("b"), ..Default::default() }), ids(&[]));
    pods.into_iter().for_each(crate::client::Pod::end);
}

#[test]
fn containers_see_the_pods_files() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod_with(|config| {
        namespaces(config).network = v1::NamespaceMode::Pod.into();
        config.hostname = "host-of-the-pod".into();
        config.dns_config = Some(v1::DnsConfig {
            servers: vec!["10.10.10.10".into()],
            searches: vec!["a.example".into(), "b.example".into()],
            options: vec!["ndots:8".into()],
        });
    });
    let seen = pod.output(&script("hostname; cat /etc/hostname; cat /etc/resolv.conf; ls -d /dev/shm; df -k /dev/shm | tail -n 1"));
    assert_eq!(seen[..2], ["host-of-the-pod", "host-of-the-pod"]);
    assert_eq!(seen[2..5], ["search a.example b.example", "nameserver 10.10.10.10", "options ndots:8"]);
    assert!(seen[6].split_whitespace().any(|word| word == "65536"), "64 MiB of shared memory: {seen:?}");
    // Shared memory is the pod's, hosts is the node's unless kubelet mounts its own.
    pod.output(&script("echo from the first >/dev/shm/file; chmod 666 /dev/shm/file"));
    assert_eq!(pod.output(&script("cat /dev/shm/file")), ["from the first"]);
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap();
    assert_eq!(pod.output(&script("cat /etc/hosts")).join("\n"), hosts.trim_end().replace("\n\n", "\n"));
    pod.end();
}

#[test]
fn pid_namespaces_are_the_containers_the_pods_the_nodes_or_anothers() {
    let node = node_or_skip!(Node::shared());
    // Its own.
    let pod = node.pod();
    assert_eq!(pod.output(&script("echo $$")), ["1"]);
    // Another container's.
    let target = pod.start(&script("trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"));
    target.wait_for_line("up");
    let mut config = script("tr '\\0' ' ' </proc/1/cmdline; echo; echo $$");
    let options = security(&mut config).namespace_options.get_or_insert_default();
    (options.pid, options.target_id) = (v1::NamespaceMode::Target.into(), target.id.clone());
    let seen = pod.output(&config);
    assert!(seen[0].contains("trap"), "process 1 is the target's: {seen:?}");
    assert_ne!(seen[1], "1");
    pod.end();
    // The pod's: process 1 is nobody's application.
    let pod = node.pod_with(|config| namespaces(config).pid = v1::NamespaceMode::Pod.into());
    let mut config = script("echo $$; sleep 1000 & echo $!; cat /proc/1/comm; echo up; wait");
    security(&mut config).namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Pod.into();
    let first = pod.start(&config);
    first.wait_for_line("up");
    let lines: Vec<_> = first.log().into_iter().map(|line| line.text).collect();
    assert_ne!(lines[0], "1");
    assert_eq!(lines[2], "pod-init");
    let mut other = script(&format!("cat /proc/{}/comm", lines[0]));
    security(&mut other).namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Pod.into();
    assert_eq!(pod.output(&other), ["sh"], "containers see each other");
    // What a container leaves in the shared namespace ends with it.
    first.stop(0).unwrap();
    let mut last = script(&format!("sleep 0.3; [ ! -e /proc/{} ] && echo gone", lines[1]));
    security(&mut last).namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Pod.into();
    assert_eq!(pod.output(&last), ["gone"]);
    pod.end();
    // The node's.
    let pod = node.pod_with(|config| namespaces(config).pid = v1::NamespaceMode::Node.into());
    let mut config = script("tr '\\0' ' ' </proc/1/cmdline");
    security(&mut config).namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Node.into();
    let container = pod.start(&config);
    container.ended();
    let text = String::from_utf8(std::fs::read(container.log_path()).unwrap()).unwrap();
    assert!(text.contains("init"), "process 1 is the node's: {text}");
    pod.end();
}

#[test]
fn ipc_and_uts_namespaces() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod_with(|config| namespaces(config).network = v1::NamespaceMode::Pod.into());
    let spaces = || script("for kind in ipc uts net; do readlink /proc/self/ns/$kind; done");
    let (one, two) = (pod.output(&spaces()), pod.output(&spaces()));
    assert_eq!(one, two, "containers of a pod share them");
    let of_node: Vec<_> = ["ipc", "uts", "net"].iter().map(|kind| tests::host::namespace(&node.init().to_string(), kind)).collect();
    assert!(one.iter().all(|space| !of_node.contains(space)), "{one:?} {of_node:?}");
    pod.end();
    let pod = node.pod_with(|config| namespaces(config).ipc = v1::NamespaceMode::Node.into());
    let mut config = spaces();
    let options = security(&mut config).namespace_options.get_or_insert_default();
    (options.ipc, options.network) = (v1::NamespaceMode::Node.into(), v1::NamespaceMode::Node.into());
    options.pid = v1::NamespaceMode::Container.into();
    assert_eq!(pod.output(&config), of_node, "all three are the node's");
    pod.end();
}

#[test]
fn sysctls_are_the_pods() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod_with(|config| {
        namespaces(config).network = v1::NamespaceMode::Pod.into();
        config.linux.as_mut().unwrap().sysctls =
            BTreeMap::from([("kernel.shm_rmid_forced".into(), "1".into()), ("net.ipv4.ip_local_port_range".into(), "2000 3000".into())]);
    });
    let keys = "kernel/shm_rmid_forced net/ipv4/ip_local_port_range net/ipv4/ip_unprivileged_port_start";
    let seen = pod.output(&script(&format!("cd /proc/sys; for key in {keys}; do cat $key; done")));
    assert_eq!(seen, ["1", "2000\t3000", "0"]);
    pod.end();
    // One that is not a namespace's own is refused, and says so.
    let refused = |name: &str| {
        let mut config = pod_config(node);
        config.linux.as_mut().unwrap().sysctls = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
        node.run_pod(&config).unwrap_err()
    };
    for name in ["vm.swappiness", "kernel.panic", "net.ipv4.ip_forward", "../../kernel/panic"] {
        let status = refused(name);
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
        assert!(status.message().contains(name), "{status:?}");
    }
}

#[test]
fn events_come_in_order_with_full_statuses() {
    let node = node_or_skip!(Node::shared());
    let events = node.cri().events();
    let pod = node.pod();
    let container = pod.start(&script("exit 3"));
    container.ended();
    let (id, pod_id) = (container.id.clone(), pod.id.clone());
    pod.end();
    let mut of_container = Vec::new();
    let mut of_pod = Vec::new();
    while let Ok(event) = events.recv_timeout(std::time::Duration::from_secs(5)) {
        if event.container_id == id {
            let status = event.containers_statuses.iter().find(|status| status.id == id);
            let sandbox = event.pod_sandbox_status.as_ref().expect("the status of the sandbox");
            assert_eq!(sandbox.id, pod_id);
            of_container.push((event.container_event_type(), status.map(|status| (status.state(), status.exit_code))));
        } else if event.container_id == pod_id {
            of_pod.push(event.container_event_type());
            if of_pod.last() == Some(&v1::ContainerEventType::ContainerDeletedEvent) {
                break;
            }
        }
    }
    use v1::ContainerEventType::{ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent};
    let kinds: Vec<_> = of_container.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent]);
    assert_eq!(of_container[2].1, Some((v1::ContainerState::ContainerExited, 3)));
    assert_eq!(of_pod, [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent]);
}

#[test]
fn a_cancelled_run_is_finished_and_found_by_the_retry() {
    let node = node_or_skip!(Node::shared());
    let config = pod_config(node);
    let mut client = node.cri().runtime;
    let mut request = tonic::Request::new(v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() });
    request.set_timeout(std::time::Duration::from_millis(1));
    let _ = crate::client::wait(async move { client.run_pod_sandbox(request).await });
    let id = node.run_pod(&config).unwrap();
    let all = node.cri().list_pod_sandbox(v1::ListPodSandboxRequest::default()).unwrap().items;
    assert_eq!(all.iter().filter(|pod| pod.metadata == config.metadata).count(), 1, "one sandbox, however often it is asked for");
    crate::client::Pod { node, id, config }.end();
}

#[test]
fn the_daemon_tells_who_it_is() {
    let node = node_or_skip!(Node::shared());
    let cri = node.cri();
    let version = cri.version(v1::VersionRequest::default()).unwrap();
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.version.is_empty() && !version.runtime_name.is_empty() && !version.runtime_version.is_empty(), "{version:?}");
    let driver = cri.runtime_config(v1::RuntimeConfigRequest {}).unwrap().linux.unwrap().cgroup_driver();
    assert_eq!(driver, v1::CgroupDriver::Cgroupfs);
    let status = cri.status(v1::StatusRequest { verbose: true }).unwrap();
    let conditions = status.status.unwrap().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|condition| condition.r#type == name);
        assert!(condition.is_some_and(|condition| condition.status), "{name}: {conditions:?}");
    }
    let handlers: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert!(handlers.contains(&"") && handlers.contains(&"rrun"), "{handlers:?}");
    let config: serde_json::Value = serde_json::from_str(&status.info["config"]).unwrap();
    assert_eq!(config["stateDir"].as_str(), node.dir().join("run").to_str(), "{config}");
}

#[test]
fn a_pods_new_size_is_kept() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let resources = v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    let request = v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.id.clone(), resources: Some(resources), overhead: None };
    node.cri().update_pod_sandbox_resources(request.clone()).unwrap();
    pod.stop().unwrap();
    assert_eq!(node.cri().update_pod_sandbox_resources(request).unwrap_err().code(), Code::FailedPrecondition);
    pod.end();
}
