//! Content digests (`sha256:<hex>`) and a reader that computes one on the way.
//!
//! Called by everything under `images/`. A [`Digest`] is always well formed: an
//! algorithm we can compute and lower-case hex of its length.
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;
use std::io::{self, Read};

/// A digest as written in manifests: `sha256:` and 64 hex digits, or `sha512:` and 128
/// (OCI image-spec, descriptor.md, "Digests").
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Checks the text of a digest.
    pub fn parse(text: &str) -> Result<Digest> {
        let wanted = match text.split_once(':') {
            Some(("sha256", hex)) => (hex, 64),
            Some(("sha512", hex)) => (hex, 128),
            _ => bail!("digest {text:?}: want sha256:<64 hex digits> or sha512:<128 hex digits>"),
        };
        if wanted.0.len() != wanted.1 || !wanted.0.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            bail!("digest {text:?}: want {} lower-case hex digits after the colon", wanted.1);
        }
        Ok(Digest(text.to_owned()))
    }

    /// The sha256 digest of some bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }

    /// `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hex digits alone: a file name.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// A hasher that computes digests of this one's algorithm.
    pub fn hasher(&self) -> Hasher {
        if self.0.starts_with("sha512:") { Hasher(Algorithm::Sha512(Box::new(Sha512::new()))) } else { Hasher::sha256() }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Digest> {
        Digest::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

/// A running digest.
#[derive(Clone)]
pub struct Hasher(Algorithm);

#[derive(Clone)]
enum Algorithm {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// An empty sha256.
    pub fn sha256() -> Hasher {
        Hasher(Algorithm::Sha256(Sha256::new()))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Algorithm::Sha256(state) => state.update(bytes),
            Algorithm::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of what was added so far.
    pub fn finish(&self) -> Digest {
        match &self.0 {
            Algorithm::Sha256(state) => Digest(format!("sha256:{}", hex(&state.clone().finalize()))),
            Algorithm::Sha512(state) => Digest(format!("sha512:{}", hex(&state.as_ref().clone().finalize()))),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)] as char, DIGITS[usize::from(b & 15)] as char]).collect()
}

/// A reader that hashes and counts what passes.
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    /// Wraps `inner`; `hasher` may already hold the bytes before it.
    pub fn new(inner: R, hasher: Hasher) -> HashingReader<R> {
        HashingReader { inner, hasher, count: 0 }
    }

    /// The digest of the bytes that passed.
    pub fn digest(&self) -> Digest {
        self.hasher.finish()
    }

    /// How many bytes passed.
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digest_of_nothing() {
        assert_eq!(Digest::of(b"").as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn malformed_digests_are_refused() {
        for text in ["", "sha256:", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", &format!("sha256:{}", "A".repeat(64))] {
            assert!(Digest::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reader_hashes_what_passes() {
        let mut reader = HashingReader::new(&b"abc"[..], Hasher::sha256());
        std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
        assert_eq!(reader.digest(), Digest::of(b"abc"));
        assert_eq!(reader.count(), 3);
    }
}
