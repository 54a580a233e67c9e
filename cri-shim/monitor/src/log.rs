//! A container's log in the CRI's format: `TIME stdout|stderr P|F CONTENT\n`, P for a part of a line that goes on.
//!
//! The container must never wait for its log: what cannot be written (a full disk) is dropped and counted, and
//! the next line tried as if nothing had been.

use crate::clock;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// The content of a line is cut here unless the configuration says otherwise (kubelet's own buffer).
const LINE_MAX: u64 = 16 * 1024;
/// Lines are collected up to this much before they are written.
const BATCH: usize = 16 * 1024;

/// Cuts a stream into lines and over-long lines into pieces; `\r\n` ends a line as `\n` does.
#[derive(Debug)]
pub(crate) struct Splitter {
    max: usize,
    /// Of a line without its end: at most `max` bytes, and one more if that is a `\r` whose `\n` may come.
    pending: Vec<u8>,
}

impl Splitter {
    /// `max` bytes of content per line (0: the default), and what a predecessor held.
    pub(crate) fn new(max: u64, pending: Vec<u8>) -> Splitter {
        let max = if max == 0 { LINE_MAX } else { max.min(1 << 20) };
        Splitter { max: max as usize, pending }
    }

    /// What is held of an unfinished line.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Takes what was read; `emit` gets each piece, and whether its line is complete.
    pub(crate) fn push(&mut self, mut data: &[u8], mut emit: impl FnMut(bool, &[u8])) {
        while let Some(end) = data.iter().position(|b| *b == b'\n') {
            let (line, rest) = (&data[..end], &data[end + 1..]);
            data = rest;
            if self.pending.is_empty() {
                let mut content = line.strip_suffix(b"\r").unwrap_or(line);
                while let Some((piece, rest)) = content.split_at_checked(self.max).filter(|(_, rest)| !rest.is_empty()) {
                    emit(false, piece);
                    content = rest;
                }
                emit(true, content);
            } else {
                self.hold(line, &mut emit);
                emit(true, self.pending.strip_suffix(b"\r").unwrap_or(&self.pending));
                self.pending.clear();
            }
        }
        self.hold(data, &mut emit);
    }

    /// The end of the stream: what is held goes out as a part.
    pub(crate) fn finish(&mut self, mut emit: impl FnMut(bool, &[u8])) {
        for piece in self.pending.chunks(self.max) {
            emit(false, piece);
        }
        self.pending = Vec::new();
    }

    fn hold(&mut self, mut data: &[u8], emit: &mut impl FnMut(bool, &[u8])) {
        while !data.is_empty() {
            if self.pending.capacity() == 0 {
                self.pending.reserve_exact(self.max + 1);
            }
            let (taken, rest) = data.split_at((self.max + 1 - self.pending.len()).min(data.len()));
            self.pending.extend_from_slice(taken);
            data = rest;
            if self.pending.len() > self.max && (!data.is_empty() || self.pending[self.max] != b'\r') {
                emit(false, &self.pending[..self.max]);
                self.pending.drain(..self.max);
            }
        }
    }
}

/// Which of the two streams a line is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// The log file of one container.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: String,
    file: Option<OwnedFd>,
    dropped: u64,
    /// The last write failed with it.
    failing: Option<Errno>,
    /// A piece of a line is at the end of the file and could not be taken off again.
    torn: bool,
}

/// Lines on their way into a file. One for all containers: it is empty between two reads.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    time: [u8; clock::RFC3339],
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch { bytes: Vec::with_capacity(2 * BATCH + 256), time: clock::rfc3339(clock::now()) }
    }

    /// Lines from here on carry this moment.
    pub(crate) fn stamp(&mut self) {
        self.time = clock::rfc3339(clock::now());
    }
}

impl LogFile {
    /// Opens the file at `path`, or makes it; an empty path is no log at all.
    pub(crate) fn open(path: &str) -> rustix::io::Result<LogFile> {
        Ok(LogFile { path: path.to_owned(), file: open(path)?, dropped: 0, failing: None, torn: false })
    }

