//! The systemd driver: a container is a transient scope, which systemd makes around a process that
//! is already there. Names and paths of units, and the calls; `properties.rs` has the limits.
//!
//! systemd must know the limits and the device rules although the files are written as well: it
//! writes what it knows again at every `daemon-reload`.

use super::dbus::Bus;
use super::properties::{Property, list, property};
use super::wire::{Message, Method, Refused, Value};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use std::path::{Path, PathBuf};

/// systemd over its bus.
#[derive(Debug)]
pub(super) struct Systemd {
    pub(super) bus: Bus,
    /// Its major version, 0 where it does not say.
    pub(super) version: u32,
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

    fn manager(&mut self, member: &str, arguments: &[Value]) -> Result<Message> {
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
        properties.extend(more);
        let arguments = [unit.into(), "replace".into(), list(properties), Value::Array("(sa(sv))".into(), Vec::new())];
        let what = || format!("systemd: make the scope {unit}");
        let reply = match self.manager("StartTransientUnit", &arguments) {
            Err(e) if is_refused(&e, "UnitExists") => {
                // Most likely the failed rest of an earlier one.
                let _ = self.forget(unit);
                self.manager("StartTransientUnit", &arguments)
            }
            other => other,
        };
        let reply = reply.with_context(what)?;
        let job = reply.body().text().with_context(what)?.to_owned();
        match self.finished(&job).with_context(what)?.as_str() {
            "done" => Ok(()),
            result => {
                let _ = self.forget(unit);
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
        self.forget(unit).with_context(what)
    }

    /// Has `unit` go if it failed.
    pub(super) fn forget(&mut self, unit: &str) -> Result<()> {
        match self.manager("ResetFailedUnit", &[unit.into()]) {
            Err(e) if !is_refused(&e, "NoSuchUnit") => Err(e),
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
}
