//! The daemon's own metrics, in Prometheus's text format, on the address that the settings name.
//!
//! What is counted here lives in the daemon's memory and begins anew with it; what is only looked at (pods, monitors, our
//! own process) is read when somebody scrapes. [`Timed`] times every RPC; other modules use the families below.

mod family;
mod http;
mod look;
mod timed;

pub use family::{Counters, Histograms, Timer};
pub use http::serve;
pub use timed::Timed;

/// Requests by RPC.
pub static OPERATIONS: Histograms =
    Histograms::new("rrun_cri_operation_seconds", "operation", "Time that requests took until they were answered, by RPC.");
/// Failed requests by RPC and gRPC code.
pub static ERRORS: Counters =
    Counters::new("rrun_cri_operation_errors_total", &["operation", "code"], "Requests that failed, by RPC and gRPC code.");
/// CNI by command.
pub static NETWORK: Histograms =
    Histograms::new("rrun_cri_network_seconds", "command", "Time that all CNI plugins of a pod took, by command.");
/// Pulls by result (`ok` or `error`).
pub static PULLS: Histograms = Histograms::new("rrun_cri_image_pull_seconds", "result", "Time that pulls of images took, by result.");
/// Bytes of layers.
pub static PULLED: Counters = Counters::new("rrun_cri_image_pull_bytes_total", &[], "Bytes of layers fetched from registries.");
/// What the janitor found that belongs to nobody, by kind. Anything but 0 is a bug or somebody else's doing.
pub static LEAKED: Counters =
    Counters::new("rrun_cri_leaked_objects_total", &["kind"], "Things without an owner that were found and removed, by kind.");
/// Monitors that died and were replaced.
pub static SUCCESSORS: Counters =
    Counters::new("rrun_cri_monitor_successors_total", &[], "Monitors that ended unexpectedly and were replaced.");

/// All that is counted, as text. What never happened is there with 0 where it has no labels.
fn counted(text: &mut String) {
    for histograms in [&OPERATIONS, &NETWORK, &PULLS] {
        histograms.write(text);
    }
    for counters in [&ERRORS, &PULLED, &LEAKED, &SUCCESSORS] {
        counters.write(text);
    }
}
