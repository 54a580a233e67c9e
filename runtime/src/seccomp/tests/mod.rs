//! The generator against libseccomp, the kernel and the specification.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod docker;
mod generate;
mod interpreter;
mod kernel;
mod oracle;
mod profiles;
