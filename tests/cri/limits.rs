//! Cgroups: limits, their change, and what the kernel does about memory.

use std::fs;

use rrun_proto::v1;
use tonic::Code;

use crate::client::{Container, resources, script};
use crate::node::Node;
use crate::node_or_skip;

/// A limit of a container as the kernel has it: the file of cgroup version 1, and that of version 2.
#[track_caller]
fn limit(container: &Container, one: (&str, &str), two: &str) -> String {
    let (controller, file) = if tests::host::cgroup_version() == 2 { ("", two) } else { one };
    let folder = container.node.cgroup(&container.id, controller).expect("a cgroup");
    fs::read_to_string(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}")).trim().to_owned()
}

#[test]
fn limits_are_set_changed_and_reported() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = script("sleep 1000");
    *resources(&mut config) = v1::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    };
    let container = pod.create(&config).unwrap();
    let change = |resources: v1::LinuxContainerResources| {
        let request =
            v1::UpdateContainerResourcesRequest { container_id: container.id.clone(), linux: Some(resources), ..Default::default() };
        node.cri().update_container_resources(request)
    };
    let reported = || container.status().resources.unwrap().linux.unwrap();
    assert_eq!(reported(), resources(&mut config).clone());
    // Before it is started.
    change(v1::LinuxContainerResources { memory_limit_in_bytes: 48 << 20, ..Default::default() }).unwrap();
    assert_eq!((reported().memory_limit_in_bytes, reported().cpu_quota), (48 << 20, 50_000), "what is not named stays");
    container.start().unwrap();
    let memory = || limit(&container, ("memory", "memory.limit_in_bytes"), "memory.max");
    assert_eq!(memory(), (48 << 20).to_string());
    let quota = || limit(&container, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert!(quota().starts_with("50000"), "{}", quota());
    // While it runs.
    change(v1::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, cpu_quota: 25_000, cpu_period: 100_000, ..Default::default() })
        .unwrap();
    assert_eq!(memory(), (96 << 20).to_string());
    assert!(quota().starts_with("25000"), "{}", quota());
    assert_eq!((reported().memory_limit_in_bytes, reported().cpu_quota, reported().cpu_shares), (96 << 20, 25_000, 512));
    // All or nothing.
    let before = reported();
    let wrong = change(v1::LinuxContainerResources { cpu_quota: 30_000, cpuset_cpus: "9000".into(), ..Default::default() }).unwrap_err();
    assert!(!wrong.message().is_empty());
    assert_eq!(reported(), before);
    assert!(quota().starts_with("25000"), "{}", quota());
    container.stop(0).unwrap();
    let over = change(v1::LinuxContainerResources { cpu_quota: 30_000, ..Default::default() }).unwrap_err();
    assert_eq!(over.code(), Code::FailedPrecondition, "{over:?}");
    pod.end();
}

#[test]
fn who_is_killed_for_memory_is_told_so() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = script("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    resources(&mut config).memory_limit_in_bytes = 16 << 20;
    resources(&mut config).memory_swap_limit_in_bytes = 16 << 20;
    let status = pod.start(&config).ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    // A child that is killed is not the container's end.
    let mut config = script("dd if=/dev/zero of=/dev/null bs=200M count=1; exit 3");
    resources(&mut config).memory_limit_in_bytes = 16 << 20;
    resources(&mut config).memory_swap_limit_in_bytes = 16 << 20;
    let status = pod.start(&config).ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"), "{status:?}");
    let killed = pod.start(&script("sh -c 'kill -9 $$'; exit $?")).ended();
    assert_eq!((killed.exit_code, killed.reason.as_str()), (137, "Error"), "killed, but not for memory");
    pod.end();
}

#[test]
fn cgroups_are_named_for_node_tools() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script("sleep 1000"));
    let folder = node.cgroup(&container.id, "memory").unwrap();
    let parent = folder.parent().unwrap();
    assert!(parent.ends_with(pod.config.linux.as_ref().unwrap().cgroup_parent.trim_start_matches('/')), "{}", folder.display());
    pod.end();
}
