//! A bundle: a root file system with the probe, and a configuration that is plain JSON, so that
//! a test can make it as wrong as it likes.

use crate::PROBE;
use crate::runtime::Runtime;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A bundle's folder and its configuration, which is written when a container is made of it.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The folder.
    pub dir: PathBuf,
    /// What config.json will hold.
    pub config: Value,
    user: Option<u32>,
}

impl Bundle {
    /// The default configuration (what `spec` writes, with all namespaces but user and time) with
    /// `/probe report` as its process.
    pub fn new(rt: &Runtime) -> Bundle {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = rt.dir().join(format!("bundle{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let bundle = Bundle { dir, config: config(rt), user: rt.user };
        for folder in ["", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(bundle.rootfs().join(folder)).unwrap();
        }
        place_probe(rt, &bundle.rootfs().join("probe"));
        bundle
    }

    /// The root file system's folder.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The process's arguments.
    pub fn args<S: AsRef<str>>(self, args: impl IntoIterator<Item = S>) -> Bundle {
        let args: Vec<String> = args.into_iter().map(|a| a.as_ref().to_string()).collect();
        self.set("/process/args", json!(args))
    }

    /// Sets the value at a JSON pointer; objects on the way are made, `-` appends to a list.
    pub fn set(mut self, pointer: &str, value: Value) -> Bundle {
        let mut at = &mut self.config;
        for key in pointer.split('/').skip(1) {
            let key = key.replace("~1", "/").replace("~0", "~");
            if at.is_null() {
                *at = if key == "-" { json!([]) } else { json!({}) };
            }
            at = match at {
                Value::Array(items) => {
                    if key == "-" {
                        items.push(Value::Null);
                    }
                    let last = items.len() - 1;
                    &mut items[key.parse().unwrap_or(last)]
                }
                Value::Object(fields) => fields.entry(key).or_insert(Value::Null),
                other => panic!("{pointer}: {key}: {other} has no fields"),
            };
        }
        *at = value;
        self
    }

    /// Removes the field at a JSON pointer.
    pub fn unset(mut self, pointer: &str) -> Bundle {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        if let Some(Value::Object(fields)) = self.config.pointer_mut(parent) {
            fields.remove(key);
        }
        self
    }

    /// One more mount.
    pub fn mount(self, target: &str, kind: &str, source: &str, options: &[&str]) -> Bundle {
        self.set("/mounts/-", json!({"destination": target, "type": kind, "source": source, "options": options}))
    }

    /// Drops the mount at `target`.
    pub fn without_mount(mut self, target: &str) -> Bundle {
        self.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != target);
        self
    }

    /// One more namespace, made new or joined by path.
    pub fn namespace(self, kind: &str, path: Option<&Path>) -> Bundle {
        let bundle = self.without_namespace(kind);
        match path {
            Some(path) => bundle.set("/linux/namespaces/-", json!({"type": kind, "path": path})),
            None => bundle.set("/linux/namespaces/-", json!({"type": kind})),
        }
    }

    /// Drops a namespace.
    pub fn without_namespace(mut self, kind: &str) -> Bundle {
        self.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != kind);
        self
    }

