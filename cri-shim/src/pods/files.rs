//! The files that all containers of a pod see: resolv.conf, hostname, hosts, and the shared memory folder.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use rrun_proto::v1;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::containers::oci::Files;

/// Bytes of /dev/shm, as containerd and Docker have it.
const SHM_SIZE: &str = "67108864";

/// Which files a pod has, in its run folder.
pub fn paths(config: &v1::PodSandboxConfig, run_dir: &Path) -> Files {
    let options = super::options(config);
    Files {
        resolv_conf: Some(run_dir.join("resolv.conf")),
        hostname: Some(run_dir.join("hostname")),
        hosts: Some(run_dir.join("hosts")),
        shm: Some(if options.ipc() == v1::NamespaceMode::Node { "/dev/shm".into() } else { run_dir.join("shm") }),
    }
}

/// Writes and mounts them, shared memory with the SELinux label unless it is empty. Blocks.
pub(crate) fn make(config: &v1::PodSandboxConfig, hostname: &str, run_dir: &Path, label: &str) -> Result<()> {
    let write = |name: &str, text: String| {
        let path = run_dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    fs::create_dir_all(run_dir.join("ns")).with_context(|| format!("make {}/ns", run_dir.display()))?;
    let resolv = match &config.dns_config {
        Some(dns) => resolv_conf(dns),
        None => host_file("/etc/resolv.conf")?,
    };
    write("resolv.conf", resolv)?;
    write("hostname", format!("{hostname}\n"))?;
    write("hosts", host_file("/etc/hosts")?)?;
    if super::options(config).ipc() != v1::NamespaceMode::Node {
        mount_shm(&run_dir.join("shm"), label)?;
    }
    Ok(())
}

fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

fn host_file(path: &str) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("read {path}")),
    }
}

fn mount_shm(target: &Path, label: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen tmpfs")?;
    let context = Some(("context", label)).filter(|_| !label.is_empty());
    for (name, value) in [("source", "shm"), ("mode", "1777"), ("size", SHM_SIZE)].into_iter().chain(context) {
        fsconfig_set_string(fs.as_fd(), name, value).with_context(|| format!("tmpfs {name}={value}"))?;
    }
    fsconfig_create(fs.as_fd()).context("make a tmpfs")?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).context("fsmount tmpfs")?;
    move_mount(mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("move_mount to {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_the_lines_that_are_asked_for() {
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let dns = v1::DnsConfig {
            servers: list(&["10.10.10.10", "fd00::1"]),
            searches: list(&["google.com", "svc"]),
            options: list(&["ndots:8"]),
        };
        assert_eq!(resolv_conf(&dns), "search google.com svc\nnameserver 10.10.10.10\nnameserver fd00::1\noptions ndots:8\n");
        assert_eq!(resolv_conf(&v1::DnsConfig::default()), "");
    }
}
