//! Deciding: which hierarchies, which folders, what is missing. Nothing is made here.

use super::*;
use std::cell::RefCell;

impl Cgroup {
    /// Decides where the cgroups of container `id` go and checks what its configuration asks for;
    /// makes nothing. `rootless`: without privileges over the host, so that what cannot be had is
    /// done without (see [`Cgroup::warnings`]) unless `linux.cgroupsPath` insists.
    pub fn plan(linux: Option<&Linux>, id: &str, driver: Driver, rootless: bool) -> Result<Cgroup> {
        let resources = linux.and_then(|l| l.resources().as_ref());
        if let Some(r) = resources {
            limits::check(r)?;
        }
        let path = linux.and_then(|l| l.cgroups_path().as_deref()).filter(|p| !p.as_os_str().is_empty());
        let by_systemd = driver == Driver::Systemd;
        let own = driver == Driver::Disabled || (!by_systemd && (rootless || !path.is_some_and(Path::is_absolute)));
        let mounted = hierarchies::discover(own)?;
        if mounted.is_empty() && !rootless && driver != Driver::Disabled {
            bail!("no cgroup hierarchy is mounted (mount one at /sys/fs/cgroup, or use --cgroup-manager disabled)");
        }
        let record = Record { driver, rootless, hierarchies: Vec::new(), unit: None };
        let mut cgroup = Cgroup { record, available: Vec::new(), warnings: Vec::new(), systemd: RefCell::new(None) };
        let unit_dir = if by_systemd { Some(cgroup.plan_unit(path, id, mounted.iter().any(|m| !m.v2))?) } else { None };
        for m in mounted {
            let dir = unit_dir.as_ref().map_or_else(|| m.place(path, id), |below| m.mountpoint.join(below));
            let ours = driver != Driver::Disabled && (!rootless || by_systemd || path.is_some() || writable(&dir));
            let dir = if ours { dir } else { m.own_dir() };
            if ours {
                hierarchies::check_below(&dir, &m.mountpoint)?;
            }
            cgroup.record.hierarchies.push(Hierarchy { v2: m.v2, controllers: m.controllers, mountpoint: m.mountpoint, dir, ours });
        }
        if let Some(unified) = cgroup.unified() {
            cgroup.available = v2::controllers(&unified.mountpoint).unwrap_or_default();
        }
        if let Some(r) = resources {
            cgroup.check_available(r, &cgroup.available)?;
            cgroup.warnings.extend(limits::ignored(r, cgroup.version() == Version::V2));
        }
        cgroup.warn_of_the_missing(resources);
        let mut there = Vec::new();
        let exists = cgroup.primary().map_or(Ok(false), |h| folder::pids(&h.dir, &mut there))?;
        if !there.is_empty() {
            bail!("container's cgroup is not empty: {} process(es) found", there.len());
        }
        if exists && cgroup.exists() && cgroup.frozen()? {
            let dir = cgroup.primary().map(|h| h.dir.display().to_string()).unwrap_or_default();
            bail!("container's cgroup unexpectedly frozen (thaw it, or remove {dir})");
        }
        Ok(cgroup)
    }

    /// Names the scope; its folder from the root of a hierarchy.
    fn plan_unit(&mut self, path: Option<&Path>, id: &str, v1: bool) -> Result<PathBuf> {
        let user = self.record.rootless;
        if user && v1 {
            bail!("cannot use rootless systemd cgroups manager on cgroup v1");
        }
        let (unit, slice) = systemd::unit(path, id, user)?;
        let mut dir = systemd::expand(&slice)?;
        if user {
            // The user's manager divides a cgroup that only it can name.
            dir = hierarchies::clean(&self.systemd(systemd::Systemd::root)?).join(dir);
        }
        dir.push(&unit);
        self.record.unit = Some([unit, slice]);
        Ok(dir)
    }

    /// Refuses a configuration that asks for a controller which is not there.
    pub(super) fn check_available(&self, r: &LinuxResources, available: &[String]) -> Result<()> {
        let unified = self.unified().filter(|h| h.ours);
        let there = |v1: &str, v2: &str| self.ours().any(|h| h.has(v1)) || (unified.is_some() && available.iter().any(|c| c == v2));
        // What exists but is not for this user is said by `warn_of_the_missing`.
        let forbidden = self.record.hierarchies.iter().any(|h| !h.ours) || self.record.hierarchies.is_empty();
        for (v1, v2, field) in limits::asked(r) {
            if !there(v1, v2) && !forbidden {
                let name = if self.version() == Version::V2 && !v2.is_empty() { v2 } else { v1 };
                bail!("linux.resources.{field}: this host has no cgroup controller {name:?}{}", self.where_looked());
            }
        }
        for key in r.unified().iter().flatten().map(|(key, _)| key) {
            let name = key.split('.').next().unwrap_or_default();
            if !forbidden && name != "cgroup" && !there("", name) {
                bail!(
                    "linux.resources.unified: invalid configuration: {key:?} can't be set: controller {name:?} not available{}",
                    self.where_looked()
                );
            }
        }
        if r.devices().as_ref().is_some_and(|d| !d.is_empty()) && !forbidden && !there("devices", "") && unified.is_none() {
            bail!("linux.resources.devices: this host has no cgroup controller \"devices\"");
        }
        Ok(())
    }

    fn where_looked(&self) -> String {
        match self.unified() {
            Some(h) => format!(" (see {})", h.mountpoint.join("cgroup.controllers").display()),
            None => " (see /proc/self/cgroup)".to_owned(),
        }
    }

    /// One line about all that the container goes without.
    fn warn_of_the_missing(&mut self, resources: Option<&LinuxResources>) {
        if self.record.hierarchies.iter().all(|h| h.ours) && !self.record.hierarchies.is_empty() {
            return;
        }
        let has =
            |v1: &str, v2: &str| self.ours().any(|h| h.has(v1)) || (self.ours().any(|h| h.v2) && self.available.iter().any(|c| c == v2));
        let asked = resources.map(limits::asked).unwrap_or_default();
        let without: Vec<String> = asked.into_iter().filter(|(v1, v2, _)| !has(v1, v2)).map(|(_, _, field)| field).collect();
        if without.is_empty() && (self.exists() || self.record.driver == Driver::Disabled) {
            return;
        }
        let why = if self.record.driver == Driver::Disabled { "cgroups are disabled" } else { "this user has no cgroup to divide" };
        let what = if without.is_empty() {
            "limits, pause and update do not work".to_owned()
        } else {
            format!("not applied: {}", without.join(", "))
        };
        let cure = if self.record.driver == Driver::Disabled {
            ""
        } else {
            " (have one delegated, for example by 'systemd-run --user --scope -p Delegate=yes')"
        };
        self.warnings.push(format!("cgroup: {why}, the container runs in its caller's; {what}{cure}"));
    }
}

/// Whether this user may make `dir`: the nearest folder above it that exists can be written.
fn writable(dir: &Path) -> bool {
    let Some(there) = dir.ancestors().skip(1).find(|a| a.exists()) else { return false };
    nix::unistd::eaccess(there, nix::unistd::AccessFlags::W_OK).is_ok()
}
