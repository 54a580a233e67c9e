//! `linux.resources`, of a new container and for `update --resources -`.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxHugepageLimit, LinuxHugepageLimitBuilder, LinuxMemory, LinuxResources,
};
use rrun_proto::v1;

use super::{Found, Host, Input, invalid};
use crate::error::Result;

const FIELD: &str = "linux.resources";

/// Limits and device rules of a new container.
pub(super) fn resources(input: &Input<'_>, found: &Found) -> Result<LinuxResources> {
    let mut made = match input.resources() {
        Some(resources) => limits(resources, input.host)?,
        None => LinuxResources::default(),
    };
    made.set_devices(Some(device_rules(input, found)?));
    Ok(made)
}

/// Nothing but the container's own devices (the OCI runtime adds /dev/null and its like), or all.
fn device_rules(input: &Input<'_>, found: &Found) -> Result<Vec<LinuxDeviceCgroup>> {
    let rule = LinuxDeviceCgroupBuilder::default();
    if input.security().privileged {
        return Ok(vec![rule.allow(true).access("rwm").build().map_err(anyhow::Error::from)?]);
    }
    let mut rules = vec![rule.allow(false).access("rwm").build().map_err(anyhow::Error::from)?];
    for device in found.devices.iter().chain(&found.cdi.devices) {
        let rule = LinuxDeviceCgroupBuilder::default().allow(true).typ(device.node.typ());
        let rule = rule.major(device.node.major()).minor(device.node.minor()).access(device.access.clone());
        rules.push(rule.build().map_err(anyhow::Error::from)?);
    }
    Ok(rules)
}

