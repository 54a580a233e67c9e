//! What the daemon asks about containers, and what comes of it when a runtime has ended.

use crate::clock::{monotonic_ms, now};
use crate::container::{Container, ContainerEnds, borrowed};
use crate::log::LogFile;
use crate::oom::Oom;
use crate::process;
use crate::runtime::{Failure, Job, Work};
use crate::server::{ExecProcess, Refusal, Server, kill_group};
use crate::sys;
use anyhow::{Context, Result, anyhow};
use rrun_monitor::exit_record;
use rrun_monitor::messages as m;
use rrun_monitor::wire::Role;
use rustix::event::epoll::EventFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

type Done = Result<(), Refusal>;

fn find<'a>(containers: &'a mut [Container], id: &str) -> Result<&'a mut Container, Refusal> {
    containers.iter_mut().find(|c| c.create.id == id).ok_or_else(|| Refusal::not_found(id))
}

impl Server {
    /// `work`: [`Work::Create`] or [`Work::Restore`].
    pub(crate) fn create(&mut self, request: u32, create: m::Create, work: Work) -> Done {
        if find(&mut self.containers, &create.id).is_ok() {
            return Err(anyhow!("container {}: the pod's monitor has it already", create.id).into());
        }
        let (key, timeout) = (self.new_key(), create.timeout_ms);
        let (container, ends) = Container::new(key, create)?;
        let tty = container.create.tty;
        let watched = container.watch(&self.poller).context("epoll_ctl");
        let job = watched.and_then(|()| container.execute(&mut self.executor, key, work, None, tty, ends));
        let job = job.inspect_err(|_| {
            container.unwatch(&self.poller);
            container.remove_files();
        })?;
        self.containers.push(container);
        self.begin(request, timeout, job);
        Ok(())
    }

    pub(crate) fn start(&mut self, request: u32, start: &m::Start) -> Done {
        let key = self.new_key();
        let container = find(&mut self.containers, &start.id)?;
        let job = container.execute(&mut self.executor, key, Work::Start, None, false, ContainerEnds::default())?;
        self.begin(request, start.timeout_ms, job);
        Ok(())
    }

    pub(crate) fn exec(&mut self, request: u32, exec: &m::Exec, ends: ContainerEnds) -> Done {
        let key = self.new_key();
        let container = find(&mut self.containers, &exec.id)?;
        if container.has_ended() {
            return Err(anyhow!("container {} has ended", exec.id).into());
        }
        let work = Work::Exec { dies_with_connection: exec.dies_with_connection, killed: None };
        let job = container.execute(&mut self.executor, key, work, Some(&exec.process), exec.tty, ends)?;
        self.begin(request, exec.timeout_ms, job);
        Ok(())
    }

    fn begin(&mut self, request: u32, timeout_ms: u64, job: Job) {
        let deadline = (timeout_ms > 0).then(|| monotonic_ms().saturating_add(timeout_ms));
        self.jobs.push(Job { request, connection: self.connection(), deadline, ..job });
    }

    /// What was asked for is there, or is not.
    pub(crate) fn runtime_ended(&mut self, mut job: Job, code: u32) {
        let result = job.finish(code);
        let at = self.containers.iter().position(|c| c.key == job.container);
        match (result, at) {
            (Err(failure), at) => {
                if let (Some(at), Work::Create | Work::Restore(_)) = (at, &job.work) {
                    self.forget(at);
                }
                self.failed(&job, failure);
            }
            // Removed meanwhile.
            (Ok(_), None) => self.failed(&job, Failure { text: "the container is gone".into(), code: 0 }),
            (Ok((pid, pty)), Some(at)) => match job.work {
                Work::Create => self.created(&job, at, pid, pty),
                Work::Restore(_) => {
                    self.containers[at].started = true;
                    self.created(&job, at, pid, pty);
                }
                Work::Start => {
                    self.containers[at].started = true;
                    self.answer_job(&job, &m::Done {}, &[]);
                }
                Work::Exec { dies_with_connection, killed } => self.exec_started(&job, pid, pty, dies_with_connection, killed),
            },
        }
    }

    fn failed(&mut self, job: &Job, failure: Failure) {
        let failed = if job.timed_out {
            m::Failed { text: "the OCI runtime took longer than the request allows".into(), timed_out: true, ..m::Failed::default() }
        } else {
            m::Failed { text: failure.text, code: failure.code, ..m::Failed::default() }
        };
        self.answer_job(job, &failed, &[]);
    }

    fn created(&mut self, job: &Job, at: usize, pid: u32, pty: Option<OwnedFd>) {
        let container = &mut self.containers[at];
        container.born(pid);
        if container.create.tty {
            container.stdout.fd = pty;
            let _ = container.watch(&self.poller);
        }
        self.answer_created(job.request, job.connection, at);
        self.claim(pid);
    }

