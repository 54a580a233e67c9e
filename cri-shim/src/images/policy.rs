//! Which images are taken from whom: containers' policy.json (containers-policy.json(5)) with `reject`, `insecureAcceptAnything`
//! and `sigstoreSigned` by key. [`super::pull`] asks before an image's manifest is believed. A requirement that is not
//! supported rejects; without a file everything is accepted.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde_json::Value;

use super::config::Manifest;
use super::digest::Digest;
use super::failure::{Failure, Kind};
use super::reference::Reference;
use super::registry::{Document, Repository};

/// What an image must meet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Accept,
    Reject,
    Signed(Signed),
    Unsupported(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Signed {
    /// Uncompressed P-256 points; a signature by any one will do.
    keys: Vec<Vec<u8>>,
    identity: Identity,
}

/// Which name the signature must be for (`signedIdentity`).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    RepoDigestOrExact,
    Exact,
    Repository,
    ExactReference(String),
    ExactRepository(String),
    Remap { prefix: String, signed: String },
}

/// The requirements that apply to one image.
#[derive(Debug)]
pub(super) struct Policy {
    requirements: Vec<Requirement>,
}

/// Largest signature payload.
const PAYLOAD_LIMIT: usize = 1 << 20;
/// Most signatures of one image that are looked at.
const SIGNATURES: usize = 64;

impl Policy {
    /// What the file says about an image. No file: everything is accepted.
    pub(super) fn load(file: &Path, reference: &Reference) -> Result<Policy> {
        let text = match std::fs::read(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Policy { requirements: vec![Requirement::Accept] }),
            text => text.with_context(|| format!("policy {}", file.display()))?,
        };
        parse(&text, reference).with_context(|| format!("policy {}", file.display()))
    }

    /// Whether the image may be used: `top` is what its name stands for. Signatures are fetched from its repository.
    pub(super) async fn check(&self, repository: &Repository, reference: &Reference, top: &Document) -> Result<(), Failure> {
        let rejected = |why: &str| Failure::new(Kind::Signature, format!("{}: {why}", reference.repository()));
        for requirement in &self.requirements {
            match requirement {
                Requirement::Accept => {}
                Requirement::Reject => return Err(rejected("the policy rejects it")),
                Requirement::Unsupported(what) => return Err(rejected(&format!("the policy wants {what}, which is not supported"))),
                Requirement::Signed(signed) => signed.check(repository, reference, &top.digest).await?,
            }
        }
        Ok(())
    }
}

impl Signed {
    async fn check(&self, repository: &Repository, reference: &Reference, digest: &Digest) -> Result<(), Failure> {
        let rejected = |why: &str| Failure::new(Kind::Signature, format!("{}: {digest}: {why}", reference.repository()));
        let tag = format!("{}.sig", digest.as_str().replace(':', "-"));
        let signatures = match repository.tagged(&tag).await {
            Ok(signatures) => signatures,
            Err(failure) if failure.kind == Kind::NotFound => return Err(rejected("it is not signed")),
            Err(failure) => return Err(failure),
        };
        let manifest = Manifest::parse(&signatures.bytes).map_err(|error| rejected(&format!("its signatures: {error:#}")))?;
        let mut why = "none of its signatures is by a key of the policy".to_owned();
        for layer in manifest.layers.iter().take(SIGNATURES) {
            if layer.media_type != "application/vnd.dev.cosign.simplesigning.v1+json" {
                continue;
            }
            let Some(signature) = layer.annotations.get("dev.cosignproject.cosign/signature") else { continue };
            let Ok(signature) = STANDARD.decode(signature) else { continue };
            let payload = repository.content(layer, PAYLOAD_LIMIT).await?;
            let by_us = |key: &Vec<u8>| UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(&payload, &signature).is_ok();
            if !self.keys.iter().any(by_us) {
                continue;
            }
            match self.accepts(&payload, reference, digest) {
                Ok(()) => return Ok(()),
                Err(error) => why = format!("its signature: {error:#}"),
            }
        }
        Err(rejected(&why))
    }

    /// Whether a payload (simple signing, containers-signature(5)) whose signature holds is about this image.
    fn accepts(&self, payload: &[u8], reference: &Reference, digest: &Digest) -> Result<()> {
        let json: Value = serde_json::from_slice(payload).context("its payload is not JSON")?;
        let critical = &json["critical"];
        ensure!(critical["type"] == "cosign container image signature", "its payload is of another type");
        let signed = critical["image"]["docker-manifest-digest"].as_str().unwrap_or_default();
        ensure!(signed == digest.as_str(), "it is for {}", signed.escape_default());
        let name = critical["identity"]["docker-reference"].as_str().unwrap_or_default();
        ensure!(self.identity.matches(name, reference), "it is for the name {:?}, which the policy does not take for this one", name);
        Ok(())
    }
}

