//! Seccomp profiles in files.

use std::collections::HashSet;
use std::str::FromStr;

use anyhow::{Context, ensure};
use oci_spec::runtime::{Arch, Capability, LinuxSeccomp, LinuxSyscall};
use serde::Deserialize;
use serde_json::Value;

use super::architecture_by_name;

/// What the conditions of a rule are held against.
pub(super) struct Conditions<'a> {
    /// The container's capabilities.
    pub granted: &'a HashSet<Capability>,
    /// The host's architecture, as Rust names it.
    pub architecture: &'a str,
    /// The kernel's version.
    pub kernel: (u32, u32),
}

/// What Docker's form adds to the specification's.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Extra {
    arch_map: Vec<ArchMap>,
    syscalls: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

/// When a rule is in force.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: String,
}

/// Reads a profile. What is neither in the specification nor in Docker's form is an error.
pub(super) fn parse(text: &[u8], conditions: &Conditions<'_>) -> anyhow::Result<LinuxSeccomp> {
    let mut json: Value = serde_json::from_slice(text)?;
    ensure!(json.is_object(), "not a JSON object");
    let extra: Extra = serde_json::from_value(json.clone())?;
    json["syscalls"] = Value::Array(Vec::new());
    let mut profile: LinuxSeccomp = serde_json::from_value(json)?;
    let mut rules = Vec::new();
    for (index, rule) in extra.syscalls.into_iter().enumerate() {
        rules.extend(parse_rule(rule, conditions).with_context(|| format!("syscalls[{index}]"))?);
    }
    profile.set_syscalls(Some(rules));
    if !extra.arch_map.is_empty() {
        ensure!(profile.architectures().as_ref().is_none_or(Vec::is_empty), "architectures and archMap: give one of them");
        profile.set_architectures(map_architectures(&extra.arch_map, conditions.architecture)?);
    }
    Ok(profile)
}

/// The rule, unless its conditions leave it out.
fn parse_rule(mut rule: Value, conditions: &Conditions<'_>) -> anyhow::Result<Option<LinuxSyscall>> {
    let object = rule.as_object_mut().context("not an object")?;
    let mut take = |name: &str| -> anyhow::Result<Condition> {
        match object.remove(name) {
            None | Some(Value::Null) => Ok(Condition::default()),
            Some(value) => serde_json::from_value(value).with_context(|| name.to_owned()),
        }
    };
    let (includes, excludes) = (take("includes")?, take("excludes")?);
    if let Some(name) = object.remove("name") {
        object.insert("names".to_owned(), Value::Array(vec![name]));
    }
    let mut in_force = true;
    for name in &includes.caps {
        in_force &= conditions.granted.contains(&capability(name)?);
    }
    for name in &excludes.caps {
        in_force &= !conditions.granted.contains(&capability(name)?);
    }
    in_force &= includes.arches.is_empty() || includes.arches.iter().any(|name| is_native(name, conditions.architecture));
    in_force &= !excludes.arches.iter().any(|name| is_native(name, conditions.architecture));
    in_force &= includes.min_kernel.is_empty() || conditions.kernel >= version(&includes.min_kernel)?;
    in_force &= excludes.min_kernel.is_empty() || conditions.kernel < version(&excludes.min_kernel)?;
    if !in_force {
        return Ok(None);
    }
    Ok(Some(serde_json::from_value(rule)?))
}

fn capability(name: &str) -> anyhow::Result<Capability> {
    Capability::from_str(name.strip_prefix("CAP_").unwrap_or(name)).with_context(|| format!("unknown capability {name:?}"))
}

/// Whether one of Go's names for architectures is the host's.
fn is_native(name: &str, architecture: &str) -> bool {
    matches!(
        (name, architecture),
        ("amd64" | "x32", "x86_64")
            | ("386" | "x86", "x86")
            | ("arm64", "aarch64")
            | ("arm", "arm")
            | ("s390x", "s390x")
            | ("ppc64le", "powerpc64")
            | ("riscv64", "riscv64")
            | ("loong64", "loongarch64")
    )
}

fn version(text: &str) -> anyhow::Result<(u32, u32)> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    Ok((major.parse().context("minKernel")?, minor.parse().context("minKernel")?))
}

fn map_architectures(map: &[ArchMap], architecture: &str) -> anyhow::Result<Option<Vec<Arch>>> {
    let native = super::architectures(architecture)?;
    for entry in map {
        if architecture_by_name(&entry.architecture).is_ok_and(|arch| native.first() == Some(&arch)) {
            let all = std::iter::once(&entry.architecture).chain(entry.sub_architectures.iter().flatten());
            return Ok(Some(all.map(|name| architecture_by_name(name)).collect::<Result<_, _>>()?));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, granted: &[Capability]) -> anyhow::Result<LinuxSeccomp> {
        let granted = granted.iter().copied().collect();
        super::parse(text.as_bytes(), &Conditions { granted: &granted, architecture: "x86_64", kernel: (6, 1) })
    }

    #[test]
    fn the_specifications_form() {
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;
        let profile = parse(text, &[]).unwrap();
        assert_eq!(profile.syscalls().as_ref().unwrap()[0].names().len(), 2);
        assert_eq!(parse(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#, &[]).unwrap().syscalls().as_ref().unwrap().len(), 0);
    }

    #[test]
    fn dockers_form() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "archMap": [{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": null}],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
                {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
                {"name": "clone3", "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"names": ["later"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
                {"names": ["cacheflush"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm", "arm64"]}},
                {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}}
            ]}"#;
        let names =
            |profile: LinuxSeccomp| -> Vec<String> { profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect() };
        let profile = parse(text, &[]).unwrap();
        assert_eq!(profile.architectures().as_ref().unwrap().len(), 1);
        assert_eq!(names(profile), ["read", "clone3", "ptrace", "arch_prctl"]);
        assert_eq!(names(parse(text, &[Capability::Bpf, Capability::SysAdmin]).unwrap()), ["read", "bpf", "ptrace", "arch_prctl"]);
    }

    #[test]
    fn wrong_profiles_are_named() {
        for (text, words) in [
            ("[]", "not a JSON object"),
            ("{}", "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "NO"}]}"#, "syscalls[0]"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_X"]}}]}"#,
                "CAP_X",
            ),
        ] {
            let error = format!("{:#}", parse(text, &[]).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
