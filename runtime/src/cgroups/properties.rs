//! What a systemd unit is told: limits, device rules and annotations as unit properties
//! (systemd.resource-control(5), the D-Bus names of org.freedesktop.systemd1(5)).

use super::devices::Rules;
use super::systemd::Systemd;
use super::v2::{swap_alone, weight_of_shares};
use super::wire::Value;
use anyhow::{Context, Result, bail};
use oci_spec::runtime::LinuxResources;
use std::collections::HashMap;

/// A property of a unit.
pub(super) type Property = (String, Value);

/// What one percent of a CPU is in `CPUQuotaPerSecUSec`: systemd holds a quota in whole ones.
const PERCENT: u64 = 10_000;

/// The limits as systemd holds them, for the files as well, where the value would otherwise change as soon as systemd
/// writes its own again: a quota is rounded up to whole percents of a CPU, as runc does. One without a period, or a period
/// without a quota, is completed from `max`, what v2's `cpu.max` holds (empty: not known).
pub(super) fn held(r: &LinuxResources, max: &str) -> LinuxResources {
    let mut held = r.clone();
    let Some(mut c) = r.cpu().clone() else { return held };
    let (quota, period) = (c.quota().filter(|&q| q != 0), c.period().filter(|&p| p != 0));
    let present = |word: usize| max.split_whitespace().nth(word)?.parse::<i64>().ok();
    let quota = quota.or_else(|| period.and_then(|_| present(0)));
    let period = period.or_else(|| quota.and_then(|_| present(1)?.try_into().ok()));
    let whole = |quota: u64, period: u64| u128::from(per_second(quota, period)) * u128::from(period) / 1_000_000;
    c.set_quota(match (quota, period) {
        (Some(quota @ 1..), Some(period)) => whole(quota as u64, period).try_into().ok(),
        _ => quota,
    });
    c.set_period(period);
    held.set_cpu(Some(c));
    held
}

/// `CPUQuotaPerSecUSec` of a quota per period, both in microseconds.
fn per_second(quota: u64, period: u64) -> u64 {
    let exact = quota.saturating_mul(1_000_000).div_euclid(period);
    exact.checked_next_multiple_of(PERCENT).unwrap_or(u64::MAX)
}

