//! One container as the monitor has it: its streams, its log, its clients, its end.
//!
//! Standard output and error are FIFOs in the container's folder, which the container holds for reading and writing:
//! the monitor may die and come back without the container seeing a broken pipe. Standard input is read-only for
//! the container where it is to end once (`stdin_once`): only so can there be an end, and there the monitor's death is one
//! (and whoever opens /dev/stdin by its name after the end waits for a writer, as with any FIFO).

use crate::log::{Batch, LogFile, Splitter, Stream};
use crate::oom::{self, Oom};
use crate::poller::{Poller, Token};
use crate::process;
use anyhow::{Context, Result};
use rrun_monitor::messages::{Create, Exited};
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::os::fd::{AsFd, OwnedFd};

/// What one read takes; before it in the buffer stands the byte that tells an attached client which stream it is.
pub(crate) const READ: usize = 16 * 1024;
/// What a container's last words may be, after its end: more than a pipe holds.
const LAST_READS: usize = 512;
/// How far a client may be behind before it loses output.
const SESSION_BUFFER: usize = 1 << 20;

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) key: u32,
    pub(crate) create: Create,
    /// 0 until the runtime has made it.
    pub(crate) pid: u32,
    pub(crate) start_time: u64,
    pub(crate) pidfd: Option<OwnedFd>,
    /// Reaped by us; an adopted one is another's child.
    pub(crate) child: bool,
    pub(crate) started: bool,
    /// Standard output, or the terminal's master.
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    /// The FIFO's end to write to.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) log: LogFile,
    pub(crate) log_failing: bool,
    pub(crate) oom: Oom,
    /// Of its first process.
    pub(crate) oom_score: i32,
    /// Set when its record is on disk.
    pub(crate) exited: Option<Exited>,
    /// It has ended, and this process writes the record.
    pub(crate) recording: Option<(u32, Exited)>,
}

/// A stream of a container's output.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) fd: Option<OwnedFd>,
    pub(crate) splitter: Splitter,
}

/// An attached client.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) key: u32,
    pub(crate) socket: OwnedFd,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) lost: u64,
    pub(crate) input_ended: bool,
}

/// The buffers of the loop.
#[derive(Debug)]
pub(crate) struct Buffers {
    pub(crate) read: Box<[u8]>,
    pub(crate) batch: Batch,
}

impl Buffers {
    pub(crate) fn new() -> Buffers {
        Buffers { read: vec![0; 1 + READ].into_boxed_slice(), batch: Batch::new() }
    }
}

/// The ends of the streams that the runtime gets.
#[derive(Debug, Default)]
pub(crate) struct ContainerEnds {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl Container {
    /// Opens the log and makes the FIFOs; nothing runs yet.
    pub(crate) fn new(key: u32, create: Create) -> Result<(Container, ContainerEnds)> {
        let log = LogFile::open(&create.log_path).with_context(|| format!("log_path: open {}", create.log_path))?;
        let mut container = Container::bare(key, create, log);
        let ends = container.make_fifos().inspect_err(|_| container.remove_files())?;
        Ok((container, ends))
    }

    pub(crate) fn bare(key: u32, create: Create, log: LogFile) -> Container {
        let output = || Output { fd: None, splitter: Splitter::new(create.log_line_max, Vec::new()) };
        let (stdout, stderr) = (output(), output());
        Container {
            key,
            create,
            pid: 0,
            start_time: 0,
            pidfd: None,
            child: true,
            started: false,
            stdout,
            stderr,
            stdin: None,
            sessions: Vec::new(),
            log,
            log_failing: false,
            oom: Oom::default(),
            oom_score: 0,
            exited: None,
            recording: None,
        }
    }

    /// The runtime has made it.
    pub(crate) fn born(&mut self, pid: u32) {
        self.pid = pid;
        self.start_time = process::start_time(pid);
        self.pidfd = process::open(pid);
        self.look_at_memory();
    }

    /// What of its memory's accounts is not told by anybody.
    pub(crate) fn look_at_memory(&mut self) {
        self.oom = Oom::open(self.pid, !self.child);
        self.oom_score = oom::score_of(self.pid).unwrap_or(0);
    }

