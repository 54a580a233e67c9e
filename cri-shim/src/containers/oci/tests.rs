//! The configuration of a container as a whole: a base case, and tables of what each field changes.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rrun_proto::v1;
use rrun_proto::v1::NamespaceMode;
use rrun_proto::v1::security_profile::ProfileType;
use serde_json::{Value, json};

use super::*;
use crate::error::Result;

/// Everything that [`Input`] borrows.
struct Case {
    pod: v1::PodSandboxConfig,
    config: v1::ContainerConfig,
    image: ImageConfig,
    namespaces: Namespaces,
    files: Files,
    host: Host,
    features: Features,
    settings: Config,
    root: PathBuf,
    image_volumes: HashMap<usize, PathBuf>,
    labels: Labels,
}

impl Case {
    fn new() -> Case {
        let metadata = v1::PodSandboxMetadata { name: "web".into(), uid: "u-1".into(), namespace: "default".into(), attempt: 0 };
        let linux = v1::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/podu-1".into(),
            security_context: Some(v1::LinuxSandboxSecurityContext::default()),
            ..Default::default()
        };
        Case {
            pod: v1::PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..Default::default() },
            config: v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata { name: "nginx".into(), attempt: 0 }),
                linux: Some(v1::LinuxContainerConfig {
                    security_context: Some(v1::LinuxContainerSecurityContext::default()),
                    resources: Some(v1::LinuxContainerResources::default()),
                }),
                ..Default::default()
            },
            image: ImageConfig { entrypoint: vec!["/entry".into()], cmd: vec!["serve".into()], ..Default::default() },
            namespaces: Namespaces {
                network: Some("/var/run/netns/cni-1".into()),
                ipc: Some("/run/p/ipc".into()),
                uts: Some("/run/p/uts".into()),
                ..Default::default()
            },
            files: Files {
                resolv_conf: Some("/run/p/resolv.conf".into()),
                hostname: Some("/run/p/hostname".into()),
                hosts: Some("/run/p/hosts".into()),
                shm: Some("/run/p/shm".into()),
            },
            host: Host {
                cgroup2: true,
                capabilities: capabilities::of_mask(0x1ff_ffff_ffff),
                hugepages: ["2MB".to_owned()].into(),
                swap: true,
                seccomp: true,
                kernel: (6, 1),
                ..Default::default()
            },
            features: Features { recursive_read_only_mounts: true, user_namespaces: true },
            settings: Config::default(),
            root: PathBuf::from("/"),
            image_volumes: HashMap::new(),
            labels: Labels::default(),
        }
    }

    fn security(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        self.config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
    }

    fn resources(&mut self) -> &mut v1::LinuxContainerResources {
        self.config.linux.as_mut().unwrap().resources.as_mut().unwrap()
    }

    fn pod_security(&mut self) -> &mut v1::LinuxSandboxSecurityContext {
        self.pod.linux.as_mut().unwrap().security_context.as_mut().unwrap()
    }

    fn make(&self) -> Result<(Spec, Found)> {
        let input = Input {
            id: "c1",
            pod: Pod { id: "p1", config: &self.pod, handler: "rrun", namespaces: &self.namespaces, hostname: "web", files: &self.files },
            config: &self.config,
            image: &self.image,
            image_name: "docker.io/library/nginx:1",
            selinux: &self.labels,
            rootfs: Path::new("/run/c/rootfs"),
            host: &self.host,
            features: self.features,
            settings: &self.settings,
        };
        let root: OwnedFd = fs::File::open(&self.root).unwrap().into();
        let found = find(&input, root.as_fd(), &self.image_volumes)?;
        Ok((spec(&input, &found)?, found))
    }

    fn json(&self) -> Value {
        serde_json::to_value(self.make().unwrap().0).unwrap()
    }

    fn error(&self) -> String {
        let error = self.make().unwrap_err();
        assert!(matches!(error, crate::error::Error::InvalidArgument(_)), "{error:?}");
        error.to_string()
    }
}

/// The json of the base case, changed.
fn with(change: impl FnOnce(&mut Case)) -> Value {
    let mut case = Case::new();
    change(&mut case);
    case.json()
}

/// The error of the base case, changed; always InvalidArgument.
fn refused(change: impl FnOnce(&mut Case)) -> String {
    let mut case = Case::new();
    change(&mut case);
    case.error()
}

fn mount_at<'a>(json: &'a Value, path: &str) -> &'a Value {
    let found: Vec<_> = json["mounts"].as_array().unwrap().iter().filter(|m| m["destination"] == path).collect();
    assert_eq!(found.len(), 1, "{path}: {}", json["mounts"]);
    found[0]
}