impl Systemd {
    /// The device rules as properties. systemd's list may be wider than the rules, never narrower:
    /// both filters must allow an access, and ours is exact.
    pub(super) fn devices(&self, rules: &Rules) -> Vec<Property> {
        // Before 240 a list cannot name what has no node on the host.
        let policy = if rules.allow_all || self.version < 240 { "auto" } else { "strict" };
        let mut allow = Vec::new();
        if policy == "strict" {
            for rule in rules.rules.iter().filter(|r| r.allow) {
                let kind = if rule.block { "block" } else { "char" };
                let name = match (rule.major, rule.minor) {
                    (None, _) => format!("{kind}-*"),
                    (Some(major), None) => format!("{kind}-{major}"),
                    (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
                };
                allow.push(Value::Tuple(vec![Value::Str(name), Value::Str(rule.letters())]));
            }
        }
        vec![property("DevicePolicy", policy.into()), property("DeviceAllow", Value::Array("(ss)".into(), allow))]
    }

    /// The limits, as [`held`], as properties of a unit whose cgroups are on v2 or on v1. `now` answers with what a file of
    /// v2 holds, asked for when only swap is given.
    pub(super) fn limits(&self, r: &LinuxResources, v2: bool, now: impl Fn(&str) -> Option<String>) -> Result<Vec<Property>> {
        let mut list = Vec::new();
        let mut add = |name: &str, value: Value| list.push(property(name, value));
        if let Some(m) = r.memory() {
            let limit = m.limit().filter(|&l| l != 0);
            if let Some(limit) = limit {
                add(if v2 { "MemoryMax" } else { "MemoryLimit" }, amount(limit));
            }
            if let Some(low) = m.reservation().filter(|&l| l != 0 && v2) {
                add("MemoryLow", amount(low));
            }
            match m.swap().filter(|&s| s != 0) {
                Some(swap) if v2 => {
                    add("MemorySwapMax", amount(swap_alone(swap, limit.or_else(|| now("memory.max")?.trim_end().parse().ok()))?))
                }
                None if v2 && limit == Some(-1) => add("MemorySwapMax", amount(-1)),
                _ => (),
            }
        }
        if let Some(c) = r.cpu() {
            let idle = v2 && c.idle() == Some(1) && self.version >= 252;
            if idle {
                // 0 is systemd's word for idle.
                add("CPUWeight", Value::U64(0));
                if c.shares().is_some_and(|s| s != 0) {
                    crate::log::warn("systemd is unable to apply both linux.resources.cpu.shares and idle: shares are passed over");
                }
            } else if let Some(shares) = c.shares().filter(|&s| s != 0) {
                if v2 { add("CPUWeight", Value::U64(weight_of_shares(shares))) } else { add("CPUShares", Value::U64(shares)) }
            }
            self.quota(c.quota().filter(|&q| q != 0), c.period().filter(|&p| p != 0), &mut add);
            for (set, name, field) in [(c.cpus(), "AllowedCPUs", "cpu.cpus"), (c.mems(), "AllowedMemoryNodes", "cpu.mems")] {
                if let Some(set) = set.as_ref().filter(|s| !s.is_empty() && self.version >= 244) {
                    add(name, bits(set).with_context(|| format!("linux.resources.{field}"))?);
                }
            }
        }
        if let Some(pids) = r.pids() {
            // systemd takes no 0, and 1 already lets nobody fork.
            add("TasksMax", amount(if pids.limit() == 0 { 1 } else { pids.limit() }));
        }
        if let Some(weight) = r.block_io().as_ref().and_then(|b| b.weight()).filter(|&w| w != 0 && !v2) {
            add("BlockIOWeight", Value::U64(u64::from(weight)));
        }
        if v2 {
            let mut unified: Vec<_> = r.unified().iter().flatten().collect();
            unified.sort_unstable();
            let idle = super::v2::is_idle(r) && self.version >= 252;
            for (key, value) in unified {
                if idle && key == "cpu.weight" {
                    crate::log::warn(
                        "systemd is unable to apply both linux.resources.unified cpu.weight and cpu.idle: cpu.weight is passed over",
                    );
                    continue;
                }
                self.unified(key, value.trim(), &mut add).with_context(|| format!("linux.resources.unified: {key:?} = {value:?}"))?;
            }
        }
        Ok(list)
    }

    fn quota(&self, quota: Option<i64>, period: Option<u64>, add: &mut impl FnMut(&str, Value)) {
        if let Some(period) = period.filter(|_| self.version >= 242) {
            add("CPUQuotaPeriodUSec", Value::U64(period));
        }
        if quota.is_none() && period.is_none() {
            return;
        }
        let per_second = match quota {
            Some(quota) if quota > 0 => per_second(quota as u64, period.unwrap_or(100_000)),
            _ => u64::MAX,
        };
        add("CPUQuotaPerSecUSec", Value::U64(per_second));
    }

    /// A file of v2 as the property that stands for it; one that has none is written to the file only.
    fn unified(&self, key: &str, value: &str, add: &mut impl FnMut(&str, Value)) -> Result<()> {
        let number = || -> Result<Value> { if value == "max" { Ok(Value::U64(u64::MAX)) } else { Ok(Value::U64(value.parse()?)) } };
        match key {
            "cpu.weight" => add("CPUWeight", number()?),
            "cpu.idle" if value == "1" && self.version >= 252 => add("CPUWeight", Value::U64(0)),
            "cpu.max" => {
                let mut words = value.split_whitespace();
                let quota = match words.next().unwrap_or("max") {
                    "max" => -1,
                    quota => quota.parse()?,
                };
                self.quota(Some(quota), words.next().map(str::parse).transpose()?, add);
            }
            "cpuset.cpus" if self.version >= 244 => add("AllowedCPUs", bits(value)?),
            "cpuset.mems" if self.version >= 244 => add("AllowedMemoryNodes", bits(value)?),
            "memory.high" => add("MemoryHigh", number()?),
            "memory.low" => add("MemoryLow", number()?),
            "memory.min" => add("MemoryMin", number()?),
            "memory.max" => add("MemoryMax", number()?),
            "memory.swap.max" => add("MemorySwapMax", number()?),
            "pids.max" => add("TasksMax", number()?),
            _ => (),
        }
        Ok(())
    }
}

/// The properties in annotations `org.systemd.property.NAME`, their values in GVariant text.
pub(super) fn annotated(annotations: &HashMap<String, String>) -> Result<Vec<Property>> {
    let mut list = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix("org.systemd.property.") else { continue };
        if name.len() < 3 || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
            bail!("annotations: {key:?}: a property's name is three letters or more, and nothing else");
        }
        let value = super::gvariant::parse(text).with_context(|| format!("annotations: {key:?}: value {text:?}"))?;
        // The manual's TimeoutStopSec is TimeoutStopUSec here.
        list.push(match name.strip_suffix("Sec").filter(|n| n.ends_with(|c: char| c.is_ascii_lowercase())) {
            Some(stem) => {
                (format!("{stem}USec"), microseconds(&value).with_context(|| format!("annotations: {key:?}: {text:?} is no number"))?)
            }
            None => (name.to_owned(), value),
        });
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(list)
}