    fn make_fifos(&mut self) -> Result<ContainerEnds> {
        let mut ends = ContainerEnds::default();
        if self.create.tty {
            return Ok(ends);
        }
        for name in ["stdout", "stderr"] {
            self.make_fifo(name)?;
        }
        ends.stdout = Some(self.fifo("stdout", OFlags::RDWR)?);
        ends.stderr = Some(self.fifo("stderr", OFlags::RDWR)?);
        self.open_outputs()?;
        if self.create.stdin {
            self.make_fifo("stdin")?;
            // With it open both ways neither of the others waits for its counterpart.
            let both = self.fifo("stdin", OFlags::RDWR)?;
            if self.create.stdin_once {
                ends.stdin = Some(self.fifo("stdin", OFlags::RDONLY)?);
                self.stdin = Some(self.fifo("stdin", OFlags::WRONLY | OFlags::NONBLOCK)?);
            } else {
                self.stdin = Some(self.fifo("stdin", OFlags::WRONLY | OFlags::NONBLOCK)?);
                ends.stdin = Some(both);
            }
        }
        Ok(ends)
    }

    /// The monitor's ends of the output FIFOs.
    pub(crate) fn open_outputs(&mut self) -> Result<()> {
        self.stdout.fd = Some(self.fifo("stdout", OFlags::RDONLY | OFlags::NONBLOCK)?);
        self.stderr.fd = Some(self.fifo("stderr", OFlags::RDONLY | OFlags::NONBLOCK)?);
        Ok(())
    }

    /// The monitor's end of standard input, for a successor; None where the container no longer reads.
    pub(crate) fn reopen_stdin(&mut self) {
        if self.create.stdin && !self.create.tty {
            self.stdin = self.fifo("stdin", OFlags::WRONLY | OFlags::NONBLOCK).ok();
        }
    }

    fn make_fifo(&self, name: &str) -> Result<()> {
        let path = self.file(name);
        let _ = rustix::fs::unlink(&path);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::from_raw_mode(0o600)).with_context(|| format!("make the FIFO {path}"))
    }

