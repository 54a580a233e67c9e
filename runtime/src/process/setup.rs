//! What a process becomes: `process` of a configuration, turned into the arguments of system calls
//! by the parent, and the last steps to it, which init and exec share.

use super::protocol::{Channel, Kind};
use crate::credentials::{self, Credentials, Limit, capability_names};
use crate::rootfs::Root;
use crate::scheduling::Scheduling;
use crate::seccomp::{self, Filter};
use crate::sys;
use crate::{log, lsm, namespaces, terminal};
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::libc;
use nix::unistd::AccessFlags;
use oci_spec::runtime::{Linux, LinuxPersonalityDomain, Process};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::Read;

/// `PER_LINUX32` of linux/personality.h.
const PER_LINUX32: u64 = 0x0008;

/// Everything about a process that can be prepared before it exists.
#[derive(Debug, Default)]
pub struct Setup {
    /// `process.args`.
    pub argv: Vec<CString>,
    /// `process.env`, a later value of a name replacing an earlier one.
    pub env: Vec<CString>,
    /// `process.cwd`.
    pub cwd: CString,
    /// Ids, groups, capabilities.
    pub credentials: Credentials,
    /// `process.rlimits`.
    pub limits: Vec<Limit>,
    /// The process is in a user namespace.
    pub user_namespace: bool,
    /// The process never sees the host's /proc.
    pub born_inside: bool,
    /// The parent is root of its user namespace.
    pub privileged: bool,
    /// `process.oomScoreAdj`.
    pub oom_score_adj: Option<i32>,
    /// `process.user.umask`.
    pub umask: Option<u32>,
    /// `process.noNewPrivileges`.
    pub no_new_privs: bool,
    /// `linux.seccomp`, compiled.
    pub filter: Option<Filter>,
    /// `process.apparmorProfile`.
    pub apparmor: Option<String>,
    /// `process.selinuxLabel`.
    pub selinux: Option<String>,
    /// `linux.personality`, as personality(2) takes it.
    pub personality: Option<u64>,
    /// `process.scheduler`, `process.ioPriority` and their like.
    pub scheduling: Scheduling,
    /// `process.terminal`.
    pub terminal: bool,
    /// `process.consoleSize`: height and width in characters.
    pub console_size: Option<(u64, u64)>,
    /// Name of the session keyring; none with `--no-new-keyring`.
    pub keyring: Option<CString>,
    /// Descriptors from here on are closed at `execve`.
    pub first_closed: u32,
}

impl Setup {
    /// Checks and converts a process of the configuration.
    pub fn new(process: &Process, linux: Option<&Linux>, keep_groups: bool) -> Result<Setup> {
        let seccomp = linux.and_then(|l| l.seccomp().as_ref());
        let apparmor = process.apparmor_profile().clone().filter(|p| !p.is_empty());
        let selinux = process.selinux_label().clone().filter(|l| !l.is_empty());
        lsm::check(apparmor.as_deref(), selinux.as_deref())?;
        let credentials = Credentials::new(process, keep_groups)?;
        for capability in capability_names(credentials.caps.beyond_ambient()).split_whitespace() {
            log::warn(format!("can't raise ambient capability {capability}: it is not permitted and inheritable, too"));
        }
        Ok(Setup {
            argv: c_strings("process.args", process.args().iter().flatten())?,
            env: environment(process.env().iter().flatten())?,
            cwd: c_string("process.cwd", &process.cwd().to_string_lossy())?,
            credentials,
            limits: credentials::limits(process.rlimits().as_ref())?,
            user_namespace: false,
            born_inside: false,
            privileged: sys::started_as() == 0,
            oom_score_adj: oom_score_adj(process.oom_score_adj())?,
            umask: process.user().umask(),
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            filter: seccomp.map(seccomp::compile).transpose()?,
            apparmor,
            selinux,
            personality: linux.and_then(|l| l.personality().as_ref()).map(|p| match p.domain() {
                LinuxPersonalityDomain::PerLinux => 0,
                LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
            }),
            scheduling: Scheduling::new(process, linux)?,
            terminal: process.terminal().unwrap_or(false),
            console_size: process.console_size().map(|size| (size.height(), size.width())),
            keyring: None,
            first_closed: 3,
        })
    }

