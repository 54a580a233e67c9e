//! Writes the archive of a folder of files, and one of files in it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};

use super::IMAGES;
use crate::images::tar::{Entry, Kind, Writer};

/// Writes all regular files of `folder` and of its folder of images to `out`, readable by their owner alone.
pub(super) fn pack(folder: &Path, out: impl Write) -> Result<()> {
    let mut writer = Writer::new(io::BufWriter::with_capacity(128 << 10, out));
    let name = format!("{IMAGES}/");
    let directory = Entry { kind: Kind::Dir, mode: 0o700, ..Entry::file(name.as_bytes(), 0) };
    writer.append(&directory, io::empty())?;
    for path in files(&folder.join(IMAGES))?.into_iter().chain(files(folder)?) {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let data = file.metadata().with_context(|| format!("stat {}", path.display()))?;
        let name = path.strip_prefix(folder).unwrap_or(&path).as_os_str().as_bytes();
        let since = data.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
        let mtime = (i64::try_from(since.as_secs())?, since.subsec_nanos());
        let entry = Entry { mode: 0o600, mtime, ..Entry::file(name, data.len()) };
        writer.append(&entry, file).with_context(|| format!("archive {}", path.display()))?;
    }
    writer.finish()?.flush().context("write")
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        if entry.file_type().with_context(|| format!("stat {}", entry.path().display()))?.is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// A writer that fails with `TimedOut` once its time is over.
pub(super) struct InTime<W> {
    pub(super) inner: W,
    pub(super) deadline: Option<Instant>,
}

impl<W: Write> Write for InTime<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
