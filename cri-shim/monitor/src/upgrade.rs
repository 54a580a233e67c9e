//! The monitor goes on as another program: its state in a memory file, its descriptors kept over execve.
//!
//! The state is written in the wire's own format, so that a newer program reads what an older one wrote and the
//! other way round: records of a length (u32) and a packet; `…_fd` are numbers of descriptors, 0 for none.

use crate::container::{Container, Session};
use crate::log::{LogFile, Splitter};
use crate::poller::Token;
use crate::server::{Daemon, ExecProcess, Server};
use crate::sys;
use anyhow::{Context, Result, bail};
use rrun_monitor::messages as m;
use rrun_monitor::wire::{self, Message, Packet};
use rustix::event::epoll::EventFlags;
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The argument with which the new program is executed; the number of the memory file follows.
pub(crate) const ARGUMENT: &str = "resume";

rrun_monitor::messages! {
    /// The server.
    Saved = 1001 {
        /// The request to answer.
        request: u32 = 1,
        listener_fd: u32 = 2,
        daemon_fd: u32 = 3,
        daemon_key: u32 = 4,
        last_key: u32 = 5,
        init: m::SandboxMade = 6,
    }
    /// A container.
    SavedContainer = 1002 {
        key: u32 = 1,
        create: m::Create = 2,
        pid: u32 = 3,
        start_time: u64 = 4,
        pidfd: u32 = 5,
        child: bool = 6,
        started: bool = 7,
        stdout_fd: u32 = 8,
        stderr_fd: u32 = 9,
        stdin_fd: u32 = 10,
        /// Of an unfinished line: bytes, in hexadecimal.
        stdout_pending: String = 11,
        stderr_pending: String = 12,
        log_fd: u32 = 13,
        log_dropped: u64 = 14,
        exited: Option<m::Exited> = 15,
        sessions: Vec<SavedSession> = 16,
        log_failing: bool = 17,
    }
    /// An attached client.
    SavedSession = 1003 {
        key: u32 = 1,
        socket_fd: u32 = 2,
        stdin: bool = 3,
        stdout: bool = 4,
        stderr: bool = 5,
        lost: u64 = 6,
        /// Its input had ended.
        input_ended: bool = 7,
    }
    /// A running exec.
    SavedExec = 1004 {
        request: u32 = 1,
        connection: u32 = 2,
        container: u32 = 3,
        pid: u32 = 4,
        deadline: Option<u64> = 5,
        timed_out: bool = 6,
        dies_with_connection: bool = 7,
    }
}

impl Server {
    /// Executes the new program when one is asked for and nobody waits for anything. Returns only where there is none,
    /// or it failed: then everything is as before.
    pub(crate) fn upgrade_if_idle(&mut self) {
        if !self.is_idle() {
            return;
        }
        let Some((request, program)) = self.upgrade.take() else { return };
        let error = match self.save(request) {
            Ok((state, inherited)) => {
                let number = state.as_raw_fd();
                inherit(&inherited, number, true);
                let error = Command::new(&program).args([ARGUMENT, &number.to_string()]).exec();
                inherit(&inherited, number, false);
                // It went as far as to unblock the signals.
                let _ = sys::child_signals();
                format!("execute {program}: {error}")
            }
            Err(e) => format!("{e:#}"),
        };
        self.answer(request, &m::Failed { text: format!("upgrade the pod's monitor: {error}"), ..m::Failed::default() }, &[]);
    }

    fn save(&self, request: u32) -> Result<(File, Vec<RawFd>)> {
        let mut fds = Vec::new();
        let mut number = |fd: Option<&OwnedFd>| {
            fd.map_or(0, |fd| {
                fds.push(fd.as_raw_fd());
                // 0 is a descriptor too: the listener.
                fd.as_raw_fd() as u32 + 1
            })
        };
        let saved = Saved {
            request,
            listener_fd: number(Some(&self.listener)),
            daemon_fd: number(self.daemon.as_ref().map(|d| &d.socket)),
            daemon_key: self.connection(),
            last_key: self.last_key,
            init: self.init.clone(),
        };
        let mut records = Vec::new();
        record(&saved, &mut records);
        for c in &self.containers {
            let container = SavedContainer {
                key: c.key,
                create: c.create.clone(),
                pid: c.pid,
                start_time: c.start_time,
                pidfd: number(c.pidfd.as_ref()),
                child: c.child,
                started: c.started,
                stdout_fd: number(c.stdout.fd.as_ref()),
                stderr_fd: number(c.stderr.fd.as_ref()),
                stdin_fd: number(c.stdin.as_ref()),
                stdout_pending: to_hex(c.stdout.splitter.pending()),
                stderr_pending: to_hex(c.stderr.splitter.pending()),
                log_fd: number(c.log.file()),
                log_dropped: c.log.dropped(),
                exited: c.exited.clone(),
                sessions: c.sessions.iter().map(|s| save_session(s, &mut number)).collect(),
                log_failing: c.log_failing,
            };
            record(&container, &mut records);
        }
        for e in &self.execs {
            let exec = SavedExec {
                request: e.request,
                connection: e.connection,
                container: e.container,
                pid: e.pid,
                deadline: e.deadline,
                timed_out: e.timed_out,
                dies_with_connection: e.dies_with_connection,
            };
            record(&exec, &mut records);
        }
        let mut state = File::from(rustix::fs::memfd_create("monitor-state", MemfdFlags::CLOEXEC).context("memfd_create")?);
        state.write_all(&records).and_then(|()| state.rewind()).context("save the state")?;
        Ok((state, fds))
    }
}

