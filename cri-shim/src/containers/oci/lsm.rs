//! AppArmor profiles and SELinux labels.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rrun_proto::v1::security_profile::ProfileType;
use rrun_proto::v1::{LinuxContainerSecurityContext, SeLinuxOption, SecurityProfile};
use rustix::fs::{XattrFlags, lsetxattr};

use super::{Input, Labels, invalid};
use crate::error::Result;

/// The AppArmor profiles that the kernel holds, `NAME (MODE)` per line.
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";

/// The AppArmor profile of a container; `None`: unconfined.
pub(super) fn apparmor(input: &Input<'_>) -> Result<Option<String>> {
    let security = input.security();
    let field = "linux.security_context.apparmor";
    let asked = asked(security)?;
    if !input.host.apparmor {
        return match asked {
            Some(profile) if profile.profile_type() != ProfileType::Unconfined && !security.privileged => {
                Err(invalid(format!("{field}: AppArmor is not active on this host")))
            }
            _ => Ok(None),
        };
    }
    let name = match asked.as_ref().map(|profile| (profile.profile_type(), &profile.localhost_ref)) {
        Some((ProfileType::Unconfined, _)) => return Ok(None),
        Some((ProfileType::Localhost, name)) => name.strip_prefix("localhost/").unwrap_or(name),
        Some((ProfileType::RuntimeDefault, _)) | None if security.privileged => return Ok(None),
        Some((ProfileType::RuntimeDefault, _)) | None => &input.settings.apparmor_profile,
    };
    if is_loaded(name)? {
        return Ok(Some(name.to_owned()));
    }
    // Who asked for nothing shall not fail for what the host could not load.
    match asked {
        None => Ok(None),
        Some(_) => Err(invalid(format!("{field}: profile {name:?} is not loaded; load it with apparmor_parser"))),
    }
}

/// The profile that a container asks for, in the new field or in the old one.
fn asked(security: &LinuxContainerSecurityContext) -> Result<Option<SecurityProfile>> {
    if security.apparmor.is_some() {
        return Ok(security.apparmor.clone());
    }
    #[allow(deprecated)]
    let old = security.apparmor_profile.as_str();
    let typed = |kind: ProfileType| SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() };
    match old {
        "" => Ok(None),
        "unconfined" => Ok(Some(typed(ProfileType::Unconfined))),
        "runtime/default" => Ok(Some(typed(ProfileType::RuntimeDefault))),
        _ if old.starts_with("localhost/") => Ok(Some(SecurityProfile { localhost_ref: old.to_owned(), ..typed(ProfileType::Localhost) })),
        _ => Err(invalid(format!("linux.security_context.apparmor_profile: {old:?} is no profile"))),
    }
}

fn is_loaded(name: &str) -> anyhow::Result<bool> {
    let profiles = fs::read_to_string(PROFILES).with_context(|| PROFILES.to_owned())?;
    Ok(profiles.lines().any(|line| line.rsplit_once(" (").is_some_and(|(loaded, _)| loaded == name)))
}

