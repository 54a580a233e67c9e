//! A pod's namespaces, made by a short-lived child and pinned by bind mounts.
//!
//! ```text
//! monitor                          child                                pod's init (only with a PID namespace)
//!   │ fork                           │
//!   ├───────────────────────────────►│ unshare(user)
//!   │◄────────────────── "maps" ─────┤
//!   │ writes uid_map, gid_map        │
//!   ├───────── "mapped" ────────────►│ becomes root in there; unshare(the others): the user namespace owns them
//!   │                                │ host name, loopback, sysctls
//!   │                                │ fork ───────────────────────────►│ empty root, execve of this program
//!   │◄──────────── "ready PID" ──────┤◄──────── end of file ────────────┤ sleeps for ever
//!   │ bind mounts of /proc/CHILD/ns  │
//!   ├───────── end of file ─────────►│ ends; the init becomes the monitor's child
//! ```
//!
//! An error comes instead of any answer, as text. What is there after an error the daemon takes down, by the paths.

use crate::pod_init;
use crate::sys;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rrun_monitor::messages::{MakeSandbox, SandboxMade};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};
use rustix::thread::UnshareFlags;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Makes all that the request has a path for.
pub(crate) fn make(request: &MakeSandbox) -> Result<SandboxMade> {
    let namespaces = Namespaces::of(request);
    for (_, path) in namespaces.pins() {
        ensure!(Path::new(path).is_absolute(), "pin a namespace: not an absolute path: {path:?}");
    }
    let sysctls = request.sysctls.iter().map(|s| sysctl_path(s)).collect::<Result<Vec<_>>>()?;
    let program = if request.pid_path.is_empty() { None } else { Some(pod_init::Program::open()?) };
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context("socketpair")?;
    let Some(child) = sys::fork().context("fork")? else {
        drop(ours);
        let done = in_child(request, &namespaces, &sysctls, program.as_ref(), &theirs);
        let _ = tell(&theirs, &done.map_or_else(|e| format!("error {e:#}"), |init| format!("ready {init}")));
        // Until the pins are there.
        let _ = hear(&theirs);
        sys::exit_now(0);
    };
    drop(theirs);
    let made = serve(request, &namespaces, child, &ours);
    drop(ours);
    let _ = waitpid(Some(child), WaitOptions::empty());
    made
}

/// Kills the init of the PID namespace and with it all that lives there; its descriptor, which tells when it has
/// ended: not before all of that has been reaped, by us too. None if it is gone.
pub(crate) fn kill_init(init: &SandboxMade) -> Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(init.init_pid as i32) else { return Ok(None) };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
    if crate::process::start_time(init.init_pid) != init.init_start_time {
        return Ok(None);
    }
    pidfd_send_signal(&pidfd, Signal::KILL).context("kill the init of the pod's PID namespace")?;
    Ok(Some(pidfd))
}

/// The namespaces that a request asks for, in the words of /proc/PID/ns.
struct Namespaces<'a>(Vec<(&'static str, UnshareFlags, &'a str)>);

impl Namespaces<'_> {
    fn of(request: &MakeSandbox) -> Namespaces<'_> {
        let all = [
            ("user", UnshareFlags::NEWUSER, request.user_path.as_str()),
            ("ipc", UnshareFlags::NEWIPC, &request.ipc_path),
            ("uts", UnshareFlags::NEWUTS, &request.uts_path),
            ("net", UnshareFlags::NEWNET, &request.net_path),
            ("pid", UnshareFlags::NEWPID, &request.pid_path),
        ];
        Namespaces(all.into_iter().filter(|(.., path)| !path.is_empty()).collect())
    }

    fn has(&self, flag: UnshareFlags) -> bool {
        self.0.iter().any(|(_, f, _)| *f == flag)
    }

    /// All but the user namespace.
    fn others(&self) -> UnshareFlags {
        self.0.iter().map(|(_, f, _)| *f).filter(|f| *f != UnshareFlags::NEWUSER).collect()
    }

    fn pins(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(kind, _, path)| (*kind, *path))
    }
}

/// The parent's side of the conversation.
fn serve(request: &MakeSandbox, namespaces: &Namespaces<'_>, child: Pid, socket: &OwnedFd) -> Result<SandboxMade> {
    let mut said = hear(socket)?;
    if said == "maps" {
        for (file, lines) in [("uid_map", &request.uid_maps), ("gid_map", &request.gid_maps)] {
            let path = format!("/proc/{}/{file}", child.as_raw_nonzero());
            fs::write(&path, lines.join("\n") + "\n").with_context(|| format!("write {lines:?} to {file} of the user namespace"))?;
        }
        tell(socket, "mapped")?;
        said = hear(socket)?;
    }
    let init_pid = match said.split_once(' ') {
        Some(("ready", init)) => init.parse().context("the pod's init")?,
        Some(("error", text)) => bail!("{text}"),
        _ => bail!("make the pod's namespaces: the process that makes them died"),
    };
    let pinned = namespaces.pins().try_for_each(|(kind, path)| {
        let file = if kind == "pid" { format!("/proc/{init_pid}/ns/pid") } else { format!("/proc/{}/ns/{kind}", child.as_raw_nonzero()) };
        pin(&file, Path::new(path))
    });
    let made = SandboxMade { init_pid, init_start_time: if init_pid == 0 { 0 } else { crate::process::start_time(init_pid) } };
    if let Err(e) = pinned {
        let _ = kill_init(&made);
        return Err(e);
    }
    Ok(made)
}

