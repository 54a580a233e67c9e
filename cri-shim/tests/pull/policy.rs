//! policy.json: what is signed by our key is taken, anything else is refused with CRI's prefix.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rrun_cri::images::{Digest, media};
use serde_json::{Value, json};
use tonic::Code;

use super::fake::{Fake, Reply};
use super::image::{Content, image};
use super::world::World;

struct Key(EcdsaKeyPair);

impl Key {
    fn new() -> Key {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        Key(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
    }

    fn pem(&self) -> String {
        let head =
            [0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3, 0x42, 0];
        let der: Vec<u8> = head.iter().chain(self.0.public_key().as_ref()).copied().collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    /// Adds cosign's signature of a manifest to a repository.
    fn sign(&self, content: &mut Content, digest: &Digest, name: &str, claimed: &Digest) {
        let payload = json!({"critical": {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": claimed},
            "type": "cosign container image signature"}, "optional": null})
        .to_string();
        let signature = self.0.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
        let blob = content.blob(payload.as_bytes());
        let layer = json!({"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": blob, "size": payload.len(),
            "annotations": {"dev.cosignproject.cosign/signature": STANDARD.encode(signature)}});
        let config = content.blob(b"{}");
        let manifest = json!({"schemaVersion": 2, "config": {"mediaType": media::CONFIG, "digest": config, "size": 2}, "layers": [layer]});
        content.manifest(&format!("{}.sig", digest.as_str().replace(':', "-")), media::MANIFEST, &manifest);
    }
}

fn set_policy(world: &World, requirement: &Value) {
    std::fs::write(world.path("policy.json"), json!({"default": [requirement]}).to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures() {
    let (key, other) = (Key::new(), Key::new());
    let world = World::new();
    std::fs::write(world.path("key.pub"), key.pem()).unwrap();
    set_policy(&world, &json!({"type": "sigstoreSigned", "keyPath": world.path("key.pub"), "signedIdentity": {"type": "matchRepository"}}));
    let made = image(&[1000]);
    type Sign<'a> = &'a (dyn Fn(&mut Content, &str) + Sync);
    let elsewhere = Digest::of(b"another image");
    let cases: [(Sign<'_>, Option<&str>); 5] = [
        (&|content, name| key.sign(content, &made.manifest, name, &made.manifest), None),
        (&|_, _| (), Some("it is not signed")),
        (
            &|content, name| other.sign(content, &made.manifest, name, &made.manifest),
            Some("none of its signatures is by a key of the policy"),
        ),
        (&|content, name| key.sign(content, &made.manifest, name, &elsewhere), Some("it is for sha256:")),
        (&|content, _| key.sign(content, &made.manifest, "quay.io/other", &made.manifest), Some("the name \"quay.io/other\"")),
    ];
    for (sign, words) in cases {
        let mut content = made.content.clone();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // The name is signed before the server has its port: another name stands for it.
        let name = format!("signed-{port}.test/app");
        sign(&mut content, &name);
        let fake = Fake::start(content, |_| Reply::Good);
        world.hosts(&format!("signed-{port}.test"), &format!("server = \"http://{}\"", fake.address));
        let result = world.pull(&format!("{name}:latest")).await;
        match words {
            None => {
                assert_eq!(result.unwrap().id, made.id.to_string());
                world.images().remove(&name).unwrap();
            }
            Some(words) => {
                let error = result.unwrap_err();
                let text = error.to_string();
                assert!(text.starts_with("SignatureValidationFailed: ") && text.contains(words), "{text}");
                assert_eq!(error.code(), Code::PermissionDenied);
                world.assert_untouched();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rejected_is_not_pulled() {
    let made = image(&[1000]);
    let (world, fake) = (World::new(), Fake::start(made.content, |_| Reply::Good));
    for (requirement, words) in [
        (json!({"type": "reject"}), "SignatureValidationFailed: "),
        (json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}), "GPG signatures (signedBy), which is not supported"),
        (json!({"type": "sigstoreSigned", "fulcio": {}}), "sigstore signatures by fulcio"),
    ] {
        set_policy(&world, &requirement);
        let text = world.pull(&fake.image("x")).await.unwrap_err().to_string();
        assert!(text.starts_with("SignatureValidationFailed: ") && text.contains(words), "{text}");
    }
    std::fs::write(world.path("policy.json"), "{").unwrap();
    let text = world.pull(&fake.image("x")).await.unwrap_err().to_string();
    assert!(text.contains("policy.json: not JSON"), "{text}");
    world.assert_untouched();
    set_policy(&world, &json!({"type": "insecureAcceptAnything"}));
    world.pull(&fake.image("x")).await.unwrap();
}
