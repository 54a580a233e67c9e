//! `exec`: a further process in a running container.

use super::create::{send_pidfd, write_pid_file};
use crate::cli::{self, Globals};
use crate::container::{Container, Status};
use crate::credentials;
use crate::namespaces::NEWUSER;
use crate::process::{self, Exec, Gate, Setup};
use crate::supervise::Supervisor;
use crate::{bundle, rootfs, sealed_exe, sys, terminal};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use oci_spec::runtime::{Process, Spec};
use std::ffi::CString;
use std::path::{Path, PathBuf};

/// Runs the process; attached, the answer is its status (128 + n for signal n).
pub fn run(globals: &Globals, args: &cli::Exec) -> Result<i32> {
    sealed_exe::ensure()?;
    // The path may be that of a descriptor (`<(...)`), which is closed next.
    let process = args.process.as_deref().map(read_process).transpose()?;
    process::check_preserved(args.preserve_fds)?;
    let container = Container::load(&globals.root, &args.id)?;
    match container.status()? {
        Status::Stopped | Status::Creating => bail!("cannot exec in a stopped container"),
        Status::Paused if !args.ignore_paused => bail!("cannot exec in a paused container (use --ignore-paused to override)"),
        _ => (),
    }
    let spec = container.config()?;
    let setup = setup(&container, &spec, args, process)?;
    terminal::check(setup.terminal, args.detach, args.console_socket.is_some())?;
    let console = args.console_socket.as_deref().map(terminal::connect).transpose().context("--console-socket")?;
    let pidfd = match container.pidfd() {
        // It has ended since; its number may be another's by now.
        Ok(None) => bail!("cannot exec in a stopped container"),
        Err(e) if e.downcast_ref() == Some(&Errno::ENOSYS) => None,
        other => other?,
    };
    let mut exec = Exec {
        setup,
        pid: container.record.pid,
        // None before Linux 5.3.
        pidfd,
        kinds: container.record.namespaces,
        cgroup: container.cgroup()?,
        sub_cgroups: args.cgroup.clone(),
        privileged: sys::started_as() == 0,
        home: None,
    };

    // Looking for the way home and entering the container change the working directory.
    let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
    let (pid_file, pidfd_socket) = (absolute(&args.pid_file)?, absolute(&args.pidfd_socket)?);
    if exec.privileged && exec.kinds & NEWUSER == 0 {
        exec.home = rootfs::way_home()?;
    }
    exec.setup.born_inside = exec.parent_enters();

    if let Some(groups) = &container.record.intel_rdt {
        groups.enter()?;
    }
    let entry = exec.cgroup.entry(&args.cgroup, container.record.pid)?;
    let mut supervisor = if args.detach { None } else { Some(Supervisor::new(false)?) };
    let gate = Gate { fifo: None, console, mask: supervisor.as_ref().map(Supervisor::mask), record: container.record.clone() };
    let made = process::run_exec(&exec, entry, &gate, supervisor.as_mut()).context("unable to start container process")?;
    if let (Some(path), Some(pidfd)) = (&pidfd_socket, &made.pidfd) {
        send_pidfd(path, pidfd)?;
    }
    if let Some(path) = &pid_file {
        write_pid_file(path, made.pid)?;
    }
    let Some(supervisor) = supervisor else { return Ok(0) };
    drop((exec, spec, gate));
    supervisor.run(made.pid)
}

/// What `--process` names.
fn read_process(path: &Path) -> Result<Process> {
    let read = || bundle::parse(&std::fs::read(path)?);
    read().with_context(|| format!("--process: {}", path.display()))
}

/// The process: the whole one of `--process`, or the container's own, changed by the flags.
fn setup(container: &Container, spec: &Spec, args: &cli::Exec, process: Option<Process>) -> Result<Setup> {
    let process = match process {
        Some(mut process) => {
            if process.capabilities().is_none() {
                process.set_capabilities(spec.process().as_ref().and_then(|p| p.capabilities().clone()));
            }
            process
        }
        None => from_flags(spec, args)?,
    };
    bundle::check_process(&process)?;
    let linux = spec.linux().as_ref();
    let mut setup = Setup::new(&process, linux, false)?;
    // Ids and groups as the container's user namespace has them: the kernel refuses what it must.
    setup.credentials.keep_groups = container.record.single_group;
    for name in &args.cap {
        setup.credentials.caps.add(credentials::capability_mask(name).context("--cap")?);
    }
    setup.keyring = Some(CString::new(format!("_ses.{}", container.record.id))?);
    setup.first_closed = 3 + args.preserve_fds;
    setup.user_namespace = container.record.namespaces & NEWUSER != 0;
    Ok(setup)
}

fn from_flags(spec: &Spec, args: &cli::Exec) -> Result<Process> {
    let mut process = spec.process().clone().context("process: missing in the container's configuration")?;
    process.set_args(Some(args.args.clone()));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    process.set_terminal(Some(args.tty));
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(profile) = &args.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(no_new_privs) = args.no_new_privs {
        process.set_no_new_privileges(Some(no_new_privs));
    }
    let mut user = process.user().clone();
    if let Some((uid, gid)) = args.user {
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
    }
    if !args.additional_gids.is_empty() {
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&args.additional_gids);
        user.set_additional_gids(Some(groups));
    }
    process.set_user(user);
    Ok(process)
}
