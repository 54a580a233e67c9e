//! CheckpointContainer, and containers made from what it writes. Left out where there is no CRIU that works on this kernel.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rrun_proto::v1;
use rrun_proto::v1::ContainerState::{ContainerCreated, ContainerRunning};
use tests::host::wait_until;
use tonic::{Code, Status};

use crate::client::{Container, Pod, namespaces, resources, script, security, unique};
use crate::node::{Network, Node};

/// Why nothing can be checkpointed here.
fn hindrance() -> Option<String> {
    if let Some(reason) = crate::node::lacking() {
        return Some(reason);
    }
    match Command::new("criu").arg("check").stdin(Stdio::null()).output() {
        Err(_) => Some("no criu".into()),
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("criu check: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

macro_rules! criu_or_skip {
    ($node:expr) => {{
        if let Some(reason) = hindrance() {
            tests::host::skip(&reason);
            return;
        }
        $node
    }};
}

mod pods;

/// Numbers on standard output, one after the other, until SIGTERM.
const COUNT: &str = "i=0; trap 'echo bye; exit 5' TERM; while :; do i=$((i+1)); echo $i; sleep 0.02; done";

impl Container<'_> {
    fn checkpoint(&self, location: &Path, timeout: i64) -> Result<(), Status> {
        let location = location.display().to_string();
        let request = v1::CheckpointContainerRequest { container_id: self.id.clone(), location, timeout };
        self.node.cri().checkpoint_container(request).map(drop)
    }

    /// Writes a checkpoint into a new file.
    #[track_caller]
    fn saved(&self) -> PathBuf {
        let path = self.node.dir().join(format!("checkpoint-{}.tar", unique()));
        self.checkpoint(&path, 0).unwrap_or_else(|status| panic!("CheckpointContainer: {status:?}\n{}", self.node.log_tail()));
        path
    }

    /// The last number that it printed: all before it must be there, once each.
    #[track_caller]
    fn count(&self) -> usize {
        let all: Vec<_> = self.log().into_iter().filter_map(|line| line.text.parse::<usize>().ok()).collect();
        assert_eq!(all, (1..=all.len()).collect::<Vec<_>>(), "lines are missing or doubled");
        all.len()
    }

    #[track_caller]
    fn counts_beyond(&self, least: usize) -> usize {
        assert!(
            wait_until(20, || self.count() > least),
            "counts no further than {}: {:?}\n{}",
            self.count(),
            self.status(),
            self.node.log_tail()
        );
        self.count()
    }

    /// Nothing of a checkpoint is left but the archives.
    #[track_caller]
    fn assert_no_rest(&self) {
        let left = |folder: &Path| fs::read_dir(folder).unwrap().flatten().map(|entry| entry.file_name()).collect::<Vec<_>>();
        let dir = self.node.dir().join("lib/pods").join(self.status_pod()).join("containers").join(&self.id);
        let rest = || {
            left(&dir)
                .into_iter()
                .chain(left(self.node.dir()))
                .filter(|name| {
                    let name = name.to_string_lossy();
                    name == "checkpoint" || name == "restore" || name.ends_with(".partial")
                })
                .collect::<Vec<_>>()
        };
        assert!(wait_until(20, || rest().is_empty()), "{:?}", rest());
    }

    fn status_pod(&self) -> String {
        self.info()["sandboxID"].as_str().unwrap().to_owned()
    }
}

/// The same container made from a checkpoint.
fn from(path: &Path, config: &v1::ContainerConfig) -> v1::ContainerConfig {
    let mut config = config.clone();
    config.image = Some(v1::ImageSpec { image: path.display().to_string(), ..Default::default() });
    config.log_path = format!("restored-{}.log", unique());
    config
}

/// Runs a program; its output.
#[track_caller]
fn run(program: &str, args: &[&str]) -> String {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn a_container_goes_on_and_another_begins_where_it_was() {
    let node = criu_or_skip!(Node::shared());
    let pod = node.pod();
    let config = script(COUNT);
    let first = pod.start(&config);
    first.counts_beyond(5);
    let path = first.saved();
    let saved = first.count();
    first.counts_beyond(saved);
    assert_eq!(first.sh("echo inside"), "inside");
    first.assert_no_rest();
    let data = fs::metadata(&path).unwrap();
    assert_eq!((data.permissions().mode() & 0o7777, data.uid()), (0o600, 0));
    let names = run("tar", &["-tf", path.to_str().unwrap()]);
    let names: Vec<_> = names.lines().collect();
    for name in [
        "checkpoint/",
        "checkpoint/inventory.img",
        "checkpoint/pages-1.img",
        "config.dump",
        "spec.dump",
        "status.dump",
        "status",
        "rootfs-diff.tar",
        "container.log",
        "dump.log",
        "stats-dump",
        "bind.mounts",
    ] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    let dump: serde_json::Value = serde_json::from_str(&run("tar", &["-xOf", path.to_str().unwrap(), "config.dump"])).unwrap();
    assert_eq!((dump["id"].as_str(), dump["runtime"].as_str()), (Some(&*first.id), Some("rrun")));
    assert!(dump["checkpointedTime"].as_str().unwrap().ends_with('Z'), "{dump}");
    first.stop(20).unwrap();
    assert_eq!(first.status().exit_code, 5, "it was not harmed");
    pod.end();

    let pod = node.pod();
    let events = node.cri().events();
    let second = pod.create(&from(&path, &config)).unwrap_or_else(|status| panic!("{status:?}\n{}", node.log_tail()));
    assert_eq!(second.status().state(), ContainerCreated);
    second.start().unwrap_or_else(|status| panic!("{status:?}\n{}", node.log_tail()));
    let status = second.status();
    assert_eq!(status.state(), ContainerRunning);
    assert_eq!(status.annotations["restored"], "true");
    assert_eq!(status.annotations["checkpointImage"], path.display().to_string());
    assert_eq!(status.image.unwrap().image, crate::image::BASE);
    second.counts_beyond(saved);
    assert_eq!(second.sh("echo inside"), "inside");
    second.assert_no_rest();
    let kinds: Vec<_> =
        events.try_iter().filter(|event| event.container_id == second.id).map(|event| event.container_event_type()).collect();
    use v1::ContainerEventType::{ContainerCreatedEvent, ContainerStartedEvent};
    assert_eq!(kinds, [ContainerCreatedEvent, ContainerStartedEvent]);
    // And once more, from what was restored.
    let third = from(&second.saved(), &config);
    let saved = second.count();
    second.stop(20).unwrap();
    assert_eq!(second.status().exit_code, 5);
    second.remove().unwrap();
    let third = pod.start(&third);
    third.counts_beyond(saved);
    third.stop(20).unwrap();
    assert_eq!((third.status().exit_code, third.log().last().unwrap().text.as_str()), (5, "bye"));
    pod.end();
}

/// What a writable layer can hold, and descriptors on it: one of a file that is there, one of a file that is not.
const FILES: &str = "cd /tmp; echo kept >kept; chown 1000:50000 kept; chmod 4750 kept; ln kept linked; ln -s kept sym; mkfifo fifo; \
    rm /data/file; rm -r /data/inner; mkdir /data/inner; echo new >/data/inner/new; mkdir -m 1770 /etc/deep; chown 7:8 /etc/deep; \
    exec 3>>open; echo of the deleted >gone; exec 4<gone; rm gone; i=0; while :; do i=$((i+1)); echo $i; echo $i >&3; sleep 0.02; done";

/// What a container that runs [`FILES`] sees of them.
const LOOK: &str = "cd /tmp; cat kept; stat -c '%u:%g %a %h' kept linked; readlink sym; stat -c %F fifo; ls /data /data/inner /bin/busybox; \
    stat -c '%u:%g %a' /etc/deep / /etc /tmp; cat /proc/1/fd/4; head -n 3 open";

#[track_caller]
fn files_are_kept(pod: impl Fn() -> Pod<'static>, config: &v1::ContainerConfig) {
    let (first_pod, second_pod) = (pod(), pod());
    let first = first_pod.start(config);
    first.counts_beyond(5);
    let before = first.sh(LOOK);
    let path = first.saved();
    let saved = first.count();
    assert_eq!(first.sh(LOOK), before);
    let dump = run("tar", &["-xOf", path.to_str().unwrap(), "deleted.files"]);
    assert!(dump.contains("\"/data/file\""), "{dump}");
    first_pod.end();
    let second = second_pod.start(&from(&path, config));
    second.counts_beyond(saved);
    assert_eq!(second.sh(LOOK), before);
    let lines = || second.sh("wc -l </tmp/open").parse::<usize>().unwrap();
    let now = lines();
    assert!(now >= saved && wait_until(20, || lines() > now), "{now} of {saved}");
    second_pod.end();
}

#[test]
fn the_writable_layer_is_kept() {
    let node = criu_or_skip!(Node::shared());
    files_are_kept(|| node.pod(), &script(FILES));
}

/// CRIU cannot restore into a user namespace that is there; what it saves has the owners that the container sees.
#[test]
fn of_a_user_namespace_there_are_archives_only() {
    let node = criu_or_skip!(Node::shared());
    let maps = vec![v1::IdMapping { host_id: 2_000_000, container_id: 0, length: 65536 }];
    let user = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: maps.clone(), gids: maps };
    let pod = node.pod_with(|config| {
        namespaces(config).network = v1::NamespaceMode::Pod.into();
        namespaces(config).userns_options = Some(user.clone());
    });
    let mut config = script(FILES);
    security(&mut config).namespace_options.get_or_insert_default().userns_options = Some(user);
    let first = pod.start(&config);
    first.counts_beyond(2);
    let path = first.saved();
    first.counts_beyond(first.count());
    let list = run("/bin/sh", &["-ec", &format!("tar -xOf {} rootfs-diff.tar | tar --numeric-owner -tvf -", path.display())]);
    let owner =
        |name: &str| list.lines().find(|line| line.ends_with(name)).and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned);
    assert_eq!(
        (owner(" tmp/kept").as_deref(), owner(" etc/deep/").as_deref(), owner(" tmp/open").as_deref()),
        (Some("1000/50000"), Some("7/8"), Some("0/0")),
        "{list}"
    );
    first.stop(0).unwrap();
    first.remove().unwrap();
    refuses(&pod, &from(&path, &config), Code::FailedPrecondition, "user namespace");
    pod.end();
}

#[test]
fn a_terminal_comes_back() {
    let node = criu_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = script("i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done");
    (config.tty, config.stdin) = (true, true);
    // Lines of a terminal end with a carriage return.
    let count = |container: &Container| container.log().iter().filter_map(|line| line.text.trim_end().parse().ok()).max().unwrap_or(0);
    let counts_beyond = |container: &Container, least: usize| {
        assert!(wait_until(20, || count(container) > least), "{:?}\n{}", container.log(), node.log_tail());
    };
    let first = pod.start(&config);
    counts_beyond(&first, 5);
    let path = first.saved();
    let saved = count(&first);
    counts_beyond(&first, saved);
    first.stop(0).unwrap();
    first.remove().unwrap();
    let mut without = from(&path, &config);
    (without.tty, without.stdin) = (false, false);
    refuses(&pod, &without, Code::InvalidArgument, "has a terminal: set tty");
    let second = pod.start(&from(&path, &config));
    counts_beyond(&second, saved);
    assert_eq!(second.sh("test -t 0 </proc/1/fd/0 && echo a terminal"), "a terminal");
    pod.end();
}

/// The container cannot be made, and nothing of it is left.
#[track_caller]
fn refuses(pod: &Pod, config: &v1::ContainerConfig, code: Code, words: &str) {
    let status = pod.create(config).map(drop).unwrap_err();
    assert!(status.code() == code && status.message().contains(words), "{status:?}, not {code:?} {words:?}");
    let left: Vec<_> =
        fs::read_dir(pod.node.dir().join("lib/pods").join(&pod.id).join("containers")).into_iter().flatten().flatten().collect();
    assert_eq!(left.len(), pod.node.containers_of(&pod.id).len(), "{left:?}");
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    let node = criu_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script(COUNT));
    container.counts_beyond(1);
    let (file, folder) = (node.dir().join("a-file"), node.dir().join("a-folder"));
    fs::write(&file, "").unwrap();
    fs::create_dir_all(&folder).unwrap();
    let path = |text: &str| PathBuf::from(text);
    for (location, timeout, code, words) in [
        (path(""), 0, Code::InvalidArgument, "absolute path"),
        (path("registry.test/checkpoint:1"), 0, Code::InvalidArgument, "org.criu.checkpoint.container.name"),
        (path("/"), 0, Code::InvalidArgument, "names no file"),
        (folder.join("missing/file"), 0, Code::InvalidArgument, "make it first"),
        (file.join("below"), 0, Code::InvalidArgument, "is no folder"),
        (folder.clone(), 0, Code::InvalidArgument, "no regular file"),
        (path("/dev/null"), 0, Code::InvalidArgument, "no regular file"),
        (path("/sys/kernel/file"), 0, Code::PermissionDenied, "can be written"),
        (folder.join("file"), -1, Code::InvalidArgument, "timeout"),
    ] {
        let status = container.checkpoint(&location, timeout).unwrap_err();
        assert!(status.code() == code && status.message().contains(words), "{location:?}: {status:?}, not {code:?} {words:?}");
    }
    container.assert_no_rest();
    container.counts_beyond(container.count());
    // A file that is there is replaced.
    container.checkpoint(&file, 60).unwrap();
    assert!(fs::metadata(&file).unwrap().len() > 10_000);
    let unknown = Container { node, id: "0123456789abcdef".into() };
    assert_eq!(unknown.checkpoint(&file, 0).unwrap_err().code(), Code::NotFound);
    let created = pod.create(&script(COUNT)).unwrap();
    assert_eq!(created.checkpoint(&file, 0).unwrap_err().code(), Code::FailedPrecondition);
    container.stop(20).unwrap();
    assert_eq!(container.checkpoint(&file, 0).unwrap_err().code(), Code::FailedPrecondition);
    pod.end();
}

