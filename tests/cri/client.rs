//! A CRI client for tests: each RPC as a call that waits, and pods and containers as handles.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};

use rrun_proto::v1;
use rrun_proto::v1::image_service_client::ImageServiceClient;
use rrun_proto::v1::runtime_service_client::RuntimeServiceClient;
use tests::host::wait_until;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::image;
use crate::node::Node;

static REACTOR: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

/// Waits for a future from a test's thread.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    REACTOR.block_on(future)
}

/// Both services of a daemon.
#[derive(Clone)]
pub(crate) struct Cri {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

macro_rules! calls {
    ($($service:ident $name:ident $request:ident $response:ident;)*) => {
        impl Cri {
            $(
                #[allow(dead_code, reason = "the list is that of the interface")]
                pub(crate) fn $name(&self, request: v1::$request) -> Result<v1::$response, Status> {
                    let mut client = self.$service.clone();
                    wait(async move { client.$name(request).await }).map(tonic::Response::into_inner)
                }
            )*
        }
    };
}

calls! {
    runtime version VersionRequest VersionResponse;
    runtime status StatusRequest StatusResponse;
    runtime runtime_config RuntimeConfigRequest RuntimeConfigResponse;
    runtime run_pod_sandbox RunPodSandboxRequest RunPodSandboxResponse;
    runtime stop_pod_sandbox StopPodSandboxRequest StopPodSandboxResponse;
    runtime remove_pod_sandbox RemovePodSandboxRequest RemovePodSandboxResponse;
    runtime pod_sandbox_status PodSandboxStatusRequest PodSandboxStatusResponse;
    runtime list_pod_sandbox ListPodSandboxRequest ListPodSandboxResponse;
    runtime update_pod_sandbox_resources UpdatePodSandboxResourcesRequest UpdatePodSandboxResourcesResponse;
    runtime create_container CreateContainerRequest CreateContainerResponse;
    runtime start_container StartContainerRequest StartContainerResponse;
    runtime stop_container StopContainerRequest StopContainerResponse;
    runtime remove_container RemoveContainerRequest RemoveContainerResponse;
    runtime list_containers ListContainersRequest ListContainersResponse;
    runtime container_status ContainerStatusRequest ContainerStatusResponse;
    runtime update_container_resources UpdateContainerResourcesRequest UpdateContainerResourcesResponse;
    runtime container_stats ContainerStatsRequest ContainerStatsResponse;
    runtime reopen_container_log ReopenContainerLogRequest ReopenContainerLogResponse;
    runtime exec_sync ExecSyncRequest ExecSyncResponse;
    runtime exec ExecRequest ExecResponse;
    runtime attach AttachRequest AttachResponse;
    runtime port_forward PortForwardRequest PortForwardResponse;
    runtime checkpoint_container CheckpointContainerRequest CheckpointContainerResponse;
    runtime checkpoint_pod CheckpointPodRequest CheckpointPodResponse;
    runtime restore_pod RestorePodRequest RestorePodResponse;
    images list_images ListImagesRequest ListImagesResponse;
    images image_status ImageStatusRequest ImageStatusResponse;
    images remove_image RemoveImageRequest RemoveImageResponse;
    images image_fs_info ImageFsInfoRequest ImageFsInfoResponse;
}

impl Cri {
    /// A client of the daemon on that socket; it connects when it is used.
    pub(crate) fn new(socket: &std::path::Path) -> Cri {
        let _inside = REACTOR.enter();
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .unwrap()
            .timeout(std::time::Duration::from_secs(90))
            .connect_lazy();
        Cri {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20),
            images: ImageServiceClient::new(channel),
        }
    }

