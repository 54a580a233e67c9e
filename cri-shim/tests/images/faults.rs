//! The process killed, and the power cut, at every step of adding and removing an image.
//!
//! A cut is a copy of the backing file of a mounted image file, taken at the step: what was
//! not synced by then is not in it. The copy is mounted (its journal replays) and opened.
use crate::store::open;
use crate::support::{Mount, Temp, archive, file, is_root, layout, node, skip};
use rrun_cri::images::tar::{Entry, Kind};
use rrun_cri::images::{Digest, Images};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

/// Each step and whether the image is there afterwards: must be, must not be.
const ADD: [(&str, Option<bool>); 6] = [
    ("layer-begun", Some(false)),
    ("layer-unpacked", Some(false)),
    ("layer-synced", Some(false)),
    ("layer-renamed", Some(false)),
    ("layer-committed", Some(false)),
    ("image-committed", Some(true)),
];
const REMOVE: [(&str, Option<bool>); 2] = [("image-removed", Some(false)), ("layers-forgotten", Some(false))];

fn layers() -> [Vec<u8>; 2] {
    let big = vec![b'b'; 300_000];
    let base = archive(&[node(Kind::Dir, "etc", ""), file("etc/a", "base"), (Entry::file(b"etc/big", 300_000), big)]);
    [base, archive(&[file("etc/c", "upper"), node(Kind::Symlink, "link", "etc/c")])]
}

/// Not a test of its own: the process that dies.
#[test]
fn child() {
    let Some(dir) = std::env::var_os("RRUN_IMAGES_CHILD") else { return };
    let dir = Path::new(&dir);
    let images = open(dir);
    images.load(Path::new(&std::env::var_os("RRUN_IMAGES_LAYOUT").unwrap()), None).unwrap();
    images.remove("a:1").unwrap();
}

fn die(dir: &Path, layout: &Path, step: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "faults::child", "--test-threads=1"]);
    child.env("RRUN_IMAGES_CHILD", dir).env("RRUN_IMAGES_LAYOUT", layout).env("RRUN_CRI_DIE_AT", step);
    let output = child.output().unwrap();
    assert_eq!(output.status.signal(), Some(6), "{step} was not reached: {}", String::from_utf8_lossy(&output.stdout));
}

/// Whatever is listed is whole; the image is there or not; what is left can be used.
fn prove(dir: &Path, layout: &Path, step: &str, there: Option<bool>) {
    let images = open(dir);
    if let Some(there) = there {
        assert_eq!(images.lookup("a:1").is_some(), there, "{step}");
    }
    whole(&images, step);
    images.load(layout, None).unwrap_or_else(|error| panic!("{step}: {error:#}"));
    whole(&images, step);
    assert!(images.lookup("a:1").is_some(), "{step}");
    images.remove("a:1").unwrap();
    drop(images);
    let images = open(dir);
    assert_eq!(std::fs::read_dir(dir.join("store/layers")).unwrap().count(), 0, "{step}: layers left");
    drop(images);
}

fn whole(images: &Images, step: &str) {
    for image in images.list() {
        let big = std::fs::read(image.layers[0].join("etc/big")).unwrap_or_else(|error| panic!("{step}: {error}"));
        assert_eq!(Digest::of(&big), Digest::of(&vec![b'b'; 300_000]), "{step}");
        assert_eq!(std::fs::read_to_string(image.layers[1].join("etc/c")).unwrap(), "upper", "{step}");
        assert_eq!(std::fs::read_link(image.layers[1].join("link")).unwrap(), Path::new("etc/c"), "{step}");
        assert!(images.blob(&image.manifest).unwrap().is_some(), "{step}");
    }
}

#[test]
fn killed_at_every_step() {
    for (step, there) in ADD.into_iter().chain(REMOVE) {
        let temp = Temp::new();
        layout(&temp.join("l"), "a:1", &layers(), true);
        die(temp.path(), &temp.join("l"), step);
        prove(temp.path(), &temp.join("l"), step, there);
    }
}

/// So that no step is added without being killed at.
#[test]
fn every_step_is_in_the_list() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/images");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(entry).unwrap();
        found.extend(text.split("step(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    found.sort();
    let mut listed: Vec<String> = ADD.iter().chain(&REMOVE).map(|(step, _)| (*step).to_owned()).collect();
    listed.sort();
    assert_eq!(found, listed);
}

#[test]
fn power_cut_at_every_step() {
    if !is_root() {
        return;
    }
    for (step, there) in ADD.into_iter().chain(REMOVE) {
        let temp = Temp::new();
        layout(&temp.join("l"), "a:1", &layers(), true);
        let disk = temp.join("disk");
        std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&disk).output();
        if !made.is_ok_and(|output| output.status.success()) {
            skip("needs mkfs.ext4");
            return;
        }
        let Some(mount) = Mount::file(&disk, &temp.join("mnt")) else {
            skip("needs loop devices");
            return;
        };
        // The empty file system itself is on disk; nothing after this is unless the store syncs it.
        Command::new("sync").arg("-f").arg(mount.path()).status().unwrap();
        die(mount.path(), &temp.join("l"), step);
        std::fs::copy(&disk, temp.join("cut")).unwrap();
        drop(mount);
        let mount = Mount::file(&temp.join("cut"), &temp.join("mnt")).unwrap();
        prove(mount.path(), &temp.join("l"), step, there);
        drop(mount);
    }
}