fn save_session(s: &Session, number: &mut impl FnMut(Option<&OwnedFd>) -> u32) -> SavedSession {
    let (stdin, stdout, stderr) = (s.stdin, s.stdout, s.stderr);
    SavedSession { key: s.key, socket_fd: number(Some(&s.socket)), stdin, stdout, stderr, lost: s.lost, input_ended: s.input_ended }
}

/// In the new program: everything as it was.
pub(crate) fn resume(state: RawFd) -> Result<Server> {
    let mut records = Vec::new();
    File::from(sys::adopt_fd(state).context("the state of the monitor before")?).read_to_end(&mut records).context("read the state")?;
    let mut packets = records_of(&records)?.into_iter();
    let saved: Saved = packets.next().as_ref().and_then(Packet::message).context("the state is empty")??;
    let mut server = Server::new(taken(saved.listener_fd).context("the state has no listener")?)?;
    (server.last_key, server.init) = (saved.last_key, saved.init);
    if let Some(socket) = taken(saved.daemon_fd) {
        server.poller.add(&socket, Token::Daemon(saved.daemon_key), EventFlags::IN).context("epoll_ctl")?;
        server.daemon = Some(Daemon { key: saved.daemon_key, socket });
    }
    for packet in packets {
        if let Some(container) = packet.message() {
            let container = restore(container?);
            container.watch(&server.poller).context("epoll_ctl")?;
            for s in &container.sessions {
                let flags = if s.input_ended { EventFlags::empty() } else { EventFlags::RDHUP };
                server.poller.add(&s.socket, Token::Session(s.key), flags).context("epoll_ctl")?;
            }
            server.containers.push(container);
        } else if let Some(exec) = packet.message::<SavedExec>() {
            let SavedExec { request, connection, container, pid, deadline, timed_out, dies_with_connection } = exec?;
            server.execs.push(ExecProcess { request, connection, container, pid, deadline, timed_out, dies_with_connection });
        }
    }
    server.answer(saved.request, &m::Done {}, &[]);
    Ok(server)
}

fn restore(saved: SavedContainer) -> Container {
    let log = LogFile::resume(&saved.create.log_path, taken(saved.log_fd), saved.log_dropped);
    let mut c = Container::bare(saved.key, saved.create, log);
    (c.pid, c.start_time, c.child, c.started) = (saved.pid, saved.start_time, saved.child, saved.started);
    (c.pidfd, c.stdin) = (taken(saved.pidfd), taken(saved.stdin_fd));
    (c.stdout.fd, c.stderr.fd) = (taken(saved.stdout_fd), taken(saved.stderr_fd));
    c.stdout.splitter = Splitter::new(c.create.log_line_max, from_hex(&saved.stdout_pending));
    c.stderr.splitter = Splitter::new(c.create.log_line_max, from_hex(&saved.stderr_pending));
    (c.exited, c.log_failing) = (saved.exited, saved.log_failing);
    if c.exited.is_none() {
        c.look_at_memory();
    }
    for s in saved.sessions {
        let Some(socket) = taken(s.socket_fd) else { continue };
        let (stdin, stdout, stderr) = (s.stdin, s.stdout, s.stderr);
        c.sessions.push(Session { key: s.key, socket, stdin, stdout, stderr, lost: s.lost, input_ended: s.input_ended });
    }
    c
}

fn record<M: Message>(message: &M, out: &mut Vec<u8>) {
    let mut packet = Vec::new();
    wire::encode(0, message, &[], &mut packet);
    out.extend_from_slice(&(packet.len() as u32).to_le_bytes());
    out.extend_from_slice(&packet);
}

fn records_of(mut rest: &[u8]) -> Result<Vec<Packet>> {
    let mut packets = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let Some((packet, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize) else { bail!("the state is cut off") };
        packets.push(Packet::parse(packet, Vec::new())?);
        rest = after;
    }
    Ok(packets)
}

fn inherit(fds: &[RawFd], state: RawFd, yes: bool) {
    for fd in fds.iter().copied().chain([state]) {
        // Borrowed only for this: the owners are in the server.
        if let Some(fd) = sys::adopt_fd(fd) {
            let _ = rustix::io::fcntl_setfd(fd.as_fd(), if yes { FdFlags::empty() } else { FdFlags::CLOEXEC });
            std::mem::forget(fd);
        }
    }
}

fn taken(number: u32) -> Option<OwnedFd> {
    let fd = sys::adopt_fd(number.checked_sub(1)? as RawFd)?;
    let _ = rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC);
    Some(fd)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).filter_map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()).collect()
}
