//! What there is on a node of pods and containers: mounts, pinned namespaces, cgroups, processes, addresses, files. After
//! a removal none of it may be left.

use std::fs;
use std::path::Path;

use tests::host::wait_until;

use crate::node::Node;

impl Node {
    /// Everything, a line each. Of a daemon that runs and no pods this is empty.
    pub(crate) fn scan(&self) -> Vec<String> {
        let mut found = self.mounts();
        found.extend(self.processes().into_iter().map(|(pid, command)| format!("process {pid} {command}")));
        for root in cgroup_roots() {
            walk(&root.join(self.name()), &mut |path| found.push(format!("cgroup {}", path.display())));
        }
        for folder in ["netns", "cni/results", "ipam", "ipam/net", "lib/pods", "run/pods", "run/runtimes/rrun", "run/runtimes/runc"] {
            for entry in fs::read_dir(self.dir().join(folder)).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if !["lock", "net"].contains(&&*name) && !name.starts_with("last_reserved_ip") {
                    // What is in it names its owner (host-local has a file per address).
                    let text =
                        if folder.starts_with("ipam") { fs::read_to_string(entry.path()).unwrap_or_default() } else { String::new() };
                    found.push(format!("file {folder}/{name} {}", text.trim().replace(['\r', '\n'], " ")));
                }
            }
        }
        found
    }

    /// Fails unless nothing is left that names one of `ids`; what ends in the background gets a moment.
    #[track_caller]
    pub(crate) fn assert_gone(&self, ids: &[String]) {
        let left = || self.scan().into_iter().filter(|line| ids.iter().any(|id| line.contains(id.as_str()))).collect::<Vec<_>>();
        assert!(wait_until(10, || left().is_empty()), "left behind: {:#?}\n{}", left(), self.log_tail());
    }

    /// Fails unless nothing at all is left.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        assert!(wait_until(10, || self.scan().is_empty()), "left behind: {:#?}\n{}", self.scan(), self.log_tail());
    }

    fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.init())).unwrap_or_default();
        let (dir, shared) = (format!("{}/", self.dir().display()), self.dir().join("shared"));
        let target = |line: &str| line.split(' ').nth(4).unwrap_or_default().to_owned();
        let ours = |target: &String| target.starts_with(&dir) && !Path::new(target).starts_with(&shared) && !target.contains("/by-test-");
        mounts.lines().map(target).filter(ours).map(|target| format!("mount {target}")).collect()
    }

    /// Processes of the node but its init and the daemon: the host's numbers, and command lines.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let (init, space) = (self.init(), |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok());
        let own = space(init);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
            let status = String::from_utf8_lossy(&read("status")).into_owned();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
            let of_node = in_node(pid, &own);
            let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let parent = field("PPid:").parse().unwrap_or(0);
            let known = pid == init || parent == init && command.starts_with("sleep 31536000") || command.contains("/config.toml");
            if of_node && !known {
                let state = field("State:");
                found.push((
                    pid,
                    format!("{} {state} {}", command.trim(), String::from_utf8_lossy(&read("cgroup")).lines().next().unwrap_or("")),
                ));
            }
        }
        found
    }

    /// The host's number of a process that the node numbers `pid`.
    pub(crate) fn host_pid(&self, pid: i64) -> i32 {
        let found = self.processes().into_iter().map(|(host, _)| host).find(|host| {
            let status = fs::read_to_string(format!("/proc/{host}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            // The host's own namespace may be nested itself: count from the one that is as deep as init's.
            let depth = self.depth();
            numbers.split_ascii_whitespace().nth(depth).and_then(|number| number.parse::<i64>().ok()) == Some(pid)
        });
        found.unwrap_or(0)
    }

    fn depth(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.init())).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        numbers.split_ascii_whitespace().count() - 1
    }

    /// The cgroup of a container in a controller's hierarchy (`memory`, `cpu`, …), or in the one of version 2.
    pub(crate) fn cgroup(&self, container: &str, controller: &str) -> Option<std::path::PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let root = if tests::host::cgroup_version() == 2 { root.to_owned() } else { root.join(controller) };
        let mut found = None;
        walk(&root.join(self.name()), &mut |path| {
            if path.file_name().is_some_and(|name| name.to_string_lossy().contains(container)) {
                found = Some(path.to_owned());
            }
        });
        found
    }
}

/// Whether a process is in the node's PID namespace, or one of its ancestors is: the namespaces of containers are made there.
fn in_node(mut pid: i32, own: &Option<std::path::PathBuf>) -> bool {
    while pid > 1 {
        if fs::read_link(format!("/proc/{pid}/ns/pid")).ok() == *own {
            return true;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        pid = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok()).unwrap_or(0);
    }
    false
}

fn cgroup_roots() -> Vec<std::path::PathBuf> {
    let root = std::path::PathBuf::from("/sys/fs/cgroup");
    let below =
        fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink());
    if tests::host::cgroup_version() == 2 { vec![root] } else { below.collect() }
}

/// Calls `each` with every folder below `dir`.
fn walk(dir: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        each(&entry.path());
        walk(&entry.path(), each);
    }
}
