//! User namespace id maps: read from the configuration or made up for an ordinary user, and written.

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxIdMappingBuilder};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

/// The id maps of a new user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// `linux.uidMappings`.
    pub uids: Vec<LinuxIdMapping>,
    /// `linux.gidMappings`.
    pub gids: Vec<LinuxIdMapping>,
}

impl IdMaps {
    /// The configuration's mappings, checked: both or neither, sizes above 0, no overflow.
    pub fn new(linux: Option<&Linux>) -> Result<IdMaps> {
        let list = |l: &Option<Vec<LinuxIdMapping>>| l.clone().unwrap_or_default();
        let maps = linux.map_or_else(IdMaps::default, |l| IdMaps { uids: list(l.uid_mappings()), gids: list(l.gid_mappings()) });
        for (field, list) in [("linux.uidMappings", &maps.uids), ("linux.gidMappings", &maps.gids)] {
            for (i, m) in list.iter().enumerate() {
                let fits = |first: u32| first.checked_add(m.size()).is_some();
                if m.size() == 0 || !fits(m.host_id()) || !fits(m.container_id()) {
                    bail!("{field}[{i}]: {} ids from {} as {} is no valid range", m.size(), m.host_id(), m.container_id());
                }
            }
        }
        if maps.uids.is_empty() != maps.gids.is_empty() {
            bail!("linux.uidMappings, linux.gidMappings: one is there without the other");
        }
        Ok(maps)
    }

    /// What an ordinary user can have without asking anybody: its own id as root, and after it its
    /// subordinate ids where `/etc/subuid` and `/etc/subgid` grant some and newuidmap is installed.
    pub fn for_ordinary_user() -> Result<IdMaps> {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let mut maps = IdMaps { uids: vec![mapping(0, uid.as_raw(), 1)?], gids: vec![mapping(0, gid.as_raw(), 1)?] };
        if find_program("newuidmap").is_none() || find_program("newgidmap").is_none() {
            return Ok(maps);
        }
        let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|u| u.name);
        let subordinate = |file: &str| subordinate_ids(&std::fs::read_to_string(file).unwrap_or_default(), name.as_deref(), uid.as_raw());
        if let (Some(uids), Some(gids)) = (subordinate("/etc/subuid"), subordinate("/etc/subgid")) {
            maps.uids.push(mapping(1, uids.0, uids.1)?);
            maps.gids.push(mapping(1, gids.0, gids.1)?);
        }
        Ok(maps)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty()
    }

    /// The id on the host of a user id in the container.
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        host_id(&self.uids, uid)
    }

    /// The id on the host of a group id in the container.
    pub fn host_gid(&self, gid: u32) -> Option<u32> {
        host_id(&self.gids, gid)
    }

    /// Checks that the process's ids are mapped.
    pub fn check_process(&self, uid: u32, gid: u32) -> Result<()> {
        if self.host_uid(uid).is_none() {
            bail!("process.user.uid: {uid} is not mapped into the user namespace (see linux.uidMappings)");
        }
        if self.host_gid(gid).is_none() {
            bail!("process.user.gid: {gid} is not mapped into the user namespace (see linux.gidMappings)");
        }
        Ok(())
    }

    /// Writes the maps of process `pid`, which is in the new namespace and waits. The kernel lets a
    /// privileged caller write anything; an ordinary one its own single id, after giving up
    /// setgroups; the rest is for newuidmap and newgidmap.
    pub fn write(&self, pid: i32, privileged: bool) -> Result<()> {
        let own = |list: &[LinuxIdMapping], id: u32| matches!(list, [m] if m.size() == 1 && m.host_id() == id);
        if privileged {
            write_map(pid, "uid_map", &self.uids)?;
            return write_map(pid, "gid_map", &self.gids);
        }
        if own(&self.uids, nix::unistd::geteuid().as_raw()) {
            write_map(pid, "uid_map", &self.uids)?;
        } else {
            run_helper("newuidmap", "linux.uidMappings", "/etc/subuid", pid, &self.uids)?;
        }
        if own(&self.gids, nix::unistd::getegid().as_raw()) {
            let path = format!("/proc/{pid}/setgroups");
            std::fs::write(&path, "deny").with_context(|| path.clone())?;
            write_map(pid, "gid_map", &self.gids)
        } else {
            run_helper("newgidmap", "linux.gidMappings", "/etc/subgid", pid, &self.gids)
        }
    }

    /// Whether setgroups works inside: not after the single own id of an ordinary user.
    pub fn allows_setgroups(&self, privileged: bool) -> bool {
        privileged || !matches!(self.gids.as_slice(), [m] if m.size() == 1 && m.host_id() == nix::unistd::getegid().as_raw())
    }
}

