//! Images as a node has them: what a person does beside the daemon, artifacts as volumes, and what the disk is used for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rrun_proto::v1;
use serde_json::{Value, json};

use crate::client::script;
use crate::image;
use crate::node::{Network, Node, program};
use crate::node_or_skip;

/// `rrun-cri ARGUMENT...` beside the daemon.
fn person(node: &Node, arguments: &[&str]) -> Output {
    let mut command = node.enter(&program("RRUN_CRI", "rrun-cri"));
    command.arg("--config").arg(node.dir().join("config.toml")).args(arguments).output().unwrap()
}

#[track_caller]
fn said(node: &Node, arguments: &[&str]) -> String {
    let done = person(node, arguments);
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn a_person_works_beside_the_daemon() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let place = |name: &str| node.dir().join("shared").join(name).display().to_string();
    let shown: Value = serde_json::from_str(&said(&node, &["inspect", image::FULL])).unwrap();
    assert_eq!((&shown["repoTags"][0], &shown["config"]["config"]["StopSignal"]), (&json!(image::FULL), &json!("SIGUSR1")));
    let digest = said(&node, &["export", image::FULL, &place("layout")]);
    let index: Value = serde_json::from_slice(&fs::read(place("layout/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][0]["digest"], json!(digest.trim()));
    let loaded = said(&node, &["load", &place("layout"), "localhost/again:1"]);
    assert!(loaded.starts_with("sha256:") && loaded.trim().ends_with(" localhost/again:1"), "{loaded}");
    let status = v1::ImageStatusRequest {
        image: Some(v1::ImageSpec { image: "localhost/again:1".into(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(node.cri().image_status(status).unwrap().image.unwrap().repo_tags, ["localhost/again:1"]);
    said(&node, &["bundle", "localhost/again:1", &place("bundle")]);
    assert_eq!(fs::read_to_string(place("bundle/rootfs/data/file")).unwrap(), "of the image\n");
    let spec: Value = serde_json::from_slice(&fs::read(place("bundle/config.json")).unwrap()).unwrap();
    assert_eq!(spec["process"]["cwd"], json!("/work/here"));
    assert!(said(&node, &["images"]).contains("localhost/again:1"));
    said(&node, &["rmi", "localhost/again:1"]);
    for (arguments, words) in [
        (&["inspect", "localhost/again:1"][..], "image localhost/again:1 is not here"),
        (&["export", image::FULL, &place("layout")], "File exists"),
        (&["load", &place("nothing")], "nothing"),
    ] {
        let failed = person(&node, arguments);
        let text = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && text.contains(words), "{arguments:?}: {text}");
    }
}

#[test]
fn artifacts_are_volumes_of_files() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    image::write_artifact(&node.dir().join("artifact"), "localhost/model:1", &[("model.bin", b"weights\n"), ("docs/readme", b"read me\n")]);
    said(&node, &["load", &node.dir().join("artifact").display().to_string()]);
    let pod = node.pod();
    let spec = v1::ImageSpec { image: "localhost/model:1".into(), ..Default::default() };
    let mut config = script("cat /m/model.bin /m/docs/readme; touch /m/new 2>/dev/null || echo read-only; sleep 1000");
    config.mounts = vec![v1::Mount { container_path: "/m".into(), readonly: true, image: Some(spec.clone()), ..Default::default() }];
    let container = pod.start(&config);
    container.wait_for_line("read-only");
    let log: Vec<_> = container.log().into_iter().map(|line| line.text).collect();
    assert_eq!(log[..2], ["weights", "read me"]);
    let run = v1::ContainerConfig { image: Some(spec), ..script("true") };
    let refused = pod.create(&run).map(drop).unwrap_err();
    assert!(refused.message().contains("artifact"), "{refused:?}");
    pod.end();
}

#[test]
fn writable_layers_have_figures_of_their_own() {
    let node = node_or_skip!(Node::with_settings(Network::Cheap, "[images]\npinned = [\"localhost/test:base\"]"));
    let pod = node.pod();
    let container = pod.start(&script("dd if=/dev/zero of=/big bs=1M count=3 2>/dev/null; echo written; sleep 1000"));
    container.wait_for_line("written");
    let info = node.cri().image_fs_info(v1::ImageFsInfoRequest {}).unwrap();
    let (images, layers) = (&info.image_filesystems[0], &info.container_filesystems[0]);
    let bytes = |usage: &v1::FilesystemUsage| usage.used_bytes.unwrap().value;
    assert!((3 << 20..4 << 20).contains(&bytes(layers)), "{layers:?}");
    assert!((1..10).contains(&layers.inodes_used.unwrap().value), "{layers:?}");
    assert!(bytes(images) != bytes(layers) && images.fs_id == layers.fs_id, "{images:?}");
    let listed = node.cri().list_images(v1::ListImagesRequest::default()).unwrap().images;
    let pinned = |name: &str| listed.iter().find(|image| image.repo_tags.iter().any(|tag| tag == name)).unwrap().pinned;
    assert!(pinned(image::BASE) && !pinned(image::USER));
    pod.end();
}

/// An ordinary user with a store of their own: no daemon, one id, `rrun run` of what `rrun-cri bundle` made.
#[test]
fn an_ordinary_user_runs_an_image() {
    const USER: u32 = 23457;
    node_or_skip!(());
    let folder = std::env::temp_dir().join(format!("rrun-cri-user-{}", std::process::id()));
    let _gone = Gone(folder.clone());
    image::write_layout(&folder.join("layout"), &tests::host::busybox().unwrap());
    fs::create_dir(folder.join("data")).unwrap();
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    own(&folder.join("data"));
    // Programs that this user can get at, wherever they were built.
    for (variable, name) in [("RRUN_CRI", "rrun-cri"), ("RRUN", "rrun")] {
        tests::host::write_program(&folder.join(name), &fs::read(program(variable, name)).unwrap());
    }
    let call = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(folder.join(name));
        command.args(arguments).env_clear().env("XDG_DATA_HOME", folder.join("data")).env("XDG_RUNTIME_DIR", folder.join("data"));
        let done = command.env("PATH", "/usr/bin:/bin").current_dir(&folder).stdin(Stdio::null()).uid(USER).gid(USER).output().unwrap();
        let (out, errors) = (String::from_utf8_lossy(&done.stdout).into_owned(), String::from_utf8_lossy(&done.stderr).into_owned());
        assert!(done.status.success(), "{name} {arguments:?}: {errors}");
        (out, errors)
    };
    call("rrun-cri", &["load", "layout"]);
    assert!(call("rrun-cri", &["images"]).0.contains(image::FULL));
    let (_, notes) = call("rrun-cri", &["bundle", image::USER, "data/user"]);
    assert_eq!(notes.matches("it runs as root of its user namespace, not as tester").count(), 1, "{notes}");
    call("rrun-cri", &["bundle", image::FULL, "data/full"]);
    let (said, _) = call("rrun", &["run", "--bundle", "data/full", &format!("user-{}", std::process::id())]);
    assert_eq!(said, "cmd of the image\n/work/here\nimage\n");
    assert_eq!(fs::metadata(folder.join("data/full/rootfs/bin/busybox")).unwrap().uid(), USER);
    call("rrun-cri", &["rmi", image::FULL]);
}

/// A folder that goes with the test.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
