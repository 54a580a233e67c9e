//! Debian's docker-registry on loopback: plain, with TLS, with passwords, and with tokens from a small token server.
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertifiedKey, KeyPair, PKCS_ECDSA_P256_SHA256, generate_simple_self_signed};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rrun_cri::images::{Credentials, Digest, media};
use serde_json::{Value, json};
use tonic::Code;

use super::fake::{Fake, Reply};
use super::image::{Content, Made, image};
use super::world::{World, basic};

/// A running registry, ended with the test.
struct Registry {
    child: Child,
    address: SocketAddr,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn installed() -> bool {
    let there = Command::new("docker-registry").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        println!("SKIP pull::real: docker-registry is not installed");
    }
    there
}

impl Registry {
    /// Serves the images in `dir/data`, with more settings in YAML.
    fn start(dir: &Path, http: &str, more: &str) -> Registry {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let data = dir.join("data");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{http}\n{more}\n",
            data.display()
        );
        let file = dir.join(format!("registry-{}.yml", address.port()));
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry").arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let registry = Registry { child, address };
        for _ in 0..600 {
            if TcpStream::connect(address).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("docker-registry does not listen");
    }

    fn image(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Pushes all of a repository, by the distribution API.
    fn push(&self, repository: &str, content: &Content) {
        for (digest, bytes) in &content.blobs {
            let (status, location) = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[]);
            assert_eq!(status, 202);
            let path = location.split_once(&self.address.to_string()).map_or(&*location, |(_, path)| path);
            let (status, _) = self.send("PUT", &format!("{path}&digest={digest}"), "application/octet-stream", bytes);
            assert_eq!(status, 201);
        }
        // An index wants its manifests to be there.
        let mut manifests: Vec<_> = content.manifests.iter().collect();
        manifests.sort_by_key(|(_, (media_type, _))| media_type == media::INDEX);
        for (name, (media_type, bytes)) in manifests {
            let (status, _) = self.send("PUT", &format!("/v2/{repository}/manifests/{name}"), media_type, bytes);
            assert_eq!(status, 201);
        }
    }

    /// A request without anything around it: the status and the Location.
    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap_or_default();
        (status, location.trim().to_owned())
    }
}

