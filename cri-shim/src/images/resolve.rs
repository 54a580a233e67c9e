//! From an image name to the manifest and config of this machine's platform. [`super::pull`] calls it. Everything is checked
//! against the digest of what named it, and small: no layer is touched here.
use anyhow::Result;

use super::config::{Descriptor, ImageDocument, Manifest, Platform};
use super::digest::Digest;
use super::failure::{Failure, Kind};
use super::reference::Reference;
use super::registry::{Document, Repository};

/// Largest image config.
pub(super) const CONFIG_LIMIT: usize = 8 << 20;

/// An image that is known down to its layers' digests.
#[derive(Clone, Debug)]
pub(super) struct Resolved {
    /// What the name stands for: an index, or the manifest itself.
    pub(super) top: Document,
    /// The manifest of this platform; the same document where there is no index.
    pub(super) manifest: Document,
    /// The image config's bytes; their digest is the image id. Nothing of an artifact.
    pub(super) config: Vec<u8>,
}

/// What the name stands for, before anything of it is believed but its digest: what a policy is asked about.
pub(super) async fn top(repository: &Repository, reference: &Reference) -> Result<Document, Failure> {
    match (&reference.digest, &reference.tag) {
        (Some(digest), _) => repository.manifest(digest, None).await,
        (None, tag) => repository.tagged(tag.as_deref().unwrap_or("latest")).await,
    }
}

/// The manifest for `platform` beneath `top`, and its config. `known` has documents that need not be fetched, by digest.
pub(super) async fn resolve(
    repository: &Repository,
    top: Document,
    platform: &Platform,
    known: &(dyn Fn(&Digest) -> Option<Vec<u8>> + Sync),
) -> Result<Resolved, Failure> {
    let mut manifest = top.clone();
    let mut parsed = parse(&manifest)?;
    // An index may name another index; a chain of them is nobody's image.
    for _ in 0..3 {
        if !parsed.is_index() {
            break;
        }
        let chosen = choose(&parsed.manifests, platform).ok_or_else(|| no_platform(&parsed.manifests, platform))?.clone();
        manifest = match known(&chosen.digest) {
            Some(bytes) => Document { bytes, digest: chosen.digest, media_type: chosen.media_type },
            None => repository.manifest(&chosen.digest, Some(chosen.size)).await?,
        };
        parsed = parse(&manifest)?;
    }
    let Some(descriptor) = parsed.config.clone().filter(|_| !parsed.is_index()) else {
        return Err(unsupported(&manifest.digest, "neither an image manifest nor an index of some"));
    };
    if parsed.artifact().is_some() {
        return Ok(Resolved { top, manifest, config: Vec::new() });
    }
    let config = match known(&descriptor.digest) {
        Some(bytes) => bytes,
        None => repository.content(&descriptor, CONFIG_LIMIT).await?,
    };
    let document = ImageDocument::parse(&config).map_err(|error| unsupported(&descriptor.digest, &format!("{error:#}")))?;
    let layers = parsed.layers.len();
    if document.rootfs.diff_ids.len() != layers {
        let text = format!("{layers} layers, and its config has {} diff ids", document.rootfs.diff_ids.len());
        return Err(Failure::new(Kind::Corrupt, format!("manifest {}: {text}", manifest.digest)));
    }
    if rank(&document.platform, platform).is_none() {
        return Err(unsupported(&manifest.digest, &format!("is for {}, this machine is {}", show(&document.platform), show(platform))));
    }
    Ok(Resolved { top, manifest, config })
}

/// The platform of this machine, with the highest variant it runs.
pub fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", Some(x86_level())),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "x86" => ("386", None),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
        "powerpc64" => ("ppc64", None),
        other => (other, None),
    };
    Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: variant.map(str::to_owned) }
}

/// The x86-64 microarchitecture level of this processor.
#[cfg(target_arch = "x86_64")]
fn x86_level() -> &'static str {
    use std::arch::is_x86_feature_detected as has;
    let two = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let three = two && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma") && has!("lzcnt") && has!("movbe");
    let four = three && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (two, three, four) {
        (_, _, true) => "v4",
        (_, true, _) => "v3",
        (true, _, _) => "v2",
        _ => "v1",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn x86_level() -> &'static str {
    "v1"
}

fn parse(document: &Document) -> Result<Manifest, Failure> {
    if document.media_type.starts_with("application/vnd.docker.distribution.manifest.v1+") {
        return Err(unsupported(&document.digest, "Docker's schema 1, which is not supported: push the image again with a current tool"));
    }
    let manifest = Manifest::parse(&document.bytes).map_err(|error| unsupported(&document.digest, &format!("{error:#}")))?;
    // What reads as both could be one thing for us and another for whoever signed it.
    if manifest.config.is_some() && !manifest.manifests.is_empty() {
        return Err(unsupported(&document.digest, "both a manifest and an index"));
    }
    Ok(manifest)
}