    /// Makes the working directory where the image lacks it, as runc does.
    pub fn make_cwd(&self, root: &Root) -> Result<()> {
        if self.cwd.as_bytes() == b"/" || root.enter(&self.cwd) != Err(Errno::ENOENT) {
            return Ok(());
        }
        root.make_folder(&self.cwd).with_context(|| format!("process.cwd: mkdir {:?}", self.cwd))
    }

    /// Sets the OOM score and resource limits of process `pid`, where it is not to do it itself.
    pub fn limit(&self, pid: i32) -> Result<()> {
        if let Some(warning) = self.set_oom_score(&pid.to_string())? {
            log::warn(warning);
        }
        self.limits.iter().try_for_each(|limit| limit.apply(pid))
    }

    /// In a user namespace the process may not raise its limits nor lower its OOM score, but a
    /// privileged parent may: before the ids change, after which it might not either.
    fn limits_by_parent(&self) -> bool {
        self.user_namespace && self.privileged
    }

    fn asks_for_limits(&self) -> bool {
        let limits = self.limits_by_parent() && !self.limits.is_empty();
        limits || self.oom_score_adj.is_some() && (self.limits_by_parent() || self.born_inside)
    }

    /// Opens an ordinary user's process that waits for `start` to that user again: `exec` joins its
    /// namespaces, which takes the right to trace it, and only the host's root has that otherwise.
    pub fn show(&self) -> Result<()> {
        if self.user_namespace && !self.privileged {
            sys::prctl(libc::PR_SET_DUMPABLE, 1, 0).context("prctl(PR_SET_DUMPABLE)")?;
        }
        Ok(())
    }

    /// First thing in the new process, while the host's /proc is at hand.
    pub fn set_own_oom_score(&self, channel: &Channel) -> Result<()> {
        if self.limits_by_parent() || self.born_inside {
            return Ok(());
        }
        match self.set_oom_score("self")? {
            Some(warning) => Ok(channel.tell(Kind::Warning, &warning)?),
            None => Ok(()),
        }
    }

    /// The answer is a warning, where it stays as it is.
    fn set_oom_score(&self, process: &str) -> Result<Option<String>> {
        let Some(score) = self.oom_score_adj else { return Ok(None) };
        let path = format!("/proc/{process}/oom_score_adj");
        match std::fs::write(&path, score.to_string()) {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied && !namespaces::in_initial_user_namespace() => {
                Ok(Some(format!("process.oomScoreAdj: {score} needs CAP_SYS_RESOURCE, left as it is")))
            }
            other => other.map(|()| None).with_context(|| format!("process.oomScoreAdj: write {score} to {path}")),
        }
    }

    /// Session, keyring, personality, umask: what needs nothing of the container's file system.
    pub fn begin(&self) -> Result<()> {
        nix::unistd::setsid().context("setsid")?;
        if let Some(name) = &self.keyring {
            join_keyring(name, self.selinux.as_deref())?;
        }
        if let Some(persona) = self.personality {
            sys::personality(persona).context("linux.personality: personality(2)")?;
        }
        self.scheduling.apply()
    }

