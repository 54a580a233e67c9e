//! Requests that are wrong: the right code, a text that says what to do, nothing left behind, and the retry works.

use rrun_proto::v1;
use tonic::Code::{self, FailedPrecondition, InvalidArgument, NotFound, Unknown};

use crate::client::{command, namespaces, pod_config, resources, script, security};
use crate::node::Node;
use crate::{image, node_or_skip};

#[test]
fn wrong_sandboxes() {
    let node = node_or_skip!(Node::shared());
    let cri = node.cri();
    let missing = cri.run_pod_sandbox(v1::RunPodSandboxRequest::default()).unwrap_err();
    assert_eq!((missing.code(), missing.message()), (InvalidArgument, "config is missing"));
    type Change = fn(&mut v1::PodSandboxConfig);
    let wrong: [(&str, Change, Code, &str); 14] = [
        ("no metadata", |c| c.metadata = None, InvalidArgument, "config.metadata"),
        ("no name", |c| c.metadata.as_mut().unwrap().name.clear(), InvalidArgument, "config.metadata.name"),
        ("no namespace", |c| c.metadata.as_mut().unwrap().namespace.clear(), InvalidArgument, "config.metadata.namespace"),
        ("no uid", |c| c.metadata.as_mut().unwrap().uid.clear(), InvalidArgument, "config.metadata.uid"),
        ("a relative folder of logs", |c| c.log_directory = "logs".into(), InvalidArgument, "log_directory"),
        ("a folder of logs that cannot be", |c| c.log_directory = "/proc/nowhere/logs".into(), Unknown, "log_directory"),
        ("a cgroup parent with ..", |c| c.linux.as_mut().unwrap().cgroup_parent = "/a/../../b".into(), InvalidArgument, "cgroup_parent"),
        (
            "a cgroup parent below a file",
            |c| c.linux.as_mut().unwrap().cgroup_parent = "/cgroup.procs/pod".into(),
            InvalidArgument,
            "is no cgroup but a file in one",
        ),
        (
            "a cgroup parent with a name too long",
            |c| c.linux.as_mut().unwrap().cgroup_parent += &"x".repeat(255),
            InvalidArgument,
            "longer than the kernel's 255 bytes",
        ),
        ("a network that is not", |c| namespaces(c).network = 77, InvalidArgument, "network"),
        ("another's network", |c| namespaces(c).network = v1::NamespaceMode::Target.into(), InvalidArgument, "network"),
        ("another's processes", |c| namespaces(c).pid = v1::NamespaceMode::Target.into(), InvalidArgument, "pid"),
        ("a host name too long", |c| (c.hostname, namespaces(c).network) = ("x".repeat(65), 0), InvalidArgument, "hostname"),
        (
            "half a user namespace",
            |c| {
                namespaces(c).userns_options = Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), ..Default::default() });
            },
            InvalidArgument,
            "userns_options",
        ),
    ];
    for (what, change, code, words) in wrong {
        let mut config = pod_config(node);
        let good = config.clone();
        change(&mut config);
        let status = node.run_pod(&config).map(drop).expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status:?}");
        assert!(status.message().contains(words), "{what}: {status:?}");
        let name = format!("/{}", good.metadata.as_ref().unwrap().name);
        node.assert_gone(&[name]);
        let id = node.run_pod(&good).unwrap_or_else(|status| panic!("{what}: the retry: {status:?}"));
        crate::client::Pod { node, id, config: good }.end();
    }
    let request = v1::RunPodSandboxRequest { config: Some(pod_config(node)), runtime_handler: "kata".into() };
    let status = cri.run_pod_sandbox(request).unwrap_err();
    assert_eq!(status.code(), InvalidArgument, "{status:?}");
    assert!(status.message().contains("kata") && status.message().contains("rrun"), "names what there is: {status:?}");
}

