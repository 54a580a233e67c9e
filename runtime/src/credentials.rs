//! Who the container's process is: ids, groups, capabilities, no_new_privs, resource limits.

use crate::namespaces::in_initial_user_namespace;
use crate::sys::{self, CapSets};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use oci_spec::runtime::{Capabilities, LinuxCapabilities, PosixRlimit, PosixRlimitType, Process};

/// `(uid_t) -1`: setresuid(2) would leave the process with the runtime's own id, root's.
const NO_ID: u32 = u32::MAX;

/// Capability masks, one bit per capability (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapMasks {
    /// What may ever be gained again.
    pub bounding: u64,
    /// Effective, permitted, inheritable.
    pub sets: CapSets,
    /// What a program without file capabilities keeps over `execve`.
    pub ambient: u64,
}

impl CapMasks {
    /// From a configuration; nothing given means none.
    pub fn new(caps: Option<&LinuxCapabilities>) -> CapMasks {
        let Some(caps) = caps else { return CapMasks::default() };
        CapMasks {
            bounding: mask(caps.bounding()),
            sets: CapSets { effective: mask(caps.effective()), permitted: mask(caps.permitted()), inheritable: mask(caps.inheritable()) },
            ambient: mask(caps.ambient()),
        }
    }

    /// What is asked for as ambient and cannot be.
    pub fn beyond_ambient(&self) -> u64 {
        self.ambient & !(self.sets.permitted & self.sets.inheritable)
    }

    /// Adds capabilities as `exec --cap` does: never to the inheritable set (CVE-2022-29162), and to
    /// the ambient set only what is inheritable already.
    pub fn add(&mut self, added: u64) {
        self.bounding |= added;
        self.sets.effective |= added;
        self.sets.permitted |= added;
        self.ambient |= added & self.sets.inheritable;
    }
}

fn mask(set: &Option<Capabilities>) -> u64 {
    set.iter().flatten().fold(0, |mask, &capability| mask | 1 << number(capability))
}

fn number(capability: oci_spec::runtime::Capability) -> u8 {
    use std::str::FromStr;
    // Both packages know the names of capabilities(7); only one knows the numbers.
    let name = format!("CAP_{}", screaming(&capability.to_string()));
    caps::Capability::from_str(&name).map_or(63, |c| c.index())
}

fn screaming(name: &str) -> String {
    name.trim_start_matches("CAP_").to_ascii_uppercase()
}

/// The number of a capability named on the command line (`CAP_NET_ADMIN` or `net_admin`).
pub fn capability_mask(name: &str) -> Result<u64> {
    use std::str::FromStr;
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    match caps::Capability::from_str(&full) {
        Ok(capability) => Ok(1 << capability.index()),
        Err(_) => bail!("unknown capability {name:?} (see capabilities(7))"),
    }
}

/// The names of the capabilities in a mask, sorted: `CAP_KILL CAP_SETUID`.
pub fn capability_names(mask: u64) -> String {
    let mut names: Vec<String> = caps::all().into_iter().filter(|c| mask >> c.index() & 1 == 1).map(|c| c.to_string()).collect();
    names.sort();
    names.join(" ")
}

/// Ids, groups and capabilities of a process.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Capabilities.
    pub caps: CapMasks,
    /// The user namespace forbids setgroups: leave the groups alone.
    pub keep_groups: bool,
}

impl Credentials {
    /// From a configuration's process.
    pub fn new(process: &Process, keep_groups: bool) -> Result<Credentials> {
        let user = process.user();
        let groups = user.additional_gids().clone().unwrap_or_default();
        let ids = [("uid", user.uid()), ("gid", user.gid())].into_iter().chain(groups.iter().map(|&gid| ("additionalGids", gid)));
        if let Some((field, id)) = ids.into_iter().find(|&(_, id)| id == NO_ID) {
            bail!("process.user.{field}: {id} is no id (for the kernel it means: leave it as it is)");
        }
        if keep_groups && !groups.is_empty() {
            bail!(
                "process.user.additionalGids: not possible with the caller's single group id mapped (use subordinate ids, see subgid(5))"
            );
        }
        Ok(Credentials { uid: user.uid(), gid: user.gid(), groups, caps: CapMasks::new(process.capabilities().as_ref()), keep_groups })
    }

    /// Becomes the user, in the order that the kernel demands: the bounding set while CAP_SETPCAP is
    /// there, groups before ids, the other sets after the change of ids. What the caller itself does
    /// not hold cannot be given and is left out; the answer is that part.
    pub fn take(&self) -> Result<u64> {
        let held = sys::capget().context("capget")?.permitted;
        let missing = (self.caps.sets.permitted | self.caps.bounding) & !held;
        drop_bounding(self.caps.bounding)?;
        if self.uid != 0 {
            sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).context("prctl(PR_SET_KEEPCAPS)")?;
        }
        if !self.keep_groups {
            self.set_groups(held)?;
        }
        sys::setresgid(self.gid).with_context(|| format!("process.user.gid: setresgid({})", self.gid))?;
        sys::setresuid(self.uid).with_context(|| format!("process.user.uid: setresuid({})", self.uid))?;
        let sets = self.caps.sets;
        let permitted = sets.permitted & held;
        // The kernel's rules: effective within permitted, inheritable within what is held.
        sys::capset(CapSets { effective: sets.effective & permitted, permitted, inheritable: sets.inheritable & held })
            .context("process.capabilities: capset")?;
        // A capability that is permitted and inheritable could still be ambient from our own start.
        if self.caps.ambient | permitted & sets.inheritable != 0 {
            set_ambient(self.caps.ambient & permitted & sets.inheritable)?;
        }
        Ok(missing)
    }

    /// A user namespace may forbid setgroups(2) even to its root (user_namespaces(7)). Then no groups
    /// can be given up, as long as none are asked for.
    fn set_groups(&self, held: u64) -> Result<()> {
        const CAP_SETGID: u64 = 1 << 6;
        match sys::setgroups(&self.groups) {
            Err(Errno::EPERM) if self.groups.is_empty() && held & CAP_SETGID != 0 && !in_initial_user_namespace() => Ok(()),
            other => other.context("process.user.additionalGids: setgroups"),
        }
    }
}

