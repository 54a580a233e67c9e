//! `probe try`: small things, each named by one argument, and how each ended.
//!
//! ```text
//! open PATH r|w|rw|c     read PATH      write PATH TEXT...  list PATH     stat PATH   link PATH
//! mkdir PATH             remove PATH    mknod PATH b|c MAJOR MINOR         chown PATH UID GID
//! chmod PATH OCTAL       run PROGRAM... mount SOURCE TARGET TYPE           umount PATH
//! remount PATH (writable)
//! unshare FLAGS          syscall NUMBER ARG...  sethostname NAME           nofile COUNT
//! cpus                   escape FOLDER
//! ```
//! The answer is an object from the action's text to `ok`, a value, or an errno's name.

use crate::json::{object, string};
use crate::sys::{self, at, c, nr};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};

/// Does the actions in order.
pub(crate) fn all(actions: &[&str]) -> String {
    object(actions.iter().map(|action| {
        let words: Vec<&str> = action.split_whitespace().collect();
        let result = match one(&words) {
            Ok(text) => text,
            Err(e) => e.raw_os_error().map_or_else(|| format!("{e}"), name),
        };
        (action.to_string(), string(result))
    }))
}

fn one(words: &[&str]) -> io::Result<String> {
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    let path = word(1);
    let ok = || "ok".to_string();
    match word(0) {
        "open" => open(path, word(2)).map(|_| ok()),
        "read" => read(path),
        "write" => OpenOptions::new().write(true).open(path)?.write_all(words[2..].join(" ").as_bytes()).map(|()| ok()),
        "create" => fs::write(path, words[2..].join(" ")).map(|()| ok()),
        "list" => list(path),
        "stat" => stat(path),
        "link" => fs::read_link(path).map(|p| p.to_string_lossy().into_owned()),
        "mkdir" => fs::create_dir(path).map(|()| ok()),
        "remove" => fs::remove_file(path).or_else(|_| fs::remove_dir(path)).map(|()| ok()),
        "mknod" => mknod(path, word(2), word(3), word(4)).map(|()| ok()),
        "chown" => chown(path, word(2).parse().ok(), word(3).parse().ok()).map(|()| ok()),
        "chmod" => {
            let mode = u32::from_str_radix(word(2), 8).unwrap_or(0);
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map(|()| ok())
        }
        "run" => run(&words[1..]),
        "mount" => mount(path, word(2), word(3)).map(|()| ok()),
        "remount" => call(nr::MOUNT, &[0, at(&c(path)), 0, 0x1020, 0]).map(|_| ok()),
        "umount" => call(nr::UMOUNT2, &[at(&c(path)), 2]).map(|_| ok()),
        "unshare" => call(nr::UNSHARE, &[integer(path)]).map(|_| ok()),
        "sethostname" => call(nr::SETHOSTNAME, &[at(&c(path)), path.len()]).map(|_| ok()),
        "syscall" => {
            let args: Vec<usize> = words[2..].iter().map(|w| integer(w)).collect();
            call(integer(path) as i64, &args).map(|n| n.to_string())
        }
        "nofile" => {
            let files: io::Result<Vec<_>> = (0..integer(path)).map(|_| fs::File::open("/")).collect();
            files.map(|_| ok())
        }
        "cpus" => cpus(),
        "escape" => escape(path),
        other => Ok(format!("no action {other:?}")),
    }
}

fn integer(word: &str) -> usize {
    match word.strip_prefix("0x") {
        Some(hex) => usize::from_str_radix(hex, 16).unwrap_or(0),
        None => word.parse::<i64>().unwrap_or(0) as usize,
    }
}

fn call(number: i64, args: &[usize]) -> io::Result<i64> {
    sys::call(number, args).map_err(io::Error::from_raw_os_error)
}

fn open(path: &str, how: &str) -> io::Result<fs::File> {
    const O_NOCTTY_NONBLOCK: i32 = 0o400 | 0o4000;
    let mut options = OpenOptions::new();
    options.read(how.contains('r')).write(how.contains('w') || how.contains('c')).create(how.contains('c'));
    options.custom_flags(O_NOCTTY_NONBLOCK).open(path)
}

