//! Adjustments in the runtime specification's configuration. It is changed as JSON, which has room for what its types in
//! Rust do not know.

use std::path::PathBuf;

use rrun_proto::nri::{
    ContainerAdjustment, Hook, Hooks, IoPrioClass, LinuxContainerAdjustment, LinuxDevice, LinuxMemoryPolicy, LinuxRdt, LinuxResources,
    LinuxScheduler, LinuxSchedulerPolicy, LinuxSeccomp, Mount,
};
use serde_json::{Map, Value, json};

use super::collect::removal;
use crate::containers::oci::cdi;

/// Changes `config` as plugins want it. `cdi_dirs` have the CDI devices that they may name.
///
/// # Errors
/// What cannot be done, with the field's name.
pub(super) fn adjust(config: &mut Value, wanted: &ContainerAdjustment, cdi_dirs: &[PathBuf]) -> anyhow::Result<()> {
    for (key, value) in &wanted.annotations {
        set(object(config, &["annotations"]), key, || json!(value));
    }
    environment(config, wanted);
    if !wanted.args.is_empty() {
        object(config, &["process"]).insert("args".into(), json!(wanted.args));
    }
    if let Some(added) = &wanted.hooks {
        hooks(object(config, &["hooks"]), added);
    }
    if !wanted.cdi_devices.is_empty() {
        let names: Vec<&str> = wanted.cdi_devices.iter().map(|device| device.name.as_str()).collect();
        cdi::inject(cdi_dirs, &names, config)?;
    }
    if let Some(linux) = &wanted.linux {
        adjust_linux(config, linux)?;
    }
    mounts(config, &wanted.mounts);
    let limits = array(object(config, &["process"]), "rlimits");
    for limit in &wanted.rlimits {
        limits.retain(|old| old["type"] != limit.r#type.as_str());
        limits.push(json!({"type": limit.r#type, "hard": limit.hard, "soft": limit.soft}));
    }
    Ok(())
}

fn adjust_linux(config: &mut Value, wanted: &LinuxContainerAdjustment) -> anyhow::Result<()> {
    for device in &wanted.devices {
        self::device(config, device);
    }
    let process = object(config, &["process"]);
    if let Some(score) = &wanted.oom_score_adj {
        process.insert("oomScoreAdj".into(), json!(score.value));
    }
    if let Some(priority) = &wanted.io_priority {
        process.remove("ioPriority");
        if priority.class() != IoPrioClass::IoprioClassNone {
            let priority = json!({"class": priority.class().as_str_name(), "priority": priority.priority});
            process.insert("ioPriority".into(), priority);
        }
    }
    if let Some(wanted) = &wanted.scheduler {
        scheduler(process, wanted);
    }
    let linux = object(config, &["linux"]);
    if !wanted.cgroups_path.is_empty() {
        linux.insert("cgroupsPath".into(), json!(wanted.cgroups_path));
    }
    if let Some(policy) = &wanted.seccomp_policy {
        linux.insert("seccomp".into(), seccomp(policy));
    }
    let namespaces = array(linux, "namespaces");
    for namespace in &wanted.namespaces {
        let (kind, removed) = removal(&namespace.r#type);
        namespaces.retain(|old| old["type"] != kind);
        match namespace.path.as_str() {
            _ if removed => {}
            "" => namespaces.push(json!({"type": kind})),
            path => namespaces.push(json!({"type": kind, "path": path})),
        }
    }
    for (key, value) in &wanted.sysctl {
        set(object(config, &["linux", "sysctl"]), key, || json!(value));
    }
    for (key, device) in &wanted.net_devices {
        set(object(config, &["linux", "netDevices"]), key, || json!({"name": device.name}));
    }
    if let Some(policy) = &wanted.memory_policy {
        object(config, &["linux"]).insert("memoryPolicy".into(), memory_policy(policy));
    }
    if let Some(wanted) = &wanted.resources {
        resources(object(config, &["linux", "resources"]), wanted)?;
        if let Some(class) = &wanted.rdt_class {
            object(config, &["linux"]).remove("intelRdt");
            if !class.value.is_empty() {
                object(config, &["linux", "intelRdt"]).insert("closID".into(), json!(class.value));
            }
        }
    }
    if let Some(wanted) = &wanted.rdt {
        rdt(config, wanted);
    }
    Ok(())
}

/// Sets limits in the object `linux.resources`.
///
/// # Errors
/// A class of block devices: nothing here says what it means.
pub(super) fn resources(to: &mut Map<String, Value>, wanted: &LinuxResources) -> anyhow::Result<()> {
    if let Some(class) = wanted.blockio_class.as_ref().filter(|class| !class.value.is_empty()) {
        anyhow::bail!("blockio_class {:?}: there are no classes of block devices here", class.value);
    }
    if let Some(memory) = &wanted.memory {
        let to = child(to, "memory");
        // Without one of its own, the limit of memory and swap together goes with the memory's.
        let both = memory.swap.or(memory.limit.filter(|_| to.contains_key("swap")).filter(|limit| limit.value != 0));
        for (name, value) in [
            ("limit", memory.limit.map(|value| json!(value.value)).filter(|value| *value != 0)),
            ("swap", both.map(|value| json!(value.value))),
            ("reservation", memory.reservation.map(|value| json!(value.value))),
            ("kernel", memory.kernel.map(|value| json!(value.value))),
            ("kernelTCP", memory.kernel_tcp.map(|value| json!(value.value))),
            ("swappiness", memory.swappiness.map(|value| json!(value.value))),
            ("disableOOMKiller", memory.disable_oom_killer.map(|value| json!(value.value))),
            ("useHierarchy", memory.use_hierarchy.map(|value| json!(value.value))),
        ] {
            if let Some(value) = value {
                to.insert(name.into(), value);
            }
        }
    }
    if let Some(cpu) = &wanted.cpu {
        let to = child(to, "cpu");
        let text = |text: &String| Some(json!(text)).filter(|_| !text.is_empty());
        for (name, value) in [
            ("shares", cpu.shares.map(|value| json!(value.value))),
            ("quota", cpu.quota.map(|value| json!(value.value))),
            ("period", cpu.period.map(|value| json!(value.value))),
            ("realtimeRuntime", cpu.realtime_runtime.map(|value| json!(value.value))),
            ("realtimePeriod", cpu.realtime_period.map(|value| json!(value.value))),
            ("cpus", text(&cpu.cpus)),
            ("mems", text(&cpu.mems)),
        ] {
            if let Some(value) = value {
                to.insert(name.into(), value);
            }
        }
    }
    for limit in &wanted.hugepage_limits {
        let limits = array(to, "hugepageLimits");
        limits.retain(|old| old["pageSize"] != limit.page_size.as_str());
        limits.push(json!({"pageSize": limit.page_size, "limit": limit.limit}));
    }
    for (file, value) in &wanted.unified {
        child(to, "unified").insert(file.clone(), json!(value));
    }
    if let Some(pids) = &wanted.pids {
        child(to, "pids").insert("limit".into(), json!(pids.limit));
    }
    for rule in &wanted.devices {
        let mut made = json!({"allow": rule.allow, "access": rule.access});
        for (name, value) in [("major", rule.major), ("minor", rule.minor)] {
            if let Some(value) = value {
                made[name] = json!(value.value);
            }
        }
        if !rule.r#type.is_empty() {
            made["type"] = json!(rule.r#type);
        }
        array(to, "devices").push(made);
    }
    Ok(())
}

fn environment(config: &mut Value, wanted: &ContainerAdjustment) {
    let variables = array(object(config, &["process"]), "env");
    for one in &wanted.env {
        let (name, removed) = removal(&one.key);
        let is = |old: &Value| old.as_str().and_then(|old| old.split('=').next()) == Some(name);
        let set = json!(format!("{name}={}", one.value));
        match variables.iter().position(is) {
            _ if removed => variables.retain(|old| !is(old)),
            Some(position) => variables[position] = set,
            None => variables.push(set),
        }
    }
}

fn hooks(to: &mut Map<String, Value>, added: &Hooks) {
    let made = |hook: &Hook| {
        let mut made = json!({"path": hook.path});
        for (name, list) in [("args", &hook.args), ("env", &hook.env)] {
            if !list.is_empty() {
                made[name] = json!(list);
            }
        }
        if let Some(timeout) = hook.timeout {
            made["timeout"] = json!(timeout.value);
        }
        made
    };
    for (name, list) in [
        ("prestart", &added.prestart),
        ("createRuntime", &added.create_runtime),
        ("createContainer", &added.create_container),
        ("startContainer", &added.start_container),
        ("poststart", &added.poststart),
        ("poststop", &added.poststop),
    ] {
        if !list.is_empty() {
            array(to, name).extend(list.iter().map(made));
        }
    }
}

fn device(config: &mut Value, wanted: &LinuxDevice) {
    let (path, removed) = removal(&wanted.path);
    let devices = array(object(config, &["linux"]), "devices");
    devices.retain(|old| old["path"] != path);
    if removed {
        return;
    }
    let mut made = json!({"path": path, "type": wanted.r#type, "major": wanted.major, "minor": wanted.minor});
    let values = [
        ("fileMode", wanted.file_mode.map(|mode| mode.value)),
        ("uid", wanted.uid.map(|id| id.value)),
        ("gid", wanted.gid.map(|id| id.value)),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            made[name] = json!(value);
        }
    }
    devices.push(made);
    let access = if wanted.r#type == "b" { "rwm" } else { "rw" };
    let rule = json!({"allow": true, "type": wanted.r#type, "major": wanted.major, "minor": wanted.minor, "access": access});
    array(object(config, &["linux", "resources"]), "devices").push(rule);
}

/// Mounts replace those at the same place. Propagation to or from the host needs the root's to allow it.
fn mounts(config: &mut Value, wanted: &[Mount]) {
    if wanted.is_empty() {
        return;
    }
    let mut propagation = config["linux"]["rootfsPropagation"].as_str().map(str::to_owned);
    let Some(root) = config.as_object_mut() else { return };
    let all = array(root, "mounts");
    for mount in wanted {
        let (destination, removed) = removal(&mount.destination);
        all.retain(|old| old["destination"] != destination);
        if removed {
            continue;
        }
        let has = |option: &str| mount.options.iter().any(|other| other == option);
        match propagation.as_deref() {
            _ if has("rshared") => propagation = Some("rshared".into()),
            Some("rshared" | "shared") => {}
            _ if has("rslave") => propagation = Some("rslave".into()),
            _ => {}
        }
        all.push(json!({"destination": destination, "type": mount.r#type, "source": mount.source, "options": mount.options}));
    }
    // Stable: what stands first stays first, but nothing is mounted below what comes later.
    all.sort_by_key(|mount| mount["destination"].as_str().map_or(0, |path| path.split('/').filter(|part| !part.is_empty()).count()));
    if let Some(propagation) = propagation {
        object(config, &["linux"]).insert("rootfsPropagation".into(), json!(propagation));
    }
}

fn scheduler(process: &mut Map<String, Value>, wanted: &LinuxScheduler) {
    process.remove("scheduler");
    if wanted.policy() == LinuxSchedulerPolicy::SchedNone {
        return;
    }
    let mut made = json!({"policy": wanted.policy().as_str_name()});
    if wanted.nice != 0 {
        made["nice"] = json!(wanted.nice);
    }
    if wanted.priority != 0 {
        made["priority"] = json!(wanted.priority);
    }
    let flags: Vec<_> = wanted.flags().map(|flag| flag.as_str_name()).collect();
    if !flags.is_empty() {
        made["flags"] = json!(flags);
    }
    for (name, value) in [("runtime", wanted.runtime), ("deadline", wanted.deadline), ("period", wanted.period)] {
        if value != 0 {
            made[name] = json!(value);
        }
    }
    process.insert("scheduler".into(), made);
}

fn seccomp(wanted: &LinuxSeccomp) -> Value {
    let syscalls: Vec<Value> = wanted
        .syscalls
        .iter()
        .map(|call| {
            let mut made = json!({"names": call.names, "action": call.action});
            if let Some(errno) = call.errno_ret {
                made["errnoRet"] = json!(errno.value);
            }
            if !call.args.is_empty() {
                let args = call.args.iter();
                made["args"] =
                    args.map(|arg| json!({"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op})).collect();
            }
            made
        })
        .collect();
    let mut made = json!({"defaultAction": wanted.default_action, "syscalls": syscalls});
    if let Some(errno) = wanted.default_errno {
        made["defaultErrnoRet"] = json!(errno.value);
    }
    for (name, list) in [("architectures", &wanted.architectures), ("flags", &wanted.flags)] {
        if !list.is_empty() {
            made[name] = json!(list);
        }
    }
    for (name, text) in [("listenerPath", &wanted.listener_path), ("listenerMetadata", &wanted.listener_metadata)] {
        if !text.is_empty() {
            made[name] = json!(text);
        }
    }
    made
}

fn memory_policy(wanted: &LinuxMemoryPolicy) -> Value {
    let mut made = json!({"mode": wanted.mode().as_str_name()});
    if !wanted.nodes.is_empty() {
        made["nodes"] = json!(wanted.nodes);
    }
    let flags: Vec<_> = wanted.flags().map(|flag| flag.as_str_name()).collect();
    if !flags.is_empty() {
        made["flags"] = json!(flags);
    }
    made
}

fn rdt(config: &mut Value, wanted: &LinuxRdt) {
    if wanted.remove {
        object(config, &["linux"]).remove("intelRdt");
    }
    let values = [
        ("closID", wanted.clos_id.as_ref().map(|id| json!(id.value))),
        ("schemata", wanted.schemata.as_ref().map(|lines| json!(lines.value))),
        ("enableMonitoring", wanted.enable_monitoring.map(|on| json!(on.value))),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            object(config, &["linux", "intelRdt"]).insert(name.into(), value);
        }
    }
}

fn set(to: &mut Map<String, Value>, key: &str, value: impl FnOnce() -> Value) {
    match removal(key) {
        (key, true) => _ = to.remove(key),
        (key, false) => _ = to.insert(key.to_owned(), value()),
    }
}

/// The object at `path`, made where it is missing.
pub(super) fn object<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match (value, path) {
        (Value::Object(map), []) => map,
        (Value::Object(map), [name, rest @ ..]) => object(map.entry(*name).or_insert(Value::Null), rest),
        _ => unreachable!("it was made an object above"),
    }
}

fn child<'a>(map: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    object(map.entry(name).or_insert(Value::Null), &[])
}

/// The list of that name, made where it is missing.
pub(super) fn array<'a>(map: &'a mut Map<String, Value>, name: &str) -> &'a mut Vec<Value> {
    let value = map.entry(name).or_insert(Value::Null);
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it was made a list above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rrun_proto::nri::{
        KeyValue, LinuxCpu, LinuxIoPriority, LinuxMemory, LinuxNamespace, LinuxPids, OptionalInt64, OptionalString, OptionalUInt64,
        PosixRlimit,
    };

    #[test]
    fn a_configuration_is_changed() {
        let mut config = json!({
            "process": {"env": ["A=1", "B=2"], "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1, "soft": 1}]},
            "mounts": [{"destination": "/proc"}, {"destination": "/x/y"}],
            "annotations": {"gone": "1"},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}], "resources": {"memory": {"limit": 1, "swap": 1}}}
        });
        let mount = Mount { destination: "/x".into(), source: "/s".into(), r#type: "bind".into(), options: vec!["rslave".into()] };
        let wanted = ContainerAdjustment {
            annotations: [("-gone".into(), String::new()), ("new".into(), "2".into())].into(),
            env: vec![KeyValue { key: "-B".into(), ..KeyValue::default() }, KeyValue { key: "A".into(), value: "x".into() }],
            mounts: vec![mount],
            rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 5, soft: 4 }],
            linux: Some(LinuxContainerAdjustment {
                namespaces: vec![LinuxNamespace { r#type: "-network".into(), ..LinuxNamespace::default() }],
                io_priority: Some(LinuxIoPriority { class: IoPrioClass::IoprioClassBe.into(), priority: 7 }),
                resources: Some(LinuxResources {
                    memory: Some(LinuxMemory { limit: Some(OptionalInt64 { value: 9 }), ..LinuxMemory::default() }),
                    cpu: Some(LinuxCpu { shares: Some(OptionalUInt64 { value: 8 }), cpus: "0".into(), ..LinuxCpu::default() }),
                    pids: Some(LinuxPids { limit: 6 }),
                    ..LinuxResources::default()
                }),
                ..LinuxContainerAdjustment::default()
            }),
            ..ContainerAdjustment::default()
        };
        adjust(&mut config, &wanted, &[]).unwrap();
        let wanted = json!({
            "process": {
                "env": ["A=x"],
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 5, "soft": 4}],
                "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 7}
            },
            "mounts": [
                {"destination": "/proc"},
                {"destination": "/x", "type": "bind", "source": "/s", "options": ["rslave"]},
                {"destination": "/x/y"}
            ],
            "annotations": {"new": "2"},
            "linux": {
                "rootfsPropagation": "rslave",
                "namespaces": [{"type": "pid"}],
                "resources": {"memory": {"limit": 9, "swap": 9}, "cpu": {"shares": 8, "cpus": "0"}, "pids": {"limit": 6}}
            }
        });
        assert_eq!(config, wanted);
    }

    #[test]
    fn classes_of_block_devices_are_refused() {
        let class =
            |value: &str| LinuxResources { blockio_class: Some(OptionalString { value: value.into() }), ..LinuxResources::default() };
        assert!(resources(&mut Map::new(), &class("fast")).unwrap_err().to_string().contains("blockio_class \"fast\""));
        assert!(resources(&mut Map::new(), &class("")).is_ok());
    }
}