#[test]
fn wrong_containers() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    std::fs::create_dir_all(node.dir().join("logs")).unwrap();
    let link = node.dir().join("dangling");
    let _ = std::os::unix::fs::symlink("/nowhere/at/all", &link);
    let mount = |path: &str| v1::Mount { container_path: "/mnt".into(), host_path: path.into(), readonly: true, ..Default::default() };
    let dangling = mount(link.to_str().unwrap());
    type Change<'a> = Box<dyn Fn(&mut v1::ContainerConfig) + 'a>;
    let wrong: Vec<(&str, Change, Code, &str)> = vec![
        ("no name", Box::new(|c| c.metadata = None), InvalidArgument, "config.metadata.name"),
        ("no image", Box::new(|c| c.image = None), InvalidArgument, "config.image"),
        ("an unknown image", Box::new(|c| c.image.as_mut().unwrap().image = "localhost/other:1".into()), NotFound, "pull it"),
        ("nothing to run", Box::new(|c| c.command.clear()), InvalidArgument, "command"),
        ("a user that is not in the image", Box::new(|c| security(c).run_as_username = "stranger".into()), Unknown, "stranger"),
        (
            "a group without a user",
            Box::new(|c| security(c).run_as_group = Some(v1::Int64Value { value: 5 })),
            InvalidArgument,
            "run_as_group",
        ),
        ("a user out of range", Box::new(|c| security(c).run_as_user = Some(v1::Int64Value { value: -4 })), InvalidArgument, "run_as_user"),
        ("privileged in a pod that is not", Box::new(|c| security(c).privileged = true), InvalidArgument, "privileged"),
        ("a dangling link as source", Box::new(|c| c.mounts = vec![dangling.clone()]), Unknown, "dangling"),
        ("a relative source", Box::new(|c| c.mounts = vec![mount("etc")]), InvalidArgument, "host_path"),
        (
            "no target",
            Box::new(|c| c.mounts = vec![v1::Mount { container_path: String::new(), ..mount("/etc") }]),
            InvalidArgument,
            "container_path",
        ),
        (
            "recursive read-only without read-only",
            Box::new(|c| c.mounts = vec![v1::Mount { recursive_read_only: true, readonly: false, ..mount("/etc") }]),
            InvalidArgument,
            "recursive_read_only",
        ),
        (
            "a propagation that is not",
            Box::new(|c| c.mounts = vec![v1::Mount { propagation: 9, ..mount("/etc") }]),
            InvalidArgument,
            "propagation",
        ),
        (
            "a device that is not there",
            Box::new(|c| {
                let device =
                    v1::Device { host_path: "/dev/nothing-there".into(), container_path: "/dev/x".into(), permissions: "rwm".into() };
                c.devices = vec![device];
            }),
            Unknown,
            "/dev/nothing-there",
        ),
        (
            "a CDI device that is not known",
            Box::new(|c| c.cdi_devices = vec![v1::CdiDevice { name: "vendor.example/gpu=0".into() }]),
            Unknown,
            "vendor.example",
        ),
        (
            "a capability that is not",
            Box::new(|c| security(c).capabilities.get_or_insert_default().add_capabilities = vec!["FLY".into()]),
            InvalidArgument,
            "FLY",
        ),
        (
            "a profile that is not there",
            Box::new(|c| {
                let profile = v1::SecurityProfile {
                    profile_type: v1::security_profile::ProfileType::Localhost.into(),
                    localhost_ref: "/no/profile.json".into(),
                };
                security(c).seccomp = Some(profile);
            }),
            Unknown,
            "/no/profile.json",
        ),
        ("negative shares", Box::new(|c| resources(c).cpu_shares = -2), InvalidArgument, "cpu_shares"),
        ("a negative limit", Box::new(|c| resources(c).memory_limit_in_bytes = -2), InvalidArgument, "memory_limit"),
        (
            "an unknown target",
            Box::new(|c| {
                let options = security(c).namespace_options.get_or_insert_default();
                (options.pid, options.target_id) = (v1::NamespaceMode::Target.into(), "f".repeat(64));
            }),
            NotFound,
            "ffff",
        ),
        ("a stop signal that is not", Box::new(|c| c.stop_signal = 4000), InvalidArgument, "stop_signal"),
        (
            "an image volume that is not there",
            Box::new(|c| {
                c.mounts =
                    vec![v1::Mount { image: Some(v1::ImageSpec { image: "localhost/none:1".into(), ..Default::default() }), ..mount("") }];
            }),
            NotFound,
            "ImageVolumeMountFailed",
        ),
        (
            "a folder that the image volume lacks",
            Box::new(|c| {
                let image = Some(v1::ImageSpec { image: image::BASE.into(), ..Default::default() });
                c.mounts = vec![v1::Mount { image, image_sub_path: "not/there".into(), ..mount("") }];
            }),
            Unknown,
            "ImageVolumeMountFailed",
        ),
        (
            "a folder outside of the image volume",
            Box::new(|c| {
                let image = Some(v1::ImageSpec { image: image::BASE.into(), ..Default::default() });
                c.mounts = vec![v1::Mount { image, image_sub_path: "../../../etc".into(), ..mount("") }];
            }),
            Unknown,
            "ImageVolumeMountFailed",
        ),
    ];
    let mut failures = Vec::new();
    let before: Vec<_> = scan_of(node, &pod.id);
    for (what, change, code, words) in wrong {
        let good = command(&["/bin/true"]);
        let mut config = good.clone();
        change(&mut config);
        match pod.create(&config) {
            Ok(container) => {
                failures.push(format!("{what}: was taken"));
                container.remove().unwrap();
            }
            Err(status) => {
                if status.code() != code && !(code == Unknown && status.code() == InvalidArgument) || !status.message().contains(words) {
                    failures.push(format!("{what}: {:?} {:?}", status.code(), status.message()));
                }
            }
        }
        if !tests::host::wait_until(5, || scan_of(node, &pod.id) == before) {
            failures.push(format!("{what}: left behind: {:?}", scan_of(node, &pod.id)));
        }
        let container = pod.start(&good);
        assert_eq!(container.ended().exit_code, 0);
        container.remove().unwrap();
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let mut config = command(&["/bin/true"]);
    config.image.as_mut().unwrap().image = image::NOBODY.into();
    assert!(pod.create(&config).map(drop).unwrap_err().message().contains("stranger"), "the image's own user");
    let request = v1::CreateContainerRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    assert_eq!(node.cri().create_container(request).unwrap_err().code(), InvalidArgument);
    pod.end();
}

