//! Hostile and odd archives, built here: refused with the entry's name, nothing outside
//! touched; or unpacked as overlayfs wants it.
use crate::support::{Temp, archive, file, is_root, node, unpack_into};
use rrun_cri::images::tar::{Entry, Kind, Limits, Writer};
use rrun_cri::images::unpack::Options;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

type Archive = Vec<(Entry, Vec<u8>)>;

/// The layer's folder lies beside a file that nobody may touch.
fn outside(temp: &Temp) {
    std::fs::create_dir_all(temp.join("outside")).unwrap();
    std::fs::write(temp.join("outside/victim"), "untouched").unwrap();
}

fn untouched(temp: &Temp) {
    assert_eq!(std::fs::read_to_string(temp.join("outside/victim")).unwrap(), "untouched");
    let names: Vec<_> = std::fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(std::fs::read_dir(temp.join("outside")).unwrap().count(), 1);
    assert_eq!(std::fs::metadata(temp.join("outside/victim")).unwrap().nlink(), 1);
}

fn options() -> Options {
    Options { squash: !rustix::process::geteuid().is_root(), ..Options::default() }
}

fn refused(tar: &[u8], options: Options, words: &[&str]) {
    let temp = Temp::new();
    outside(&temp);
    let error = unpack_into(&temp.join("layer"), tar, options).expect_err(&format!("{words:?}"));
    let text = format!("{error:#}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
    assert!(!text.contains('\n'), "{text}");
    untouched(&temp);
}

fn unpacked(entries: &Archive) -> (Temp, rrun_cri::images::unpack::Unpacked) {
    let temp = Temp::new();
    outside(&temp);
    let done = unpack_into(&temp.join("layer"), &archive(entries), options()).unwrap();
    untouched(&temp);
    (temp, done)
}

fn read(temp: &Temp, name: &str) -> String {
    std::fs::read_to_string(temp.join("layer").join(name)).unwrap()
}

#[test]
fn paths_that_leave_are_refused() {
    let cases: Vec<(Archive, &str)> = vec![
        (vec![file("../outside/victim", "x")], "'..'"),
        (vec![file("a/../../outside/victim", "x")], "'..'"),
        (vec![file("/../outside/victim", "x")], "'..'"),
        (vec![file("..", "x")], "'..'"),
        (vec![node(Kind::Symlink, "..", "x")], "'..'"),
        (vec![node(Kind::Link, "a", "../outside/victim")], "'..'"),
        (vec![node(Kind::Link, "a", "..")], "'..'"),
        (vec![node(Kind::Link, "a", "/")], "root"),
        (vec![node(Kind::Link, "a", "missing")], "no such file in this layer"),
        (vec![node(Kind::Dir, "d", ""), node(Kind::Link, "a", "d")], "directory"),
        (vec![node(Kind::Symlink, ".", "x")], "root"),
        (vec![file("", "x")], "root"),
        (vec![file(".wh.", "")], "whiteout of nothing"),
        (vec![file(".wh..", "")], "whiteout of nothing"),
        (vec![file("a/.wh...", "")], "whiteout of nothing"),
        (vec![file(".wh.a/b", "x")], "beneath a whiteout"),
        (vec![file("a", "x"), file("a/b", "x")], "is not a directory"),
        (vec![node(Kind::Symlink, "s", "")], "symbolic link to"),
        (vec![node(Kind::Symlink, "s", "s"), file("s/x", "x")], "symbolic links on the way"),
        (vec![node(Kind::Symlink, "a", "b"), node(Kind::Symlink, "b", "a"), file("a/x", "x")], "symbolic links on the way"),
        (vec![file(&"n".repeat(300), "x")], "name too long"),
        (vec![file(&"n/".repeat(2100), "x")], "4096"),
        (vec![file(&format!("{}x", "d/".repeat(600)), "x")], "deeper than"),
    ];
    for (entries, words) in cases {
        let name = entries.last().unwrap().0.name();
        let shown: String = name.chars().take(40).collect();
        let lower = if words == "name too long" { "ENAMETOOLONG" } else { words };
        let temp = Temp::new();
        outside(&temp);
        let error = unpack_into(&temp.join("layer"), &archive(&entries), options()).expect_err(words);
        let text = format!("{error:#}");
        assert!(text.contains(words) || text.to_lowercase().contains(words) || text.contains(lower), "{text:?} does not say {words:?}");
        assert!(text.contains(&format!("entry \"{shown}")), "{text:?} does not name {shown:?}");
        untouched(&temp);
    }
}

#[test]
fn symbolic_links_lead_nowhere_outside() {
    for target in ["/outside", "../outside", "../../../../../../../../outside", "/", "..", "/proc/self/root", "/proc/self/cwd"] {
        let (temp, _) = unpacked(&vec![node(Kind::Symlink, "s", target), file("s/victim", "inside"), node(Kind::Dir, "s/new", "")]);
        // What the link leads to was made within the layer.
        let within = target.replace("../", "").replace("..", "");
        assert_eq!(read(&temp, format!("{}/victim", within.trim_matches('/')).trim_start_matches('/')), "inside", "{target}");
    }
    // A chain, the last of which would leave.
    let chain: Archive = vec![
        node(Kind::Symlink, "a", "b"),
        node(Kind::Symlink, "b", "c/d"),
        node(Kind::Dir, "c", ""),
        node(Kind::Symlink, "c/d", "../../outside"),
        file("a/victim", "inside"),
    ];
    assert_eq!(read(&unpacked(&chain).0, "outside/victim"), "inside");
    // A link to a file outside is replaced, not followed, by what comes under its name.
    let (temp, _) = unpacked(&vec![node(Kind::Symlink, "v", "../outside/victim"), file("v", "mine")]);
    assert_eq!(read(&temp, "v"), "mine");
    // A hard link takes a symbolic link itself, and one through a link stays inside.
    let (temp, _) = unpacked(&vec![node(Kind::Symlink, "v", "../outside/victim"), node(Kind::Link, "h", "v")]);
    assert!(std::fs::symlink_metadata(temp.join("layer/h")).unwrap().is_symlink());
    refused(
        &archive(&[node(Kind::Symlink, "o", "../outside"), node(Kind::Link, "h", "o/victim")]),
        options(),
        &["entry \"h\"", "hard link to \"o/victim\"", "no such file"],
    );
    // A folder that was cached and then became a link.
    let (temp, _) = unpacked(&vec![file("d/x", "first"), node(Kind::Symlink, "d", "../outside"), file("d/x", "second")]);
    assert_eq!(read(&temp, "outside/x"), "second");
}

#[test]
fn absolute_and_repeated_names_are_within() {
    let (temp, done) = unpacked(&vec![
        file("/abs", "a"),
        file("./rel//x", "b"),
        file("twice", "first and longer"),
        file("twice", "second"),
        file("was-dir/x", "x"),
        file("was-dir", "file now"),
        file("was-file", "x"),
        node(Kind::Dir, "was-file", ""),
        node(Kind::Dir, "kept", ""),
        file("kept/x", "x"),
        node(Kind::Dir, "kept", ""),
        file("self", "s"),
        node(Kind::Link, "self", "./self"),
    ]);
    assert_eq!((read(&temp, "abs"), read(&temp, "rel/x"), read(&temp, "twice")), ("a".into(), "b".into(), "second".into()));
    assert_eq!((read(&temp, "was-dir"), read(&temp, "kept/x"), read(&temp, "self")), ("file now".into(), "x".into(), "s".into()));
    assert!(temp.join("layer/was-file").is_dir());
    assert_eq!(done.implied, [b"rel".to_vec()]);
}

#[test]
fn whiteouts_are_what_overlayfs_wants() {
    let (temp, done) = unpacked(&vec![
        node(Kind::Dir, "etc", ""),
        file("etc/.wh.gone", ""),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/x", "x"),
        file(".wh.renewed", ""),
        node(Kind::Dir, "renewed", ""),
        file(".wh.renewed2", ""),
        file("renewed2/x", "x"),
        node(Kind::Dir, "before", ""),
        file(".wh.before", ""),
        file("present", "p"),
        file(".wh.present", ""),
        file(".wh..wh.plnk", ""),
    ]);
    let layer = temp.join("layer");
    let gone = std::fs::symlink_metadata(layer.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let name = if options().squash { "user.overlay.opaque" } else { "trusted.overlay.opaque" };
    for dir in ["opaque", "renewed", "renewed2", "before"] {
        let mut value = [0_u8; 4];
        let length = rustix::fs::getxattr(layer.join(dir), name, &mut value[..]).expect(dir);
        assert_eq!(&value[..length], b"y", "{dir}");
    }
    assert_eq!((read(&temp, "present"), read(&temp, "renewed2/x")), ("p".into(), "x".into()));
    assert!(!layer.join(".wh..wh.plnk").exists());
    assert_eq!(done.implied, [b"opaque".to_vec(), b"renewed2".to_vec()]);
}

#[test]
fn overlays_own_attributes_are_not_taken() {
    let mut entries = vec![node(Kind::Dir, "d", ""), file("f", "x")];
    for (entry, _) in &mut entries {
        for name in ["trusted.overlay.redirect", "trusted.overlay.metacopy", "user.overlay.opaque", "trusted.overlay.opaque"] {
            entry.xattrs.push((name.into(), b"/etc".to_vec()));
        }
    }
    let (temp, done) = unpacked(&entries);
    assert_eq!(done.xattrs, 8);
    for name in ["d", "f"] {
        let mut names = [0_u8; 256];
        assert_eq!(rustix::fs::listxattr(temp.join("layer").join(name), &mut names[..]).unwrap(), 0);
    }
}

#[test]
fn limits_hold() {
    let small = Options { limits: Limits { bytes: 1 << 20, entries: 100 }, ..options() };
    let zeros = archive(&[(Entry::file(b"bomb", 2 << 20), vec![0; 2 << 20])]);
    refused(&zeros, small, &["larger than 1048576 bytes"]);
    let many: Archive = (0..101).map(|i| node(Kind::Fifo, &format!("f{i}"), "")).collect();
    refused(&archive(&many), small, &["more than 100 entries"]);
    let devices: Archive = (0..101).map(|i| node(Kind::Char, &format!("f{i}"), "")).collect();
    refused(&archive(&devices), small, &["more than 100 entries"]);
    // What stands after the end of the archive counts too.
    let tail = [archive(&[file("a", "x")]), vec![0; 2 << 20]].concat();
    refused(&tail, small, &["larger than 1048576 bytes"]);
}

/// A header block as it stands in an archive.
fn header(entry: &Entry) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.append(entry, std::io::repeat(0)).unwrap();
    writer.finish().unwrap()[..512].to_vec()
}

fn patched(at: usize, bytes: &[u8], entry: &Entry) -> Vec<u8> {
    resum(header(entry), at, bytes)
}

fn resum(mut block: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    block[at..at + bytes.len()].copy_from_slice(bytes);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

#[test]
fn broken_headers_are_refused() {
    let plain = Entry::file(b"name", 0);
    let kind = |kind: u8| patched(156, &[kind], &plain);
    let mut bad_sum = header(&plain);
    bad_sum[0] = b'X';
    refused(&bad_sum, options(), &["not a tar header", "byte 0"]);
    refused(b"<html>registry error page</html>", options(), &["ends within a header"]);
    refused(&[b'x'; 1024], options(), &["not a"]);
    refused(&kind(b'M'), options(), &["entry \"name\"", "unknown type 'M'"]);
    refused(&kind(b'x'), options(), &["ends after an extended header"]);
    refused(&patched(124, b"77777777777\0", &plain), options(), &["ends within an entry"]);
    refused(&patched(124, &[0xff; 12], &plain), options(), &["size is negative"]);
    refused(&patched(124, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &plain), options(), &["size"]);
    refused(&patched(108, b"99999999", &plain), options(), &["uid is not an octal number"]);
    let huge = patched(124, b"77777777777\0", &plain);
    let huge = resum(huge, 156, b"x");
    refused(&huge, options(), &["extended header of 8589934591 bytes"]);
    for records in [
        "9999 path=x\n",
        "0 a=b\n",
        "no length\n",
        "11 size=-1\n",
        &record("size", "99999999999999999999"),
        &record("uid", "4294967296"),
        &record("mtime", "x"),
    ] {
        let pax = [patched(156, b"x", &Entry::file(b"pax", records.len() as u64)), pad(records.as_bytes()), header(&plain)].concat();
        refused(&pax, options(), &["PAX header \"pax\"", "PAX "]);
    }
    // Sparse maps that overlap, run out of the file, or promise more than is stored.
    for map in ["0,10,5,10", "100,10", "0,4611686018427387904,4611686018427387904,4611686018427387904", "0,5"] {
        let records = [record("GNU.sparse.map", map), record("GNU.sparse.size", "20")].concat();
        let pax = [patched(156, b"x", &Entry::file(b"pax", records.len() as u64)), pad(records.as_bytes()), header(&plain)].concat();
        refused(&pax, options(), &["entry \"name\"", "sparse map"]);
    }
}

fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| *length == rest + length.to_string().len()).unwrap();
    format!("{length} {key}={value}\n")
}

