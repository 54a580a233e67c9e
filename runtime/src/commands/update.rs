//! `update`.

use crate::bundle;
use crate::cli::{Globals, Update};
use crate::container::{Container, Error, Status};
use crate::{log, sys};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};
use std::num::ParseIntError;
use std::path::Path;
use std::str::FromStr;

/// Changes the limits of a container.
pub fn run(globals: &Globals, args: &Update) -> Result<i32> {
    let container = Container::load(&globals.root, &args.id)?;
    let resources = match &args.resources {
        Some(path) => read(path)?,
        None => of_flags(&args.values)?,
    };
    if container.status()? == Status::Stopped {
        bail!(Error::NotRunning);
    }
    let schemata = schemata(&container, &args.values)?;
    container.cgroup()?.update(&resources)?;
    if let Some(groups) = container.record.intel_rdt.filter(|_| !schemata.is_empty()) {
        groups.update(&schemata)?;
    }
    Ok(0)
}

/// `--resources`: a document like `linux.resources`.
fn read(path: &Path) -> Result<LinuxResources> {
    sys::read_input(path).and_then(|json| bundle::parse(&json)).with_context(|| format!("--resources {}", path.display()))
}

/// The resources that the flags name.
fn of_flags(values: &[(&'static str, String)]) -> Result<LinuxResources> {
    let (mut cpu, mut memory, mut io) = (LinuxCpu::default(), LinuxMemory::default(), LinuxBlockIo::default());
    let mut resources = LinuxResources::default();
    for (flag, text) in values.iter().filter(|v| !v.1.is_empty()) {
        match *flag {
            // A number of which runc cannot tell 0 from absent.
            "blkio-weight" if text == "0" => (),
            "blkio-weight" => _ = io.set_weight(Some(number(flag, text)?)),
            "cpu-period" => _ = cpu.set_period(Some(number(flag, text)?)),
            "cpu-quota" => _ = cpu.set_quota(Some(number(flag, text)?)),
            "cpu-burst" => _ = cpu.set_burst(Some(number(flag, text)?)),
            "cpu-share" => _ = cpu.set_shares(Some(number(flag, text)?)),
            "cpu-rt-period" => _ = cpu.set_realtime_period(Some(number(flag, text)?)),
            "cpu-rt-runtime" => _ = cpu.set_realtime_runtime(Some(number(flag, text)?)),
            "cpu-idle" => _ = cpu.set_idle(Some(number(flag, text)?)),
            "cpuset-cpus" => _ = cpu.set_cpus(Some(text.clone())),
            "cpuset-mems" => _ = cpu.set_mems(Some(text.clone())),
            "memory" => _ = memory.set_limit(Some(bytes(flag, text)?)),
            "memory-reservation" => _ = memory.set_reservation(Some(bytes(flag, text)?)),
            "memory-swap" => _ = memory.set_swap(Some(bytes(flag, text)?)),
            "pids-limit" => {
                let mut pids = LinuxPids::default();
                pids.set_limit(number(flag, text)?);
                resources.set_pids(Some(pids));
            }
            "kernel-memory" | "kernel-memory-tcp" => log::warn(format!("--{flag} is ignored: the kernel has no such limit any more")),
            "l3-cache-schema" | "mem-bw-schema" => (),
            other => bail!("--{other}: not supported"),
        }
    }
    // Without a limit of memory there is none of memory and swap together either.
    if memory.limit() == Some(-1) && memory.swap().is_none() {
        memory.set_swap(Some(-1));
    }
    resources.set_cpu(Some(cpu)).set_memory(Some(memory)).set_block_io(Some(io));
    Ok(resources)
}

/// The lines of resctrl that the flags name.
fn schemata(container: &Container, values: &[(&'static str, String)]) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for (flag, text) in values.iter().filter(|v| !v.1.is_empty()) {
        match *flag {
            "l3-cache-schema" | "mem-bw-schema" if container.record.intel_rdt.is_some() => lines.extend(text.lines().map(str::to_owned)),
            "l3-cache-schema" => bail!("Intel RDT/CAT: l3 cache schema is not enabled"),
            "mem-bw-schema" => bail!("Intel RDT/MBA: memory bandwidth schema is not enabled"),
            _ => (),
        }
    }
    Ok(lines)
}

fn number<T: FromStr<Err = ParseIntError>>(flag: &str, text: &str) -> Result<T> {
    text.parse().with_context(|| format!("invalid value for {flag}: {text:?}"))
}

fn bytes(flag: &str, text: &str) -> Result<i64> {
    size(text).with_context(|| format!("invalid value for {flag}: {text:?}"))
}

/// Bytes, `-1` for no limit; `k`, `m`, `g`, `t`, `p` (of 1024) may follow, and `b` or `ib` then.
fn size(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.to_ascii_lowercase();
    let unit_at = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = (&lower[..unit_at], lower[unit_at..].trim_start());
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return None,
    };
    match number.parse::<i64>() {
        Ok(n) => n.checked_mul(1 << shift),
        Err(_) if number.contains('.') => {
            let n = number.parse::<f64>().ok()? * (1i64 << shift) as f64;
            (n < i64::MAX as f64).then_some(n as i64)
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, n) in
            [("-1", -1), ("0", 0), ("67108864", 67_108_864), ("32k", 32 << 10), ("1.5G", 3 << 29), ("64MiB", 64 << 20), ("2 gb", 2 << 30)]
        {
            assert_eq!(size(text), Some(n), "{text}");
        }
        for text in ["", "x", "-2", "1x", "k", "1.2.3", "99999999999999999999", "8388608t"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn flags_become_resources() {
        let values = [("memory", "64m"), ("cpu-quota", "5000"), ("pids-limit", "20"), ("cpuset-cpus", "0-1"), ("blkio-weight", "500")];
        let resources = of_flags(&values.map(|(k, v)| (k, v.to_owned()))).unwrap();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(64 << 20));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(5000));
        assert_eq!(resources.cpu().as_ref().unwrap().cpus().as_deref(), Some("0-1"));
        assert_eq!(resources.block_io().as_ref().unwrap().weight(), Some(500));
        assert!(resources.pids().is_some() && resources.devices().is_none());
        let unlimited = of_flags(&[("memory", "-1".to_owned())]).unwrap();
        assert_eq!(unlimited.memory().as_ref().unwrap().swap(), Some(-1));
        assert!(of_flags(&[("cpu-share", "many".to_owned())]).is_err());
    }
}