    /// Everything from the container's file system on up to the point where nothing but the gate
    /// and `execve` is left. The answer is the path to execute.
    pub fn finish(&self, root: &Root, channel: &Channel) -> Result<CString> {
        // Before a filter that may forbid it; all that is opened later is close-on-exec by itself.
        super::close_at_execve(self.first_closed)?;
        if let Some(umask) = self.umask {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
        } else {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        }
        lsm::set_exec_label(root, self.apparmor.as_deref(), self.selinux.as_deref())?;
        // As root first, for folders that only root may enter; as the user below, for file systems
        // that root may not.
        let entered = root.enter(&self.cwd);
        // Without no_new_privs loading a filter takes CAP_SYS_ADMIN, which goes with the credentials.
        if !self.no_new_privs || self.filter.as_ref().is_some_and(|f| f.listener.is_some()) {
            self.load_filter(channel)?;
        }
        terminal::own_stdio(self.credentials.uid, self.terminal)?;
        if self.asks_for_limits() {
            channel.ask(Kind::Limits, "")?;
        } else {
            self.limits.iter().try_for_each(|limit| limit.apply(0))?;
        }
        let missing = self.credentials.take()?;
        if missing != 0 {
            channel.tell(Kind::Warning, &format!("ignoring unknown or unavailable capabilities: [{}]", capability_names(missing)))?;
        }
        if entered.is_err() {
            root.enter(&self.cwd).map_err(|e| anyhow!("process.cwd: chdir to {:?}: {}", self.cwd, e.desc().to_lowercase()))?;
        }
        verify_cwd().context("process.cwd")?;
        if self.no_new_privs {
            sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).context("process.noNewPrivileges: prctl(PR_SET_NO_NEW_PRIVS)")?;
        }
        self.find_executable()
    }

    /// Loads the filter that could wait: as late as possible, so that it need not allow our own calls.
    pub fn load_late_filter(&self, channel: &Channel) -> Result<()> {
        if self.no_new_privs && self.filter.as_ref().is_some_and(|f| f.listener.is_none()) {
            self.load_filter(channel)?;
        }
        Ok(())
    }

    fn load_filter(&self, channel: &Channel) -> Result<()> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let shown = filter.listener.is_some() && self.user_namespace && !self.privileged;
        if shown {
            // An ordinary user can fetch the listener only from a process that is dumpable.
            sys::prctl(libc::PR_SET_DUMPABLE, 1, 0).context("prctl(PR_SET_DUMPABLE)")?;
        }
        if let Some(listener) = filter.load().context("linux.seccomp")? {
            use std::os::fd::AsRawFd;
            channel.ask(Kind::Listener, &listener.as_raw_fd().to_string()).context("linux.seccomp.listenerPath: send the listener")?;
        }
        // No change of ids ends it where the process is root: the container could trace it up to execve.
        if shown { super::hide() } else { Ok(()) }
    }

    /// The environment with HOME added from the container's /etc/passwd when it is missing or empty.
    pub fn environment(&self) -> Vec<CString> {
        let mut env = self.env.clone();
        env.retain(|v| v.as_bytes() != b"HOME=");
        if !env.iter().any(|v| v.as_bytes().starts_with(b"HOME=")) {
            let home = home_of(self.credentials.uid).unwrap_or_else(|| "/".into());
            env.extend(CString::new(format!("HOME={home}")));
        }
        env
    }

    /// Looks the program up as execvp(3) would, with the words that callers know from runc.
    fn find_executable(&self) -> Result<CString> {
        let name = self.argv.first().context("process.args: empty")?;
        let shown = name.to_string_lossy();
        if name.as_bytes().contains(&b'/') {
            return match executable(name) {
                Ok(()) => Ok(name.clone()),
                Err(Errno::ENOENT) => bail!("exec: {shown:?}: stat {shown}: no such file or directory"),
                Err(e) => bail!("exec: {shown:?}: {}", e.desc().to_lowercase()),
            };
        }
        let path = self.env.iter().find_map(|v| v.as_bytes().strip_prefix(b"PATH="));
        for dir in path.unwrap_or_default().split(|&b| b == b':') {
            let dir = if dir.is_empty() { b"." } else { dir };
            let candidate = CString::new([dir, b"/", name.as_bytes()].concat())?;
            if executable(&candidate).is_ok() {
                return Ok(candidate);
            }
        }
        bail!("exec: {shown:?}: executable file not found in $PATH")
    }
}

fn executable(path: &CStr) -> sys::Result<()> {
    let stat = nix::sys::stat::stat(path)?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    // With the capabilities that execve will have, which access(2) leaves out of account.
    match nix::unistd::faccessat(sys::CWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS) {
        // Profiles older than the call (Linux 5.8) forbid it.
        Err(Errno::EPERM) => nix::unistd::access(path, AccessFlags::X_OK),
        other => other,
    }
}

