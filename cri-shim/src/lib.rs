//! `rrun-cri`: a CRI v1 server. docs/cri.md tells how a pod comes to be and where each step is.
//!
//! Its memory is a cache: what it needs is on disk before it is acknowledged, and it may be killed at any moment.

mod check;
pub mod cli;
pub mod cni;
pub mod config;
pub mod containers;
pub mod error;
pub mod events;
pub mod images;
pub mod jobs;
pub mod metrics;
pub mod monitor;
pub mod nri;
pub mod person;
pub mod pods;
pub mod pull;
pub mod record;
pub mod recovery;
pub mod rootfs;
pub mod runtime;
pub mod server;
pub mod service;
pub mod shim;
pub mod stats;
pub mod step;
pub mod streaming;
mod sys;
pub mod trace;
mod tree;
