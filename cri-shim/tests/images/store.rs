//! The store's life: load, look-ups, sharing, removal, restart.
use crate::support::{Temp, archive, file, is_root, layout, node};
use rrun_cri::images::tar::Kind;
use rrun_cri::images::unpack::Options;
use rrun_cri::images::{Images, bundle};
use std::path::Path;

pub(crate) fn open(dir: &Path) -> Images {
    let squash = !rustix::process::geteuid().is_root();
    Images::open(&dir.join("store"), Options { squash, ..Options::default() }).unwrap()
}

fn base() -> Vec<u8> {
    archive(&[node(Kind::Dir, "etc", ""), file("etc/a", "base"), file("etc/b", "base")])
}

/// Removal of folders is in the background.
fn layers_on_disk(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("store/layers")).unwrap().count()
}

#[test]
fn an_image_is_loaded_found_kept_over_a_restart_and_removed() {
    let temp = Temp::new();
    let id = layout(&temp.join("l"), "busybox:1.36", &[base(), archive(&[node(Kind::Dir, "etc", ""), file("etc/.wh.b", "")])], true);
    let images = open(temp.path());
    let loaded = images.load(&temp.join("l"), None).unwrap();
    assert_eq!(loaded[0].id, id.to_string());
    assert_eq!(loaded[0].repo_tags, ["docker.io/library/busybox:1.36"]);
    assert_eq!(loaded[0].config.cmd, ["/bin/sh"]);
    let check = |images: &Images| {
        let image = images.lookup("busybox:1.36").unwrap();
        for name in ["docker.io/library/busybox:1.36", id.as_str(), id.hex(), &id.hex()[..12], &image.repo_digests[0]] {
            assert_eq!(images.lookup(name).map(|image| image.id.clone()).as_deref(), Some(id.as_str()), "{name}");
        }
        assert!(images.lookup("busybox").is_none() && images.lookup("sha256:0000").is_none());
        assert_eq!(image.layers.len(), 2);
        assert_eq!(std::fs::read_to_string(image.layers[0].join("etc/a")).unwrap(), "base");
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let whiteout = std::fs::symlink_metadata(image.layers[1].join("etc/b")).unwrap();
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
        assert!(images.fs_info().used_bytes >= image.size && image.size > 0);
    };
    check(&images);
    drop(images);
    let images = open(temp.path());
    check(&images);
    images.remove("busybox:1.36").unwrap();
    assert!(images.lookup(id.as_str()).is_none() && images.list().is_empty());
    assert_eq!(layers_on_disk(temp.path()), 0);
    images.remove("busybox:1.36").unwrap();
    drop((loaded, images));
    assert!(open(temp.path()).list().is_empty());
}

#[test]
fn layers_are_kept_once_and_freed_with_the_last_image() {
    let temp = Temp::new();
    let own = |name: &str| archive(&[node(Kind::Dir, "own", ""), file("own/x", name)]);
    layout(&temp.join("a"), "a:1", &[base(), own("a")], true);
    layout(&temp.join("b"), "b:1", &[base(), own("b")], false);
    // The same content in another place of the chain, and twice in one image.
    layout(&temp.join("c"), "c:1", &[own("a"), base(), own("a")], false);
    let images = open(temp.path());
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let (images, path) = (images.clone(), temp.join(name));
            scope.spawn(move || images.load(&path, None).unwrap());
        }
    });
    assert_eq!(layers_on_disk(temp.path()), 3);
    assert_eq!(images.lookup("c:1").unwrap().layers.len(), 2);
    let sizes: u64 = images.list().iter().map(|image| image.size).sum();
    assert!(images.fs_info().used_bytes > 0 && sizes > 0);
    images.remove("b:1").unwrap();
    assert_eq!(layers_on_disk(temp.path()), 2);
    images.remove("a:1").unwrap();
    assert_eq!(layers_on_disk(temp.path()), 2);
    images.remove("c:1").unwrap();
    assert_eq!(layers_on_disk(temp.path()), 0);
}

#[test]
fn an_image_in_use_keeps_its_layers_until_it_is_let_go() {
    let temp = Temp::new();
    let id = layout(&temp.join("l"), "a:1", &[base()], true);
    let images = open(temp.path());
    images.load(&temp.join("l"), None).unwrap();
    let held = images.lookup("a:1").unwrap();
    images.remove("a:1").unwrap();
    assert!(images.lookup("a:1").is_none() && images.list().is_empty());
    assert!(held.layers[0].join("etc/a").exists());
    drop((held, images));
    // A restart, before the containers are known again.
    let images = open(temp.path());
    let held = images.by_id(id.as_str()).unwrap();
    images.collect().unwrap();
    assert!(held.layers[0].join("etc/a").exists());
    drop(held);
    images.collect().unwrap();
    assert_eq!(layers_on_disk(temp.path()), 0);
    assert!(images.by_id(id.as_str()).is_none());
}

