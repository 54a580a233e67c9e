//! A cgroup's folder: its files, its processes, its end. Below both versions of the hierarchy.

use crate::sys;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long removal waits for killed processes to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    fd: OwnedFd,
}

impl Folder {
    pub(super) fn open(path: &Path) -> nix::Result<Folder> {
        let fd = openat(sys::CWD, path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Folder { path: path.to_owned(), fd })
    }

    /// The descriptor, for `CLONE_INTO_CGROUP`.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Opens a file of the cgroup.
    pub(super) fn file(&self, name: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        openat(&self.fd, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// Opens, writes once, closes.
    pub(super) fn write(&self, name: &str, value: &str) -> nix::Result<()> {
        let file = self.file(name, OFlag::O_WRONLY)?;
        write_once(&file, value)
    }

    /// The whole file.
    pub(super) fn read(&self, name: &str) -> nix::Result<String> {
        read_all(&self.file(name, OFlag::O_RDONLY)?)
    }

    /// A readable name of one of its files, for errors.
    pub(super) fn name(&self, file: &str) -> String {
        self.path.join(file).display().to_string()
    }
}

/// One `write(2)`: a cgroup file takes its value in one piece or not at all.
pub(super) fn write_once(file: &OwnedFd, value: &str) -> nix::Result<()> {
    loop {
        match nix::unistd::write(file, value.as_bytes()) {
            Err(Errno::EINTR) => (),
            other => return other.map(drop),
        }
    }
}

/// Reads to the end.
pub(super) fn read_all(file: &OwnedFd) -> nix::Result<String> {
    let mut bytes = Vec::with_capacity(256);
    let mut piece = [0u8; 4096];
    loop {
        match nix::unistd::read(file, &mut piece) {
            Ok(0) => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(Errno::EINTR) => (),
            Err(e) => return Err(e),
        }
    }
}

/// Reads one small file of the folder `dir`: one open, one read.
pub(super) fn read_file(dir: &Path, name: &str) -> nix::Result<String> {
    let file = openat(sys::CWD, &dir.join(name), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut piece = [0u8; 256];
    let n = nix::unistd::read(&file, &mut piece)?;
    Ok(String::from_utf8_lossy(&piece[..n]).into_owned())
}

/// Writes one file by its path: one open, one write.
pub(super) fn write_file(path: &Path, value: &str) -> nix::Result<()> {
    write_once(&openat(sys::CWD, path, OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?, value)
}

/// Makes `dir`, and the folders above it where they lack; every one made is added to `made`, the
/// topmost first.
pub(super) fn make(dir: &Path, made: &mut Vec<PathBuf>) -> Result<()> {
    match nix::unistd::mkdir(dir, Mode::from_bits_truncate(0o755)) {
        Ok(()) => made.push(dir.to_owned()),
        Err(Errno::EEXIST) => (),
        Err(Errno::ENOENT) => {
            let Some(parent) = dir.parent() else { bail!("{}: no folder above it", dir.display()) };
            make(parent, made)?;
            return make(dir, made);
        }
        Err(e) => {
            let hint = match e {
                Errno::EACCES | Errno::EPERM => " (this user may not make cgroups there; it needs a delegated one)",
                Errno::EROFS => " (the cgroup file system is mounted read-only)",
                _ => "",
            };
            return Err(e).with_context(|| format!("make the cgroup {}{hint}", dir.display()));
        }
    }
    Ok(())
}

/// The processes in `dir` and below it; whether the folder is there at all.
pub(super) fn pids(dir: &Path, into: &mut Vec<i32>) -> Result<bool> {
    let read = |name| openat(sys::CWD, &dir.join(name), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).and_then(|f| read_all(&f));
    let list = match read("cgroup.procs") {
        // The processes of a threaded cgroup are listed in its domain; here are their threads.
        Err(Errno::EOPNOTSUPP) => read("cgroup.threads"),
        other => other,
    };
    match list {
        Ok(list) => into.extend(list.lines().filter_map(|l| l.parse::<i32>().ok())),
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(false),
        Err(e) => return Err(e).with_context(|| format!("list the processes of the cgroup {}", dir.display())),
    }
    for child in children(dir)? {
        pids(&child, into)?;
    }
    Ok(true)
}

/// The cgroups directly below `dir`.
pub(super) fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| dir.display().to_string()),
    };
    Ok(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect())
}

/// `rmdir`; `false` where processes or cgroups are still in it.
pub(super) fn remove_empty(dir: &Path) -> Result<bool> {
    match sys_rmdir(dir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
        // A read-only mount answers so for what is not there, too.
        Err(Errno::EROFS | Errno::EACCES | Errno::EPERM) if !dir.exists() => Ok(true),
        Err(e) => Err(e).with_context(|| format!("remove the cgroup {}", dir.display())),
    }
}

fn sys_rmdir(dir: &Path) -> nix::Result<()> {
    nix::unistd::unlinkat(sys::CWD, dir, nix::unistd::UnlinkatFlags::RemoveDir)
}

/// Removes `dir` and the cgroups below it, deepest first, waiting for processes that are about to
/// be gone; the caller has killed them.
pub(super) fn remove_tree(dir: &Path) -> Result<()> {
    for child in children(dir)? {
        remove_tree(&child)?;
    }
    let until = Instant::now() + PATIENCE;
    while !remove_empty(dir)? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let mut left = Vec::new();
            pids(dir, &mut left)?;
            bail!("remove the cgroup {}: still busy (processes {left:?})", dir.display());
        }
        wait_for_change(dir, left)?;
    }
    Ok(())
}

/// Waits until a process of `dir` ends. On v2 the kernel tells when the last one is gone, on v1 a
/// pidfd tells of one; where neither can be had (the process is gone already, but the kernel has
/// not yet taken it out of the cgroup) a millisecond passes.
fn wait_for_change(dir: &Path, left: Duration) -> Result<()> {
    let wait = |fd: &OwnedFd, flags: PollFlags, limit: Duration| {
        let timeout = PollTimeout::try_from(limit.min(left)).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(fd.as_fd(), flags)], timeout);
    };
    if let Ok(folder) = Folder::open(dir)
        && let Ok(events) = folder.file("cgroup.events", OFlag::O_RDONLY)
    {
        if read_all(&events).is_ok_and(|text| text.contains("populated 1")) {
            wait(&events, PollFlags::POLLPRI, Duration::from_millis(100));
            return Ok(());
        }
    } else {
        let mut list = Vec::new();
        pids(dir, &mut list)?;
        if let Some(pidfd) = list.iter().find_map(|&pid| sys::pidfd_open(pid).ok()) {
            wait(&pidfd, PollFlags::POLLIN, Duration::from_millis(100));
        }
    }
    std::thread::sleep(Duration::from_millis(1).min(left));
    Ok(())
}

/// Waits until `file` of `folder` (one that the kernel announces changes of, such as
/// `cgroup.events`) holds the line `line`; `false` after `limit`.
pub(super) fn wait_for_line(folder: &Folder, file: &str, line: &str, limit: Duration) -> Result<bool> {
    let open = folder.file(file, OFlag::O_RDONLY).with_context(|| folder.name(file))?;
    let until = Instant::now() + limit;
    loop {
        nix::unistd::lseek(&open, 0, nix::unistd::Whence::SeekSet).with_context(|| folder.name(file))?;
        if read_all(&open).with_context(|| folder.name(file))?.lines().any(|l| l == line) {
            return Ok(true);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(open.as_fd(), PollFlags::POLLPRI)], timeout);
    }
}
