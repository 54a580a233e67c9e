//! Every fallback for an older kernel, once: the themes that exercise it run again under a filter
//! that answers ENOSYS to one call, and to all of them together.

use std::path::Path;
use std::process::Command;
use tests::runtime::Kind;
use tests::{Runtime, host, require};

/// What a kernel of 2019 (5.2) lacks, and what came since.
const NEWER: [&str; 11] = [
    "openat2",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "open_tree",
    "mount_setattr",
    "move_mount",
    "clone3",
    "pidfd_open",
    "close_range",
];

/// Tests that cannot hold without the calls: the feature is the call.
const NEEDS: [(&str, &[&str]); 4] = [
    ("mount_setattr", &["recursive_attributes", "ro_is_for_the_top_and_rro", "idmapped", "nosymfollow"]),
    ("open_tree", &["idmapped", "recursive_attributes", "ro_is_for_the_top_and_rro"]),
    ("move_mount", &["idmapped", "recursive_attributes", "ro_is_for_the_top_and_rro"]),
    ("fsopen", &[]),
];

/// Runs the themes once more, as this very program under the filter.
fn without(calls: &[&str]) {
    require!(Runtime::new().kind() == Kind::Rrun, "rrun's own fallbacks");
    require!(host::is_root(), "root: a filter that the container's set-up outlives");
    require!(!host::is_user_mode(), "a kernel on hardware (in user mode Linux it takes too long)");
    require!(std::env::var_os("RRUN_TEST_ENOSYS").is_none(), "a run that is not under such a filter already");
    let tool = Path::new(env!("CARGO_BIN_EXE_fake-enosys"));
    let mut command = Command::new(tool);
    command.arg(calls.join(",")).arg(std::env::current_exe().unwrap());
    command.args(["lifecycle::", "mounts::", "mounts_special::", "exec::", "devices::", "masks::", "namespaces::a", "security::links"]);
    for (call, tests) in NEEDS {
        if calls.contains(&call) {
            for test in tests {
                command.args(["--skip", test]);
            }
        }
    }
    let output = command.env("RRUN_TEST_ENOSYS", calls.join(",")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "without {calls:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let ran = text.lines().find_map(|l| l.strip_prefix("running ")).and_then(|l| l.split(' ').next()).map(|n| n.parse::<u32>().unwrap());
    assert!(ran > Some(60), "{text}");
}

macro_rules! without {
    ($($call:ident),*) => {
        $(#[test]
        fn $call() {
            without(&[stringify!($call)]);
        })*
    };
}

without!(openat2, fsopen, open_tree, mount_setattr, clone3, pidfd_open, close_range);

#[test]
fn the_mount_api_of_5_2() {
    without(&["fsopen", "fsmount", "fsconfig", "fspick", "open_tree", "move_mount", "mount_setattr"]);
}

#[test]
fn all_together() {
    without(&NEWER);
}