#[test]
fn a_directory_without_an_entry_is_as_in_the_layers_below() {
    if !is_root() {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let mut tmp = node(Kind::Dir, "tmp", "");
    (tmp.0.mode, tmp.0.uid, tmp.0.mtime) = (0o1777, 5, (77, 0));
    let temp = Temp::new();
    layout(&temp.join("l"), "a:1", &[archive(&[tmp]), base(), archive(&[file("tmp/x", "x"), file("new/x", "x")])], true);
    let images = open(temp.path());
    let image = images.load(&temp.join("l"), None).unwrap().remove(0);
    let meta = std::fs::metadata(image.layers[2].join("tmp")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.mtime()), (0o1777, 5, 77));
    assert_eq!(std::fs::metadata(image.layers[2].join("new")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_tag_moves_and_wrong_content_changes_nothing() {
    let temp = Temp::new();
    let first = layout(&temp.join("1"), "a:1", &[base()], true);
    layout(&temp.join("2"), "a:1", &[base(), archive(&[file("x", "2")])], true);
    let images = open(temp.path());
    images.load(&temp.join("1"), None).unwrap();
    let second = images.load(&temp.join("2"), None).unwrap().remove(0);
    assert_eq!(images.lookup("a:1").unwrap().id, second.id);
    assert!(images.lookup(first.as_str()).unwrap().repo_tags.is_empty());
    let before = (images.list().len(), layers_on_disk(temp.path()));
    // A blob that is not what its name says, then one that is cut off.
    layout(&temp.join("3"), "b:1", &[archive(&[file("y", "3")])], true);
    let blobs = || std::fs::read_dir(temp.join("3/blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let gzip = blobs().find(|path| std::fs::read(path).unwrap().starts_with(&[0x1f, 0x8b])).unwrap();
    let bytes = std::fs::read(&gzip).unwrap();
    for wrong in [[&bytes[..], b"x"].concat(), bytes[..bytes.len() / 2].to_vec(), b"<html>".to_vec(), Vec::new()] {
        std::fs::write(&gzip, wrong).unwrap();
        let error = format!("{:#}", images.load(&temp.join("3"), None).unwrap_err());
        assert!(error.contains("layer sha256:"), "{error}");
        assert_eq!((images.list().len(), layers_on_disk(temp.path())), before);
        assert_eq!(std::fs::read_dir(temp.join("store/partial")).unwrap().count(), 0, "{error}");
    }
    std::fs::write(&gzip, &bytes).unwrap();
    images.load(&temp.join("3"), None).unwrap();
}

#[test]
fn docker_save_archives_and_compressed_layouts_are_loaded() {
    let temp = Temp::new();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {"Entrypoint": null, "Volumes": {"/v": {}}},
        "rootfs": {"type": "layers", "diff_ids": [rrun_cri::images::Digest::of(&base())]}})
    .to_string();
    let manifest = r#"[{"Config":"c.json","RepoTags":["a:1","b:2"],"Layers":["x/layer.tar"]}]"#;
    let layer = base();
    let link = node(Kind::Symlink, "x/layer.tar", "../y/layer.tar");
    let entry = rrun_cri::images::tar::Entry::file(b"y/layer.tar", layer.len() as u64);
    let tar = archive(&[link, (entry, layer), file("c.json", &config), file("manifest.json", manifest)]);
    std::fs::write(temp.join("saved.tar"), &tar).unwrap();
    let images = open(temp.path());
    let image = images.load(&temp.join("saved.tar"), None).unwrap().remove(0);
    assert_eq!(image.repo_tags, ["docker.io/library/a:1", "docker.io/library/b:2"]);
    assert_eq!(image.config.volumes, ["/v"]);
    images.remove("b:2").unwrap();
    assert!(images.lookup("a:1").is_none());
    std::fs::write(temp.join("saved.tar.zst"), zstd::encode_all(&tar[..], 1).unwrap()).unwrap();
    let error = images.load(&temp.join("saved.tar.zst"), Some("Not A Name")).unwrap_err();
    assert!(format!("{error:#}").contains("Not A Name"));
    let image = images.load(&temp.join("saved.tar.zst"), Some("localhost:5000/c")).unwrap().remove(0);
    assert_eq!(image.repo_tags, ["localhost:5000/c:latest"]);
}

/// A base with things to hide, to replace and to link; an upper layer that does all that.
fn two_layers() -> [Vec<u8>; 2] {
    let lower = archive(&[
        node(Kind::Dir, "etc", ""),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        file("etc/gone", "x"),
        file("dir/old", "x"),
        file("hidden/old", "x"),
        node(Kind::Link, "etc/second", "etc/passwd"),
        file("was-file", "x"),
    ]);
    let upper = archive(&[
        file("etc/.wh.gone", ""),
        file("dir/new", "new"),
        node(Kind::Dir, "hidden", ""),
        file("hidden/.wh..wh..opq", ""),
        file("hidden/new", "new"),
        node(Kind::Dir, "was-file", ""),
        node(Kind::Symlink, "link", "etc/passwd"),
    ]);
    [lower, upper]
}

#[test]
fn an_exported_image_is_the_same_when_loaded_again() {
    let temp = Temp::new();
    layout(&temp.join("l"), "a:1", &two_layers(), true);
    let images = open(temp.path());
    let image = images.load(&temp.join("l"), None).unwrap().remove(0);
    let first = images.export(&image, &temp.join("out"), "a:1").unwrap();
    assert_eq!(images.export(&image, &temp.join("out2"), "a:1").unwrap(), first);
    assert!(images.export(&image, &temp.join("out"), "a:1").is_err());
    std::fs::create_dir(temp.join("other")).unwrap();
    let other = open(&temp.join("other"));
    let again = other.load(&temp.join("out"), None).unwrap().remove(0);
    assert_eq!(again.repo_tags, ["docker.io/library/a:1"]);
    assert_eq!(again.config, image.config);
    for (one, two) in image.layers.iter().zip(&again.layers) {
        assert_eq!(crate::gnu_tar::describe(one), crate::gnu_tar::describe(two));
    }
}

#[test]
fn a_bundle_holds_what_overlayfs_shows() {
    if !is_root() {
        return;
    }
    let temp = Temp::new();
    layout(&temp.join("l"), "a:1", &two_layers(), true);
    let images = open(temp.path());
    let image = images.load(&temp.join("l"), None).unwrap().remove(0);
    bundle::make(&image, &temp.join("b"), false, false, |_| Ok((0, 0, vec![]))).unwrap();
    let mount = crate::support::Mount::overlay(&image.layers, &temp.join("m"));
    // Inode numbers and the times of overlay's own root differ.
    let tree = |path: &Path| crate::gnu_tar::describe(path);
    assert_eq!(tree(&temp.join("b/rootfs")), tree(mount.path()));
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(temp.join("b/config.json")).unwrap()).unwrap();
    assert_eq!(config["process"]["args"][0], "/bin/sh");
    assert_eq!(config["root"]["path"], "rootfs");
    drop(mount);
}

/// Fedora's root is 0555 and its gshadow 0000; rename, read and removal need more of an ordinary owner.
#[test]
fn directories_without_a_mode_are_stored_exported_bundled_and_removed() {
    let temp = Temp::new();
    let with =
        |(entry, contents): (rrun_cri::images::tar::Entry, Vec<u8>), mode| (rrun_cri::images::tar::Entry { mode, ..entry }, contents);
    let lower = archive(&[
        with(node(Kind::Dir, "./", ""), 0o555),
        with(node(Kind::Dir, "locked", ""), 0),
        with(node(Kind::Dir, "locked/in", ""), 0o500),
        with(file("locked/in/gshadow", "secret"), 0),
    ]);
    let upper = archive(&[with(node(Kind::Dir, "./", ""), 0o555), file("locked/in/new", "x")]);
    layout(&temp.join("l"), "a:1", &[lower, upper], true);
    let images = open(temp.path());
    let image = images.load(&temp.join("l"), None).unwrap().remove(0);
    images.export(&image, &temp.join("out"), "a:1").unwrap();
    bundle::make(&image, &temp.join("b"), images.squashes(), false, |_| Ok((0, 0, vec![]))).unwrap();
    assert_eq!(std::fs::read_to_string(temp.join("b/rootfs/locked/in/gshadow")).unwrap(), "secret");
    drop(image);
    images.remove("a:1").unwrap();
    assert_eq!(std::fs::read_dir(temp.join("store/layers")).unwrap().count(), 0);
    // The sweeper ends with the store; what it could not remove stays.
    let (partial, deadline) = (images.partial_dir().to_owned(), std::time::Instant::now() + std::time::Duration::from_secs(20));
    while std::fs::read_dir(&partial).unwrap().count() > 0 {
        assert!(std::time::Instant::now() < deadline, "something of the layers stays");
        std::thread::yield_now();
    }
}
