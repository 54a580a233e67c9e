//! Where and when a process runs: scheduler, I/O priority, CPU affinity of exec, NUMA memory policy.

use crate::sys::{self, SchedAttr};
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process,
};

/// The scheduling of a process, as the system calls take it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// `process.scheduler`, for sched_setattr(2).
    attributes: Option<SchedAttr>,
    /// `linux.resources.cpu.cpus` has some CPUs only.
    restricted: bool,
    /// `process.ioPriority`, class and value, for ioprio_set(2).
    io_priority: Option<u32>,
    /// `linux.memoryPolicy`, mode with flags and node mask, for set_mempolicy(2).
    memory: Option<(u32, Vec<u64>)>,
    /// `process.execCPUAffinity.initial`: the mask of `exec` before it joins the container's cgroup.
    initial: Option<Vec<u64>>,
    /// `process.execCPUAffinity.final`: the mask afterwards.
    last: Option<Vec<u64>>,
}

impl Scheduling {
    /// From a configuration, checked as far as the kernel's answer does not depend on the machine.
    pub fn new(process: &Process, linux: Option<&Linux>) -> Result<Scheduling> {
        let affinity = process.exec_cpu_affinity().as_ref();
        let cpus = |field: &str, list: Option<&String>| -> Result<Option<Vec<u64>>> {
            list.filter(|l| !l.is_empty()).map(|l| mask(l).with_context(|| format!("process.execCPUAffinity.{field}"))).transpose()
        };
        Ok(Scheduling {
            attributes: process.scheduler().as_ref().map(scheduler).transpose().context("process.scheduler")?,
            restricted: restricted(linux),
            io_priority: process.io_priority().map(|p| io_priority(p.class(), p.priority())).transpose().context("process.ioPriority")?,
            memory: linux.and_then(|l| l.memory_policy().as_ref()).map(memory_policy).transpose().context("linux.memoryPolicy")?,
            initial: cpus("initial", affinity.and_then(|a| a.initial().as_ref()))?,
            last: cpus("final", affinity.and_then(|a| a.cpu_affinity_final().as_ref()))?,
        })
    }

    /// In the new process, while it still has its maker's capabilities.
    pub fn apply(&self) -> Result<()> {
        if let Some((mode, nodes)) = &self.memory {
            sys::set_mempolicy(*mode, nodes).context("linux.memoryPolicy: set_mempolicy(2)")?;
        }
        if let Some(attributes) = &self.attributes {
            sys::sched_setattr(attributes).map_err(|errno| match errno {
                // The kernel has SCHED_DEADLINE on all CPUs of a machine or an exclusive cpuset alone.
                Errno::EPERM if self.restricted => {
                    anyhow!("process.scheduler: process scheduler can't be used together with AllowedCPUs (linux.resources.cpu.cpus)")
                }
                errno => anyhow::Error::new(errno).context("process.scheduler: sched_setattr(2)"),
            })?;
        }
        if let Some(priority) = self.io_priority {
            sys::ioprio_set(priority).context("process.ioPriority: ioprio_set(2)")?;
        }
        Ok(())
    }

    /// In `exec`, before the clone: the new process inherits the mask.
    pub fn apply_initial_affinity(&self) -> Result<()> {
        set_affinity("initial", self.initial.as_deref())
    }

    /// In the new process of `exec`, in the container's cgroup.
    pub fn apply_final_affinity(&self) -> Result<()> {
        if self.initial.is_none() && self.last.is_none() {
            reset_affinity();
        }
        set_affinity("final", self.last.as_deref())
    }
}

/// In the container's cgroup: all CPUs that this has, whatever the caller was bound to.
pub fn reset_affinity() {
    // The kernel leaves out what the cgroup and the machine lack. Where a filter around us denies the
    // call the process stays as it is.
    let _ = sys::sched_setaffinity(&[u64::MAX; 16]);
}

fn set_affinity(field: &str, mask: Option<&[u64]>) -> Result<()> {
    mask.map_or(Ok(()), sys::sched_setaffinity).with_context(|| format!("process.execCPUAffinity.{field}: sched_setaffinity(2)"))
}

/// Whether the container may use some CPUs only.
fn restricted(linux: Option<&Linux>) -> bool {
    let cpu = linux.and_then(|l| l.resources().as_ref()).and_then(|r| r.cpu().as_ref());
    cpu.and_then(|c| c.cpus().as_ref()).is_some_and(|cpus| !cpus.is_empty())
}

