//! How much a writable layer holds. A walk over its files, at most so often that walking takes a two-hundredth of the time.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A folder's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// On disk, holes not counted.
    pub bytes: u64,
    pub inodes: u64,
}

/// The content of a folder as of the last walk.
#[derive(Debug, Default)]
pub(super) struct Disk {
    content: Content,
    /// When it was read, in nanoseconds since the epoch.
    pub at: i64,
    again: Option<Instant>,
}

const LEAST: Duration = Duration::from_secs(10);

impl Disk {
    /// The content of `folder`, walked anew if it is time.
    pub(super) fn content(&mut self, folder: &Path) -> Content {
        let now = Instant::now();
        if self.again.is_none_or(|again| again <= now) {
            self.content = walk(folder);
            self.at = super::now();
            self.again = Some(now + LEAST.max(now.elapsed() * 200));
        }
        self.content
    }
}

/// What vanishes on the way is not there.
fn walk(folder: &Path) -> Content {
    let mut content = Content::default();
    let mut linked = HashSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.nlink() > 1 && !linked.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            content.bytes += metadata.blocks() * 512;
            content.inodes += 1;
        }
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_links_and_holes() {
        let folder = std::env::temp_dir().join(format!("rrun-cri-disk-{}", std::process::id()));
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("file"), vec![1; 100_000]).unwrap();
        fs::hard_link(folder.join("file"), folder.join("sub/again")).unwrap();
        fs::File::create(folder.join("hole")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", folder.join("link")).unwrap();
        let mut disk = Disk::default();
        let content = disk.content(&folder);
        assert_eq!(content.inodes, 4, "a folder, two files, a link");
        assert!((100_000..1 << 20).contains(&content.bytes), "{content:?}");
        fs::write(folder.join("new"), "x").unwrap();
        assert_eq!(disk.content(&folder), content, "not walked again so soon");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(walk(&folder), Content::default());
    }
}
