//! Pods and containers as plugins see them.

use rrun_proto::{nri, v1};
use serde_json::Value;

use crate::containers::Container;
use crate::pods::Pod;
use crate::shim::Shim;

/// A pod.
pub(super) fn pod(pod: &Pod) -> nri::PodSandbox {
    let record = pod.record();
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let linux = record.config.linux.clone().unwrap_or_default();
    let of = pod.namespaces();
    let mut namespaces = Vec::new();
    let mut add = |kind: &str, path: Option<&std::path::Path>| {
        if let Some(path) = path {
            namespaces.push(nri::LinuxNamespace { r#type: kind.into(), path: path.display().to_string() });
        }
    };
    add("network", of.network.as_deref());
    add("ipc", of.ipc.as_deref());
    add("uts", of.uts.as_deref());
    add("user", of.user.as_ref().map(|user| user.path.as_path()));
    if let crate::containers::oci::PidNamespace::Path(path) = &of.pid {
        add("pid", Some(path));
    }
    nri::PodSandbox {
        id: pod.id.clone(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
        linux: Some(nri::LinuxPodSandbox {
            pod_overhead: linux.overhead.as_ref().map(resources),
            pod_resources: linux.resources.as_ref().map(resources),
            cgroup_parent: linux.cgroup_parent,
            namespaces,
            ..nri::LinuxPodSandbox::default()
        }),
        pid: record.init.map_or(0, |init| init.pid as u32),
        ips: record.ips.clone(),
    }
}

/// A container. `config` is its configuration for the OCI runtime; `Null` where there is none any more.
pub(super) fn container(shim: &Shim, container: &Container, config: &Value) -> nri::Container {
    let (record, exit) = (container.record(), container.exit());
    let process = &config["process"];
    let user = &process["user"];
    let mut annotations = record.config.annotations.clone();
    annotations.extend(map(&config["annotations"]));
    let image = record.config.image.clone().unwrap_or_default();
    let digest = shim.images.by_id(&record.image_id).and_then(|image| image.repo_digests.first().cloned());
    nri::Container {
        id: container.id.clone(),
        pod_sandbox_id: container.pod.clone(),
        name: record.config.metadata.clone().unwrap_or_default().name,
        state: match container.state() {
            v1::ContainerState::ContainerCreated => nri::ContainerState::ContainerCreated,
            v1::ContainerState::ContainerRunning => nri::ContainerState::ContainerRunning,
            v1::ContainerState::ContainerExited => nri::ContainerState::ContainerStopped,
            v1::ContainerState::ContainerUnknown => nri::ContainerState::ContainerUnknown,
        }
        .into(),
        labels: record.config.labels.clone(),
        annotations,
        args: texts(&process["args"]),
        env: texts(&process["env"]),
        mounts: list(&config["mounts"], |mount| nri::Mount {
            destination: text(&mount["destination"]),
            r#type: text(&mount["type"]),
            source: text(&mount["source"]),
            options: texts(&mount["options"]),
        }),
        hooks: config["hooks"].is_object().then(|| hooks(&config["hooks"])),
        linux: Some(linux(&record.config, config)),
        pid: match exit {
            None => record.process.map_or(0, |process| process.pid as u32),
            Some(_) => 0,
        },
        rlimits: list(&process["rlimits"], |limit| nri::PosixRlimit {
            r#type: text(&limit["type"]),
            hard: limit["hard"].as_u64().unwrap_or_default(),
            soft: limit["soft"].as_u64().unwrap_or_default(),
        }),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: exit.as_ref().map_or(0, |exit| exit.finished_at),
        exit_code: exit.as_ref().map_or(0, |exit| exit.code),
        status_reason: exit.as_ref().map(|exit| exit.reason().to_owned()).unwrap_or_default(),
        status_message: exit.map(|exit| exit.message).unwrap_or_default(),
        cdi_devices: record.config.cdi_devices.iter().map(|device| nri::CdiDevice { name: device.name.clone() }).collect(),
        user: Some(nri::User { uid: id(&user["uid"]), gid: id(&user["gid"]), additional_gids: list(&user["additionalGids"], id) }),
        image: Some(nri::Image {
            name: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
            digest: digest.unwrap_or_default(),
            config_digest: record.image_id.clone(),
        }),
    }
}

fn linux(cri: &v1::ContainerConfig, config: &Value) -> nri::LinuxContainer {
    let linux = &config["linux"];
    let profile = cri.linux.as_ref().and_then(|linux| linux.security_context.as_ref()?.seccomp.as_ref());
    nri::LinuxContainer {
        namespaces: list(&linux["namespaces"], |one| nri::LinuxNamespace { r#type: text(&one["type"]), path: text(&one["path"]) }),
        devices: list(&linux["devices"], |device| nri::LinuxDevice {
            path: text(&device["path"]),
            r#type: text(&device["type"]),
            major: device["major"].as_i64().unwrap_or_default(),
            minor: device["minor"].as_i64().unwrap_or_default(),
            file_mode: device["fileMode"].as_u64().map(|mode| nri::OptionalFileMode { value: mode as u32 }),
            uid: device["uid"].as_u64().map(|uid| nri::OptionalUInt32 { value: uid as u32 }),
            gid: device["gid"].as_u64().map(|gid| nri::OptionalUInt32 { value: gid as u32 }),
        }),
        resources: Some(match &linux["resources"] {
            Value::Null => cri.linux.as_ref().and_then(|linux| linux.resources.as_ref()).map(resources).unwrap_or_default(),
            made => made_resources(made),
        }),
        oom_score_adj: config["process"]["oomScoreAdj"].as_i64().map(|value| nri::OptionalInt { value }),
        cgroups_path: text(&linux["cgroupsPath"]),
        io_priority: None,
        seccomp_profile: profile
            .map(|profile| nri::SecurityProfile { profile_type: profile.profile_type, localhost_ref: profile.localhost_ref.clone() }),
        seccomp_policy: linux["seccomp"].is_object().then(|| seccomp(&linux["seccomp"])),
        sysctl: map(&linux["sysctl"]).collect(),
        ..nri::LinuxContainer::default()
    }
}

fn seccomp(policy: &Value) -> nri::LinuxSeccomp {
    nri::LinuxSeccomp {
        default_action: text(&policy["defaultAction"]),
        default_errno: policy["defaultErrnoRet"].as_u64().map(|errno| nri::OptionalUInt32 { value: errno as u32 }),
        architectures: texts(&policy["architectures"]),
        flags: texts(&policy["flags"]),
        listener_path: text(&policy["listenerPath"]),
        listener_metadata: text(&policy["listenerMetadata"]),
        syscalls: list(&policy["syscalls"], |call| nri::LinuxSyscall {
            names: texts(&call["names"]),
            action: text(&call["action"]),
            errno_ret: call["errnoRet"].as_u64().map(|errno| nri::OptionalUInt32 { value: errno as u32 }),
            args: list(&call["args"], |arg| nri::LinuxSeccompArg {
                index: id(&arg["index"]),
                value: arg["value"].as_u64().unwrap_or_default(),
                value_two: arg["valueTwo"].as_u64().unwrap_or_default(),
                op: text(&arg["op"]),
            }),
        }),
    }
}

fn hooks(hooks: &Value) -> nri::Hooks {
    let of = |name: &str| {
        list(&hooks[name], |hook| nri::Hook {
            path: text(&hook["path"]),
            args: texts(&hook["args"]),
            env: texts(&hook["env"]),
            timeout: hook["timeout"].as_i64().map(|value| nri::OptionalInt { value }),
        })
    };
    nri::Hooks {
        prestart: of("prestart"),
        create_runtime: of("createRuntime"),
        create_container: of("createContainer"),
        start_container: of("startContainer"),
        poststart: of("poststart"),
        poststop: of("poststop"),
    }
}

/// The specification's limits.
fn made_resources(made: &Value) -> nri::LinuxResources {
    let (memory, cpu) = (&made["memory"], &made["cpu"]);
    let signed = |value: &Value| value.as_i64().map(|value| nri::OptionalInt64 { value });
    let unsigned = |value: &Value| value.as_u64().map(|value| nri::OptionalUInt64 { value });
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: signed(&memory["limit"]),
            reservation: signed(&memory["reservation"]),
            swap: signed(&memory["swap"]),
            swappiness: unsigned(&memory["swappiness"]),
            ..nri::LinuxMemory::default()
        }),
        cpu: Some(nri::LinuxCpu {
            shares: unsigned(&cpu["shares"]),
            quota: signed(&cpu["quota"]),
            period: unsigned(&cpu["period"]),
            realtime_runtime: signed(&cpu["realtimeRuntime"]),
            realtime_period: unsigned(&cpu["realtimePeriod"]),
            cpus: text(&cpu["cpus"]),
            mems: text(&cpu["mems"]),
        }),
        hugepage_limits: list(&made["hugepageLimits"], |limit| nri::HugepageLimit {
            page_size: text(&limit["pageSize"]),
            limit: limit["limit"].as_u64().unwrap_or_default(),
        }),
        unified: map(&made["unified"]).collect(),
        devices: list(&made["devices"], |rule| nri::LinuxDeviceCgroup {
            allow: rule["allow"].as_bool().unwrap_or_default(),
            r#type: text(&rule["type"]),
            major: signed(&rule["major"]),
            minor: signed(&rule["minor"]),
            access: text(&rule["access"]),
        }),
        pids: made["pids"]["limit"].as_i64().map(|limit| nri::LinuxPids { limit }),
        ..nri::LinuxResources::default()
    }
}

/// CRI's limits. 0 and the empty text say nothing there.
pub(super) fn resources(cri: &v1::LinuxContainerResources) -> nri::LinuxResources {
    let signed = |value: i64| (value != 0).then_some(nri::OptionalInt64 { value });
    let unsigned = |value: i64| (value != 0).then_some(nri::OptionalUInt64 { value: value as u64 });
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: signed(cri.memory_limit_in_bytes),
            swap: signed(cri.memory_swap_limit_in_bytes),
            ..nri::LinuxMemory::default()
        }),
        cpu: Some(nri::LinuxCpu {
            shares: unsigned(cri.cpu_shares),
            quota: signed(cri.cpu_quota),
            period: unsigned(cri.cpu_period),
            cpus: cri.cpuset_cpus.clone(),
            mems: cri.cpuset_mems.clone(),
            ..nri::LinuxCpu::default()
        }),
        hugepage_limits: cri
            .hugepage_limits
            .iter()
            .map(|limit| nri::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: cri.unified.clone(),
        ..nri::LinuxResources::default()
    }
}

