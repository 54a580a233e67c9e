//! `linux.intelRdt`: the container's share of the last-level cache and of memory bandwidth, by the resctrl
//! file system (Documentation/filesystems/resctrl.rst). Children are born into their parent's group, so the
//! runtime enters the group before it clones.

use crate::json::document;
use crate::sys;
use anyhow::{Context, Result, bail};
use oci_spec::runtime::Linux;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/resctrl";
const RDTGROUP_MAGIC: i64 = 0x0765_5821;

/// A container's groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// The folder of its control group.
    group: PathBuf,
    /// The folder of its monitoring group; empty where it has none.
    monitor: PathBuf,
    /// The control group is the container's own.
    ours: bool,
}

document! { Groups;
    "group" => group,
    "monitor" => monitor,
    "ours" => ours,
}

/// What is to be done for a new container.
#[derive(Debug)]
pub struct Plan {
    /// Where.
    pub groups: Groups,
    schemata: Vec<String>,
}

impl Plan {
    /// Reads `linux.intelRdt`.
    pub fn new(linux: Option<&Linux>, id: &str) -> Result<Option<Plan>> {
        let Some(rdt) = linux.and_then(|l| l.intel_rdt().as_ref()) else { return Ok(None) };
        let mounted = sys::openat(sys::CWD, c"/sys/fs/resctrl", nix::libc::O_PATH, 0).and_then(|fd| sys::fstype(fd.as_fd()));
        if mounted != Ok(RDTGROUP_MAGIC) {
            bail!(
                "linux.intelRdt: this host has no resctrl file system at {ROOT} (mount -t resctrl resctrl {ROOT}, where the CPU has Intel RDT)"
            );
        }
        let given = rdt.schemata().iter().flatten().chain(rdt.l3_cache_schema()).chain(rdt.mem_bw_schema());
        let schemata: Vec<String> =
            given.flat_map(|text| text.lines()).map(|line| line.trim().to_owned()).filter(|l| !l.is_empty()).collect();
        let monitored = rdt.enable_monitoring().unwrap_or(false);
        Plan::below(Path::new(ROOT), rdt.clos_id().as_deref().filter(|c| !c.is_empty()), id, schemata, monitored).map(Some)
    }

    fn below(root: &Path, clos_id: Option<&str>, id: &str, schemata: Vec<String>, monitored: bool) -> Result<Plan> {
        let name = clos_id.unwrap_or(id);
        if name == "." || name == ".." || name.contains(['/', '\n']) {
            bail!("linux.intelRdt.closID: {name:?} is not the name of a folder");
        }
        let group = root.join(name);
        let exists = group.is_dir();
        if clos_id.is_some() && exists {
            let there = std::fs::read_to_string(group.join("schemata")).unwrap_or_default();
            if let Some(line) = schemata.iter().find(|line| !there.lines().any(|l| l.trim() == line.as_str())) {
                bail!("linux.intelRdt: the group {name} is there already, and its schemata has no line {line:?}");
            }
        } else if clos_id.is_some() && schemata.is_empty() {
            bail!("linux.intelRdt.closID: there is no group {}, and no schemata to make it with", group.display());
        } else if clos_id.is_none() && exists {
            bail!("linux.intelRdt: the group {} is there already", group.display());
        }
        let monitor = if monitored { group.join("mon_groups").join(id) } else { PathBuf::new() };
        Ok(Plan { groups: Groups { group, monitor, ours: !exists }, schemata })
    }

    /// Makes the groups and enters them: the caller's children will be in them.
    pub fn make(&self) -> Result<()> {
        let Groups { group, monitor, ours } = &self.groups;
        if *ours {
            std::fs::create_dir(group).with_context(|| format!("linux.intelRdt: make the group {}", group.display()))?;
            set(group, &self.schemata)?;
        }
        if monitor != Path::new("") {
            std::fs::create_dir(monitor).with_context(|| format!("linux.intelRdt: make the group {}", monitor.display()))?;
        }
        self.groups.enter()
    }
}

impl Groups {
    /// Moves the calling process into them.
    pub fn enter(&self) -> Result<()> {
        for folder in [&self.group, &self.monitor].into_iter().filter(|f| f.as_path() != Path::new("")) {
            let tasks = folder.join("tasks");
            std::fs::write(&tasks, std::process::id().to_string())
                .with_context(|| format!("linux.intelRdt: write to {}", tasks.display()))?;
        }
        Ok(())
    }

    /// Changes lines of the schemata (`L3:0=f`, `MB:0=50`).
    pub fn update(&self, schemata: &[String]) -> Result<()> {
        set(&self.group, schemata)
    }

    /// Removes what was made; finds nothing to do the second time.
    pub fn remove(&self) -> Result<()> {
        let group = if self.ours { self.group.as_path() } else { Path::new("") };
        for folder in [self.monitor.as_path(), group] {
            if !folder.starts_with(ROOT) || folder == Path::new(ROOT) {
                continue;
            }
            match std::fs::remove_dir(folder) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(|| format!("remove {}", folder.display())),
                _ => (),
            }
        }
        Ok(())
    }

    /// The container's lines and the root's, by the names of `events`.
    pub fn stats(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (folder, suffix) in [(self.group.as_path(), ""), (Path::new(ROOT), "_root")] {
            let text = std::fs::read_to_string(folder.join("schemata")).unwrap_or_default();
            for (start, name) in [("L3:", "l3_cache_schema"), ("MB:", "mem_bw_schema")] {
                if let Some(line) = text.lines().map(str::trim).find(|l| l.starts_with(start)) {
                    all.insert(format!("{name}{suffix}"), line.to_owned());
                }
            }
        }
        all
    }
}

fn set(group: &Path, schemata: &[String]) -> Result<()> {
    let path = group.join("schemata");
    for line in schemata {
        let last = || std::fs::read_to_string(Path::new(ROOT).join("info/last_cmd_status")).unwrap_or_default();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes()))
            .with_context(|| format!("linux.intelRdt: write {line:?} to {} ({})", path.display(), last().trim()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups() {
        let root = std::env::temp_dir().join(format!("rrun-resctrl-{}", std::process::id()));
        std::fs::create_dir_all(root.join("shared")).unwrap();
        std::fs::write(root.join("shared/schemata"), "    L3:0=f;1=f\n    MB:0=100\n").unwrap();
        let line = |text: &str| vec![text.to_owned()];
        let own = Plan::below(&root, None, "id", line("L3:0=1"), true).unwrap().groups;
        assert_eq!((own.group, own.monitor, own.ours), (root.join("id"), root.join("id/mon_groups/id"), true));
        assert!(!Plan::below(&root, Some("shared"), "id", line("MB:0=100"), false).unwrap().groups.ours);
        for (clos_id, schemata) in [("shared", line("MB:0=50")), ("absent", Vec::new()), ("../x", line("L3:0=1")), ("..", line("L3:0=1"))] {
            assert!(Plan::below(&root, Some(clos_id), "id", schemata, false).is_err(), "{clos_id}");
        }
        assert!(Plan::below(&root, None, "shared", Vec::new(), false).is_err());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
