//! `list`.

use super::state::State;
use crate::cli::{Globals, List};
use crate::commands::output;
use crate::container::{Container, Error};
use crate::{json, log};
use anyhow::{Context, Result};
use std::io::ErrorKind;
use std::path::Path;

/// Prints the containers below the state root. One that cannot be read is a warning, not the end.
pub fn run(globals: &Globals, args: List) -> Result<i32> {
    let mut containers = Vec::new();
    for id in ids(&globals.root, globals.root_given)? {
        match Container::load(&globals.root, &id) {
            Ok(container) => containers.push(container),
            // Deleted since the folder was read.
            Err(e) if e.downcast_ref() == Some(&Error::NotFound) => (),
            Err(e) => log::warn(format!("load container {id}: {}", log::message(&e))),
        }
    }
    if args.quiet {
        let ids: String = containers.iter().flat_map(|c| [c.record.id.as_str(), "\n"]).collect();
        output::print(&ids)?;
        return Ok(0);
    }
    let users = if containers.is_empty() { String::new() } else { std::fs::read_to_string("/etc/passwd").unwrap_or_default() };
    let owners: Vec<String> = containers.iter().map(|c| owner(&users, c.record.owner)).collect();
    let mut states = Vec::with_capacity(containers.len());
    for (container, owner) in containers.iter().zip(&owners) {
        match container.status() {
            Ok(status) => states.push(State::of(container, status, owner)),
            Err(e) => log::warn(format!("status for {}: {}", container.record.id, log::message(&e))),
        }
    }
    let text = if args.json {
        // Go's encoder knows an empty list only as one that was never made.
        json::text(&(!states.is_empty()).then_some(&states)) + "\n"
    } else {
        let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from).to_vec();
        output::table(&std::iter::once(head).chain(states.iter().map(State::cells)).collect::<Vec<_>>())
    };
    output::print(&text)?;
    Ok(0)
}

/// The names of the folders below the state root, sorted. The default root may be missing.
fn ids(root: &Path, given: bool) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(root) {
        Err(e) if e.kind() == ErrorKind::NotFound && !given => return Ok(Vec::new()),
        other => other.with_context(|| format!("open {}", root.display()))?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", root.display()))?;
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            ids.extend(entry.file_name().into_string());
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

/// A user's name by `/etc/passwd` alone: a static program cannot ask the C library's modules.
fn owner(users: &str, uid: u32) -> String {
    let fields = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    };
    users.lines().find_map(fields).unwrap_or_else(|| format!("#{uid}"))
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn owners() {
        let users = "root:x:0:0:root:/root:/bin/sh\n+\nalice:x:1000:1000::/:\n";
        assert_eq!(owner(users, 0), "root");
        assert_eq!(owner(users, 1000), "alice");
        assert_eq!(owner(users, 7), "#7");
    }
}