#[test]
fn what_is_wrong_with_an_archive_is_said() {
    let node = criu_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = script(COUNT);
    let shared = node.dir().join("shared/of-checkpoint");
    fs::create_dir_all(&shared).unwrap();
    let mount = |path: &str| v1::Mount { host_path: shared.display().to_string(), container_path: path.into(), ..Default::default() };
    config.mounts = vec![mount("/volume")];
    let first = pod.start(&config);
    first.counts_beyond(1);
    let good = first.saved();
    first.stop(0).unwrap();
    first.remove().unwrap();
    let missing = node.dir().join("missing.tar");
    refuses(&pod, &from(&missing, &config), Code::NotFound, "No such file");
    refuses(&pod, &from(node.dir(), &config), Code::InvalidArgument, "no regular file");
    let changed = |script: &str| {
        let (folder, archive) = (node.dir().join("changed"), node.dir().join("changed.tar"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        run("tar", &["-C", folder.to_str().unwrap(), "-xf", good.to_str().unwrap()]);
        run("/bin/sh", &["-ec", &format!("cd {}; {script}; tar -cf {} *", folder.display(), archive.display())]);
        archive
    };
    for (script, words) in [
        ("rm config.dump", "has no config.dump"),
        ("echo '{' >config.dump", "config.dump"),
        ("rm spec.dump; ln -s /etc/passwd spec.dump", "spec.dump"),
        ("rm config.dump; mkfifo config.dump", "config.dump"),
        ("head -c 5000000 /dev/zero >spec.dump", "larger than 4 MiB"),
        ("rm -r checkpoint", "checkpoint/"),
        ("ln -sf /etc/passwd checkpoint/pages-1.img", "pages-1.img: is not a regular file"),
        ("mkdir checkpoint/folder", "folder: is not a regular file"),
        ("mkdir d; echo x >d/x; tar -cf rootfs-diff.tar --transform 's,^,../../,' d/x 2>/dev/null", "leaves the layer"),
        ("echo '[\"../../../etc/x\"]' >deleted.files", "deleted file"),
        ("echo no archive >rootfs-diff.tar", "rootfs-diff.tar"),
    ] {
        refuses(&pod, &from(&changed(script), &config), Code::InvalidArgument, words);
    }
    fs::write(&missing, "no archive").unwrap();
    refuses(&pod, &from(&missing, &config), Code::InvalidArgument, "not a checkpoint");
    let other = changed("sed -i 's/sha256:[0-9a-f]*/sha256:00/; s,localhost/test,127.0.0.1:1/none,' config.dump");
    refuses(&pod, &from(&other, &config), Code::NotFound, "cannot be pulled");
    let mut less = from(&good, &config);
    less.mounts.clear();
    refuses(&pod, &less, Code::InvalidArgument, "has mounts at /volume");
    let mut more = from(&good, &config);
    more.mounts.push(mount("/second"));
    refuses(&pod, &more, Code::InvalidArgument, "no mount at /second");
    // What the archive's specification says beyond that is not followed.
    let wish = changed("sed -i 's/\"noNewPrivileges\": *true/\"noNewPrivileges\": false/' spec.dump");
    let second = pod.start(&from(&wish, &config));
    second.counts_beyond(1);
    second.stop(0).unwrap();
    // CRIU's own words.
    let broken = changed("head -c 100 /dev/zero >checkpoint/pstree.img");
    let mut again = from(&broken, &config);
    again.metadata.as_mut().unwrap().attempt = 1;
    let third = pod.create(&again).unwrap();
    let status = third.start().unwrap_err();
    for words in ["criu failed: type RESTORE errno", "(Error (criu/"] {
        assert!(status.message().contains(words), "{status:?}");
    }
    assert_eq!((third.status().exit_code, third.status().reason.as_str()), (128, "StartError"));
    third.assert_no_rest();
    pod.end();
}

#[test]
fn an_image_may_be_a_checkpoint() {
    let node = criu_or_skip!(Node::new(Network::Cheap));
    let config = script(COUNT);
    let pod = node.pod();
    let first = pod.start(&config);
    first.counts_beyond(1);
    let path = first.saved();
    let saved = first.count();
    pod.end();
    node.kill_daemon(nix::sys::signal::Signal::SIGKILL);
    let annotations = ["org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"];
    for (number, annotation) in annotations.iter().enumerate() {
        let layout = node.dir().join("of-checkpoint");
        crate::image::write_annotated(&layout, &format!("localhost/checkpoint:{number}"), &path, annotation);
        node.load(&layout);
    }
    node.start_daemon(&[]);
    let pod = node.pod();
    for number in 0..annotations.len() {
        let mut config = config.clone();
        let name = format!("localhost/checkpoint:{number}");
        config.image = Some(v1::ImageSpec { image: name.clone(), ..Default::default() });
        config.metadata.as_mut().unwrap().attempt = number as u32;
        config.log_path = format!("{number}.log");
        let second = pod.start(&config);
        second.counts_beyond(saved);
        assert_eq!(second.status().annotations["checkpointImage"], name);
        second.stop(20).unwrap();
        assert_eq!(second.status().exit_code, 5);
    }
    pod.end();
    node.assert_empty();
}

/// A node with a second handler, `slow`: rrun that waits before `checkpoint` and `restore` until the FIFO is written to.
fn slow_node() -> (Node, PathBuf) {
    let folder = std::env::temp_dir().canonicalize().unwrap().join(format!("rrun-cri-slow-{}-{}", std::process::id(), unique()));
    fs::create_dir(&folder).unwrap();
    let (program, gate) = (folder.join("slow"), folder.join("gate"));
    run("mkfifo", &[gate.to_str().unwrap()]);
    let rrun = crate::node::program("RRUN", "rrun");
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in *' checkpoint '* | *' restore '*) read _ <{} ;; esac\nexec {} \"$@\"\n",
        gate.display(),
        rrun.display()
    );
    tests::host::write_program(&program, text.as_bytes());
    let node = Node::with_settings(Network::Cheap, &format!("[runtimes.slow]\npath = \"{}\"\n", program.display()));
    (node, gate)
}

