//! The harness of the behaviour tests: bundles, calls of the runtime's command line, guards that
//! clean up, and the check that nothing is left.
//!
//! The runtime under test is `$RRUN`, else `bin/rrun` of the workspace; runc or crun will do, the
//! tests are the same, and what a peer does otherwise stands in [`known`]. Everything a test makes
//! carries its [`Runtime`]'s tag in its name, which is how leftovers are found.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failing harness fails the test, and its panic says where")]

pub mod bundle;
pub mod call;
pub mod cgroup;
pub mod container;
pub mod dir;
pub mod host;
pub mod known;
pub mod leftovers;
pub mod runtime;
pub mod sys;
pub mod terminal;

pub use bundle::Bundle;
pub use call::{Call, Done};
pub use container::Container;
pub use runtime::Runtime;

/// The static probe (see `probe/`), placed at `/probe` of every root file system.
pub static PROBE: &[u8] = include_bytes!(env!("PROBE"));

/// The mount that a report shows at `target`: the topmost one.
#[track_caller]
pub fn mount_at<'a>(report: &'a serde_json::Value, target: &str) -> &'a serde_json::Value {
    let mounts = report["mounts"].as_array().unwrap();
    let found = mounts.iter().rev().find(|m| m["target"] == target);
    found.unwrap_or_else(|| panic!("nothing is mounted at {target}: {:#?}", report["mounts"]))
}

/// Whether a comma-separated list holds `option`.
pub fn has_option(list: &serde_json::Value, option: &str) -> bool {
    list.as_str().unwrap_or_default().split(',').any(|o| o == option)
}

/// Ends the test as skipped unless the condition holds; the reason names what is missing.
#[macro_export]
macro_rules! require {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            $crate::host::skip(&format!($($reason)+));
            return;
        }
    };
}
