//! Commands of the probe that live for a while, or end in a given way.

use crate::report::tty;
use crate::sys::{self, nr};
use std::io::{Read, Write};
use std::process::{Command, exit};
use std::thread;
use std::time::{Duration, Instant};

/// Sleeps, then ends with 0. As process 1 it dies of no signal but KILL.
pub(crate) fn sleep(seconds: u64) {
    thread::sleep(Duration::from_secs(seconds));
}

/// Dies of `signal` (not as process 1, which the kernel protects from its own signals).
pub(crate) fn die(signal: u64) -> ! {
    let _ = sys::call(nr::KILL, &[std::process::id() as usize, signal as usize]);
    thread::sleep(Duration::from_secs(1));
    exit(98)
}

/// Prints `ready`, then the number of every signal that comes; ends with `status` after TERM or INT.
pub(crate) fn trap(status: i32) -> ! {
    let Ok(fd) = signalfd() else { exit(97) };
    say("ready");
    // struct signalfd_siginfo: 128 bytes, the number first.
    let mut file = std::fs::File::from(fd);
    let mut info = [0u8; 128];
    while file.read_exact(&mut info).is_ok() {
        let signal = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        say(&signal.to_string());
        if signal == 15 || signal == 2 {
            exit(status);
        }
    }
    exit(96)
}

/// Copies standard input to standard output until the end.
pub(crate) fn echo() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::stdout());
}

/// Prints the terminal's size, and again on every WINCH.
pub(crate) fn print_size_on_change() {
    let Ok(fd) = signalfd() else { exit(97) };
    let mut file = std::fs::File::from(fd);
    let mut info = [0u8; 128];
    loop {
        say(&format!("size {}", tty(0)));
        if file.read_exact(&mut info).is_err() {
            return;
        }
        if info[0] != 28 {
            exit(i32::from(info[0]));
        }
    }
}

/// Starts `count` children that sleep, says so, and sleeps too.
pub(crate) fn children(count: u64) {
    let exe = std::env::current_exe().unwrap_or_else(|_| "/probe".into());
    for _ in 0..count {
        if let Err(e) = Command::new(&exe).arg("sleep").spawn() {
            say(&format!("fork: {e}"));
            exit(95);
        }
    }
    say("ready");
    sleep(3600);
}

/// Touches `megabytes` of memory, then says so.
pub(crate) fn fill(megabytes: u64) {
    let mut memory = Vec::new();
    for _ in 0..megabytes {
        memory.push(vec![1u8; 1 << 20]);
    }
    say(&format!("filled {}", std::hint::black_box(&memory).len()));
}

/// Burns the processor for `milliseconds`, then prints the processor time used and the time passed.
pub(crate) fn spin(milliseconds: u64) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(milliseconds) {
        std::hint::spin_loop();
    }
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let used = stat.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1_000_000;
    say(&format!("{used} {}", start.elapsed().as_millis()));
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// Blocks every signal and opens a descriptor that reads them.
fn signalfd() -> Result<std::os::fd::OwnedFd, i32> {
    let all = [u64::MAX];
    sys::call(nr::RT_SIGPROCMASK, &[2, all.as_ptr() as usize, 0, 8])?;
    let fd = sys::call(nr::SIGNALFD4, &[usize::MAX, all.as_ptr() as usize, 8, 0o2000000])?;
    Ok(sys::own(fd))
}