    /// Events from now on.
    pub(crate) fn events(&self) -> Receiver<v1::ContainerEventResponse> {
        let (sender, receiver) = channel();
        let mut client = self.runtime.clone();
        let mut stream = wait(async move { client.get_container_events(v1::GetEventsRequest {}).await }).unwrap().into_inner();
        REACTOR.spawn(async move {
            while let Ok(Some(event)) = stream.message().await {
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        receiver
    }

    /// All of StreamPodSandboxes.
    pub(crate) fn stream_pods(&self, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let mut client = self.runtime.clone();
        wait(async move {
            let mut stream = client.stream_pod_sandboxes(v1::StreamPodSandboxesRequest { filter }).await.unwrap().into_inner();
            let mut all = Vec::new();
            while let Some(piece) = stream.message().await.unwrap() {
                all.extend(piece.pod_sandboxes);
            }
            all
        })
    }

    /// All of StreamContainers.
    pub(crate) fn stream_containers(&self, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
        let mut client = self.runtime.clone();
        wait(async move {
            let mut stream = client.stream_containers(v1::StreamContainersRequest { filter }).await.unwrap().into_inner();
            let mut all = Vec::new();
            while let Some(piece) = stream.message().await.unwrap() {
                all.extend(piece.containers);
            }
            all
        })
    }
}

/// A number that no other pod or container of this run has.
pub(crate) fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A pod's configuration: the host's network, which is the node's own, and a shared PID namespace for none.
pub(crate) fn pod_config(node: &Node) -> v1::PodSandboxConfig {
    let number = unique();
    let name = format!("pod-{number}x");
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata { name: name.clone(), uid: format!("uid-{number}"), namespace: "test".into(), attempt: 0 }),
        log_directory: node.dir().join("logs").join(&name).display().to_string(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}/{name}", node.name()),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    network: v1::NamespaceMode::Node.into(),
                    pid: v1::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The namespace options of a pod, to change them.
pub(crate) fn namespaces(config: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    config.linux.get_or_insert_default().security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

/// A container that runs a shell script.
pub(crate) fn script(text: &str) -> v1::ContainerConfig {
    command(&["/bin/sh", "-c", text])
}

/// A container that runs a command.
pub(crate) fn command(words: &[&str]) -> v1::ContainerConfig {
    let name = format!("container-{}", unique());
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.clone(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image::BASE.into(), ..Default::default() }),
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        ..Default::default()
    }
}

/// The security context of a container, to change it.
pub(crate) fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The limits of a container, to change them.
pub(crate) fn resources(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// A pod sandbox of a test.
pub(crate) struct Pod<'a> {
    pub(crate) node: &'a Node,
    pub(crate) id: String,
    pub(crate) config: v1::PodSandboxConfig,
}

impl Node {
    /// Runs a pod with the usual configuration.
    #[track_caller]
    pub(crate) fn pod(&self) -> Pod<'_> {
        self.pod_with(|_| {})
    }

    /// Runs a pod with a configuration that `change` has changed.
    #[track_caller]
    pub(crate) fn pod_with(&self, change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Pod<'_> {
        let mut config = pod_config(self);
        change(&mut config);
        let id = self.run_pod(&config).unwrap_or_else(|status| panic!("RunPodSandbox: {status:?}\n{}", self.log_tail()));
        Pod { node: self, id, config }
    }

    /// RunPodSandbox with the default handler.
    pub(crate) fn run_pod(&self, config: &v1::PodSandboxConfig) -> Result<String, Status> {
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        self.cri().run_pod_sandbox(request).map(|answer| answer.pod_sandbox_id)
    }
}

impl<'a> Pod<'a> {
    /// CreateContainer.
    pub(crate) fn create(&self, config: &v1::ContainerConfig) -> Result<Container<'a>, Status> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(self.config.clone()),
        };
        let id = self.node.cri().create_container(request)?.container_id;
        Ok(Container { node: self.node, id })
    }

    /// Creates and starts a container.
    #[track_caller]
    pub(crate) fn start(&self, config: &v1::ContainerConfig) -> Container<'a> {
        let container = self.create(config).unwrap_or_else(|status| panic!("CreateContainer: {status:?}\n{}", self.node.log_tail()));
        container.start().unwrap_or_else(|status| panic!("StartContainer: {status:?}\n{}", self.node.log_tail()));
        container
    }

    /// What a shell script printed on its standard output, line by line; it must end with code 0.
    #[track_caller]
    pub(crate) fn output(&self, config: &v1::ContainerConfig) -> Vec<String> {
        let container = self.start(config);
        let status = container.ended();
        let lines: Vec<_> = container.log().into_iter().map(|line| line.text).collect();
        assert_eq!(status.exit_code, 0, "{:?}: {} {}: {lines:?}", config.command, status.reason, status.message);
        lines
    }

    /// PodSandboxStatus.
    pub(crate) fn status(&self) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        self.node.cri().pod_sandbox_status(request).map(|answer| answer.status.unwrap())
    }

    /// Whether it is ready.
    #[track_caller]
    pub(crate) fn is_ready(&self) -> bool {
        self.status().unwrap().state() == v1::PodSandboxState::SandboxReady
    }

    /// StopPodSandbox.
    pub(crate) fn stop(&self) -> Result<(), Status> {
        self.node.cri().stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() }).map(drop)
    }

    /// RemovePodSandbox.
    pub(crate) fn remove(&self) -> Result<(), Status> {
        self.node.cri().remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() }).map(drop)
    }

    /// Stops and removes it as kubelet does, and proves that nothing of it is left.
    #[track_caller]
    pub(crate) fn end(self) {
        let containers = self.node.containers_of(&self.id);
        self.stop().unwrap();
        for container in &containers {
            self.node.cri().remove_container(v1::RemoveContainerRequest { container_id: container.id.clone() }).unwrap();
        }
        self.remove().unwrap();
        let name = self.config.metadata.unwrap().name;
        let ids: Vec<_> = containers.iter().map(|container| container.id.clone()).chain([self.id, format!("/{name}")]).collect();
        self.node.assert_gone(&ids);
    }
}