fn pad(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(512), 0);
    padded
}

#[test]
fn a_squashed_layer_has_one_owner_and_no_devices() {
    let mut owned = file("f", "x");
    (owned.0.uid, owned.0.gid, owned.0.mode) = (1000, 1000, 0o4755);
    owned.0.xattrs.push((b"security.capability".to_vec(), vec![1]));
    owned.0.xattrs.push((b"user.kept".to_vec(), b"v".to_vec()));
    let mut closed = node(Kind::Dir, "closed", "");
    closed.0.mode = 0o555;
    let device = node(Kind::Char, "null", "");
    let temp = Temp::new();
    let tar = archive(&[closed, file("closed/x", "x"), owned, device]);
    let done = unpack_into(&temp.join("layer"), &tar, Options { squash: true, ..Options::default() }).unwrap();
    assert_eq!((done.devices, done.xattrs), (1, 1));
    let meta = std::fs::metadata(temp.join("layer/f")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (rustix::process::geteuid().as_raw(), 0o4755));
    // Its owner can remove it: to a directory of 0555 an ordinary user could not.
    assert_eq!(std::fs::metadata(temp.join("layer/closed")).unwrap().mode() & 0o7777, 0o755);
    assert!(!Path::new(&temp.join("layer/null")).exists());
}