#[test]
fn a_cgroup_parent_that_is_not_there_is_made_and_goes_with_the_pod() {
    let node = node_or_skip!(Node::shared());
    let top = format!("/{}/made-{}", node.name(), crate::client::unique());
    let parent = format!("{top}/deep/pod");
    let pod = node.pod_with(|c| c.linux.as_mut().unwrap().cgroup_parent = parent.clone());
    let made = || node.scan().into_iter().filter(|line| line.starts_with("cgroup") && line.contains(&top)).count();
    assert_eq!(made(), 0, "only a container needs it");
    let container = pod.start(&script("sleep 1000"));
    let cgroup = node.cgroup(&container.id, "memory").unwrap();
    assert!(cgroup.parent().unwrap().ends_with(parent.trim_start_matches('/')), "{}", cgroup.display());
    // A pod of the same parent that comes and goes takes nothing from this one.
    let other = node.pod_with(|c| c.linux.as_mut().unwrap().cgroup_parent = parent.clone());
    assert_eq!(other.output(&script("echo in it")), ["in it"]);
    other.end();
    assert!(cgroup.is_dir() && container.sh("echo lives") == "lives");
    // Whoever goes last takes it away, also a pod whose own begins deeper.
    let deeper = node.pod_with(|c| c.linux.as_mut().unwrap().cgroup_parent = format!("{parent}/deeper"));
    let last = deeper.start(&script("sleep 1000"));
    pod.end();
    assert!(made() > 0 && last.sh("echo lives") == "lives");
    deeper.end();
    assert!(tests::host::wait_until(10, || made() == 0), "{:?}", node.scan());
}

#[test]
fn an_image_that_says_nothing_of_what_to_run() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = command(&[]);
    config.image.as_mut().unwrap().image = image::BARE.into();
    let before = scan_of(node, &pod.id);
    let status = pod.create(&config).map(drop).unwrap_err();
    assert_eq!(status.code(), InvalidArgument, "{status:?}");
    assert!(status.message().contains("say what to run"), "{status:?}");
    assert!(tests::host::wait_until(5, || scan_of(node, &pod.id) == before), "{:?}", scan_of(node, &pod.id));
    config.command = vec!["/bin/sh".into(), "-c".into(), "pwd; id -u; echo $PATH".into()];
    let container = pod.start(&config);
    assert_eq!(container.ended().exit_code, 0);
    let lines: Vec<_> = container.log().into_iter().map(|line| line.text).collect();
    assert_eq!(lines, ["/", "0", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "what containers have by default");
    pod.end();
}

/// What there is of a pod.
fn scan_of(node: &Node, pod: &str) -> Vec<String> {
    let of_pod = |line: &String| line.contains(pod) && !line.contains("process");
    node.scan().into_iter().filter(of_pod).collect()
}

#[test]
fn a_log_that_cannot_be_written_is_told_at_the_start() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = script("true");
    config.log_path = "folder/inside.log".into();
    std::fs::write(node.dir().join(&pod.config.log_directory).join("folder"), "a file").unwrap();
    let container = pod.create(&config).unwrap();
    let status = container.start().unwrap_err();
    assert!(status.message().contains("log"), "{status:?}");
    assert_eq!(container.status().reason, "StartError");
    config.metadata.as_mut().unwrap().attempt = 1;
    config.log_path = "other.log".into();
    assert_eq!(pod.start(&config).ended().exit_code, 0);
    pod.end();
}

#[test]
fn streams_that_are_wrong() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script("sleep 1000"));
    let exec = |change: fn(&mut v1::ExecRequest)| {
        let mut request =
            v1::ExecRequest { container_id: container.id.clone(), cmd: vec!["true".into()], stdout: true, ..Default::default() };
        change(&mut request);
        node.cri().exec(request)
    };
    assert!(exec(|_| {}).unwrap().url.starts_with("http://"), "an absolute URL");
    assert_eq!(exec(|r| (r.tty, r.stderr) = (true, true)).unwrap_err().code(), InvalidArgument);
    assert_eq!(exec(|r| r.stdout = false).unwrap_err().code(), InvalidArgument);
    assert_eq!(exec(|r| r.cmd.clear()).unwrap_err().code(), InvalidArgument);
    let port = |port: i32| node.cri().port_forward(v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![port] });
    assert_eq!(port(0).unwrap_err().code(), InvalidArgument);
    assert_eq!(port(70_000).unwrap_err().code(), InvalidArgument);
    container.stop(0).unwrap();
    assert_eq!(exec(|_| {}).unwrap_err().code(), FailedPrecondition);
    pod.stop().unwrap();
    assert_eq!(port(80).unwrap_err().code(), FailedPrecondition);
    pod.end();
}
