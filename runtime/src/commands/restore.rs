//! `restore`: makes a container whose processes CRIU brings back from a checkpoint.

use super::checkpoint::{self, Folders};
use super::create;
use crate::bundle::Bundle;
use crate::cgroups::{Cgroup, Entry, View};
use crate::cli::{Globals, Restore};
use crate::container::{self, Container};
use crate::criu::confined::Confines;
use crate::criu::{self, CgroupMode, Criu, External, Notification, Options, Request};
use crate::namespaces::{NEWCGROUP, NEWNET, NEWNS, NEWPID, NEWTIME, NEWUSER};
use crate::process::Plan;
use crate::supervise::Supervisor;
use crate::{hooks, json, rootfs, sys, terminal};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Restores it; attached, the answer is its process's status.
pub fn run(globals: &Globals, args: &Restore) -> Result<i32> {
    container::check_id(&args.create.id)?;
    let dir = args.create.bundle.as_deref().unwrap_or(Path::new("."));
    let bundle = Bundle::load(dir, None)?;
    let plan = Plan::new(globals, &args.create, &bundle)?;
    terminal::check(plan.setup.terminal, args.detach, args.create.console_socket.is_some())?;
    let folders = Folders::open(&args.criu)?;
    let console = args.create.console_socket.as_deref().map(terminal::connect).transpose().context("--console-socket")?;
    let mut supervisor = if args.detach { None } else { Some(Supervisor::new(!args.no_subreaper)?) };

    let container = Container::reserve(&globals.root, plan.record(&bundle), &bundle.json)?;
    let mut work = Work { args, bundle: &bundle, plan: &plan, container, folders, console, checks: Vec::new(), hierarchies: Vec::new() };
    if let Err(error) = work.restore(&mut supervisor) {
        if let Err(also) = super::delete::destroy(&work.container) {
            crate::log::warn(format!("while undoing it: {also:#}"));
        }
        return Err(error);
    }
    let Some(supervisor) = supervisor else { return Ok(0) };
    let status = supervisor.run(work.container.record.pid);
    super::delete::destroy(&work.container)?;
    status
}

struct Work<'a> {
    args: &'a Restore,
    bundle: &'a Bundle,
    plan: &'a Plan,
    container: Container,
    folders: Folders,
    console: Option<OwnedFd>,
    /// What must be where, once everything is back: destinations and sources.
    checks: Vec<(PathBuf, PathBuf)>,
    /// The sources that need not be there: other runtimes show fewer hierarchies of cgroups.
    hierarchies: Vec<PathBuf>,
}

