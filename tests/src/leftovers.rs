//! What a test left behind: processes, mounts, cgroups, folders of the state root.

use std::fs;
use std::path::Path;

/// Everything that carries `tag`, as lines to print.
pub fn find(tag: &str, root: &Path) -> Vec<String> {
    let mut left = processes(tag);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|l| l.contains(&dir_name(tag))).map(|l| format!("mount {l}")));
    cgroups(Path::new("/sys/fs/cgroup"), tag, 0, &mut left);
    if let Ok(entries) = fs::read_dir(root) {
        let named = entries.flatten().filter(|e| !e.file_name().to_string_lossy().starts_with('.'));
        left.extend(named.map(|e| format!("state folder {}", e.path().display())));
    }
    left
}

fn dir_name(tag: &str) -> String {
    format!("rrun-test-{tag}/")
}

/// Processes with the tag in their environment (the runtime's own), their cgroup or the mounts of
/// a mount namespace that is not ours (a container's).
fn processes(tag: &str) -> Vec<String> {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let marker = format!("RRUN_TEST={tag}\0");
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let dir = entry.path();
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let read = |name: &str| fs::read(dir.join(name)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        let elsewhere = fs::read_link(dir.join("ns/mnt")).ok().is_some_and(|ns| Some(ns) != own);
        let ours = read("environ").contains(&marker)
            || read("cgroup").contains(&format!("rt{tag}c"))
            || elsewhere && read("mountinfo").contains(&dir_name(tag));
        if ours && !read("stat").contains(") Z ") {
            left.push(format!("process {pid} {:?} wchan {:?}", read("cmdline"), read("wchan")));
        }
    }
    left
}

fn cgroups(dir: &Path, tag: &str, depth: u32, left: &mut Vec<String>) {
    if depth > 8 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(&format!("rt{tag}c")) {
            left.push(format!("cgroup {}", entry.path().display()));
        }
        cgroups(&entry.path(), tag, depth + 1, left);
    }
}
