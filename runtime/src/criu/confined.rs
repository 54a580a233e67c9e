//! Whether the processes that CRIU brought back are confined as the configuration says.
//!
//! Namespaces, capabilities, filters and labels come from the images, and CRIU gives them with its own power. Who
//! wrote the images need not be who may ask for such a container: in a cluster any image can be a checkpoint.

use crate::credentials::capability_names;
use crate::namespaces::{self, NEWCGROUP, NEWTIME, Namespaces};
use crate::process::Setup;
use crate::sys;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::ErrorKind;

const CAP_SETUID: u64 = 1 << 7;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// What the configuration allows.
#[derive(Debug)]
pub struct Confines<'a> {
    /// Its process.
    pub setup: &'a Setup,
    /// Its namespaces.
    pub namespaces: &'a Namespaces,
    /// Labels were given on the command line, in place of the configuration's.
    pub labelled: bool,
    /// Cgroups are not restored (`--manage-cgroups-mode ignore`), and so neither is their namespace.
    pub without_cgroups: bool,
}

impl Confines<'_> {
    /// Checks process `pid`, which is stopped, and all that descend from it.
    pub fn check(&self, pid: i32) -> Result<()> {
        for process in tree(pid)? {
            for thread in numbers(&format!("/proc/{process}/task"))? {
                let thread = format!("{process}/task/{thread}");
                let path = format!("/proc/{thread}/status");
                let status = fs::read_to_string(&path).with_context(|| path.clone())?;
                // A zombie has left its namespaces, keeps what CRIU had, and runs no more.
                if status.contains("\nState:\tZ") {
                    continue;
                }
                self.check_namespaces(&thread, pid)?;
                self.check_label(&thread)?;
                self.check_credentials(&path, &status)?;
            }
        }
        Ok(())
    }

    /// Whether it may mount: then its mounts are its own affair.
    pub fn may_mount(&self) -> bool {
        self.capabilities() & CAP_SYS_ADMIN != 0
    }

    /// All that a process of the container can come to.
    fn capabilities(&self) -> u64 {
        let caps = self.setup.credentials.caps;
        caps.bounding | caps.sets.permitted | caps.sets.inheritable
    }

    /// `thread` is its folder below `/proc`.
    fn check_namespaces(&self, thread: &str, first: i32) -> Result<()> {
        let link = |who: &str, name: &str| {
            let path = format!("/proc/{who}/ns/{name}");
            fs::read_link(&path).context(path)
        };
        // CRIU makes a time namespace where there is none.
        for (name, kind) in namespaces::NAMES.into_iter().filter(|(_, kind)| *kind != NEWTIME) {
            let found = link(thread, name)?;
            let joins_ours = self.namespaces.joined.iter().any(|j| j.kind == kind && j.is_ours());
            let ignored = kind == NEWCGROUP && self.without_cgroups;
            if self.namespaces.has(kind) && !joins_ours && !ignored && found == link("self", name)? {
                bail!("linux.namespaces: the checkpoint is not in a {name} namespace of its own");
            }
            if !self.may_mount() && found != link(&first.to_string(), name)? {
                bail!(
                    "linux.namespaces: a process of the checkpoint is in a {name} namespace of its own, and has no CAP_SYS_ADMIN to make it"
                );
            }
        }
        Ok(())
    }

    /// `text` is that of the status file at `path`.
    fn check_credentials(&self, path: &str, text: &str) -> Result<()> {
        let field = |name: &str| {
            let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(":\t"));
            value.with_context(|| format!("{path}: no {name}"))
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let beyond = u64::from_str_radix(field(set)?, 16).with_context(|| format!("{path}: {set}"))? & !self.capabilities();
            if beyond != 0 {
                bail!("process.capabilities: the checkpoint has more ({set}): {}", capability_names(beyond));
            }
        }
        if self.setup.no_new_privs && field("NoNewPrivs")? != "1" {
            bail!("process.noNewPrivileges: not set in the checkpoint");
        }
        if self.setup.filter.is_some() && field("Seccomp")? == "0" {
            bail!("linux.seccomp: a process of the checkpoint has no filter");
        }
        if self.setup.no_new_privs && self.setup.credentials.uid != 0 && self.capabilities() & CAP_SETUID == 0 {
            let root = root_of(path)?;
            if field("Uid")?.split_whitespace().any(|id| id.parse() == Ok(root)) {
                bail!("process.user.uid: the checkpoint has a process of root, which this one cannot become");
            }
        }
        Ok(())
    }

    /// `thread` as above.
    fn check_label(&self, thread: &str) -> Result<()> {
        let (field, wanted, file) = match (&self.setup.apparmor, &self.setup.selinux) {
            _ if self.labelled => return Ok(()),
            (Some(profile), _) => ("process.apparmorProfile", profile, "apparmor/current"),
            (None, Some(label)) => ("process.selinuxLabel", label, "current"),
            (None, None) => return Ok(()),
        };
        let path = format!("/proc/{thread}/attr/{file}");
        let label = match fs::read_to_string(&path) {
            // Where AppArmor is not enabled, everything is unconfined.
            Err(e) if e.kind() == ErrorKind::NotFound && wanted == "unconfined" => return Ok(()),
            other => other.context(path)?,
        };
        // AppArmor adds its mode: `name (enforce)`.
        let label = label.trim_end_matches(['\n', '\0']);
        if label.split_once(" (").map_or(label, |(name, _)| name) != wanted {
            bail!("{field}: {wanted:?}, but a process of the checkpoint has {label:?}");
        }
        Ok(())
    }
}

/// Ends process `pid` and all that descend from it, which are stopped.
pub fn kill(pid: i32) {
    for process in tree(pid).unwrap_or_else(|_| vec![pid]) {
        // It may be gone with the first.
        let _ = sys::kill(process, nix::libc::SIGKILL);
    }
}

/// A process and all that descend from it.
fn tree(pid: i32) -> Result<Vec<i32>> {
    let mut list = vec![pid];
    let mut at = 0;
    while let Some(&process) = list.get(at) {
        for thread in numbers(&format!("/proc/{process}/task"))? {
            let path = format!("/proc/{process}/task/{thread}/children");
            let children = fs::read_to_string(&path).context(path)?;
            list.extend(children.split_whitespace().filter_map(|n| n.parse::<i32>().ok()));
        }
        at += 1;
    }
    Ok(list)
}

/// The entries of a folder that are numbers.
fn numbers(path: &str) -> Result<Vec<i32>> {
    let entries = fs::read_dir(path).with_context(|| path.to_owned())?;
    Ok(entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The id that we see root of a thread's user namespace by.
fn root_of(status: &str) -> Result<u32> {
    let path = status.replace("status", "uid_map");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let root = text.lines().find_map(|line| {
        let mut numbers = line.split_whitespace();
        (numbers.next() == Some("0")).then(|| numbers.next()?.parse().ok())?
    });
    // Where root has no id, nobody is root.
    Ok(root.unwrap_or(u32::MAX))
}
