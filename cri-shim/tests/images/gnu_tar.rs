//! Unpacking compared with GNU tar: the same archive, both trees, all metadata.
use crate::support::{Temp, is_root, unpack_into};
use rrun_cri::images::unpack::Options;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Everything of a tree that tar keeps, by path.
pub(crate) fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut inodes: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    found.insert(PathBuf::new(), one(root, Path::new(""), &mut inodes));
    while let Some(folder) = folders.pop() {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.insert(name.clone(), one(&path, &name, &mut inodes));
            if std::fs::symlink_metadata(&path).unwrap().is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

fn one(path: &Path, name: &Path, inodes: &mut BTreeMap<u64, PathBuf>) -> String {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let kind = meta.file_type();
    if kind.is_char_device() && meta.rdev() == 0 {
        return "whiteout".to_owned();
    }
    let times = format!("{}.{:09}", meta.mtime(), meta.mtime_nsec());
    let mut text = format!("{:o} {}:{} {times} rdev {}", meta.permissions().mode(), meta.uid(), meta.gid(), meta.rdev());
    if kind.is_file() {
        let contents = std::fs::read(path).unwrap();
        let hash = rrun_cri::images::Digest::of(&contents);
        text += &format!(" size {} {hash} holes {}", meta.size(), meta.blocks() * 512 < meta.size() / 2);
        if meta.nlink() > 1 {
            // Which name comes first depends on the walk, which is the same for both trees.
            let first = inodes.entry(meta.ino()).or_insert_with(|| name.to_owned());
            text += &format!(" links {} to {first:?}", meta.nlink());
        }
    } else if kind.is_symlink() {
        text += &format!(" -> {:?}", std::fs::read_link(path).unwrap());
    } else {
        assert!(kind.is_dir() || kind.is_fifo() || kind.is_char_device() || kind.is_block_device() || kind.is_socket());
    }
    text + &xattrs(path)
}

fn xattrs(path: &Path) -> String {
    let mut names = vec![0_u8; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut list: Vec<&[u8]> = names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()).collect();
    list.sort();
    let mut text = String::new();
    for name in list {
        let mut value = vec![0_u8; 1 << 16];
        let size = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        text += &format!(" {}={:?}", String::from_utf8_lossy(name), &value[..size]);
    }
    text
}

/// A tree with all that tar knows.
fn tree(root: &Path) {
    let dir = |name: &str| std::fs::create_dir_all(root.join(name)).unwrap();
    dir("bin");
    dir("dir/deep/er");
    dir("secret");
    dir("sticky");
    std::fs::write(root.join("bin/su"), "setuid").unwrap();
    std::fs::write(root.join("dir/empty"), "").unwrap();
    std::fs::write(root.join("dir/big"), vec![7_u8; 3_000_001]).unwrap();
    std::fs::hard_link(root.join("dir/big"), root.join("dir/deep/er/big2")).unwrap();
    std::fs::hard_link(root.join("dir/big"), root.join("zz")).unwrap();
    let long = "l".repeat(200);
    dir(&format!("{long}/{long}"));
    std::fs::write(root.join(format!("{long}/{long}/file")), "long").unwrap();
    std::os::unix::fs::symlink(format!("../{long}/{long}/{long}"), root.join("dir/link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("dir/absolute")).unwrap();
    std::fs::write(root.join(std::ffi::OsStr::from_bytes(b"dir/\xff\n name")), "odd").unwrap();
    sparse(&root.join("sparse"), &[(1 << 20, 5000), (5 << 20, 100)], 9 << 20);
    sparse(&root.join("hole"), &[], 4 << 20);
    let many: Vec<(u64, usize)> = (0..40).map(|i| ((i * 128) << 10, 4096)).collect();
    sparse(&root.join("pieces"), &many, 6 << 20);
    let mknod = |name: &str, kind, major, minor| {
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, 0o640.into(), rustix::fs::makedev(major, minor)).unwrap()
    };
    mknod("null", rustix::fs::FileType::CharacterDevice, 1, 3);
    mknod("loop", rustix::fs::FileType::BlockDevice, 7, 300);
    mknod("fifo", rustix::fs::FileType::Fifo, 0, 0);
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(name), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("bin/su", "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    set("dir", "user.on.dir", b"binary\0\n");
    set("dir/empty", "user.empty", b"");
    set("dir/link", "trusted.on.link", b"x");
    let chown = |name: &str, id: u32| std::os::unix::fs::lchown(root.join(name), Some(id), Some(id + 1)).unwrap();
    chown("dir/empty", 1000);
    chown("dir/link", 70_000);
    chown("dir/deep", 3_000_000);
    chown("null", 5);
    let chmod = |name: &str, mode| std::fs::set_permissions(root.join(name), PermissionsExt::from_mode(mode)).unwrap();
    chmod("sticky", 0o1777);
    chmod("secret", 0o000);
    chmod("dir/deep", 0o2775);
    chmod("dir/empty", 0o000);
    chmod("null", 0o666);
    chown("bin/su", 33);
    chmod("bin/su", 0o6755);
    set("bin/su", "security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (name, seconds, nanos) in
        [("dir/empty", -5, 500_000_000), ("secret", 1, 1), ("dir", 1_700_000_000, 123_456_789), ("zz", 8_000_000_000, 0)]
    {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, root.join(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn sparse(path: &Path, pieces: &[(u64, usize)], size: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, length) in pieces {
        file.write_all_at(&vec![b'd'; *length], *offset).unwrap();
    }
}

fn compare(temp: &Temp, tree: &Path, options: &[&str]) {
    let tar = temp.join("tar");
    let mut create = Command::new("tar");
    create.args(["-C"]).arg(tree).args(["-cf"]).arg(&tar).args(options).arg(".");
    run(&mut create);
    let (ours, theirs) = (temp.join("ours"), temp.join("theirs"));
    std::fs::create_dir(&theirs).unwrap();
    let keep = ["--numeric-owner", "--same-owner", "-p", "--xattrs", "--xattrs-include=*", "-xf"];
    run(Command::new("tar").arg("-C").arg(&theirs).args(keep).arg(&tar));
    unpack_into(&ours, &std::fs::read(&tar).unwrap(), Options::default()).unwrap();
    let (ours_are, theirs_are) = (describe(&ours), describe(&theirs));
    let names: Vec<&PathBuf> = ours_are.keys().chain(theirs_are.keys()).collect();
    for name in names {
        assert_eq!(ours_are.get(name), theirs_are.get(name), "{name:?} with {options:?}");
    }
    for name in ["ours", "theirs"] {
        run(Command::new("rm").arg("-rf").arg(temp.join(name)));
    }
}

#[test]
fn every_format_gives_the_tree_that_gnu_tar_gives() {
    if !is_root() {
        return;
    }
    let temp = Temp::new();
    let root = temp.join("tree");
    tree(&root);
    let pax = ["--format=pax", "--xattrs", "--xattrs-include=*", "--sparse"];
    for version in ["0.0", "0.1", "1.0"] {
        compare(&temp, &root, &[&pax[..], &["--sparse-version", version]].concat());
    }
    compare(&temp, &root, &pax[..3]);
    compare(&temp, &root, &["--format=gnu", "--sparse"]);
    compare(&temp, &root, &["--format=gnu"]);
    let plain = temp.join("plain");
    run(Command::new("cp").arg("-a").arg(&root).arg(&plain));
    for name in ["l".repeat(200), "dir/link".into(), "dir/empty".into(), "dir/deep".into(), "zz".into()] {
        run(Command::new("rm").arg("-rf").arg(plain.join(name)));
    }
    compare(&temp, &plain, &["--format=ustar"]);
    compare(&temp, &plain, &["--format=oldgnu", "--sparse"]);
}

#[test]
fn a_real_tree_is_the_same() {
    if !is_root() {
        return;
    }
    let temp = Temp::new();
    for (tree, options) in [("/etc", "--format=pax"), ("/usr/share/perl", "--format=gnu"), ("/usr/sbin", "--format=posix")] {
        if Path::new(tree).exists() {
            compare(&temp, Path::new(tree), &[options]);
        }
    }
}

#[test]
fn our_own_archives_are_read_by_gnu_tar() {
    if !is_root() {
        return;
    }
    let temp = Temp::new();
    let name: OsString = OsString::from("n".repeat(150));
    let entry = rrun_cri::images::tar::Entry { mtime: (1, 5), uid: 3_000_000, ..rrun_cri::images::tar::Entry::file(name.as_bytes(), 3) };
    std::fs::write(temp.join("tar"), crate::support::archive(&[(entry, b"abc".to_vec())])).unwrap();
    std::fs::create_dir(temp.join("out")).unwrap();
    run(Command::new("tar").arg("-C").arg(temp.join("out")).args(["--numeric-owner", "-xpf"]).arg(temp.join("tar")));
    let meta = std::fs::metadata(temp.join("out").join(&name)).unwrap();
    assert_eq!((meta.uid(), meta.mtime(), meta.mtime_nsec(), meta.size()), (3_000_000, 1, 5, 3));
}
