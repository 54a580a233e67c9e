//! `create`: a container whose process waits for `start`. `run` shares [`make`] with it.

use crate::bundle::Bundle;
use crate::cli::{Create, Globals};
use crate::container::{self, Container};
use crate::process::{self, Gate, Made, Plan};
use crate::supervise::Supervisor;
use crate::{exec_fifo, notify, sealed_exe, terminal};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Makes the container and returns when its process waits at the exec fifo.
pub fn run(globals: &Globals, args: &Create) -> Result<i32> {
    process::check_preserved(notify::listen_fds() + args.preserve_fds)?;
    sealed_exe::ensure()?;
    // Not freed, as in `make`: the process ends here.
    std::mem::forget(make(globals, args, true, None)?);
    Ok(0)
}

/// A container that was made.
pub(super) struct New {
    pub(super) container: Container,
    pub(super) plan: Plan,
    pub(super) made: Made,
    /// Of a container that has a socket for sd_notify and runs.
    pub(super) proxy: Option<notify::Proxy>,
}

/// Makes the container: validate, reserve, make, and on any error unmake all of it. With `gated` its
/// process waits for `start`; without a supervisor nobody stays to relay its terminal.
pub(super) fn make(globals: &Globals, args: &Create, gated: bool, supervisor: Option<&mut Supervisor>) -> Result<New> {
    container::check_id(&args.id)?;
    let dir = args.bundle.as_deref().unwrap_or(Path::new("."));
    // Never freed: once there is a child, a write to a page that it shares is a page fault more.
    let mut bundle = ManuallyDrop::new(Bundle::load(dir, args.config.as_deref())?);
    let notified = notify::wanted().is_some();
    if notified {
        notify::prepare(&mut bundle.spec, &globals.root.join(&args.id))?;
    }
    let listened = notify::listen_fds();
    notify::pass_listen_fds(&mut bundle.spec, listened);
    let mut plan = Plan::new(globals, args, &bundle).map_err(|e| taken(globals, &args.id).unwrap_or(e))?;
    plan.setup.first_closed += listened;
    terminal::check(plan.setup.terminal, supervisor.is_none(), args.console_socket.is_some())?;
    let console = args.console_socket.as_deref().map(terminal::connect).transpose().context("--console-socket")?;

    let record = container::Record { notify: notified, ..plan.record(&bundle) };
    let mut container = Container::reserve(&globals.root, record, &bundle.json)?;
    match fill(&mut container, &mut plan, args, gated, console, supervisor) {
        Ok((made, proxy)) => Ok(New { container, plan, made, proxy }),
        Err(error) => {
            if let Err(also) = super::delete::destroy(&container) {
                crate::log::warn(format!("while undoing it: {also:#}"));
            }
            Err(error.context("unable to start container process"))
        }
    }
}

/// A container of that id explains every other error: its cgroup is not empty, for instance.
fn taken(globals: &Globals, id: &str) -> Option<anyhow::Error> {
    globals.root.join(id).exists().then(|| container::Error::AlreadyExists.into())
}

fn fill(
    container: &mut Container,
    plan: &mut Plan,
    args: &Create,
    gated: bool,
    console: Option<OwnedFd>,
    supervisor: Option<&mut Supervisor>,
) -> Result<(Made, Option<notify::Proxy>)> {
    let mut proxy = None;
    if container.record.notify {
        notify::make_folder(&container.dir)?;
        // Before the process runs: a gated one runs only when 'start' opens it.
        proxy = if gated { None } else { notify::Proxy::open(&container.dir)? };
    }
    let fifo = gated.then(|| exec_fifo::create(&container.dir)).transpose()?;
    let mask = supervisor.as_ref().map(|s| s.mask());
    let gate = Gate { fifo, console, mask, record: container.record.clone() };
    let made = process::create(plan, container, &gate, supervisor)?;
    if let (Some(path), Some(pidfd)) = (&args.pidfd_socket, &made.pidfd) {
        send_pidfd(path, pidfd)?;
    }
    if let Some(path) = &args.pid_file {
        // Last of all: callers take its appearance as the sign that the container is there.
        write_pid_file(path, made.pid)?;
    }
    Ok((made, proxy))
}

/// Sends a process's pidfd to `--pidfd-socket`.
pub(super) fn send_pidfd(path: &Path, pidfd: &OwnedFd) -> Result<()> {
    let socket = terminal::connect(path).context("--pidfd-socket")?;
    terminal::send_fd(socket.as_fd(), pidfd.as_fd(), "pidfd")
}

/// Writes a pid file under a temporary name and renames it, so that a reader finds it whole.
pub(super) fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().with_context(|| format!("--pid-file: {} names no file", path.display()))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let temporary = path.with_file_name(hidden);
    // Never through a link that somebody has laid there.
    let write = || File::create_new(&temporary).and_then(|mut file| file.write_all(pid.to_string().as_bytes()));
    write()
        .or_else(|e| match e.kind() {
            ErrorKind::AlreadyExists => std::fs::remove_file(&temporary).and_then(|()| write()),
            _ => Err(e),
        })
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("--pid-file: write {}", path.display()))
}
