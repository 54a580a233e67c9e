//! `linux.sysctl`: kernel parameters that belong to a namespace of the container, checked and written.

use crate::namespaces::{NEWNET, NEWUSER, NEWUTS, Namespaces};
use crate::rootfs::Root;
use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use oci_spec::runtime::Linux;
use std::ffi::CString;
use std::os::fd::AsFd;

const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
/// Parameters of the IPC namespace, beside `fs.mqueue.*`.
const IPC: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];

/// Kernel parameters to be written: path below `/proc` and value.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sysctls(Vec<(CString, String)>);

impl Sysctls {
    /// Checks that each parameter belongs to a namespace that is the container's own.
    pub fn new(linux: Option<&Linux>, namespaces: &Namespaces) -> Result<Sysctls> {
        let mut all = Sysctls::default();
        for (key, value) in linux.and_then(|l| l.sysctl().as_ref()).into_iter().flatten() {
            let path = normal(key);
            check(&path, namespaces).with_context(|| format!("linux.sysctl[{key:?}]"))?;
            all.0.push((CString::new(format!("sys/{path}"))?, value.clone()));
        }
        Ok(all)
    }

    /// Writes them, in the container's namespaces, through a procfs that nothing covers: a mount over
    /// `/proc/sys` must not turn them elsewhere (CVE-2025-52881).
    pub fn write(&self, root: &Root) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let procfs = root.procfs()?;
        for (path, value) in &self.0 {
            let name = || format!("linux.sysctl: write {value:?} to /proc/{}", path.to_string_lossy());
            let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_XDEV | sys::RESOLVE_NO_SYMLINKS;
            let file = match sys::openat2(procfs, path, libc::O_WRONLY, 0, resolve) {
                Err(Errno::ENOSYS) => sys::openat(procfs, path, libc::O_WRONLY | libc::O_NOFOLLOW, 0),
                other => other,
            };
            let file = file.with_context(name)?;
            sys::write(file.as_fd(), value.as_bytes()).with_context(name)?;
        }
        Ok(())
    }
}

/// `net.ipv4.conf` or `net/ipv4/conf` (sysctl(8): the first separator decides which is which) as a path.
fn normal(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'.' => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            key.chars().map(swap).collect()
        }
        _ => key.to_owned(),
    }
}

fn check(path: &str, namespaces: &Namespaces) -> Result<()> {
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        bail!("not the name of a kernel parameter");
    }
    let ipc = path.starts_with("fs/mqueue/") || path.strip_prefix("kernel/").is_some_and(|name| IPC.contains(&name));
    if ipc {
        return own(namespaces, NEWIPC, "ipc");
    }
    if path.starts_with("net/") {
        return own(namespaces, NEWNET, "net");
    }
    if path.starts_with("user/") {
        return own(namespaces, NEWUSER, "user");
    }
    match path {
        "kernel/domainname" => own(namespaces, NEWUTS, "uts"),
        "kernel/hostname" => bail!("conflicts with the hostname field: set that"),
        _ => bail!("sysctl {:?} is not in a separate kernel namespace", path.replace('/', ".")),
    }
}

/// The namespace must be new, or joined and not the host's after all.
fn own(namespaces: &Namespaces, kind: u64, name: &str) -> Result<()> {
    let host = std::fs::metadata(format!("/proc/self/ns/{name}")).ok().map(|m| std::os::unix::fs::MetadataExt::ino(&m));
    let joined = namespaces.joined.iter().find(|j| j.kind == kind);
    let same = joined.is_some_and(|j| nix::sys::stat::fstat(&j.fd).ok().map(|s| s.st_ino) == host);
    if !namespaces.has(kind) || same {
        bail!("not allowed in the host's {name} namespace (give the container its own in linux.namespaces)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_separator_decides() {
        assert_eq!(normal("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(normal("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(normal("plain"), "plain");
    }

    #[test]
    fn only_parameters_of_own_namespaces() {
        let own = Namespaces { new: NEWNET | NEWIPC | NEWUSER, ..Namespaces::default() };
        for fine in ["net/ipv4/ip_forward", "kernel/shmmax", "fs/mqueue/msg_max", "user/max_net_namespaces"] {
            check(fine, &own).unwrap();
            assert!(check(fine, &Namespaces::default()).is_err(), "{fine}");
        }
        for bad in
            ["kernel/core_pattern", "vm/overcommit_memory", "kernel/hostname", "net/../kernel/core_pattern", "net//x", "kernel/domainname"]
        {
            assert!(check(bad, &own).is_err(), "{bad}");
        }
    }
}
