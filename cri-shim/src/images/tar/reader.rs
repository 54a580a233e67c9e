//! A streaming reader of tar archives: one entry at a time, contents in large slices.
//!
//! Called by whoever walks an archive. Understands ustar, PAX, GNU long names and all
//! four forms of GNU sparse files. What it cannot understand is an error that names
//! the entry: nothing is guessed. Memory is bounded by [`MAX_HEADER`] and the buffer.
use super::MAX_SPARSE;
use super::header::{BLOCK, Header, sparse_block};
use super::pax::{Pax, decimal};
use anyhow::{Context, Result, anyhow, bail};
use std::io::{self, Read};

/// The largest extended header or long name.
const MAX_HEADER: u64 = 1 << 20;
const BUFFER: usize = 128 << 10;

/// What an archive may hold at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the archive itself (uncompressed).
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for Limits {
    /// 64 GiB and four million entries.
    fn default() -> Limits {
        Limits { bytes: 64 << 30, entries: 4 << 20 }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of an earlier entry.
    Link,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
}

/// One member of an archive.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path as written in the archive.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Size of the file, holes included.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes by full name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset and length of the pieces that have contents, ascending; none: all of it.
    pub sparse: Option<Vec<(u64, u64)>>,
}

impl Entry {
    /// The path for a message.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).escape_debug().collect()
    }
}

/// An archive being read.
pub struct Archive<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes taken out of the buffer so far.
    offset: u64,
    limits: Limits,
    entries: u64,
    global: Pax,
    /// Contents of the current entry not yet taken, and the padding after them.
    left: u64,
    padding: u64,
    done: bool,
}

impl<R: Read> Archive<R> {
    /// Starts at the beginning of an archive.
    pub fn new(source: R, limits: Limits) -> Archive<R> {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        let global = Pax::default();
        Archive { source, buffer, start: 0, end: 0, offset: 0, limits, entries: 0, global, left: 0, padding: 0, done: false }
    }

