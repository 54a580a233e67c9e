//! The deadline that a client gives its request (the header `grpc-timeout`). tonic answers `Cancelled` when it has
//! passed; a client expects `DeadlineExceeded`, and which of the two it sees is a race between its clock and ours. So ours
//! ends a millisecond earlier, with the right code. Called around every RPC (`metrics::Timed`).

use std::convert::Infallible;
use std::future::Future;
use std::time::{Duration, Instant};

use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response};
use tonic::{Request, Status};

/// Awaits an answer for as long as the client said; the future is dropped then.
pub(crate) async fn within(
    deadline: Option<Duration>,
    answer: impl Future<Output = Result<Response<Body>, Infallible>>,
) -> Result<Response<Body>, Infallible> {
    let Some(deadline) = deadline else { return answer.await };
    let passed = |_| Ok(Status::deadline_exceeded("the request's deadline has passed").into_http());
    tokio::time::timeout(deadline.saturating_sub(Duration::from_millis(1)), answer).await.unwrap_or_else(passed)
}

/// When a request's time is over, for work that goes on without its caller.
pub(crate) fn at<T>(request: &Request<T>) -> Option<Instant> {
    // Before the answer is given up: what is done in time is heard of.
    Instant::now().checked_add(of(request.metadata().as_ref())?.saturating_sub(Duration::from_millis(5)))
}

/// The header's value: at most eight digits and a unit (gRPC over HTTP/2, `Timeout`). Nothing where it is malformed.
pub(crate) fn of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::codegen::http::HeaderValue;

    #[test]
    fn headers() {
        for (text, wanted) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("240S", Some(Duration::from_secs(240))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("937u", Some(Duration::from_micros(937))),
            ("0n", Some(Duration::ZERO)),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("+1S", None),
            ("1s", None),
            ("1.5S", None),
        ] {
            let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), HeaderValue::from_static(text))]);
            assert_eq!(of(&headers), wanted, "{text:?}");
        }
        assert_eq!(of(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn what_takes_too_long_is_ended() {
        let answer = within(Some(Duration::from_millis(2)), std::future::pending()).await.unwrap();
        assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), tonic::Code::DeadlineExceeded);
    }
}
