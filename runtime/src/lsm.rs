//! Labels of the Linux security modules: the AppArmor profile and the SELinux context that take effect
//! at `execve`.

use crate::rootfs::Root;
use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use std::ffi::CStr;
use std::os::fd::AsFd;

/// AppArmor's name for no profile.
const UNCONFINED: &str = "unconfined";

/// Sets them for the next `execve` of the calling process, through a procfs that nothing covers
/// (CVE-2019-16884, CVE-2025-52881).
pub fn set_exec_label(root: &Root, apparmor: Option<&str>, selinux: Option<&str>) -> Result<()> {
    if let Some(profile) = apparmor {
        let text = format!("exec {profile}");
        let files = [c"self/attr/apparmor/exec", c"self/attr/exec"];
        match write_attribute(root, &files, &text) {
            // Where AppArmor is not enabled, everything is.
            Err(_) if profile == UNCONFINED => (),
            other => other.with_context(|| {
                format!("process.apparmorProfile: apply profile {profile:?} (is it loaded? see /sys/kernel/security/apparmor/profiles)")
            })?,
        }
    }
    if let Some(label) = selinux {
        write_attribute(root, &[c"self/attr/exec"], label).with_context(|| format!("process.selinuxLabel: set {label:?}"))?;
    }
    Ok(())
}

/// Whether AppArmor is enabled on this host. Asked before anything is made.
pub fn check(apparmor: Option<&str>, selinux: Option<&str>) -> Result<()> {
    if let Some(profile) = apparmor.filter(|p| *p != UNCONFINED) {
        let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'));
        if !enabled {
            bail!("process.apparmorProfile: {profile:?}: AppArmor is not enabled on this host");
        }
    }
    if let Some(label) = selinux
        && !selinux_enabled()
    {
        bail!("process.selinuxLabel: {label:?}: SELinux is not enabled on this host");
    }
    Ok(())
}

/// Whether SELinux is enabled on this host.
pub fn selinux_enabled() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

fn write_attribute(root: &Root, files: &[&CStr], text: &str) -> Result<()> {
    let procfs = root.procfs()?;
    let mut last = Errno::ENOENT;
    for file in files {
        // "self" is a symbolic link of the procfs itself; mounts over it are refused.
        let resolve = sys::RESOLVE_BENEATH | sys::RESOLVE_NO_XDEV | sys::RESOLVE_NO_MAGICLINKS;
        let opened = match sys::openat2(procfs, file, libc::O_WRONLY, 0, resolve) {
            Err(Errno::ENOSYS) => sys::openat(procfs, file, libc::O_WRONLY | libc::O_NOFOLLOW, 0),
            other => other,
        };
        match opened {
            Ok(fd) => {
                sys::write(fd.as_fd(), text.as_bytes()).with_context(|| format!("write to /proc/{}", file.to_string_lossy()))?;
                return Ok(());
            }
            Err(errno) => last = errno,
        }
    }
    Err(last).context("open /proc/self/attr/exec")
}
