//! Archives with bytes changed at random (always the same ones): an error or a tree, never a
//! panic, a file outside, or memory without bound. The fuzz target `tar` does it for hours.
use crate::support::{Temp, archive, file, node, unpack_into};
use rrun_cri::images::tar::{Entry, Kind, Limits};
use rrun_cri::images::unpack::Options;

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

fn sound() -> Vec<u8> {
    let mut rich = Entry::file(&[b'p'; 140], 3);
    rich.xattrs = vec![(b"user.a".to_vec(), b"v".to_vec())];
    rich.mtime = (1, 5);
    archive(&[
        node(Kind::Dir, "d", ""),
        file("d/f", "contents"),
        (rich, b"abc".to_vec()),
        node(Kind::Symlink, "s", "d"),
        file("s/through", "x"),
        node(Kind::Link, "h", "d/f"),
        node(Kind::Fifo, "fifo", ""),
        file("d/.wh.gone", ""),
        file("d/.wh..wh..opq", ""),
        file("twice", "1"),
        node(Kind::Dir, "twice", ""),
    ])
}

/// What makes a difference to a reader of headers, more often than a random byte does.
const WORDS: [&[u8]; 14] = [
    b"..",
    b"/",
    b"../../outside",
    b"\0",
    b"77777777777",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0\0",
    b".wh.",
    b".wh..wh..opq",
    b"GNU.sparse.map=0,1",
    b"9 path=..\n",
    b"99999 size=1\n",
    b"S",
    b"x",
];

#[test]
fn changed_bytes_do_no_harm() {
    let mut random = Random(42);
    let sound = sound();
    let temp = Temp::new();
    std::fs::create_dir(temp.join("outside")).unwrap();
    let options = Options { limits: Limits { bytes: 1 << 20, entries: 1000 }, squash: true };
    let (mut refused, mut taken) = (0, 0);
    for _ in 0..600 {
        let mut tar = sound.clone();
        for _ in 0..=random.below(3) {
            let block = random.below(tar.len() / 512) * 512;
            let word = WORDS[random.below(WORDS.len())];
            // The fields from the name to the link's target, where most bytes mean something.
            let at = block + [0, 100, 124, 136, 156, 157, 257, 345, 386, 482][random.below(10)];
            for (i, byte) in word.iter().enumerate().filter(|(i, _)| at + i < block + 512) {
                tar[at + i] = *byte;
            }
            if random.below(4) > 0 {
                checksum(&mut tar[block..block + 512]);
            }
        }
        if random.below(8) == 0 {
            tar.truncate(random.below(tar.len()));
        }
        match unpack_into(&temp.join("layer"), &tar, options) {
            Ok(_) => taken += 1,
            Err(error) => {
                assert!(!format!("{error:#}").contains('\n'), "{error:#}");
                refused += 1;
            }
        }
        std::fs::remove_dir_all(temp.join("layer")).unwrap();
        assert_eq!(std::fs::read_dir(temp.join("outside")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    }
    assert!(refused > 50 && taken > 50, "{refused} refused, {taken} unpacked: the changes say little");
}

fn checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
