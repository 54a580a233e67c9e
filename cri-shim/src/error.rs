//! What an RPC can fail with, and the gRPC code of each. Kubelet branches on the code (NotFound above
//! all) and shows the text; some texts are an interface and are matched as prefixes (cri.md 1.4).

use tonic::{Code, Status};

/// The result of most functions here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed request: one variant per gRPC code in use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object is not there: `NotFound`.
    #[error("{0}")]
    NotFound(String),
    /// A field of the request is wrong; the text names it: `InvalidArgument`.
    #[error("{0}")]
    InvalidArgument(String),
    /// The object is in a state that does not allow this: `FailedPrecondition`.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The name is taken: `AlreadyExists`.
    #[error("{0}")]
    AlreadyExists(String),
    /// It took longer than was allowed: `DeadlineExceeded`.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// Something this needs is not ready, and a retry may help: `Unavailable`.
    #[error("{0}")]
    Unavailable(String),
    /// The caller may not: `PermissionDenied` (registries: 403).
    #[error("{0}")]
    PermissionDenied(String),
    /// The caller is not known: `Unauthenticated` (registries: 401).
    #[error("{0}")]
    Unauthenticated(String),
    /// No space, too many: `ResourceExhausted`.
    #[error("{0}")]
    ResourceExhausted(String),
    /// Everything else: `Unknown`, which is what kubelet expects of a runtime's own errors.
    #[error("{0:#}")]
    Internal(anyhow::Error),
}

/// Its causes are in the text, and not below it: whoever prints a chain of causes shall not see them twice.
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Error {
        Error::Internal(error)
    }
}

impl Error {
    /// The gRPC code of this error.
    pub fn code(&self) -> Code {
        match self {
            Error::NotFound(_) => Code::NotFound,
            Error::InvalidArgument(_) => Code::InvalidArgument,
            Error::FailedPrecondition(_) => Code::FailedPrecondition,
            Error::AlreadyExists(_) => Code::AlreadyExists,
            Error::DeadlineExceeded(_) => Code::DeadlineExceeded,
            Error::Unavailable(_) => Code::Unavailable,
            Error::PermissionDenied(_) => Code::PermissionDenied,
            Error::Unauthenticated(_) => Code::Unauthenticated,
            Error::ResourceExhausted(_) => Code::ResourceExhausted,
            Error::Internal(_) => Code::Unknown,
        }
    }

    /// The same error with what was being done before its text, separated by `: `. The code stays.
    pub fn context(self, what: impl std::fmt::Display) -> Error {
        match self {
            Error::NotFound(text) => Error::NotFound(format!("{what}: {text}")),
            Error::InvalidArgument(text) => Error::InvalidArgument(format!("{what}: {text}")),
            Error::FailedPrecondition(text) => Error::FailedPrecondition(format!("{what}: {text}")),
            Error::AlreadyExists(text) => Error::AlreadyExists(format!("{what}: {text}")),
            Error::DeadlineExceeded(text) => Error::DeadlineExceeded(format!("{what}: {text}")),
            Error::Unavailable(text) => Error::Unavailable(format!("{what}: {text}")),
            Error::PermissionDenied(text) => Error::PermissionDenied(format!("{what}: {text}")),
            Error::Unauthenticated(text) => Error::Unauthenticated(format!("{what}: {text}")),
            Error::ResourceExhausted(text) => Error::ResourceExhausted(format!("{what}: {text}")),
            Error::Internal(error) => Error::Internal(error.context(what.to_string())),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        Status::new(error.code(), error.to_string())
    }
}
