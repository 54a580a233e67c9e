//! Who we are to a registry: credentials from kubelet or a credential file, the challenge of a 401, and the tokens got for it.
//! Called by [`super::registry`]. No secret is printed, not by `Debug` either, and none goes anywhere but to the registry and
//! the token server it names.
use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, StatusCode, Uri};
use rrun_proto::v1::AuthConfig;
use serde::Deserialize;

use super::digest::Digest;
use super::failure::{Failure, Kind};
use super::hosts::{Endpoint, Tls, is_loopback};
use super::http::{Ask, Clients, Flow, shown};
use crate::error::Error;

/// What we show a registry.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// Nothing.
    #[default]
    Anonymous,
    /// A user's name and password.
    Basic {
        /// The name.
        username: String,
        /// The password or access token.
        password: String,
    },
    /// A refresh token, exchanged for access tokens at the token server.
    Identity(String),
    /// A bearer token for the registry itself.
    Registry(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Basic { .. } => "Basic",
            Credentials::Identity(_) => "Identity",
            Credentials::Registry(_) => "Registry",
        })
    }
}

impl Credentials {
    /// Those of CRI's `AuthConfig` for images of `domain`. An address of another registry in it means that they are not for us.
    pub fn from_cri(auth: Option<&AuthConfig>, domain: &str) -> Result<Credentials, Error> {
        let Some(auth) = auth else { return Ok(Credentials::Anonymous) };
        if !auth.server_address.is_empty() && host_of(&auth.server_address) != canonical(domain) {
            return Ok(Credentials::Anonymous);
        }
        Credentials::from_parts(&auth.registry_token, &auth.identity_token, &auth.username, &auth.password, &auth.auth)
            .map_err(|error| Error::InvalidArgument(format!("auth: {error}")))
    }

