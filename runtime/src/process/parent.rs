//! The parent's side: clone, then answer the child until it is on its own.

use super::protocol::{Channel, Kind, Message};
use super::{Exec, Gate, Plan, Setup, exec as exec_child, init};
use crate::cgroups::Entry;
use crate::container::{self, Container, Record};
use crate::json::{self, written};
use crate::namespaces::{self, NEWPID, NEWTIME};
use crate::supervise::Supervisor;
use crate::{hooks, log, net_devices, sys};
use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};

/// A process that was made.
#[derive(Debug)]
pub struct Made {
    /// Its id in the caller's PID namespace.
    pub pid: i32,
    /// Its pidfd, where the kernel has pidfds.
    pub pidfd: Option<OwnedFd>,
}

/// Makes the container's first process. On return its record has its pid, and it either waits at the
/// exec fifo or, without one, has executed the user's program. On an error it is dead and reaped;
/// everything else that was made is in the record, for [`Container::destroy`].
pub fn create(plan: &mut Plan, container: &mut Container, gate: &Gate, mut supervisor: Option<&mut Supervisor>) -> Result<Made> {
    if plan.privileged {
        // Before there is any child. An ordinary user could not write the id maps of a hidden one.
        super::hide()?;
    }
    plan.rootfs.open_sources()?;
    let plan = &*plan;
    let entry = plan.cgroup.create(plan.resources.as_ref(), &plan.annotations)?;
    let delegate = || plan.cgroup_owner.map_or(Ok(()), |uid| plan.cgroup.delegate(uid));
    if !matches!(entry, Entry::Adopt) {
        delegate()?;
    }
    for warning in plan.cgroup.warnings() {
        log::warn(warning);
    }
    if let Some(rdt) = &plan.intel_rdt {
        rdt.make()?;
    }
    let hop = plan.namespaces.needs_hop();
    let borrowed = lend_namespaces(plan, hop)?;
    let flags = if hop { 0 } else { plan.namespaces.clone_flags() };
    let child = |channel, entry| if hop { init::hop(plan, channel, entry, gate) } else { init::main(plan, channel, entry, gate, false) };
    let cloned = Conversation::start(flags, entry, child);
    for namespace in borrowed {
        namespace.restore()?;
    }
    let mut conversation = cloned?;
    conversation.hopping = hop;
    let made = conversation.serve_or_kill(|conversation, message| match message.kind {
        Kind::MapIds => plan.id_maps.write(conversation.pid, plan.privileged),
        Kind::JoinCgroup => {
            plan.cgroup.adopt(conversation.pid, plan.resources.as_ref(), &plan.annotations)?;
            delegate()
        }
        Kind::NetDevices => net_devices::move_all(&plan.net_devices, conversation.pid),
        Kind::Source => {
            let source = plan.rootfs.source_for(message.text.parse().context("init's question")?, conversation.pid)?;
            conversation.channel.send(Kind::Done, "", Some(&source)).context("send the source of a mount")
        }
        Kind::Hooks => run_hooks(plan, container, conversation.pid),
        Kind::Terminal => attach_terminal(&mut supervisor, message),
        Kind::Limits => plan.setup.limit(conversation.pid),
        Kind::Listener => send_listener(&plan.setup, &container.record, ("creating", conversation.pid), conversation, &message.text),
        Kind::Ready => {
            container.record.pid = conversation.pid;
            container.record.start_time = container::start_time(conversation.pid).context("init died before it was ready")?;
            container.save()?;
            conversation.done = gate.fifo.is_some();
            Ok(())
        }
        other => bail!("unexpected message {other:?} of init"),
    });
    made.context("error during container init")
}

/// Makes a further process in a running container; on return it has executed its program.
pub fn exec(exec: &Exec, entry: Entry, gate: &Gate, mut supervisor: Option<&mut Supervisor>) -> Result<Made> {
    let hop = exec.needs_hop();
    exec.setup.scheduling.apply_initial_affinity()?;
    let entry = if exec.privileged { exec_child::Visit::confine(entry)? } else { entry };
    let visit = exec.parent_enters().then(|| exec_child::Visit::begin(exec)).transpose()?;
    let child = |channel, entry| match hop {
        true => exec_child::hop(exec, channel, entry, gate),
        false => exec_child::main(exec, channel, entry, gate, exec_child::Origin::Parent(visit.as_ref())),
    };
    let cloned = Conversation::start(0, entry, child);
    visit.map_or(Ok(()), exec_child::Visit::end)?;
    let mut conversation = cloned?;
    conversation.hopping = hop;
    conversation.serve_or_kill(|conversation, message| match message.kind {
        Kind::JoinCgroup => exec.cgroup.attach(conversation.pid, &exec.sub_cgroups),
        Kind::Limits => exec.setup.limit(conversation.pid),
        Kind::Terminal => attach_terminal(&mut supervisor, message),
        Kind::Listener => send_listener(&exec.setup, &gate.record, ("running", exec.pid), conversation, &message.text),
        other => bail!("unexpected message {other:?} of the process"),
    })
}