/// A folder with an image's data under `some/app`, pushed through a plain registry.
fn filled(world: &World, made: &Made) {
    let plain = Registry::start(&world.path(""), "", "");
    plain.push("some/app", &made.content);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_with_an_index() {
    if !installed() {
        return;
    }
    let mut made = image(&[100_000, 3 << 20, 10]);
    let manifest = made.content.manifests[made.manifest.as_str()].1.len();
    let host = rrun_cri::images::host_platform();
    let entry = |platform: Value| json!({"mediaType": media::MANIFEST, "digest": made.manifest, "size": manifest, "platform": platform});
    let index = json!({"schemaVersion": 2, "mediaType": media::INDEX,
        "manifests": [entry(json!({"os": "linux", "architecture": host.architecture})), entry(json!({"os": "linux", "architecture": "s390x"}))]});
    let top = made.content.manifest("many", media::INDEX, &index);
    let world = World::new();
    let registry = Registry::start(&world.path(""), "", "");
    registry.push("some/app", &made.content);
    let pulled = world.pull(&registry.image("some/app:many")).await.unwrap();
    assert_eq!(pulled.id, made.id.to_string());
    let digests = [&top, &made.manifest].map(|digest| registry.image(&format!("some/app@{digest}")));
    assert_eq!(pulled.repo_digests, digests);
    let again = world.pull(&digests[1]).await.unwrap();
    assert_eq!(again.id, made.id.to_string());
    let error = world.pull(&registry.image("some/app:absent")).await.unwrap_err();
    assert!(error.code() == Code::NotFound && error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls() {
    if !installed() {
        return;
    }
    let (world, made) = (World::new(), image(&[1000]));
    filled(&world, &made);
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(world.path("cert.pem"), cert.pem()).unwrap();
    std::fs::write(world.path("key.pem"), signing_key.serialize_pem()).unwrap();
    let files = format!("  tls:\n    certificate: {}\n    key: {}", world.path("cert.pem").display(), world.path("key.pem").display());
    let registry = Registry::start(&world.path(""), &files, "");
    let (host, name) = (registry.address.to_string(), registry.image("some/app:latest"));
    world.hosts(&host, &format!("server = \"https://{host}\""));
    let error = world.pull(&name).await.unwrap_err();
    let text = error.to_string();
    assert!(error.code() == Code::FailedPrecondition && text.contains("certificate") && text.contains(&host), "{text}");
    world.assert_untouched();
    for setting in [format!("ca = {:?}", world.path("cert.pem")), "skip_verify = true".to_owned()] {
        world.hosts(&host, &format!("server = \"https://{host}\"\n{setting}"));
        assert_eq!(world.pull(&name).await.unwrap().id, made.id.to_string(), "{setting}");
        world.images().remove(&name).unwrap();
    }
    // Docker's layout: the certificate alone in the folder.
    let folder = world.path("certs.d").join(&host);
    std::fs::remove_file(folder.join("hosts.toml")).unwrap();
    std::fs::copy(world.path("cert.pem"), folder.join("ca.crt")).unwrap();
    world.pull(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords() {
    if !installed() {
        return;
    }
    let (world, made) = (World::new(), image(&[1000]));
    filled(&world, &made);
    // htpasswd -Bbn me hunter2
    let Ok(line) = Command::new("htpasswd").args(["-Bbn", "me", "hunter2"]).output() else {
        println!("SKIP pull::real: htpasswd is not installed (apache2-utils)");
        return;
    };
    std::fs::write(world.path("htpasswd"), line.stdout).unwrap();
    let auth = format!("auth:\n  htpasswd:\n    realm: here\n    path: {}", world.path("htpasswd").display());
    let registry = Registry::start(&world.path(""), "", &auth);
    let name = registry.image("some/app:latest");
    for credentials in [Credentials::Anonymous, basic("me", "wrong password")] {
        let error = world.pull_as(&name, credentials).await.unwrap_err();
        let text = error.to_string();
        assert!(error.code() == Code::Unauthenticated && text.contains(&registry.address.to_string()), "{text}");
        assert!(!text.contains("wrong password"), "{text}");
    }
    world.assert_untouched();
    let pulled = world.pull_as(&name, basic("me", "hunter2")).await.unwrap();
    assert_eq!(pulled.id, made.id.to_string());
}

/// A token as docker-registry wants it: a JWT signed by the key of a certificate in its bundle.
fn token(key: &KeyPair, certificate: &[u8], repository: &str) -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(certificate)]});
    let access = json!([{"type": "repository", "name": repository, "actions": ["pull"]}]);
    let claims =
        json!({"iss": "issuer", "aud": "here", "sub": "me", "jti": "1", "iat": now, "nbf": now - 60, "exp": now + 600, "access": access});
    let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der(), &random).unwrap();
    let signature = pair.sign(&random, signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens() {
    if !installed() {
        return;
    }
    let (world, made) = (World::new(), image(&[1000, 2000]));
    filled(&world, &made);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["issuer".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(world.path("bundle.pem"), certificate.pem()).unwrap();
    let der = certificate.der().to_vec();
    let issuer = Fake::start(Content::default(), move |asked| {
        let known = asked.header("authorization") == "Basic bWU6aHVudGVyMg==" || asked.body.contains("refresh_token=refresh");
        if !known {
            return Reply::status(401);
        }
        assert!(format!("{}{}", asked.path, asked.body).contains("scope=repository%3Asome%2Fapp%3Apull"), "{asked:?}");
        Reply::json(200, &json!({"access_token": token(&key, &der, "some/app"), "expires_in": 600}).to_string())
    });
    let auth = format!(
        "auth:\n  token:\n    realm: http://{}/token\n    service: here\n    issuer: issuer\n    rootcertbundle: {}",
        issuer.address,
        world.path("bundle.pem").display()
    );
    let registry = Registry::start(&world.path(""), "", &auth);
    let name = registry.image("some/app:latest");
    for credentials in [Credentials::Anonymous, basic("me", "wrong")] {
        let error = world.pull_as(&name, credentials).await.unwrap_err();
        let text = error.to_string();
        assert!(error.code() == Code::Unauthenticated && text.contains(&issuer.address.to_string()), "{text}");
    }
    world.assert_untouched();
    for credentials in [basic("me", "hunter2"), Credentials::Identity("refresh".to_owned())] {
        let before = issuer.log().len();
        assert_eq!(world.pull_as(&name, credentials).await.unwrap().id, made.id.to_string());
        assert_eq!(issuer.log().len(), before + 1, "one token for manifest, config and layers");
        world.images().remove(&name).unwrap();
    }
    let ready_made = Digest::of(b"not a token").to_string();
    let error = world.pull_as(&name, Credentials::Registry(ready_made)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error}");
}
