//! `rrun`, an OCI runtime for Linux.
//!
//! The folders are the architecture; a file imports only from those below it:
//!
//! | layer | modules |
//! |---|---|
//! | command line | [`cli`], [`commands`] |
//! | container | [`container`], [`supervise`], [`process`] |
//! | one kernel subject each | [`bundle`], [`rootfs`], [`cgroups`], [`seccomp`], [`namespaces`], [`credentials`], [`hooks`], [`terminal`], … |
//! | system calls | [`sys`], the only `unsafe` code |
//!
//! docs/architecture.md tells the life of create, exec and delete step by step.

pub mod bundle;
pub mod cgroups;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod container;
pub mod credentials;
pub mod criu;
pub mod exec_fifo;
pub mod hooks;
pub mod intel_rdt;
pub mod json;
pub mod log;
pub mod lsm;
pub mod namespaces;
pub mod net_devices;
pub mod notify;
pub mod process;
pub mod relay;
pub mod rootfs;
pub mod scheduling;
pub mod sealed_exe;
pub mod seccomp;
pub mod signals;
pub mod supervise;
pub mod sys;
pub mod sysctl;
pub mod terminal;
pub mod user_ns;

/// Runs the command line that the process was started with; its exit code.
pub fn main() -> i32 {
    cli::main(std::env::args_os().collect())
}
