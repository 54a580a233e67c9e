//! PAX extended headers (pax(1), "pax Header Block"): `LENGTH KEY=VALUE\n` records.
//!
//! Called by `tar::reader`. Only the keys that change what is extracted are kept.
use super::MAX_SPARSE;
use anyhow::{Context, Result, bail};

/// What a PAX header, or the global one before it, says of an entry.
#[derive(Clone, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Sparse,
}

/// GNU's sparse files in PAX formats 0.0, 0.1 and 1.0.
#[derive(Clone, Default)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Vec<(u64, u64)>,
    pending: Option<u64>,
}

impl Pax {
    /// Adds the records of one header block.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            // GNU tar pads nothing, but zeros after the last record are seen in the wild.
            if bytes.iter().all(|b| *b == 0) {
                break;
            }
            let space = bytes.iter().take(20).position(|b| *b == b' ').context("PAX record without a length")?;
            let length = usize::try_from(decimal(&bytes[..space], "PAX record length")?)?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                bail!("PAX record of length {length} does not fit its header");
            }
            let record = &bytes[space + 1..length - 1];
            bytes = &bytes[length..];
            let equals = record.iter().position(|b| *b == b'=').context("PAX record without '='")?;
            self.set(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"path" => self.path = some(value),
            b"linkpath" => self.link = some(value),
            b"size" => self.size = Some(decimal(value, "PAX size")?),
            b"uid" => self.uid = Some(u32::try_from(decimal(value, "PAX uid")?).context("PAX uid")?),
            b"gid" => self.gid = Some(u32::try_from(decimal(value, "PAX gid")?).context("PAX gid")?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value, "PAX sparse version")?),
            b"GNU.sparse.name" => self.sparse.name = some(value),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(decimal(value, "PAX sparse size")?),
            b"GNU.sparse.offset" => self.sparse.pending = Some(decimal(value, "PAX sparse offset")?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.pending.take().context("PAX sparse map: length without an offset")?;
                self.sparse.push(offset, decimal(value, "PAX sparse length")?)?;
            }
            b"GNU.sparse.map" => self.sparse.read_map(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    let name = decode(name);
                    self.xattrs.retain(|(known, _)| *known != name);
                    self.xattrs.push((name, value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

impl Sparse {
    fn read_map(&mut self, value: &[u8]) -> Result<()> {
        self.map.clear();
        if value.is_empty() {
            return Ok(());
        }
        let mut numbers = value.split(|b| *b == b',');
        while let Some(offset) = numbers.next() {
            let length = numbers.next().context("PAX sparse map: offset without a length")?;
            self.push(decimal(offset, "PAX sparse map")?, decimal(length, "PAX sparse map")?)?;
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<()> {
        if self.map.len() >= MAX_SPARSE {
            bail!("sparse map of more than {MAX_SPARSE} pieces");
        }
        self.map.push((offset, length));
        Ok(())
    }
}

/// An empty value takes the key back (POSIX).
fn some(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

/// GNU tar writes `=` and `%` within an attribute's name as `%3D` and `%25`.
fn decode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = name;
    while let [first, after @ ..] = rest {
        (rest, _) = match after {
            [b'3', b'D', after @ ..] if *first == b'%' => (after, out.push(b'=')),
            [b'2', b'5', after @ ..] if *first == b'%' => (after, out.push(b'%')),
            _ => (after, out.push(*first)),
        };
    }
    out
}

/// Decimal digits without sign.
pub(super) fn decimal(text: &[u8], what: &str) -> Result<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        bail!("{what}: {:?} is not a number", String::from_utf8_lossy(text));
    }
    std::str::from_utf8(text)?.parse().with_context(|| format!("{what} is out of range"))
}

/// Seconds with a decimal fraction, cut at nanoseconds; may be negative.
fn time(text: &[u8]) -> Result<(i64, u32)> {
    let (negative, digits) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = match digits.iter().position(|b| *b == b'.') {
        Some(at) => (&digits[..at], &digits[at + 1..]),
        None => (digits, &digits[..0]),
    };
    let seconds = i64::try_from(decimal(whole, "PAX mtime")?).context("PAX mtime")?;
    let mut nanos = 0;
    for i in 0..9 {
        let digit = fraction.get(i).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            bail!("PAX mtime: {:?} is not a time", String::from_utf8_lossy(text));
        }
        nanos = nanos * 10 + u32::from(digit - b'0');
    }
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time(b"12").unwrap(), (12, 0));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"1.1234567899").unwrap(), (1, 123_456_789));
        assert!(time(b"1.x").is_err() && time(b"").is_err());
    }

    #[test]
    fn records() {
        let mut pax = Pax::default();
        pax.read(b"12 path=a=b\n17 SCHILY.xattr.x\n").unwrap_err();
        pax.read(b"12 path=a=b\n21 SCHILY.xattr.u=\n\0\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a=b"[..]));
        assert_eq!(pax.xattrs, [(b"u".to_vec(), b"\n\0".to_vec())]);
        for bad in [&b"0 a=b\n"[..], b"999 a=b\n", b"6 a=b", b"a", b"5 ab\n", b"99999999999999999999999 a=b\n"] {
            assert!(Pax::default().read(bad).is_err(), "{bad:?}");
        }
    }
}
