//! The RuntimeService: each RPC hands on to the module of its subject.

use rrun_proto::v1;
use rrun_proto::v1::runtime_service_server::RuntimeService;
use tonic::{Request, Response};

use super::{Answer, Streamed, deadline, done, follow, pieces, stream, version};
use crate::shim::Shim;
use crate::{containers, pods, stats};

/// The RuntimeService of a shim.
pub struct Runtime {
    shim: Shim,
}

impl Runtime {
    /// Serves that one.
    pub fn new(shim: Shim) -> Runtime {
        Runtime { shim }
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    type StreamPodSandboxesStream = Streamed<v1::StreamPodSandboxesResponse>;
    type StreamContainersStream = Streamed<v1::StreamContainersResponse>;
    type StreamContainerStatsStream = Streamed<v1::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streamed<v1::StreamPodSandboxStatsResponse>;
    type GetContainerEventsStream = Streamed<v1::ContainerEventResponse>;
    type StreamPodSandboxMetricsStream = Streamed<v1::StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(version::version()))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        let r = request.into_inner();
        let pod_sandbox_id = pods::run(&self.shim, r).await?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(&self, request: Request<v1::StopPodSandboxRequest>) -> Answer<v1::StopPodSandboxResponse> {
        let r = request.into_inner();
        pods::stop(&self.shim, &r.pod_sandbox_id).await?;
        Ok(done())
    }

    async fn remove_pod_sandbox(&self, request: Request<v1::RemovePodSandboxRequest>) -> Answer<v1::RemovePodSandboxResponse> {
        let r = request.into_inner();
        pods::remove(&self.shim, &r.pod_sandbox_id).await?;
        Ok(done())
    }

    async fn pod_sandbox_status(&self, request: Request<v1::PodSandboxStatusRequest>) -> Answer<v1::PodSandboxStatusResponse> {
        let r = request.into_inner();
        Ok(Response::new(pods::status(&self.shim, &r)?))
    }