/// The current folder must be inside the container: a cwd of `/proc/self/fd/N` must not lead to a
/// folder of the host (CVE-2024-21626). getcwd(2) says `ENOENT`, or answers "(unreachable)…".
fn verify_cwd() -> Result<()> {
    match nix::unistd::getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        Ok(_) | Err(Errno::ENOENT) => bail!("the current folder is outside of the container's root file system"),
        Err(e) => bail!("getcwd: {}", e.desc().to_lowercase()),
    }
}

fn join_keyring(name: &CStr, selinux: Option<&str>) -> Result<()> {
    let _ = selinux;
    match sys::join_session_keyring(name) {
        // A kernel or an outer filter without keyrings: nothing to protect.
        Err(Errno::ENOSYS | Errno::EPERM | Errno::EDQUOT) => Ok(()),
        Ok(key) => {
            // Link and search for the user's own: a process that changes its ids keeps its keyring.
            const USER_SEARCH: u32 = 0x0008_0000;
            let _ = sys::add_key_permissions(key, USER_SEARCH);
            Ok(())
        }
        Err(e) => Err(e).context("session keyring: keyctl(KEYCTL_JOIN_SESSION_KEYRING)"),
    }
}

fn home_of(uid: u32) -> Option<String> {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let fd = match sys::openat2(sys::CWD, c"/etc/passwd", flags, 0, sys::RESOLVE_NO_MAGICLINKS) {
        Err(Errno::ENOSYS) => sys::openat(sys::CWD, c"/etc/passwd", flags | libc::O_NOFOLLOW, 0),
        other => other,
    }
    .ok()?;
    let mut text = Vec::new();
    std::fs::File::from(fd).take(1 << 20).read_to_end(&mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 6 && fields[2] == uid && !fields[5].is_empty()).then(|| fields[5].to_owned())
    })
}

fn c_string(field: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| anyhow!("{field}: {text:?} holds a null byte"))
}

fn c_strings<'a>(field: &str, list: impl Iterator<Item = &'a String>) -> Result<Vec<CString>> {
    list.enumerate().map(|(i, text)| c_string(&format!("{field}[{i}]"), text)).collect()
}

fn environment<'a>(list: impl Iterator<Item = &'a String>) -> Result<Vec<CString>> {
    let mut all: Vec<CString> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, text) in list.enumerate() {
        let Some((name, _)) = text.split_once('=') else { bail!("process.env[{i}]: {text:?} is not NAME=value") };
        if name.is_empty() {
            bail!("process.env[{i}]: {text:?} has no name");
        }
        let value = c_string(&format!("process.env[{i}]"), text)?;
        match places.get(name) {
            Some(&place) => all[place] = value,
            None => {
                places.insert(name, all.len());
                all.push(value);
            }
        }
    }
    Ok(all)
}

fn oom_score_adj(value: Option<i32>) -> Result<Option<i32>> {
    match value {
        Some(v) if !(-1000..=1000).contains(&v) => bail!("process.oomScoreAdj: {v} is not within -1000 and 1000"),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_value_replaces_an_earlier_one_in_its_place() {
        let list: Vec<String> = ["A=1", "B=2", "A=3=4"].map(String::from).to_vec();
        let got = environment(list.iter()).unwrap();
        assert_eq!(got, [c"A=3=4".to_owned(), c"B=2".to_owned()]);
        for bad in ["NOVALUE", "=x", "A=\0"] {
            assert!(environment([bad.to_owned()].iter()).unwrap_err().to_string().contains("process.env[0]"), "{bad:?}");
        }
    }

    #[test]
    fn home_is_by_number_not_by_name() {
        let passwd = "1000:x:0:0:trap:/trap:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\nbad:x\n";
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/user"));
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/trap"));
        assert_eq!(home_in(passwd, 7), None);
    }
}
