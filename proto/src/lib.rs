//! The protocols of `rrun-cri`, server and client side, generated from the `.proto` files beside `src`.
//!
//! The generated code is checked in, so that building needs no protocol compiler; `tests/regenerate.rs`
//! makes it anew and compares. Messages carry serde's traits, for records and verbose answers as JSON.

/// The Container Runtime Interface, v1 (`runtime/v1/api.proto`).
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!("gen/runtime.v1.rs");

    /// Never shows what is in it: it would end in a log.
    impl std::fmt::Debug for AuthConfig {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("AuthConfig").field("server_address", &self.server_address).finish_non_exhaustive()
        }
    }
}

/// Our own service beside CRI, v1 (`rrun/v1/images.proto`).
pub mod rrun {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!("gen/rrun.v1.rs");

    /// Never shows what is in it: it would end in a log.
    impl std::fmt::Debug for PullRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("PullRequest").field("image", &self.image).finish_non_exhaustive()
        }
    }
}

/// The Node Resource Interface, v1alpha1 (`nri/v1alpha1/api.proto`).
pub mod nri {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!("gen/nri.pkg.api.v1alpha1.rs");
}

/// The envelopes of ttrpc (`ttrpc/v1/ttrpc.proto`).
pub mod ttrpc {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!("gen/ttrpc.v1.rs");
}

/// OpenTelemetry's trace protocol, v1, as far as it is used (`opentelemetry/trace.proto`).
pub mod otlp {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!("gen/opentelemetry.proto.collector.trace.v1.rs");
}
