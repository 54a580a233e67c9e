//! What the peers are known to do otherwise: the one place where a test may treat them apart.

use crate::runtime::Kind::{self, Crun, Runc};
use std::io::Write;

/// Which peer, what (the name that a test asks by), and how it differs.
pub const DIFFERENCES: &[(Kind, &str, &str)] = &[
    (Runc, "kill RTMIN+1", "knows no real-time signals by name"),
    (Runc, "execve failure", "start succeeds, init ends with 255"),
    (Runc, "defaults", "hands the option `defaults` to the file system"),
    (Runc, "no mount namespace", "init reads /proc after the chroot"),
    (Runc, "umask and oom score of exec", "takes them from the container alone"),
    (Runc, "poststart time", "runs poststart at the end of create"),
    (Runc, "poststop failure", "skips the hooks after the one that failed"),
    (Runc, "startContainer failure", "start succeeds, init ends with 1"),
    (Runc, "small memory limit", "its own init needs more than 2 MiB"),
    (Runc, "groups with subordinate ids", "allows none in a rootless container"),
    (Runc, "exec without the bundle", "exec reads the bundle's config.json again"),
    (Runc, "capability the caller lacks", "capset's EPERM fails the create"),
    (Runc, "takes linux.resources.devices", "passes over letters it does not know"),
    (Runc, "ids beyond 32 bits", "exec -u 4294967296 is user 0"),
    (Runc, "pidfd socket", "leaves an empty folder when there is none"),
    (Runc, "warnings in the log", "says there what a rootless container goes without"),
    (Runc, "calls after the filter", "sets ids and opens paths after loading it"),
    (Runc, "takes preserve 3", "its own descriptors are there by those numbers"),
    (Runc, "takes ociVersion", "looks at no version"),
    (Runc, "takes hooks.poststop[0].timeout", "times out at once"),
    (Runc, "restore beyond the configuration", "gives what the images hold"),
    (Runc, "checkpoint with files as streams", "CRIU is told of pipes alone"),
    (Runc, "network of a checkpoint", "the loopback device is down after a restore"),
    (Runc, "cgroups of a failed restore", "leaves them"),
    (Runc, "name of a restored terminal", "orphan-pts-master"),
    (Runc, "text of a mount that CRIU cannot name", "its own words"),
    (Crun, "kill stopped text", "its own words"),
    (Crun, "delete running text", "its own words"),
    (Crun, "start texts", "its own words"),
    (Crun, "taken id text", "its own words"),
    (Crun, "id text", "its own words"),
    (Crun, "resume text", "its own words"),
    (Crun, "exec in paused", "its own words and code"),
];

/// Whether `kind` is known to differ in `what`; said on standard error when it does.
pub fn differs(kind: Kind, what: &str) -> bool {
    let found = DIFFERENCES.iter().find(|(k, w, _)| *k == kind && *w == what);
    if let Some((_, _, how)) = found {
        let thread = std::thread::current();
        let _ = writeln!(std::io::stderr(), "DIFFERS {} ({what}): {kind:?}: {how}", thread.name().unwrap_or("?"));
    }
    found.is_some()
}