/// The resources for `update --resources -`: `update` over what the container has, checked as a whole before anything is
/// changed. Answers what ContainerStatus reports afterwards, too.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub fn update_resources(
    current: &v1::LinuxContainerResources,
    update: &v1::LinuxContainerResources,
    host: &Host,
) -> Result<(LinuxResources, v1::LinuxContainerResources)> {
    let mut merged = current.clone();
    let numbers = [
        (&mut merged.cpu_period, update.cpu_period),
        (&mut merged.cpu_quota, update.cpu_quota),
        (&mut merged.cpu_shares, update.cpu_shares),
        (&mut merged.memory_limit_in_bytes, update.memory_limit_in_bytes),
        (&mut merged.memory_swap_limit_in_bytes, update.memory_swap_limit_in_bytes),
        (&mut merged.oom_score_adj, update.oom_score_adj),
    ];
    for (old, new) in numbers {
        // 0 is "not given" in CRI.
        if new != 0 {
            *old = new;
        }
    }
    for (old, new) in [(&mut merged.cpuset_cpus, &update.cpuset_cpus), (&mut merged.cpuset_mems, &update.cpuset_mems)] {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    merged.unified.extend(update.unified.clone());
    for limit in &update.hugepage_limits {
        match merged.hugepage_limits.iter_mut().find(|old| old.page_size == limit.page_size) {
            Some(old) => old.limit = limit.limit,
            None => merged.hugepage_limits.push(limit.clone()),
        }
    }
    let limits = limits(&merged, host)?;
    Ok((limits, merged))
}

/// The resources that take an `update` back: what the container had, and where it had nothing, what the kernel gives a new
/// cgroup. A set of CPUs or a `unified` file that was not set before cannot be unset and stays.
///
/// # Errors
/// None that [`update_resources`] with the same does not have.
pub fn undo_resources(current: &v1::LinuxContainerResources, update: &v1::LinuxContainerResources, host: &Host) -> Result<LinuxResources> {
    let mut old = current.clone();
    let numbers = [
        (&mut old.cpu_period, update.cpu_period, 100_000),
        (&mut old.cpu_quota, update.cpu_quota, -1),
        (&mut old.cpu_shares, update.cpu_shares, 1024),
        (&mut old.memory_limit_in_bytes, update.memory_limit_in_bytes, -1),
        (&mut old.memory_swap_limit_in_bytes, update.memory_swap_limit_in_bytes, -1),
    ];
    for (old, new, default) in numbers {
        if new != 0 && *old == 0 {
            *old = default;
        }
    }
    // Swap was not named and followed the memory's limit: it does so again.
    if current.memory_swap_limit_in_bytes == 0 && current.memory_limit_in_bytes != 0 {
        old.memory_swap_limit_in_bytes = 0;
    }
    limits(&old, host)
}

/// CRI's limits as the runtime specification's. 0 and the empty string say nothing.
fn limits(resources: &v1::LinuxContainerResources, host: &Host) -> Result<LinuxResources> {
    let mut made = LinuxResources::default();
    made.set_cpu(cpu(resources)?).set_memory(memory(resources, host)?).set_hugepage_limits(hugepages(resources, host)?);
    if !resources.unified.is_empty() {
        if !host.cgroup2 {
            return Err(invalid(format!("{FIELD}.unified: this host has cgroup v1, where these files are not")));
        }
        if let Some(key) = resources.unified.keys().find(|key| key.contains('/') || !key.contains('.')) {
            return Err(invalid(format!("{FIELD}.unified: {key:?} is not a file of a cgroup")));
        }
        made.set_unified(Some(resources.unified.clone().into_iter().collect::<HashMap<_, _>>()));
    }
    Ok(made)
}

fn cpu(resources: &v1::LinuxContainerResources) -> Result<Option<LinuxCpu>> {
    let mut cpu = LinuxCpu::default();
    match resources.cpu_shares {
        0 => (),
        // The kernel takes 2 to 262144; runtimes clamp.
        shares @ 1.. => _ = cpu.set_shares(Some(shares.unsigned_abs())),
        shares => return Err(invalid(format!("{FIELD}.cpu_shares: {shares} is negative"))),
    }
    match resources.cpu_period {
        0 => (),
        period @ 1000..=1_000_000 => _ = cpu.set_period(Some(period.unsigned_abs())),
        period => return Err(invalid(format!("{FIELD}.cpu_period: {period} us is not from 1000 to 1000000"))),
    }
    match resources.cpu_quota {
        0 => (),
        quota @ (-1 | 1000..) => _ = cpu.set_quota(Some(quota)),
        quota => return Err(invalid(format!("{FIELD}.cpu_quota: {quota} us is neither -1 nor at least 1000"))),
    }
    for (name, list) in [("cpuset_cpus", &resources.cpuset_cpus), ("cpuset_mems", &resources.cpuset_mems)] {
        if !is_list(list) {
            return Err(invalid(format!("{FIELD}.{name}: {list:?} is not a list as 0-2,7")));
        }
    }
    let given = |list: &String| Some(list.clone()).filter(|list| !list.is_empty());
    cpu.set_cpus(given(&resources.cpuset_cpus)).set_mems(given(&resources.cpuset_mems));
    Ok(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
}

/// Numbers and ranges separated by commas; nothing at all is fine.
fn is_list(text: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    text.is_empty()
        || text.split(',').all(|part| match part.split_once('-') {
            None => number(part).is_some(),
            Some((first, last)) => matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last),
        })
}

/// A container with a memory limit swaps only where a limit for memory and swap says so.
fn memory(resources: &v1::LinuxContainerResources, host: &Host) -> Result<Option<LinuxMemory>> {
    let (limit, swap) = (resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes);
    for (name, value) in [("memory_limit_in_bytes", limit), ("memory_swap_limit_in_bytes", swap)] {
        if value < -1 {
            return Err(invalid(format!("{FIELD}.{name}: {value} is negative")));
        }
    }
    if swap > 0 && limit > swap {
        return Err(invalid(format!(
            "{FIELD}.memory_swap_limit_in_bytes: {swap} is memory and swap together, and less than the memory's {limit}"
        )));
    }
    let mut memory = LinuxMemory::default();
    if limit != 0 {
        memory.set_limit(Some(limit));
    }
    let both = if swap != 0 { swap } else { limit };
    if both != 0 && host.swap {
        memory.set_swap(Some(both));
    }
    Ok(Some(memory).filter(|memory| *memory != LinuxMemory::default()))
}

/// Limits of page sizes that the kernel has; kubelet names all that it knows of, most of them with 0.
fn hugepages(resources: &v1::LinuxContainerResources, host: &Host) -> Result<Option<Vec<LinuxHugepageLimit>>> {
    let mut list: Vec<LinuxHugepageLimit> = Vec::new();
    for limit in &resources.hugepage_limits {
        let Some(size) = page_size(&limit.page_size) else {
            return Err(invalid(format!("{FIELD}.hugepage_limits: page size {:?} is not one as 2MB", limit.page_size)));
        };
        if !host.hugepages.contains(&size) {
            continue;
        }
        let bytes = i64::try_from(limit.limit).unwrap_or(i64::MAX);
        list.retain(|other| *other.page_size() != size);
        list.push(LinuxHugepageLimitBuilder::default().page_size(size).limit(bytes).build().map_err(anyhow::Error::from)?);
    }
    Ok(Some(list).filter(|list| !list.is_empty()))
}

/// `2MB`, `1GB` or `64KB`, however the size is written (`2Mi`, `2M`).
fn page_size(text: &str) -> Option<String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].strip_suffix("B").unwrap_or(&text[digits..]);
    let unit = unit.strip_suffix('i').unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    page_size_name(number.checked_shl(shift).filter(|bytes| bytes >> shift == number)?)
}

/// The kernel's name of a page size, as it stands in `hugetlb.2MB.max`.
pub(super) fn page_size_name(bytes: u64) -> Option<String> {
    match bytes {
        0 => None,
        _ if bytes.is_multiple_of(1 << 30) => Some(format!("{}GB", bytes >> 30)),
        _ if bytes.is_multiple_of(1 << 20) => Some(format!("{}MB", bytes >> 20)),
        _ if bytes.is_multiple_of(1 << 10) => Some(format!("{}KB", bytes >> 10)),
        _ => None,
    }
}
