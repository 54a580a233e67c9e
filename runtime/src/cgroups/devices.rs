//! Which devices a container may use: rules evaluated in order, the last one that fits deciding
//! about each of read, write and mknod, everything else denied.
//!
//! cgroup v1 takes the rules as lines for `devices.allow` and `devices.deny`, v2 as an eBPF program
//! attached to the cgroup (`device_program.rs`), systemd as its property DeviceAllow (`systemd.rs`).

use super::folder::{self, Folder};
use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use std::path::Path;

/// Bits of an access, as the kernel's `BPF_DEVCG_ACC_*`.
pub(super) const MKNOD: u32 = 1;
pub(super) const READ: u32 = 2;
pub(super) const WRITE: u32 = 4;
pub(super) const ALL: u32 = MKNOD | READ | WRITE;

/// One rule for block or character devices; `None` stands for every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    pub(super) block: bool,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) access: u32,
}

/// All rules of a container: what holds when none fits, and the rules in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) allow_all: bool,
    pub(super) rules: Vec<Rule>,
}

/// What every container may do, appended to its own rules as runc does: make any node, use null,
/// zero, full, tty, random, urandom, console's multiplexer and the pseudo terminals.
const DEFAULTS: [(Option<u32>, Option<u32>, u32, bool); 10] = [
    (None, None, MKNOD, true),
    (None, None, MKNOD, false),
    (Some(1), Some(3), ALL, false),
    (Some(1), Some(5), ALL, false),
    (Some(1), Some(7), ALL, false),
    (Some(1), Some(8), ALL, false),
    (Some(1), Some(9), ALL, false),
    (Some(5), Some(0), ALL, false),
    (Some(5), Some(2), ALL, false),
    (Some(136), None, ALL, false),
];

fn defaults() -> impl Iterator<Item = Rule> {
    DEFAULTS.into_iter().map(|(major, minor, access, block)| Rule { allow: true, block, major, minor, access })
}

/// Checks one rule of `linux.resources.devices`.
pub(super) fn check(device: &LinuxDeviceCgroup) -> Result<()> {
    access(device)?;
    if !matches!(device.typ(), None | Some(LinuxDeviceType::A | LinuxDeviceType::B | LinuxDeviceType::C)) {
        bail!("linux.resources.devices: type {:?} is none of \"a\", \"b\", \"c\"", device.typ().unwrap_or_default().as_str());
    }
    number(device.major())?;
    number(device.minor())?;
    Ok(())
}

fn access(device: &LinuxDeviceCgroup) -> Result<u32> {
    let text = device.access().as_deref().unwrap_or_default();
    // Other letters are passed over, as runc does.
    let bits = [('r', READ), ('w', WRITE), ('m', MKNOD)].into_iter().filter(|(c, _)| text.contains(*c)).fold(0, |bits, (_, b)| bits | b);
    if bits == 0 {
        bail!("linux.resources.devices: access {text:?} is none of \"rwm\"");
    }
    Ok(bits)
}

/// A device number; -1 stands for every one.
fn number(number: Option<i64>) -> Result<Option<u32>> {
    match number {
        None | Some(-1) => Ok(None),
        Some(n) if (0..=i64::from(i32::MAX)).contains(&n) => Ok(Some(n as u32)),
        Some(n) => bail!("linux.resources.devices: {n} is not a device number"),
    }
}

impl Rules {
    /// From the configuration, with the defaults appended.
    pub(super) fn new(devices: &[LinuxDeviceCgroup]) -> Result<Rules> {
        if devices.len() > 2048 {
            bail!("linux.resources.devices: {} rules, more than 2048", devices.len());
        }
        let mut all = Rules { allow_all: false, rules: Vec::with_capacity(devices.len() + DEFAULTS.len()) };
        for device in devices {
            check(device)?;
            let types: &[bool] = match device.typ() {
                Some(LinuxDeviceType::B) => &[true],
                Some(LinuxDeviceType::C) => &[false],
                _ => &[true, false],
            };
            let (major, minor, access) = (number(device.major())?, number(device.minor())?, access(device)?);
            if types.len() == 2 && major.is_none() && minor.is_none() && access == ALL {
                // Decides about everything: what came before no longer matters.
                all.allow_all = device.allow();
                all.rules.clear();
                continue;
            }
            all.rules.extend(types.iter().map(|&block| Rule { allow: device.allow(), block, major, minor, access }));
        }
        // Where all is allowed but a few, a default says something new only about these.
        let denied: Vec<Rule> = all.rules.iter().filter(|r| !r.allow).copied().collect();
        all.rules.extend(defaults().filter(|d| !all.allow_all || denied.iter().any(|r| r.touches(d))));
        Ok(all)
    }

