//! Image names in their canonical form, as kubelet and containerd write them.
//!
//! `busybox` is `docker.io/library/busybox:latest`; a name with both a tag and a
//! digest keeps the digest alone, as containerd's CRI does.
use super::digest::Digest;
use anyhow::{Context, Result, bail};
use std::fmt;

/// A parsed image name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Registry host with its port: `docker.io`, `localhost:5000`.
    pub domain: String,
    /// Repository below it: `library/busybox`.
    pub path: String,
    /// Tag, `latest` where the name has neither tag nor digest.
    pub tag: Option<String>,
    /// Digest of the manifest or index.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses and normalises a name (the grammar of distribution/reference).
    pub fn parse(text: &str) -> Result<Reference> {
        let invalid = || format!("image name {text:?}");
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            bail!("image name {text:?}: 64 hex digits are an image id, not a name");
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest).with_context(invalid)?)),
            None => (text, None),
        };
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[slash..].find(':') {
            Some(at) => (&rest[..slash + at], Some(&rest[slash + at + 1..])),
            None => (rest, None),
        };
        let (domain, path) = split_domain(name);
        check_domain(&domain).with_context(invalid)?;
        check_path(&path).with_context(invalid)?;
        if domain.len() + path.len() > 255 {
            bail!("image name {text:?}: longer than 255 bytes");
        }
        if let Some(tag) = tag {
            check_tag(tag).with_context(invalid)?;
        }
        let tag = match (&digest, tag) {
            (Some(_), _) => None,
            (None, tag) => Some(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Reference { domain, path, tag, digest })
    }

    /// `docker.io/library/busybox`: the name without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same repository by digest: an entry of CRI's repo_digests.
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}/{}@{digest}", self.domain, self.path)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) => {
            (first, rest)
        }
        _ => ("docker.io", name),
    };
    let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
    let path = if domain == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
    (domain.to_owned(), path)
}

fn check_domain(domain: &str) -> Result<()> {
    let host = match domain.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                bail!("{domain:?} is not a registry host");
            }
            return check_port(port, domain);
        }
        None => domain.split_once(':').map_or(domain, |(host, _)| host),
    };
    let label =
        |l: &str| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-') && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !host.split('.').all(label) {
        bail!("{domain:?} is not a registry host");
    }
    check_port(&domain[host.len()..], domain)
}

fn check_port(port: &str, domain: &str) -> Result<()> {
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(()),
        Some(digits) if digits.parse::<u16>().is_ok() && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => bail!("{domain:?} has no valid port"),
    }
}

/// Components of lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn check_path(path: &str) -> Result<()> {
    for component in path.split('/') {
        let bytes = component.as_bytes();
        let mut separators = 0;
        for (i, b) in bytes.iter().enumerate() {
            let alphanumeric = matches!(b, b'a'..=b'z' | b'0'..=b'9');
            let separator = match b {
                b'-' => separators == 0 || bytes[i - 1] == b'-',
                b'_' => separators == 0 || (separators == 1 && bytes[i - 1] == b'_'),
                b'.' => separators == 0,
                _ => false,
            };
            if !alphanumeric && (!separator || i == 0 || i + 1 == bytes.len()) {
                bail!("the repository is written in lower-case letters, digits and single separators, not {component:?}");
            }
            separators = if alphanumeric { 0 } else { separators + 1 };
        }
        if bytes.is_empty() {
            bail!("the repository has an empty part");
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<()> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = tag.bytes().next().is_some_and(word);
    if !first || tag.len() > 128 || !tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        bail!("{tag:?} is not a tag");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    #[test]
    fn short_names_become_canonical() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (short, long) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("foo/bar", "docker.io/foo/bar:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("quay.io/a/b__c-d---e.f", "quay.io/a/b__c-d---e.f:latest"),
        ] {
            assert_eq!(canonical(short), long);
        }
        assert_eq!(canonical(&format!("busybox@{digest}")), format!("docker.io/library/busybox@{digest}"));
        assert_eq!(canonical(&format!("busybox:1@{digest}")), format!("docker.io/library/busybox@{digest}"));
    }

    #[test]
    fn bad_names_are_refused() {
        let hex = "a".repeat(64);
        for text in [
            "",
            "Busybox",
            "busybox:",
            "busybox:-x",
            "a//b",
            "/a",
            "a/",
            "a@sha256:1",
            "x y",
            "a..b",
            "a___b",
            "-a",
            "host.:5000/a",
            "localhost:99999/a",
            "localhost:/a",
            "../etc",
            "a/../b",
            &hex,
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }
}