/// A pod of the handler `slow`.
fn slow_pod(node: &Node) -> Pod<'_> {
    let config = crate::client::pod_config(node);
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "slow".into() };
    let id = node.cri().run_pod_sandbox(request).unwrap().pod_sandbox_id;
    Pod { node, id, config }
}

/// Waits until the runtime is at the gate.
#[track_caller]
fn at_the_gate(node: &Node, command: &str) {
    let here = || node.processes().iter().any(|(_, line)| line.contains("/slow ") && line.contains(command));
    assert!(wait_until(20, here), "{:#?}", node.processes());
}

#[test]
fn a_time_that_is_over_leaves_the_container_and_nothing_else() {
    let (node, gate) = criu_or_skip!(slow_node());
    let pod = slow_pod(&node);
    let container = pod.start(&script(COUNT));
    container.counts_beyond(1);
    let path = node.dir().join("late.tar");
    let status = container.checkpoint(&path, 1).unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    fs::write(&gate, "go\n").unwrap();
    container.assert_no_rest();
    container.counts_beyond(container.count());
    assert!(!path.exists());
    container.stop(20).unwrap();
    assert_eq!(container.status().exit_code, 5);
    pod.end();
    node.assert_empty();
    fs::remove_dir_all(gate.parent().unwrap()).unwrap();
}

