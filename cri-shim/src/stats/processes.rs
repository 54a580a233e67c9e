//! What the processes of a container hold open, and may. Looked up by each process, and so at most
//! every ten seconds.

use std::fs;
use std::time::{Duration, Instant};

const LEAST: Duration = Duration::from_secs(10);

/// Counts over all processes of a container.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    pub processes: u64,
    pub descriptors: u64,
    pub sockets: u64,
    /// How many files the first process may have open; `None`: without limit.
    pub open_files: Option<u64>,
}

/// The counts as of the last look.
#[derive(Debug, Default)]
pub(super) struct Processes {
    counts: Counts,
    again: Option<Instant>,
}

impl Processes {
    /// The counts of those processes, looked up anew if it is time.
    pub(super) fn counts(&mut self, first: i32, all: impl FnOnce() -> Vec<i32>) -> &Counts {
        let now = Instant::now();
        if self.again.is_none_or(|again| again <= now) {
            self.counts = count(first, &all());
            self.again = Some(now + LEAST);
        }
        &self.counts
    }
}

fn count(first: i32, all: &[i32]) -> Counts {
    let mut counts = Counts { processes: all.len() as u64, ..Counts::default() };
    for pid in all {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            counts.descriptors += 1;
            let target = fs::read_link(entry.path()).unwrap_or_default();
            counts.sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
        }
    }
    counts.open_files = open_files(&fs::read_to_string(format!("/proc/{first}/limits")).unwrap_or_default());
    counts
}

/// The soft limit in a line of /proc/PID/limits: name, soft, hard and unit in columns.
fn open_files(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ourselves() {
        let pid = std::process::id() as i32;
        let (_one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let counts = count(pid, &[pid]);
        assert!(counts.processes == 1 && counts.descriptors > counts.sockets && counts.sockets >= 2, "{counts:?}");
        assert!(counts.open_files.is_none_or(|files| files > 0));
        assert_eq!(open_files("Max open files            1024                 4096                 files     \n"), Some(1024));
        assert_eq!(open_files("Max open files            unlimited            unlimited            files     \n"), None);
        assert_eq!(count(i32::MAX, &[i32::MAX]).descriptors, 0);
    }
}
