//! Program files as nobody can write them, whatever is done with /proc/PID/exe.

use crate::sys;
use rustix::fd::AsFd;
use rustix::fs::{CWD, Stat, stat};
use rustix::io::Result;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};

/// The file behind a read-only mount of its own, attached nowhere (Linux 5.12).
pub(crate) fn read_only(path: &str) -> Result<OwnedFd> {
    let copy = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::make_read_only(copy.as_fd())?;
    Ok(copy)
}

/// OCI runtimes that know a file behind such a mount for safe. They are executed by descriptor, and need not execute
/// themselves once more from a copy that they make each time.
#[derive(Debug, Default)]
pub(crate) struct Programs(Vec<Program>);

#[derive(Debug)]
struct Program {
    path: String,
    identity: (u64, u64, i64, u64),
    copy: OwnedFd,
}

impl Programs {
    /// What to execute for the program at `path`: by descriptor where that works, else the path itself. A file that has taken
    /// the program's place since is seen.
    pub(crate) fn executable(&mut self, path: &str) -> String {
        let Ok(identity) = stat(path).map(|s| identity(&s)) else { return path.to_owned() };
        let known = self.0.iter().position(|p| p.path == path);
        let number = match known.filter(|at| self.0[*at].identity == identity) {
            Some(at) => self.0[at].copy.as_raw_fd(),
            None => {
                known.map(|at| self.0.swap_remove(at));
                if !is_elf(path) {
                    return path.to_owned(); // a script, whose interpreter would find the descriptor closed
                }
                let Ok(copy) = read_only(path) else { return path.to_owned() };
                let number = copy.as_raw_fd();
                if stat(format!("/dev/fd/{number}")).is_err() {
                    return path.to_owned(); // a host without /dev/fd
                }
                self.0.push(Program { path: path.to_owned(), identity, copy });
                number
            }
        };
        format!("/dev/fd/{number}")
    }
}

fn is_elf(path: &str) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok_and(|()| magic == *b"\x7fELF")
}

fn identity(file: &Stat) -> (u64, u64, i64, u64) {
    (file.st_dev, file.st_ino, file.st_ctime, file.st_ctime_nsec)
}
