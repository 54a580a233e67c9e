//! Pulls from servers that are good, bad and in between: a fake registry that does as told, and Debian's real one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod artifact;
mod bad;
mod fake;
mod image;
mod mirrors;
mod policy;
mod real;
mod resume;
mod world;