    /// Denies nothing.
    pub(super) fn is_allow_all(&self) -> bool {
        self.allow_all && self.rules.iter().all(|r| r.allow)
    }

    /// The lines for v1: `true` goes to `devices.allow`. The v1 kernel takes an exception back only
    /// by the same numbers that made it; rules that need more are refused.
    pub(super) fn v1_lines(&self) -> Result<Vec<(bool, String)>> {
        let mut lines = vec![(self.allow_all, "a".to_owned())];
        // What departs from the default, as far as the kernel has been told.
        let mut exceptions: Vec<Rule> = Vec::new();
        for rule in &self.rules {
            if rule.allow != self.allow_all {
                exceptions.push(*rule);
                lines.push((rule.allow, rule.line()));
                continue;
            }
            let touched = || exceptions.iter().filter(|e| e.touches(rule));
            if touched().all(|e| rule.covers(e)) {
                lines.extend(touched().map(|e| (rule.allow, Rule { access: e.access & rule.access, ..*e }.line())));
                exceptions.iter_mut().filter(|e| e.touches(rule)).for_each(|e| e.access &= !rule.access);
            } else if !defaults().any(|d| d == *rule) {
                bail!("linux.resources.devices: cgroup v1 cannot except {:?} from a wider rule before it", rule.line());
            }
        }
        Ok(lines)
    }
}

impl Rule {
    /// Every device of `other` is one of this rule's.
    fn covers(&self, other: &Rule) -> bool {
        let covers = |a: Option<u32>, b: Option<u32>| a.is_none() || a == b;
        self.block == other.block && covers(self.major, other.major) && covers(self.minor, other.minor)
    }

    /// Some access to some device is decided by both.
    fn touches(&self, other: &Rule) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.block == other.block && meet(self.major, other.major) && meet(self.minor, other.minor) && self.access & other.access != 0
    }

    /// As v1 and people write it: `c 1:* rw`.
    fn line(&self) -> String {
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = if self.block { 'b' } else { 'c' };
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.letters())
    }

    /// The access as letters.
    pub(super) fn letters(&self) -> String {
        [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')].iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, c)| *c).collect()
    }
}