fn unsupported(digest: &Digest, what: &str) -> Failure {
    Failure::new(Kind::Unsupported, format!("{digest}: {what}"))
}

/// The entry that fits best: the highest variant that runs here, the first of equals; one without a platform if it is alone.
fn choose<'a>(entries: &'a [Descriptor], host: &Platform) -> Option<&'a Descriptor> {
    let fitting = entries.iter().filter_map(|entry| Some((rank(entry.platform.as_ref()?, host)?, entry)));
    let best = fitting.fold(None, |best: Option<(u32, &Descriptor)>, new| match best {
        Some(best) if best.0 >= new.0 => Some(best),
        _ => Some(new),
    });
    match (best, entries) {
        (Some((_, entry)), _) => Some(entry),
        (None, [only]) if only.platform.is_none() => Some(only),
        _ => None,
    }
}

/// How well an image for `image` runs on `host`; more is better.
fn rank(image: &Platform, host: &Platform) -> Option<u32> {
    let level = |platform: &Platform, least: u32| match platform.variant.as_deref().unwrap_or("") {
        "" => Some(least),
        text => text.strip_prefix('v').unwrap_or(text).parse::<u32>().ok(),
    };
    let architecture = match &*image.architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "armhf" => "arm",
        other => other,
    };
    if architecture != host.architecture || image.os != host.os {
        return None;
    }
    // What an image without a variant needs.
    let least = match architecture {
        "arm64" => 8,
        "arm" => 7,
        _ => 1,
    };
    let (wanted, have) = (level(image, least)?, level(host, least)?);
    (wanted <= have).then_some(wanted)
}

fn show(platform: &Platform) -> String {
    let parts = [Some(&platform.os), Some(&platform.architecture), platform.variant.as_ref()];
    parts.into_iter().flatten().map(|part| part.escape_default().to_string()).collect::<Vec<_>>().join("/")
}

fn no_platform(entries: &[Descriptor], host: &Platform) -> Failure {
    let known = |platform: &&Platform| platform.os != "unknown";
    let mut there: Vec<String> = entries.iter().filter_map(|entry| entry.platform.as_ref()).filter(known).map(show).collect();
    there.sort();
    there.dedup();
    there.truncate(20);
    Failure::new(Kind::NotFound, format!("no image for {} in the index, which has {}", show(host), there.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
    }

    fn chosen(host: &str, entries: &[&str]) -> Option<usize> {
        let entries: Vec<Descriptor> = entries
            .iter()
            .enumerate()
            .map(|(at, text)| Descriptor {
                media_type: String::new(),
                digest: Digest::of(&[at as u8]),
                size: at as u64,
                urls: Vec::new(),
                annotations: Default::default(),
                platform: (!text.is_empty()).then(|| platform(text)),
                artifact_type: None,
            })
            .collect();
        choose(&entries, &platform(host)).map(|entry| entry.size as usize)
    }

    #[test]
    fn the_best_platform_is_chosen() {
        for (host, entries, wanted) in [
            ("linux/amd64/v3", &["linux/arm64", "linux/amd64", "linux/amd64/v2", "linux/amd64/v4", "linux/amd64/v3"][..], Some(4)),
            ("linux/amd64/v2", &["linux/amd64/v3", "linux/amd64"], Some(1)),
            ("linux/amd64/v4", &["windows/amd64", "unknown/unknown"], None),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm64/v8"], Some(1)),
            ("linux/arm64/v8", &["linux/arm/v7", "linux/arm64"], Some(1)),
            ("linux/arm64/v8", &["linux/arm64/v9", "linux/arm64/v8"], Some(1)),
            ("linux/amd64/v1", &["linux/x86_64", "linux/amd64"], Some(0)),
            ("linux/amd64/v1", &[""], Some(0)),
            ("linux/amd64/v1", &["", ""], None),
        ] {
            assert_eq!(chosen(host, entries), wanted, "{host} {entries:?}");
        }
    }

    #[test]
    fn what_is_no_image_is_named() {
        let document = |text: &str, media_type: &str| Document {
            bytes: text.as_bytes().to_vec(),
            digest: Digest::of(text.as_bytes()),
            media_type: media_type.to_owned(),
        };
        let schema = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        let error = parse(&document("{}", schema)).unwrap_err();
        assert!(error.kind == Kind::Unsupported && error.text.contains("schema 1"), "{error}");
        let hex = "a".repeat(64);
        let both = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{hex}","size":1}},"manifests":[{{"digest":"sha256:{hex}","size":1}}]}}"#
        );
        assert!(parse(&document(&both, "")).unwrap_err().text.contains("both"));
        assert!(no_platform(&[], &platform("linux/amd64/v3")).text.contains("linux/amd64/v3"));
    }
}