    /// The next entry, or `None` after the last. Skips what is left of the one before.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        if self.done {
            return Ok(None);
        }
        self.skip()?;
        let mut pax: Option<Pax> = None;
        let (mut long_path, mut long_link) = (None, None);
        loop {
            let at = self.offset;
            let Some(block) = self.header_block()? else {
                if pax.is_some() || long_path.is_some() || long_link.is_some() {
                    bail!("archive ends after an extended header, at byte {at}");
                }
                self.done = true;
                return Ok(None);
            };
            let header = Header::parse(&block).with_context(|| format!("header at byte {at}"))?;
            self.entries += 1;
            if self.entries > self.limits.entries {
                bail!("archive has more than {} entries", self.limits.entries);
            }
            let named = || String::from_utf8_lossy(&header.path()).escape_debug().to_string();
            match header.kind() {
                b'x' | b'X' => {
                    let bytes = self.extended(&header).with_context(|| format!("PAX header {:?}", named()))?;
                    let mut fresh = self.global.clone();
                    fresh.read(&bytes).with_context(|| format!("PAX header {:?}", named()))?;
                    pax = Some(fresh);
                }
                b'g' => {
                    let bytes = self.extended(&header).with_context(|| format!("PAX header {:?}", named()))?;
                    self.read_global(&bytes)?;
                }
                b'L' => long_path = Some(until_nul(self.extended(&header).context("GNU long name")?)),
                b'K' => long_link = Some(until_nul(self.extended(&header).context("GNU long link name")?)),
                b'V' => {}
                _ => {
                    let pax = pax.unwrap_or_else(|| self.global.clone());
                    return self.member(&header, pax, long_path, long_link).map(Some);
                }
            }
        }
    }

    /// The next piece of the current entry's contents, empty at their end.
    pub fn contents(&mut self) -> Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        if self.start == self.end && self.fill()? == 0 {
            bail!("archive ends within an entry, at byte {}", self.offset);
        }
        let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.end - self.start);
        let from = self.start;
        self.take(take);
        self.left -= take as u64;
        Ok(&self.buffer[from..from + take])
    }

    /// Where in the archive the current entry's remaining contents start.
    pub fn position(&self) -> u64 {
        self.offset
    }

    /// Bytes of the current entry's contents not yet taken.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// Reads to the end of the stream, past the archive's own end, and gives the source back.
    pub fn finish(mut self) -> Result<R> {
        loop {
            self.take(self.end - self.start);
            if self.fill()? == 0 {
                return Ok(self.source);
            }
        }
    }

    fn take(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }

    /// Refills the empty buffer. 0 at the end of the stream.
    fn fill(&mut self) -> Result<usize> {
        debug_assert_eq!(self.start, self.end);
        (self.start, self.end) = (0, 0);
        while self.end < self.buffer.len() {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(n) => self.end += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.offset + self.end as u64 > self.limits.bytes {
            bail!("archive is larger than {} bytes", self.limits.bytes);
        }
        Ok(self.end)
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            if self.start == self.end && self.fill()? == 0 {
                if have == 0 {
                    return Ok(None);
                }
                bail!("archive ends within a header, at byte {}", self.offset);
            }
            let n = (BLOCK - have).min(self.end - self.start);
            block[have..have + n].copy_from_slice(&self.buffer[self.start..self.start + n]);
            self.take(n);
            have += n;
        }
        Ok(Some(block))
    }

    /// A header, or `None` at a block of zeros (or where the stream ends, as after a writer
    /// that leaves the end marker out).
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        Ok(self.block()?.filter(|block| block.iter().any(|b| *b != 0)))
    }

    fn skip(&mut self) -> Result<()> {
        while self.left > 0 {
            self.contents()?;
        }
        (self.left, self.padding) = (self.padding, 0);
        while self.left > 0 {
            self.contents()?;
        }
        Ok(())
    }

    fn open(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn extended(&mut self, header: &Header<'_>) -> Result<Vec<u8>> {
        let size = header.size()?;
        if size > MAX_HEADER {
            bail!("extended header of {size} bytes; the most is {MAX_HEADER}");
        }
        self.open(size);
        let mut bytes = Vec::new();
        while self.left > 0 {
            bytes.extend_from_slice(self.contents()?);
        }
        self.skip()?;
        Ok(bytes)
    }

    /// A global header may not name, resize or otherwise reshape the entries after it.
    fn read_global(&mut self, bytes: &[u8]) -> Result<()> {
        let mut fresh = self.global.clone();
        fresh.read(bytes).context("global PAX header")?;
        self.global = Pax { uid: fresh.uid, gid: fresh.gid, mtime: fresh.mtime, ..Pax::default() };
        Ok(())
    }

    fn member(&mut self, header: &Header<'_>, pax: Pax, long_path: Option<Vec<u8>>, long_link: Option<Vec<u8>>) -> Result<Entry> {
        let path = pax.sparse.name.clone().or_else(|| pax.path.clone()).or(long_path).unwrap_or_else(|| header.path());
        let name = String::from_utf8_lossy(&path).escape_debug().to_string();
        self.member_named(header, pax, path, long_link).with_context(|| format!("entry {name:?}"))
    }

    fn member_named(&mut self, header: &Header<'_>, pax: Pax, path: Vec<u8>, long_link: Option<Vec<u8>>) -> Result<Entry> {
        let kind = match header.kind() {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => bail!("unknown type {:?}", char::from(other)),
        };
        // Writers leave sizes in the headers of links and directories, without contents.
        let stored = if kind == Kind::File { pax.size.map_or_else(|| header.size(), Ok)? } else { 0 };
        if stored > i64::MAX as u64 {
            bail!("size {stored} is out of range");
        }
        self.open(stored);
        let mut entry = Entry {
            path,
            link: pax.link.or(long_link).unwrap_or_else(|| header.link()),
            kind,
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime: pax.mtime.map_or_else(|| header.mtime().map(|s| (s, 0)), Ok)?,
            size: stored,
            device: if matches!(kind, Kind::Char | Kind::Block) { header.device()? } else { (0, 0) },
            xattrs: pax.xattrs,
            sparse: None,
        };
        let sparse = pax.sparse;
        if header.kind() == b'S' {
            let (map, size) = self.old_sparse(header, stored)?;
            entry.size = sparse.real_size.unwrap_or(size);
            entry.sparse = Some(map);
        } else if kind == Kind::File && (sparse.real_size.is_some() || !sparse.map.is_empty()) {
            entry.size = sparse.real_size.ok_or_else(|| anyhow!("sparse file without its size"))?;
            entry.sparse = Some(if sparse.major == Some(1) { self.map_in_contents()? } else { sparse.map });
        }
        if let Some(map) = &entry.sparse {
            check_sparse(map, self.left, entry.size)?;
        }
        Ok(entry)
    }

    fn old_sparse(&mut self, header: &Header<'_>, stored: u64) -> Result<(Vec<(u64, u64)>, u64)> {
        let (mut map, mut more, size) = header.sparse()?;
        while more {
            let block = self.block()?.ok_or_else(|| anyhow!("archive ends within a sparse map"))?;
            let (pieces, again) = sparse_block(&block)?;
            map.extend(pieces);
            if map.len() > MAX_SPARSE {
                bail!("sparse map of more than {MAX_SPARSE} pieces");
            }
            more = again;
        }
        self.open(stored);
        Ok((map, size))
    }

    /// Format 1.0: the map stands before the contents, in decimal lines, padded to a block.
    fn map_in_contents(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut lines = Lines { block: [0; BLOCK], at: BLOCK };
        let count = usize::try_from(lines.number(self)?)?;
        if count > MAX_SPARSE {
            bail!("sparse map of more than {MAX_SPARSE} pieces");
        }
        let mut map = Vec::new();
        for _ in 0..count {
            map.push((lines.number(self)?, lines.number(self)?));
        }
        Ok(map)
    }
}

struct Lines {
    block: [u8; BLOCK],
    at: usize,
}

impl Lines {
    fn number<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                if archive.left < BLOCK as u64 {
                    bail!("sparse map is cut off");
                }
                self.block = archive.block()?.ok_or_else(|| anyhow!("archive ends within a sparse map"))?;
                archive.left -= BLOCK as u64;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return decimal(&digits, "sparse map");
            }
            digits.push(byte);
            if digits.len() > 20 {
                bail!("sparse map: a number is too long");
            }
        }
    }
}

/// The pieces ascend, do not overlap, lie within the file and are exactly what is stored.
fn check_sparse(map: &[(u64, u64)], stored: u64, size: u64) -> Result<()> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for &(offset, length) in map {
        let after = offset.checked_add(length).filter(|after| offset >= end && *after <= size);
        end = after.ok_or_else(|| anyhow!("sparse map: piece at {offset} of {length} bytes is out of order or out of the file"))?;
        sum += length;
    }
    if sum != stored || size > i64::MAX as u64 {
        bail!("sparse map: {sum} bytes of pieces, {stored} bytes stored, file of {size} bytes");
    }
    Ok(())
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}
