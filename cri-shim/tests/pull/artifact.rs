//! OCI artifacts: each layer is a file, named by its title, for volumes.
use rrun_cri::images::media;
use serde_json::{Value, json};
use tonic::Code;

use super::fake::{Fake, Reply};
use super::image::{Content, gzip, noise, tar};
use super::world::World;

const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const KIND: &str = "application/vnd.example.model.v1";

/// Adds an artifact of these files (name, contents) under a tag.
fn artifact(content: &mut Content, tag: &str, files: &[(Option<&str>, &[u8])]) {
    let config = content.blob(b"{}");
    let layer = |content: &mut Content, title: Option<&str>, bytes: &[u8]| {
        let annotations = title.map_or(json!({}), |title| json!({"org.opencontainers.image.title": title}));
        json!({"mediaType": "application/octet-stream", "digest": content.blob(bytes), "size": bytes.len(), "annotations": annotations})
    };
    let layers: Vec<Value> = files.iter().map(|(title, bytes)| layer(content, *title, bytes)).collect();
    let manifest = json!({"schemaVersion": 2, "artifactType": KIND,
        "config": {"mediaType": EMPTY, "digest": config, "size": 2}, "layers": layers});
    content.manifest(tag, media::MANIFEST, &manifest);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_by_their_titles() {
    let mut content = Content::default();
    // What looks like a layer is a file all the same.
    let (weights, packed) = (noise(1, 5 << 20), gzip(&tar(&[("inside", b"x")])));
    artifact(
        &mut content,
        "model",
        &[(Some("weights.bin"), &weights), (Some("docs/de/README"), b"lies mich"), (Some("a.tar.gz"), &packed), (None, b"nameless")],
    );
    artifact(&mut content, "other", &[(Some("weights.bin"), &weights), (Some("new"), b"")]);
    let (mut world, fake) = (World::new(), Fake::start(content, |_| Reply::Good));
    let image = world.pull(&fake.image("x:model")).await.unwrap();
    assert!(image.is_artifact() && image.id == image.manifest.as_str() && image.layers.len() == 4);
    let read = |at: usize, name: &str| std::fs::read(image.layers[at].join(name)).unwrap();
    assert!(read(0, "weights.bin") == weights && read(2, "a.tar.gz") == packed);
    assert_eq!(read(1, "docs/de/README"), b"lies mich");
    assert_eq!(read(3, rrun_cri::images::Digest::of(b"nameless").hex()), b"nameless");
    assert!(image.size >= weights.len() as u64 && image.size < weights.len() as u64 + 100_000);
    // Both have the same config; they are two images all the same, and share what is the same.
    let other = world.pull(&fake.image("x:other")).await.unwrap();
    assert!(other.id != image.id && other.layers[0] == image.layers[0]);
    assert_eq!(std::fs::read(other.layers[1].join("new")).unwrap(), b"");
    let id = image.id.clone();
    drop((image, other));
    world.restart();
    let again = world.images().lookup(&id).unwrap();
    assert!(again.is_artifact() && again.repo_tags == [fake.image("x:model")]);
    drop(again);
    world.images().remove(&id).unwrap();
    assert_eq!(world.images().list().len(), 1);
    assert_eq!(std::fs::read(world.images().list()[0].layers[0].join("weights.bin")).unwrap().len(), weights.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused() {
    let mut content = Content::default();
    artifact(&mut content, "none", &[]);
    for (tag, title) in [("climbs", "../../etc/cron.d/x"), ("whiteout", "a/.wh.b"), ("folder", "a/"), ("dots", "..")] {
        artifact(&mut content, tag, &[(Some(title), b"x")]);
    }
    let (world, fake) = (World::new(), Fake::start(content, |_| Reply::Good));
    for (tag, words) in [
        ("none", "has no files"),
        ("climbs", "path leaves the layer by '..'"),
        ("whiteout", "no name for a file"),
        ("folder", "no name for a file"),
        ("dots", "path leaves the layer by '..'"),
    ] {
        let error = world.pull(&fake.image(&format!("x:{tag}"))).await.unwrap_err();
        assert!(error.to_string().contains(words) && error.code() != Code::Unavailable, "{tag}: {error}");
    }
    world.assert_untouched();
}
