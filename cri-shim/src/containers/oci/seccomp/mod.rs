//! `linux.seccomp`: unconfined, our default profile, or a file's. [`of_container`] is called by `find`.
//!
//! Files may be in the runtime specification's form or in Docker's, which adds conditions on capabilities, architecture
//! and kernel to each rule.

mod default;
mod file;

use std::collections::HashSet;
use std::path::Path;
use std::str::FromStr;

use anyhow::Context;
use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator,
    LinuxSyscall, LinuxSyscallBuilder,
};
use rrun_proto::v1::security_profile::ProfileType;
use rrun_proto::v1::{LinuxContainerSecurityContext, SecurityProfile};

use super::{Input, capabilities, invalid};
use crate::error::Result;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// The filter of a container, with the capabilities it is granted.
pub(super) fn of_container(input: &Input<'_>) -> Result<Option<LinuxSeccomp>> {
    let security = input.security();
    // A privileged container is unconfined whatever else it says.
    if security.privileged {
        return Ok(None);
    }
    let field = "linux.security_context.seccomp";
    let asked = asked(security)?;
    let profile = match asked {
        None if input.settings.seccomp_by_default => SecurityProfile::default(),
        None => return Ok(None),
        Some(profile) => profile,
    };
    let filter = match profile.profile_type() {
        ProfileType::Unconfined => return Ok(None),
        ProfileType::Localhost => {
            let path = profile.localhost_ref.strip_prefix("localhost/").unwrap_or(&profile.localhost_ref);
            if !Path::new(path).is_absolute() {
                return Err(invalid(format!("{field}.localhost_ref: {path:?} is not an absolute path")));
            }
            load(Path::new(path), input).map_err(|error| invalid(format!("{field}.localhost_ref: {error:#}")))?
        }
        ProfileType::RuntimeDefault if input.settings.seccomp_profile.is_empty() => {
            default_profile(&capabilities::granted(security, &input.host.capabilities)?.0, std::env::consts::ARCH)?
        }
        ProfileType::RuntimeDefault => load(Path::new(&input.settings.seccomp_profile), input).context("the settings' seccomp_profile")?,
    };
    if !input.host.seccomp {
        return Err(invalid(format!("{field}: this kernel has no seccomp filters")));
    }
    Ok(Some(filter))
}

/// The profile that a container asks for, in the new field or in the old one.
fn asked(security: &LinuxContainerSecurityContext) -> Result<Option<SecurityProfile>> {
    if security.seccomp.is_some() {
        return Ok(security.seccomp.clone());
    }
    #[allow(deprecated)]
    let old = security.seccomp_profile_path.as_str();
    let typed = |kind: ProfileType| SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() };
    match old {
        "" => Ok(None),
        "unconfined" => Ok(Some(typed(ProfileType::Unconfined))),
        "runtime/default" | "docker/default" => Ok(Some(typed(ProfileType::RuntimeDefault))),
        _ if old.starts_with("localhost/") => Ok(Some(SecurityProfile { localhost_ref: old.to_owned(), ..typed(ProfileType::Localhost) })),
        _ => Err(invalid(format!("linux.security_context.seccomp_profile_path: {old:?} is no profile"))),
    }
}

fn load(path: &Path, input: &Input<'_>) -> anyhow::Result<LinuxSeccomp> {
    let text = std::fs::read(path).with_context(|| format!("read seccomp profile {}", path.display()))?;
    let granted = capabilities::granted(input.security(), &input.host.capabilities)?.0;
    let conditions = file::Conditions { granted: &granted, architecture: std::env::consts::ARCH, kernel: input.host.kernel };
    file::parse(&text, &conditions).with_context(|| format!("seccomp profile {}", path.display()))
}

/// Our own profile for a container with those capabilities on that architecture (a name of Rust's).
pub(super) fn default_profile(granted: &HashSet<Capability>, architecture: &str) -> Result<LinuxSeccomp> {
    let admin = granted.contains(&Capability::SysAdmin);
    let mut names: Vec<&str> = default::ALLOWED.concat();
    names.extend(default::TRACING);
    for (architectures, calls) in default::BY_ARCHITECTURE {
        if architectures.contains(&architecture) {
            names.extend(*calls);
        }
    }
    for (capability, calls) in default::BY_CAPABILITY {
        if granted.contains(capability) {
            names.extend(*calls);
        }
    }
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![rule(names, None, &[])?];
    // One family of sockets is between the two that are refused.
    for (op, family) in [
        (LinuxSeccompOperator::ScmpCmpLt, default::AF_ALG),
        (LinuxSeccompOperator::ScmpCmpEq, default::AF_ALG + 1),
        (LinuxSeccompOperator::ScmpCmpGt, default::AF_VSOCK),
    ] {
        rules.push(rule(vec!["socket"], None, &[argument(0, op, family, None)?])?);
    }
    for personality in default::PERSONALITIES {
        rules.push(rule(vec!["personality"], None, &[argument(0, LinuxSeccompOperator::ScmpCmpEq, personality, None)?])?);
    }
    if !admin {
        // s390 has clone's first two arguments the other way round.
        let index = usize::from(architecture == "s390x");
        let flags = argument(index, LinuxSeccompOperator::ScmpCmpMaskedEq, default::CLONE_NAMESPACES, Some(0))?;
        rules.push(rule(vec!["clone"], None, &[flags])?);
        // Its flags are in memory, where no filter sees them: programs fall back to clone.
        rules.push(rule(vec!["clone3"], Some(ENOSYS), &[])?);
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures(architecture)?)
        .syscalls(rules)
        .build()
        .map_err(|error| anyhow::Error::from(error).into())
}