fn scheduler(s: &oci_spec::runtime::Scheduler) -> Result<SchedAttr> {
    use LinuxSchedulerFlag as F;
    use LinuxSchedulerPolicy as P;
    let policy = match s.policy() {
        P::SchedOther => 0,
        P::SchedFifo => 1,
        P::SchedRr => 2,
        P::SchedBatch => 3,
        P::SchedIso => 4,
        P::SchedIdle => 5,
        P::SchedDeadline => 6,
    };
    let realtime = matches!(s.policy(), P::SchedFifo | P::SchedRr);
    if s.priority().is_some_and(|p| p != 0) && !realtime {
        bail!("priority: only for SCHED_FIFO and SCHED_RR");
    }
    if s.nice().is_some_and(|n| !(-20..=19).contains(&n)) {
        bail!("nice: not within -20 and 19");
    }
    let deadline = [s.runtime(), s.deadline(), s.period()];
    if *s.policy() != P::SchedDeadline && deadline.iter().any(|v| v.is_some_and(|v| v != 0)) {
        bail!("runtime, deadline, period: only for SCHED_DEADLINE");
    }
    let flags = s.flags().iter().flatten().fold(0, |bits, flag| {
        bits | match flag {
            F::SchedResetOnFork => 0x01,
            F::SchedFlagReclaim => 0x02,
            F::SchedFlagDLOverrun => 0x04,
            F::SchedFlagKeepPolicy => 0x08,
            F::SchedFlagKeepParams => 0x10,
            F::SchedFlagUtilClampMin => 0x20,
            F::SchedFlagUtilClampMax => 0x40,
        }
    });
    Ok(SchedAttr {
        policy,
        flags,
        nice: s.nice().unwrap_or(0),
        priority: s.priority().unwrap_or(0) as u32,
        runtime: s.runtime().unwrap_or(0),
        deadline: s.deadline().unwrap_or(0),
        period: s.period().unwrap_or(0),
    })
}

fn io_priority(class: IOPriorityClass, priority: i64) -> Result<u32> {
    if !(0..=7).contains(&priority) {
        bail!("priority: {priority} is not within 0 and 7");
    }
    let class = match class {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    Ok(class << 13 | priority as u32)
}

fn memory_policy(policy: &oci_spec::runtime::LinuxMemoryPolicy) -> Result<(u32, Vec<u64>)> {
    use MemoryPolicyFlagType as F;
    use MemoryPolicyModeType as M;
    let mode = match policy.mode() {
        M::MpolDefault => 0,
        M::MpolPreferred => 1,
        M::MpolBind => 2,
        M::MpolInterleave => 3,
        M::MpolLocal => 4,
        M::MpolPreferredMany => 5,
        M::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().fold(0, |bits, flag| {
        bits | match flag {
            F::MpolFStaticNodes => 1 << 15,
            F::MpolFRelativeNodes => 1 << 14,
            F::MpolFNumaBalancing => 1 << 13,
        }
    });
    let nodes: Vec<u64> = policy
        .nodes()
        .as_deref()
        .filter(|n| !n.is_empty())
        .map(mask)
        .transpose()
        .context("nodes: invalid memory policy node")?
        .unwrap_or_default();
    let count: u32 = nodes.iter().map(|word| word.count_ones()).sum();
    if matches!(policy.mode(), M::MpolDefault | M::MpolLocal) && count != 0 {
        bail!("nodes: invalid memory policy: mode requires 0 nodes but got {count}");
    }
    Ok((mode | flags, nodes))
}

/// A list such as `0-3,7` (cpuset(7), "List format") as a bit mask in words of 64.
fn mask(list: &str) -> Result<Vec<u64>> {
    const HIGHEST: u32 = 8191;
    let mut words = Vec::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let range = first.trim().parse::<u32>().ok().zip(last.trim().parse::<u32>().ok());
        let Some((first, last)) = range.filter(|(first, last)| first <= last && *last <= HIGHEST) else {
            bail!("{part:?} is no number or range of a list such as 0-3,7");
        };
        words.resize(words.len().max(last as usize / 64 + 1), 0);
        for n in first..=last {
            words[n as usize / 64] |= 1 << (n % 64);
        }
    }
    if words.is_empty() {
        bail!("{list:?} is empty");
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_masks() {
        assert_eq!(mask("0-3,7").unwrap(), [0x8f]);
        assert_eq!(mask("64").unwrap(), [0, 1]);
        assert_eq!(mask(" 1 , 2-2 ").unwrap(), [6]);
        for bad in ["", ",", "3-1", "a", "1-", "-1", "99999"] {
            assert!(mask(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn io_priority_is_class_and_value() {
        assert_eq!(io_priority(IOPriorityClass::IoprioClassIdle, 7).unwrap(), 3 << 13 | 7);
        assert!(io_priority(IOPriorityClass::IoprioClassBe, 8).is_err());
    }

    #[test]
    fn a_priority_is_for_realtime_policies_alone() {
        let parse = |json: &str| scheduler(&serde_json::from_str(json).unwrap());
        assert_eq!(parse(r#"{"policy":"SCHED_FIFO","priority":5}"#).unwrap().priority, 5);
        assert!(parse(r#"{"policy":"SCHED_OTHER","priority":5}"#).is_err());
        assert!(parse(r#"{"policy":"SCHED_BATCH","runtime":5}"#).is_err());
    }
}