fn mapping(container: u32, host: u32, size: u32) -> Result<LinuxIdMapping> {
    LinuxIdMappingBuilder::default().container_id(container).host_id(host).size(size).build().context("an id mapping")
}

fn host_id(list: &[LinuxIdMapping], id: u32) -> Option<u32> {
    let m = list.iter().find(|m| id >= m.container_id() && id - m.container_id() < m.size())?;
    Some(m.host_id() + (id - m.container_id()))
}

fn write_map(pid: i32, file: &str, list: &[LinuxIdMapping]) -> Result<()> {
    let mut text = String::new();
    for m in list {
        let _ = writeln!(text, "{} {} {}", m.container_id(), m.host_id(), m.size());
    }
    let field = if file == "uid_map" { "linux.uidMappings" } else { "linux.gidMappings" };
    std::fs::write(format!("/proc/{pid}/{file}"), &text)
        .with_context(|| format!("{field}: write {:?} to /proc/{pid}/{file} (the caller may map only ids it owns)", text.trim_end()))
}

fn run_helper(program: &str, field: &str, granted: &str, pid: i32, list: &[LinuxIdMapping]) -> Result<()> {
    let Some(path) = find_program(program) else {
        bail!("{field}: an ordinary user needs {program} for these ids (Debian: apt-get install uidmap) and a range in {granted}");
    };
    let mut command = Command::new(path);
    command.arg(pid.to_string());
    for m in list {
        command.args([m.container_id().to_string(), m.host_id().to_string(), m.size().to_string()]);
    }
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{field}: {program}: {} (see {granted})", String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "));
    }
    Ok(())
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// The largest range that a subordinate id file (subuid(5)) grants the user: first id and count.
fn subordinate_ids(file: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    let uid = uid.to_string();
    file.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            (Some(owner) == name || owner == uid).then_some(range)
        })
        .max_by_key(|&(_, count)| count)
        .filter(|&(_, count)| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_looked_up_in_every_range() {
        let maps =
            IdMaps { uids: vec![mapping(0, 1000, 1).unwrap(), mapping(1, 100_000, 65536).unwrap()], gids: vec![mapping(0, 5, 1).unwrap()] };
        assert_eq!(maps.host_uid(0), Some(1000));
        assert_eq!(maps.host_uid(1), Some(100_000));
        assert_eq!(maps.host_uid(65536), Some(165_535));
        assert_eq!(maps.host_uid(65537), None);
        assert_eq!(maps.host_gid(1), None);
    }

    #[test]
    fn subordinate_ids_by_name_or_number_largest_first() {
        let file = "root:1:2\nann:100000:10\nann:200000:65536\n1000:5:6\n";
        assert_eq!(subordinate_ids(file, Some("ann"), 1000), Some((200_000, 65536)));
        assert_eq!(subordinate_ids(file, None, 1000), Some((5, 6)));
        assert_eq!(subordinate_ids("junk\nann:x:y\n", Some("ann"), 1), None);
    }

    #[test]
    fn an_empty_or_overflowing_range_is_refused() {
        let mut linux = Linux::default();
        linux.set_uid_mappings(Some(vec![mapping(0, 1, 0).unwrap()])).set_gid_mappings(Some(vec![mapping(0, 1, 1).unwrap()]));
        assert!(IdMaps::new(Some(&linux)).unwrap_err().to_string().contains("linux.uidMappings[0]"));
        linux.set_uid_mappings(Some(vec![mapping(0, u32::MAX, 2).unwrap()]));
        assert!(IdMaps::new(Some(&linux)).is_err());
        linux.set_uid_mappings(None);
        assert!(IdMaps::new(Some(&linux)).unwrap_err().to_string().contains("without the other"));
    }
}
