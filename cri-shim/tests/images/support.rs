//! Folders, archives and images for the tests.
use rrun_cri::images::tar::{Entry, Kind, Writer};
use rrun_cri::images::{Digest, unpack};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A folder that goes with the test.
pub(crate) struct Temp(PathBuf);

impl Temp {
    pub(crate) fn new() -> Temp {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!("rrun-images-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Temp(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip("needs root (owners, devices)");
    }
    root
}

/// Says that this test is left out, and why.
pub(crate) fn skip(reason: &str) {
    println!("SKIP {}: {reason}", std::thread::current().name().unwrap_or("a test"));
}

pub(crate) fn file(path: &str, contents: &str) -> (Entry, Vec<u8>) {
    (Entry::file(path.as_bytes(), contents.len() as u64), contents.as_bytes().to_vec())
}

pub(crate) fn node(kind: Kind, path: &str, link: &str) -> (Entry, Vec<u8>) {
    let mode = if kind == Kind::Dir { 0o755 } else { 0o644 };
    (Entry { kind, mode, link: link.as_bytes().to_vec(), ..Entry::file(path.as_bytes(), 0) }, Vec::new())
}

pub(crate) fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, contents) in entries {
        writer.append(entry, &contents[..]).unwrap();
    }
    writer.finish().unwrap()
}

/// Unpacks into `dir/name`, which is made.
pub(crate) fn unpack_into(dir: &Path, tar: &[u8], options: unpack::Options) -> anyhow::Result<unpack::Unpacked> {
    std::fs::create_dir_all(dir)?;
    Ok(unpack::unpack(tar, File::open(dir)?.into(), options)?.0)
}

/// An OCI layout with one image, by hand.
pub(crate) fn layout(dir: &Path, name: &str, layers: &[Vec<u8>], gzip: bool) -> Digest {
    use std::io::Write;
    let compress = |layer: &Vec<u8>| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(layer).unwrap();
        encoder.finish().unwrap()
    };
    let pairs: Vec<_> = layers.iter().map(|layer| (layer.clone(), if gzip { compress(layer) } else { layer.clone() })).collect();
    layout_of(dir, name, &pairs)
}

/// The same of archives and the blobs that hold them.
pub(crate) fn layout_of(dir: &Path, name: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Digest {
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    };
    let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
    let described: Vec<_> =
        layers.iter().map(|(_, blob)| serde_json::json!({"mediaType": kind, "digest": put(blob), "size": blob.len()})).collect();
    let diff_ids: Vec<Digest> = layers.iter().map(|(tar, _)| Digest::of(tar)).collect();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({"architecture": arch, "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "author": name})
    .to_string();
    let config_digest = put(config.as_bytes());
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()}, "layers": described})
    .to_string();
    let digest = put(manifest.as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest, "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": name}}]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    config_digest
}

/// A file system that is unmounted with the test.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn tmpfs(at: &Path, options: &str) -> Mount {
        std::fs::create_dir_all(at).unwrap();
        Mount::run(&["-t", "tmpfs", "-o", options, "tmpfs"], at).expect("mount tmpfs")
    }

    /// A file with a file system in it.
    pub(crate) fn file(file: &Path, at: &Path) -> Option<Mount> {
        std::fs::create_dir_all(at).unwrap();
        Mount::run(&["-o", "loop", file.to_str().unwrap()], at)
    }

    /// Layers, lowest first, as a container sees them.
    pub(crate) fn overlay(layers: &[PathBuf], at: &Path) -> Mount {
        std::fs::create_dir_all(at).unwrap();
        let lower: Vec<&str> = layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect();
        Mount::run(&["-t", "overlay", "-o", &format!("lowerdir={}", lower.join(":")), "overlay"], at).expect("mount overlay")
    }

    fn run(options: &[&str], at: &Path) -> Option<Mount> {
        let mounted = std::process::Command::new("mount").args(options).arg(at).status().is_ok_and(|status| status.success());
        mounted.then(|| Mount(at.to_owned()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The kernel closes the files of a process that died a moment after its end was told.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let unmounted = std::process::Command::new("umount").arg(&self.0).output().unwrap();
            let text = String::from_utf8_lossy(&unmounted.stderr);
            if unmounted.status.success() {
                return;
            }
            if !text.contains("busy") || Instant::now() > deadline {
                assert!(std::thread::panicking(), "{text}");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
