//! Writes tar archives: ustar headers, PAX records for what does not fit in them.
//!
//! Called by `images::export` and by tests. The same entries give the same bytes: no
//! name of a user, no time of writing.
use super::header::BLOCK;
use super::reader::{Entry, Kind};
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};

/// An archive being written.
pub struct Writer<W: Write> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Writes to `out`, which should buffer.
    pub fn new(out: W) -> Writer<W> {
        Writer { out }
    }

    /// Writes what stands before an entry's contents.
    fn begin(&mut self, entry: &Entry) -> Result<()> {
        let records = records(entry);
        if !records.is_empty() {
            let name: &[u8] = b"././@PaxHeader";
            let pax = Entry { path: name.to_vec(), ..Entry::file(b"", records.len() as u64) };
            self.header(&pax, b'x')?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::Link => b'1',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::Block => b'4',
            Kind::Dir => b'5',
            Kind::Fifo => b'6',
        };
        self.header(entry, kind)
    }

    /// Writes an entry; `contents` gives exactly `entry.size` bytes where it is a file. Holes are
    /// written as zeros.
    pub fn append(&mut self, entry: &Entry, contents: impl Read) -> Result<()> {
        self.begin(entry)?;
        if entry.kind == Kind::File {
            let copied = std::io::copy(&mut contents.take(entry.size), &mut self.out)?;
            if copied != entry.size {
                bail!("{:?}: {copied} bytes of contents, {} announced", entry.name(), entry.size);
            }
            self.pad(copied)?;
        }
        Ok(())
    }

    /// Writes the end marker and gives the output back.
    pub fn finish(mut self) -> Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn header(&mut self, entry: &Entry, kind: u8) -> Result<()> {
        let mut block = [0_u8; BLOCK];
        // Where a value does not fit, a PAX record has said it; this is for old readers.
        let fill = |block: &mut [u8], bytes: &[u8]| {
            let length = bytes.len().min(block.len());
            block[..length].copy_from_slice(&bytes[..length]);
        };
        let octal = |block: &mut [u8], value: u64| {
            let digits = block.len() - 1;
            let most = if digits >= 21 { u64::MAX } else { (1 << (3 * digits)) - 1 };
            block[..digits].copy_from_slice(format!("{:0digits$o}", value.min(most)).as_bytes());
        };
        fill(&mut block[..100], &entry.path);
        octal(&mut block[100..108], entry.mode.into());
        octal(&mut block[108..116], entry.uid.into());
        octal(&mut block[116..124], entry.gid.into());
        octal(&mut block[124..136], if kind == b'0' || kind == b'x' { entry.size } else { 0 });
        octal(&mut block[136..148], u64::try_from(entry.mtime.0).unwrap_or(0));
        block[148..156].fill(b' ');
        block[156] = kind;
        fill(&mut block[157..257], &entry.link);
        fill(&mut block[257..265], b"ustar\x0000");
        octal(&mut block[329..337], entry.device.0.into());
        octal(&mut block[337..345], entry.device.1.into());
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        octal(&mut block[148..155], sum);
        self.out.write_all(&block).context("write")
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let zeros = [0; BLOCK];
        let missing = (size.next_multiple_of(BLOCK as u64) - size) as usize;
        self.out.write_all(&zeros[..missing]).context("write")
    }
}

/// An archive of one file, made as it is read: `contents` gives exactly `size` bytes.
pub(in super::super) fn of_one_file(path: &[u8], size: u64, contents: impl Read) -> Result<impl Read> {
    let mut writer = Writer::new(Vec::new());
    writer.begin(&Entry::file(path, size))?;
    let padding = size.checked_next_multiple_of(BLOCK as u64).context("size is out of range")? - size;
    let end = std::io::repeat(0).take(padding + 2 * BLOCK as u64);
    Ok(std::io::Cursor::new(writer.out).chain(contents.take(size)).chain(end))
}

impl Entry {
    /// A regular file of root's with mode 0644.
    pub fn file(path: &[u8], size: u64) -> Entry {
        Entry {
            path: path.to_vec(),
            link: Vec::new(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size,
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
        }
    }
}

fn records(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| {
        // The length counts its own digits.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        out.extend_from_slice(length.to_string().as_bytes());
        for part in [&b" "[..], key, b"=", value, b"\n"] {
            out.extend_from_slice(part);
        }
    };
    if entry.path.len() > 100 {
        add(b"path", &entry.path);
    }
    if entry.link.len() > 100 {
        add(b"linkpath", &entry.link);
    }
    if entry.size >= 1 << 33 {
        add(b"size", entry.size.to_string().as_bytes());
    }
    for (key, id) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
        if id >= 1 << 21 {
            add(key, id.to_string().as_bytes());
        }
    }
    if entry.mtime.1 != 0 || !(0..1 << 33).contains(&entry.mtime.0) {
        add(b"mtime", seconds(entry.mtime).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        let mut key = b"SCHILY.xattr.".to_vec();
        for byte in name {
            match byte {
                b'=' => key.extend_from_slice(b"%3D"),
                b'%' => key.extend_from_slice(b"%25"),
                _ => key.push(*byte),
            }
        }
        add(&key, value);
    }
    out
}

fn seconds((whole, nanos): (i64, u32)) -> String {
    let text = match (whole, nanos) {
        (whole, 0) => return whole.to_string(),
        (whole, nanos) if whole < 0 => format!("-{}.{:09}", -(whole + 1), 1_000_000_000 - nanos),
        (whole, nanos) => format!("{whole}.{nanos:09}"),
    };
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::{Archive, Limits};
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut long = Entry::file(&[b'n'; 300], 5);
        (long.uid, long.gid, long.mode) = (3_000_000, 7, 0o4755);
        long.mtime = (-2, 750_000_000);
        long.xattrs = vec![(b"user.a=b".to_vec(), b"\n\0=".to_vec())];
        let link = Entry { kind: Kind::Symlink, link: vec![b't'; 200], mtime: (5, 10), size: 0, ..Entry::file(b"l", 0) };
        let mut writer = Writer::new(Vec::new());
        writer.append(&long, &b"hello"[..]).unwrap();
        writer.append(&link, &b""[..]).unwrap();
        let bytes = writer.finish().unwrap();
        let mut archive = Archive::new(&bytes[..], Limits::default());
        let first = archive.next_entry().unwrap().unwrap();
        assert_eq!(format!("{first:?}"), format!("{long:?}"));
        assert_eq!(archive.contents().unwrap(), b"hello");
        let second = archive.next_entry().unwrap().unwrap();
        assert_eq!(format!("{second:?}"), format!("{link:?}"));
        assert!(archive.next_entry().unwrap().is_none());
    }
}
