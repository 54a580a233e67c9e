//! Whether the out-of-memory killer struck in a container's cgroup: the kernel's counter, opened before the
//! container starts and read when it has ended, before the cgroup goes.

use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;

/// What the kernel adds to a process's badness: kubelet sets a container's, an exec'd process has its container's, and
/// the monitor is to be the last to go. None if it cannot be read.
pub(crate) fn score_of(process: impl std::fmt::Display) -> Option<i32> {
    std::fs::read_to_string(format!("/proc/{process}/oom_score_adj")).ok()?.trim().parse().ok()
}

/// The monitor's own, which what it starts inherits.
#[derive(Debug, Default)]
pub(crate) struct OwnScore(Option<(OwnedFd, i32)>);

impl OwnScore {
    /// As it is now.
    pub(crate) fn open() -> OwnScore {
        let file = rustix::fs::open("/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        OwnScore(file.ok().zip(score_of("self")))
    }

    /// Sets it; without CAP_SYS_RESOURCE only down to where it began.
    pub(crate) fn set(&mut self, score: i32) {
        if let Some((file, own)) = &mut self.0
            && rustix::io::write(&*file, score.to_string().as_bytes()).is_ok()
        {
            *own = score;
        }
    }

    /// Another one for what is started meanwhile, which for exec nobody sets later.
    pub(crate) fn lend<T>(&mut self, score: i32, start: impl FnOnce() -> T) -> T {
        let before = self.0.as_ref().map(|(_, own)| *own).filter(|own| *own != score);
        before.inspect(|_| self.set(score));
        let started = start();
        before.inspect(|own| self.set(*own));
        started
    }
}

/// A file with a line `oom_kill N`, and N when it was opened.
#[derive(Debug)]
struct Counter {
    file: OwnedFd,
    before: u64,
}

/// The counters of one container.
#[derive(Debug, Default)]
pub(crate) struct Oom {
    own: Option<Counter>,
    /// Of the cgroup above, where it counts for all below (v2): for when systemd was quicker to remove the scope.
    pod: Option<Counter>,
}

impl Oom {
    /// Of the cgroup that process `pid` is in. A fresh cgroup counts from 0; `adopted` ones from now.
    pub(crate) fn open(pid: u32, adopted: bool) -> Oom {
        let Ok(list) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return Oom::default() };
        let mut lines = list.lines().filter_map(|l| l.split_once(':').and_then(|(_, rest)| rest.split_once(':')));
        let v1 = lines.clone().find(|(controllers, _)| controllers.split(',').any(|c| c == "memory"));
        let v2 = lines.find(|(controllers, _)| controllers.is_empty());
        let mut oom = match (v1, v2) {
            (Some((_, path)), _) => Oom { own: Counter::open(&format!("/sys/fs/cgroup/memory{path}/memory.oom_control")), pod: None },
            (None, Some((_, path))) => {
                let above = path.rsplit_once('/').map_or("", |(above, _)| above);
                Oom {
                    own: Counter::open(&format!("/sys/fs/cgroup{path}/memory.events")),
                    pod: (!above.is_empty()).then(|| Counter::open(&format!("/sys/fs/cgroup{above}/memory.events"))).flatten(),
                }
            }
            (None, None) => Oom::default(),
        };
        if let (Some(own), false) = (&mut oom.own, adopted) {
            own.before = 0;
        }
        oom
    }

    /// Whether it struck. The pod's counter may have counted a neighbour: it decides only on a process that was killed.
    pub(crate) fn struck(&self, killed: bool) -> bool {
        match self.own.as_ref().and_then(Counter::rose) {
            Some(rose) => rose,
            None => killed && self.pod.as_ref().and_then(Counter::rose) == Some(true),
        }
    }
}

impl Counter {
    fn open(path: &str) -> Option<Counter> {
        let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(Counter { before: read(&file)?, file })
    }

    /// None if the cgroup has gone.
    fn rose(&self) -> Option<bool> {
        Some(read(&self.file)? > self.before)
    }
}

fn read(file: &OwnedFd) -> Option<u64> {
    let mut buffer = [0; 512];
    let length = rustix::io::pread(file, &mut buffer, 0).ok()?;
    parse(str::from_utf8(&buffer[..length]).ok()?)
}

fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn both_hierarchies() {
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(parse("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 7\n"), Some(1));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\n"), None);
    }
}
