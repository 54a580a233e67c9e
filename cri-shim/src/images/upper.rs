//! A container's writable layer as an archive: how it goes into a checkpoint, and comes out of one.
//!
//! Called by `containers::checkpoint` and `containers::restore`. The archive has the form of a layer, whiteouts included,
//! and ids as the container has them.
use super::decompress::decoder;
use super::export::{Walk, open_layer};
use super::lower;
use super::tar::Writer;
use super::unpack::{Options, unpack, unpack_without};
use anyhow::{Context, Result, bail};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const BUFFER: usize = 128 << 10;

/// A range of ids (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first, as the namespace has it.
    pub inside: u32,
    /// The first, as the host has it.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

impl Default for Range {
    /// All of the host's.
    fn default() -> Range {
        Range { inside: 0, outside: 0, length: u32::MAX }
    }
}

impl Range {
    fn inside(&self, id: u32) -> Option<u32> {
        id.checked_sub(self.outside).filter(|offset| *offset < self.length)?.checked_add(self.inside)
    }
}

/// The maps of a user namespace; the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Users.
    pub uids: Range,
    /// Groups.
    pub gids: Range,
}

impl Owners {
    /// Who an owner of the host's is inside.
    pub fn inside(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        match (self.uids.inside(uid), self.gids.inside(gid)) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => bail!("owner {uid}:{gid} is not of the pod's user namespace"),
        }
    }
}

/// Writes the layer in the folder `upper` to `out`; gives the paths that it hides of the image. Blocks.
pub fn save(upper: &Path, owners: Owners, out: impl Write) -> Result<Vec<Vec<u8>>> {
    let writer = Writer::new(BufWriter::with_capacity(BUFFER, out));
    let (writer, hidden) = Walk::layer(writer, open_layer(upper)?, owners).with_context(|| upper.display().to_string())?;
    writer.finish()?.flush().context("write")?;
    Ok(hidden)
}

/// Unpacks `archive` (plain, gzip or zstd) into the empty folder `upper`, with whiteouts at the paths `hidden`. `layers` are
/// the image's, lowest first: directories that the archive does not name look as they do there. Blocks.
pub fn load(archive: impl Read, upper: &Path, hidden: &[Vec<u8>], layers: &[PathBuf]) -> Result<()> {
    let mut archive = BufReader::with_capacity(BUFFER, archive);
    let (unpacked, _) = unpack_without(decoder(&mut archive)?, open_layer(upper)?, Options::default(), hidden)?;
    let lower: Vec<_> = layers.iter().rev().cloned().collect();
    lower::copy_implied(&open_layer(upper)?, &unpacked.implied, &lower, false)
}

/// Unpacks any archive (plain, gzip or zstd) into the empty folder `folder`, as files of ours. Blocks.
pub fn unpack_all(archive: impl Read, folder: &Path) -> Result<()> {
    let mut archive = BufReader::with_capacity(BUFFER, archive);
    unpack(decoder(&mut archive)?, open_layer(folder)?, Options { squash: true, ..Options::default() }).map(drop)
}

/// Opens a regular file of an unpacked archive by its name in that folder; none where there is no such file.
pub fn open_file(folder: &OwnedFd, name: &std::ffi::OsStr) -> Result<Option<File>> {
    // Not blocking: it may be a FIFO.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        file => File::from(file.with_context(|| format!("{name:?}: open"))?),
    };
    if !file.metadata().with_context(|| format!("{name:?}: stat"))?.is_file() {
        bail!("{name:?} is not a regular file");
    }
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_as_the_namespace_has_them() {
        let range = Range { inside: 0, outside: 100_000, length: 65_536 };
        let owners = Owners { uids: range, gids: range };
        assert_eq!(owners.inside(100_000, 101_000).unwrap(), (0, 1000));
        assert!(owners.inside(0, 100_000).is_err() && owners.inside(165_536, 100_000).is_err());
        assert_eq!(Owners::default().inside(7, u32::MAX - 1).unwrap(), (7, u32::MAX - 1));
    }
}
