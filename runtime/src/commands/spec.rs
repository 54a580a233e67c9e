//! `spec`.

use crate::bundle::SPEC_VERSION;
use crate::cli::Spec;
use anyhow::{Context, Result, bail};
use nix::unistd::{getegid, geteuid};
use std::io::{ErrorKind, Write};
use std::path::Path;

/// A shell in a container with namespaces of its own and few rights. A line that begins with `?`
/// is for some only: `?root` and `?user` (one id mapped, the host's network and so its /sys, no
/// device rules, no group for terminals), `?v2` where cgroups are of version 2.
const EXAMPLE: &str = include_str!("spec.json.in");

/// Writes `config.json`; never over one that is there.
pub fn run(args: &Spec) -> Result<i32> {
    let path = args.bundle.as_deref().unwrap_or(Path::new("")).join("config.json");
    let mut file = match std::fs::File::create_new(&path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => bail!("File {} exists. Remove it first", path.display()),
        other => other.with_context(|| path.display().to_string())?,
    };
    file.write_all(example(args.rootless, is_v2()).as_bytes()).with_context(|| path.display().to_string())?;
    Ok(0)
}

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn example(rootless: bool, v2: bool) -> String {
    let mut text = String::with_capacity(EXAMPLE.len());
    for line in EXAMPLE.lines() {
        let (wanted, line) = match line.strip_prefix('?').and_then(|l| l.split_once(' ')) {
            None => (true, line),
            Some(("root", line)) => (!rootless, line),
            Some(("user", line)) => (rootless, line),
            Some((_, line)) => (v2, line),
        };
        if wanted {
            text.push_str(line);
            text.push('\n');
        }
    }
    let text = text.replace("@VERSION@", SPEC_VERSION).replace("@NAME@", "rrun");
    text.replace("@UID@", &geteuid().to_string()).replace("@GID@", &getegid().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_accepted() {
        for (rootless, v2) in [(false, false), (false, true), (true, false), (true, true)] {
            let json = example(rootless, v2);
            assert!(!json.contains(['?', '@']), "{json}");
            let spec: oci_spec::runtime::Spec = crate::bundle::parse(json.as_bytes()).unwrap();
            crate::bundle::check(&spec).unwrap();
            let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
            assert_eq!(namespaces.len(), 5 + usize::from(v2));
        }
    }
}
