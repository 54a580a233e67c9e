//! `rrun-cri`: a CRI v1 server. docs/cri.md tells how a pod comes to be and where each step is.
//!
//! Its memory is a cache: what it needs is on disk before it is acknowledged, and it may be killed at any moment.

pub mod cni;
pub mod config;
pub mod containers;
pub mod error;
pub mod images;
pub mod monitor;
pub mod streaming;