/// The terminal's master goes to whoever stays in the foreground, before the program runs.
fn attach_terminal(supervisor: &mut Option<&mut Supervisor>, message: &mut Message) -> Result<()> {
    match (supervisor, message.fd.take()) {
        (Some(supervisor), Some(master)) => supervisor.attach(master),
        _ => bail!("a terminal that nobody relays"),
    }
}

/// Changes the namespaces of the caller's next child where only its parent can; the answer puts
/// them back.
fn lend_namespaces(plan: &Plan, hop: bool) -> Result<Vec<namespaces::Borrowed>> {
    let mut borrowed = Vec::new();
    if hop {
        return Ok(borrowed);
    }
    if plan.namespaces.joins(NEWPID) {
        borrowed.push(namespaces::Borrowed::remember(NEWPID)?);
        plan.namespaces.join(|kind| kind == NEWPID)?;
    }
    if plan.namespaces.new & NEWTIME != 0 {
        borrowed.push(namespaces::Borrowed::remember(NEWTIME)?);
        namespaces::unshare_time(&plan.namespaces.time_offsets, namespaces::open_time_offsets()?)?;
    }
    Ok(borrowed)
}

/// The parent's end, and what it knows of the child.
struct Conversation {
    channel: Channel,
    pid: i32,
    pidfd: Option<OwnedFd>,
    hop: Option<i32>,
    /// The child is a hop that has not made its process yet.
    hopping: bool,
    /// The child needs no more answers.
    done: bool,
    /// The child has said that `execve` is next: end-of-file is success.
    executes: bool,
}

impl Conversation {
    /// Clones; `child` runs in the new process and never returns.
    fn start(flags: u64, entry: Entry, child: impl FnOnce(Channel, Entry)) -> Result<Conversation> {
        let (ours, theirs) = Channel::pair().context("socketpair")?;
        let (cloned, entry) = clone_into(flags, entry)?;
        match cloned {
            sys::Cloned::Child => {
                drop(ours);
                child(theirs, entry);
                sys::exit_now(1)
            }
            sys::Cloned::Parent(pid, pidfd) => {
                if let Entry::Write(files) = entry {
                    sys::close_all(files);
                }
                Ok(Conversation { channel: ours, pid, pidfd, hop: None, hopping: false, done: false, executes: false })
            }
        }
    }

    /// Answers until the child is on its own; on any error the child is killed and reaped.
    fn serve_or_kill(&mut self, answer: impl FnMut(&mut Conversation, &mut Message) -> Result<()>) -> Result<Made> {
        let served = self.serve(answer);
        if served.is_err() {
            let _ = sys::kill(self.pid, libc::SIGKILL);
            let _ = waitpid(Pid::from_raw(self.pid), None);
        }
        if let Some(hop) = self.hop {
            let _ = waitpid(Pid::from_raw(hop), None);
        }
        served?;
        Ok(Made { pid: self.pid, pidfd: self.pidfd.take() })
    }

