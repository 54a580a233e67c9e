//! What all plugins together want of one request: their adjustments of the container that is being made, and their updates
//! of others. Each plugin sees the container as those before it left it.

use std::collections::{BTreeMap, BTreeSet};

use rrun_proto::nri::{
    Container, ContainerAdjustment, ContainerUpdate, Field, Hooks, LinuxContainer, LinuxContainerAdjustment, LinuxContainerUpdate,
    LinuxCpu, LinuxMemory, LinuxRdt, LinuxResources,
};

use super::owners::Owners;

/// The collection.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// The container that is being made, as the next plugin sees it.
    pub container: Container,
    /// All adjustments of it.
    pub adjust: ContainerAdjustment,
    /// Updates, in the order in which containers were first named.
    pub updates: Vec<ContainerUpdate>,
    /// Who wanted what.
    pub owners: Owners,
}

/// The key, and whether it asks for removal.
pub(super) fn removal(key: &str) -> (&str, bool) {
    key.strip_prefix('-').map_or((key, false), |key| (key, true))
}

/// Claims `$from.$name` where it says something, and sets `$to.$name`. One plugin may do it twice, for two places.
macro_rules! take {
    ($owners:expr, $claims:expr, $from:expr, $to:expr, $($name:ident = $field:ident),+ $(,)?) => {$(
        if let Some(value) = &$from.$name {
            $owners.claim($claims.0, Field::$field, "", $claims.1)?;
            $to.$name = Some(value.clone());
        }
    )+};
}

impl Collected {
    /// For the making of `container`.
    pub(super) fn new(container: Container) -> Collected {
        Collected { container, ..Collected::default() }
    }