impl Work<'_> {
    fn restore(&mut self, supervisor: &mut Option<Supervisor>) -> Result<()> {
        let Plan { cgroup, resources, annotations, .. } = self.plan;
        let entry = cgroup.create(resources.as_ref(), annotations)?;
        let mounts = self.bundle.spec.mounts().as_deref().unwrap_or_default();
        rootfs::make_destinations(&self.container.record.rootfs, mounts, &self.bundle.dir)?;

        let mut inherited = Vec::new();
        let mut options = self.options(&mut inherited)?;
        // Where the root file system is bound for CRIU; the mount ends with the last process there.
        let place = std::path::absolute(&self.container.dir)?.join(container::RESTORE_ROOT);
        std::fs::create_dir(&place).with_context(|| place.display().to_string())?;
        options.root.clone_from(&place);
        let home = rootfs::Home::leave()?;
        // CRIU mounts in its folders, which must therefore be of its own mount namespace.
        let folders = Folders::open(&self.args.criu);
        let started = rootfs::bind_root(&self.container.record.rootfs, &place).and_then(|()| Criu::start(&inherited, true));
        home.back()?;
        let folders = folders?;
        folders.lend(&mut options);
        let served = started.and_then(|criu| {
            self.enter(entry, criu.pid())?;
            options.cgroup_roots = memberships(criu.pid())?;
            criu.serve(Request::Restore, &options, |said| self.answer(said, supervisor))
        });
        let _ = std::fs::remove_dir(&place);
        served.map_err(|failure| criu::explained(failure, &self.folders.log_path, options.log_file))?;
        if self.container.record.pid == 0 {
            bail!("criu restored no process");
        }
        if let Some(path) = &self.args.create.pid_file {
            create::write_pid_file(path, self.container.record.pid)?;
        }
        Ok(())
    }

    /// CRIU itself goes into the container's cgroups; what it restores follows.
    fn enter(&self, entry: Entry, pid: i32) -> Result<()> {
        match entry.by_write()? {
            Entry::Write(files) => files
                .iter()
                .try_for_each(|file| sys::write(file.as_fd(), pid.to_string().as_bytes()).map(drop).context("write to cgroup.procs")),
            Entry::Adopt => self.plan.cgroup.adopt(pid, self.plan.resources.as_ref(), &self.plan.annotations),
            Entry::None | Entry::Into(_) => Ok(()),
        }
    }

    fn answer(&mut self, said: Notification, supervisor: &mut Option<Supervisor>) -> Result<()> {
        match said.name.as_str() {
            "setup-namespaces" => {
                self.container.record.run_hooks(hooks::Kind::Prestart, &self.plan.hooks, said.pid, &[])?;
                self.container.record.run_hooks(hooks::Kind::CreateRuntime, &self.plan.hooks, said.pid, &[])
            }
            "orphan-pts-master" => {
                let master = said.fd.context("orphan-pts-master: no descriptor")?;
                match (&self.console, supervisor) {
                    (Some(socket), _) => terminal::send_master(socket.as_fd(), master.as_fd()),
                    (None, Some(supervisor)) => supervisor.attach(master),
                    (None, None) => bail!("a terminal that nobody takes (see --console-socket)"),
                }
            }
            "post-restore" => self.restored(said.pid),
            "pre-resume" => self.confine(),
            _ => Ok(()),
        }
    }

    /// Everything is back, and nothing runs yet.
    fn restored(&mut self, pid: i32) -> Result<()> {
        let record = &mut self.container.record;
        record.pid = pid;
        record.start_time = container::start_time(pid).context("the restored process is gone")?;
        if !criu::same_time_namespace(pid) {
            record.namespaces |= NEWTIME;
        }
        self.container.save()?;
        let root = rootfs::of_process(pid)?;
        for (i, (destination, source)) in self.checks.iter().enumerate() {
            let covered = self.checks[i + 1..].iter().any(|(later, _)| destination.starts_with(later));
            let spared = self.hierarchies.contains(source) && rootfs::resolve(root.as_fd(), destination)?.is_none();
            if !covered && !spared {
                rootfs::check_is(root.as_fd(), destination, source)?;
            }
        }
        Ok(())
    }

    /// Everything is as it will be, credentials included, and nothing runs yet.
    fn confine(&self) -> Result<()> {
        let pid = self.container.record.pid;
        let Plan { setup, namespaces, .. } = self.plan;
        let confines = Confines {
            setup,
            namespaces,
            labelled: self.args.lsm_profile.is_some(),
            without_cgroups: self.args.criu.cgroup_mode == CgroupMode::Ignore,
        };
        let confined = confines.check(pid).and_then(|()| match confines.may_mount() || !namespaces.has(NEWNS) {
            true => Ok(()),
            false => rootfs::confine(pid, self.bundle, &self.container.record.rootfs, &devices(&self.bundle.spec)),
        });
        if confined.is_err() {
            // Without CRIU they would run.
            criu::confined::kill(pid);
        }
        confined
    }

    fn options(&mut self, inherited: &mut Vec<OwnedFd>) -> Result<Options> {
        let spec = &self.bundle.spec;
        let record = &self.container.record;
        let annotation = record.annotations.get("org.criu.config").map(String::as_str);
        let mut options = Options {
            log_file: Options::log_of(Request::Restore),
            restore: true,
            tcp_close: self.args.tcp_close,
            lsm_profile: self.args.lsm_profile.clone(),
            lsm_mount_context: self.args.lsm_mount_context.clone(),
            ..checkpoint::common(&self.args.criu, annotation)
        };
        namespaces(spec, &mut options, inherited)?;
        let views = bound_cgroups(record.namespaces, &self.plan.cgroup);
        self.hierarchies = views.iter().flat_map(|view| [view.host_dir.clone(), view.mountpoint.clone()]).collect();
        for (destination, source) in criu::externals(spec, &self.bundle.dir, &views)? {
            let key = destination.to_string_lossy().into_owned();
            options.mounts.push(External { key, value: source.clone() });
            self.checks.push((destination, source));
        }
        options.mounts.extend(devices(spec).into_iter().map(|d| External { key: d.to_string_lossy().into_owned(), value: d }));
        options.inherit.extend(self.streams()?);
        Ok(options)
    }

    /// The standard streams that the checkpoint's have become.
    fn streams(&self) -> Result<Vec<(String, i32)>> {
        let path = self.folders.image_path.join(criu::DESCRIPTORS);
        let bytes = sys::read_file(&path, 512).with_context(|| format!("{}: not a checkpoint of a container", path.display()))?;
        let (list, _): (Vec<String>, _) = json::parse(&bytes).with_context(|| path.display().to_string())?;
        Ok(list.into_iter().zip(0..3).filter(|(name, _)| name.starts_with("pipe:") || name.starts_with("file[")).collect())
    }
}

