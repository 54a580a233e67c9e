//! A full disk: a clear error, nothing left, and removal works with no byte free.
use crate::support::{Mount, Temp, archive, is_root, layout};
use rrun_cri::images::tar::Entry;
use rrun_cri::images::unpack::Options;
use rrun_cri::images::{Images, disk_full};
use std::io::Write;

#[test]
fn a_full_disk_is_an_error_and_an_image_can_be_removed_on_it() {
    if !is_root() {
        return;
    }
    let temp = Temp::new();
    let noise = |size: usize, seed: u64| -> Vec<u8> {
        let mut state = seed;
        let next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        std::iter::repeat_with(next).take(size).collect()
    };
    let layer = |size: usize, seed| archive(&[(Entry::file(b"noise", size as u64), noise(size, seed))]);
    layout(&temp.join("small"), "small:1", &[layer(1 << 20, 1)], false);
    layout(&temp.join("large"), "large:1", &[layer(1 << 20, 1), layer(30 << 20, 2)], false);
    let mount = Mount::tmpfs(&temp.join("disk"), "size=24m");
    let open = || Images::open(&mount.path().join("store"), Options::default()).unwrap();
    let images = open();
    images.load(&temp.join("small"), None).unwrap();
    let before = images.fs_info();
    let error = images.load(&temp.join("large"), None).unwrap_err();
    assert!(disk_full(&error), "{error:#}");
    assert!(format!("{error:#}").contains("entry \"noise\": write: No space left on device"), "{error:#}");
    assert_eq!(images.fs_info(), before);
    assert_eq!(images.list().len(), 1);
    // Not a byte is left.
    let mut filler = std::fs::File::create(mount.path().join("filler")).unwrap();
    for size in [1 << 16, 4096, 1] {
        while filler.write_all(&vec![0; size]).is_ok() {}
    }
    assert!(std::fs::write(mount.path().join("no"), "x").is_err());
    images.load(&temp.join("large"), None).unwrap_err();
    assert!(images.lookup("small:1").is_some());
    images.remove("small:1").unwrap();
    assert!(images.list().is_empty());
    drop(images);
    let images = open();
    assert!(images.list().is_empty());
    drop(filler);
    std::fs::remove_file(mount.path().join("filler")).unwrap();
    images.load(&temp.join("small"), None).unwrap();
    drop(images);
    drop(mount);
}