fn pin(file: &str, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("pin a namespace: make {}", folder.display()))?;
    }
    let options = fs::File::options().create(true).append(true).open(path);
    options.with_context(|| format!("pin a namespace: make {}", path.display()))?;
    rustix::mount::mount_bind(file, path).with_context(|| format!("pin a namespace: bind {file} to {}", path.display()))
}

/// The child: everything that has to happen inside. Answers the number of the pod's init, or 0.
fn in_child(
    request: &MakeSandbox,
    namespaces: &Namespaces<'_>,
    sysctls: &[(String, &str)],
    program: Option<&pod_init::Program>,
    socket: &OwnedFd,
) -> Result<u32> {
    let unshare = |flags: UnshareFlags| sys::unshare(flags).with_context(|| format!("unshare({flags:?})"));
    if namespaces.has(UnshareFlags::NEWUSER) {
        unshare(UnshareFlags::NEWUSER)?;
        tell(socket, "maps")?;
        ensure!(hear(socket)? == "mapped", "the monitor died");
        become_root()?;
    }
    unshare(namespaces.others())?;
    if namespaces.has(UnshareFlags::NEWUTS) && !request.hostname.is_empty() {
        rustix::system::sethostname(request.hostname.as_bytes()).with_context(|| format!("hostname {:?}", request.hostname))?;
    }
    if namespaces.has(UnshareFlags::NEWNET) {
        loopback_up().context("set the loopback device up")?;
    }
    for (path, value) in sysctls {
        fs::write(path, value).with_context(|| format!("sysctls: write {value:?} to {path}"))?;
    }
    program.map_or(Ok(0), |program| program.start())
}

/// Files that the others write and own are root's, in the new user namespace.
fn become_root() -> Result<()> {
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    set_thread_res_gid(gid, gid, gid).context("setresgid(0) in the user namespace (gid_maps must map 0)")?;
    // setgroups may be denied there.
    let _ = set_thread_groups(&[]);
    set_thread_res_uid(uid, uid, uid).context("setresuid(0) in the user namespace (uid_maps must map 0)")
}

/// RTM_NEWLINK for interface 1 with IFF_UP, answered with an error code.
fn loopback_up() -> Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).context("netlink socket")?;
    let mut request = [0_u8; 32];
    // nlmsghdr: length, type RTM_NEWLINK, flags REQUEST|ACK, sequence, port; ifinfomsg: family, type, index, flags, change.
    request[0..4].copy_from_slice(&32_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&16_u16.to_ne_bytes());
    request[6..8].copy_from_slice(&5_u16.to_ne_bytes());
    request[8..12].copy_from_slice(&1_u32.to_ne_bytes());
    request[20..24].copy_from_slice(&1_i32.to_ne_bytes());
    request[24..28].copy_from_slice(&1_u32.to_ne_bytes());
    request[28..32].copy_from_slice(&1_u32.to_ne_bytes());
    rustix::net::send(&socket, &request, SendFlags::empty()).context("netlink request")?;
    let mut answer = [0_u8; 1024];
    let (length, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).context("netlink answer")?;
    let code = answer[..length].get(16..20).and_then(|c| c.first_chunk()).map(|c| i32::from_ne_bytes(*c));
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(std::io::Error::from_raw_os_error(-code)).context("netlink"),
        None => bail!("netlink: an answer of {length} bytes"),
    }
}

/// The file of "net.ipv4.ip_forward=1", and the value. With `/` as separator dots are part of a name.
fn sysctl_path(setting: &str) -> Result<(String, &str)> {
    let (name, value) = setting.split_once('=').ok_or_else(|| anyhow!("sysctls: {setting:?} has no value"))?;
    let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let path = if slashes { name.to_owned() } else { name.split('.').map(|part| part.replace('/', ".")).collect::<Vec<_>>().join("/") };
    ensure!(path.split('/').all(|part| !part.is_empty() && part != "." && part != ".."), "sysctls: {name:?} is not a name");
    Ok((format!("/proc/sys/{path}"), value))
}

fn tell(socket: &OwnedFd, text: &str) -> Result<()> {
    rustix::net::send(socket, text.as_bytes(), SendFlags::NOSIGNAL).map(drop).context("make the pod's namespaces: send")
}

/// Empty when the other side is gone.
fn hear(socket: &OwnedFd) -> Result<String> {
    let mut buffer = [0; 4096];
    let (length, _) =
        rustix::net::recv(socket.as_fd(), &mut buffer[..], RecvFlags::empty()).context("make the pod's namespaces: receive")?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::sysctl_path;

    #[test]
    fn sysctl_names() {
        let path = |s: &str| sysctl_path(s).map(|(p, v)| format!("{p} {v}"));
        assert_eq!(path("net.ipv4.ip_forward=1").unwrap(), "/proc/sys/net/ipv4/ip_forward 1");
        assert_eq!(path("net/ipv4/conf/eth0.1/forwarding=0").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/forwarding 0");
        assert_eq!(path("net.ipv4.conf.eth0/1.forwarding=0").unwrap(), "/proc/sys/net/ipv4/conf/eth0.1/forwarding 0");
        assert_eq!(path("net.ipv4.ping_group_range=0 5").unwrap(), "/proc/sys/net/ipv4/ping_group_range 0 5");
        for bad in ["x", "..=1", "a/../b=1", "net..x=1", "=1", "/etc/passwd=1"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
