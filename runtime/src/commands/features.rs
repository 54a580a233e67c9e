//! `features`.

use crate::bundle::SPEC_VERSION;
use crate::cli::{COMMIT, VERSION};
use crate::commands::output;
use crate::json::{self, written};
use crate::{rootfs, sys};
use anyhow::Result;
use nix::libc;
use std::collections::BTreeMap;

/// Prints the specification's features document: what callers look up before they use it.
pub fn run() -> Result<i32> {
    output::print(&(json::indented(&features()?, "    ") + "\n"))?;
    Ok(0)
}

/// features.md of the runtime specification, in its order.
#[derive(Debug)]
struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: [&'static str; 6],
    mount_options: Vec<&'static str>,
    linux: Linux,
    annotations: BTreeMap<&'static str, String>,
    potentially_unsafe_config_annotations: [&'static str; 3],
}

#[derive(Debug)]
struct Linux {
    namespaces: [&'static str; 8],
    capabilities: Vec<String>,
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Enabled,
    selinux: Enabled,
    intel_rdt: IntelRdt,
    memory_policy: MemoryPolicy,
    mount_extensions: MountExtensions,
    net_devices: Enabled,
}

#[derive(Debug)]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Debug)]
struct Seccomp {
    enabled: bool,
    actions: &'static [&'static str],
    operators: &'static [&'static str],
    archs: &'static [&'static str],
    /// By name.
    known_flags: Vec<&'static str>,
    /// Those that the running kernel takes.
    supported_flags: Vec<&'static str>,
}

#[derive(Debug)]
struct Enabled {
    enabled: bool,
}

#[derive(Debug)]
struct IntelRdt {
    enabled: bool,
    schemata: bool,
    monitoring: bool,
}

#[derive(Debug)]
struct MemoryPolicy {
    modes: [&'static str; 7],
    flags: [&'static str; 3],
}

#[derive(Debug)]
struct MountExtensions {
    idmap: Enabled,
}

written! { Features;
    "ociVersionMin" => oci_version_min,
    "ociVersionMax" => oci_version_max,
    "hooks" => hooks,
    "mountOptions" => mount_options,
    "linux" => linux,
    "annotations" => annotations,
    "potentiallyUnsafeConfigAnnotations" => potentially_unsafe_config_annotations,
}

written! { Linux;
    "namespaces" => namespaces,
    "capabilities" => capabilities,
    "cgroup" => cgroup,
    "seccomp" => seccomp,
    "apparmor" => apparmor,
    "selinux" => selinux,
    "intelRdt" => intel_rdt,
    "memoryPolicy" => memory_policy,
    "mountExtensions" => mount_extensions,
    "netDevices" => net_devices,
}

written! { Cgroup;
    "v1" => v1,
    "v2" => v2,
    "systemd" => systemd,
    "systemdUser" => systemd_user,
    "rdma" => rdma,
}

written! { Seccomp;
    "enabled" => enabled,
    "actions" => actions,
    "operators" => operators,
    "archs" => archs,
    "knownFlags" => known_flags,
    "supportedFlags" => supported_flags,
}

written! { Enabled;
    "enabled" => enabled,
}

written! { IntelRdt;
    "enabled" => enabled,
    "schemata" => schemata,
    "monitoring" => monitoring,
}

written! { MemoryPolicy;
    "modes" => modes,
    "flags" => flags,
}

written! { MountExtensions;
    "idmap" => idmap,
}

fn features() -> Result<Features> {
    let libseccomp = libseccomp::ScmpVersion::current()?;
    let libseccomp = format!("{}.{}.{}", libseccomp.major, libseccomp.minor, libseccomp.micro);
    Ok(Features {
        oci_version_min: "1.0.0",
        oci_version_max: SPEC_VERSION,
        hooks: ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        mount_options: rootfs::mount_options(),
        linux: Linux {
            namespaces: ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            capabilities: capabilities(),
            cgroup: Cgroup { v1: true, v2: true, systemd: true, systemd_user: true, rdma: true },
            seccomp: Seccomp {
                enabled: true,
                actions: ACTIONS,
                operators: OPERATORS,
                archs: ARCHS,
                known_flags: FLAGS.iter().map(|f| f.0).collect(),
                supported_flags: FLAGS.iter().filter(|f| sys::seccomp_flag_available(f.1 as u32)).map(|f| f.0).collect(),
            },
            apparmor: Enabled { enabled: true },
            selinux: Enabled { enabled: true },
            intel_rdt: IntelRdt { enabled: true, schemata: true, monitoring: true },
            memory_policy: MemoryPolicy {
                modes: [
                    "MPOL_DEFAULT",
                    "MPOL_PREFERRED",
                    "MPOL_BIND",
                    "MPOL_INTERLEAVE",
                    "MPOL_LOCAL",
                    "MPOL_PREFERRED_MANY",
                    "MPOL_WEIGHTED_INTERLEAVE",
                ],
                flags: ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES", "MPOL_F_NUMA_BALANCING"],
            },
            mount_extensions: MountExtensions { idmap: Enabled { enabled: true } },
            net_devices: Enabled { enabled: true },
        },
        annotations: BTreeMap::from([
            ("io.github.seccomp.libseccomp.version", libseccomp),
            // Callers read them under runc's names, whoever the runtime is.
            ("org.opencontainers.runc.checkpoint.enabled", "true".to_owned()),
            ("org.opencontainers.runc.commit", COMMIT.to_owned()),
            ("org.opencontainers.runc.version", VERSION.to_owned()),
            // `sealed_exe` leaves it at that: a caller with such a mount spares each call the copy.
            ("rrun.safe-on-read-only-mount", "true".to_owned()),
        ]),
        // Nothing of ours looks at the first; who filters by this list shall filter as for runc.
        potentially_unsafe_config_annotations: ["bundle", "org.systemd.property.", "org.criu.config"],
    })
}

/// All capabilities by number, as the specification spells them.
fn capabilities() -> Vec<String> {
    let mut all: Vec<_> = caps::all().into_iter().collect();
    all.sort_unstable_by_key(|c| c.index());
    all.iter().map(ToString::to_string).collect()
}

const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

const OPERATORS: &[&str] =
    &["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];

#[rustfmt::skip]
const ARCHS: &[&str] = &[
    "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_PARISC", "SCMP_ARCH_PARISC64", "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390", "SCMP_ARCH_S390X", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64",
];

/// Names and what to ask the kernel with.
const FLAGS: [(&str, u64); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", libc::SECCOMP_FILTER_FLAG_LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_TSYNC", libc::SECCOMP_FILTER_FLAG_TSYNC),
    // The kernel takes it only together with the flag that makes a listener.
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_find_what_they_look_for() {
        let json: serde_json::Value = serde_json::from_str(&json::indented(&features().unwrap(), "    ")).unwrap();
        assert!(json["mountOptions"].as_array().unwrap().contains(&"rro".into()));
        assert_eq!(json["linux"]["mountExtensions"]["idmap"]["enabled"], true);
        assert!(json["ociVersionMin"].is_string() && json["ociVersionMax"].is_string());
        assert_eq!(json["linux"]["capabilities"][0], "CAP_CHOWN");
        assert_eq!(json["linux"]["capabilities"].as_array().unwrap().len(), 41);
    }
}
