//! The images of these tests: an OCI layout that holds a static busybox, made by code, with a few configurations over one
//! layer.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::PROBE;

/// Root, a shell, nothing else.
pub(crate) const BASE: &str = "localhost/test:base";
/// Runs as `tester` (1000:1000), who is a member of group `extra` (50000).
pub(crate) const USER: &str = "localhost/test:user";
/// Names a user that is not in its /etc/passwd.
pub(crate) const NOBODY: &str = "localhost/test:nobody";
/// Has an entry point, a command, a folder to work in, a variable, a label, a stop signal.
pub(crate) const FULL: &str = "localhost/test:full";
/// Its configuration says nothing of what to run: no `config` at all.
pub(crate) const BARE: &str = "localhost/test:bare";

/// Writes the layout to `folder`.
pub(crate) fn write_layout(folder: &Path, busybox: &Path) {
    let (root, blobs) = (folder.join("root"), folder.join("blobs/sha256"));
    fs::create_dir_all(&blobs).unwrap();
    fill(&root, busybox);
    let tar = folder.join("layer.tar");
    let packed =
        Command::new("tar").args(["--numeric-owner", "--owner=0", "--group=0", "-C"]).arg(&root).arg("-cf").arg(&tar).arg(".").status();
    assert!(packed.unwrap().success(), "tar");
    let layer = blob(&blobs, &fs::read(&tar).unwrap());
    fs::remove_file(tar).unwrap();
    fs::remove_dir_all(root).unwrap();
    let path = json!({ "Env": ["PATH=/bin"] });
    let full = json!({
        "Env": ["PATH=/bin", "FROM=image"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": ["echo cmd of the image; pwd; echo $FROM"],
        "WorkingDir": "/work/here", "Labels": { "made": "here" }, "StopSignal": "SIGUSR1",
    });
    let images = [
        (BASE, path.clone()),
        (USER, json!({ "Env": ["PATH=/bin"], "User": "tester" })),
        (NOBODY, json!({ "Env": ["PATH=/bin"], "User": "stranger" })),
        (FULL, full),
        (BARE, Value::Null),
    ];
    let manifests: Vec<_> = images.into_iter().map(|(name, config)| manifest(&blobs, name, &layer, config)).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests });
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Writes the layout of an artifact with these files (name, contents) to `folder`.
pub(crate) fn write_artifact(folder: &Path, name: &str, files: &[(&str, &[u8])]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let layer = |(title, bytes): &(&str, &[u8])| {
        let mut layer = blob(&blobs, bytes);
        layer["mediaType"] = "application/octet-stream".into();
        layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        layer
    };
    let layers: Vec<_> = files.iter().map(layer).collect();
    let mut config = blob(&blobs, b"{}");
    config["mediaType"] = "application/vnd.oci.empty.v1+json".into();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "artifactType": "application/vnd.example.model.v1",
        "config": config, "layers": layers });
    let mut entry = blob(&blobs, manifest.to_string().as_bytes());
    entry["mediaType"] = kind.into();
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    fs::write(folder.join("index.json"), json!({ "schemaVersion": 2, "manifests": [entry] }).to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Writes the layout of an image whose one layer is this archive, with an annotation of its manifest, to `folder`.
pub(crate) fn write_annotated(folder: &Path, name: &str, archive: &Path, annotation: &str) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let layer = blob(&blobs, &fs::read(archive).unwrap());
    let mut entry = manifest(&blobs, name, &layer, json!({}));
    let path = blobs.join(entry["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap());
    let mut annotated: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    annotated["annotations"] = json!({ annotation: "counter" });
    let written = blob(&blobs, annotated.to_string().as_bytes());
    (entry["digest"], entry["size"]) = (written["digest"].clone(), written["size"].clone());
    fs::write(folder.join("index.json"), json!({ "schemaVersion": 2, "manifests": [entry] }).to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn fill(root: &Path, busybox: &Path) {
    for name in ["bin", "etc", "tmp", "root", "home/tester", "work", "data/inner", "var/log"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    let applets = Command::new(busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("bin/probe"), PROBE).unwrap();
    fs::set_permissions(root.join("bin/probe"), fs::Permissions::from_mode(0o755)).unwrap();
    // Raises the effective user id, which no_new_privs forbids.
    fs::copy(busybox, root.join("bin/setuid")).unwrap();
    fs::set_permissions(root.join("bin/setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\ntester:x:1000:1000::/home/tester:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\ntester:x:1000:\nextra:x:50000:tester\n").unwrap();
    fs::write(root.join("data/file"), "of the image\n").unwrap();
    fs::write(root.join("data/inner/file"), "of the inner folder\n").unwrap();
    fs::write(root.join("etc/not-a-program"), "neither elf nor script\n").unwrap();
    fs::set_permissions(root.join("etc/not-a-program"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn manifest(blobs: &Path, name: &str, layer: &Value, config: Value) -> Value {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut layer = layer.clone();
    layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
    let mut whole = json!({
        "architecture": architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    if !config.is_null() {
        whole["config"] = config;
    }
    let mut config = blob(blobs, whole.to_string().as_bytes());
    config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [layer],
    });
    let mut entry = blob(blobs, manifest.to_string().as_bytes());
    entry["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    entry
}

/// Writes a blob; its digest and size.
fn blob(blobs: &Path, bytes: &[u8]) -> Value {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(blobs.join(&hex), bytes).unwrap();
    json!({ "digest": format!("sha256:{hex}"), "size": bytes.len() })
}