#[test]
fn daemon_and_monitor_may_die_while_the_runtime_is_at_work() {
    let (node, gate) = criu_or_skip!(slow_node());
    let pod = slow_pod(&node);
    let config = script(COUNT);
    let container = pod.start(&config);
    container.counts_beyond(1);
    let path = node.dir().join("lost.tar");
    std::thread::scope(|scope| {
        let call = scope.spawn(|| container.checkpoint(&path, 0));
        at_the_gate(&node, " checkpoint ");
        node.kill_daemon(nix::sys::signal::Signal::SIGKILL);
        assert!(call.join().unwrap().is_err());
    });
    node.start_daemon(&[]);
    fs::write(&gate, "go\n").unwrap();
    container.assert_no_rest();
    container.counts_beyond(container.count());
    assert!(!path.exists());
    // A checkpoint that comes meanwhile waits for the end of the lost one.
    std::thread::scope(|scope| {
        let call = scope.spawn(|| container.checkpoint(&path, 0));
        at_the_gate(&node, " checkpoint ");
        fs::write(&gate, "go\n").unwrap();
        call.join().unwrap().unwrap();
    });
    let saved = container.count();
    container.stop(20).unwrap();
    container.remove().unwrap();
    // The daemon dies while the monitor restores: nobody was told that it runs.
    let second = pod.create(&from(&path, &config)).unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| second.start());
        at_the_gate(&node, " restore ");
        node.kill_daemon(nix::sys::signal::Signal::SIGKILL);
        assert!(call.join().unwrap().is_err());
    });
    fs::write(&gate, "go\n").unwrap();
    node.start_daemon(&[]);
    assert_eq!((second.ended().exit_code, second.status().reason.as_str()), (128, "StartError"));
    second.remove().unwrap();
    // The monitor dies after a restore: its successor tells the exit code.
    let third = pod.create(&from(&path, &config)).unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| third.start());
        at_the_gate(&node, " restore ");
        fs::write(&gate, "go\n").unwrap();
        call.join().unwrap().unwrap();
    });
    third.counts_beyond(saved);
    let old = crate::faults::monitor(&node, &pod.id);
    nix::sys::signal::kill(old, nix::sys::signal::Signal::SIGKILL).unwrap();
    third.counts_beyond(third.count());
    assert!(wait_until(20, || third.exec(&["true"], 5).is_ok_and(|answer| answer.exit_code == 0)), "{}", node.log_tail());
    third.stop(20).unwrap();
    assert_eq!(third.status().exit_code, 5);
    pod.end();
    node.assert_empty();
    fs::remove_dir_all(gate.parent().unwrap()).unwrap();
}

