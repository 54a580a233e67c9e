//! Every way in which a registry can be wrong: the code, the words, and a store that is as before.
use std::time::Duration;

use rrun_cri::images::media;
use serde_json::json;
use tonic::Code;

use super::fake::{Fake, Reply};
use super::image::{Content, GZIP, config, image};
use super::world::{World, basic};

/// Pulls `x` from a registry with a rule; wants a failure with that code and all the words, and nothing in the store.
async fn refused(content: Content, rule: impl Fn(&super::fake::Asked) -> Reply + Send + Sync + 'static, code: Code, words: &[&str]) {
    let (world, fake) = (World::new(), Fake::start(content, rule));
    let name = fake.image("some/app:latest");
    let error = world.pull_as(&name, basic("me", "hunter2")).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.code(), code, "{text}");
    let address = fake.address.to_string();
    for word in words.iter().chain([&name.as_str(), &address.as_str()]) {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert!(!text.contains("hunter2") && !text.contains('\n'), "{text}");
    assert_eq!(text.starts_with("RegistryUnavailable: "), code == Code::Unavailable, "{text}");
    world.assert_untouched();
}

fn of_blob(path: &str, digest: &str) -> bool {
    path.ends_with(digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_are_not_what_they_should_be() {
    let made = image(&[100_000]);
    let layer = made.layers[0].to_string();
    let good = made.content.blobs[&layer].clone();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let digest = layer.clone();
    let octets = |body: Vec<u8>| Reply::Say(200, Vec::new(), body);
    let answer = move |body: Vec<u8>| {
        let digest = digest.clone();
        move |asked: &super::fake::Asked| if of_blob(&asked.path, &digest) { octets(body.clone()) } else { Reply::Good }
    };
    refused(made.content.clone(), answer(flipped), Code::Unknown, &[&layer, "what came has the digest sha256:"]).await;
    refused(made.content.clone(), answer(good[..50_000].to_vec()), Code::Unknown, &[&layer, "50000 bytes there"]).await;
    refused(made.content.clone(), answer([&good[..], b"more"].concat()), Code::Unknown, &[&layer, "bytes there"]).await;
    let digest = layer.clone();
    let html = move |asked: &super::fake::Asked| match of_blob(&asked.path, &digest) {
        true => Reply::Say(200, vec![("content-type", "text/html; charset=utf-8".into())], b"<html>log in</html>".to_vec()),
        false => Reply::Good,
    };
    refused(made.content.clone(), html, Code::Unknown, &[&layer, "an HTML page"]).await;
    let digest = layer.clone();
    let cut = move |asked: &super::fake::Asked| if of_blob(&asked.path, &digest) { Reply::Cut(1000) } else { Reply::Good };
    refused(made.content, cut, Code::Unavailable, &["connection"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_no_archives_or_have_another_diff_id() {
    let made = image(&[1000]);
    for (bytes, words) in [(b"not an archive at all".to_vec(), "layer sha256:"), (super::image::gzip(&super::image::tar(&[])), "diff id")] {
        let mut content = Content::default();
        let (layer, size) = (content.blob(&bytes), bytes.len());
        let config_bytes = config(std::slice::from_ref(&made.id)).to_string().into_bytes();
        let id = content.blob(&config_bytes);
        let manifest = json!({"schemaVersion": 2, "config": {"mediaType": media::CONFIG, "digest": id, "size": config_bytes.len()},
            "layers": [{"mediaType": GZIP, "digest": layer, "size": size}]});
        content.manifest("latest", media::MANIFEST, &manifest);
        let (world, fake) = (World::new(), Fake::start(content, |_| Reply::Good));
        let error = world.pull(&fake.image("x")).await.unwrap_err();
        assert_eq!(error.code(), Code::Unknown, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        world.assert_untouched();
        assert!(world.partials().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_are_not_what_they_should_be() {
    let made = image(&[1000]);
    let say = |media_type: &'static str, body: Vec<u8>| {
        move |asked: &super::fake::Asked| match asked.path.contains("/manifests/") {
            true => Reply::Say(200, vec![("content-type", media_type.to_owned())], body.clone()),
            false => Reply::Good,
        }
    };
    let none = Content::default;
    refused(none(), say("text/html", b"<!DOCTYPE html>".to_vec()), Code::Unknown, &["an HTML page", "is this a registry?"]).await;
    refused(none(), say(media::MANIFEST, vec![b' '; (4 << 20) + 1]), Code::Unknown, &["more than 4194304 bytes"]).await;
    let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let (world, fake) = (World::new(), Fake::start(none(), say(schema1, br#"{"schemaVersion":1}"#.to_vec())));
    let error = world.pull(&fake.image("old")).await.unwrap_err();
    assert!(error.code() == Code::FailedPrecondition && error.to_string().contains("schema 1"), "{error}");
    // Asked for by digest, given something else; and a digest in the header that the bytes do not have.
    let other = say(media::MANIFEST, b"{}".to_vec());
    let fake = Fake::start(none(), other);
    let error = world.pull(&fake.image(&format!("x@{}", made.manifest))).await.unwrap_err();
    assert!(error.code() == Code::Unknown && error.to_string().contains("what came has the digest"), "{error}");
    let lied = made.manifest.to_string();
    let header = move |_: &super::fake::Asked| Reply::Say(200, vec![("docker-content-digest", lied.clone())], b"{}".to_vec());
    refused(none(), header, Code::Unknown, &["what came has the digest"]).await;
    world.assert_untouched();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_for_others() {
    let made = image(&[1000]);
    let mut content = made.content.clone();
    let entry =
        json!({"mediaType": media::MANIFEST, "digest": made.manifest, "size": 1, "platform": {"os": "linux", "architecture": "s390x"}});
    content.manifest("elsewhere", media::INDEX, &json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": [entry]}));
    let artifact = json!({"schemaVersion": 2, "artifactType": "application/wasm",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": made.id, "size": 2}, "layers": []});
    content.manifest("artifact", media::MANIFEST, &artifact);
    let (world, fake) = (World::new(), Fake::start(content, |_| Reply::Good));
    for (tag, code, words) in [
        ("elsewhere", Code::NotFound, "which has linux/s390x"),
        ("artifact", Code::FailedPrecondition, "artifact (application/wasm): has no files"),
        ("absent", Code::NotFound, "MANIFEST_UNKNOWN"),
    ] {
        let error = world.pull(&fake.image(&format!("x:{tag}"))).await.unwrap_err();
        assert!(error.code() == code && error.to_string().contains(words), "{tag}: {error}");
    }
    world.assert_untouched();
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses() {
    let made = image(&[1000]);
    let denied = r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
    for (reply, code, words) in [
        (Reply::status(401), Code::Unauthenticated, "401"),
        (Reply::json(403, denied), Code::PermissionDenied, "403 Forbidden: DENIED: requested access"),
        (Reply::status(404), Code::NotFound, "404"),
        (Reply::Say(429, vec![("retry-after", "3600".into())], Vec::new()), Code::ResourceExhausted, "429"),
        (Reply::status(500), Code::Unavailable, "500"),
        (Reply::status(503), Code::Unavailable, "503"),
        (Reply::status(418), Code::Unknown, "418"),
        (Reply::Say(302, vec![("location", "/v2/some/app/manifests/latest".into())], Vec::new()), Code::Unknown, "more than 10 redirects"),
    ] {
        refused(made.content.clone(), move |_| reply.clone(), code, &[words]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_busy_for_a_moment() {
    let made = image(&[1000]);
    for reply in [Reply::status(503), Reply::Say(429, vec![("retry-after", "1".into())], Vec::new()), Reply::Cut(0)] {
        let (world, fake) =
            (World::new(), Fake::start(made.content.clone(), move |asked| if asked.before < 2 { reply.clone() } else { Reply::Good }));
        assert_eq!(world.pull(&fake.image("x")).await.unwrap().id, made.id.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_drips_or_stalls() {
    let made = image(&[1000]);
    let drip =
        |asked: &super::fake::Asked| if asked.path.contains("/blobs/") { Reply::Drip(Duration::from_millis(50)) } else { Reply::Good };
    refused(made.content.clone(), drip, Code::Unavailable, &["only ", "bytes in"]).await;
    refused(made.content.clone(), |_| Reply::Stall(10), Code::Unavailable, &["no byte in"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there() {
    let world = World::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (image, words) in [
        (format!("127.0.0.1:{port}/x:1"), "refused".to_owned()),
        ("registry.invalid:5000/x:1".to_owned(), "registry.invalid:5000".to_owned()),
    ] {
        let error = world.pull(&image).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), Code::Unavailable, "{text}");
        assert!(text.starts_with(&format!("RegistryUnavailable: pull {image}: ")) && text.contains(&words), "{text}");
    }
    world.assert_untouched();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_takes_no_credentials_along() {
    let made = image(&[1000]);
    let store = Fake::start(made.content.clone(), |_| Reply::Good);
    let to = store.address;
    let fake = Fake::start(made.content.clone(), move |asked| match (asked.header("authorization"), asked.path.contains("/blobs/")) {
        ("", _) => Reply::Say(401, vec![("www-authenticate", "Basic realm=\"x\"".into())], Vec::new()),
        (_, true) => Reply::Say(307, vec![("location", format!("http://{to}{}?X-Signature=secret", asked.path))], Vec::new()),
        _ => Reply::Good,
    });
    let world = World::new();
    world.hosts(&fake.address.to_string(), &format!("[host.\"http://{}\".header]\nx-key = \"hunter2\"", fake.address));
    world.pull_as(&fake.image("x"), basic("me", "hunter2")).await.unwrap();
    assert!(!store.log().is_empty());
    for asked in store.log() {
        assert!(!asked.headers.contains_key("authorization") && !asked.headers.contains_key("x-key"), "{asked:?}");
    }
    assert!(fake.log().iter().all(|asked| asked.header("x-key") == "hunter2"));
    // Where the place it leads to says no, the signature in its URL is not told.
    let closed = Fake::start(Content::default(), |_| Reply::status(403));
    let to = closed.address;
    let fake = Fake::start(made.content.clone(), move |asked| match asked.path.contains("/blobs/") {
        true => Reply::Say(307, vec![("location", format!("http://{to}{}?X-Signature=secret", asked.path))], Vec::new()),
        false => Reply::Good,
    });
    let text = World::new().pull(&fake.image("x")).await.unwrap_err().to_string();
    assert!(text.contains(&to.to_string()) && text.contains("403") && !text.contains("secret"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_wrong() {
    let world = World::new();
    world.hosts("quay.io", "server = 7");
    let error = world.pull("quay.io/x").await.unwrap_err();
    assert!(error.code() == Code::FailedPrecondition && error.to_string().contains("hosts.toml: server: want a string"), "{error}");
    world.hosts("quay.io", "[host.\"https://127.0.0.1:1\"]\nca = \"missing.pem\"\n");
    let error = world.pull("quay.io/x").await.unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");
    world.assert_untouched();
}
