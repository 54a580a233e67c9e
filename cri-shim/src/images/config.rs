//! The parts of an image's JSON that we read: manifest, index, image config.
//!
//! Lenient where images in the wild are: Docker writes `null` for empty lists and
//! maps, and old builders leave fields out. What we store is always the raw bytes.
use super::digest::Digest;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// Media types we write.
pub mod media {
    /// OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer as a plain tar archive.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// The index as Docker calls it.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// The manifest as Docker calls it.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
}

/// A descriptor (image-spec descriptor.md; Docker's have the same shape).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type, empty where an old writer left it out.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes.
    pub size: u64,
    /// Other places to fetch it from (foreign layers).
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Annotations, e.g. `org.opencontainers.image.ref.name` in an index.json.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Set on artifacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// The platform of an entry of an index, or of an image config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH: `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// GOOS: `linux`.
    #[serde(default)]
    pub os: String,
    /// `v7`, `v8`, `v3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An image manifest or an index: what a registry or an OCI layout answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2; 1 is Docker's schema 1, which is refused.
    #[serde(default)]
    pub schema_version: u32,
    /// Media type of this document; may be missing in OCI documents.
    #[serde(default)]
    pub media_type: String,
    /// The image config (manifests).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    /// Layers, lowest first (manifests).
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
    /// Entries of an index.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Descriptor>,
    /// Set on artifacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Manifest {
    /// Parses a manifest or an index of at most 4 MiB.
    pub fn parse(bytes: &[u8]) -> Result<Manifest> {
        if bytes.len() > 4 << 20 {
            bail!("manifest: larger than 4 MiB");
        }
        let manifest: Manifest = serde_json::from_slice(bytes).context("manifest: not valid JSON of a manifest or an index")?;
        if manifest.schema_version == 1 {
            bail!("manifest: Docker's schema 1 is not supported; push the image again with a current tool");
        }
        Ok(manifest)
    }

    /// Whether this is an index (a manifest list) rather than a manifest.
    pub fn is_index(&self) -> bool {
        self.config.is_none() && (!self.manifests.is_empty() || matches!(&*self.media_type, media::INDEX | media::DOCKER_LIST))
    }
}

impl Manifest {
    /// What kind of artifact this manifest is of; `None`: an image's (image-spec manifest.md, "Guidelines for Artifact Usage").
    pub fn artifact(&self) -> Option<&str> {
        let kind = &*self.config.as_ref()?.media_type;
        let image = matches!(kind, "" | media::CONFIG | "application/vnd.docker.container.image.v1+json" | "application/octet-stream");
        (!image).then(|| self.artifact_type.as_deref().unwrap_or(kind))
    }
}

/// Annotations of an image that has a checkpoint's files: those of checkpointctl and containerd, and of CRI-O before them.
const CHECKPOINT_ANNOTATIONS: [&str; 2] = ["org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"];

/// Whether annotations of a manifest or an index say that the image is a checkpoint of a container.
pub(super) fn is_checkpoint(manifest: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default, deserialize_with = "or_default")]
        annotations: BTreeMap<String, serde::de::IgnoredAny>,
    }
    let read = serde_json::from_slice::<Annotated>(manifest);
    read.is_ok_and(|manifest| CHECKPOINT_ANNOTATIONS.iter().any(|key| manifest.annotations.contains_key(*key)))
}

/// What of an image config is used to run a container (image-spec config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `name`, `uid`, `name:group`, `uid:gid`; empty is root.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=value` pairs.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// First words of the command line.
    #[serde(deserialize_with = "words")]
    pub entrypoint: Vec<String>,
    /// Words after the entrypoint, which a container's args replace.
    #[serde(deserialize_with = "words")]
    pub cmd: Vec<String>,
    /// Working directory, empty is `/`.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// Paths of volumes.
    #[serde(deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// Exposed ports, e.g. `80/tcp`.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// Signal name or number, empty is SIGTERM.
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// A whole image config: the platform, the run part and the diff ids.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ImageDocument {
    /// Platform the image is for.
    #[serde(flatten)]
    pub platform: Platform,
    /// RFC 3339 time of creation.
    #[serde(default)]
    pub created: Option<String>,
    /// How to run it.
    #[serde(default, deserialize_with = "or_default")]
    pub config: ImageConfig,
    /// The layers' contents.
    #[serde(default, deserialize_with = "or_default")]
    pub rootfs: Rootfs,
}

/// `rootfs` of an image config.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Rootfs {
    /// Digests of the uncompressed layers, lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

impl ImageDocument {
    /// Parses an image config of at most 8 MiB.
    pub fn parse(bytes: &[u8]) -> Result<ImageDocument> {
        if bytes.len() > 8 << 20 {
            bail!("image config: larger than 8 MiB");
        }
        serde_json::from_slice(bytes).context("image config: not valid JSON of an image config")
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// A list of words, or (Docker's shell form in old images) one string.
fn words<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        List(Vec<String>),
        One(String),
    }
    Ok(match Option::deserialize(d)? {
        Some(Words::List(list)) => list,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    })
}

/// The keys of a map of empty objects; some builders write a plain list.
fn keys<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Keys {
        Map(BTreeMap<String, serde::de::IgnoredAny>),
        List(Vec<String>),
    }
    Ok(match Option::deserialize(d)? {
        Some(Keys::Map(map)) => map.into_keys().collect(),
        Some(Keys::List(list)) => list,
        None => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_nulls_are_empty() {
        let text = br#"{"architecture":"amd64","os":"linux","config":{"User":"","Env":null,"Cmd":["sh"],"Entrypoint":null,
            "Volumes":{"/data":{}},"Labels":null,"OnBuild":null,"ExposedPorts":{"80/tcp":{}}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let document = ImageDocument::parse(text).unwrap();
        assert_eq!(document.config.cmd, ["sh"]);
        assert_eq!(document.config.volumes, ["/data"]);
        assert_eq!(document.config.exposed_ports, ["80/tcp"]);
        assert!(document.config.env.is_empty() && document.config.entrypoint.is_empty() && document.rootfs.diff_ids.is_empty());
        assert_eq!(document.platform.architecture, "amd64");
        assert!(ImageDocument::parse(b"{}").unwrap().config.user.is_empty());
        assert!(ImageDocument::parse(br#"{"config":null}"#).unwrap().config.user.is_empty());
    }

    #[test]
    fn schema_one_is_named() {
        let error = Manifest::parse(br#"{"schemaVersion":1,"name":"x"}"#).unwrap_err();
        assert!(error.to_string().contains("schema 1"), "{error}");
    }
}
