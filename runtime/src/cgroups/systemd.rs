//! The systemd driver: a container is a transient scope, which systemd makes around a process that
//! is already there. Names and paths of units, limits as unit properties, and the calls.
//!
//! systemd must know the limits and the device rules although the files are written as well: it
//! writes what it knows again at every `daemon-reload`.

use super::dbus::{Bus, Method, Refused, Value};
use super::devices::Rules;
use super::v2::{swap_alone, weight_of_shares};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A property of a unit.
pub(super) type Property = (String, Value);

/// systemd over its bus.
#[derive(Debug)]
pub(super) struct Systemd {
    bus: Bus,
    /// Its major version, 0 where it does not say.
    version: u32,
}

const NAME: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const OBJECT: &str = "/org/freedesktop/systemd1";

impl Systemd {
    /// Connects to the system's manager, or to that of the calling user.
    pub(super) fn connect(user: bool) -> Result<Systemd> {
        let addresses = if user { user_bus() } else { system_bus() };
        let hint = if user {
            "the systemd cgroup driver needs the user's D-Bus (log in with a session, or set DBUS_SESSION_BUS_ADDRESS)"
        } else {
            "the systemd cgroup driver needs systemd and D-Bus (use the cgroupfs driver without them)"
        };
        let bus = Bus::connect(&addresses).context(hint)?;
        let mut systemd = Systemd { bus, version: 0 };
        let version = systemd.property("Version").unwrap_or_default();
        systemd.version =
            version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse().unwrap_or(0);
        Ok(systemd)
    }

    fn manager(&mut self, member: &str, arguments: &[Value]) -> Result<super::dbus::Message> {
        self.bus.call(Method { destination: NAME, path: OBJECT, interface: MANAGER, member }, arguments)
    }

    fn property(&mut self, name: &str) -> Result<String> {
        let get = Method { destination: NAME, path: OBJECT, interface: "org.freedesktop.DBus.Properties", member: "Get" };
        let reply = self.bus.call(get, &[MANAGER.into(), name.into()])?;
        Ok(reply.body().text_variant().with_context(|| format!("property {name} of systemd"))?.to_owned())
    }

    /// The manager's own cgroup: `/` for the system's, `/user.slice/…/user@1000.service` for a user's.
    pub(super) fn root(&mut self) -> Result<PathBuf> {
        self.property("ControlGroup").map(PathBuf::from)
    }

    /// Makes the scope `unit` in `slice` around process `pid`, and waits until systemd is done.
    pub(super) fn start(&mut self, unit: &str, slice: &str, pid: i32, more: Vec<Property>) -> Result<()> {
        self.watch(unit)?;
        let mut properties = vec![
            property("Description", format!("rrun container {unit}").as_str().into()),
            property("Slice", slice.into()),
            property("Delegate", Value::Bool(true)),
            property("PIDs", Value::Array("u".into(), vec![Value::U32(pid as u32)])),
            property("DefaultDependencies", Value::Bool(false)),
            property("MemoryAccounting", Value::Bool(true)),
            property("CPUAccounting", Value::Bool(true)),
            property("IOAccounting", Value::Bool(true)),
            property("TasksAccounting", Value::Bool(true)),
        ];
        if self.version >= 236 {
            // A container that fails leaves no failed unit behind that would hold its name.
            properties.push(property("CollectMode", "inactive-or-failed".into()));
        }
        properties.extend(more);
        let arguments = [unit.into(), "replace".into(), list(properties), Value::Array("(sa(sv))".into(), Vec::new())];
        let what = || format!("systemd: make the scope {unit}");
        let reply = match self.manager("StartTransientUnit", &arguments) {
            Err(e) if is_refused(&e, "UnitExists") => {
                // Most likely the failed rest of an earlier one.
                let _ = self.manager("ResetFailedUnit", &[unit.into()]);
                self.manager("StartTransientUnit", &arguments)
            }
            other => other,
        };
        let reply = reply.with_context(what)?;
        let job = reply.body().text().with_context(what)?.to_owned();
        match self.finished(&job).with_context(what)?.as_str() {
            "done" => Ok(()),
            result => {
                let _ = self.manager("ResetFailedUnit", &[unit.into()]);
                bail!("systemd: make the scope {unit}: {result}")
            }
        }
    }