    /// The first that is given of a registry token, an identity token, a name with its password, and their base64 form.
    pub(super) fn from_parts(registry: &str, identity: &str, username: &str, password: &str, auth: &str) -> anyhow::Result<Credentials> {
        if !registry.is_empty() {
            return Ok(Credentials::Registry(registry.to_owned()));
        }
        if !identity.is_empty() {
            return Ok(Credentials::Identity(identity.to_owned()));
        }
        if !username.is_empty() || !password.is_empty() {
            return Ok(Credentials::Basic { username: username.to_owned(), password: password.to_owned() });
        }
        if auth.is_empty() {
            return Ok(Credentials::Anonymous);
        }
        let decoded = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
        let (username, password) = pair.context("want base64 of NAME:PASSWORD")?;
        Ok(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
    }

    /// What is sent without being asked.
    fn upfront(&self) -> Option<HeaderValue> {
        match self {
            Credentials::Registry(token) => bearer(token),
            _ => None,
        }
    }

    fn basic(&self) -> Option<HeaderValue> {
        let Credentials::Basic { username, password } = self else { return None };
        secret(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
    }
}

/// `docker.io` for all the names of Docker Hub.
pub(super) fn canonical(host: &str) -> &str {
    if matches!(host, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { host }
}

/// The host of `https://host/v1/`, as credential files and AuthConfig write servers.
pub(super) fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    canonical(rest.split('/').next().unwrap_or(rest))
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret(&format!("Bearer {token}"))
}

/// One challenge of a `WWW-Authenticate` header (RFC 9110, 11.6.1), its names in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The challenge to answer: bearer where there is a choice.
    pub(super) fn of(headers: &HeaderMap) -> Option<Challenge> {
        let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<Challenge> = texts.flat_map(challenges).collect();
        ["bearer", "basic"].iter().find_map(|scheme| all.iter().find(|c| c.scheme == *scheme).cloned())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }
}

fn challenges(text: &str) -> Vec<Challenge> {
    let mut all: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = (rest[..end].to_ascii_lowercase(), &rest[end..]);
        if let Some(value) = after.trim_start().strip_prefix('=') {
            let (value, after) = parameter(value.trim_start());
            if let Some(challenge) = all.last_mut() {
                challenge.parameters.push((word, value));
            }
            rest = after;
        } else {
            all.push(Challenge { scheme: word, parameters: Vec::new() });
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    all
}

/// A token or a quoted string, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// Access tokens until they expire, by server, scope and credentials.
#[derive(Default)]
pub(super) struct Tokens {
    cache: Mutex<HashMap<Digest, (HeaderValue, Instant)>>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// A request for authorization at one server.
pub(super) struct Login<'a> {
    pub(super) clients: &'a Clients,
    pub(super) endpoint: &'a Endpoint,
    pub(super) credentials: &'a Credentials,
    /// The repository's path, for challenges that name no scope.
    pub(super) path: &'a str,
}

impl Tokens {
    /// The `Authorization` header for what the server asked, or for a first request (`challenge` is `None`). `refused`: the one
    /// that it did not take.
    pub(super) async fn authorization(
        &self,
        login: &Login<'_>,
        challenge: Option<&Challenge>,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Failure> {
        let Some(challenge) = challenge else { return Ok(login.credentials.upfront()) };
        if challenge.scheme == "basic" {
            return login.credentials.basic().map(Some).ok_or_else(|| login.refused("it wants a name and a password, and none are given"));
        }
        if let Credentials::Registry(_) = login.credentials {
            return match refused {
                Some(_) => Err(login.refused("it does not take the registry token")),
                None => Ok(login.credentials.upfront()),
            };
        }
        let scope = challenge.get("scope").map_or_else(|| format!("repository:{}:pull", login.path), str::to_owned);
        let realm = challenge.get("realm").unwrap_or_default();
        let service = challenge.get("service").unwrap_or_default();
        let key = login.key(realm, service, &scope);
        if let Some((token, until)) = self.lock().get(&key)
            && refused != Some(token)
            && *until > Instant::now()
        {
            return Ok(Some(token.clone()));
        }
        let answer = login.token(realm, service, &scope).await?;
        let text = if answer.token.is_empty() { &answer.access_token } else { &answer.token };
        let token = bearer(text).filter(|_| !text.is_empty()).ok_or_else(|| login.refused("its token server gave no token"))?;
        // A token is not used in its last tenth; 60 s is what the specification has for an answer that does not say.
        let life = Duration::from_secs(answer.expires_in.unwrap_or(60).clamp(1, 86400)).mul_f32(0.9);
        let mut cache = self.lock();
        cache.retain(|_, (_, until)| *until > Instant::now());
        cache.insert(key, (token.clone(), Instant::now() + life));
        Ok(Some(token))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, (HeaderValue, Instant)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Login<'_> {
    fn refused(&self, why: &str) -> Failure {
        let server = self.endpoint.base.authority().map_or("", |a| a.as_str());
        Failure::new(Kind::Unauthenticated, format!("{server}: not authorized for {}: {why}", self.path))
    }

    fn key(&self, realm: &str, service: &str, scope: &str) -> Digest {
        let who = match self.credentials {
            Credentials::Anonymous => String::new(),
            Credentials::Basic { username, password } => format!("b{}:{username}{password}", username.len()),
            Credentials::Identity(token) => format!("i{token}"),
            Credentials::Registry(token) => format!("r{token}"),
        };
        Digest::of([realm, service, scope, &who].map(|part| format!("{}:{part}", part.len())).concat().as_bytes())
    }

    async fn token(&self, realm: &str, service: &str, scope: &str) -> Result<TokenAnswer, Failure> {
        let uri: Uri = realm.parse().map_err(|_| self.refused("it names no token server"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(self.refused("it names no token server"));
        };
        let own = Some(authority) == self.endpoint.base.authority();
        let secure = scheme == "https" || self.endpoint.base.scheme_str() == Some("http") || is_loopback(authority.host());
        if !secure && *self.credentials != Credentials::Anonymous {
            return Err(self.refused(&format!("its token server {} would get the password in clear", shown(&uri))));
        }
        let tls = Tls { client: self.endpoint.tls.client.clone().filter(|_| own), ..self.endpoint.tls.clone() };
        let (status, body, server) = if let Credentials::Identity(refresh) = self.credentials {
            let form = format!(
                "grant_type=refresh_token&client_id=rrun-cri&service={}&scope={}&refresh_token={}",
                encode(service),
                encode(scope),
                encode(refresh)
            );
            self.post(&tls, &uri, form).await?
        } else {
            self.get(&tls, &uri, service, scope).await?
        };
        match status {
            StatusCode::OK => {}
            s if s.is_server_error() => return Err(Failure::new(Kind::Unavailable, format!("{server}: token server: {s}"))),
            StatusCode::TOO_MANY_REQUESTS => return Err(Failure::new(Kind::TooMany, format!("{server}: token server: {status}"))),
            s => return Err(self.refused(&format!("its token server {server} says {s}"))),
        }
        serde_json::from_slice(&body)
            .map_err(|_| self.refused(&format!("its token server {server} answers with something else than a token")))
    }

    async fn get(&self, tls: &Tls, realm: &Uri, service: &str, scope: &str) -> Result<(StatusCode, Vec<u8>, String), Failure> {
        let mut query = realm.query().map(|q| format!("{q}&")).unwrap_or_default();
        if !service.is_empty() {
            query += &format!("service={}&", encode(service));
        }
        // A challenge may name several scopes, separated by spaces.
        query += &scope.split(' ').map(|one| format!("scope={}", encode(one))).collect::<Vec<_>>().join("&");
        let uri = format!("{}?{query}", shown(realm)).parse().map_err(|_| self.refused("it names no token server"))?;
        let private = self.credentials.basic().map(|value| (AUTHORIZATION, value)).into_iter().collect();
        let ask = Ask { uri, public: HeaderMap::new(), private, tls, dial: self.endpoint.dial_timeout, verified: false };
        let answer = self.clients.get(ask).await?;
        let (status, server) = (answer.response.status(), answer.server());
        let body = Flow::new(answer.response.into_body(), &server, self.clients.pace()).read_all(1 << 20).await?;
        Ok((status, body, server))
    }

    async fn post(&self, tls: &Tls, realm: &Uri, form: String) -> Result<(StatusCode, Vec<u8>, String), Failure> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(realm.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(Full::new(Bytes::from(form)))
            .map_err(|_| self.refused("it names no token server"))?;
        let server = realm.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let response = self.clients.send(tls, self.endpoint.dial_timeout, request).await?;
        let status = response.status();
        let body = Flow::new(response.into_body(), &server, self.clients.pace()).read_all(1 << 20).await?;
        Ok((status, body, server))
    }
}

/// Percent-encoding of a query's value.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(b as char),
            b => out += &format!("%{b:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(texts: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_are_read_as_servers_write_them() {
        let hub =
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull,push""#;
        let got = challenge(&[hub]).unwrap();
        assert_eq!(got.get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(got.get("scope"), Some("repository:library/busybox:pull,push"));
        let both = challenge(&[r#"Basic realm="a \"quoted\" one", bearer Realm=http://t/ , service = x"#]).unwrap();
        assert_eq!((both.scheme.as_str(), both.get("realm"), both.get("service")), ("bearer", Some("http://t/"), Some("x")));
        assert_eq!(challenge(&["Negotiate abc==", "Basic realm=\"x\""]).unwrap().scheme, "basic");
        for broken in ["", ",,", "=", "Bearer realm=\"open", "=x=y", "Basic"] {
            challenge(&[broken]);
        }
    }

    #[test]
    fn kubelets_credentials() {
        let auth =
            |address: &str| AuthConfig { auth: STANDARD.encode("me:p:w"), server_address: address.to_owned(), ..AuthConfig::default() };
        let mine = Credentials::Basic { username: "me".into(), password: "p:w".into() };
        for (address, domain, wanted) in [
            ("", "quay.io", &mine),
            ("https://quay.io", "quay.io", &mine),
            ("https://index.docker.io/v1/", "docker.io", &mine),
            ("quay.io:443", "quay.io", &Credentials::Anonymous),
            ("https://evil.example", "quay.io", &Credentials::Anonymous),
        ] {
            assert_eq!(&Credentials::from_cri(Some(&auth(address)), domain).unwrap(), wanted, "{address}");
        }
        let broken = AuthConfig { auth: "c2VjcmV0".into(), ..AuthConfig::default() };
        let text = Credentials::from_cri(Some(&broken), "quay.io").unwrap_err().to_string();
        assert!(text.contains("base64") && !text.contains("secret") && !text.contains("c2Vj"), "{text}");
        assert_eq!(format!("{mine:?}"), "Basic");
    }
}
