//! Hooks: programs of the configuration that run at six moments of a container's life.
//!
//! The caller decides in whose namespaces they run: init calls [`run`] for createContainer and
//! startContainer, the runtime for the others. A hook's streams are memory files: nothing blocks
//! on them, however much it writes and whoever inherits them.

use crate::sys;
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Whence, lseek};
use oci_spec::runtime::{Hook, Hooks};
use std::ffi::{CString, OsStr};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The moments (runtime-spec, "POSIX-platform Hooks").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Like [`Kind::CreateRuntime`], and before it. Deprecated, still used.
    Prestart,
    /// In the runtime's namespaces, once the container's namespaces are there.
    CreateRuntime,
    /// In the container's namespaces, before its root is entered.
    CreateContainer,
    /// In the container, as the last thing before its process.
    StartContainer,
    /// In the runtime's namespaces, after the process was started.
    Poststart,
    /// In the runtime's namespaces, after the container was deleted. Its failures are warnings.
    Poststop,
}

impl Kind {
    /// All kinds, in the order of a container's life.
    pub const ALL: [Kind; 6] =
        [Kind::Prestart, Kind::CreateRuntime, Kind::CreateContainer, Kind::StartContainer, Kind::Poststart, Kind::Poststop];

    /// The kind's name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Prestart => "prestart",
            Kind::CreateRuntime => "createRuntime",
            Kind::CreateContainer => "createContainer",
            Kind::StartContainer => "startContainer",
            Kind::Poststart => "poststart",
            Kind::Poststop => "poststop",
        }
    }

    /// The `status` in the state that its hooks read.
    pub fn status(self) -> &'static str {
        match self {
            Kind::Prestart | Kind::CreateRuntime | Kind::CreateContainer => "creating",
            Kind::StartContainer => "created",
            Kind::Poststart => "running",
            Kind::Poststop => "stopped",
        }
    }

    /// The configuration's hooks of this kind.
    pub fn of(self, hooks: &Hooks) -> &[Hook] {
        let list = match self {
            #[allow(deprecated)]
            Kind::Prestart => hooks.prestart(),
            Kind::CreateRuntime => hooks.create_runtime(),
            Kind::CreateContainer => hooks.create_container(),
            Kind::StartContainer => hooks.start_container(),
            Kind::Poststart => hooks.poststart(),
            Kind::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs `hooks` in their order, each with `state` (the container's state as JSON) as its standard
/// input, and stops at the first that fails; poststop hooks run all, and their errors come together.
/// One that has no `env` of its own gets `inherited`.
///
/// The text of a failure is runc's: `error running KIND hook #N: exit status 1, stdout: …, stderr: …`.
pub fn run(kind: Kind, hooks: &[Hook], state: &[u8], inherited: &[CString]) -> Result<()> {
    let mut failed: Vec<String> = Vec::new();
    for (i, hook) in hooks.iter().enumerate() {
        match run_one(hook, state, inherited) {
            Err(e) => failed.push(format!("error running {kind} hook #{i}: {}", crate::log::message(&e))),
            Ok(()) => continue,
        }
        if kind != Kind::Poststop {
            break;
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(anyhow!(failed.join("; "))) }
}

/// Checks what can be decided from the configuration alone.
pub fn check(hooks: &Hooks) -> Result<()> {
    for kind in Kind::ALL {
        for (i, hook) in kind.of(hooks).iter().enumerate() {
            if !hook.path().is_absolute() {
                bail!("hooks.{kind}[{i}].path: {:?} is not an absolute path", hook.path());
            }
            if hook.timeout().is_some_and(|t| t <= 0) {
                bail!("hooks.{kind}[{i}].timeout: must be greater than zero (seconds)");
            }
        }
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &[u8], inherited: &[CString]) -> Result<()> {
    let [mut stdin, mut stdout, mut stderr] = [memory()?, memory()?, memory()?];
    stdin.write_all(state).and_then(|()| stdin.rewind()).context("write the hook's standard input")?;
    // Ignored, as some caller may have left it, the kernel would take the hook's status from us.
    sys::default_action(libc::SIGCHLD).context("SIGCHLD")?;
    let mut child = command(hook, inherited, [&stdin, &stdout, &stderr])?.spawn().with_context(|| hook.path().display().to_string())?;
    let timeout = hook.timeout().and_then(|t| u64::try_from(t).ok()).map(Duration::from_secs);
    let Some(status) = wait(&mut child, timeout)? else {
        bail!("hook ran past specified timeout of {:.1}s", timeout.unwrap_or_default().as_secs_f64());
    };
    if status.success() {
        return Ok(());
    }
    bail!("{}, stdout: {}, stderr: {}", describe(status), text(&mut stdout), text(&mut stderr))
}

/// Its arguments and nothing but its own environment, or the one it inherits.
fn command(hook: &Hook, inherited: &[CString], [stdin, stdout, stderr]: [&File; 3]) -> Result<Command> {
    let mut command = Command::new(hook.path());
    command.stdin(Stdio::from(stdin.try_clone()?)).stdout(Stdio::from(stdout.try_clone()?)).stderr(Stdio::from(stderr.try_clone()?));
    if let Some([name, rest @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    // An entry without '=' is no variable.
    match hook.env() {
        Some(env) => command.envs(env.iter().filter_map(|entry| entry.split_once('='))),
        None => command.envs(inherited.iter().filter_map(|entry| {
            let entry = entry.as_bytes();
            let (name, value) = entry.split_at(entry.iter().position(|&b| b == b'=')?);
            Some((OsStr::from_bytes(name), OsStr::from_bytes(&value[1..])))
        })),
    };
    Ok(command)
}

/// A file in memory: the hook's view of its own streams, ours of what it said.
fn memory() -> Result<File> {
    Ok(File::from(sys::memfd(c"hook").context("memfd_create")?))
}

/// The hook's end; `None` when it was still there after `timeout` and had to be killed.
fn wait(child: &mut Child, timeout: Option<Duration>) -> Result<Option<ExitStatus>> {
    let Some(timeout) = timeout else { return Ok(Some(child.wait().context("wait for the hook")?)) };
    let deadline = Instant::now() + timeout;
    let pidfd = sys::pidfd_open(child.id() as i32).ok();
    loop {
        if let Some(status) = child.try_wait().context("wait for the hook")? {
            return Ok(Some(status));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let _ = child.kill();
            child.wait().context("wait for the hook")?;
            return Ok(None);
        }
        pause(pidfd.as_ref(), left)?;
    }
}

/// Until the process ends or `left` has passed; without a pidfd (before Linux 5.3) 10 ms.
fn pause(pidfd: Option<&OwnedFd>, left: Duration) -> Result<()> {
    let step = if pidfd.is_some() { left } else { left.min(Duration::from_millis(10)) };
    let milliseconds = i32::try_from(step.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    let mut polled: Vec<PollFd<'_>> = pidfd.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut polled, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e).context("poll"),
    }
}

/// In the words of Go's programs, for the signals that end one: strsignal(3) would bring a translator along.
fn signal_text(signal: i32) -> String {
    let text = match signal {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGXCPU => "CPU time limit exceeded",
        libc::SIGSYS => "bad system call",
        other => return format!("signal {other}"),
    };
    text.to_owned()
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal: {}", signal_text(signal)),
        _ => status.to_string(),
    }
}

/// What a hook wrote, on one line and of bearable length: the error goes into a log.
fn text(file: &mut File) -> String {
    const LIMIT: u64 = 4096;
    let mut bytes = Vec::new();
    let _ = lseek(&*file, 0, Whence::SeekSet);
    let _ = file.take(LIMIT).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).trim_end().replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Hook {
        let mut hook = Hook::default();
        hook.set_path("/bin/sh".into());
        hook.set_args(Some(["sh", "-c", script].map(String::from).to_vec()));
        hook
    }

    fn error(kind: Kind, hooks: &[Hook]) -> String {
        run(kind, hooks, b"{\"id\":\"c\"}", &[]).unwrap_err().to_string()
    }

    #[test]
    fn state_arguments_and_environment_arrive() {
        let mut hook = sh("test \"$(cat)\" = '{\"id\":\"c\"}' && test \"$A\" = 1 && test -z \"$HOME\" && test \"$0\" = sh");
        hook.set_env(Some(vec!["A=1".into()]));
        run(Kind::CreateRuntime, &[hook], b"{\"id\":\"c\"}", &[]).unwrap();
    }

    #[test]
    fn a_failure_stops_the_list_and_tells_all() {
        let hooks = [sh("true"), sh("echo out; echo err >&2; exit 3"), sh("kill $PPID")];
        assert_eq!(error(Kind::CreateRuntime, &hooks), "error running createRuntime hook #1: exit status 3, stdout: out, stderr: err");
        assert_eq!(error(Kind::Prestart, &[sh("kill -9 $$")]), "error running prestart hook #0: signal: killed, stdout: , stderr: ");
        let mut missing = Hook::default();
        missing.set_path("/no/such/hook".into());
        let text = error(Kind::Poststart, &[missing]);
        assert!(text.starts_with("error running poststart hook #0: /no/such/hook: no such file or directory"), "{text}");
    }

    #[test]
    fn poststop_hooks_run_all() {
        let text = error(Kind::Poststop, &[sh("exit 1"), sh("true"), sh("exit 2")]);
        assert!(text.contains("hook #0: exit status 1") && text.contains("hook #2: exit status 2"), "{text}");
    }

    #[test]
    fn a_timeout_kills_and_inherited_streams_hang_nobody() {
        let mut hook = sh("sleep 100");
        hook.set_timeout(Some(1));
        assert_eq!(error(Kind::StartContainer, &[hook]), "error running startContainer hook #0: hook ran past specified timeout of 1.0s");
        let mut hook = sh("sleep 3 & head -c 300000 /dev/zero; exit 0");
        hook.set_timeout(Some(60));
        let before = Instant::now();
        run(Kind::Prestart, &[hook], b"", &[]).unwrap();
        assert!(before.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_configuration_is_checked_by_field() {
        let mut hooks = Hooks::default();
        let mut hook = sh("true");
        hook.set_timeout(Some(0));
        hooks.set_poststop(Some(vec![hook]));
        assert_eq!(check(&hooks).unwrap_err().to_string(), "hooks.poststop[0].timeout: must be greater than zero (seconds)");
        hooks.set_poststop(None);
        hooks.set_create_runtime(Some(vec![Hook::default()]));
        assert_eq!(check(&hooks).unwrap_err().to_string(), "hooks.createRuntime[0].path: \"\" is not an absolute path");
    }
}
