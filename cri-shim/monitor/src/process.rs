//! What is known of a process from outside: its start time, how it ended.

use rustix::fd::AsFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;

/// A descriptor of the process; None if there is none of that number.
pub(crate) fn open(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok()
}

/// Field 22 of /proc/PID/stat; 0 if there is no such process.
pub(crate) fn start_time(pid: u32) -> u64 {
    stat_field(pid, 22).and_then(|f| f.parse().ok()).unwrap_or(0)
}

/// The wait status of a process that is not our child and has ended: from its pidfd once it is reaped, from /proc
/// until then. None if it lives, or nobody knows.
pub(crate) fn ended(pidfd: impl AsFd, pid: u32, start: u64) -> Option<i32> {
    let reaped = || crate::sys::exit_status(pidfd.as_fd());
    let zombie = || {
        let state = stat_field(pid, 3)?;
        if !matches!(state.as_str(), "Z" | "X") || start_time(pid) != start {
            return None;
        }
        stat_field(pid, 52)?.parse().ok()
    };
    // It may be reaped between the two.
    reaped().or_else(zombie).or_else(reaped)
}

/// Exit code as the shell has it, and signal, of a wait status.
pub(crate) fn code_and_signal(status: i32) -> (u32, u32) {
    let signal = (status & 0x7f) as u32;
    if signal != 0 { (128 + signal, signal) } else { ((status >> 8 & 0xff) as u32, 0) }
}

/// Counted as proc(5) does, from 1. The name in parentheses may hold anything.
fn stat_field(pid: u32, number: usize) -> Option<String> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|b| *b == b')')? + 2;
    str::from_utf8(stat.get(after_name..)?).ok()?.split_ascii_whitespace().nth(number - 3).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ourselves() {
        let pid = std::process::id();
        assert!(start_time(pid) > 0);
        assert_eq!(stat_field(pid, 3).unwrap().len(), 1);
        assert_eq!(ended(open(pid).unwrap(), pid, start_time(pid)), None);
        assert_eq!(start_time(u32::MAX >> 1), 0);
    }

    #[test]
    fn a_child_that_nobody_has_reaped_and_that_somebody_has() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let (pid, pidfd) = (child.id(), open(child.id()).unwrap());
        let start = start_time(pid);
        let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, None).unwrap();
        assert_eq!(ended(&pidfd, pid, start).map(code_and_signal), Some((7, 0)));
        child.wait().unwrap();
        match ended(&pidfd, pid, start) {
            None => eprintln!("SKIP: this kernel keeps no exit status in a pidfd (Linux 6.15 does)"),
            status => assert_eq!(status.map(code_and_signal), Some((7, 0))),
        }
    }

    #[test]
    fn statuses() {
        assert_eq!(code_and_signal(0), (0, 0));
        assert_eq!(code_and_signal(3 << 8), (3, 0));
        assert_eq!(code_and_signal(9), (137, 9));
        assert_eq!(code_and_signal(0x80 | 11), (139, 11));
    }
}
