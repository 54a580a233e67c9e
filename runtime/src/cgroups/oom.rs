//! Tells when the kernel kills a process of a container for want of memory: what `events` waits on.

use super::Cgroup;
use crate::sys;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Watches for processes of the container that the kernel kills for want of memory.
#[derive(Debug)]
pub struct OomWatch {
    /// The cgroup's folder.
    dir: PathBuf,
    watched: Watched,
}

#[derive(Debug)]
enum Watched {
    /// v1: an eventfd that counts.
    Counter(EventFd),
    /// v2: `memory.events` and `cgroup.events`, which the kernel announces changes of; kills so far.
    Files(File, File, u64),
}

/// What an [`OomWatch`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing that matters.
    Nothing,
    /// The kernel killed.
    Oom,
    /// The cgroup is gone, or empty.
    End,
}

impl OomWatch {
    /// Begins to watch.
    pub fn new(cgroup: &Cgroup) -> Result<OomWatch> {
        let v1 = cgroup.ours().find(|h| h.has("memory"));
        let h = v1.or_else(|| cgroup.unified().filter(|h| h.ours)).context("memory controller missing")?;
        let watched = if h.v2 {
            let open = |name: &str| File::open(h.dir.join(name)).with_context(|| h.dir.join(name).display().to_string());
            let memory = open("memory.events").context("memory controller missing")?;
            Watched::Files(memory, open("cgroup.events")?, kills(&h.dir))
        } else {
            let counter = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("eventfd")?;
            let file = File::open(h.dir.join("memory.oom_control")).context("open memory.oom_control")?;
            let control = h.dir.join("cgroup.event_control");
            let text = format!("{} {} ", counter.as_raw_fd(), file.as_raw_fd());
            File::options()
                .write(true)
                .open(&control)
                .and_then(|mut f| f.write_all(text.as_bytes()))
                .with_context(|| format!("write to {}", control.display()))?;
            Watched::Counter(counter)
        };
        Ok(OomWatch { dir: h.dir.clone(), watched })
    }

    /// Waits until something happens, or for `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<Seen> {
        // Rounded up: what is due in half a millisecond must not be asked for in a loop.
        let timeout = PollTimeout::try_from(limit + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let woken = match &self.watched {
            Watched::Counter(counter) => poll(&mut [PollFd::new(counter.as_fd(), PollFlags::POLLIN)], timeout),
            Watched::Files(memory, state, _) => {
                poll(&mut [PollFd::new(memory.as_fd(), PollFlags::POLLPRI), PollFd::new(state.as_fd(), PollFlags::POLLPRI)], timeout)
            }
        };
        match woken {
            Ok(0) | Err(Errno::EINTR) => return Ok(Seen::Nothing),
            other => other.context("poll")?,
        };
        match &mut self.watched {
            Watched::Counter(counter) => {
                let _ = counter.read();
                // The end of a cgroup is announced, too.
                Ok(if self.dir.join("cgroup.event_control").exists() { Seen::Oom } else { Seen::End })
            }
            Watched::Files(memory, state, before) => {
                let now = reread(memory).map_or(0, |text| oom_kills(&text));
                if now > *before {
                    *before = now;
                    return Ok(Seen::Oom);
                }
                let populated = reread(state).is_some_and(|text| text.contains("populated 1"));
                Ok(if populated { Seen::Nothing } else { Seen::End })
            }
        }
    }
}

fn reread(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    Some(text)
}

fn kills(dir: &Path) -> u64 {
    sys::read_file(&dir.join("memory.events"), 4096).map_or(0, |text| oom_kills(&String::from_utf8_lossy(&text)))
}

fn oom_kills(events: &str) -> u64 {
    events.lines().find_map(|l| l.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}
