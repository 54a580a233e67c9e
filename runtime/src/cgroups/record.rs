//! What a container's record says about its cgroups: enough to find and to remove them all.

use super::{v1, v2};
use crate::json::read::Reader;
use crate::json::{Read, Write, Writer, document};
use anyhow::Result;
use std::path::PathBuf;

/// Who makes the cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// This program, by the files.
    #[default]
    Cgroupfs,
    /// systemd, asked over D-Bus for a scope.
    Systemd,
    /// Nobody: the container stays in the caller's.
    Disabled,
}

/// Where a container's cgroups are.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub(super) driver: Driver,
    pub(super) rootless: bool,
    pub(super) hierarchies: Vec<Hierarchy>,
    /// With the systemd driver: the scope's name and its slice.
    pub(super) unit: Option<[String; 2]>,
}

/// A container's place in one hierarchy.
#[derive(Clone, Debug, Default)]
pub(super) struct Hierarchy {
    pub(super) v2: bool,
    /// As in `/proc/self/cgroup`.
    pub(super) controllers: String,
    pub(super) mountpoint: PathBuf,
    /// The container's folder.
    pub(super) dir: PathBuf,
    /// Made for the container; else it is the caller's own, which nobody touches.
    pub(super) ours: bool,
}

document! { Record;
    "driver" => driver,
    "rootless" => rootless,
    "hierarchies" => hierarchies,
    "unit" => unit,
}

document! { Hierarchy;
    "v2" => v2,
    "controllers" => controllers,
    "mountpoint" => mountpoint,
    "dir" => dir,
    "ours" => ours,
}

impl Driver {
    const ALL: [(&'static str, Driver); 3] = [("cgroupfs", Driver::Cgroupfs), ("systemd", Driver::Systemd), ("disabled", Driver::Disabled)];
}

impl Read for Driver {
    fn read(reader: &mut Reader<'_>) -> crate::json::read::Result<Driver> {
        reader.choice(&Driver::ALL.map(|(name, _)| name), "unknown value").map(|i| Driver::ALL[i].1)
    }
}

impl Write for Driver {
    fn write(&self, writer: &mut Writer) {
        Driver::ALL.iter().filter(|(_, driver)| driver == self).for_each(|(name, _)| name.write(writer));
    }
}

impl Hierarchy {
    pub(super) fn has(&self, controller: &str) -> bool {
        !self.v2 && self.controllers.split(',').any(|c| c == controller)
    }
}

impl Record {
    /// Whether the container's processes are frozen: one open, one read.
    pub fn frozen(&self) -> Result<bool> {
        match self.freezer() {
            Some(h) if h.v2 => v2::frozen(&h.dir),
            Some(h) => v1::frozen(&h.dir),
            None => Ok(false),
        }
    }

    pub(super) fn ours(&self) -> impl Iterator<Item = &Hierarchy> {
        self.hierarchies.iter().filter(|h| h.ours)
    }

    pub(super) fn freezer(&self) -> Option<&Hierarchy> {
        self.ours().find(|h| h.has("freezer")).or_else(|| self.ours().find(|h| h.v2))
    }
}