#[test]
fn devices_are_made_for_root() {
    if !is_root() {
        return;
    }
    let mut device = node(Kind::Char, "null", "");
    device.0.device = (1, 3);
    let (temp, _) = unpacked(&vec![device]);
    let meta = std::fs::metadata(temp.join("layer/null")).unwrap();
    assert!(meta.file_type().is_char_device() && meta.rdev() == rustix::fs::makedev(1, 3));
}

#[test]
fn compressed_layers_are_told_by_their_bytes() {
    use std::io::Write;
    let temp = Temp::new();
    let images = crate::store::open(temp.path());
    let tar = archive(&[(Entry::file(b"f", 1 << 20), vec![b'z'; 1 << 20])]);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    // Two members; frames with one to skip between them, as zstd:chunked ends.
    let skipped = [&[0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..]].concat();
    let (half, rest) = tar.split_at(tar.len() / 2);
    let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let blobs = [
        ("plain", tar.clone()),
        ("gzip", [gzip(half), gzip(rest)].concat()),
        ("zstd", [frame(half), skipped.clone(), frame(rest), skipped.clone()].concat()),
        ("chunked", [skipped, frame(&tar)].concat()),
    ];
    for (name, blob) in &blobs {
        crate::support::layout_of(&temp.join(name), &format!("{name}:1"), &[(tar.clone(), blob.clone())]);
        let image = images.load(&temp.join(name), None).unwrap_or_else(|error| panic!("{name}: {error:#}")).remove(0);
        assert_eq!(std::fs::metadata(image.layers[0].join("f")).unwrap().len(), 1 << 20);
        drop(image);
        images.remove(&format!("{name}:1")).unwrap();
    }
    for (name, blob, words) in [
        ("bz", b"BZh91AY".to_vec(), "bzip2"),
        ("cut", frame(&tar)[..40].to_vec(), "incomplete frame"),
        ("tail", [gzip(&tar), b"garbage".to_vec()].concat(), "unexpected end of file"),
        ("wide", wide_window(), "too much memory"),
    ] {
        crate::support::layout_of(&temp.join(name), &format!("{name}:1"), &[(tar.clone(), blob)]);
        let error = format!("{:#}", images.load(&temp.join(name), None).unwrap_err());
        assert!(error.contains(words), "{name}: {error}");
    }
}

/// A zstd frame that wants a window of 1 GiB.
fn wide_window() -> Vec<u8> {
    // Magic, a header without content size, the window descriptor (exponent 20), a last raw block of one byte.
    vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 0x09, 0x00, 0x00, b'x']
}