fn microseconds(seconds: &Value) -> Option<Value> {
    let whole = match seconds {
        Value::Byte(n) => u64::from(*n),
        Value::U16(n) => u64::from(*n),
        Value::U32(n) => u64::from(*n),
        Value::U64(n) => *n,
        Value::I16(n) => u64::try_from(*n).ok()?,
        Value::I32(n) => u64::try_from(*n).ok()?,
        Value::I64(n) => u64::try_from(*n).ok()?,
        Value::F64(n) => return Some(Value::U64((n * 1e6) as u64)),
        _ => return None,
    };
    Some(Value::U64(whole.checked_mul(1_000_000)?))
}

pub(super) fn property(name: &str, value: Value) -> Property {
    (name.to_owned(), value)
}

pub(super) fn list(properties: Vec<Property>) -> Value {
    let pair = |(name, value)| Value::Tuple(vec![Value::Str(name), Value::Variant(Box::new(value))]);
    Value::Array("(sv)".into(), properties.into_iter().map(pair).collect())
}

/// A limit; none is systemd's infinity.
fn amount(limit: i64) -> Value {
    Value::U64(u64::try_from(limit).unwrap_or(u64::MAX))
}

/// A list of CPUs or nodes ("0-3,7") as a bit mask, the lowest byte first.
fn bits(list: &str) -> Result<Value> {
    const MOST: usize = 1 << 16;
    let mut mask: Vec<u8> = Vec::new();
    for range in list.split(',').map(str::trim).filter(|r| !r.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim().parse::<usize>(), last.trim().parse::<usize>());
        let (Ok(first), Ok(last)) = (first, last) else { bail!("{list:?} is not a list such as \"0-3,7\"") };
        if first > last || last >= MOST {
            bail!("{list:?}: the range {range:?} makes no sense");
        }
        mask.resize(mask.len().max(last / 8 + 1), 0);
        (first..=last).for_each(|n| mask[n / 8] |= 1 << (n % 8));
    }
    Ok(Value::Array("y".into(), mask.into_iter().map(Value::Byte).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::dbus::Bus;
    use super::*;

    fn systemd(version: u32) -> Systemd {
        let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Systemd { bus: Bus::over(ours), version }
    }

    fn limits(version: u32, v2: bool, json: &str) -> Vec<Property> {
        systemd(version).limits(&serde_json::from_str(json).unwrap(), v2, |_| None).unwrap()
    }

    #[test]
    fn limits_are_properties() {
        let u = |name: &str, n: u64| (name.to_owned(), Value::U64(n));
        assert_eq!(
            limits(
                257,
                true,
                r#"{"memory":{"limit":100,"swap":150},"cpu":{"shares":1024,"quota":15500,"period":100000},"pids":{"limit":0}}"#
            ),
            [
                u("MemoryMax", 100),
                u("MemorySwapMax", 50),
                u("CPUWeight", 100),
                u("CPUQuotaPeriodUSec", 100_000),
                u("CPUQuotaPerSecUSec", 160_000),
                u("TasksMax", 1)
            ]
        );
        assert_eq!(limits(257, true, r#"{"memory":{"limit":-1}}"#), [u("MemoryMax", u64::MAX), u("MemorySwapMax", u64::MAX)]);
        assert_eq!(limits(257, false, r#"{"memory":{"limit":7},"cpu":{"shares":5}}"#), [u("MemoryLimit", 7), u("CPUShares", 5)]);
        assert_eq!(limits(257, true, r#"{"cpu":{"idle":1,"shares":5}}"#), [u("CPUWeight", 0)]);
        assert_eq!(limits(257, true, r#"{"unified":{"cpu.idle":"1","cpu.weight":"8"}}"#), [u("CPUWeight", 0)]);
        assert_eq!(limits(241, true, r#"{"cpu":{"cpus":"0","quota":-1,"period":5}}"#), [u("CPUQuotaPerSecUSec", u64::MAX)]);
        assert_eq!(
            limits(257, true, r#"{"unified":{"pids.max":"max","memory.high":" 5 ","io.weight":"7","cpu.max":"1000 10000"}}"#),
            [u("CPUQuotaPeriodUSec", 10_000), u("CPUQuotaPerSecUSec", 100_000), u("MemoryHigh", 5), u("TasksMax", u64::MAX)]
        );
        assert!(systemd(257).limits(&serde_json::from_str(r#"{"unified":{"pids.max":"x"}}"#).unwrap(), true, |_| None).is_err());
    }

    #[test]
    fn a_quota_is_held_in_whole_percents() {
        let fields = [(600_000, 900_000), (20_500, 50_000), (-1, 900_000), (0, 900_000), (600_000, 0), (i64::MAX, 1), (0, 0)];
        let held = |max: &str| {
            fields.map(|(quota, period)| {
                let r = serde_json::from_str(&format!(r#"{{"cpu":{{"quota":{quota},"period":{period},"shares":7}}}}"#)).unwrap();
                let c = held(&r, max).cpu().clone().unwrap();
                assert_eq!(c.shares(), Some(7));
                (c.quota(), c.period())
            })
        };
        let period = Some(900_000);
        let most = Some(i64::try_from(u64::MAX / 1_000_000).unwrap());
        assert_eq!(
            held("500001 1000000\n"),
            [
                (Some(603_000), period),
                (Some(20_500), Some(50_000)),
                (Some(-1), period),
                (Some(504_000), period),
                (Some(600_000), Some(1_000_000)),
                (most, Some(1)),
                (None, None)
            ]
        );
        assert_eq!(
            held(""),
            [
                (Some(603_000), period),
                (Some(20_500), Some(50_000)),
                (Some(-1), period),
                (None, period),
                (Some(600_000), None),
                (most, Some(1)),
                (None, None)
            ]
        );
    }

    #[test]
    fn sets_of_cpus_are_bits() {
        let bytes = |list: &str| {
            let Value::Array(_, items) = bits(list).unwrap() else { panic!() };
            items.into_iter().map(|b| if let Value::Byte(b) = b { b } else { panic!() }).collect::<Vec<_>>()
        };
        assert_eq!(bytes("0-1,8"), [3, 1]);
        assert_eq!(bytes("9"), [0, 2]);
        for bad in ["a", "3-1", "0-", "99999999"] {
            assert!(bits(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_are_a_list_that_is_never_too_narrow() {
        let rules = |json: &str| Rules::new(&serde_json::from_str::<Vec<_>>(json).unwrap()).unwrap();
        let names = |json: &str| -> (Value, Vec<String>) {
            let [(_, policy), (_, Value::Array(_, list))] = &systemd(257).devices(&rules(json))[..] else { panic!() };
            let name = |v: &Value| if let Value::Tuple(f) = v { format!("{:?}", f).replace("Str", "") } else { panic!() };
            (policy.clone(), list.iter().map(name).collect())
        };
        let (policy, list) =
            names(r#"[{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"},{"allow":true,"type":"b","minor":3,"access":"r"}]"#);
        assert_eq!(policy, "strict".into());
        assert_eq!(list[..2], [r#"[("/dev/char/10:229"), ("rw")]"#, r#"[("block-*"), ("r")]"#]);
        assert!(list.contains(&r#"[("char-136"), ("rwm")]"#.to_owned()), "{list:?}");
        assert_eq!(names(r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","access":"w"}]"#), ("auto".into(), Vec::new()));
    }

    #[test]
    fn annotations_become_properties() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>();
        let got = annotated(&map(&[
            ("org.systemd.property.TimeoutStopSec", "uint32 30"),
            ("org.systemd.property.CollectMode", "'inactive'"),
            ("other", "x"),
        ]))
        .unwrap();
        assert_eq!(got, [("CollectMode".to_owned(), "inactive".into()), ("TimeoutStopUSec".to_owned(), Value::U64(30_000_000))]);
        assert!(annotated(&map(&[("org.systemd.property.A1c", "1")])).is_err());
        assert!(annotated(&map(&[("org.systemd.property.TimeoutStopSec", "'x'")])).is_err());
    }
}
