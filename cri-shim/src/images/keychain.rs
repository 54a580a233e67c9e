//! Credential files for the command line: containers' auth.json and Docker's config.json with its credential helpers.
//! `rrun-cri pull` calls it; the daemon gets its credentials from kubelet.
use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::auth::{Credentials, host_of};
use super::reference::Reference;

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: HashMap<String, Entry>,
    cred_helpers: HashMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// The credentials that this user has for an image: those of `file`, else of the first of the usual files that has any.
pub fn credentials(reference: &Reference, file: Option<&Path>) -> Result<Credentials> {
    if let Some(file) = file {
        return lookup(file, reference);
    }
    for file in usual_files() {
        if !file.exists() {
            continue;
        }
        let found = lookup(&file, reference)?;
        if found != Credentials::Anonymous {
            return Ok(found);
        }
    }
    Ok(Credentials::Anonymous)
}

fn usual_files() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(file) = var("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let uid = rustix::process::getuid().as_raw();
    let mut files = vec![
        var("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{uid}").into()).join("containers/auth.json"),
        format!("/run/containers/{uid}/auth.json").into(),
    ];
    let home = var("HOME");
    files.extend(var("XDG_CONFIG_HOME").or_else(|| Some(home.clone()?.join(".config"))).map(|dir| dir.join("containers/auth.json")));
    files.extend(var("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker"))).map(|dir| dir.join("config.json")));
    files
}

fn lookup(file: &Path, reference: &Reference) -> Result<Credentials> {
    // serde's messages quote what they do not like, and that may be a password: only the place is told.
    let text = std::fs::read(file).with_context(|| format!("credential file {}", file.display()))?;
    let parsed: Result<File, _> = serde_json::from_slice(&text);
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(error) => bail!("credential file {}: line {}: not as Docker or Podman write it", file.display(), error.line()),
    };
    let helper = parsed.cred_helpers.iter().find(|(key, _)| host_of(key) == reference.domain).map(|(_, helper)| &**helper);
    if let Some(helper) = helper {
        return ask_helper(helper, &reference.domain);
    }
    if let Some(entry) = most_specific(&parsed.auths, reference) {
        return Credentials::from_parts(&entry.registrytoken, &entry.identitytoken, &entry.username, &entry.password, &entry.auth)
            .with_context(|| format!("credential file {}: entry of {}", file.display(), reference.domain));
    }
    if parsed.creds_store.is_empty() { Ok(Credentials::Anonymous) } else { ask_helper(&parsed.creds_store, &reference.domain) }
}

/// `host/a/b` before `host/a` before `host`; Docker's keys are URLs with `/v1/` behind the host.
fn most_specific<'a>(auths: &'a HashMap<String, Entry>, reference: &Reference) -> Option<&'a Entry> {
    let mut name = reference.repository();
    loop {
        if let Some(entry) = auths.get(&name) {
            return Some(entry);
        }
        match name.rfind('/') {
            Some(at) => name.truncate(at),
            None => break,
        }
    }
    let plain = |key: &str| {
        let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
        matches!(rest.split_once('/').map_or("", |(_, path)| path), "" | "v1" | "v1/" | "v2" | "v2/")
    };
    auths.iter().find(|(key, _)| plain(key) && host_of(key) == reference.domain).map(|(_, entry)| entry)
}

/// `docker-credential-NAME get`: the server on its input, JSON on its output.
fn ask_helper(name: &str, domain: &str) -> Result<Credentials> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    ensure!(!name.contains('/'), "credential helper {name:?}: a name, not a path");
    let program = format!("docker-credential-{name}");
    let server = if domain == "docker.io" { "https://index.docker.io/v1/" } else { domain };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| program.clone())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(server.as_bytes()).with_context(|| program.clone())?;
    }
    let output = child.wait_with_output().with_context(|| program.clone())?;
    if !output.status.success() {
        // It has none for this server, which it says with a status.
        return Ok(Credentials::Anonymous);
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(&output.stdout) else {
        bail!("{program}: its answer is not JSON with Username and Secret")
    };
    if answer.username == "<token>" {
        return Ok(Credentials::Identity(answer.secret));
    }
    Ok(Credentials::Basic { username: answer.username, password: answer.secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_entry_counts() {
        let file = std::env::temp_dir().join(format!("rrun-keychain-{}.json", std::process::id()));
        let text = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"aHViOmh1Yg=="},
            "quay.io":{"username":"all","password":"x"},
            "quay.io/team":{"auth":"dGVhbTp4"},
            "quay.io/team/app":{"identitytoken":"refresh","auth":""},
            "localhost:5000":{"registrytoken":"t"}}}"#;
        std::fs::write(&file, text).unwrap();
        let of = |image: &str| credentials(&Reference::parse(image).unwrap(), Some(&file)).unwrap();
        let basic = |username: &str, password: &str| Credentials::Basic { username: username.into(), password: password.into() };
        assert!(of("busybox") == basic("hub", "hub"));
        assert!(of("quay.io/other/x") == basic("all", "x"));
        assert!(of("quay.io/team/x") == basic("team", "x"));
        assert!(of("quay.io/team/app:v1") == Credentials::Identity("refresh".into()));
        assert!(of("localhost:5000/x") == Credentials::Registry("t".into()));
        assert!(of("localhost:5001/x") == Credentials::Anonymous);
        std::fs::write(&file, r#"{"auths":{"a":"secret"}}"#).unwrap();
        let error = format!("{:#}", credentials(&Reference::parse("a/b").unwrap(), Some(&file)).unwrap_err());
        assert!(error.contains("line 1") && !error.contains("secret"), "{error}");
        std::fs::remove_file(file).unwrap();
    }
}
