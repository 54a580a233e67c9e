//! A layer as a hostile registry sends it: no panic, nothing outside of the layer's folder, and the same files however the
//! archive is cut. Needs no root; as root, devices and owners take part.
#![no_main]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use rrun_cri::images::tar::{Entry, Kind, Limits, Writer};
use rrun_cri::images::unpack::{Options, unpack};

fuzz_target!(|input: &[u8]| {
    let Some((head, bytes)) = input.split_first() else { return };
    let archive = if head & 1 == 0 { mended(bytes) } else { made(bytes) };
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let base = base.join(format!("rrun-fuzz-tar-{}", std::process::id()));
    fs::create_dir_all(&base).expect("a folder to work in");
    let options = Options { limits: Limits { bytes: 1 << 22, entries: 1000 }, squash: head & 2 != 0 || !is_root() };
    let whole = unpacked(&base.join("whole"), Pieces(&archive, usize::MAX), options);
    let cut = unpacked(&base.join("cut"), Pieces(&archive, usize::from(*head) + 1), options);
    assert_eq!(whole, cut);
    let mut beside: Vec<_> = fs::read_dir(&base).expect("the folder").map(|entry| entry.expect("an entry").file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["cut", "whole"], "something lies outside of the layer");
    fs::remove_dir_all(&base).expect("what was unpacked can be removed");
});

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Kind, mode, size and link count by path; nothing where the archive was refused.
fn unpacked(root: &Path, archive: Pieces<'_>, options: Options) -> Option<BTreeMap<PathBuf, (u32, u64, u64)>> {
    fs::create_dir(root).expect("a folder");
    let done = unpack(archive, File::open(root).expect("the folder").into(), options);
    let mut found = BTreeMap::new();
    list(root, root, &mut found);
    let (done, _) = done.ok()?;
    let names = found.values().filter(|(mode, ..)| mode & 0o170000 == 0o040000).count() as u64;
    assert!(done.inodes > names, "{} inodes, and {names} folders and the layer's own", done.inodes);
    Some(found)
}

fn list(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, (u32, u64, u64)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let meta = entry.metadata().expect("a file that is there");
        let size = if meta.is_file() { meta.len() } else { 0 };
        found.insert(
            entry.path().strip_prefix(root).expect("beneath").to_owned(),
            (meta.mode(), size, if meta.is_file() { meta.nlink() } else { 0 }),
        );
        assert!(entry.file_name().as_bytes().len() < 256);
        if meta.is_dir() {
            list(root, &entry.path(), found);
        }
    }
}

/// The bytes as an archive, with sums that are right wherever a header seems to be.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    bytes
}

/// An archive of entries that the bytes tell of: kind, mode, lengths, and two names.
fn made(mut bytes: &[u8]) -> Vec<u8> {
    const KINDS: [Kind; 8] = [Kind::File, Kind::Dir, Kind::Symlink, Kind::Link, Kind::Fifo, Kind::Char, Kind::File, Kind::Dir];
    let mut writer = Writer::new(Vec::new());
    while let [head, mode, name, link, rest @ ..] = bytes {
        let (name, link) = (usize::from(name % 24).min(rest.len()), usize::from(link % 24));
        let (path, rest) = rest.split_at(name);
        let (link, rest) = rest.split_at(link.min(rest.len()));
        let kind = KINDS[usize::from(head % 8)];
        let size = if kind == Kind::File { u64::from(head >> 3) * 40 } else { 0 };
        let entry = Entry { kind, mode: u32::from(*mode) << 4 | 0o7, link: link.to_vec(), ..Entry::file(path, size) };
        // What cannot be written is no archive.
        if writer.append(&entry, io::repeat(*mode)).is_err() {
            break;
        }
        bytes = rest;
    }
    writer.finish().unwrap_or_default()
}

/// Gives so many bytes at a time.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = buf.len().min(self.1);
        self.0.read(&mut buf[..most])
    }
}