    fn fifo(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        let path = self.file(name);
        // Not NOFOLLOW, which stays with the descriptor: CRIU opens it again, by a link, as it was opened. The folder is ours.
        let flags = flags | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).with_context(|| format!("open the FIFO {path}"))
    }

    /// A file in the container's folder.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.create.dir)
    }

    /// What the monitor has made in the container's folder.
    pub(crate) fn remove_files(&self) {
        for name in ["stdin", "stdout", "stderr", "pid"] {
            let _ = rustix::fs::unlink(self.file(name));
        }
    }

    /// Watches the outputs; reading begins.
    pub(crate) fn watch(&self, poller: &Poller) -> rustix::io::Result<()> {
        for (output, token) in [(&self.stdout, Token::Stdout(self.key)), (&self.stderr, Token::Stderr(self.key))] {
            if let Some(fd) = &output.fd {
                poller.add(fd, token, EventFlags::IN)?;
            }
        }
        if let (Some(pidfd), false, None) = (&self.pidfd, self.child, &self.exited) {
            poller.add(pidfd, Token::Pidfd(self.key), EventFlags::IN)?;
        }
        Ok(())
    }

    /// Takes what there is to read, once; whether there may be more.
    pub(crate) fn read(&mut self, stream: Stream, buffers: &mut Buffers, poller: &Poller) -> bool {
        let output = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        let Some(fd) = &output.fd else { return false };
        let length = match rustix::io::read(fd, &mut buffers.read[1..]) {
            Ok(length @ 1..) => length,
            Err(Errno::AGAIN | Errno::INTR) => return false,
            // The last holder has closed it; a terminal says EIO.
            Ok(_) | Err(_) => {
                poller.remove(fd);
                output.fd = None;
                self.finish_lines(stream, buffers);
                return false;
            }
        };
        buffers.read[0] = stream as u8;
        for session in &mut self.sessions {
            session.give(stream, &buffers.read[..=length]);
        }
        let (log, batch) = (&mut self.log, &mut buffers.batch);
        batch.stamp();
        output.splitter.push(&buffers.read[1..=length], |full, content| log.line(batch, stream, full, content));
        log.write(batch);
        true
    }

    /// An unfinished line goes out as a part.
    fn finish_lines(&mut self, stream: Stream, buffers: &mut Buffers) {
        let output = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        let (log, batch) = (&mut self.log, &mut buffers.batch);
        batch.stamp();
        output.splitter.finish(|full, content| log.line(batch, stream, full, content));
        log.write(batch);
    }

    /// After its end: reads what is left, without waiting for those who may still hold the streams, and lets the
    /// clients go. What such holders write later still reaches the log.
    pub(crate) fn last_words(&mut self, buffers: &mut Buffers, poller: &Poller) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut reads = 0;
            while reads < LAST_READS && self.read(stream, buffers, poller) {
                reads += 1;
            }
            self.finish_lines(stream, buffers);
        }
        for mut session in std::mem::take(&mut self.sessions) {
            session.tell_loss();
            poller.remove(&session.socket);
        }
        self.stdin = None;
    }

    /// Whether its process is known to have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.exited.is_some() || self.recording.is_some()
    }

    /// The loop looks no more at anything of this container, which can then be dropped.
    pub(crate) fn unwatch(&self, poller: &Poller) {
        let outputs = [&self.stdout, &self.stderr].into_iter().filter_map(|o| o.fd.as_ref());
        for fd in outputs.chain(&self.pidfd).chain(self.sessions.iter().map(|s| &s.socket)) {
            poller.remove(fd);
        }
    }

    /// One more client: its end of the session, and what it may write input to.
    pub(crate) fn attach(&mut self, session: u32, stdin: bool, stdout: bool, stderr: bool, poller: &Poller) -> Result<OwnedFd> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context("socketpair")?;
        let _ = sockopt::set_socket_send_buffer_size_force(&ours, SESSION_BUFFER)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&ours, SESSION_BUFFER));
        poller.add(&ours, Token::Session(session), EventFlags::RDHUP).context("epoll_ctl")?;
        let stdin = stdin && self.stdin_for_client().is_some();
        self.sessions.push(Session { key: session, socket: ours, stdin, stdout, stderr, lost: 0, input_ended: false });
        Ok(theirs)
    }

    /// What an attached client writes input to.
    pub(crate) fn stdin_for_client(&self) -> Option<&OwnedFd> {
        if self.create.tty { self.stdout.fd.as_ref().filter(|_| self.create.stdin) } else { self.stdin.as_ref() }
    }

    /// A client's input has ended, or the client has gone.
    pub(crate) fn session_event(&mut self, key: u32, flags: EventFlags, poller: &Poller) {
        let Some(at) = self.sessions.iter().position(|s| s.key == key) else { return };
        let session = &mut self.sessions[at];
        if session.stdin && self.create.stdin_once {
            // Clients of that time still hold copies: the end comes with the last of them.
            self.stdin = None;
        }
        session.stdin = false;
        session.input_ended = true;
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            poller.remove(&session.socket);
            self.sessions.swap_remove(at);
        } else {
            poller.change(&session.socket, Token::Session(key), EventFlags::empty());
        }
    }
}

impl Session {
    /// Gives it a packet, or counts what it loses.
    fn give(&mut self, stream: Stream, packet: &[u8]) {
        if !(if stream == Stream::Stdout { self.stdout } else { self.stderr }) {
            return;
        }
        self.tell_loss();
        if self.lost > 0 || rustix::net::send(&self.socket, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err() {
            self.lost += packet.len() as u64 - 1;
        }
    }

    fn tell_loss(&mut self) {
        if self.lost == 0 {
            return;
        }
        let mut packet = [0; 9];
        packet[1..].copy_from_slice(&self.lost.to_le_bytes());
        if rustix::net::send(&self.socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok() {
            self.lost = 0;
        }
    }
}

/// The descriptor as a borrowed one, for a packet.
pub(crate) fn borrowed(fd: &Option<OwnedFd>) -> Option<std::os::fd::BorrowedFd<'_>> {
    fd.as_ref().map(AsFd::as_fd)
}