    fn serve(&mut self, mut answer: impl FnMut(&mut Conversation, &mut Message) -> Result<()>) -> Result<()> {
        while !self.done {
            let Some(mut message) = self.next_message()? else {
                // execve closed its end; before that only death does.
                return if self.executes { Ok(()) } else { Err(self.obituary()) };
            };
            match message.kind {
                Kind::Failed if self.executes && message.text.starts_with("exec ") => bail!(super::NotExecuted(message.text)),
                Kind::Failed => bail!("{}", message.text),
                Kind::Warning => log::warn(&message.text),
                Kind::Forked => {
                    self.hop = Some(self.pid);
                    self.hopping = false;
                    self.pid = message.text.parse().context("the hop's answer")?;
                    self.pidfd = sys::pidfd_open(self.pid).ok();
                    self.channel.send(Kind::Done, "", None).context("answer the new process")?;
                }
                Kind::Leaving => self.executes = true,
                kind => {
                    answer(self, &mut message)?;
                    self.executes |= kind == Kind::Ready;
                    if !matches!(kind, Kind::Terminal | Kind::Source) {
                        self.channel.send(Kind::Done, "", None).context("answer the new process")?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The next message. As long as a hop is on its way its death must be looked for: the process that it
    /// may have made waits with the channel open until we know of it.
    fn next_message(&self) -> Result<Option<Message>> {
        if self.hopping
            && let Some(hop) = &self.pidfd
        {
            let mut fds = [PollFd::new(self.channel.as_fd(), PollFlags::POLLIN), PollFd::new(hop.as_fd(), PollFlags::POLLIN)];
            while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
            if fds[0].any() == Some(false) {
                return Ok(None);
            }
        }
        self.channel.receive().context("receive from the new process")
    }

    /// Why a child that said nothing is gone.
    fn obituary(&self) -> anyhow::Error {
        match waitpid(Pid::from_raw(self.pid), None) {
            Ok(WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGKILL, _)) => {
                anyhow!("container init was killed (by the kernel if its memory limit is too low: see linux.resources.memory.limit)")
            }
            Ok(WaitStatus::Signaled(_, signal, _)) => anyhow!("container init died of {signal}"),
            Ok(WaitStatus::Exited(_, code)) => anyhow!("container init ended with status {code}"),
            other => anyhow!("container init is gone: {other:?}"),
        }
    }
}

/// Clones into the cgroup that `entry` is. A kernel that cannot (before 5.7) gets an ordinary clone,
/// and the child writes itself into the cgroup instead.
fn clone_into(flags: u64, entry: Entry) -> Result<(sys::Cloned, Entry)> {
    let cgroup = if let Entry::Into(fd) = &entry { Some(fd.as_fd()) } else { None };
    match sys::clone(flags, cgroup) {
        Err(Errno::ENOSYS | Errno::E2BIG | Errno::EINVAL) if cgroup.is_some() => {
            let entry = entry.by_write()?;
            Ok((sys::clone(flags, None).map_err(explain_clone)?, entry))
        }
        other => Ok((other.map_err(explain_clone)?, entry)),
    }
}

fn explain_clone(errno: Errno) -> anyhow::Error {
    let advice = match errno {
        Errno::EPERM => {
            " (an ordinary user needs user namespaces: see sysctl kernel.unprivileged_userns_clone and user.max_user_namespaces, and AppArmor's kernel.apparmor_restrict_unprivileged_userns)"
        }
        Errno::ENOSPC | Errno::EUSERS => " (a limit on namespaces is reached: see sysctl user.max_*_namespaces)",
        Errno::EAGAIN => " (a limit on processes is reached: see pids.max of the cgroup and RLIMIT_NPROC)",
        Errno::EBUSY => " (the cgroup has controllers enabled for its children, so it can hold no process itself)",
        _ => "",
    };
    // In runc's words, which its callers look for.
    let what = if errno == Errno::EBUSY { "adding pid of the new process to cgroups: clone3" } else { "clone3 of the new process" };
    anyhow!("{what}: {}{advice}", errno.desc().to_lowercase())
}

fn run_hooks(plan: &Plan, container: &Container, pid: i32) -> Result<()> {
    container.record.run_hooks(hooks::Kind::Prestart, &plan.hooks, pid, &[])?;
    container.record.run_hooks(hooks::Kind::CreateRuntime, &plan.hooks, pid, &[])
}

/// What a seccomp agent reads beside the descriptor.
struct ListenerState<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    metadata: Option<&'a str>,
    state: container::State<'a>,
}

written! { ListenerState<'a>;
    "ociVersion" => oci_version,
    "fds" => fds,
    "pid" => pid,
    "metadata" => metadata,
    "state" => state,
}

/// Fetches the notification descriptor and sends it to `linux.seccomp.listenerPath` (runtime-spec,
/// "Container Process State"); `state` is the container's status and its init's pid.
fn send_listener(setup: &Setup, record: &Record, state: (&str, i32), conversation: &Conversation, number: &str) -> Result<()> {
    let fetch = || -> Result<()> {
        let listener = setup.filter.as_ref().and_then(|f| f.listener.as_ref()).context("a listener that nobody waits for")?;
        let process = conversation.pidfd.as_ref().context("no pidfd (Linux 5.6 has them)")?;
        let fd = sys::pidfd_getfd(process.as_fd(), number.parse()?).context("pidfd_getfd")?;
        let text = json::text(&ListenerState {
            oci_version: &record.oci_version,
            fds: ["seccompFd"],
            pid: conversation.pid,
            metadata: listener.metadata.as_deref(),
            state: record.state(state.0, state.1),
        });
        let socket = crate::terminal::connect(&listener.path).context("failed to connect with seccomp agent")?;
        crate::terminal::send_fd(socket.as_fd(), fd.as_fd(), &text)
    };
    fetch().context("linux.seccomp.listenerPath")
}
