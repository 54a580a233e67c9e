//! Kernel parameters of a pod: only those that its own namespaces have.

use std::collections::BTreeMap;

use rrun_proto::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig};

use super::invalid;
use crate::config::Config;
use crate::error::Result;

/// The parameters to write in the pod's namespaces when they are made: the pod's own over our defaults, which let
/// containers bind low ports and send pings without capabilities. Names with dots; checked by `check_pod`.
pub fn sysctls(config: &PodSandboxConfig, settings: &Config) -> BTreeMap<String, String> {
    let linux = config.linux.clone().unwrap_or_default();
    let options = linux.security_context.and_then(|security| security.namespace_options).unwrap_or_default();
    let mut all = BTreeMap::new();
    if settings.unprivileged_ports_and_ping && options.network() != NamespaceMode::Node {
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
        // The range is of the host's group ids, of which a user namespace has only some.
        if options.userns_options.is_none_or(|user| user.mode() != NamespaceMode::Pod) {
            all.insert("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        }
    }
    all.extend(linux.sysctls.into_iter().map(|(name, value)| (normal(&name), value)));
    all
}

/// Refuses what is not a parameter of a namespace that the pod has to itself.
pub(super) fn check(sysctls: &BTreeMap<String, String>, options: &NamespaceOption) -> Result<()> {
    for (given, value) in sysctls {
        let name = normal(given);
        let refuse = |why: &str| Err(invalid(format!("linux.sysctls: {given}: {why}")));
        // Its file's path below /proc/sys.
        let path = swap(&name);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) || value.contains('\0') || path.contains('\0') {
            return refuse("not a kernel parameter");
        }
        let (mode, which) = match name.as_str() {
            _ if name.starts_with("net.") => (options.network(), "network"),
            _ if name.starts_with("fs.mqueue.")
                || name.starts_with("kernel.shm")
                || name.starts_with("kernel.msg")
                || name == "kernel.sem" =>
            {
                (options.ipc(), "IPC")
            }
            _ => return refuse("not of a namespace, it would change the host"),
        };
        if mode == NamespaceMode::Node {
            return refuse(&format!("the pod has the host's {which} namespace"));
        }
    }
    Ok(())
}

/// With dots between its parts: with slashes there may be dots inside them (`net/ipv4/conf/eth0.1/forwarding`).
fn normal(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => swap(name),
        _ => name.to_owned(),
    }
}

fn swap(name: &str) -> String {
    let other = |c| match c {
        '/' => '.',
        '.' => '/',
        _ => c,
    };
    name.chars().map(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rrun_proto::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    fn check(name: &str, options: &NamespaceOption) -> Result<()> {
        super::check(&BTreeMap::from([(name.to_owned(), "1".to_owned())]), options)
    }

    #[test]
    fn only_namespaced_ones() {
        let own = NamespaceOption::default();
        let node = NamespaceMode::Node.into();
        let host = NamespaceOption { network: node, ipc: node, ..Default::default() };
        for name in ["kernel.shm_rmid_forced", "fs.mqueue.msg_max", "kernel.sem", "net.core.somaxconn", "net/ipv4/ip_forward"] {
            check(name, &own).unwrap();
            assert!(check(name, &host).unwrap_err().to_string().contains("namespace"), "{name}");
        }
        for name in ["kernel.panic", "vm.swappiness", "net..x", "", "net/../kernel/panic", "kernel"] {
            assert!(check(name, &own).is_err(), "{name}");
        }
        assert_eq!(normal("net/ipv4/conf/eth0.1/forwarding"), "net.ipv4.conf.eth0/1.forwarding");
    }

    #[test]
    fn defaults() {
        let settings = Config::default();
        let config = |network: NamespaceMode, sysctls: &[(&str, &str)]| PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                sysctls: sysctls.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption { network: network.into(), ..Default::default() }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(sysctls(&config(NamespaceMode::Pod, &[]), &settings).len(), 2);
        assert!(sysctls(&config(NamespaceMode::Node, &[]), &settings).is_empty());
        let own = sysctls(&config(NamespaceMode::Pod, &[("net.ipv4.ip_unprivileged_port_start", "80")]), &settings);
        assert_eq!(own["net.ipv4.ip_unprivileged_port_start"], "80");
    }
}