#[test]
fn the_daemon_dies_at_every_step() {
    let node = criu_or_skip!(Node::new(Network::Cheap));
    let (notes, path) = (node.dir().join("steps"), node.dir().join("step.tar"));
    let pod = node.pod();
    let mut config = script(COUNT);
    let first = pod.start(&config);
    first.counts_beyond(1);
    let back = |what: &str, status: &Status| {
        assert!(node.daemon_has_ended(), "{what}: {status:?}\n{}", node.log_tail());
        node.wait_for_daemon();
        node.start_daemon(&[]);
    };
    let mut attempt = 0;
    let mut live = || {
        while let Err(status) = first.checkpoint(&path, 0) {
            back("checkpoint", &status);
            first.counts_beyond(first.count());
        }
        let saved = first.count();
        first.counts_beyond(saved);
        let second = loop {
            attempt += 1;
            config.metadata.as_mut().unwrap().attempt = attempt;
            config.log_path = format!("{attempt}.log");
            let made = pod.create(&from(&path, &config)).and_then(|container| container.start().map(|()| container));
            match made {
                Ok(container) => break container,
                Err(status) => back("restore", &status),
            }
        };
        second.counts_beyond(saved);
        second.assert_no_rest();
        second.stop(20).unwrap();
        assert_eq!(second.status().exit_code, 5);
        first.assert_no_rest();
        for container in node.containers_of(&pod.id).into_iter().filter(|container| container.id != first.id) {
            node.cri().remove_container(v1::RemoveContainerRequest { container_id: container.id }).unwrap();
        }
    };
    node.restart_daemon_with(&[("RRUN_CRI_STEPS", notes.to_str().unwrap())]);
    live();
    let text = fs::read_to_string(&notes).unwrap();
    // What comes after the start is every container's.
    let mut steps: Vec<_> = text.lines().collect();
    steps.truncate(steps.iter().position(|step| *step == "after container starts").unwrap() + 1);
    assert!(steps.len() > 14, "{steps:?}");
    for step in steps {
        node.restart_daemon_with(&[("RRUN_CRI_DIE_AT", step)]);
        let starts = node.starts();
        eprintln!("dies at {step:?}");
        live();
        assert!(node.starts() > starts, "step {step:?} was not reached");
    }
    first.stop(20).unwrap();
    assert_eq!(first.status().exit_code, 5);
    pod.end();
    node.assert_empty();
}

