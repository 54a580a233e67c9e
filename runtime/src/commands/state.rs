//! `state`, and the document that `list` shares with it.

use crate::cli::{Globals, Id};
use crate::commands::output;
use crate::container::{Container, Status};
use crate::json::{self, written};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Prints the state of a container as indented JSON without a final newline, as runc does.
pub fn run(globals: &Globals, args: &Id) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    let state = State::of(&container, container.status()?, "");
    output::print(&json::indented(&state, "  "))?;
    Ok(0)
}

/// The state of a container as runc prints it: the specification's document and some more.
#[derive(Debug)]
pub(super) struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    /// 0 when stopped.
    pid: i32,
    status: &'static str,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    annotations: Option<&'a BTreeMap<String, String>>,
    /// A user's name; empty in `state`.
    owner: &'a str,
}

written! { State<'a>;
    "ociVersion" => oci_version,
    "id" => id,
    "pid" => pid,
    "status" => status,
    "bundle" => bundle,
    "rootfs" => rootfs,
    "created" => created,
    "annotations" => annotations,
    "owner" => owner,
}

impl<'a> State<'a> {
    pub(super) fn of(container: &'a Container, status: Status, owner: &'a str) -> State<'a> {
        let record = &container.record;
        State {
            oci_version: &record.oci_version,
            id: &record.id,
            pid: if status == Status::Stopped { 0 } else { record.pid },
            status: status.name(),
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations: Some(&record.annotations).filter(|a| !a.is_empty()),
            owner,
        }
    }

    /// The cells of a line of `list`.
    pub(super) fn cells(&self) -> Vec<String> {
        let bundle = self.bundle.display().to_string();
        vec![self.id.into(), self.pid.to_string(), self.status.to_string(), bundle, self.created.into(), self.owner.into()]
    }
}
