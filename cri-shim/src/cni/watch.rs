//! Says when the folder of network configurations may have changed, also while it does not exist. Called by `Network`.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;

/// An inotify object on the folder, or on what exists of the way to it. Good for one change: make a new one then.
pub(super) struct Watch {
    /// Read like a pipe: which events they are does not matter.
    events: Receiver,
}

impl Watch {
    /// Watches `dir` and the folders of `more`. Read the folder after this, not before: no change is missed then.
    pub(super) fn new(dir: &Path, more: &[PathBuf]) -> io::Result<Watch> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::CREATE | WatchFlags::CLOSE_WRITE | WatchFlags::DELETE | WatchFlags::ATTRIB;
        let moves = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        for folder in more {
            let _ = inotify::add_watch(&fd, folder, changes | moves);
        }
        // What exists may change between the look and the watch: then look again.
        for _ in 0..16 {
            let Some(folder) = nearest(dir) else { break };
            match inotify::add_watch(&fd, folder, changes | moves) {
                Ok(_) if nearest(dir) == Some(folder) => break,
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Watch { events: Receiver::from_owned_fd_unchecked(fd)? })
    }

    /// Waits for a change.
    pub(super) async fn changed(&self) -> io::Result<()> {
        self.events.readable().await
    }
}

/// The folder itself, or the part of the way to it that exists.
fn nearest(dir: &Path) -> Option<&Path> {
    dir.ancestors().find(|p| p.is_dir())
}
