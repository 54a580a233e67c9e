//! Decompression of layers: gzip, zstd (zstd:chunked is zstd with frames to skip), none.
//!
//! Called by `images::layers`. What it is, is told by the first bytes and not by the
//! media type, which builders get wrong. Memory is bounded by the window.
use anyhow::{Context, Result, bail};
use flate2::bufread::MultiGzDecoder;
use std::io::{BufRead, Read};

/// log2 of the largest zstd window: 64 MiB.
const ZSTD_WINDOW: u32 = 26;

/// A reader of the uncompressed bytes of `source`.
pub(super) fn decoder<'a, R: BufRead>(source: &'a mut R) -> Result<Box<dyn Read + 'a>> {
    let start = source.fill_buf().context("read")?;
    let magic = start.get(..4).unwrap_or(start);
    if magic.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(MultiGzDecoder::new(source)));
    }
    // A zstd frame, or one of its skippable frames.
    if magic == [0x28, 0xb5, 0x2f, 0xfd] || (magic.len() == 4 && magic[0] & 0xf0 == 0x50 && magic[1..] == [0x2a, 0x4d, 0x18]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(source).context("zstd")?;
        decoder.window_log_max(ZSTD_WINDOW).context("zstd")?;
        return Ok(Box::new(decoder));
    }
    for (name, magic_of) in [("bzip2", &b"BZh"[..]), ("xz", &[0xfd, b'7', b'z', b'X'])] {
        if magic.starts_with(magic_of) {
            bail!("compressed with {name}, which layers may not be; use gzip or zstd");
        }
    }
    Ok(Box::new(source))
}