/// Loads our default AppArmor profile under that name unless it is there. For the daemon's start; blocks.
///
/// # Errors
/// `apparmor_parser` is missing or refuses.
pub fn load_default_profile(name: &str) -> anyhow::Result<()> {
    if is_loaded(name)? {
        return Ok(());
    }
    if name.is_empty() || name.contains(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)) {
        bail!("apparmor_profile = {name:?}: use letters, digits, '-', '_' and '.'");
    }
    let mut parser = Command::new("apparmor_parser")
        .args(["--replace", "--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run apparmor_parser (install the package apparmor)")?;
    if let Some(mut stdin) = parser.stdin.take() {
        stdin.write_all(profile_text(name).as_bytes()).context("write to apparmor_parser")?;
    }
    let output = parser.wait_with_output().context("wait for apparmor_parser")?;
    if !output.status.success() {
        bail!("apparmor_parser: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Everything, but: no mounting, no writing to what of the kernel's files concerns the host, signals and traces only among
/// containers (and signals from the runtime).
fn profile_text(name: &str) -> String {
    format!(
        r#"profile "{name}" flags=(attach_disconnected,mediate_deleted) {{
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (receive) peer=/usr/{{bin,sbin}}/{{rrun,runc,crun}},
  signal (receive) peer={{rrun,runc,crun}},
  signal (send,receive) peer="{name}",
  ptrace (trace,read,tracedby,readby) peer="{name}",

  deny mount,
  deny @{{PROC}}/* w,
  deny @{{PROC}}/{{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}}/** w,
  deny @{{PROC}}/sys/[^k]** w,
  deny @{{PROC}}/sys/kernel/{{?,??,[^s][^h][^m]**}} w,
  deny @{{PROC}}/sysrq-trigger rwklx,
  deny @{{PROC}}/kcore rwklx,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"#
    )
    .replacen("profile ", "@{PROC}=/proc/\n\nprofile ", 1)
}

/// The SELinux label of a container's processes; a privileged container keeps the runtime's own.
pub(super) fn process_label(input: &Input<'_>) -> Result<Option<String>> {
    let security = input.security();
    if !input.host.selinux || security.privileged {
        return Ok(None);
    }
    Ok(Some(labels(security.selinux_options.as_ref(), input.pod.selinux)?.process).filter(|label| !label.is_empty()))
}

/// The SELinux label of a container's files.
pub(super) fn mount_label(input: &Input<'_>) -> Result<Option<String>> {
    if !input.host.selinux {
        return Ok(None);
    }
    Ok(Some(labels(input.security().selinux_options.as_ref(), input.pod.selinux)?.mount).filter(|label| !label.is_empty()))
}

/// A pod's SELinux labels: what it asks for over the policy's defaults, with a level of its own unless one is given.
/// `id` is the pod's; two pods have the same level with a chance of one in half a million.
///
/// # Errors
/// `InvalidArgument` for options with a colon.
pub fn pod_labels(options: Option<&SeLinuxOption>, id: &str) -> Result<Labels> {
    let contexts = fs::read_to_string("/etc/selinux/targeted/contexts/lxc_contexts").unwrap_or_default();
    let of = |key: &str, default: &str| {
        let line = contexts.lines().find_map(|line| line.split_once('=').filter(|(name, _)| name.trim() == key));
        line.map_or(default, |(_, value)| value.trim().trim_matches('"')).to_owned()
    };
    let level = format!("s0:{}", categories(id));
    let with_level = |label: String| label.splitn(4, ':').take(3).collect::<Vec<_>>().join(":") + ":" + &level;
    let defaults = Labels {
        process: with_level(of("process", "system_u:system_r:container_t:s0")),
        mount: with_level(of("file", "system_u:object_r:container_file_t:s0")),
    };
    labels(options, &defaults)
}

/// Two categories of the 1024, the smaller first, from the id's first digits.
fn categories(id: &str) -> String {
    let number = |range| u32::from_str_radix(id.get(range).unwrap_or("0"), 16).unwrap_or(0) % 1024;
    let (first, second) = (number(0..6), number(6..12));
    let second = if first == second { (second + 1) % 1024 } else { second };
    format!("c{},c{}", first.min(second), first.max(second))
}

/// The options over a pod's labels.
fn labels(options: Option<&SeLinuxOption>, pod: &Labels) -> Result<Labels> {
    let Some(options) = options else { return Ok(pod.clone()) };
    let field = "linux.security_context.selinux_options";
    for (name, value) in [("user", &options.user), ("role", &options.role), ("type", &options.r#type)] {
        if value.contains(|c: char| !c.is_ascii_alphanumeric() && !"_-.".contains(c)) {
            return Err(invalid(format!("{field}.{name}: {value:?} is not part of a label")));
        }
    }
    if options.level.contains(|c: char| !c.is_ascii_alphanumeric() && !":,.-".contains(c)) || options.level.starts_with(':') {
        return Err(invalid(format!("{field}.level: {:?} is not a level as s0:c1,c2", options.level)));
    }
    let over = |label: &str, parts: [&str; 4]| {
        let mut old = label.splitn(4, ':');
        let mut next = |new: &str| {
            let old = old.next().unwrap_or_default();
            if new.is_empty() { old.to_owned() } else { new.to_owned() }
        };
        parts.map(&mut next).join(":")
    };
    Ok(Labels {
        process: over(&pod.process, [&options.user, &options.role, &options.r#type, &options.level]),
        // Files keep their type: what a process may do with them is the policy's matter.
        mount: over(&pod.mount, [&options.user, "", "", &options.level]),
    })
}

/// Gives a file, or a folder and all in it, a label. Links are labelled themselves, not followed.
pub(super) fn relabel(path: &Path, label: &str) -> anyhow::Result<()> {
    if label.is_empty() {
        return Ok(());
    }
    // Nobody wants these relabelled, and some hosts do not boot again after it.
    const NEVER: [&str; 17] = [
        "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp",
        "/usr", "/var",
    ];
    if NEVER.iter().any(|never| path == Path::new(never)) {
        bail!("{}: a folder of the host's system is not relabelled", path.display());
    }
    match lsetxattr(path, c"security.selinux", label.as_bytes(), XattrFlags::empty()) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(()),
        done => done.with_context(|| format!("label {} as {label}", path.display()))?,
    }
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
            relabel(&entry?.path(), label)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_over_labels() {
        let pod = pod_labels(None, &"a".repeat(64)).unwrap();
        assert!(pod.process.ends_with(":container_t:s0:c682,c683"), "{pod:?}");
        let options = SeLinuxOption { r#type: "spc_t".into(), level: "s0:c4,c5".into(), ..Default::default() };
        let own = labels(Some(&options), &pod).unwrap();
        assert!(own.process.ends_with(":spc_t:s0:c4,c5") && own.mount.ends_with(":container_file_t:s0:c4,c5"), "{own:?}");
        for bad in [SeLinuxOption { user: "a:b".into(), ..Default::default() }, SeLinuxOption { level: "s0;".into(), ..Default::default() }]
        {
            assert!(labels(Some(&bad), &pod).unwrap_err().to_string().contains("selinux_options"));
        }
    }

    #[test]
    fn levels_are_two_categories_in_order() {
        assert_eq!(categories("000001000000"), "c0,c1");
        assert_eq!(categories("0003ff0003ff"), "c0,c1023");
        assert_eq!(categories("x"), "c0,c1");
    }

    #[test]
    fn the_profile_names_itself() {
        let text = profile_text("rrun-default");
        assert!(text.starts_with("@{PROC}=/proc/\n") && text.contains("profile \"rrun-default\" flags="), "{text}");
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
