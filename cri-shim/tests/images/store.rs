//! The store's life: load, look-ups, sharing, removal, restart.
use crate::support::{Temp, archive, file, layout, node};
use rrun_cri::images::Images;
use rrun_cri::images::tar::Kind;
use rrun_cri::images::unpack::Options;
use std::path::Path;

fn open(dir: &Path) -> Images {
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