/// The first 4096 bytes, without the last newline.
fn read(path: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    open(path, "r")?.take(4096).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_string())
}

fn list(path: &str) -> io::Result<String> {
    let mut names: Vec<String> = fs::read_dir(path)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names.join(" "))
}

/// What is at the top once the process has stepped out of a root below its own: a chroot to `folder` leaves the
/// current folder outside, from where nothing stops it on its way up but the end of the tree.
fn escape(folder: &str) -> io::Result<String> {
    std::env::set_current_dir("/")?;
    std::os::unix::fs::chroot(folder)?;
    for _ in 0..64 {
        std::env::set_current_dir("..")?;
    }
    std::os::unix::fs::chroot(".")?;
    list("/")
}

/// `TYPE MODE UID:GID MAJOR:MINOR SIZE`, not following a last link.
fn stat(path: &str) -> io::Result<String> {
    let meta = fs::symlink_metadata(path)?;
    let kind = match meta.mode() & 0o170000 {
        0o010000 => "fifo",
        0o020000 => "char",
        0o040000 => "dir",
        0o060000 => "block",
        0o100000 => "file",
        0o120000 => "link",
        0o140000 => "socket",
        _ => "?",
    };
    let rdev = meta.rdev();
    let major = ((rdev >> 8) & 0xfff) | ((rdev >> 32) & !0xfff);
    let minor = (rdev & 0xff) | ((rdev >> 12) & !0xff);
    let mode = meta.mode() & 0o7777;
    Ok(format!("{kind} {mode:04o} {}:{} {major}:{minor} {}", meta.uid(), meta.gid(), meta.size()))
}

fn mknod(path: &str, kind: &str, major: &str, minor: &str) -> io::Result<()> {
    const AT_FDCWD: usize = -100i64 as usize;
    let kind = if kind == "b" { 0o060000 } else { 0o020000 };
    let (major, minor) = (integer(major), integer(minor));
    let device = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
    call(nr::MKNODAT, &[AT_FDCWD, at(&c(path)), kind | 0o666, device]).map(|_| ())
}

fn mount(source: &str, target: &str, kind: &str) -> io::Result<()> {
    const MS_BIND: usize = 4096;
    let flags = if kind == "bind" { MS_BIND } else { 0 };
    call(nr::MOUNT, &[at(&c(source)), at(&c(target)), at(&c(kind)), flags, 0]).map(|_| ())
}

/// The exit status and the output of a program.
fn run(words: &[&str]) -> io::Result<String> {
    let output = std::process::Command::new(words.first().unwrap_or(&"")).args(&words[1..]).output()?;
    Ok(format!("{} {}", output.status, String::from_utf8_lossy(&output.stdout).trim_end()))
}

/// The processors this process may use, as a hexadecimal mask.
fn cpus() -> io::Result<String> {
    let mut mask = [0u64; 16];
    call(nr::SCHED_GETAFFINITY, &[0, size_of_val(&mask), mask.as_mut_ptr() as usize])?;
    Ok(format!("{:x}", mask[0]))
}

/// The name of an errno, as tests write it.
pub(crate) fn name(errno: i32) -> String {
    let known = [
        (1, "EPERM"),
        (2, "ENOENT"),
        (3, "ESRCH"),
        (5, "EIO"),
        (6, "ENXIO"),
        (7, "E2BIG"),
        (8, "ENOEXEC"),
        (9, "EBADF"),
        (11, "EAGAIN"),
        (12, "ENOMEM"),
        (13, "EACCES"),
        (14, "EFAULT"),
        (16, "EBUSY"),
        (17, "EEXIST"),
        (18, "EXDEV"),
        (19, "ENODEV"),
        (20, "ENOTDIR"),
        (21, "EISDIR"),
        (22, "EINVAL"),
        (24, "EMFILE"),
        (25, "ENOTTY"),
        (26, "ETXTBSY"),
        (28, "ENOSPC"),
        (30, "EROFS"),
        (38, "ENOSYS"),
        (40, "ELOOP"),
        (95, "EOPNOTSUPP"),
        (126, "ENOKEY"),
    ];
    known.iter().find(|(n, _)| *n == errno).map_or_else(|| format!("errno {errno}"), |(_, name)| name.to_string())
}
