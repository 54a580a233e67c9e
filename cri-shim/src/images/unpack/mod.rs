//! Unpacks the tar archive of a layer into a directory that overlayfs mounts.
//!
//! Called by `images::layers`, on a blocking thread. Streaming: one pass, memory for
//! the directories only. Every path is resolved beneath the directory's fd
//! ([`tree::Tree`]); whiteouts become what overlayfs wants. An archive that breaks a
//! rule is refused with an error that names the entry.
mod node;
mod tree;

use super::tar::{Archive, Entry, Kind, Limits};
use anyhow::{Context, Result, bail};
use node::Maker;
use rustix::fd::OwnedFd;
use std::io::Read;
use tree::Tree;

/// How layers are unpacked in a store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What one layer may hold at most.
    pub limits: Limits,
    /// For a store of an ordinary user with a single id: owners are left out, devices
    /// and attributes that need root too, overlay's marks are `user.overlay.*`, and the
    /// owner may read every file and use every directory.
    pub squash: bool,
}

/// What was unpacked.
#[derive(Clone, Debug, Default)]
pub struct Unpacked {
    /// Disk space of files and directories, rounded up to blocks of 4 KiB.
    pub bytes: u64,
    /// Files, directories and all else.
    pub inodes: u64,
    /// Directories that entries lie in without being entries: their owner and mode
    /// are those of the layers below.
    pub implied: Vec<Vec<u8>>,
    /// Devices left out (squash).
    pub devices: u64,
    /// Extended attributes left out: overlay's own, or not settable here.
    pub xattrs: u64,
}

const WHITEOUT: &[u8] = b".wh.";
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks `archive` into the empty directory `root` and reads the stream to its end.
pub fn unpack<R: Read>(archive: R, root: OwnedFd, options: Options) -> Result<(Unpacked, R)> {
    unpack_without(archive, root, options, &[])
}

/// [`unpack`], and whiteouts at the paths `hidden`.
pub(super) fn unpack_without<R: Read>(archive: R, root: OwnedFd, options: Options, hidden: &[Vec<u8>]) -> Result<(Unpacked, R)> {
    let mut archive = Archive::new(archive, options.limits);
    let mut maker = Maker::new(Tree::new(root, options.squash)?, options.squash);
    while let Some(entry) = archive.next_entry()? {
        place(&mut maker, &mut archive, &entry).with_context(|| format!("entry {:?}", entry.name()))?;
    }
    let source = archive.finish()?;
    for path in hidden {
        hide(&mut maker, path).with_context(|| format!("deleted file {}", lossy(path)))?;
    }
    Ok((maker.finish()?, source))
}

fn place<R: Read>(maker: &mut Maker, archive: &mut Archive<R>, entry: &Entry) -> Result<()> {
    let path = clean(&entry.path)?;
    let Some((parent, name)) = split(&path) else {
        if entry.kind != Kind::Dir {
            bail!("the layer's root is not a directory");
        }
        maker.describe(Vec::new(), entry);
        return Ok(());
    };
    if parent.split(|b| *b == b'/').any(|part| part.starts_with(WHITEOUT)) {
        bail!("lies beneath a whiteout");
    }
    if name == OPAQUE {
        return maker.opaque(parent);
    }
    if name.starts_with(META) {
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            bail!("whiteout of nothing");
        }
        return maker.whiteout(parent, hidden);
    }
    match entry.kind {
        Kind::File => maker.file(parent, name, entry, archive),
        Kind::Dir => maker.dir(parent, name, entry),
        Kind::Symlink => maker.symlink(parent, name, entry),
        Kind::Link => {
            let target = clean(&entry.link).with_context(|| format!("hard link to {}", lossy(&entry.link)))?;
            let Some((target_parent, target_name)) = split(&target) else { bail!("hard link to the layer's root") };
            maker.link(parent, name, target_parent, target_name).with_context(|| format!("hard link to {}", lossy(&entry.link)))
        }
        Kind::Char | Kind::Block | Kind::Fifo => maker.special(parent, name, entry),
    }
}

fn hide(maker: &mut Maker, path: &[u8]) -> Result<()> {
    let path = clean(path)?;
    let Some((parent, name)) = split(&path) else { bail!("is the root") };
    maker.whiteout(parent, name)
}

/// `./a//b/` and `/a/b` are `a/b`; a path that climbs is refused.
fn clean(path: &[u8]) -> Result<Vec<u8>> {
    if path.len() > 4096 {
        bail!("path of {} bytes; the most is 4096", path.len());
    }
    if path.contains(&0) {
        bail!("path holds a zero byte");
    }
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => bail!("path leaves the layer by '..'"),
            _ => {}
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
    }
    Ok(clean)
}

/// Parent and last component, `None` for the root itself.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    })
}

fn lossy(path: &[u8]) -> String {
    format!("\"{}\"", String::from_utf8_lossy(path).escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(clean(b"./a//b/").unwrap(), b"a/b");
        assert_eq!(clean(b"/a").unwrap(), b"a");
        assert_eq!(clean(b"./").unwrap(), b"");
        assert!(clean(b"a/../b").is_err() && clean(b"..").is_err() && clean(b"a\0").is_err());
        assert_eq!(split(b"a/b/c"), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
    }
}
