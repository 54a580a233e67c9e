//! Images made here, as the blobs and manifests of a registry.
use std::collections::BTreeMap;
use std::io::Write as _;

use rrun_cri::images::tar::{Entry, Writer};
use rrun_cri::images::{Digest, media};
use serde_json::{Value, json};

pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A repository's content.
#[derive(Clone, Default)]
pub(crate) struct Content {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// By tag and by digest: media type and bytes.
    pub(crate) manifests: BTreeMap<String, (String, Vec<u8>)>,
}

/// An image in a [`Content`].
pub(crate) struct Made {
    pub(crate) content: Content,
    /// Digest of the config.
    pub(crate) id: Digest,
    /// Digest of the manifest.
    pub(crate) manifest: Digest,
    /// Digests of the compressed layers.
    pub(crate) layers: Vec<Digest>,
}

impl Content {
    pub(crate) fn blob(&mut self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.blobs.insert(digest.to_string(), bytes.to_vec());
        digest
    }

    /// Adds a manifest under its digest and, if there is one, a tag.
    pub(crate) fn manifest(&mut self, tag: &str, media_type: &str, json: &Value) -> Digest {
        let bytes = json.to_string().into_bytes();
        let digest = Digest::of(&bytes);
        for name in [tag, digest.as_str()] {
            if !name.is_empty() {
                self.manifests.insert(name.to_owned(), (media_type.to_owned(), bytes.clone()));
            }
        }
        digest
    }
}

/// Bytes that do not compress, always the same for a seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, contents) in files {
        writer.append(&Entry::file(path.as_bytes(), contents.len() as u64), *contents).unwrap();
    }
    writer.finish().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn config(diff_ids: &[Digest]) -> Value {
    let architecture = rrun_cri::images::host_platform().architecture;
    json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sh"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

/// An image whose layers have one file of noise each, `layer-N` of so many bytes, tagged `latest`.
pub(crate) fn image(sizes: &[usize]) -> Made {
    let mut content = Content::default();
    let (mut descriptors, mut diff_ids, mut layers) = (Vec::new(), Vec::new(), Vec::new());
    for (at, size) in sizes.iter().enumerate() {
        let archive = tar(&[(&format!("layer-{at}"), &noise(at as u64 + 1, *size))]);
        diff_ids.push(Digest::of(&archive));
        let compressed = gzip(&archive);
        let digest = content.blob(&compressed);
        descriptors.push(json!({"mediaType": GZIP, "digest": digest, "size": compressed.len()}));
        layers.push(digest);
    }
    let config = config(&diff_ids).to_string().into_bytes();
    let id = content.blob(&config);
    let described = json!({"mediaType": media::CONFIG, "digest": id, "size": config.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": media::MANIFEST, "config": described, "layers": descriptors});
    let manifest = content.manifest("latest", media::MANIFEST, &manifest);
    Made { content, id, manifest, layers }
}