/// Tells a v1 devices cgroup the rules: two files, each opened once, one write for each rule.
pub(super) fn set_v1(dir: &Path, rules: &Rules) -> Result<()> {
    let folder = Folder::open(dir).with_context(|| dir.display().to_string())?;
    let mut files = [None, None];
    for (allow, line) in rules.v1_lines()? {
        let name = if allow { "devices.allow" } else { "devices.deny" };
        let slot = &mut files[usize::from(allow)];
        let file = match slot {
            Some(file) => file,
            None => slot.insert(folder.file(name, OFlag::O_WRONLY).with_context(|| folder.name(name))?),
        };
        folder::write_once(file, &line).with_context(|| {
            let hint = if allow { " (a cgroup cannot allow what the one above it denies)" } else { "" };
            format!("linux.resources.devices: write {line:?} to {}{hint}", folder.name(name))
        })?;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::cgroups) fn rules(json: &str) -> Rules {
        Rules::new(&serde_json::from_str::<Vec<LinuxDeviceCgroup>>(json).unwrap()).unwrap()
    }

    /// The definition: each bit is decided by the last rule that fits.
    pub(in crate::cgroups) fn reference(rules: &Rules, block: bool, major: u32, minor: u32, access: u32) -> bool {
        let fits = |r: &&Rule, bit: u32| {
            r.block == block && r.major.is_none_or(|m| m == major) && r.minor.is_none_or(|m| m == minor) && r.access & bit != 0
        };
        [MKNOD, READ, WRITE]
            .iter()
            .filter(|&&bit| access & bit != 0)
            .all(|&bit| rules.rules.iter().rev().find(|r| fits(r, bit)).map_or(rules.allow_all, |r| r.allow))
    }

    /// What a v1 kernel makes of the lines: a default and a list of exceptions.
    fn run_v1(lines: &[(bool, String)], block: bool, major: u32, minor: u32, access: u32) -> bool {
        let mut default = true;
        let mut exceptions: Vec<(bool, String, u32)> = Vec::new();
        for (allow, line) in lines {
            if line == "a" {
                default = *allow;
                exceptions.clear();
                continue;
            }
            let fields: Vec<&str> = line.split(' ').collect();
            let bits = fields[2].chars().map(|c| match c {
                'r' => READ,
                'w' => WRITE,
                _ => MKNOD,
            });
            let (bits, numbers, is_block) = (bits.fold(0, |a, b| a | b), fields[1].to_owned(), fields[0] == "b");
            let found = exceptions.iter_mut().find(|e| (e.0, &e.1) == (is_block, &numbers));
            match (*allow == default, found) {
                (true, Some(e)) => e.2 &= !bits,
                (true, None) => (),
                (false, Some(e)) => e.2 |= bits,
                (false, None) => exceptions.push((is_block, numbers, bits)),
            }
        }
        let fits = |e: &&(bool, String, u32)| {
            let (a, b) = e.1.split_once(':').unwrap();
            e.0 == block && (a == "*" || a == major.to_string()) && (b == "*" || b == minor.to_string())
        };
        if default {
            !exceptions.iter().filter(fits).any(|e| e.2 & access != 0)
        } else {
            exceptions.iter().filter(fits).any(|e| access & !e.2 == 0)
        }
    }

    pub(in crate::cgroups) const HOLE: &str =
        r#"[{"allow":true,"type":"c","major":1,"access":"rwm"},{"allow":false,"type":"c","major":1,"minor":11,"access":"r"}]"#;

    pub(in crate::cgroups) const CASES: [&str; 9] = [
        "[]",
        r#"[{"allow":false,"access":"rwm"}]"#,
        r#"[{"allow":true,"access":"rwm"}]"#,
        r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","major":8,"access":"w"}]"#,
        r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"},{"allow":false,"type":"c","major":10,"minor":229,"access":"w"}]"#,
        r#"[{"allow":true,"type":"a","access":"r"}]"#,
        r#"[{"allow":true,"major":1,"minor":11,"access":"rw"}]"#,
        r#"[{"allow":true,"type":"b","access":"r"},{"allow":true,"type":"b","major":8,"access":"w"}]"#,
        r#"[{"allow":true,"type":"c","major":5,"minor":-1,"access":"rw"},{"allow":true,"access":"rwm"},{"allow":false,"type":"b","access":"rwm"}]"#,
    ];

    pub(in crate::cgroups) fn accesses() -> impl Iterator<Item = (bool, u32, u32, u32)> {
        let numbers = [(1, 3), (1, 11), (5, 0), (5, 1), (5, 2), (8, 0), (8, 1), (10, 229), (136, 7), (u32::MAX, 0), (0, u32::MAX)];
        [true, false].into_iter().flat_map(move |block| numbers.into_iter().flat_map(move |(a, b)| (1..8).map(move |x| (block, a, b, x))))
    }

    #[test]
    fn v1_refuses_a_hole_in_a_wider_rule() {
        let rules = rules(HOLE);
        assert!(rules.v1_lines().unwrap_err().to_string().contains("c 1:11 r"));
    }

    #[test]
    fn v1_lines_mean_the_same_to_the_kernel() {
        for case in CASES {
            let rules = rules(case);
            let lines = rules.v1_lines().unwrap();
            // v1 asks one exception to cover an access as a whole; single bits show the meaning.
            for (block, major, minor, access) in accesses().filter(|a| a.3.count_ones() == 1) {
                let want = reference(&rules, block, major, minor, access);
                assert_eq!(run_v1(&lines, block, major, minor, access), want, "{case}: block {block} {major}:{minor} {access} {lines:?}");
            }
        }
    }

    #[test]
    fn a_plain_container_has_few_lines() {
        assert_eq!(rules(r#"[{"allow":false,"access":"rwm"}]"#).v1_lines().unwrap().len(), 11);
    }

    #[test]
    fn wrong_rules_are_named() {
        for (json, word) in [
            (r#"[{"allow":true}]"#, "access \"\" is none"),
            (r#"[{"allow":true,"access":"x"}]"#, "\"x\""),
            (r#"[{"allow":true,"access":"r","type":"p"}]"#, "\"p\""),
            (r#"[{"allow":true,"access":"r","major":-2}]"#, "-2"),
        ] {
            let list: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
            assert!(Rules::new(&list).unwrap_err().to_string().contains(word), "{json}");
        }
    }
}