    /// The log of a predecessor, by its descriptor.
    pub(crate) fn resume(path: &str, file: Option<OwnedFd>, dropped: u64) -> LogFile {
        LogFile { path: path.to_owned(), file, dropped, failing: None, torn: false }
    }

    /// Goes on in a new file at the path. Only whole lines are ever written, so any moment is a line's boundary.
    pub(crate) fn reopen(&mut self) -> rustix::io::Result<()> {
        self.file = open(&self.path)?;
        self.torn = false;
        Ok(())
    }

    pub(crate) fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    /// Lines that were dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The error that keeps lines from being written at present.
    pub(crate) fn failing(&self) -> Option<Errno> {
        self.failing
    }

    /// Adds a line to the batch, which is written when it is long enough.
    pub(crate) fn line(&mut self, batch: &mut Batch, stream: Stream, full: bool, content: &[u8]) {
        if self.file.is_none() {
            return;
        }
        batch.bytes.extend_from_slice(&batch.time);
        batch.bytes.extend_from_slice(match (stream, full) {
            (Stream::Stdout, true) => b" stdout F ",
            (Stream::Stdout, false) => b" stdout P ",
            (Stream::Stderr, true) => b" stderr F ",
            (Stream::Stderr, false) => b" stderr P ",
        });
        batch.bytes.extend_from_slice(content);
        batch.bytes.push(b'\n');
        if batch.bytes.len() >= BATCH {
            self.write(batch);
        }
    }

    /// Writes the batch and empties it: in one system call, unless the file system takes only a part.
    pub(crate) fn write(&mut self, batch: &mut Batch) {
        let bytes = &batch.bytes[..];
        if let (Some(file), false) = (&self.file, bytes.is_empty()) {
            if self.torn {
                self.torn = rustix::io::write(file, b"\n") != Ok(1);
            }
            let (written, failing) = if self.torn { (0, self.failing) } else { write_all(file, bytes) };
            self.failing = failing;
            if failing.is_some() {
                let whole = bytes[..written].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                self.torn |= !take_off(file, (written - whole) as u64);
                self.dropped += bytes[whole..].iter().filter(|b| **b == b'\n').count() as u64;
            }
        }
        batch.bytes.clear();
    }
}

/// How much was written, and the error that ended it before its time.
fn write_all(file: &OwnedFd, bytes: &[u8]) -> (usize, Option<Errno>) {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(file, &bytes[written..]) {
            Ok(0) => return (written, Some(Errno::IO)),
            Ok(more) => written += more,
            Err(Errno::INTR) => (),
            Err(e) => return (written, Some(e)),
        }
    }
    (written, None)
}

/// Takes the torn end of a line off the file again.
fn take_off(file: &OwnedFd, torn: u64) -> bool {
    torn == 0 || rustix::fs::fstat(file).is_ok_and(|stat| rustix::fs::ftruncate(file, (stat.st_size as u64).saturating_sub(torn)).is_ok())
}

