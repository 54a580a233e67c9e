//! How much a writable layer holds. A walk over its files, at most so often that walking takes a two-hundredth of the time.

use std::collections::HashSet;
use std::ffi::CStr;
use std::path::Path;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, FileType, statat};

use crate::tree::{self, Visitor};

/// A folder's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// On disk, holes not counted.
    pub bytes: u64,
    pub inodes: u64,
    /// When it was read, in nanoseconds since the epoch.
    pub at: i64,
}

/// The content of a folder as of the last walk. Who comes while another walks gets what the walk before has found, and waits
/// only for the first one.
#[derive(Debug, Default)]
pub(super) struct Disk {
    walking: Mutex<()>,
    /// And when to walk again.
    last: Mutex<Option<(Content, Instant)>>,
}

const LEAST: Duration = Duration::from_secs(10);

impl Disk {
    /// The content of `folder`, walked anew if it is time.
    pub(super) fn content(&self, folder: &Path) -> Content {
        let known = match self.last() {
            Some((content, again)) if again > Instant::now() => return content,
            known => known,
        };
        let _walking = match (self.walking.try_lock(), known) {
            (Ok(guard), _) => guard,
            (Err(TryLockError::WouldBlock), Some((content, _))) => return content,
            _ => self.walking.lock().unwrap_or_else(PoisonError::into_inner),
        };
        match self.last() {
            // Who had the lock before has walked.
            Some((content, again)) if again > Instant::now() => content,
            _ => {
                let begin = Instant::now();
                let content = walk(folder);
                let again = Instant::now() + LEAST.max(begin.elapsed() * 200);
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((content, again));
                content
            }
        }
    }

    fn last(&self) -> Option<(Content, Instant)> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What vanishes on the way is not there.
fn walk(folder: &Path) -> Content {
    let mut usage = Usage::default();
    if let Ok(folder) = tree::open_folder(folder)
        && let Err(error) = tree::walk(folder.as_fd(), &mut usage)
    {
        tracing::debug!("how much a writable layer holds: {error:#}");
    }
    Content { at: super::now(), ..usage.content }
}

#[derive(Default)]
struct Usage {
    content: Content,
    linked: HashSet<(u64, u64)>,
}

impl Visitor for Usage {
    fn see(&mut self, folder: BorrowedFd<'_>, name: &CStr) -> anyhow::Result<bool> {
        let Ok(stat) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(false) };
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_folder || stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            self.content.bytes += stat.st_blocks as u64 * 512;
            self.content.inodes += 1;
        }
        Ok(is_folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_links_and_holes() {
        let folder = std::env::temp_dir().join(format!("rrun-cri-disk-{}", std::process::id()));
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("file"), vec![1; 100_000]).unwrap();
        fs::hard_link(folder.join("file"), folder.join("sub/again")).unwrap();
        fs::File::create(folder.join("hole")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", folder.join("link")).unwrap();
        let disk = Disk::default();
        let content = disk.content(&folder);
        assert_eq!(content.inodes, 4, "a folder, two files, a link");
        assert!((100_000..1 << 20).contains(&content.bytes), "{content:?}");
        fs::write(folder.join("new"), "x").unwrap();
        assert_eq!(disk.content(&folder), content, "not walked again so soon");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(Content { at: 0, ..walk(&folder) }, Content::default());
    }
}
