//! Mounts of a container: read-only, propagation, what is made on the host, image volumes.

use std::fs;

use rrun_proto::v1;
use tests::host::wait_until;

use crate::client::script;
use crate::node::Node;
use crate::{image, node_or_skip};

fn mount(host: &std::path::Path, container: &str) -> v1::Mount {
    v1::Mount { host_path: host.display().to_string(), container_path: container.into(), ..Default::default() }
}

/// A folder on the node's shared mount.
fn folder(node: &Node) -> std::path::PathBuf {
    let path = node.dir().join("shared").join(format!("folder-{}", crate::client::unique()));
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn volumes_are_seen_written_or_not() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let host = folder(node);
    fs::write(host.join("file"), "of the host\n").unwrap();
    std::os::unix::fs::symlink(&host, host.with_extension("link")).unwrap();
    let mut config = script("cat /v/file /l/file; echo written >/v/new; echo x >/r/new || echo read-only; echo y >/one && echo a file");
    fs::write(host.join("one"), "").unwrap();
    config.mounts = vec![
        mount(&host, "/v"),
        mount(&host.with_extension("link"), "/l"),
        v1::Mount { readonly: true, ..mount(&host, "/r") },
        mount(&host.join("one"), "/one"),
        mount(&host.join("made/by/us"), "/made"),
    ];
    assert_eq!(pod.output(&config)[..2], ["of the host", "of the host"]);
    assert_eq!(fs::read_to_string(host.join("new")).unwrap(), "written\n");
    assert_eq!(fs::read_to_string(host.join("one")).unwrap(), "y\n");
    assert!(host.join("made/by/us").is_dir(), "a source that is not there is made");
    let container = &node.containers_of(&pod.id)[0];
    let status = crate::client::Container { node, id: container.id.clone() }.status();
    assert_eq!(status.mounts, config.mounts, "as they were asked for");
    pod.end();
}

#[test]
fn read_only_goes_as_deep_as_asked() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let host = folder(node);
    fs::create_dir(host.join("sub")).unwrap();
    node.sh(&format!("mount -t tmpfs none {}/sub", host.display()));
    let mut config = script("touch /r/a 2>/dev/null || echo r; touch /r/sub/a && echo writable; touch /rr/sub/a 2>/dev/null || echo rr");
    config.mounts = vec![
        v1::Mount { readonly: true, ..mount(&host, "/r") },
        v1::Mount { readonly: true, recursive_read_only: true, ..mount(&host, "/rr") },
    ];
    assert_eq!(pod.output(&config), ["r", "writable", "rr"]);
    pod.end();
    node.sh(&format!("umount {}/sub", host.display()));
}

#[test]
fn mounts_propagate_as_asked() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod_with(|config| config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true);
    use v1::MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    let host = folder(node);
    for name in ["private", "slave", "shared"] {
        fs::create_dir_all(host.join(name)).unwrap();
        fs::create_dir_all(host.join(name).join("in")).unwrap();
    }
    let mut config = script("sleep 1000");
    crate::client::security(&mut config).privileged = true;
    config.mounts = [("private", PropagationPrivate), ("slave", PropagationHostToContainer), ("shared", PropagationBidirectional)]
        .into_iter()
        .map(|(name, propagation)| v1::Mount { propagation: propagation.into(), ..mount(&host.join(name), &format!("/{name}")) })
        .collect();
    let container = pod.start(&config);
    for name in ["private", "slave", "shared"] {
        fs::create_dir_all(host.join(name).join("host")).unwrap();
        node.sh(&format!("mount -t tmpfs none {0}/{name}/host; touch {0}/{name}/host/seen", host.display()));
    }
    assert_eq!(container.sh("cd /; ls private/host slave/host shared/host | grep -c seen"), "2");
    container.sh("for name in private slave shared; do mount -t tmpfs none /$name/in && touch /$name/in/made; done");
    assert_eq!(node.sh(&format!("cd {}; ls -d */in/made", host.display())), "shared/in/made");
    pod.end();
    node.sh(&format!("cd {}; umount */host shared/in", host.display()));
}

#[test]
fn a_source_that_is_not_shared_cannot_propagate() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod_with(|config| config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true);
    let host = node.dir().join("logs");
    let mut config = script("true");
    crate::client::security(&mut config).privileged = true;
    config.mounts = vec![v1::Mount { propagation: v1::MountPropagation::PropagationBidirectional.into(), ..mount(&host, "/m") }];
    let status = pod.create(&config).map(drop).unwrap_err();
    assert!(status.message().contains("shared") && status.message().contains("mounts[0]"), "{status:?}");
    pod.end();
}

#[test]
fn images_are_volumes() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let volume = |sub_path: &str, target: &str| v1::Mount {
        container_path: target.into(),
        readonly: true,
        image: Some(v1::ImageSpec { image: image::USER.into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    };
    let mut config = script("cat /v/data/file /s/file; touch /v/new 2>/dev/null || echo read-only; sleep 1000");
    config.mounts = vec![volume("", "/v"), volume("data/inner", "/s")];
    let container = pod.start(&config);
    container.wait_for_line("read-only");
    let log: Vec<_> = container.log().into_iter().map(|line| line.text).collect();
    assert_eq!(log[..2], ["of the image", "of the inner folder"]);
    let mounted = container.status().mounts[0].image.clone().unwrap();
    assert!(mounted.image_ref.contains("sha256:"), "{mounted:?}");
    let id = container.id.clone();
    container.stop(0).unwrap();
    assert!(wait_until(10, || !node.scan().iter().any(|line| line.starts_with("mount") && line.contains(&id))), "{:?}", node.scan());
    pod.end();
}