fn drop_bounding(keep: u64) -> Result<()> {
    for capability in 0..63 {
        if keep >> capability & 1 == 1 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // The first number that the kernel does not know.
            Err(Errno::EINVAL) => break,
            other => other.with_context(|| format!("process.capabilities.bounding: prctl(PR_CAPBSET_DROP, {capability})"))?,
        };
    }
    Ok(())
}

fn set_ambient(mask: u64) -> Result<()> {
    const RAISE: u64 = 2;
    const CLEAR_ALL: u64 = 4;
    sys::prctl(libc::PR_CAP_AMBIENT, CLEAR_ALL, 0).context("prctl(PR_CAP_AMBIENT_CLEAR_ALL)")?;
    for capability in (0..63).filter(|c| mask >> c & 1 == 1) {
        sys::prctl(libc::PR_CAP_AMBIENT, RAISE, capability)
            .with_context(|| format!("process.capabilities.ambient: prctl(PR_CAP_AMBIENT_RAISE, {capability})"))?;
    }
    Ok(())
}

/// One resource limit: the kernel's number, soft and hard value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

impl Limit {
    /// Sets it for process `pid`, 0 being the caller.
    pub fn apply(&self, pid: i32) -> Result<()> {
        let Limit { resource, soft, hard } = *self;
        sys::prlimit(pid, resource, soft, hard).with_context(|| {
            format!("process.rlimits: setrlimit of resource {resource} to {soft}:{hard} (raising a hard limit needs CAP_SYS_RESOURCE)")
        })
    }
}

/// `process.rlimits`, checked: no type twice, soft within hard.
pub fn limits(rlimits: Option<&Vec<PosixRlimit>>) -> Result<Vec<Limit>> {
    let mut all: Vec<Limit> = Vec::new();
    for (i, limit) in rlimits.into_iter().flatten().enumerate() {
        let resource = rlimit_number(limit.typ());
        if all.iter().any(|l| l.resource == resource) {
            bail!("process.rlimits[{i}].type: {} is there twice", limit.typ());
        }
        if limit.soft() > limit.hard() {
            bail!("process.rlimits[{i}]: the soft limit {} is above the hard limit {}", limit.soft(), limit.hard());
        }
        all.push(Limit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(all)
}

fn rlimit_number(typ: PosixRlimitType) -> u32 {
    use PosixRlimitType as T;
    match typ {
        T::RlimitCpu => libc::RLIMIT_CPU,
        T::RlimitFsize => libc::RLIMIT_FSIZE,
        T::RlimitData => libc::RLIMIT_DATA,
        T::RlimitStack => libc::RLIMIT_STACK,
        T::RlimitCore => libc::RLIMIT_CORE,
        T::RlimitRss => libc::RLIMIT_RSS,
        T::RlimitNproc => libc::RLIMIT_NPROC,
        T::RlimitNofile => libc::RLIMIT_NOFILE,
        T::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        T::RlimitAs => libc::RLIMIT_AS,
        T::RlimitLocks => libc::RLIMIT_LOCKS,
        T::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        T::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        T::RlimitNice => libc::RLIMIT_NICE,
        T::RlimitRtprio => libc::RLIMIT_RTPRIO,
        T::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_follow_the_names() {
        let json = r#"{"bounding":["CAP_CHOWN","CAP_NET_BIND_SERVICE","CAP_CHECKPOINT_RESTORE"],"permitted":["CAP_SYS_ADMIN"]}"#;
        let caps: LinuxCapabilities = serde_json::from_str(json).unwrap();
        let masks = CapMasks::new(Some(&caps));
        assert_eq!(masks.bounding, 1 | 1 << 10 | 1 << 40);
        assert_eq!(masks.sets.permitted, 1 << 21);
        assert_eq!(masks.sets.effective, 0);
    }

    #[test]
    fn every_capability_of_the_specification_has_a_number() {
        use oci_spec::runtime::Capability;
        for n in 0..=40 {
            let name =
                format!("\"CAP_{}\"", caps::all().into_iter().find(|c| c.index() == n).unwrap().to_string().trim_start_matches("CAP_"));
            let parsed: Capability = serde_json::from_str(&name).unwrap();
            assert_eq!(number(parsed), n, "{name}");
        }
    }

    #[test]
    fn minus_one_is_no_id() {
        for user in [r#"{"uid":4294967295,"gid":0}"#, r#"{"uid":0,"gid":4294967295}"#, r#"{"uid":0,"gid":0,"additionalGids":[4294967295]}"#]
        {
            let mut process = Process::default();
            process.set_user(serde_json::from_str(user).unwrap());
            assert!(Credentials::new(&process, false).unwrap_err().to_string().contains("is no id"), "{user}");
        }
    }

    #[test]
    fn exec_never_raises_inheritable() {
        let mut masks = CapMasks::default();
        masks.add(capability_mask("net_admin").unwrap());
        assert_eq!(masks.sets.inheritable, 0);
        assert_eq!(masks.ambient, 0);
        assert_eq!(masks.sets.permitted, 1 << 12);
        assert!(capability_mask("CAP_NOPE").is_err());
    }
}