/// Allows the calls, or answers them with an error.
fn rule(names: Vec<&str>, errno: Option<u32>, args: &[LinuxSeccompArg]) -> anyhow::Result<LinuxSyscall> {
    let rule = LinuxSyscallBuilder::default().names(names.into_iter().map(str::to_owned).collect::<Vec<_>>());
    let rule = match errno {
        None => rule.action(LinuxSeccompAction::ScmpActAllow),
        Some(errno) => rule.action(LinuxSeccompAction::ScmpActErrno).errno_ret(errno),
    };
    let rule = if args.is_empty() { rule } else { rule.args(args.to_vec()) };
    Ok(rule.build()?)
}

/// For a masked comparison `value` is the mask and `second` what has to be left.
fn argument(index: usize, op: LinuxSeccompOperator, value: u64, second: Option<u64>) -> anyhow::Result<LinuxSeccompArg> {
    let argument = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    Ok(second.into_iter().fold(argument, |argument, second| argument.value_two(second)).build()?)
}

/// The system call tables that programs of an architecture can use.
fn architectures(architecture: &str) -> anyhow::Result<Vec<Arch>> {
    let names: &[&str] = match architecture {
        "x86_64" => &["X86_64", "X86", "X32"],
        "aarch64" => &["AARCH64", "ARM"],
        "s390x" => &["S390X", "S390"],
        "powerpc64" => &["PPC64LE"],
        "riscv64" => &["RISCV64"],
        other => anyhow::bail!("no default seccomp profile for {other}: name one as seccomp_profile in the settings"),
    };
    names.iter().map(|name| architecture_by_name(&format!("SCMP_ARCH_{name}"))).collect()
}

fn architecture_by_name(name: &str) -> anyhow::Result<Arch> {
    Arch::from_str(name).with_context(|| format!("unknown architecture {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(profile: &LinuxSeccomp, call: &str) -> bool {
        profile.syscalls().iter().flatten().any(|rule| {
            rule.names().iter().any(|name| name == call) && rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none()
        })
    }

    #[test]
    fn the_default_follows_the_capabilities() {
        let plain = default_profile(&capabilities::DEFAULT.into(), "x86_64").unwrap();
        for call in ["read", "openat2", "futex_waitv", "ptrace", "chroot", "arch_prctl", "statmount", "rseq_slice_yield"] {
            assert!(allows(&plain, call), "{call}");
        }
        for call in ["mount", "bpf", "setns", "reboot", "keyctl", "io_uring_setup", "userfaultfd", "clone", "socket", "personality"] {
            assert!(!allows(&plain, call), "{call}");
        }
        let clone3 = plain.syscalls().iter().flatten().find(|rule| rule.names() == &["clone3".to_owned()]).unwrap();
        assert_eq!(clone3.errno_ret(), Some(ENOSYS));
        let admin = default_profile(&[Capability::SysAdmin, Capability::SysTime].into(), "x86_64").unwrap();
        for call in ["mount", "clone", "clone3", "open_tree_attr", "settimeofday"] {
            assert!(allows(&admin, call), "{call}");
        }
        assert!(!allows(&admin, "chroot"));
        assert!(allows(&default_profile(&HashSet::new(), "aarch64").unwrap(), "sync_file_range2"));
        assert!(default_profile(&HashSet::new(), "pdp11").is_err());
    }

    #[test]
    fn it_reads_as_the_specification_has_it() {
        let json = serde_json::to_value(default_profile(&HashSet::new(), "x86_64").unwrap()).unwrap();
        assert_eq!(json["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(json["architectures"], serde_json::json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]));
        let clone = json["syscalls"].as_array().unwrap().iter().find(|rule| rule["names"][0] == "clone").unwrap().clone();
        assert_eq!(clone["args"][0], serde_json::json!({"index": 0, "value": 0x7e02_0000u32, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}));
    }
}