    /// Stops `unit` and waits until it is; one that is not there is stopped.
    pub(super) fn stop(&mut self, unit: &str) -> Result<()> {
        self.watch(unit)?;
        let what = || format!("systemd: stop {unit}");
        match self.manager("StopUnit", &[unit.into(), "replace".into()]) {
            Ok(reply) => {
                let job = reply.body().text().with_context(what)?.to_owned();
                self.finished(&job).with_context(what)?;
            }
            Err(e) if is_refused(&e, "NoSuchUnit") => return Ok(()),
            Err(e) => return Err(e).with_context(what),
        }
        match self.manager("ResetFailedUnit", &[unit.into()]) {
            Err(e) if !is_refused(&e, "NoSuchUnit") => Err(e).with_context(what),
            _ => Ok(()),
        }
    }

    /// Changes properties of the running unit, until it ends.
    pub(super) fn set(&mut self, unit: &str, properties: Vec<Property>) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let arguments = [unit.into(), Value::Bool(true), list(properties)];
        self.manager("SetUnitProperties", &arguments).map(drop).with_context(|| format!("systemd: change {unit}"))
    }

    /// Moves process `pid` into the unit, or into the cgroup `sub` below its own.
    pub(super) fn attach(&mut self, unit: &str, sub: &str, pid: i32) -> Result<()> {
        let pids = Value::Array("u".into(), vec![Value::U32(pid as u32)]);
        let moved = self.manager("AttachProcessesToUnit", &[unit.into(), sub.into(), pids]);
        moved.map(drop).with_context(|| format!("systemd: move process {pid} into {unit}"))
    }

    /// Asks for the end of `unit`'s jobs to be told, before there is one.
    fn watch(&mut self, unit: &str) -> Result<()> {
        self.bus
            .add_match(&format!("type='signal',sender='{NAME}',interface='{MANAGER}',member='JobRemoved',path='{OBJECT}',arg2='{unit}'"))
    }

    /// Waits until `job` is over; its result.
    fn finished(&mut self, job: &str) -> Result<String> {
        self.bus.wait("JobRemoved", |body| {
            body.u32()?;
            let ours = body.text()? == job;
            body.text()?;
            let result = body.text()?.to_owned();
            ours.then_some(result)
        })
    }

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

    /// The limits as properties of a unit whose cgroups are on v2 or on v1. `memory_now` answers
    /// with the present limit of memory, asked for when only swap is given.
    pub(super) fn limits(&self, r: &LinuxResources, v2: bool, memory_now: impl Fn() -> Option<i64>) -> Result<Vec<Property>> {
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
                Some(swap) if v2 => add("MemorySwapMax", amount(swap_alone(swap, limit.or_else(memory_now))?)),
                None if v2 && limit == Some(-1) => add("MemorySwapMax", amount(-1)),
                _ => (),
            }
        }
        if let Some(c) = r.cpu() {
            let idle = v2 && c.idle() == Some(1) && self.version >= 252;
            if idle {
                // 0 is systemd's word for idle.
                add("CPUWeight", Value::U64(0));
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
            for (key, value) in unified {
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
            // systemd thinks in whole percents: rounded up, so that the exact value in the file fits.
            Some(quota) if quota > 0 => {
                (quota as u64).saturating_mul(1_000_000).div_euclid(period.unwrap_or(100_000)).next_multiple_of(10_000)
            }
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

/// Name of the unit and of the slice it goes into, from `linux.cgroupsPath` (`slice:prefix:name`).
pub(super) fn unit(path: Option<&Path>, id: &str, user: bool) -> Result<(String, String)> {
    let default = if user { "user.slice" } else { "system.slice" };
    let (slice, prefix, name) = match path.map(Path::to_string_lossy) {
        None => (default.to_owned(), "rrun".to_owned(), id.to_owned()),
        Some(path) => {
            let parts: Vec<&str> = path.split(':').collect();
            let [slice, prefix, name] = parts[..] else {
                bail!(
                    "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
                );
            };
            (if slice.is_empty() { default } else { slice }.to_owned(), prefix.to_owned(), name.to_owned())
        }
    };
    if name.is_empty() || name.ends_with(".slice") {
        bail!("linux.cgroupsPath: {name:?} cannot be the name of a scope");
    }
    Ok((escape(&format!("{prefix}-{name}.scope")), slice))
}

/// Writes what unit names may not hold as `\x2b`.
fn escape(name: &str) -> String {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.:@\\".contains(&b);
    name.bytes().map(|b| if fine(b) { char::from(b).to_string() } else { format!("\\x{b:02x}") }).collect()
}

/// The cgroup of a slice: `a-b.slice` is `a.slice/a-b.slice`, `-.slice` is the root.
pub(super) fn expand(slice: &str) -> Result<PathBuf> {
    let wrong = || format!("linux.cgroupsPath: invalid slice name {slice:?}");
    let Some(name) = slice.strip_suffix(".slice").filter(|n| !n.is_empty() && !n.contains('/')) else { bail!(wrong()) };
    let mut path = PathBuf::new();
    if name == "-" {
        return Ok(path);
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.starts_with('.') {
            bail!(wrong());
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
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

fn property(name: &str, value: Value) -> Property {
    (name.to_owned(), value)
}

fn list(properties: Vec<Property>) -> Value {
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

fn is_refused(e: &anyhow::Error, name: &str) -> bool {
    e.downcast_ref::<Refused>().is_some_and(|r| r.name.ends_with(name))
}

fn system_bus() -> String {
    std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|_| "unix:path=/run/dbus/system_bus_socket".to_owned())
}

fn user_bus() -> String {
    let own = || {
        let folder = std::env::var("XDG_RUNTIME_DIR").unwrap_or_else(|_| format!("/run/user/{}", nix::unistd::geteuid()));
        format!("unix:path={folder}/bus")
    };
    std::env::var("DBUS_SESSION_BUS_ADDRESS").unwrap_or_else(|_| own())
}

/// Joins `pid` to the v1 cgroup `dir`, which systemd has not made.
pub(super) fn join_v1(dir: &Path, pid: i32) -> Result<()> {
    let path = dir.join("cgroup.procs");
    let folder = super::folder::Folder::open(dir).with_context(|| dir.display().to_string())?;
    match folder.write("cgroup.procs", &pid.to_string()) {
        Err(Errno::ESRCH) => bail!("process {pid} is gone"),
        other => other.with_context(|| format!("write {pid} to {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn systemd(version: u32) -> Systemd {
        let (ours, _) = std::os::unix::net::UnixStream::pair().unwrap();
        Systemd { bus: Bus::over(ours), version }
    }

    fn limits(version: u32, v2: bool, json: &str) -> Vec<Property> {
        systemd(version).limits(&serde_json::from_str(json).unwrap(), v2, || None).unwrap()
    }

    #[test]
    fn slices_are_folders() {
        assert_eq!(
            expand("kubepods-burstable-pod1.slice").unwrap(),
            Path::new("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice")
        );
        assert_eq!(expand("system.slice").unwrap(), Path::new("system.slice"));
        assert_eq!(expand("-.slice").unwrap(), Path::new(""));
        for bad in ["", ".slice", "a", "a/b.slice", "-a.slice", "a--b.slice", "a-.slice", "..slice", "a-..slice"] {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn units_are_named_by_the_path() {
        let unit = |path: Option<&str>, user| unit(path.map(Path::new), "id+1", user);
        assert_eq!(unit(None, false).unwrap(), ("rrun-id\\x2b1.scope".into(), "system.slice".into()));
        assert_eq!(unit(Some("a-b.slice:crio:x"), true).unwrap(), ("crio-x.scope".into(), "a-b.slice".into()));
        assert_eq!(unit(Some(":p:x"), true).unwrap(), ("p-x.scope".into(), "user.slice".into()));
        for bad in ["/a/b", "a:b", "a:b:c:d", "a.slice:b:", "a.slice:b:c.slice"] {
            assert!(unit(Some(bad), false).is_err(), "{bad}");
        }
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
        assert_eq!(limits(241, true, r#"{"cpu":{"cpus":"0","quota":-1,"period":5}}"#), [u("CPUQuotaPerSecUSec", u64::MAX)]);
        assert_eq!(
            limits(257, true, r#"{"unified":{"pids.max":"max","memory.high":" 5 ","io.weight":"7","cpu.max":"1000 10000"}}"#),
            [u("CPUQuotaPeriodUSec", 10_000), u("CPUQuotaPerSecUSec", 100_000), u("MemoryHigh", 5), u("TasksMax", u64::MAX)]
        );
        assert!(systemd(257).limits(&serde_json::from_str(r#"{"unified":{"pids.max":"x"}}"#).unwrap(), true, || None).is_err());
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