    /// A user namespace where ids 0 to 65535 are `first` onwards, and a root file system owned so.
    pub fn user_namespace(self, first: u32) -> Bundle {
        let map = json!([{"containerID": 0, "hostID": first, "size": 65536}]);
        chown_tree(&self.rootfs(), first);
        self.namespace("user", None).set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map)
    }

    /// All capabilities that this machine's root has, but no ambient ones: for tests of what else stops a process.
    pub fn privileged(self) -> Bundle {
        let bounding = crate::host::capability_bounding_set();
        let held = ALL_CAPABILITIES.iter().enumerate().filter(|(bit, _)| bounding & (1 << bit) != 0);
        let all: Vec<String> = held.map(|(_, c)| format!("CAP_{c}")).collect();
        let sets = json!({"bounding": all, "effective": all, "permitted": all});
        self.set("/process/capabilities", sets).set("/root/readonly", json!(false))
    }

    /// Lets the process write to its root file system.
    pub fn writable(self) -> Bundle {
        self.set("/root/readonly", json!(false))
    }

    /// Makes a file in the root file system, and the folders above it.
    pub fn file(self, path: &str, content: &str) -> Bundle {
        let path = self.rootfs().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Makes an executable script or program in the root file system.
    pub fn program(self, path: &str, content: &str) -> Bundle {
        let path = self.rootfs().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        crate::host::write_program(&path, content.as_bytes());
        self
    }

    /// Makes a folder in the root file system.
    pub fn folder(self, path: &str) -> Bundle {
        fs::create_dir_all(self.rootfs().join(path.trim_start_matches('/'))).unwrap();
        self
    }

    /// Makes a symbolic link in the root file system, in place of what is there.
    pub fn symlink(self, path: &str, target: &str) -> Bundle {
        let path = self.rootfs().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        std::os::unix::fs::symlink(target, path).unwrap();
        self
    }

    /// A shell with its tools under `/bin` (see [`crate::host::busybox`]).
    pub fn shell(self) -> Bundle {
        let busybox = crate::host::busybox().expect("require!(host::busybox()) first");
        let bundle = self.folder("/bin");
        let bin = bundle.rootfs().join("bin");
        crate::host::write_program(&bin.join("busybox"), &fs::read(busybox).unwrap());
        for tool in ["sh", "cat", "echo", "id", "ls", "mount", "sleep", "true", "false", "ps", "dd", "test", "env", "kill", "stty", "tty"] {
            fs::hard_link(bin.join("busybox"), bin.join(tool)).unwrap();
        }
        bundle
    }

    /// Writes config.json. Root's containers get a cgroup named after the id at the top of the
    /// hierarchy, unless the test has set a path.
    pub fn write(&mut self, rt: &Runtime, id: &str) {
        let systemd = rt.globals.iter().any(|g| g == "--systemd-cgroup");
        let linux = self.config.get_mut("linux").filter(|l| l.is_object() && l.get("cgroupsPath").is_none());
        if let (Some(linux), false, false) = (linux, rt.is_rootless(), systemd) {
            linux["cgroupsPath"] = json!(format!("/{id}"));
        }
        if !self.config.is_null() {
            fs::write(self.dir.join("config.json"), serde_json::to_vec_pretty(&self.config).unwrap()).unwrap();
        }
        if let Some(user) = self.user {
            chown_tree(&self.dir, user);
        }
    }
}

/// Puts the probe into place: a hard link to one copy per test, of which only root may write.
fn place_probe(rt: &Runtime, to: &Path) {
    let copy = rt.dir().join("probe");
    if !copy.exists() {
        crate::host::write_program(&copy, PROBE);
    }
    fs::hard_link(&copy, to).unwrap();
}

/// Gives a tree to `user`, links themselves included.
pub fn chown_tree(path: &Path, user: u32) {
    std::os::unix::fs::lchown(path, Some(user), Some(user)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        let _ = chown(path, Some(user), Some(user));
        for entry in fs::read_dir(path).unwrap().flatten() {
            chown_tree(&entry.path(), user);
        }
    }
}

/// Names of all capabilities without their prefix, in the order of their numbers.
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The default configuration; for an ordinary user the rootless one.
fn config(rt: &Runtime) -> Value {
    let caps = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["/probe", "report"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "probe",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if rt.is_rootless() {
        let user = rt.user.unwrap_or_else(|| nix::unistd::getuid().as_raw());
        let group = rt.user.unwrap_or_else(|| nix::unistd::getgid().as_raw());
        config["linux"]["namespaces"] =
            json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "user"}]);
        config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": user, "size": 1}]);
        config["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": group, "size": 1}]);
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|m| m["destination"] != "/sys");
        mounts[2]["options"].as_array_mut().unwrap().retain(|o| o != "gid=5");
        mounts.push(
            json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}),
        );
    }
    config
}
