//! Traces, as OTLP, to the collector that the settings name: a span for each request, below the caller's (the W3C
//! `traceparent` that kubelet sends), and below it spans for each CNI plugin, each request to a monitor and pulls.
//!
//! Whether a request is sampled is its caller's decision; of those without a caller's a share is. Without a collector in
//! the settings, and for a request that is not sampled, a span is nothing. OpenTelemetry's own crates are not used: a span's
//! place is one task-local here, and the protocol is one message over the tonic that is there anyway.

mod export;

use std::fmt::Display;
use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rrun_proto::otlp;
use tonic::codegen::http::HeaderMap;

pub use export::{Exporter, flush};

static EXPORTER: OnceLock<Exporter> = OnceLock::new();

/// `kind` of a span.
const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
/// `code` of a status.
const ERROR: i32 = 2;

/// Where a span belongs: what `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    trace: [u8; 16],
    span: [u8; 8],
}

tokio::task_local! {
    static PLACE: Option<Place>;
}

/// Sends all spans from now on to that exporter; the first one counts.
pub fn set(exporter: Exporter) {
    let _ = EXPORTER.set(exporter);
}

/// A span; it ends when it is dropped. One that is not sampled does nothing.
#[derive(Debug)]
pub struct Span(Option<Box<otlp::Span>>);

impl Span {
    /// The span of a request: `path` is `/SERVICE/METHOD`.
    pub fn of_request(headers: &HeaderMap, path: &str) -> Span {
        let Some(exporter) = EXPORTER.get() else { return Span(None) };
        let caller = headers.get("traceparent").and_then(|value| value.to_str().ok()).and_then(parse);
        let sampled = caller.map_or_else(|| exporter.samples(), |(_, sampled)| sampled);
        if !sampled {
            return Span(None);
        }
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
        let mut span = Span::begin(caller.map(|(place, _)| place), path.trim_start_matches('/').to_owned(), SERVER);
        if let (Some(span), Some(state)) = (&mut span.0, headers.get("tracestate").and_then(|value| value.to_str().ok())) {
            span.trace_state = state.to_owned();
        }
        span.set("rpc.system", "grpc");
        span.set("rpc.service", service);
        span.set("rpc.method", method);
        span
    }

    /// A span below the one that this task is in.
    pub fn child(name: &str) -> Span {
        match PLACE.try_with(|place| *place) {
            Ok(Some(place)) => Span::begin(Some(place), name.to_owned(), INTERNAL),
            _ => Span(None),
        }
    }

    fn begin(parent: Option<Place>, name: String, kind: i32) -> Span {
        let trace = parent.map_or_else(random, |parent| parent.trace);
        Span(Some(Box::new(otlp::Span {
            trace_id: trace.to_vec(),
            span_id: random::<8>().to_vec(),
            parent_span_id: parent.map(|parent| parent.span.to_vec()).unwrap_or_default(),
            name,
            kind,
            start_time_unix_nano: now(),
            ..otlp::Span::default()
        })))
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &str, value: &str) {
        if let Some(span) = &mut self.0 {
            let value = otlp::AnyValue { string_value: Some(value.to_owned()), int_value: None };
            span.attributes.push(otlp::KeyValue { key: key.to_owned(), value: Some(value) });
        }
    }

    /// Adds an attribute that is a number.
    pub fn set_number(&mut self, key: &str, value: i64) {
        if let Some(span) = &mut self.0 {
            let value = otlp::AnyValue { string_value: None, int_value: Some(value) };
            span.attributes.push(otlp::KeyValue { key: key.to_owned(), value: Some(value) });
        }
    }

    /// Says that what it stands for failed.
    pub fn fail(&mut self, why: impl Display) {
        if let Some(span) = &mut self.0 {
            span.status = Some(otlp::Status { message: why.to_string(), code: ERROR });
        }
    }

    /// Does something within this span: spans that begin meanwhile are below it.
    /// It is on the heap: spans lie in each other, and a task's future shall not grow with each.
    pub fn around<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        Box::pin(PLACE.scope(self.place(), future))
    }

    /// The same for something that can fail, which is then said in the span.
    pub fn of<T, E: Display, F: Future<Output = Result<T, E>>>(mut self, future: F) -> impl Future<Output = Result<T, E>> + use<T, E, F> {
        let within = self.around(future);
        async move { within.await.inspect_err(|error| self.fail(error)) }
    }

    fn place(&self) -> Option<Place> {
        let span = self.0.as_ref()?;
        Some(Place { trace: span.trace_id.as_slice().try_into().ok()?, span: span.span_id.as_slice().try_into().ok()? })
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(mut span), Some(exporter)) = (self.0.take(), EXPORTER.get()) {
            span.end_time_unix_nano = now();
            exporter.take(*span);
        }
    }
}

/// A future for another task, which stays within this task's span.
pub fn follow<F: Future>(future: F) -> impl Future<Output = F::Output> {
    PLACE.scope(PLACE.try_with(|place| *place).unwrap_or_default(), future)
}

/// A `traceparent` (W3C Trace Context, 3.2) and whether it is sampled.
fn parse(text: &str) -> Option<(Place, bool)> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let [version] = hex::<1>(version)?;
    let (trace, span, [flags]) = (hex::<16>(trace)?, hex::<8>(span)?, hex::<1>(flags)?);
    // A later version may have more parts; the first has four.
    let known = version != 0xff && (version != 0 || parts.next().is_none());
    (known && trace != [0; 16] && span != [0; 8]).then_some((Place { trace, span }, flags & 1 == 1))
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(out)
}

/// Random bytes, not all zero. They are names, no secrets.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    bytes[N - 1] |= 1;
    bytes
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_as_it_is_defined() {
        let (place, sampled) = parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!((place.trace[0], place.trace[15], place.span[0], sampled), (0x0a, 0x9c, 0xb7, true));
        assert!(!parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").unwrap().1);
        assert!(parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some());
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
