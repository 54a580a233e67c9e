//! `probe report`: everything a process can tell about itself, as one JSON object.

use crate::json::{list, maybe, object, string};
use crate::sys::{self, nr};
use std::collections::BTreeMap;
use std::env;
use std::fs;

/// The report. A part that cannot be read (no /proc) is null.
pub(crate) fn report() -> String {
    let umask = sys::call(nr::UMASK, &[0o22]).unwrap_or(-1);
    let text = |path: &str| maybe(fs::read_to_string(path).ok().map(|t| string(t.trim_end())));
    object([
        ("pid", std::process::id().to_string()),
        ("ppid", std::os::unix::process::parent_id().to_string()),
        ("args", list(env::args_os().map(string))),
        ("exe", maybe(fs::read_link("/proc/self/exe").ok().map(string))),
        ("cwd", maybe(env::current_dir().ok().map(string))),
        ("env", object(env::vars_os().map(|(k, v)| (k, string(v))))),
        ("env_list", list(env::vars_os().map(|(k, v)| string(format!("{}={}", k.to_string_lossy(), v.to_string_lossy()))))),
        ("umask", string(format!("{umask:04o}"))),
        ("status", status()),
        ("limits", limits()),
        ("ns", namespaces()),
        ("fds", fds()),
        ("mounts", mounts()),
        ("cgroup", lines("/proc/self/cgroup")),
        ("uid_map", lines("/proc/self/uid_map")),
        ("gid_map", lines("/proc/self/gid_map")),
        ("setgroups", text("/proc/self/setgroups")),
        ("timens_offsets", lines("/proc/self/timens_offsets")),
        ("hostname", text("/proc/sys/kernel/hostname")),
        ("domainname", text("/proc/sys/kernel/domainname")),
        ("uptime", text("/proc/uptime")),
        ("oom_score_adj", text("/proc/self/oom_score_adj")),
        ("personality", text("/proc/self/personality")),
        ("session", text("/proc/self/stat")),
        ("label", text("/proc/self/attr/current")),
        ("nice", sys::call(nr::GETPRIORITY, &[0, 0]).map_or(-99, |n| 20 - n).to_string()),
        ("policy", sys::call(nr::SCHED_GETSCHEDULER, &[0]).unwrap_or(-1).to_string()),
        ("ioprio", sys::call(nr::IOPRIO_GET, &[1, 0]).unwrap_or(-1).to_string()),
        ("keyring", string(keyring())),
        ("tty", list((0..3).map(tty))),
        ("net", interfaces()),
    ])
}

/// `/proc/self/status` as an object of strings.
fn status() -> String {
    let Ok(text) = fs::read_to_string("/proc/self/status") else { return "null".into() };
    object(text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k.to_string(), string(v.trim()))))
}

/// `/proc/self/limits`: name to `[soft, hard]`.
fn limits() -> String {
    let Ok(text) = fs::read_to_string("/proc/self/limits") else { return "null".into() };
    object(text.lines().skip(1).map(|line| {
        let (name, values) = line.split_at(26.min(line.len()));
        (name.trim().to_string(), list(values.split_whitespace().take(2).map(string)))
    }))
}

fn namespaces() -> String {
    let Ok(entries) = fs::read_dir("/proc/self/ns") else { return "null".into() };
    let links: BTreeMap<String, String> = entries
        .flatten()
        .filter_map(|e| Some((e.file_name().to_string_lossy().into_owned(), string(fs::read_link(e.path()).ok()?))))
        .collect();
    object(links)
}

/// Open descriptors and what they are, but for the one that lists them.
fn fds() -> String {
    let own = format!("/proc/{}/fd", std::process::id());
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return "null".into() };
    let links: BTreeMap<i32, String> = entries
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, fs::read_link(e.path()).ok()?)))
        .filter(|(_, target)| target.to_str() != Some(&own))
        .map(|(fd, target)| (fd, string(target)))
        .collect();
    object(links.into_iter().map(|(fd, target)| (fd.to_string(), target)))
}

/// mountinfo in order: `{root, target, options, optional, type, source, super}`.
fn mounts() -> String {
    let Ok(text) = fs::read_to_string("/proc/self/mountinfo") else { return "null".into() };
    list(text.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let front: Vec<&str> = front.split(' ').collect();
        let back: Vec<&str> = back.split(' ').collect();
        Some(object([
            ("dev", string(front.get(2)?)),
            ("root", string(front.get(3)?)),
            ("target", string(front.get(4)?)),
            ("options", string(front.get(5)?)),
            ("optional", string(front.get(6..)?.join(" "))),
            ("type", string(back.first()?)),
            ("source", string(back.get(1)?)),
            ("super", string(back.get(2)?)),
        ]))
    }))
}

fn lines(path: &str) -> String {
    let Ok(text) = fs::read_to_string(path) else { return "null".into() };
    list(text.lines().map(|l| string(l.split_whitespace().collect::<Vec<_>>().join(" "))))
}

/// The session keyring's description (`KEYCTL_DESCRIBE` of `KEY_SPEC_SESSION_KEYRING`), or an errno.
fn keyring() -> String {
    let mut text = vec![0u8; 256];
    match sys::call(nr::KEYCTL, &[6, -3i64 as usize, text.as_mut_ptr() as usize, text.len()]) {
        Ok(len) => String::from_utf8_lossy(&text[..(len as usize).saturating_sub(1).min(256)]).into_owned(),
        Err(errno) => crate::actions::name(errno),
    }
}

/// Rows and columns of the terminal at `fd`, or null.
pub(crate) fn tty(fd: usize) -> String {
    const TIOCGWINSZ: usize = 0x5413;
    let mut size = [0u16; 4];
    match sys::call(nr::IOCTL, &[fd, TIOCGWINSZ, size.as_mut_ptr() as usize]) {
        Ok(_) => format!("[{},{}]", size[0], size[1]),
        Err(_) => "null".into(),
    }
}

/// Network interfaces and whether they are up (`IFF_UP` of the flags is not in /proc: /sys has it).
fn interfaces() -> String {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return "null".into() };
    let found: BTreeMap<String, String> = entries
        .flatten()
        .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read_to_string(e.path().join("flags")).unwrap_or_default()))
        .collect();
    object(found.into_iter().map(|(name, flags)| (name, string(flags.trim()))))
}
