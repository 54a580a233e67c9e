//! A gRPC service whose requests are timed and traced and whose failures are counted, by RPC.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::server::NamedService;
use tower_service::Service;

use super::{ERRORS, OPERATIONS};
use crate::service::deadline;
use crate::trace::Span;

/// A service with a clock.
#[derive(Debug, Clone)]
pub struct Timed<S>(pub S);

impl<S> Service<Request<Body>> for Timed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (began, path) = (Instant::now(), request.uri().path().to_owned());
        let deadline = deadline::of(request.headers());
        let mut span = Span::of_request(request.headers(), &path);
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = span.around(deadline::within(deadline, answer)).await?;
            let operation = path.rsplit('/').next().unwrap_or_default();
            // A failure before the first message stands in the headers; a stream's own end is not waited for.
            let code = answer.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok()).map(tonic::Code::from_i32);
            span.set_number("rpc.grpc.status_code", code.map_or(0, |code| code as i64));
            if let Some(code) = code.filter(|code| *code != tonic::Code::Ok) {
                span.fail(answer.headers().get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or(code.description()));
            }
            match code {
                // Whatever a client makes up shall not grow our memory.
                Some(tonic::Code::Unimplemented) => (),
                None | Some(tonic::Code::Ok) => OPERATIONS.observe(operation, began.elapsed()),
                Some(code) => {
                    OPERATIONS.observe(operation, began.elapsed());
                    ERRORS.add(&[operation, &format!("{code:?}")], 1);
                }
            }
            Ok(answer)
        })
    }
}

impl<S: NamedService> NamedService for Timed<S> {
    const NAME: &'static str = S::NAME;
}
