//! AppArmor profiles and SELinux labels.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use rrun_proto::v1::security_profile::ProfileType;
use rrun_proto::v1::{self, LinuxContainerSecurityContext, SeLinuxOption, SecurityProfile};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, XattrFlags, openat, setxattr};
use rustix::io::Errno;

use super::{Input, Labels, invalid};
use crate::error::Result;
use crate::tree::{self, Visitor};

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

/// Whether SELinux is active: its file system is mounted and a policy is loaded.
pub(super) fn selinux_is_active() -> bool {
    let own = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    Path::new("/sys/fs/selinux/enforce").exists() && !own.is_empty() && !own.starts_with("kernel")
}

/// A pod's SELinux labels: what it asks for over the policy's defaults, with a level of its own unless one is given.
/// `id` is the pod's; two pods have the same level with a chance of one in half a million. Blocks.
///
/// # Errors
/// `InvalidArgument` for options that are not part of a label.
pub fn pod_labels(options: Option<&SeLinuxOption>, id: &str) -> Result<Labels> {
    let config = fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let policy = value(&config, "SELINUXTYPE").unwrap_or("targeted");
    let contexts = fs::read_to_string(format!("/etc/selinux/{policy}/contexts/lxc_contexts")).unwrap_or_default();
    labels(options, &default_labels(&contexts, id))
}

/// What a policy's file `lxc_contexts` names for containers, with the pod's own level.
fn default_labels(contexts: &str, id: &str) -> Labels {
    let with_level = |label: &str| format!("{}:s0:{}", label.splitn(4, ':').take(3).collect::<Vec<_>>().join(":"), categories(id));
    Labels {
        process: with_level(value(contexts, "process").unwrap_or("system_u:system_r:container_t")),
        mount: with_level(value(contexts, "file").unwrap_or("system_u:object_r:container_file_t")),
    }
}

/// The value of a line `KEY = VALUE` or `KEY="VALUE"`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().trim_matches('"'))
}

/// A container's SELinux labels: what it asks for over its pod's. Its processes keep the runtime's own label where it is
/// privileged, or sees the host's processes or IPC objects and asks for no label: separated from them it could not do its work.
/// Both are empty where the pod has none.
///
/// # Errors
/// `InvalidArgument` for options that are not part of a label.
pub fn container_labels(pod: &v1::PodSandboxConfig, config: &v1::ContainerConfig, pod_labels: &Labels) -> Result<Labels> {
    if *pod_labels == Labels::default() {
        return Ok(Labels::default());
    }
    let of_pod = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let of_container = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = of_container.and_then(|context| context.selinux_options.as_ref());
    let asked = options.is_some() || of_pod.is_some_and(|context| context.selinux_options.is_some());
    let of_host = of_pod
        .and_then(|context| context.namespace_options.as_ref())
        .is_some_and(|options| [options.pid(), options.ipc()].contains(&v1::NamespaceMode::Node));
    let mut labels = labels(options, pod_labels)?;
    if of_container.is_some_and(|context| context.privileged) || of_host && !asked {
        labels.process.clear();
    }
    Ok(labels)
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
    let name = CString::new(path.as_os_str().as_bytes())?;
    let label_all = |labeller: &mut Labeller<'_>| match labeller.see(CWD, &name)? {
        true => tree::walk(tree::open_folder(path)?.as_fd(), labeller),
        false => Ok(()),
    };
    label_all(&mut Labeller(label)).with_context(|| format!("label {} as {label}", path.display()))
}

/// Labels what it sees. Containers that have a folder already may exchange what is in it for links meanwhile.
struct Labeller<'a>(&'a str);

