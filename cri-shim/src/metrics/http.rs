//! `GET /metrics` over HTTP/1.1.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::{counted, look};
use crate::pods::blocking;
use crate::shim::Shim;

/// How many may be connected. Scrapers are few.
const CONNECTIONS: usize = 16;

/// Serves on `metrics.address` of the settings for ever; nothing where it is empty.
///
/// # Errors
/// An address that cannot be listened on.
pub async fn serve(shim: &Shim) -> anyhow::Result<()> {
    let address = shim.config.metrics.address.as_str();
    if address.is_empty() {
        return Ok(());
    }
    let listener = TcpListener::bind(address).await.with_context(|| format!("metrics.address = {address:?}"))?;
    tracing::info!(address = %listener.local_addr()?, "metrics");
    tokio::spawn(accept(listener, shim.clone()));
    Ok(())
}

async fn accept(listener: TcpListener, shim: Shim) {
    let room = std::sync::Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: nothing helps but waiting.
                tracing::warn!("metrics: accept: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let shim = shim.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, shim.clone()));
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!("metrics: {error}");
            }
            drop(place);
        });
    }
}

async fn answer<B>(request: Request<B>, shim: Shim) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match blocking(move || Ok(text(&shim))).await {
            Ok(text) => {
                let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
                *response.body_mut() = text.into();
            }
            Err(error) => {
                tracing::error!("metrics: {error}");
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
        },
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    Ok(response)
}

fn text(shim: &Shim) -> String {
    let mut text = String::with_capacity(16 << 10);
    counted(&mut text);
    look::looked_at(shim, &mut text);
    text
}
