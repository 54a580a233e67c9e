//! Making a container's cgroups: folders or a scope, controllers, limits, the device filter.

use super::*;
use oci_spec::runtime::LinuxResources;
use std::os::fd::{AsFd, OwnedFd};

impl Cgroup {
    /// Makes the cgroups, sets the limits, filters the devices. On an error nothing of it is left.
    /// With the systemd driver nothing is made yet: see [`Cgroup::adopt`].
    pub fn create(&self, resources: Option<&LinuxResources>, annotations: &HashMap<String, String>) -> Result<Entry> {
        if self.record.unit.is_some() {
            // Wrong annotations are an error before there is anything to adopt.
            return properties::annotated(annotations).map(|_| Entry::Adopt);
        }
        let mut made = Vec::new();
        let entry = self.build(resources, &mut made).and_then(|folder| match folder {
            Some(folder) => Ok(Entry::Into(folder)),
            None => self.entry_into(&[]),
        });
        if entry.is_err() {
            for dir in made.iter().rev() {
                let _ = folder::remove_empty(dir);
            }
        }
        entry
    }

    /// The systemd driver's second half of [`Cgroup::create`]: has systemd make the scope around
    /// the waiting process `pid`, then does what systemd does not.
    pub fn adopt(&self, pid: i32, resources: Option<&LinuxResources>, annotations: &HashMap<String, String>) -> Result<()> {
        let Some([unit, slice]) = &self.record.unit else { return Ok(()) };
        // What a new cgroup of v2 has for its cpu.max.
        let r = &properties::held(resources.unwrap_or(&LinuxResources::default()), "max 100000");
        let rules = devices::Rules::new(r.devices().as_deref().unwrap_or_default())?;
        let v2 = self.version() == Version::V2;
        self.systemd(|systemd| {
            let mut properties = systemd.limits(r, v2, |_| None)?;
            if !self.record.rootless {
                properties.extend(systemd.devices(&rules));
            }
            properties.extend(properties::annotated(annotations)?);
            systemd.start(unit, slice, pid, properties)
        })?;
        if let Some(h) = self.ours().find(|h| (h.v2 && v2) || h.controllers == "name=systemd").filter(|h| !h.dir.is_dir()) {
            bail!("systemd made the scope {unit}, but not as {} (does /sys/fs/cgroup show what systemd sees?)", h.dir.display());
        }
        self.build(Some(r), &mut Vec::new())?;
        for h in self.ours().filter(|_| !v2).filter(|h| h.controllers != "name=systemd") {
            systemd::join_v1(&h.dir, pid)?;
        }
        Ok(())
    }

    /// The systemd driver's way in for `exec` where [`Cgroup::entry`] says [`Entry::Adopt`]: has
    /// systemd move the waiting process `pid`.
    pub fn attach(&self, pid: i32, sub: &[String]) -> Result<()> {
        let Some([unit, _]) = &self.record.unit else { return Ok(()) };
        let below = sub.last().map_or(String::new(), |path| format!("/{}", hierarchies::clean(Path::new(path)).display()));
        self.systemd(|systemd| systemd.attach(unit, &below, pid))
    }

    /// The answer is the v2 cgroup, where it had to be opened.
    fn build(&self, resources: Option<&LinuxResources>, made: &mut Vec<PathBuf>) -> Result<Option<OwnedFd>> {
        let default = LinuxResources::default();
        let r = resources.unwrap_or(&default);
        let mut fresh = true;
        for h in self.ours() {
            let before = made.len();
            folder::make(&h.dir, made)?;
            fresh &= made.len() > before;
            if h.has("cpuset") {
                let cpu = r.cpu().as_ref();
                let given = |text: Option<&Option<String>>| text.and_then(|t| t.as_ref()).is_some_and(|t| !t.is_empty());
                let files = [(given(cpu.map(|c| c.cpus())), "cpuset.cpus"), (given(cpu.map(|c| c.mems())), "cpuset.mems")];
                let given: Vec<&str> = files.iter().filter(|f| f.0).map(|f| f.1).collect();
                v1::fill_cpuset(&h.dir, &h.mountpoint, &given)?;
            }
        }
        self.hand_down(r)?;
        self.limit(r, false)?;
        // systemd has a program of its own there, which stays.
        self.filter_devices(r, !fresh && self.record.unit.is_none())
    }

    /// On v2, makes the controllers available in the container's cgroup: all of them, since clients
    /// read figures of those that have no limit, too.
    fn hand_down(&self, r: &LinuxResources) -> Result<()> {
        let Some(h) = self.unified().filter(|h| h.ours) else { return Ok(()) };
        let hybrid = self.version() == Version::Hybrid;
        let writes = v2::writes(r, |_| None)?;
        let asked = || writes.iter().filter(|w| !hybrid || !self.on_v1(&w.controller)).filter(|w| w.controller != "cgroup");
        if hybrid && asked().next().is_none() {
            return Ok(());
        }
        let here = || v2::controllers(&h.dir).with_context(|| h.dir.display().to_string());
        let lacking = |here: &[String]| self.available.iter().any(|c| !here.contains(c));
        let mut now = here()?;
        if lacking(&now) {
            v2::hand_down(&h.dir, &h.mountpoint, &self.available)?;
            now = here()?;
        }
        if let Some(w) = asked().find(|w| !now.iter().any(|c| *c == w.controller)) {
            bail!(
                "linux.resources.{}: the controller {:?} does not reach the cgroup {}: a cgroup above it has processes of its own or \
                 is not delegated with it (see cgroup.controllers and cgroup.subtree_control there)",
                w.field,
                w.controller,
                h.dir.display()
            );
        }
        Ok(())
    }

    /// Whether v1 has this controller, given by its name on v2.
    fn on_v1(&self, controller: &str) -> bool {
        let name = if controller == "io" { "blkio" } else { controller };
        self.record.hierarchies.iter().any(|h| h.has(name))
    }

    /// Writes the limits into every hierarchy that has the controller.
    pub(super) fn limit(&self, r: &LinuxResources, changed: bool) -> Result<()> {
        if self.ours().any(|h| !h.v2) {
            let writes = v1::writes(r)?;
            for h in self.ours().filter(|h| !h.v2) {
                limits::apply_in(&h.dir, &writes, |c| h.has(c), changed)?;
            }
        }
        if let Some(h) = self.unified().filter(|h| h.ours) {
            v2::check_usage(&h.dir, r)?;
            let writes = v2::writes(r, |file| folder::read_file(&h.dir, file).ok())?;
            limits::apply_in(&h.dir, &writes, |c| !self.on_v1(c), changed)?;
        }
        Ok(())
    }

    /// Sets the device rules. Without privileges the kernel takes none, and mknod is denied anyway. The
    /// answer is the v2 cgroup, where the rules are a program on that.
    pub(super) fn filter_devices(&self, r: &LinuxResources, replace: bool) -> Result<Option<OwnedFd>> {
        let rules = devices::Rules::new(r.devices().as_deref().unwrap_or_default())?;
        let done = if let Some(h) = self.ours().find(|h| h.has("devices")) {
            devices::set_v1(&h.dir, &rules).map(|()| None)
        } else if let Some(h) = self.ours().find(|h| h.v2) {
            let context = || format!("linux.resources.devices: attach the device filter to {}", h.dir.display());
            let folder = Folder::open(&h.dir).with_context(context)?.into_fd();
            device_program::attach(folder.as_fd(), &rules, replace).with_context(context).map(|()| Some(folder))
        } else {
            Ok(None)
        };
        match done {
            Err(_) if self.record.rootless => Ok(None),
            other => other,
        }
    }
}