    async fn list_pod_sandbox(&self, request: Request<v1::ListPodSandboxRequest>) -> Answer<v1::ListPodSandboxResponse> {
        let r = request.into_inner();
        let items = pods::list(&self.shim, r.filter.as_ref());
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    async fn stream_pod_sandboxes(&self, request: Request<v1::StreamPodSandboxesRequest>) -> Answer<Self::StreamPodSandboxesStream> {
        let r = request.into_inner();
        let pieces = pieces(pods::list(&self.shim, r.filter.as_ref()));
        Ok(stream(pieces.map(|pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(&self, request: Request<v1::CreateContainerRequest>) -> Answer<v1::CreateContainerResponse> {
        let r = request.into_inner();
        let container_id = containers::create(&self.shim, r).await?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        let r = request.into_inner();
        containers::start(&self.shim, &r.container_id).await?;
        Ok(done())
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        let r = request.into_inner();
        containers::stop(&self.shim, &r.container_id, r.timeout).await?;
        Ok(done())
    }

    async fn remove_container(&self, request: Request<v1::RemoveContainerRequest>) -> Answer<v1::RemoveContainerResponse> {
        let r = request.into_inner();
        containers::remove(&self.shim, &r.container_id).await?;
        Ok(done())
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        let r = request.into_inner();
        let containers = containers::list(&self.shim, r.filter.as_ref());
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    async fn stream_containers(&self, request: Request<v1::StreamContainersRequest>) -> Answer<Self::StreamContainersStream> {
        let r = request.into_inner();
        let pieces = pieces(containers::list(&self.shim, r.filter.as_ref()));
        Ok(stream(pieces.map(|containers| v1::StreamContainersResponse { containers })))
    }

    async fn container_status(&self, request: Request<v1::ContainerStatusRequest>) -> Answer<v1::ContainerStatusResponse> {
        let r = request.into_inner();
        Ok(Response::new(containers::status(&self.shim, &r).await?))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        let r = request.into_inner();
        containers::update(&self.shim, r).await?;
        Ok(done())
    }

    async fn reopen_container_log(&self, request: Request<v1::ReopenContainerLogRequest>) -> Answer<v1::ReopenContainerLogResponse> {
        let r = request.into_inner();
        containers::reopen_log(&self.shim, &r.container_id).await?;
        Ok(done())
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        let r = request.into_inner();
        Ok(Response::new(containers::exec_sync(&self.shim, r).await?))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        let url = containers::exec_url(&self.shim, request.into_inner())?;
        Ok(Response::new(v1::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        let url = containers::attach_url(&self.shim, request.into_inner())?;
        Ok(Response::new(v1::AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Answer<v1::PortForwardResponse> {
        let url = containers::port_forward_url(&self.shim, request.into_inner())?;
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(&self, request: Request<v1::ContainerStatsRequest>) -> Answer<v1::ContainerStatsResponse> {
        let stats = stats::container(&self.shim, &request.into_inner().container_id).await?;
        Ok(Response::new(v1::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(&self, request: Request<v1::ListContainerStatsRequest>) -> Answer<v1::ListContainerStatsResponse> {
        let stats = stats::containers(&self.shim, request.into_inner().filter).await?;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    async fn stream_container_stats(&self, request: Request<v1::StreamContainerStatsRequest>) -> Answer<Self::StreamContainerStatsStream> {
        let pieces = pieces(stats::containers(&self.shim, request.into_inner().filter).await?);
        Ok(stream(pieces.map(|container_stats| v1::StreamContainerStatsResponse { container_stats })))
    }

    async fn pod_sandbox_stats(&self, request: Request<v1::PodSandboxStatsRequest>) -> Answer<v1::PodSandboxStatsResponse> {
        let stats = stats::pod(&self.shim, &request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(&self, request: Request<v1::ListPodSandboxStatsRequest>) -> Answer<v1::ListPodSandboxStatsResponse> {
        let stats = stats::pods(&self.shim, request.into_inner().filter).await?;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let pieces = pieces(stats::pods(&self.shim, request.into_inner().filter).await?);
        Ok(stream(pieces.map(|pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats })))
    }

    async fn update_runtime_config(&self, _: Request<v1::UpdateRuntimeConfigRequest>) -> Answer<v1::UpdateRuntimeConfigResponse> {
        // The pod network is configured by CNI alone.
        Ok(done())
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        let r = request.into_inner();
        Ok(Response::new(version::status(&self.shim, r.verbose)))
    }

    async fn checkpoint_container(&self, request: Request<v1::CheckpointContainerRequest>) -> Answer<v1::CheckpointContainerResponse> {
        containers::checkpoint(&self.shim, request.into_inner()).await?;
        Ok(done())
    }

    async fn checkpoint_pod(&self, request: Request<v1::CheckpointPodRequest>) -> Answer<v1::CheckpointPodResponse> {
        let deadline = deadline::at(&request);
        containers::checkpoint_pod(&self.shim, request.into_inner(), deadline).await?;
        Ok(done())
    }

    async fn restore_pod(&self, request: Request<v1::RestorePodRequest>) -> Answer<v1::RestorePodResponse> {
        let deadline = deadline::at(&request);
        Ok(Response::new(containers::restore_pod(&self.shim, request.into_inner(), deadline).await?))
    }

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(Box::pin(follow(self.shim.events.subscribe()))))
    }

    async fn list_metric_descriptors(&self, _: Request<v1::ListMetricDescriptorsRequest>) -> Answer<v1::ListMetricDescriptorsResponse> {
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors: stats::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(&self, _: Request<v1::ListPodSandboxMetricsRequest>) -> Answer<v1::ListPodSandboxMetricsResponse> {
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics: stats::metrics(&self.shim).await? }))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let pieces = pieces(stats::metrics(&self.shim).await?);
        Ok(stream(pieces.map(|pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics })))
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Answer<v1::RuntimeConfigResponse> {
        Ok(Response::new(version::runtime_config(&self.shim)))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        let r = request.into_inner();
        pods::update_resources(&self.shim, r).await?;
        Ok(done())
    }
}
