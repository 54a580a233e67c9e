//! Spans as a collector receives them, in a receiver of the same protocol; integration/collector.sh has a real collector.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::time::Duration;

use rrun_cri::config::Tracing;
use rrun_cri::jobs::Jobs;
use rrun_cri::trace::{self, Exporter, Span};
use rrun_proto::otlp;
use rrun_proto::otlp::trace_service_server::{TraceService, TraceServiceServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::codegen::http::HeaderMap;
use tonic::{Request, Response, Status};

struct Receiver(mpsc::UnboundedSender<otlp::ResourceSpans>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<otlp::ExportTraceServiceRequest>,
    ) -> Result<Response<otlp::ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            self.0.send(spans).unwrap();
        }
        Ok(Response::new(otlp::ExportTraceServiceResponse::default()))
    }
}

/// A request with a `traceparent` or without one, which runs a job with a step that works and one that does not.
async fn request(caller: Option<&str>) {
    let mut headers = HeaderMap::new();
    caller.map(|caller| headers.insert("traceparent", caller.parse().unwrap()));
    let span = Span::of_request(&headers, "/runtime.v1.RuntimeService/RunPodSandbox");
    let job = async {
        Span::child("good").of(async { Ok::<_, Infallible>(()) }).await.unwrap();
        Span::child("bad").of(async { Err::<(), _>("no such plugin") }).await.unwrap_err();
        Ok("id".to_owned())
    };
    span.around(Jobs::default().run("a".into(), job)).await.unwrap();
}

#[tokio::test]
async fn a_request_its_job_and_its_steps_are_one_trace() {
    // The collector is not there yet: what it does not get is lost, and nobody waits.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    drop(listener);
    let settings = Tracing { endpoint: endpoint.clone(), sampling_rate_per_million: 0 };
    trace::set(Exporter::new(&settings, "node").unwrap().unwrap());
    request(Some("00-11111111111111111111111111111111-2222222222222222-01")).await;
    trace::flush().await;

    let (sender, mut received) = mpsc::unbounded_channel();
    let listener = TcpListenerStream::new(TcpListener::bind(&endpoint).await.unwrap());
    tokio::spawn(tonic::transport::Server::builder().add_service(TraceServiceServer::new(Receiver(sender))).serve_with_incoming(listener));
    // Its connection comes back after a pause; each try is a request that is sampled.
    let spans = loop {
        request(None).await; // nobody has decided, and the rate is 0
        request(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")).await; // not sampled
        request(Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")).await;
        trace::flush().await;
        if let Ok(Some(spans)) = tokio::time::timeout(Duration::from_millis(100), received.recv()).await {
            break spans;
        }
    };
    let resource = &spans.resource.unwrap().attributes;
    let name = resource.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert_eq!(name.value.as_ref().unwrap().string_value.as_deref(), Some("rrun-cri"));
    let spans = &spans.scope_spans[0].spans;
    assert_eq!(spans.len(), 3, "{spans:?}");
    let [good, bad, root] = ["good", "bad", "runtime.v1.RuntimeService/RunPodSandbox"]
        .map(|name| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}: {spans:?}")));
    assert_eq!(root.parent_span_id, [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
    assert_eq!((root.kind, good.kind), (2, 1));
    for child in [good, bad] {
        assert_eq!((&child.trace_id, &child.parent_span_id), (&root.trace_id, &root.span_id));
        assert!(root.start_time_unix_nano <= child.start_time_unix_nano && child.end_time_unix_nano <= root.end_time_unix_nano);
    }
    assert_eq!(root.trace_id[..2], [0x0a, 0xf7]);
    assert_eq!(bad.status.as_ref().map(|status| (status.code, status.message.as_str())), Some((2, "no such plugin")));
    assert_eq!(good.status, None);
    let method = root.attributes.iter().find(|attribute| attribute.key == "rpc.method").unwrap();
    assert_eq!(method.value.as_ref().unwrap().string_value.as_deref(), Some("RunPodSandbox"));
}

#[tokio::test]
async fn a_wrong_endpoint_is_named() {
    for endpoint in ["https://collector:4317", "no where"] {
        let settings = Tracing { endpoint: endpoint.into(), sampling_rate_per_million: 0 };
        let refused = Exporter::new(&settings, "node").unwrap_err();
        assert!(format!("{refused:#}").contains("tracing.endpoint"), "{refused:#}");
    }
}