/// The part of a plugin's limits that CRI has words for.
pub(super) fn cri_resources(wanted: &nri::LinuxResources, to: &mut v1::LinuxContainerResources) {
    let take = |to: &mut i64, value: Option<i64>| *to = value.unwrap_or(*to);
    if let Some(memory) = &wanted.memory {
        take(&mut to.memory_limit_in_bytes, memory.limit.map(|limit| limit.value));
        let swap = memory.swap.map(|swap| swap.value);
        // A limit of memory and swap together that was there goes with the memory's.
        let follows = memory.limit.filter(|_| to.memory_swap_limit_in_bytes != 0).map(|limit| limit.value);
        take(&mut to.memory_swap_limit_in_bytes, swap.or(follows));
    }
    if let Some(cpu) = &wanted.cpu {
        take(&mut to.cpu_shares, cpu.shares.map(|shares| shares.value as i64));
        take(&mut to.cpu_quota, cpu.quota.map(|quota| quota.value));
        take(&mut to.cpu_period, cpu.period.map(|period| period.value as i64));
        for (to, value) in [(&mut to.cpuset_cpus, &cpu.cpus), (&mut to.cpuset_mems, &cpu.mems)] {
            if !value.is_empty() {
                to.clone_from(value);
            }
        }
    }
    for limit in &wanted.hugepage_limits {
        to.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        to.hugepage_limits.push(v1::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit });
    }
    to.unified.extend(wanted.unified.clone());
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn id(value: &Value) -> u32 {
    value.as_u64().unwrap_or_default() as u32
}

fn list<T>(value: &Value, of: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().map(|list| list.iter().map(of).collect()).unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    list(value, text)
}

fn map(value: &Value) -> impl Iterator<Item = (String, String)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value)))
}