fn destinations(json: &Value) -> Vec<&str> {
    json["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect()
}

fn has(list: &Value, entry: &str) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|e| e == entry))
}

fn namespace(json: &Value, typ: &str) -> Option<Value> {
    json["linux"]["namespaces"].as_array().unwrap().iter().find(|n| n["type"] == typ).cloned()
}

#[test]
fn the_base_case() {
    let json = Case::new().json();
    assert_eq!(json["process"]["args"], json!(["/entry", "serve"]));
    assert_eq!(json["process"]["cwd"], "/");
    assert_eq!(json["process"]["user"], json!({"uid": 0, "gid": 0, "additionalGids": groups_of_root()}));
    assert_eq!(json["process"]["env"], json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=web"]));
    assert_eq!(json["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
    assert_eq!(json["process"]["capabilities"]["inheritable"], json!([]));
    assert_eq!(json["process"]["noNewPrivileges"], false);
    assert!(json["process"]["rlimits"].is_null() && json["linux"]["seccomp"].is_null() && json["hostname"].is_null());
    assert_eq!(json["root"], json!({"path": "/run/c/rootfs", "readonly": false}));
    assert_eq!(json["linux"]["cgroupsPath"], "/kubepods/podu-1/c1");
    assert_eq!(json["linux"]["resources"]["devices"], json!([{"allow": false, "access": "rwm"}]));
    assert_eq!(json["annotations"]["io.kubernetes.cri.sandbox-name"], "web");
    assert_eq!(json["annotations"]["io.kubernetes.cri.container-type"], "container");
    assert_eq!(
        destinations(&json),
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup",
            "/etc/hostname",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/dev/shm"
        ]
    );
    assert_eq!(mount_at(&json, "/dev/shm")["source"], "/run/p/shm");
}

#[test]
fn selinux_labels_and_where_they_go() {
    let json = Case::new().json();
    assert!(json["process"]["selinuxLabel"].is_null() && json["linux"]["mountLabel"].is_null(), "SELinux is off");
    let labels = Labels { process: "u:r:container_t:s0:c1,c2".into(), mount: "u:r:container_file_t:s0:c1,c2".into() };
    // The pod's files would be relabelled.
    let json = with(|case| (case.labels, case.files) = (labels.clone(), Files::default()));
    assert_eq!((&json["process"]["selinuxLabel"], &json["linux"]["mountLabel"]), (&json!(labels.process), &json!(labels.mount)));
    let json = with(|case| (case.labels, case.files) = (Labels { process: String::new(), ..labels.clone() }, Files::default()));
    assert!(json["process"]["selinuxLabel"].is_null() && json["linux"]["mountLabel"] == labels.mount, "privileged");
}

/// Those of this machine's /etc/group: the cases look users up in its root.
fn groups_of_root() -> Vec<u32> {
    let text = fs::read_to_string("/etc/group").unwrap_or_default();
    let extra = text.lines().map(|l| l.split(':').collect::<Vec<_>>()).filter(|l| l.len() > 3 && l[3].split(',').any(|m| m == "root"));
    let mut all = vec![0];
    for gid in extra.map(|line| line[2].parse().unwrap()) {
        if !all.contains(&gid) {
            all.push(gid);
        }
    }
    all
}

#[test]
fn what_runs() {
    let args = |command: &[&str], args: &[&str]| {
        with(|case| {
            case.config.command = command.iter().map(ToString::to_string).collect();
            case.config.args = args.iter().map(ToString::to_string).collect();
        })["process"]["args"]
            .clone()
    };
    assert_eq!(args(&["sh"], &[]), json!(["sh"]), "the image's arguments belong to its entrypoint");
    assert_eq!(args(&["sh"], &["-c", "x"]), json!(["sh", "-c", "x"]));
    assert_eq!(args(&[], &["other"]), json!(["/entry", "other"]));
    assert!(refused(|case| case.image = ImageConfig::default()).contains("command: empty"));
    assert!(refused(|case| case.config.args = vec!["a\0b".into()]).contains("NUL"));

    let cwd = |image: &str, own: &str| {
        with(|case| (case.image.working_dir, case.config.working_dir) = (image.into(), own.into()))["process"]["cwd"].clone()
    };
    assert_eq!((cwd("/img", ""), cwd("/img", "/own"), cwd("img", "")), (json!("/img"), json!("/own"), json!("/img")));
    assert!(refused(|case| case.config.working_dir = "x".into()).contains("working_dir"));
}

#[test]
fn environment() {
    let json = with(|case| {
        case.config.tty = true;
        case.image.env = vec!["PATH=/img".into(), "A=image".into(), "broken".into(), "=x".into()];
        for (key, value) in [("A", "own"), ("B", "a=b"), ("EMPTY", "")] {
            case.config.envs.push(v1::KeyValue { key: key.into(), value: value.into() });
        }
    });
    assert_eq!(json["process"]["env"], json!(["PATH=/img", "TERM=xterm", "HOSTNAME=web", "A=own", "B=a=b", "EMPTY="]));
    assert_eq!(json["process"]["terminal"], true);
    let bad = |key: &str, value: &[u8]| refused(|case| case.config.envs = vec![v1::KeyValue { key: key.into(), value: value.into() }]);
    assert!(bad("", b"x").contains("envs[0].key"));
    assert!(bad("A=B", b"x").contains("envs[0].key"));
    assert!(bad("A", b"\xff").contains("envs[0].value"));
    assert!(bad("A", b"\0").contains("envs[0].value"));
}

#[test]
fn users() {
    let root = std::env::temp_dir().join(format!("rrun-cri-users-{}", std::process::id()));
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nbroken\nwww:x:33:33::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nwww:x:33:\nextra:x:50000:app\nmore:x:60000:www,app\n").unwrap();
    type Change = fn(&mut Case);
    type Who = (u32, u32, &'static [u32]);
    let cases: [(&str, Change, Who); 13] = [
        ("root", |_| (), (0, 0, &[0])),
        ("image's name", |c| c.image.user = "www".into(), (33, 33, &[33, 60000])),
        ("image's number", |c| c.image.user = "33".into(), (33, 33, &[33, 60000])),
        ("image's unknown number", |c| c.image.user = "7".into(), (7, 0, &[0])),
        ("image's uid:gid", |c| c.image.user = "7:8".into(), (7, 8, &[8])),
        ("image's name:group", |c| c.image.user = "www:extra".into(), (33, 50000, &[50000, 60000])),
        ("group alone", |c| c.image.user = ":extra".into(), (0, 50000, &[50000])),
        ("run_as_user", |c| c.security().run_as_user = Some(v1::Int64Value { value: 1000 }), (1000, 1001, &[1001, 50000, 60000])),
        ("run_as_username", |c| c.security().run_as_username = "app".into(), (1000, 1001, &[1001, 50000, 60000])),
        (
            "over the image's",
            |c| {
                c.image.user = "www:extra".into();
                c.security().run_as_user = Some(v1::Int64Value { value: 9 });
            },
            (9, 0, &[0]),
        ),
        (
            "run_as_group",
            |c| {
                c.security().run_as_user = Some(v1::Int64Value { value: 1000 });
                c.security().run_as_group = Some(v1::Int64Value { value: 5 });
            },
            (1000, 5, &[5, 50000, 60000]),
        ),
        (
            "supplemental",
            |c| {
                c.image.user = "app".into();
                c.security().supplemental_groups = vec![1234, 50000];
            },
            (1000, 1001, &[1001, 1234, 50000, 60000]),
        ),
        (
            "strict",
            |c| {
                c.image.user = "app".into();
                c.security().supplemental_groups = vec![1234];
                c.security().supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict.into();
            },
            (1000, 1001, &[1001, 1234]),
        ),
    ];
    for (what, change, (uid, gid, groups)) in cases {
        let mut case = Case::new();
        case.root.clone_from(&root);
        change(&mut case);
        let found = case.make().unwrap().1;
        assert_eq!((found.user.uid, found.user.gid, found.user.groups.as_slice()), (uid, gid, groups), "{what}");
    }
    let bad: [(Change, &str); 5] = [
        (|c| c.image.user = "nobody-knows".into(), "the image's User: \"nobody-knows\""),
        (|c| c.image.user = "www:nogroup".into(), "group \"nogroup\""),
        (|c| c.security().run_as_username = "ghost".into(), "run_as_username: \"ghost\""),
        (|c| c.security().run_as_user = Some(v1::Int64Value { value: -1 }), "run_as_user: -1 is not an id"),
        (|c| c.security().run_as_group = Some(v1::Int64Value { value: 5 }), "run_as_group: set without run_as_user"),
    ];
    for (change, words) in bad {
        let error = refused(|case| {
            case.root.clone_from(&root);
            change(case);
        });
        assert!(error.contains(words), "{error}");
    }
    // Links in an image stay in the image.
    fs::remove_file(root.join("etc/passwd")).unwrap();
    std::os::unix::fs::symlink("/etc/group", root.join("etc/passwd")).unwrap();
    assert!(
        refused(|case| {
            case.root.clone_from(&root);
            case.image.user = "daemon".into();
        })
        .contains("daemon")
    );
    fs::remove_dir_all(root).unwrap();
}

#[test]
fn namespaces_of_each_mode() {
    let json = Case::new().json();
    assert_eq!(namespace(&json, "network").unwrap()["path"], "/var/run/netns/cni-1");
    assert_eq!(namespace(&json, "pid").unwrap(), json!({"type": "pid"}));
    assert_eq!(namespace(&json, "cgroup").unwrap(), json!({"type": "cgroup"}));
    assert!(namespace(&json, "mount").is_some() && namespace(&json, "user").is_none());
    let json = with(|case| case.namespaces = Namespaces { pid: PidNamespace::Host, ..Default::default() });
    for typ in ["network", "ipc", "uts", "pid"] {
        assert!(namespace(&json, typ).is_none(), "{typ}");
    }
    let json = with(|case| case.namespaces.pid = PidNamespace::Path("/proc/7/ns/pid".into()));
    assert_eq!(namespace(&json, "pid").unwrap()["path"], "/proc/7/ns/pid");
    assert!(namespace(&with(|case| case.host.cgroup2 = false), "cgroup").is_none());
}

fn maps() -> Vec<v1::IdMapping> {
    vec![v1::IdMapping { host_id: 65536, container_id: 0, length: 65536 }]
}

fn user_options() -> Option<v1::NamespaceOption> {
    let user = v1::UserNamespace { mode: NamespaceMode::Pod.into(), uids: maps(), gids: maps() };
    Some(v1::NamespaceOption { userns_options: Some(user), ..Default::default() })
}

#[test]
fn user_namespaces() {
    let mut case = Case::new();
    case.namespaces.user = Some(UserNamespace { path: "/run/p/user".into(), uids: maps(), gids: maps() });
    case.security().namespace_options = user_options();
    case.pod_security().namespace_options = user_options();
    let volume = std::env::temp_dir();
    case.config.mounts = vec![v1::Mount {
        container_path: "/data".into(),
        host_path: volume.to_str().unwrap().into(),
        uid_mappings: maps(),
        gid_mappings: maps(),
        ..Default::default()
    }];
    let json = case.json();
    assert_eq!(namespace(&json, "user").unwrap()["path"], "/run/p/user");
    assert!(json["linux"]["uidMappings"].is_null(), "a joined namespace has its mapping");
    for path in ["/data", "/etc/hosts"] {
        let mount = mount_at(&json, path);
        assert_eq!(mount["uidMappings"], json!([{"containerID": 0, "hostID": 65536, "size": 65536}]), "{path}");
        assert!(has(&mount["options"], "idmap"));
    }
    case.namespaces.network = None;
    let json = case.json();
    assert_eq!(mount_at(&json, "/sys")["type"], "bind", "with the host's network there is no sysfs to mount");
    case.security().namespace_options = None;
    assert!(case.json().is_object(), "a container that says nothing has the pod's");
    case.security().namespace_options = Some(v1::NamespaceOption::default());
    assert!(case.error().contains("not those of the pod"));

    let check = |change: fn(&mut v1::NamespaceOption)| {
        let mut case = Case::new();
        let mut options = user_options().unwrap();
        change(&mut options);
        case.pod_security().namespace_options = Some(options);
        check_pod(&case.pod, "rrun", case.features, &case.host).map_err(|error| error.to_string())
    };
    fn user(options: &mut v1::NamespaceOption) -> &mut v1::UserNamespace {
        options.userns_options.as_mut().unwrap()
    }
    check(|_| ()).unwrap();
    for (change, words) in [
        ((|o| user(o).mode = NamespaceMode::Container.into()) as fn(&mut v1::NamespaceOption), "mode: CONTAINER"),
        (|o| user(o).mode = NamespaceMode::Target.into(), "mode: TARGET"),
        (|o| user(o).mode = NamespaceMode::Node.into(), "mode NODE takes no uids"),
        (|o| user(o).uids.clear(), "uids: 0 ranges"),
        (|o| user(o).gids.clear(), "gids: 0 ranges"),
        (|o| user(o).uids.extend(maps()), "uids: 2 ranges"),
        (|o| user(o).uids[0].container_id = 1, "begin at 0"),
        (|o| user(o).gids[0].length = 0, "gids: the range is empty"),
        (|o| user(o).uids[0].length = u32::MAX, "beyond the last id"),
        (|o| o.pid = NamespaceMode::Node.into(), "pid: NODE"),
    ] {
        let error = check(change).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    let case = {
        let mut case = Case::new();
        case.pod_security().namespace_options = user_options();
        case
    };
    assert!(check_pod(&case.pod, "old", Features::default(), &case.host).unwrap_err().to_string().contains("\"old\""));
}

#[test]
fn privileged() {
    let mut case = Case::new();
    case.security().privileged = true;
    assert!(case.error().contains("the pod is not privileged"));
    case.pod_security().privileged = true;
    case.security().masked_paths = vec!["/proc/kcore".into()];
    case.security().seccomp = Some(v1::SecurityProfile::default());
    let json = case.json();
    assert_eq!(json["process"]["capabilities"]["effective"].as_array().unwrap().len(), 41);
    assert_eq!((&json["linux"]["maskedPaths"], &json["linux"]["seccomp"]), (&json!([]), &Value::Null));
    assert_eq!(json["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
    assert!(json["linux"]["devices"].as_array().unwrap().iter().any(|device| device["path"] == "/dev/null"));
    for path in ["/sys", "/sys/fs/cgroup"] {
        assert!(has(&mount_at(&json, path)["options"], "rw"), "{path}");
    }
    assert!(namespace(&json, "cgroup").is_none(), "it sees the host's");
    case.settings.runtimes.get_mut("rrun").unwrap().privileged_without_host_devices = true;
    assert!(case.json()["linux"]["devices"].is_null());
}

#[test]
fn paths_that_are_hidden() {
    let json = with(|case| {
        case.security().masked_paths = vec!["/proc/kcore".into()];
        case.security().readonly_paths = vec!["/proc/sys".into()];
        case.security().readonly_rootfs = true;
        case.security().no_new_privs = true;
    });
    assert_eq!((&json["linux"]["maskedPaths"], &json["linux"]["readonlyPaths"]), (&json!(["/proc/kcore"]), &json!(["/proc/sys"])));
    assert_eq!((&json["root"]["readonly"], &json["process"]["noNewPrivileges"]), (&json!(true), &json!(true)));
    assert!(has(&mount_at(&json, "/etc/hosts")["options"], "ro") && has(&mount_at(&json, "/dev/shm")["options"], "rw"));
}

fn volume(path: &str) -> v1::Mount {
    v1::Mount { container_path: path.into(), host_path: std::env::temp_dir().to_str().unwrap().into(), ..Default::default() }
}

#[test]
fn volumes() {
    let json = with(|case| {
        for path in ["/a/b/c", "/a", "/a//b/", "/etc/hosts", "/dev/shm", "/sys/fs/cgroup"] {
            case.config.mounts.push(volume(path));
        }
        case.config.mounts[1].readonly = true;
        case.config.mounts[0].mount_options = vec!["noexec".into(), "nosuid".into()];
    });
    let places = destinations(&json);
    let at = |path: &str| places.iter().position(|p| *p == path).unwrap();
    assert!(at("/a") < at("/a/b") && at("/a/b") < at("/a/b/c"), "{places:?}");
    assert_eq!(places.iter().filter(|p| **p == "/etc/hosts").count(), 1);
    assert_ne!(mount_at(&json, "/dev/shm")["source"], "/run/p/shm");
    assert_eq!(mount_at(&json, "/sys/fs/cgroup")["type"], "bind");
    assert_eq!(mount_at(&json, "/a")["options"], json!(["rbind", "rprivate", "ro"]));
    assert_eq!(mount_at(&json, "/a/b/c")["options"], json!(["rbind", "rprivate", "rw", "noexec", "nosuid"]));
    assert!(json["linux"]["rootfsPropagation"].is_null());

    let bad = |change: fn(&mut v1::Mount)| {
        refused(|case| {
            let mut mount = volume("/a");
            change(&mut mount);
            case.config.mounts = vec![mount];
        })
    };
    for (change, words) in [
        ((|m| m.container_path.clear()) as fn(&mut v1::Mount), "mounts[0].container_path"),
        (|m| m.container_path = "/a/../b".into(), "mounts[0].container_path"),
        (|m| m.container_path = "/".into(), "mounts[0].container_path"),
        (|m| m.host_path = "rel".into(), "mounts[0].host_path"),
        (|m| m.mount_options = vec!["suid".into()], "mounts[0].mount_options"),
        (|m| m.uid_mappings = maps(), "go together"),
    ] {
        let error = bad(change);
        assert!(error.contains(words), "{error}");
    }
    // The place is refused before the folder is made.
    let missing = std::env::temp_dir().join(format!("rrun-cri-never-{}", std::process::id()));
    refused(|case| {
        case.config.mounts = vec![v1::Mount { host_path: missing.to_str().unwrap().into(), ..volume("/ok") }, volume("/../x")];
    });
    assert!(!missing.exists());
}

#[test]
fn recursively_read_only() {
    let rro = |change: fn(&mut Case)| {
        let mut case = Case::new();
        case.config.mounts = vec![v1::Mount { readonly: true, recursive_read_only: true, ..volume("/a") }];
        change(&mut case);
        case
    };
    assert_eq!(mount_at(&rro(|_| ()).json(), "/a")["options"], json!(["rbind", "rprivate", "rro"]));
    for change in [
        (|case| case.config.mounts[0].readonly = false) as fn(&mut Case),
        |case| case.config.mounts[0].propagation = v1::MountPropagation::PropagationHostToContainer.into(),
        |case| case.config.mounts[0].propagation = v1::MountPropagation::PropagationBidirectional.into(),
        |case| case.features.recursive_read_only_mounts = false,
    ] {
        let error = rro(change).error();
        assert!(error.starts_with("RROUnsupported: "), "{error}");
    }
}

#[test]
fn image_volumes() {
    let mut case = Case::new();
    let image = Some(v1::ImageSpec { image: "data:1".into(), ..Default::default() });
    case.config.mounts = vec![v1::Mount { container_path: "/data".into(), image, readonly: true, ..Default::default() }];
    case.image_volumes.insert(0, "/run/images/data".into());
    let json = case.json();
    assert_eq!(mount_at(&json, "/data")["source"], "/run/images/data");
    assert!(has(&mount_at(&json, "/data")["options"], "ro"));
    case.config.mounts[0].readonly = false;
    assert!(case.error().contains("mounts[0].readonly"));
}

#[test]
fn device_nodes() {
    let device = |host: &str, inside: &str, permissions: &str| v1::Device {
        host_path: host.into(),
        container_path: inside.into(),
        permissions: permissions.into(),
    };
    let json = with(|case| case.config.devices = vec![device("/dev/null", "/dev/x", "rw"), device("/dev/zero", "", "")]);
    assert_eq!(json["linux"]["devices"][0]["path"], "/dev/x");
    assert_eq!(
        json["linux"]["resources"]["devices"],
        json!([{"allow": false, "access": "rwm"},
               {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
               {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"}])
    );
    for (wrong, words) in [
        (device("/dev/nothing", "/x", ""), "devices[0].host_path"),
        (device("/etc/passwd", "/x", ""), "is no device"),
        (device("/dev/null", "x", ""), "absolute"),
        (device("/dev/null", "/x", "rx"), "devices[0].permissions"),
    ] {
        let error = refused(|case| case.config.devices = vec![wrong]);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn limits() {
    let json = with(|case| {
        *case.resources() = v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: 985,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: [("2Mi", 0), ("1GB", 5)].map(|(s, limit)| v1::HugepageLimit { page_size: s.into(), limit }).into(),
            unified: [("memory.high".to_owned(), "1000".to_owned())].into(),
            ..Default::default()
        };
    });
    let resources = &json["linux"]["resources"];
    assert_eq!(resources["cpu"], json!({"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-1"}));
    assert_eq!(resources["memory"], json!({"limit": 64 << 20, "swap": 64 << 20}), "no swap unless it is given");
    assert_eq!(resources["hugepageLimits"], json!([{"pageSize": "2MB", "limit": 0}]), "sizes that the host lacks are left out");
    assert_eq!(resources["unified"], json!({"memory.high": "1000"}));
    assert_eq!(json["process"]["oomScoreAdj"], 985);
    let swap = with(|case| {
        case.resources().memory_limit_in_bytes = 1 << 20;
        case.resources().memory_swap_limit_in_bytes = 3 << 20;
    });
    assert_eq!(swap["linux"]["resources"]["memory"]["swap"], 3 << 20);
    let none = with(|case| {
        case.host.swap = false;
        case.resources().memory_limit_in_bytes = 1 << 20;
    });
    assert!(none["linux"]["resources"]["memory"]["swap"].is_null());
    let clamped = with(|case| {
        case.host.least_oom_score_adj = Some(0);
        case.resources().oom_score_adj = -997;
    });
    assert_eq!(clamped["process"]["oomScoreAdj"], 0);
    for (change, words) in [
        ((|r| r.cpu_shares = -1) as fn(&mut v1::LinuxContainerResources), "cpu_shares"),
        (|r| r.cpu_period = 5, "cpu_period"),
        (|r| r.cpu_quota = 5, "cpu_quota"),
        (|r| r.cpuset_cpus = "0-".into(), "cpuset_cpus"),
        (|r| r.cpuset_mems = "a".into(), "cpuset_mems"),
        (|r| r.memory_limit_in_bytes = -2, "memory_limit_in_bytes"),
        (|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (2, 1), "memory_swap_limit_in_bytes"),
        (|r| r.oom_score_adj = 1001, "oom_score_adj"),
        (|r| r.hugepage_limits = vec![v1::HugepageLimit { page_size: "2 MB".into(), limit: 0 }], "hugepage_limits"),
        (|r| _ = r.unified.insert("../x.y".into(), "1".into()), "unified"),
    ] {
        let error = refused(|case| change(case.resources()));
        assert!(error.starts_with("linux.resources.") && error.contains(words), "{error}");
    }
    assert!(
        refused(|case| {
            case.host.cgroup2 = false;
            case.resources().unified.insert("memory.high".into(), "1".into());
        })
        .contains("cgroup v1")
    );
}

#[test]
fn updates() {
    let host = Case::new().host;
    let current =
        v1::LinuxContainerResources { cpu_shares: 100, memory_limit_in_bytes: 1 << 20, cpuset_cpus: "0".into(), ..Default::default() };
    let update = v1::LinuxContainerResources { cpu_quota: 20_000, memory_limit_in_bytes: 2 << 20, ..Default::default() };
    let (limits, merged) = update_resources(&current, &update, &host).unwrap();
    assert_eq!((merged.cpu_shares, merged.cpu_quota, merged.memory_limit_in_bytes), (100, 20_000, 2 << 20));
    assert_eq!(
        serde_json::to_value(limits).unwrap(),
        json!({"cpu": {"shares": 100, "quota": 20000, "cpus": "0"}, "memory": {"limit": 2 << 20, "swap": 2 << 20}})
    );
    let undo = undo_resources(&current, &update, &host).unwrap();
    assert_eq!(
        serde_json::to_value(undo).unwrap(),
        json!({"cpu": {"shares": 100, "quota": -1, "cpus": "0"}, "memory": {"limit": 1 << 20, "swap": 1 << 20}})
    );
    let wrong = v1::LinuxContainerResources { cpu_quota: 20_000, cpu_period: 1, ..Default::default() };
    assert!(update_resources(&current, &wrong, &host).unwrap_err().to_string().contains("cpu_period"));
}

#[test]
fn seccomp_of_each_kind() {
    let profile = |kind: ProfileType, path: &str| Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: path.into() });
    let default = with(|case| case.security().seccomp = profile(ProfileType::RuntimeDefault, ""));
    assert_eq!(default["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert!(with(|case| case.security().seccomp = profile(ProfileType::Unconfined, ""))["linux"]["seccomp"].is_null());
    assert!(with(|case| case.settings.seccomp_by_default = true)["linux"]["seccomp"].is_object());
    let file = std::env::temp_dir().join(format!("rrun-cri-seccomp-{}.json", std::process::id()));
    fs::write(&file, r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]}"#).unwrap();
    for prefix in ["", "localhost/"] {
        let path = format!("{prefix}{}", file.display());
        let json = with(|case| case.security().seccomp = profile(ProfileType::Localhost, &path));
        assert_eq!(json["linux"]["seccomp"]["syscalls"][0]["names"], json!(["chmod"]));
    }
    #[allow(deprecated)]
    let old = with(|case| case.security().seccomp_profile_path = format!("localhost/{}", file.display()));
    assert_eq!(old["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ALLOW");
    fs::remove_file(&file).unwrap();
    for (path, words) in [("relative.json", "not an absolute path"), ("/nonexistent.json", "read seccomp profile /nonexistent.json")] {
        let error = refused(|case| case.security().seccomp = profile(ProfileType::Localhost, path));
        assert!(error.starts_with("linux.security_context.seccomp.localhost_ref: ") && error.contains(words), "{error}");
    }
    assert!(
        refused(|case| {
            case.host.seccomp = false;
            case.security().seccomp = profile(ProfileType::RuntimeDefault, "");
        })
        .contains("no seccomp")
    );
}

#[test]
fn apparmor_without_apparmor() {
    let profile = |kind: ProfileType| Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: "localhost/x".into() });
    assert!(with(|case| case.security().apparmor = profile(ProfileType::Unconfined))["process"]["apparmorProfile"].is_null());
    assert!(refused(|case| case.security().apparmor = profile(ProfileType::Localhost)).contains("AppArmor is not active"));
}

#[test]
fn stop_signals() {
    let of = |asked: v1::Signal, image: &str| {
        let config = v1::ContainerConfig { stop_signal: asked.into(), ..Default::default() };
        stop_signal(&config, &ImageConfig { stop_signal: image.into(), ..Default::default() })
    };
    use v1::Signal;
    for (asked, image, number) in [
        (Signal::RuntimeDefault, "", 15),
        (Signal::RuntimeDefault, "SIGQUIT", 3),
        (Signal::RuntimeDefault, "quit", 3),
        (Signal::RuntimeDefault, "9", 9),
        (Signal::RuntimeDefault, "SIGRTMIN+3", 37),
        (Signal::Sigusr1, "SIGQUIT", 10),
        (Signal::Sigrtminplus3, "", 37),
        (Signal::Sigrtmaxminus14, "", 50),
        (Signal::Sigrtmax, "", 64),
    ] {
        assert_eq!(of(asked, image).unwrap(), number, "{asked:?} {image}");
        if asked != Signal::RuntimeDefault {
            assert_eq!(stop_signal_name(number), asked);
        }
    }
    for image in ["SIGNOPE", "0", "65", "-1", "SIGRTMIN+x"] {
        assert!(of(Signal::RuntimeDefault, image).is_err(), "{image}");
    }
    for number in 1..=64 {
        // 32 and 33 belong to the C library.
        assert_eq!(stop_signal_name(number) == Signal::RuntimeDefault, (32..34).contains(&number), "{number}");
    }
}

#[test]
fn image_configs_with_null() {
    let config: ImageConfig = serde_json::from_str(r#"{"Env": null, "Cmd": ["x"], "Volumes": {"/data": {}}, "Hostname": "h"}"#).unwrap();
    assert_eq!((config.cmd.len(), config.env.len(), config.volumes.len()), (1, 0, 1));
}

/// A real runtime takes what we make, our seccomp profile included. Needs root, the built rrun and a static busybox.
#[test]
fn rrun_runs_it() {
    let runtime = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("rrun");
    let busybox = Path::new("/bin/busybox");
    if !rustix::process::geteuid().is_root() || !runtime.exists() || !busybox.exists() {
        eprintln!("SKIP oci: needs root, {} and a static {}", runtime.display(), busybox.display());
        return;
    }
    let bundle = std::env::temp_dir().join(format!("rrun-cri-bundle-{}", std::process::id()));
    let mut case = Case::new();
    fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
    fs::copy(busybox, bundle.join("rootfs/bin/busybox")).unwrap();
    case.host = Host::probe(&case.settings).unwrap();
    case.host.cgroup_driver = CgroupDriver::Cgroupfs;
    case.pod.linux.as_mut().unwrap().cgroup_parent.clear();
    case.namespaces = Namespaces::default();
    case.files = Files::default();
    let script = "hostname >/dev/null; echo $HOSTNAME $(id -u) $(cat /data/file); echo x >/data/file || exit 7";
    case.config.command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
    fs::create_dir_all(bundle.join("data")).unwrap();
    fs::write(bundle.join("data/file"), "volume").unwrap();
    let host_path = bundle.join("data").to_str().unwrap().to_owned();
    case.config.mounts = vec![v1::Mount { container_path: "/data".into(), host_path, readonly: true, ..Default::default() }];
    case.security().run_as_user = Some(v1::Int64Value { value: 1000 });
    case.security().seccomp = Some(v1::SecurityProfile::default());
    case.security().readonly_rootfs = true;
    case.security().masked_paths = vec!["/proc/kcore".into()];
    case.resources().memory_limit_in_bytes = 64 << 20;
    let mut spec = case.make().unwrap().0;
    spec.root_mut().as_mut().unwrap().set_path(bundle.join("rootfs"));
    fs::write(bundle.join("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    let id = format!("rrun-cri-test-{}", std::process::id());
    let output = std::process::Command::new(runtime)
        .arg("--root")
        .arg(bundle.join("state"))
        .args(["run", "--bundle"])
        .arg(&bundle)
        .arg(&id)
        .output()
        .unwrap();
    fs::remove_dir_all(&bundle).unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((out.trim(), output.status.code()), ("web 1000 volume", Some(7)), "{err}");
}