/// A container of a test.
#[derive(Clone)]
pub(crate) struct Container<'a> {
    pub(crate) node: &'a Node,
    pub(crate) id: String,
}

impl Container<'_> {
    /// StartContainer.
    pub(crate) fn start(&self) -> Result<(), Status> {
        self.node.cri().start_container(v1::StartContainerRequest { container_id: self.id.clone() }).map(drop)
    }

    /// StopContainer.
    pub(crate) fn stop(&self, grace: i64) -> Result<(), Status> {
        self.node.cri().stop_container(v1::StopContainerRequest { container_id: self.id.clone(), timeout: grace }).map(drop)
    }

    /// RemoveContainer.
    pub(crate) fn remove(&self) -> Result<(), Status> {
        self.node.cri().remove_container(v1::RemoveContainerRequest { container_id: self.id.clone() }).map(drop)
    }

    /// ContainerStatus.
    #[track_caller]
    pub(crate) fn status(&self) -> v1::ContainerStatus {
        self.verbose().status.unwrap()
    }

    /// ContainerStatus with the verbose part.
    #[track_caller]
    pub(crate) fn verbose(&self) -> v1::ContainerStatusResponse {
        let request = v1::ContainerStatusRequest { container_id: self.id.clone(), verbose: true };
        self.node.cri().container_status(request).unwrap()
    }

    /// `info.info` of the verbose status.
    #[track_caller]
    pub(crate) fn info(&self) -> serde_json::Value {
        serde_json::from_str(&self.verbose().info["info"]).unwrap()
    }

    /// Its first process, as the host numbers it.
    #[track_caller]
    pub(crate) fn pid(&self) -> i32 {
        let pid = self.info()["pid"].as_i64().unwrap();
        let host = self.node.host_pid(pid);
        assert!(host != 0, "no process {pid}: {:#?}", self.node.processes());
        host
    }

    /// Waits for its end; its status then.
    #[track_caller]
    pub(crate) fn ended(&self) -> v1::ContainerStatus {
        let over = wait_until(30, || self.status().state() == v1::ContainerState::ContainerExited);
        assert!(over, "container {} does not end: {:?}\n{}", self.id, self.status(), self.node.log_tail());
        self.status()
    }

    /// Its log so far.
    #[track_caller]
    pub(crate) fn log(&self) -> Vec<Line> {
        parse_log(&std::fs::read(self.log_path()).unwrap_or_default())
    }

    /// Where its log is.
    #[track_caller]
    pub(crate) fn log_path(&self) -> PathBuf {
        self.status().log_path.into()
    }

    /// Waits until a line of its log is `text`.
    #[track_caller]
    pub(crate) fn wait_for_line(&self, text: &str) {
        let seen = wait_until(20, || self.log().iter().any(|line| line.text == text));
        assert!(seen, "no line {text:?}: {:?}; {:?}\n{}", self.log(), self.status(), self.node.log_tail());
    }

    /// ExecSync.
    pub(crate) fn exec(&self, words: &[&str], timeout: i64) -> Result<v1::ExecSyncResponse, Status> {
        self.node.cri().exec_sync(v1::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: words.iter().map(|word| (*word).to_owned()).collect(),
            timeout,
        })
    }

    /// What a script in it prints; it must end with code 0.
    #[track_caller]
    pub(crate) fn sh(&self, text: &str) -> String {
        let answer = self.exec(&["/bin/sh", "-c", text], 20).unwrap_or_else(|status| panic!("{text}: {status:?}"));
        let (out, errors) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        assert_eq!(answer.exit_code, 0, "{text}: {out}{errors}");
        out.trim_end().to_owned()
    }
}

/// A line of a CRI log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) time: String,
    pub(crate) stream: String,
    pub(crate) tag: String,
    pub(crate) text: String,
}

/// Reads a CRI log strictly.
#[track_caller]
pub(crate) fn parse_log(bytes: &[u8]) -> Vec<Line> {
    let text = String::from_utf8_lossy(bytes);
    // The last line may be half written when it is read.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let mut next = || words.next().unwrap_or_else(|| panic!("not a line of a CRI log: {line:?}")).to_owned();
        Line { time: next(), stream: next(), tag: next(), text: next() }
    };
    whole.split('\n').filter(|line| !line.is_empty()).map(line).collect()
}
