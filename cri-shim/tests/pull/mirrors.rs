//! hosts.toml: mirrors first, the registry itself last, in the middle of a blob too, and credentials for the registry alone.
use super::fake::{Fake, Reply};
use super::image::{Content, config, gzip, image, noise, tar};
use super::world::{World, basic};
use rrun_cri::images::media;
use serde_json::json;

const LARGE: usize = 6 << 20;

/// `registry.test`'s images come from these, the last of which stands for itself.
fn served_by(world: &World, fakes: &[&Fake]) {
    let (server, mirrors) = fakes.split_last().unwrap();
    let mirrors: String = mirrors.iter().map(|fake| format!("[host.\"http://{}\"]\n", fake.address)).collect();
    world.hosts("registry.test", &format!("server = \"http://{}\"\n{mirrors}", server.address));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_that_has_it_is_enough() {
    let made = image(&[1000]);
    let (mirror, server) = (Fake::start(made.content.clone(), |_| Reply::Good), Fake::start(made.content.clone(), |_| Reply::Good));
    let world = World::new();
    served_by(&world, &[&mirror, &server]);
    let pulled = world.pull("registry.test/some/app:latest").await.unwrap();
    assert_eq!(pulled.repo_tags, ["registry.test/some/app:latest"]);
    assert!(server.log().is_empty());
    assert!(mirror.log().iter().all(|asked| asked.path.ends_with("?ns=registry.test")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_mirror_is_made_good_by_the_next() {
    let made = image(&[LARGE, 1000]);
    let layer = made.layers[0].to_string();
    let mut wrong = made.content.clone();
    let bytes = wrong.blobs.get_mut(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let html = || Reply::Say(200, vec![("content-type", "text/html".into())], b"<html>".to_vec());
    for (mirror, what) in [
        (Fake::start(Content::default(), |_| Reply::Good), "has nothing"),
        (Fake::start(Content::default(), |_| Reply::status(503)), "is ill"),
        (Fake::start(Content::default(), move |_| html()), "is no registry"),
        (Fake::start(Content::default(), |_| Reply::status(401)), "wants to know who asks"),
        (Fake::start(wrong, |_| Reply::Good), "has a wrong layer"),
        (
            Fake::start(made.content.clone(), |asked| if asked.path.contains("/blobs/") { Reply::status(404) } else { Reply::Good }),
            "has no blobs",
        ),
    ] {
        let server = Fake::start(made.content.clone(), |_| Reply::Good);
        let world = World::new();
        served_by(&world, &[&mirror, &server]);
        let pulled = world.pull("registry.test/x").await.unwrap_or_else(|error| panic!("a mirror that {what}: {error}"));
        assert_eq!(std::fs::read(pulled.layers[0].join("layer-0")).unwrap(), noise(1, LARGE), "{what}");
        assert!(!mirror.log().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_dies_in_the_middle_of_a_blob() {
    let made = image(&[LARGE]);
    let layer = made.layers[0].to_string();
    let mirror = Fake::start(made.content.clone(), {
        let layer = layer.clone();
        move |asked| match (asked.path.contains(&layer), asked.before) {
            (true, 0) => Reply::Cut(4 << 20),
            (true, _) => Reply::status(500),
            _ => Reply::Good,
        }
    });
    let server = Fake::start(made.content.clone(), |_| Reply::Good);
    let world = World::new();
    served_by(&world, &[&mirror, &server]);
    world.pull("registry.test/x").await.unwrap();
    let asked: Vec<_> = server.log().iter().map(|asked| asked.header("range").to_owned()).collect();
    assert_eq!(asked, [format!("bytes={}-", 4 << 20)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_for_the_registry_alone() {
    let made = image(&[1000]);
    let challenge = |asked: &super::fake::Asked| match asked.header("authorization") {
        "Basic bWU6aHVudGVyMg==" => Reply::Good,
        _ => Reply::Say(401, vec![("www-authenticate", "Basic realm=\"x\"".into())], Vec::new()),
    };
    let (mirror, server) = (Fake::start(made.content.clone(), challenge), Fake::start(made.content.clone(), challenge));
    let world = World::new();
    served_by(&world, &[&mirror, &server]);
    world.pull_as("registry.test/x", basic("me", "hunter2")).await.unwrap();
    assert!(mirror.log().iter().all(|asked| asked.header("authorization").is_empty()) && !mirror.log().is_empty());
    assert!(server.log().iter().any(|asked| !asked.header("authorization").is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_tells_of_the_registry_first() {
    let (mirror, server) = (Fake::start(Content::default(), |_| Reply::status(503)), Fake::start(Content::default(), |_| Reply::Good));
    let world = World::new();
    served_by(&world, &[&mirror, &server]);
    let error = world.pull("registry.test/x").await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.code(), tonic::Code::NotFound, "{text}");
    assert!(
        text.contains(&format!("{}: x: 404", server.address)) && text.contains(&format!("mirror {}: x: 503", mirror.address)),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_asked_for_once_and_anew_when_refused() {
    let made = image(&[1000, 2000]);
    let tokens = Fake::start(Content::default(), |asked| Reply::json(200, &format!(r#"{{"token":"t{}","expires_in":300}}"#, asked.before)));
    let realm = tokens.address;
    let server = Fake::start(made.content.clone(), move |asked| match asked.header("authorization") {
        // The first token ends with the manifest.
        "Bearer t0" if asked.path.contains("/manifests/") => Reply::Good,
        "Bearer t1" => Reply::Good,
        _ => {
            let challenge = format!("Bearer realm=\"http://{realm}/token\",service=\"here\",scope=\"repository:x:pull\"");
            Reply::Say(401, vec![("www-authenticate", challenge)], Vec::new())
        }
    });
    let world = World::new();
    world.pull_as(&server.image("x"), basic("me", "hunter2")).await.unwrap();
    let asked = tokens.log();
    assert_eq!(asked.iter().map(|a| a.path.as_str()).collect::<Vec<_>>(), ["/token?service=here&scope=repository%3Ax%3Apull"; 2]);
    assert!(asked.iter().all(|a| a.header("authorization") == "Basic bWU6aHVudGVyMg=="));
    // Another pull of the same finds the token, and one with other credentials does not.
    world.pull_as(&server.image("x"), basic("me", "hunter2")).await.unwrap();
    assert_eq!(tokens.log().len(), 2);
    let refresh = rrun_cri::images::Credentials::Identity("refresh me".to_owned());
    world.pull_as(&server.image("x"), refresh).await.unwrap();
    let last = tokens.log().pop().unwrap();
    assert!(
        last.method == "POST" && last.body.contains("grant_type=refresh_token") && last.body.contains("refresh_token=refresh%20me"),
        "{last:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_comes_from_its_url() {
    let archive = tar(&[("foreign", b"from elsewhere")]);
    let layer = gzip(&archive);
    let elsewhere = Fake::start(Content::default(), {
        let layer = layer.clone();
        move |asked| if asked.path == "/layer" { Reply::Say(200, Vec::new(), layer.clone()) } else { Reply::Good }
    });
    let mut content = Content::default();
    let diff_id = rrun_cri::images::Digest::of(&archive);
    let config = config(&[diff_id]).to_string().into_bytes();
    let id = content.blob(&config);
    let manifest = json!({"schemaVersion": 2, "config": {"mediaType": media::CONFIG, "digest": id, "size": config.len()},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": rrun_cri::images::Digest::of(&layer),
            "size": layer.len(), "urls": ["ftp://no", format!("http://{}/gone", elsewhere.address), format!("http://{}/layer", elsewhere.address)]}]});
    content.manifest("latest", media::MANIFEST, &manifest);
    let server = Fake::start(content, |_| Reply::Good);
    let world = World::new();
    let pulled = world.pull_as(&server.image("x"), basic("me", "hunter2")).await.unwrap();
    assert_eq!(std::fs::read(pulled.layers[0].join("foreign")).unwrap(), b"from elsewhere");
    assert!(elsewhere.log().iter().all(|asked| asked.header("authorization").is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_token_and_a_credential_file_are_used_as_they_are() {
    let made = image(&[1000]);
    let server = Fake::start(made.content.clone(), |asked| match asked.header("authorization") {
        // Basic: "me:hunter2", as the file has it.
        "Bearer ready-made" | "Basic bWU6aHVudGVyMg==" => Reply::Good,
        given => {
            let challenge = if given.starts_with("Bearer") { "Bearer realm=\"http://127.0.0.1:1/token\"" } else { "Basic realm=\"here\"" };
            Reply::Say(401, vec![("www-authenticate", challenge.to_owned())], Vec::new())
        }
    });
    let world = World::new();
    let name = server.image("x");
    let error = world.pull_as(&name, basic("me", "wrong")).await.unwrap_err();
    assert!(error.code() == tonic::Code::Unauthenticated && !error.to_string().contains("wrong"), "{error}");
    let reference = rrun_cri::images::Reference::parse(&name).unwrap();
    let file = world.path("auth.json");
    std::fs::write(&file, json!({"auths": {server.address.to_string(): {"auth": "bWU6aHVudGVyMg=="}}}).to_string()).unwrap();
    let found = rrun_cri::images::credentials(&reference, Some(&file)).unwrap();
    let image = world.pull_as(&name, found).await.unwrap();
    world.images().remove(&image.id).unwrap();
    drop(image);
    let token = rrun_cri::images::Credentials::Registry("ready-made".to_owned());
    assert_eq!(world.pull_as(&name, token).await.unwrap().id, made.id.as_str());
}
