//! `state`, and the document that `list` shares with it.

use crate::cli::{Globals, Id};
use crate::commands::output;
use crate::container::{Container, Status};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Prints the state of a container as indented JSON without a final newline, as runc does.
pub fn run(globals: &Globals, args: &Id) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    let state = State::of(&container, container.status()?, "");
    output::print(&output::json_indented(&state, "  ")?)?;
    Ok(0)
}

/// The state of a container as runc prints it: the specification's document and some more.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    /// 0 when stopped.
    pid: i32,
    status: Status,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, &'a str>,
    /// A user's name; empty in `state`.
    owner: &'a str,
}

impl<'a> State<'a> {
    pub(super) fn of(container: &'a Container, status: Status, owner: &'a str) -> State<'a> {
        let record = &container.record;
        State {
            oci_version: &record.oci_version,
            id: &record.id,
            pid: if status == Status::Stopped { 0 } else { record.pid },
            status,
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations: record.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            owner,
        }
    }

    /// The cells of a line of `list`.
    pub(super) fn cells(&self) -> Vec<String> {
        let bundle = self.bundle.display().to_string();
        vec![self.id.into(), self.pid.to_string(), self.status.to_string(), bundle, self.created.into(), self.owner.into()]
    }
}