impl Visitor for Labeller<'_> {
    const RESOLVE: ResolveFlags = ResolveFlags::NO_SYMLINKS;

    /// False also where files have no labels.
    fn see(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> anyhow::Result<bool> {
        let file = match openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(false),
            file => file.with_context(|| format!("open {name:?}"))?,
        };
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        match setxattr(&own, c"security.selinux", self.0.as_bytes(), XattrFlags::empty()) {
            Err(Errno::NOTSUP) => return Ok(false),
            done => done.with_context(|| format!("setxattr {name:?}"))?,
        }
        Ok(FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::Directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_names_the_labels_of_containers() {
        let id = "a".repeat(64);
        let labels = |contexts: &str| {
            let made = default_labels(contexts, &id);
            (made.process, made.mount)
        };
        let own = |process: &str, mount: &str| (format!("{process}:s0:c682,c683"), format!("{mount}:s0:c682,c683"));
        assert_eq!(labels(""), own("system_u:system_r:container_t", "system_u:object_r:container_file_t"));
        let text = "process = \"system_u:system_r:box_t:s0\"\ncontent = \"x:y:z:s0\"\nfile = \"system_u:object_r:box_file_t:s0\"\n";
        assert_eq!(labels(text), own("system_u:system_r:box_t", "system_u:object_r:box_file_t"));
        assert_eq!(value("SELINUX=enforcing\nSELINUXTYPE=mls\n", "SELINUXTYPE"), Some("mls"));
    }

    #[test]
    fn labels_of_containers() {
        let pod = |change: fn(&mut v1::LinuxSandboxSecurityContext)| {
            let mut context = v1::LinuxSandboxSecurityContext::default();
            change(&mut context);
            let linux = v1::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
            v1::PodSandboxConfig { linux: Some(linux), ..Default::default() }
        };
        let container = |context: LinuxContainerSecurityContext| {
            let linux = v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() };
            v1::ContainerConfig { linux: Some(linux), ..Default::default() }
        };
        let options = SeLinuxOption { r#type: "spc_t".into(), level: "s0:c4,c5".into(), ..Default::default() };
        let of_pod = default_labels("", &"a".repeat(64));
        let plain = LinuxContainerSecurityContext::default;
        let labels = |pod: &v1::PodSandboxConfig, context| container_labels(pod, &container(context), &of_pod).unwrap();
        assert_eq!(labels(&pod(|_| {}), plain()), of_pod, "the pod's");
        let own = labels(&pod(|_| {}), LinuxContainerSecurityContext { selinux_options: Some(options.clone()), ..plain() });
        assert_eq!(own.process, "system_u:system_r:spc_t:s0:c4,c5");
        assert_eq!(own.mount, "system_u:object_r:container_file_t:s0:c4,c5", "files keep their type");
        let without = Labels { process: String::new(), ..of_pod.clone() };
        assert_eq!(labels(&pod(|_| {}), LinuxContainerSecurityContext { privileged: true, ..plain() }), without);
        let namespace = |pid: v1::NamespaceMode, ipc: v1::NamespaceMode| {
            Some(v1::NamespaceOption { pid: pid.into(), ipc: ipc.into(), ..Default::default() })
        };
        let host = pod(|_| {});
        for namespaces in
            [namespace(v1::NamespaceMode::Node, v1::NamespaceMode::Pod), namespace(v1::NamespaceMode::Pod, v1::NamespaceMode::Node)]
        {
            let mut host = host.clone();
            host.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = namespaces;
            assert_eq!(labels(&host, plain()), without, "the host's processes");
            let own = labels(&host, LinuxContainerSecurityContext { selinux_options: Some(options.clone()), ..plain() });
            assert_eq!(own.process, "system_u:system_r:spc_t:s0:c4,c5", "asked for");
        }
        let bad = LinuxContainerSecurityContext { selinux_options: Some(SeLinuxOption { user: "a:b".into(), ..options }), ..plain() };
        let none = container_labels(&host, &container(bad.clone()), &Labels::default()).unwrap();
        assert_eq!(none, Labels::default(), "no SELinux: nothing is asked");
        assert!(container_labels(&host, &container(bad), &of_pod).unwrap_err().to_string().contains("selinux_options.user"));
        let bad = SeLinuxOption { level: "s0;".into(), ..Default::default() };
        assert!(pod_labels(Some(&bad), "a").unwrap_err().to_string().contains("selinux_options.level"));
    }

    #[test]
    fn all_in_a_folder_is_labelled_and_nothing_that_links_lead_to() {
        let base = std::env::temp_dir().join(format!("rrun-cri-relabel-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::create_dir_all(base.join("folder/inner")).unwrap();
        fs::write(base.join("folder/inner/file"), "").unwrap();
        fs::write(base.join("outside"), "").unwrap();
        std::os::unix::fs::symlink("../../outside", base.join("folder/inner/link")).unwrap();
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        // Without SELinux the attribute is like any other of its kind, where one may be set at all.
        match relabel(&base.join("folder"), label) {
            Err(error) => assert_eq!(error.root_cause().downcast_ref(), Some(&Errno::PERM), "{error:#}"),
            Ok(()) => {
                let read = |name: &str| {
                    let mut value = [0; 100];
                    let length = rustix::fs::lgetxattr(base.join(name), c"security.selinux", &mut value[..]);
                    length.map(|length| String::from_utf8_lossy(&value[..length]).into_owned()).unwrap_or_default()
                };
                if !read("folder").is_empty() {
                    let all = ["folder", "folder/inner", "folder/inner/file", "folder/inner/link", "outside"].map(read);
                    assert_eq!(all, [label, label, label, label, ""]);
                }
            }
        }
        assert!(relabel(Path::new("/etc"), label).unwrap_err().to_string().contains("is not relabelled"));
        fs::remove_dir_all(base).unwrap();
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
