//! Spans on their way to the collector, by gRPC, in batches. Nobody waits for it: what does not fit into the queue is
//! dropped, and so is a batch that the collector does not take.

use std::time::Duration;

use anyhow::{Context, ensure};
use rrun_proto::otlp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::config::Tracing;

/// Spans that may wait.
const QUEUE: usize = 2048;
/// Spans in a batch, and how long the first one waits for others: OpenTelemetry's own defaults.
const BATCH: usize = 512;
const DELAY: Duration = Duration::from_secs(5);
/// How long a collector may take for a batch.
const LIMIT: Duration = Duration::from_secs(10);
/// How long the daemon's end waits for the last spans.
const LAST: Duration = Duration::from_secs(1);

enum Item {
    Span(Box<otlp::Span>),
    Flush(oneshot::Sender<()>),
}

/// Takes spans and sends them.
#[derive(Debug)]
pub struct Exporter {
    queue: mpsc::Sender<Item>,
    /// Of a million requests that nobody has decided for.
    rate: u32,
}

impl Exporter {
    /// One for the settings; None where they name no collector. It is not connected to before there is a span.
    pub fn new(settings: &Tracing, host: &str) -> anyhow::Result<Option<Exporter>> {
        if settings.endpoint.is_empty() {
            return Ok(None);
        }
        let address = settings.endpoint.strip_prefix("http://").unwrap_or(&settings.endpoint);
        ensure!(!address.contains("://"), "tracing.endpoint = {:?}: HOST:PORT of a collector's gRPC, without TLS", settings.endpoint);
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint = endpoint.with_context(|| format!("tracing.endpoint = {:?}: give HOST:PORT", settings.endpoint))?;
        let channel = endpoint.connect_timeout(LIMIT).timeout(LIMIT).connect_lazy();
        let text = |key: &str, value: &str| otlp::KeyValue {
            key: key.into(),
            value: Some(otlp::AnyValue { string_value: Some(value.into()), int_value: None }),
        };
        let attributes =
            vec![text("service.name", "rrun-cri"), text("service.version", env!("CARGO_PKG_VERSION")), text("host.name", host)];
        let (queue, items) = mpsc::channel(QUEUE);
        tokio::spawn(send(items, channel, otlp::Resource { attributes }, settings.endpoint.clone()));
        Ok(Some(Exporter { queue, rate: settings.sampling_rate_per_million }))
    }

    /// Whether to sample a request without a caller's decision.
    pub(super) fn samples(&self) -> bool {
        (u64::from(u32::from_ne_bytes(super::random())) * 1_000_000) >> 32 < u64::from(self.rate)
    }

    pub(super) fn take(&self, span: otlp::Span) {
        let _ = self.queue.try_send(Item::Span(Box::new(span))); // full: the collector is slow, and loses it
    }
}

/// Sends what waits, for a moment: at the daemon's end.
pub async fn flush() {
    let Some(exporter) = super::EXPORTER.get() else { return };
    let (done, flushed) = oneshot::channel();
    if exporter.queue.try_send(Item::Flush(done)).is_ok() {
        let _ = timeout(LAST, flushed).await;
    }
}

async fn send(mut items: mpsc::Receiver<Item>, channel: Channel, resource: otlp::Resource, endpoint: String) {
    let mut client = otlp::trace_service_client::TraceServiceClient::new(channel);
    let mut failing = false;
    while let Some(first) = items.recv().await {
        let (mut spans, mut flushed) = (Vec::new(), None);
        let mut take = |item, spans: &mut Vec<otlp::Span>| match item {
            Item::Span(span) => spans.push(*span),
            Item::Flush(done) => flushed = Some(done),
        };
        take(first, &mut spans);
        let full = async {
            while spans.len() < BATCH && !spans.is_empty() {
                match items.recv().await {
                    Some(Item::Flush(done)) => return take(Item::Flush(done), &mut spans),
                    Some(item) => take(item, &mut spans),
                    None => return,
                }
            }
        };
        let _ = timeout(DELAY, full).await;
        if !spans.is_empty() {
            let scope = Some(otlp::Scope { name: "rrun-cri".into(), version: env!("CARGO_PKG_VERSION").into() });
            let resource = Some(resource.clone());
            let resource_spans = vec![otlp::ResourceSpans { resource, scope_spans: vec![otlp::ScopeSpans { scope, spans }] }];
            let result = client.export(otlp::ExportTraceServiceRequest { resource_spans }).await;
            // One line when it fails and one when it works again, however often.
            match &result {
                Ok(_) if failing => tracing::info!(endpoint, "the trace collector takes spans again"),
                Err(status) if !failing => tracing::warn!(endpoint, "the trace collector does not take spans: {}", status.message()),
                _ => {}
            }
            failing = result.is_err();
        }
        if let Some(done) = flushed {
            let _ = done.send(());
        }
    }
}