#[test]
fn memory_is_limited_after_a_restore() {
    let node = criu_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config =
        script("i=0; while [ ! -e /go ]; do i=$((i+1)); echo $i; sleep 0.02; done; exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    resources(&mut config).memory_limit_in_bytes = 16 << 20;
    resources(&mut config).memory_swap_limit_in_bytes = 16 << 20;
    let first = pod.start(&config);
    first.counts_beyond(2);
    let path = first.saved();
    first.stop(0).unwrap();
    first.remove().unwrap();
    let second = pod.start(&from(&path, &config));
    second.counts_beyond(2);
    second.sh("touch /go");
    let status = second.ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    pod.end();
}

#[test]
fn an_archive_gives_no_rights() {
    let node = criu_or_skip!(Node::shared());
    let privileged = |config: &mut v1::ContainerConfig, yes: bool| security(config).privileged = yes;
    let pod = node.pod_with(|config| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    });
    let mut config = script(COUNT);
    privileged(&mut config, true);
    let first = pod.start(&config);
    first.counts_beyond(1);
    let path = first.saved();
    first.stop(0).unwrap();
    first.remove().unwrap();
    privileged(&mut config, false);
    let second = pod.create(&from(&path, &config)).unwrap();
    let status = second.start().unwrap_err();
    assert!(status.message().contains("process.capabilities: the checkpoint has more"), "{status:?}");
    assert_eq!((second.status().exit_code, second.status().reason.as_str()), (128, "StartError"));
    pod.end();
}