    /// Adds what `plugin` wants of the container.
    ///
    /// # Errors
    /// Text that names two plugins which want the same.
    pub(super) fn adjust(&mut self, wanted: ContainerAdjustment, plugin: &str) -> Result<(), String> {
        let id = self.container.id.clone();
        let claims = (id.as_str(), plugin);
        map(
            &mut self.owners,
            claims,
            Field::Annotations,
            wanted.annotations,
            &mut self.container.annotations,
            &mut self.adjust.annotations,
        )?;
        let path = |mount: &rrun_proto::nri::Mount| mount.destination.clone();
        list(&mut self.owners, claims, Field::Mounts, wanted.mounts, &mut self.container.mounts, &mut self.adjust.mounts, path)?;
        self.environment(wanted.env, &id, plugin)?;
        self.arguments(wanted.args, &id, plugin)?;
        if let Some(hooks) = wanted.hooks {
            self.owners.share(&id, Field::OciHooks, plugin);
            append(self.container.hooks.get_or_insert_default(), &hooks);
            append(self.adjust.hooks.get_or_insert_default(), &hooks);
        }
        for limit in wanted.rlimits {
            self.owners.claim(&id, Field::Rlimits, &limit.r#type, plugin)?;
            self.container.rlimits.retain(|old| old.r#type != limit.r#type);
            self.container.rlimits.push(limit.clone());
            self.adjust.rlimits.push(limit);
        }
        for device in wanted.cdi_devices {
            self.owners.claim(&id, Field::CdiDevices, &device.name, plugin)?;
            self.adjust.cdi_devices.push(device);
        }
        match wanted.linux {
            Some(linux) => self.linux(linux, &id, plugin),
            None => Ok(()),
        }
    }

    fn environment(&mut self, wanted: Vec<rrun_proto::nri::KeyValue>, id: &str, plugin: &str) -> Result<(), String> {
        let gone: BTreeSet<String> = wanted.iter().map(|one| removal(&one.key).0.to_owned()).collect();
        self.container.env.retain(|old| !gone.contains(old.split('=').next().unwrap_or_default()));
        for one in wanted.iter().filter(|one| removal(&one.key).1) {
            let name = removal(&one.key).0;
            self.owners.clear(id, Field::Env, name, plugin);
            self.adjust.env.retain(|old| removal(&old.key).0 != name);
            self.adjust.env.push(one.clone());
        }
        for one in wanted.into_iter().filter(|one| !removal(&one.key).1) {
            self.owners.claim(id, Field::Env, &one.key, plugin)?;
            self.container.env.push(format!("{}={}", one.key, one.value));
            self.adjust.env.retain(|old| removal(&old.key).0 != one.key);
            self.adjust.env.push(one);
        }
        Ok(())
    }

    fn arguments(&mut self, mut args: Vec<String>, id: &str, plugin: &str) -> Result<(), String> {
        if args.first().is_some_and(String::is_empty) {
            self.owners.clear(id, Field::Args, "", plugin);
            args.remove(0);
        }
        if !args.is_empty() {
            self.owners.claim(id, Field::Args, "", plugin)?;
            (self.container.args, self.adjust.args) = (args.clone(), args);
        }
        Ok(())
    }

    fn linux(&mut self, wanted: LinuxContainerAdjustment, id: &str, plugin: &str) -> Result<(), String> {
        let container: &mut LinuxContainer = self.container.linux.get_or_insert_default();
        let adjust: &mut LinuxContainerAdjustment = self.adjust.linux.get_or_insert_default();
        let claims = (id, plugin);
        let path = |device: &rrun_proto::nri::LinuxDevice| device.path.clone();
        list(&mut self.owners, claims, Field::Devices, wanted.devices, &mut container.devices, &mut adjust.devices, path)?;
        let kind = |namespace: &rrun_proto::nri::LinuxNamespace| namespace.r#type.clone();
        list(&mut self.owners, claims, Field::Namespace, wanted.namespaces, &mut container.namespaces, &mut adjust.namespaces, kind)?;
        map(&mut self.owners, claims, Field::Sysctl, wanted.sysctl, &mut container.sysctl, &mut adjust.sysctl)?;
        map(&mut self.owners, claims, Field::LinuxNetDevices, wanted.net_devices, &mut container.net_devices, &mut adjust.net_devices)?;
        if !wanted.cgroups_path.is_empty() {
            self.owners.claim(id, Field::CgroupsPath, "", plugin)?;
            container.cgroups_path.clone_from(&wanted.cgroups_path);
            adjust.cgroups_path.clone_from(&wanted.cgroups_path);
        }
        take!(self.owners, claims, wanted, container, oom_score_adj = OomScoreAdj, io_priority = IoPriority);
        take!(self.owners, claims, wanted, container, seccomp_policy = SeccompPolicy, scheduler = LinuxSched);
        take!(self.owners, claims, wanted, adjust, oom_score_adj = OomScoreAdj, io_priority = IoPriority);
        take!(self.owners, claims, wanted, adjust, seccomp_policy = SeccompPolicy, scheduler = LinuxSched, memory_policy = MemoryPolicy);
        if let Some(rdt) = wanted.rdt {
            if rdt.remove {
                for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
                    self.owners.clear(id, field, "", plugin);
                }
                adjust.rdt = Some(LinuxRdt { remove: true, ..LinuxRdt::default() });
            }
            let to = adjust.rdt.get_or_insert_default();
            let set = rdt.clos_id.is_some() || rdt.schemata.is_some() || rdt.enable_monitoring.is_some();
            to.remove &= rdt.remove || !set;
            take!(self.owners, claims, rdt, to, clos_id = RdtClosId, schemata = RdtSchemata, enable_monitoring = RdtEnableMonitoring);
        }
        if let Some(resources) = wanted.resources {
            let seen = container.resources.get_or_insert_default();
            let adjust = adjust.resources.get_or_insert_default();
            merge_resources(&mut self.owners, claims, &resources, adjust)?;
            adjust.devices.extend(resources.devices.clone());
            // What was claimed above is claimed once more by the same plugin: no conflict.
            merge_resources(&mut self.owners, claims, &resources, seen)?;
            seen.devices.extend(resources.devices);
        }
        Ok(())
    }

    /// Adds what `plugin` wants of other containers.
    ///
    /// # Errors
    /// Text that names two plugins which want the same, or the container that is being made.
    pub(super) fn update(&mut self, wanted: Vec<ContainerUpdate>, plugin: &str) -> Result<(), String> {
        for update in wanted {
            let id = update.container_id;
            if !self.container.id.is_empty() && self.container.id == id {
                return Err(format!("plugin {plugin} wants to update container {id}, which is being made: it has to adjust it"));
            }
            let position = match self.updates.iter().position(|old| old.container_id == id) {
                Some(position) => position,
                None => {
                    let linux = Some(LinuxContainerUpdate { resources: Some(LinuxResources::default()) });
                    self.updates.push(ContainerUpdate { container_id: id.clone(), linux, ignore_failure: true });
                    self.updates.len() - 1
                }
            };
            let merged = &mut self.updates[position];
            merged.ignore_failure &= update.ignore_failure;
            let Some(resources) = update.linux.and_then(|linux| linux.resources) else { continue };
            let mut new = merged.linux.clone().unwrap_or_default().resources.unwrap_or_default();
            match merge_resources(&mut self.owners, (&id, plugin), &resources, &mut new) {
                Ok(()) => merged.linux = Some(LinuxContainerUpdate { resources: Some(new) }),
                Err(_) if update.ignore_failure => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Values by key: what the container has, and what is asked for.
fn map<T: Clone + Default>(
    owners: &mut Owners,
    (id, plugin): (&str, &str),
    field: Field,
    wanted: BTreeMap<String, T>,
    container: &mut BTreeMap<String, T>,
    adjust: &mut BTreeMap<String, T>,
) -> Result<(), String> {
    // "-" sorts before most keys, but not before all.
    for key in wanted.keys().filter(|key| removal(key).1) {
        let name = removal(key).0;
        owners.clear(id, field, name, plugin);
        container.remove(name);
        adjust.remove(name);
        adjust.insert(key.clone(), T::default());
    }
    for (key, value) in wanted.into_iter().filter(|(key, _)| !removal(key).1) {
        owners.claim(id, field, &key, plugin)?;
        container.insert(key.clone(), value.clone());
        adjust.remove(&format!("-{key}"));
        adjust.insert(key, value);
    }
    Ok(())
}

/// The same for values that have their key in them.
fn list<T: Clone>(
    owners: &mut Owners,
    (id, plugin): (&str, &str),
    field: Field,
    wanted: Vec<T>,
    container: &mut Vec<T>,
    adjust: &mut Vec<T>,
    key: impl Fn(&T) -> String,
) -> Result<(), String> {
    let name = |value: &T| removal(&key(value)).0.to_owned();
    for value in wanted.iter().filter(|value| removal(&key(value)).1) {
        owners.clear(id, field, &name(value), plugin);
        container.retain(|old| name(old) != name(value));
        adjust.retain(|old| name(old) != name(value));
        adjust.push(value.clone());
    }
    for value in wanted.into_iter().filter(|value| !removal(&key(value)).1) {
        owners.claim(id, field, &key(&value), plugin)?;
        container.retain(|old| name(old) != name(&value));
        container.push(value.clone());
        adjust.retain(|old| name(old) != name(&value));
        adjust.push(value);
    }
    Ok(())
}

fn append(to: &mut Hooks, more: &Hooks) {
    to.prestart.extend(more.prestart.clone());
    to.create_runtime.extend(more.create_runtime.clone());
    to.create_container.extend(more.create_container.clone());
    to.start_container.extend(more.start_container.clone());
    to.poststart.extend(more.poststart.clone());
    to.poststop.extend(more.poststop.clone());
}

/// Sets in `to` what `wanted` says, and claims it.
fn merge_resources(owners: &mut Owners, claims: (&str, &str), wanted: &LinuxResources, to: &mut LinuxResources) -> Result<(), String> {
    let (id, plugin) = claims;
    if let Some(memory) = &wanted.memory {
        let to: &mut LinuxMemory = to.memory.get_or_insert_default();
        take!(owners, claims, memory, to, limit = MemLimit, reservation = MemReservation, swap = MemSwapLimit);
        take!(owners, claims, memory, to, kernel = MemKernelLimit, kernel_tcp = MemTcpLimit, swappiness = MemSwappiness);
        take!(owners, claims, memory, to, disable_oom_killer = MemDisableOomKiller, use_hierarchy = MemUseHierarchy);
    }
    if let Some(cpu) = &wanted.cpu {
        let to: &mut LinuxCpu = to.cpu.get_or_insert_default();
        take!(owners, claims, cpu, to, shares = CpuShares, quota = CpuQuota, period = CpuPeriod);
        take!(owners, claims, cpu, to, realtime_runtime = CpuRealtimeRuntime, realtime_period = CpuRealtimePeriod);
        for (value, to, field) in [(&cpu.cpus, &mut to.cpus, Field::CpuSetCpUs), (&cpu.mems, &mut to.mems, Field::CpuSetMems)] {
            if !value.is_empty() {
                owners.claim(id, field, "", plugin)?;
                to.clone_from(value);
            }
        }
    }
    for limit in &wanted.hugepage_limits {
        owners.claim(id, Field::HugepageLimits, &limit.page_size, plugin)?;
        to.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        to.hugepage_limits.push(limit.clone());
    }
    for (file, value) in &wanted.unified {
        owners.claim(id, Field::CgroupsUnified, file, plugin)?;
        to.unified.insert(file.clone(), value.clone());
    }
    take!(owners, claims, wanted, to, blockio_class = BlockioClass, rdt_class = RdtClass, pids = PidsLimit);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rrun_proto::nri::{KeyValue, Mount, OptionalInt64};

    fn variable(key: &str, value: &str) -> KeyValue {
        KeyValue { key: key.into(), value: value.into() }
    }

    fn memory(limit: i64) -> LinuxResources {
        let limit = Some(OptionalInt64 { value: limit });
        LinuxResources { memory: Some(LinuxMemory { limit, ..LinuxMemory::default() }), ..LinuxResources::default() }
    }

    fn update(id: &str, limit: i64) -> ContainerUpdate {
        let linux = Some(LinuxContainerUpdate { resources: Some(memory(limit)) });
        ContainerUpdate { container_id: id.into(), linux, ignore_failure: false }
    }

    #[test]
    fn the_next_plugin_sees_what_the_one_before_did() {
        let mut all = Collected::new(Container { id: "c".into(), env: vec!["A=1".into(), "B=2".into()], ..Container::default() });
        let env = vec![variable("A", "3"), variable("-B", "")];
        let mount = Mount { destination: "/x".into(), ..Mount::default() };
        all.adjust(ContainerAdjustment { env, mounts: vec![mount.clone()], ..ContainerAdjustment::default() }, "10-a").unwrap();
        assert_eq!((all.container.env.clone(), all.container.mounts.clone()), (vec!["A=3".to_owned()], vec![mount]));
        let error =
            all.adjust(ContainerAdjustment { env: vec![variable("A", "4")], ..ContainerAdjustment::default() }, "20-b").unwrap_err();
        assert!(error.contains("10-a and 20-b"), "{error}");
        let env = vec![variable("-A", ""), variable("A", "4")];
        all.adjust(ContainerAdjustment { env, ..ContainerAdjustment::default() }, "30-c").unwrap();
        let wanted: Vec<_> = all.adjust.env.iter().map(|one| (one.key.as_str(), one.value.as_str())).collect();
        assert_eq!(wanted, [("-B", ""), ("A", "4")]);
    }

    #[test]
    fn limits_have_one_owner_each() {
        let mut all = Collected::new(Container { id: "c".into(), ..Container::default() });
        let limited = |limit| {
            let linux = LinuxContainerAdjustment { resources: Some(memory(limit)), ..LinuxContainerAdjustment::default() };
            ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() }
        };
        all.adjust(limited(1), "10-a").unwrap();
        assert!(all.adjust(limited(1), "20-b").unwrap_err().contains("MemLimit"));
        assert_eq!(all.container.linux.unwrap().resources, all.adjust.linux.unwrap().resources);
    }

    #[test]
    fn updates_of_other_containers() {
        let mut all = Collected::new(Container { id: "c".into(), ..Container::default() });
        assert!(all.update(vec![update("c", 1)], "10-a").unwrap_err().contains("being made"));
        all.update(vec![update("d", 1), update("e", 1)], "10-a").unwrap();
        assert!(all.update(vec![update("d", 2)], "20-b").is_err());
        all.update(vec![ContainerUpdate { ignore_failure: true, ..update("d", 2) }], "20-b").unwrap();
        let limits: Vec<_> = all.updates.iter().map(|one| (one.container_id.as_str(), one.ignore_failure, one.linux.clone())).collect();
        assert_eq!(limits, [("d", false, update("d", 1).linux), ("e", false, update("e", 1).linux)]);
    }
}
