//! Reading many small files of the kernel, with one buffer for all of them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A buffer for texts and one for paths.
#[derive(Debug, Default)]
pub(super) struct Reader {
    text: Vec<u8>,
    path: PathBuf,
}

impl Reader {
    /// The text of a file; `None` where it cannot be read.
    pub(super) fn text(&mut self, folder: &Path, name: &str) -> Option<&str> {
        self.path.clear();
        self.path.push(folder);
        self.path.push(name);
        let mut file = File::open(&self.path).ok()?;
        self.text.clear();
        // Without a stat for the size, which such files do not have. A read that leaves room for another line was the last.
        let mut piece = [0; 8192];
        loop {
            let read = file.read(&mut piece).ok()?;
            self.text.extend_from_slice(&piece[..read]);
            if read < piece.len() - 256 {
                break;
            }
        }
        std::str::from_utf8(&self.text).ok()
    }

    /// The number that a file holds; `None` also for `max`.
    pub(super) fn number(&mut self, folder: &Path, name: &str) -> Option<u64> {
        number(self.text(folder, name)?.trim_end())
    }
}

/// A number of the kernel's.
pub(super) fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// The value of a line `NAME VALUE`.
pub(super) fn flat(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| number(line.strip_prefix(name)?.strip_prefix(' ')?))
}