/// Namespaces of the host: CRIU gets those that were external at the checkpoint opened, and joins the others.
fn namespaces(spec: &Spec, options: &mut Options, inherited: &mut Vec<OwnedFd>) -> Result<()> {
    for namespace in spec.linux().as_ref().and_then(|l| l.namespaces().as_ref()).into_iter().flatten() {
        let kind = namespace.typ() as u64;
        let Some(path) = joined(spec, kind) else { continue };
        if let Some((_, _, key)) = criu::EXTERNAL_NAMESPACES.into_iter().find(|(k, ..)| *k == kind) {
            let fd: OwnedFd = std::fs::File::open(&path).with_context(|| path.display().to_string())?.into();
            options.inherit.push((key.to_owned(), fd.as_raw_fd()));
            inherited.push(fd);
            continue;
        }
        let name = match kind {
            NEWUSER => "user",
            NEWNET | NEWPID => continue,
            NEWTIME => "time",
            NEWCGROUP => bail!("linux.namespaces: CRIU cannot restore into a cgroup namespace that is there"),
            k if k == crate::namespaces::NEWUTS => "uts",
            k if k == crate::namespaces::NEWNS => "mnt",
            _ => "ipc",
        };
        options.join.push((name, path));
    }
    Ok(())
}

/// The path of a namespace that the configuration joins.
pub(super) fn joined(spec: &Spec, kind: u64) -> Option<PathBuf> {
    let list = spec.linux().as_ref()?.namespaces().as_ref()?;
    list.iter().find(|n| n.typ() as u64 == kind)?.path().clone().filter(|p| !p.as_os_str().is_empty())
}

/// The cgroups that are bind mounts in the container: without a cgroup namespace all that it sees.
pub(super) fn bound_cgroups(namespaces: u64, cgroup: &Cgroup) -> Vec<View> {
    let views = cgroup.views();
    // On v1 every hierarchy is a bind mount of the container's own, with a namespace or without.
    if namespaces & NEWCGROUP != 0 && views.iter().all(|v| v.v2) { Vec::new() } else { views }
}

/// The devices that a container in a user namespace has by bind mounts; the first default one hides masked files, too.
pub(super) fn devices(spec: &Spec) -> Vec<PathBuf> {
    let list = spec.linux().as_ref().and_then(|l| l.devices().clone()).unwrap_or_default();
    let default = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"].map(PathBuf::from);
    list.iter().map(|d| rootfs::clean(d.path())).chain(default).collect()
}

/// The cgroups of a process by controllers, as CRIU names them.
fn memberships(pid: i32) -> Result<Vec<(String, String)>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).context(path)?;
    let parts = text.lines().filter_map(|l| l.split_once(':')?.1.split_once(':'));
    Ok(parts.map(|(controllers, path)| (controllers.to_owned(), path.to_owned())).collect())
}
