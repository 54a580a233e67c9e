//! One 512-byte tar header: the fields of v7, ustar, GNU and PAX archives.
//!
//! Called by `tar::reader`. Numbers are octal or (GNU) base-256; the checksum is
//! checked before anything else is read.
use anyhow::{Result, bail};

/// Size of a header and of the unit that contents are padded to.
pub(super) const BLOCK: usize = 512;

/// Offset and length of what a sparse file has contents for.
type Pieces = Vec<(u64, u64)>;

/// A header as it stands in the archive, checksum verified.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Checks the checksum.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Header<'a>> {
        let header = Header(block);
        let want = header.number(148, 8, "checksum")?;
        let (mut unsigned, mut signed) = (8 * 32_i64, 8 * 32_i64);
        for &byte in block[..148].iter().chain(&block[156..]) {
            unsigned += i64::from(byte);
            signed += i64::from(byte as i8);
        }
        if want != unsigned && want != signed {
            bail!("not a tar header (checksum {want} in place of {unsigned})");
        }
        Ok(header)
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// `prefix/name` of ustar; GNU headers keep other things where the prefix is.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = text(&self.0[345..500]);
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32> {
        Ok((self.number(100, 8, "mode")? & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<u32> {
        id(self.number(108, 8, "uid")?, "uid")
    }

    pub(super) fn gid(&self) -> Result<u32> {
        id(self.number(116, 8, "gid")?, "gid")
    }

    pub(super) fn size(&self) -> Result<u64> {
        unsigned(self.number(124, 12, "size")?, "size")
    }

    pub(super) fn mtime(&self) -> Result<i64> {
        self.number(136, 12, "mtime")
    }

    /// Major and minor number; v7 headers have other bytes there.
    pub(super) fn device(&self) -> Result<(u32, u32)> {
        if &self.0[257..262] != b"ustar" {
            return Ok((0, 0));
        }
        Ok((id(self.number(329, 8, "device")?, "device")?, id(self.number(337, 8, "device")?, "device")?))
    }

    /// Old GNU sparse files: up to four pieces, whether more blocks follow, the real size.
    pub(super) fn sparse(&self) -> Result<(Pieces, bool, u64)> {
        Ok((pieces(self.0, 386, 4)?, self.0[482] != 0, unsigned(self.number(483, 12, "real size")?, "real size")?))
    }

    fn number(&self, at: usize, len: usize, field: &str) -> Result<i64> {
        number(&self.0[at..at + len], field)
    }
}

/// A continuation block of an old GNU sparse map, and whether another follows.
pub(super) fn sparse_block(block: &[u8; BLOCK]) -> Result<(Pieces, bool)> {
    Ok((pieces(block, 0, 21)?, block[504] != 0))
}

fn pieces(block: &[u8; BLOCK], at: usize, count: usize) -> Result<Pieces> {
    let mut found = Vec::new();
    for piece in block[at..at + 24 * count].chunks_exact(24) {
        if piece[0] == 0 {
            break;
        }
        let offset = unsigned(number(&piece[..12], "sparse map")?, "sparse map")?;
        found.push((offset, unsigned(number(&piece[12..], "sparse map")?, "sparse map")?));
    }
    Ok(found)
}

/// Octal digits between blanks, or base-256 where the first bit is set.
fn number(field: &[u8], name: &str) -> Result<i64> {
    if field[0] & 0x80 != 0 {
        // Two's complement, the marker bit aside; the sign is the bit below the marker.
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        value = (value << 7) | i128::from(field[0] & 0x7f);
        for &byte in &field[1..] {
            value = (value << 8) | i128::from(byte);
        }
        return match i64::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => bail!("{name} is out of range"),
        };
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|b| !matches!(b, b'0'..=b'7')).unwrap_or(digits.len());
    if !matches!(digits.get(end), None | Some(0 | b' ')) {
        bail!("{name} is not an octal number");
    }
    Ok(digits[..end].iter().fold(0, |value, digit| (value << 3) | i64::from(digit - b'0')))
}

fn unsigned(value: i64, name: &str) -> Result<u64> {
    u64::try_from(value).or_else(|_| bail!("{name} is negative"))
}

fn id(value: i64, name: &str) -> Result<u32> {
    u32::try_from(value).or_else(|_| bail!("{name} {value} is out of range"))
}

fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0", "x").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0", "x").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0", "x").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0], "x").unwrap(), 256);
        assert_eq!(number(&[0xff; 12], "x").unwrap(), -1);
        assert!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "x").is_err());
        assert!(number(b"12x45678", "x").is_err());
    }
}