fn open(path: &str) -> rustix::io::Result<Option<OwnedFd>> {
    if path.is_empty() {
        return Ok(None);
    }
    // Not blocking: what is there may be a FIFO.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Pieces as text, `+` behind those whose line goes on.
    fn split(max: u64, reads: &[&str]) -> Vec<String> {
        let (mut splitter, mut pieces) = (Splitter::new(max, Vec::new()), Vec::new());
        let mut emit = |full: bool, piece: &[u8]| {
            pieces.push(format!("{}{}", str::from_utf8(piece).unwrap(), if full { "" } else { "+" }));
        };
        for read in reads {
            splitter.push(read.as_bytes(), &mut emit);
            assert!(splitter.pending.len() <= splitter.max + 1);
        }
        splitter.finish(&mut emit);
        pieces
    }

    #[test]
    fn lines() {
        assert_eq!(split(9, &["one\ntwo\n\nthree"]), ["one", "two", "", "three+"]);
        assert_eq!(split(9, &["o", "n", "e\nt", "wo\n"]), ["one", "two"]);
        assert_eq!(split(9, &[]), [""; 0]);
    }

    #[test]
    fn a_return_before_the_newline_is_dropped_and_no_other() {
        assert_eq!(split(9, &["one\r\n\r\na\rb\r\r\n"]), ["one", "", "a\rb\r"]);
        assert_eq!(split(9, &["one\r", "\ntwo\r"]), ["one", "two\r+"]);
    }

    #[test]
    fn a_line_is_cut_only_when_it_is_longer() {
        assert_eq!(split(4, &["1234\n12345\n123456789\n"]), ["1234", "1234+", "5", "1234+", "5678+", "9"]);
        assert_eq!(split(4, &["1234", "\n"]), ["1234"]);
        assert_eq!(split(4, &["1234", "5\n"]), ["1234+", "5"]);
        assert_eq!(split(4, &["12", "3456789"]), ["1234+", "5678+", "9+"]);
        assert_eq!(split(4, &["12345678"]), ["1234+", "5678+"]);
    }

    #[test]
    fn a_return_across_the_cut() {
        assert_eq!(split(4, &["1234\r\n", "x\n"]), ["1234", "x"]);
        assert_eq!(split(4, &["1234\r", "\nx\n"]), ["1234", "x"]);
        assert_eq!(split(4, &["1234\r", "x\n"]), ["1234+", "\rx"]);
        assert_eq!(split(4, &["1234\r"]), ["1234+", "\r+"]);
        assert_eq!(split(4, &["1", "234\r56789\r\n"]), ["1234+", "\r567+", "89"]);
    }

    #[test]
    fn every_way_of_reading_gives_the_same_lines() {
        let text = "ab\r\nabcdefgh\nabcd\r\n\n\rabcd\r\rx\nabcdefghijkl\r\nz\n";
        let whole = split(4, &[text]);
        for size in 1..text.len() {
            let reads: Vec<&str> = text.as_bytes().chunks(size).map(|c| str::from_utf8(c).unwrap()).collect();
            assert_eq!(split(4, &reads), whole, "reads of {size}");
        }
    }

    #[test]
    fn a_pipe_is_no_log() {
        let dir = std::env::temp_dir().join(format!("rrun-monitor-log-{}", std::process::id()));
        rustix::fs::mkfifoat(rustix::fs::CWD, &dir, Mode::from_raw_mode(0o600)).unwrap();
        let reader = rustix::fs::open(&dir, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        assert_eq!(LogFile::open(dir.to_str().unwrap()).err(), Some(Errno::INVAL));
        std::fs::remove_file(&dir).unwrap();
        drop(reader);
    }

    #[test]
    fn a_full_disk_drops_lines_counts_them_and_leaves_no_torn_one() {
        let (mut batch, mut log) = (Batch::new(), LogFile::resume("", None, 0));
        // A memory file that may not grow beyond two lines.
        let file = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        log.file = Some(rustix::fs::open("/dev/full", OFlags::WRONLY, Mode::empty()).unwrap());
        for _ in 0..3 {
            log.line(&mut batch, Stream::Stdout, true, b"lost");
        }
        log.write(&mut batch);
        assert_eq!((log.dropped(), log.failing()), (3, Some(Errno::NOSPC)));
        log.file = Some(file.as_fd().try_clone_to_owned().unwrap());
        log.line(&mut batch, Stream::Stderr, false, b"kept");
        log.write(&mut batch);
        assert_eq!((log.dropped(), log.failing()), (3, None));
        let mut text = [0; 64];
        let length = rustix::io::pread(&file, &mut text, 0).unwrap();
        let text = str::from_utf8(&text[..length]).unwrap();
        assert!(text.ends_with("Z stderr P kept\n") && text.len() == clock::RFC3339 + 15, "{text}");
    }
}