    fn answer_created(&mut self, request: u32, connection: u32, at: usize) {
        let Some(daemon) = self.daemon.as_ref().filter(|d| d.key == connection) else { return };
        let container = &self.containers[at];
        let created = m::Created { pid: container.pid, start_time: container.start_time };
        if crate::server::send(daemon, request, &created, &kept(container), &mut Vec::new()).is_err() {
            self.disconnect();
        }
    }

    fn exec_started(&mut self, job: &Job, pid: u32, pty: Option<OwnedFd>, dies_with_connection: bool, killed: Option<u32>) {
        let (request, connection) = (job.request, job.connection);
        if let Some(signal) = killed {
            kill_group(pid, signal);
        }
        let fds: Vec<(Role, BorrowedFd<'_>)> = pty.iter().map(|pty| (Role::Pty, pty.as_fd())).collect();
        self.answer_job(job, &m::ExecStarted { pid }, &fds);
        let (container, deadline) = (job.container, job.deadline);
        self.execs.push(ExecProcess { request, connection, container, pid, deadline, timed_out: false, dies_with_connection });
        self.claim(pid);
    }

    fn answer_job<M: rrun_monitor::wire::Message>(&mut self, job: &Job, message: &M, fds: &[(Role, BorrowedFd<'_>)]) {
        if self.connection() == job.connection {
            self.answer(job.request, message, fds);
        }
    }

    pub(crate) fn kill_exec(&mut self, kill: &m::KillExec) {
        let connection = self.connection();
        if let Some(exec) = self.execs.iter().find(|e| e.request == kill.exec && e.connection == connection) {
            kill_group(exec.pid, kill.signal);
        }
        for job in self.jobs.iter_mut().filter(|j| j.request == kill.exec && j.connection == connection) {
            if let Work::Exec { killed, .. } = &mut job.work {
                *killed = Some(kill.signal);
            }
        }
    }

    /// The last words, the record, then the news. The record is written by a child: a disk may take its time over a
    /// sync, and other containers write meanwhile.
    pub(crate) fn container_ended(&mut self, at: usize, code: u32, signal: u32, unknown: bool) {
        let finished_at = now();
        let container = &mut self.containers[at];
        container.last_words(&mut self.buffers, &self.poller);
        let oom = container.oom.struck(signal == 9);
        container.oom = Oom::default();
        if let (Some(pidfd), false) = (&container.pidfd, container.child) {
            self.poller.remove(pidfd);
        }
        let exited = m::Exited { id: container.create.id.clone(), code, signal, oom, finished_at, unknown };
        let path = Path::new(&container.create.exit_path);
        match sys::fork() {
            Ok(None) => sys::exit_now(exit_record::write(path, &exited).map_or(1, |()| 0)),
            Ok(Some(writer)) => container.recording = Some((writer.as_raw_nonzero().get() as u32, exited)),
            Err(_) => {
                let _ = exit_record::write(path, &exited);
                self.recorded(at, exited);
            }
        }
    }

    /// Whether the process is one that wrote a record.
    pub(crate) fn writer_ended(&mut self, pid: u32) -> bool {
        let Some(at) = self.containers.iter().position(|c| c.recording.as_ref().is_some_and(|(writer, _)| *writer == pid)) else {
            return false;
        };
        if let Some((_, exited)) = self.containers[at].recording.take() {
            self.recorded(at, exited);
        }
        true
    }

    /// A record that cannot be written is told all the same: the daemon has records of its own.
    fn recorded(&mut self, at: usize, exited: m::Exited) {
        self.containers[at].exited = Some(exited.clone());
        self.tell(&exited);
    }

    pub(crate) fn attach(&mut self, request: u32, attach: &m::Attach) -> Done {
        let key = self.new_key();
        let at = self.containers.iter().position(|c| c.create.id == attach.id).ok_or_else(|| Refusal::not_found(&attach.id))?;
        let container = &mut self.containers[at];
        if container.has_ended() {
            return Err(anyhow!("container {} has ended", attach.id).into());
        }
        let theirs = container.attach(key, attach.stdin, attach.stdout, attach.stderr, &self.poller)?;
        let Some(daemon) = &self.daemon else { return Ok(()) };
        let mut fds = vec![(Role::Session, theirs.as_fd())];
        fds.extend(container.stdin_for_client().filter(|_| attach.stdin).map(|fd| (Role::Stdin, fd.as_fd())));
        if crate::server::send(daemon, request, &m::Attached {}, &fds, &mut Vec::new()).is_err() {
            self.disconnect();
        }
        Ok(())
    }

    pub(crate) fn resize(&mut self, request: u32, resize: &m::Resize) -> Done {
        let container = find(&mut self.containers, &resize.id)?;
        let master = container.stdout.fd.as_ref().filter(|_| container.create.tty);
        let master = master.ok_or_else(|| anyhow!("container {} has no terminal", resize.id))?;
        let size = rustix::termios::Winsize { ws_row: resize.height, ws_col: resize.width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(master, size).context("resize the terminal")?;
        self.done(request)
    }

    pub(crate) fn reopen_log(&mut self, request: u32, reopen: &m::ReopenLog) -> Done {
        let container = find(&mut self.containers, &reopen.id)?;
        container.log.reopen().with_context(|| format!("reopen the log {}", container.create.log_path))?;
        self.done(request)
    }

    pub(crate) fn remove(&mut self, request: u32, remove: &m::Remove) -> Done {
        if let Some(at) = self.containers.iter().position(|c| c.create.id == remove.id) {
            let container = &self.containers[at];
            if container.exited.is_none() {
                return Err(anyhow!("container {} has not ended", remove.id).into());
            }
            self.forget(at);
        }
        self.done(request)
    }

    fn forget(&mut self, at: usize) {
        let container = self.containers.swap_remove(at);
        container.unwatch(&self.poller);
        container.remove_files();
    }

    pub(crate) fn shutdown(&mut self, request: u32) -> Done {
        if let Some(container) = self.containers.iter().find(|c| c.exited.is_none()) {
            return Err(anyhow!("container {} has not ended", container.create.id).into());
        }
        self.ends = true;
        self.done(request)
    }

    pub(crate) fn state(&mut self, request: u32) -> Done {
        if self.init.init_pid != 0 {
            self.answer(request, &self.init.clone(), &[]);
        }
        let mut buffer = Vec::new();
        for container in &self.containers {
            let Some(daemon) = &self.daemon else { return Ok(()) };
            let state = m::ContainerState {
                id: container.create.id.clone(),
                pid: container.pid,
                start_time: container.start_time,
                started: container.started,
                exited: container.exited.clone(),
                log_lines_dropped: container.log.dropped(),
                execs: self.execs.iter().filter(|e| e.container == container.key).count() as u32,
                clients: container.sessions.len() as u32,
            };
            if crate::server::send(daemon, request, &state, &kept(container), &mut buffer).is_err() {
                self.disconnect();
                return Ok(());
            }
        }
        self.done(request)
    }

    /// A dead monitor's container. Its parent is another now, so its pidfd is watched.
    pub(crate) fn adopt(&mut self, request: u32, adopt: m::Adopt, pidfd: Option<OwnedFd>, pty: Option<OwnedFd>) -> Done {
        let m::Adopt { create, pid, start_time, started } = adopt;
        if find(&mut self.containers, &create.id).is_ok() {
            return Err(anyhow!("container {}: the pod's monitor has it already", create.id).into());
        }
        let record = exit_record::read(Path::new(&create.exit_path))?;
        let log = LogFile::open(&create.log_path).with_context(|| format!("log_path: open {}", create.log_path))?;
        let mut container = Container::bare(self.new_key(), create, log);
        (container.pid, container.start_time, container.started, container.child) = (pid, start_time, started, false);
        container.pidfd = pidfd.or_else(|| process::open(pid).filter(|_| process::start_time(pid) == start_time));
        container.look_at_memory();
        if container.create.tty {
            container.stdout.fd = pty;
        } else {
            // Without its FIFOs it has no output any more, but still an end.
            let _ = container.open_outputs();
            container.reopen_stdin();
        }
        container.exited = record.map(|r| m::Exited { id: container.create.id.clone(), ..r });
        container.watch(&self.poller).context("epoll_ctl")?;
        let (known, living, key) = (container.exited.clone(), container.pidfd.is_some(), container.key);
        self.containers.push(container);
        let at = self.containers.len() - 1;
        self.answer_created(request, self.connection(), at);
        if let Some(exited) = known {
            self.containers[at].last_words(&mut self.buffers, &self.poller);
            self.tell(&exited);
        } else if !living {
            self.container_ended(at, 255, 0, true);
        } else {
            self.adopted_ended(key, EventFlags::empty());
        }
        Ok(())
    }

    /// An adopted container may have ended; `flags` of its pidfd say whether it has for certain.
    pub(crate) fn adopted_ended(&mut self, key: u32, flags: EventFlags) {
        let Some(at) = self.containers.iter().position(|c| c.key == key && !c.has_ended()) else { return };
        let container = &self.containers[at];
        let Some(pidfd) = &container.pidfd else { return };
        match process::ended(pidfd, container.pid, container.start_time) {
            Some(status) => {
                let (code, signal) = process::code_and_signal(status);
                self.container_ended(at, code, signal, false);
            }
            None if !flags.is_empty() => self.container_ended(at, 255, 0, true),
            None => (),
        }
    }
}

/// What the daemon keeps of a container, for the monitor's successor.
fn kept(container: &Container) -> Vec<(Role, BorrowedFd<'_>)> {
    let (stdout, stderr) = (borrowed(&container.stdout.fd), borrowed(&container.stderr.fd));
    let pidfd = borrowed(&container.pidfd).filter(|_| container.exited.is_none());
    let role = if container.create.tty { Role::Pty } else { Role::Stdout };
    let all = [(Role::Pidfd, pidfd), (role, stdout), (Role::Stderr, stderr)];
    all.into_iter().filter_map(|(role, fd)| Some((role, fd?))).collect()
}