impl Identity {
    fn matches(&self, signed: &str, reference: &Reference) -> bool {
        let Ok(parsed) = Reference::parse(signed) else { return false };
        let repository = parsed.repository() == reference.repository();
        // A signed name without a tag is of the repository, not of `latest`.
        let written = signed.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
        let exact = |wanted: &Reference| written && parsed.to_string() == wanted.to_string();
        match self {
            Identity::Repository => repository,
            Identity::Exact => reference.digest.is_none() && exact(reference),
            Identity::RepoDigestOrExact if reference.digest.is_some() => repository,
            Identity::RepoDigestOrExact => exact(reference),
            Identity::ExactReference(name) => Reference::parse(name).is_ok_and(|name| exact(&name)),
            Identity::ExactRepository(name) => Reference::parse(name).is_ok_and(|name| name.repository() == parsed.repository()),
            Identity::Remap { prefix, signed: other } => {
                let name = reference.to_string();
                let rest = name.strip_prefix(prefix.as_str()).filter(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
                let mapped = rest.map_or(name.clone(), |rest| format!("{other}{rest}"));
                Reference::parse(&mapped).is_ok_and(|mapped| Identity::RepoDigestOrExact.matches(signed, &mapped))
            }
        }
    }
}

fn parse(text: &[u8], reference: &Reference) -> Result<Policy> {
    let json: Value = serde_json::from_slice(text).context("not JSON")?;
    let object = json.as_object().context("want an object")?;
    if let Some(unknown) = object.keys().find(|key| !matches!(&***key, "default" | "transports")) {
        bail!("unknown field {unknown:?}");
    }
    let scopes = json["transports"].get("docker").and_then(Value::as_object);
    let found = scopes.and_then(|map| names(reference).into_iter().find_map(|name| map.get(&name)));
    let list = found.or_else(|| json.get("default")).context("default: missing")?;
    let list = list.as_array().filter(|list| !list.is_empty()).context("want a list with at least one requirement")?;
    Ok(Policy { requirements: list.iter().map(requirement).collect::<Result<_>>()? })
}

/// The scopes of an image, the most specific first.
fn names(reference: &Reference) -> Vec<String> {
    let mut all = vec![reference.to_string()];
    let mut name = reference.repository();
    all.push(name.clone());
    while let Some(at) = name.rfind('/') {
        name.truncate(at);
        all.push(name.clone());
    }
    let mut host = reference.domain.as_str();
    while let Some((_, rest)) = host.split_once('.') {
        all.push(format!("*.{rest}"));
        host = rest;
    }
    all.push(String::new());
    all
}

fn requirement(json: &Value) -> Result<Requirement> {
    match json["type"].as_str().context("a requirement without a type")? {
        "insecureAcceptAnything" => Ok(Requirement::Accept),
        "reject" => Ok(Requirement::Reject),
        "sigstoreSigned" => signed(json),
        "signedBy" => Ok(Requirement::Unsupported("GPG signatures (signedBy)".to_owned())),
        other => bail!("requirement {other:?} is not known"),
    }
}

fn signed(json: &Value) -> Result<Requirement> {
    for keyless in ["fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyData", "rekorPublicKeyPaths", "rekorPublicKeyDatas"] {
        if json.get(keyless).is_some() {
            return Ok(Requirement::Unsupported(format!("sigstore signatures by {keyless}")));
        }
    }
    let text = |value: &Value| value.as_str().map(str::to_owned).context("sigstoreSigned: want strings");
    let list = |name: &str| match json.get(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(value) => text(value).map(|one| vec![one]),
    };
    let mut keys = Vec::new();
    for path in list("keyPath")?.into_iter().chain(list("keyPaths")?).map(PathBuf::from) {
        let pem = std::fs::read(&path).with_context(|| format!("key {}", path.display()))?;
        keys.push(public_key(&pem).with_context(|| format!("key {}", path.display()))?);
    }
    for data in list("keyData")?.into_iter().chain(list("keyDatas")?) {
        let pem = STANDARD.decode(data).context("keyData: want base64 of a PEM key")?;
        keys.push(public_key(&pem).context("keyData")?);
    }
    ensure!(!keys.is_empty(), "sigstoreSigned: no keyPath or keyData");
    Ok(Requirement::Signed(Signed { keys, identity: identity(json.get("signedIdentity"))? }))
}

fn identity(json: Option<&Value>) -> Result<Identity> {
    let Some(json) = json else { return Ok(Identity::RepoDigestOrExact) };
    let field = |name: &str| json[name].as_str().map(str::to_owned).with_context(|| format!("signedIdentity: {name}: want a string"));
    Ok(match json["type"].as_str().unwrap_or_default() {
        "matchRepoDigestOrExact" => Identity::RepoDigestOrExact,
        "matchExact" => Identity::Exact,
        "matchRepository" => Identity::Repository,
        "exactReference" => Identity::ExactReference(field("dockerReference")?),
        "exactRepository" => Identity::ExactRepository(field("dockerRepository")?),
        "remapIdentity" => Identity::Remap { prefix: field("prefix")?, signed: field("signedPrefix")? },
        other => bail!("signedIdentity: {other:?} is not known"),
    })
}

/// What stands before the point in a P-256 key's SubjectPublicKeyInfo (RFC 5480).
const P256: [u8; 26] =
    [0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7, 3, 0x42, 0];

/// The point of a P-256 key in PEM.
fn public_key(pem: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(pem).context("want a key in PEM")?;
    let body = text.split_once("-----BEGIN PUBLIC KEY-----").and_then(|(_, rest)| rest.split_once("-----END PUBLIC KEY-----"));
    let (body, _) = body.context("want a key in PEM (BEGIN PUBLIC KEY)")?;
    let der = STANDARD.decode(body.split_whitespace().collect::<String>()).context("want base64 between the lines of PEM")?;
    let point = der.strip_prefix(&P256).filter(|point| point.len() == 65 && point[0] == 4);
    Ok(point.context("only ECDSA keys on the curve P-256 are supported")?.to_vec())
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    use super::*;

    fn reference(text: &str) -> Reference {
        Reference::parse(text).unwrap()
    }

    #[test]
    fn the_most_specific_scope_counts() {
        let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
        let reject = r#"[{"type":"reject"}]"#;
        let text = format!(
            r#"{{"default":{reject},"transports":{{"docker-daemon":{{"":{accept}}},"docker":{{
                "quay.io/team":{accept},"quay.io/team/bad":{reject},"quay.io/team/bad:good":{accept},"*.example.com":{accept}}}}}}}"#
        );
        for (image, wanted) in [
            ("busybox", Requirement::Reject),
            ("quay.io/other/x", Requirement::Reject),
            ("quay.io/team/x", Requirement::Accept),
            ("quay.io/team/bad:1", Requirement::Reject),
            ("quay.io/team/bad:good", Requirement::Accept),
            ("a.b.example.com/x", Requirement::Accept),
            ("example.com/x", Requirement::Reject),
        ] {
            assert_eq!(parse(text.as_bytes(), &reference(image)).unwrap().requirements, [wanted], "{image}");
        }
        for wrong in ["{}", r#"{"default":[]}"#, r#"{"default":[{"type":"x"}]}"#, r#"{"default":[{"type":"reject"}],"extra":1}"#] {
            assert!(parse(wrong.as_bytes(), &reference("busybox")).is_err(), "{wrong}");
        }
        let gpg = parse(br#"{"default":[{"type":"signedBy","keyType":"GPGKeys"}]}"#, &reference("busybox")).unwrap();
        assert!(matches!(gpg.requirements[..], [Requirement::Unsupported(_)]));
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let der: Vec<u8> = P256.iter().chain(pair.public_key().as_ref()).copied().collect();
        let pem = |der: &[u8]| format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        assert_eq!(public_key(pem(&der).as_bytes()).unwrap(), pair.public_key().as_ref());
        for wrong in [pem(&der[1..]), pem(b"rsa"), "-----BEGIN PRIVATE KEY-----".to_owned(), String::new()] {
            assert!(public_key(wrong.as_bytes()).is_err());
        }
    }

    #[test]
    fn names_that_signatures_are_for() {
        let hex = "a".repeat(64);
        let pinned = format!("quay.io/a/b@sha256:{hex}");
        let remap = Identity::Remap { prefix: "mirror.io/quay".into(), signed: "quay.io".into() };
        for (identity, signed, image, wanted) in [
            (Identity::RepoDigestOrExact, "quay.io/a/b:1", "quay.io/a/b:1", true),
            (Identity::RepoDigestOrExact, "quay.io/a/b", "quay.io/a/b:latest", false),
            (Identity::RepoDigestOrExact, "quay.io/a/b", &pinned, true),
            (Identity::RepoDigestOrExact, "quay.io/a/c", &pinned, false),
            (Identity::Exact, "quay.io/a/b:1", &pinned, false),
            (Identity::Repository, "quay.io/a/b", "quay.io/a/b:7", true),
            (Identity::Repository, "quay.io/a/c", "quay.io/a/b:7", false),
            (Identity::ExactReference("quay.io/a/b:1".into()), "quay.io/a/b:1", "other.io/x:2", true),
            (Identity::ExactRepository("quay.io/a/b".into()), "quay.io/a/b", "other.io/x:2", true),
            (remap.clone(), "quay.io/a/b:1", "mirror.io/quay/a/b:1", true),
            (remap, "quay.io/a/b:1", "mirror.io/quayside/a/b:1", false),
        ] {
            assert_eq!(identity.matches(signed, &reference(image)), wanted, "{identity:?} {signed} {image}");
        }
    }
}
