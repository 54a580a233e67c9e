//! Why a registry did not give what was asked: the kind decides whether another try, another server or neither helps, and the
//! gRPC code that kubelet sees. Texts name the server and the cause and hold no secret.
use std::time::Duration;

use crate::error::Error;

/// What sort of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No connection: name not found, refused, no route.
    Unreachable,
    /// Connection lost, stalled or too slow, or a 5xx.
    Unavailable,
    /// 429.
    TooMany,
    /// 404.
    NotFound,
    /// 401.
    Unauthenticated,
    /// 403.
    Denied,
    /// The server's certificate is not trusted.
    Certificate,
    /// What came is not what its digest, size or type says.
    Corrupt,
    /// Another 4xx, or an answer that is not of the API.
    Refused,
    /// The image is of a kind that is not supported, or for another platform.
    Unsupported,
    /// The policy does not accept the image.
    Signature,
    /// hosts.toml, a certificate file, a credential file.
    Settings,
    /// The disk is full.
    DiskFull,
    /// A layer that cannot be unpacked, or a fault of this machine.
    Local,
    /// Nobody waits for it any more.
    Cancelled,
}

/// A failure with its text, `server: cause`.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// What sort.
    pub(super) kind: Kind,
    /// One line.
    pub(super) text: String,
    /// What the server said about when to come back.
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of a kind.
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into(), retry_after: None }
    }

    /// Whether the same server may do better in a moment.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::Unavailable | Kind::TooMany)
    }

    /// The error of an RPC that was pulling `image`.
    pub(super) fn into_error(self, image: &str) -> Error {
        let text = format!("pull {image}: {}", self.text);
        match self.kind {
            // CRI's ErrRegistryUnavailable and ErrSignatureValidationFailed are matched as prefixes.
            Kind::Unreachable | Kind::Unavailable => Error::Unavailable(format!("RegistryUnavailable: {text}")),
            Kind::Signature => Error::PermissionDenied(format!("SignatureValidationFailed: {text}")),
            Kind::TooMany | Kind::DiskFull => Error::ResourceExhausted(text),
            Kind::NotFound => Error::NotFound(text),
            Kind::Unauthenticated => Error::Unauthenticated(text),
            Kind::Denied => Error::PermissionDenied(text),
            Kind::Certificate | Kind::Settings | Kind::Unsupported => Error::FailedPrecondition(text),
            Kind::Corrupt | Kind::Refused | Kind::Local | Kind::Cancelled => Error::Internal(anyhow::anyhow!(text)),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}
