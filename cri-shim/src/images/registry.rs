//! A client of the distribution API: manifests and blobs of one repository, from its mirrors and the registry itself, with
//! authorization, pauses and another server where one fails. [`super::resolve`], [`super::blob`] and [`super::policy`] call it.
//! What it returns has the digest and the size that were asked for.
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use hyper::{StatusCode, Uri};

use super::auth::{Challenge, Credentials, Login, Tokens};
use super::config::{Descriptor, media};
use super::digest::Digest;
use super::failure::{Failure, Kind};
use super::hosts::{self, Endpoint, Tls};
use super::http::{Answer, Ask, Clients, Flow, Pace, shown};
use super::reference::Reference;

/// Largest manifest or index.
pub(super) const MANIFEST_LIMIT: usize = 4 << 20;

/// What all pulls share: connections, tokens, the folders with hosts.toml.
pub(super) struct Registry {
    dirs: Vec<PathBuf>,
    clients: Clients,
    tokens: Tokens,
}

/// One repository, as one caller may see it.
pub(super) struct Repository {
    registry: Arc<Registry>,
    domain: String,
    path: String,
    credentials: Credentials,
    endpoints: Vec<Endpoint>,
    /// What each server last asked for.
    challenges: Vec<Mutex<Option<Challenge>>>,
}

/// A manifest or index as it came.
#[derive(Clone, Debug)]
pub(super) struct Document {
    /// The bytes, which the digest is of.
    pub(super) bytes: Vec<u8>,
    /// Their digest.
    pub(super) digest: Digest,
    /// The `Content-Type` without parameters.
    pub(super) media_type: String,
}

impl Registry {
    /// A client that looks for `<host>/hosts.toml` in `dirs`.
    pub(super) fn new(dirs: Vec<PathBuf>, pace: Pace) -> Arc<Registry> {
        Arc::new(Registry { dirs, clients: Clients::new(pace), tokens: Tokens::default() })
    }

    /// The repository of an image name. Reads hosts.toml.
    pub(super) fn repository(self: &Arc<Self>, reference: &Reference, credentials: Credentials) -> Result<Repository, Failure> {
        let endpoints =
            hosts::endpoints(&self.dirs, &reference.domain).map_err(|error| Failure::new(Kind::Settings, format!("{error:#}")))?;
        Ok(Repository {
            registry: self.clone(),
            domain: reference.domain.clone(),
            path: reference.path.clone(),
            credentials,
            challenges: endpoints.iter().map(|_| Mutex::default()).collect(),
            endpoints,
        })
    }
}

impl Repository {
    /// The manifest or index behind a tag.
    pub(super) async fn tagged(&self, tag: &str) -> Result<Document, Failure> {
        let mut rounds = self.rounds(|endpoint| endpoint.resolve);
        while let Some(at) = rounds.next().await {
            match self.document(at, tag, false).await {
                Ok(document) => return Ok(document),
                Err(failure) => rounds.failed(failure),
            }
        }
        Err(rounds.verdict())
    }

    /// The manifest or index with a digest. `size`: what a descriptor says, if there is one.
    pub(super) async fn manifest(&self, digest: &Digest, size: Option<u64>) -> Result<Document, Failure> {
        if size.is_some_and(|size| size > MANIFEST_LIMIT as u64) {
            return Err(Failure::new(Kind::Corrupt, format!("manifest {digest}: larger than 4 MiB")));
        }
        let mut rounds = self.rounds(|endpoint| endpoint.pull);
        while let Some(at) = rounds.next().await {
            let checked = self.document(at, digest.as_str(), true).await.and_then(|mut document| {
                check(&document.bytes, digest, size).map_err(|what| self.corrupt(at, "manifest", digest, &what))?;
                document.digest = digest.clone();
                Ok(document)
            });
            match checked {
                Ok(document) => return Ok(document),
                Err(failure) => rounds.failed(failure),
            }
        }
        Err(rounds.verdict())
    }

    /// A small blob as a whole: an image config, a signature's payload.
    pub(super) async fn content(&self, descriptor: &Descriptor, limit: usize) -> Result<Vec<u8>, Failure> {
        let (digest, size) = (&descriptor.digest, descriptor.size);
        if size > limit as u64 {
            return Err(Failure::new(Kind::Corrupt, format!("blob {digest}: {size} bytes, and at most {limit} are taken here")));
        }
        let mut rounds = self.rounds(|endpoint| endpoint.pull);
        while let Some(at) = rounds.next().await {
            let fetched = async {
                let answer = self.ask(at, &format!("blobs/{digest}"), &[], true).await?;
                let bytes = self.flow(answer).read_all(limit).await?;
                check(&bytes, digest, Some(size)).map_err(|what| self.corrupt(at, "blob", digest, &what))?;
                Ok(bytes)
            };
            match fetched.await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => rounds.failed(failure),
            }
        }
        Err(rounds.verdict())
    }

    /// The answer of server `at` for a blob, from byte `offset` on; any 2xx status.
    pub(super) async fn blob(&self, at: usize, digest: &Digest, offset: u64) -> Result<Answer, Failure> {
        self.ask(at, &format!("blobs/{digest}"), &range(offset), true).await
    }

    /// The same from one of a foreign layer's own URLs, where nobody knows us.
    pub(super) async fn foreign(&self, url: &str, offset: u64) -> Result<Answer, Failure> {
        let broken = || Failure::new(Kind::Refused, "a foreign layer's URL is not http or https");
        let uri: Uri = url.parse().map_err(|_| broken())?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() {
            return Err(broken());
        }
        let public = range(offset).into_iter().collect();
        let tls = Tls::default();
        let answer =
            self.registry.clients.get(Ask { uri, public, private: HeaderMap::new(), tls: &tls, dial: None, verified: true }).await?;
        self.judge(answer).await
    }

    pub(super) fn flow(&self, answer: Answer) -> Flow {
        let server = answer.server();
        Flow::new(answer.response.into_body(), &server, self.pace())
    }

    pub(super) fn pace(&self) -> Pace {
        self.registry.clients.pace()
    }

    /// The servers with a capability, in turn.
    pub(super) fn rounds(&self, able: impl Fn(&Endpoint) -> bool) -> Rounds {
        let alive = (0..self.endpoints.len()).filter(|at| able(&self.endpoints[*at])).collect();
        Rounds::new(alive, self.endpoints.len().saturating_sub(1), self.pace().backoff, &self.domain)
    }

    /// The servers that blobs may come from.
    pub(super) fn pullable(&self) -> impl Iterator<Item = usize> {
        (0..self.endpoints.len()).filter(|at| self.endpoints[*at].pull)
    }

    pub(super) fn server(&self, at: usize) -> String {
        self.endpoints[at].base.authority().map(|a| a.as_str().to_owned()).unwrap_or_default()
    }

    fn corrupt(&self, at: usize, kind: &str, digest: &Digest, what: &str) -> Failure {
        Failure::new(Kind::Corrupt, format!("{}: {}: {kind} {digest}: {what}", self.server(at), self.path))
    }

    async fn document(&self, at: usize, what: &str, verified: bool) -> Result<Document, Failure> {
        let accept = [media::INDEX, media::MANIFEST, media::DOCKER_LIST, media::DOCKER_MANIFEST, "*/*;q=0.1"].join(", ");
        let accept = HeaderValue::from_str(&accept).map_err(|_| Failure::new(Kind::Refused, "accept"))?;
        let answer = self.ask(at, &format!("manifests/{what}"), &[(ACCEPT, accept)], verified).await?;
        let header = |name: &str| answer.response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let media_type = header("content-type").split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let said = header("docker-content-digest");
        let bytes = self.flow(answer).read_all(MANIFEST_LIMIT).await?;
        if media_type == "text/html" || bytes.trim_ascii_start().starts_with(b"<") {
            let text = format!("{}: {}: an HTML page instead of a manifest: is this a registry?", self.server(at), self.path);
            return Err(Failure::new(Kind::Corrupt, text));
        }
        // Without a digest of ours the server's own tells whether the bytes came whole.
        let digest = match Digest::parse(&said) {
            Ok(said) if !verified => {
                check(&bytes, &said, None).map_err(|what| self.corrupt(at, "manifest", &said, &what))?;
                said
            }
            _ => Digest::of(&bytes),
        };
        Ok(Document { bytes, digest, media_type })
    }

    /// One GET at server `at`, with a second try where it wants authorization; any 2xx status comes back.
    async fn ask(
        &self,
        at: usize,
        tail: &str,
        public: &[(hyper::header::HeaderName, HeaderValue)],
        verified: bool,
    ) -> Result<Answer, Failure> {
        let endpoint = &self.endpoints[at];
        let own = endpoint.base.authority().map(|a| a.as_str()) == Some(hosts::server_name(&self.domain));
        let namespace = if own { String::new() } else { format!("?ns={}", super::auth::encode(&self.domain)) };
        let uri: Uri = format!("{}/{}/{tail}{namespace}", endpoint.base.to_string().trim_end_matches('/'), self.path)
            .parse()
            .map_err(|_| Failure::new(Kind::Settings, format!("{}: not a base for URLs", shown(&endpoint.base))))?;
        let nobody = Credentials::Anonymous;
        let credentials = if endpoint.upstream { &self.credentials } else { &nobody };
        let login = Login { clients: &self.registry.clients, endpoint, credentials, path: &self.path };
        let mut refused = None;
        for again in [false, true] {
            let challenge = self.challenges[at].lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut private = endpoint.headers.clone();
            if !private.contains_key(AUTHORIZATION)
                && let Some(value) = self.registry.tokens.authorization(&login, challenge.as_ref(), refused.as_ref()).await?
            {
                refused = Some(value.clone());
                private.insert(AUTHORIZATION, value);
            }
            let public = public.iter().cloned().collect();
            let ask = Ask { uri: uri.clone(), public, private, tls: &endpoint.tls, dial: endpoint.dial_timeout, verified };
            let answer = self.registry.clients.get(ask).await?;
            let asked = Challenge::of(answer.response.headers());
            if answer.response.status() != StatusCode::UNAUTHORIZED || again || answer.away || asked.is_none() {
                return self.judge(answer).await;
            }
            *self.challenges[at].lock().unwrap_or_else(PoisonError::into_inner) = asked;
        }
        Err(Failure::new(Kind::Unauthenticated, self.server(at)))
    }

    /// A 2xx answer, or what its status says.
    async fn judge(&self, answer: Answer) -> Result<Answer, Failure> {
        let status = answer.response.status();
        if status.is_success() {
            return Ok(answer);
        }
        let retry_after = answer.response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(pause);
        let kind = match status.as_u16() {
            401 => Kind::Unauthenticated,
            403 => Kind::Denied,
            404 => Kind::NotFound,
            429 => Kind::TooMany,
            408 | 500..=599 => Kind::Unavailable,
            _ => Kind::Refused,
        };
        let place = format!("{}: {}", answer.server(), if answer.away { shown(&answer.uri) } else { self.path.clone() });
        let json = answer.response.headers().get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/json"));
        let body = if json { self.flow(answer).read_all(64 << 10).await.unwrap_or_default() } else { Vec::new() };
        let hint = match (kind, &self.credentials) {
            (Kind::Unauthenticated | Kind::Denied, Credentials::Anonymous) => " (no credentials were given)",
            (Kind::Unauthenticated | Kind::Denied, _) => " (with the credentials given)",
            _ => "",
        };
        Err(Failure { retry_after, ..Failure::new(kind, format!("{place}: {status}{}{hint}", said(&body))) })
    }
}

/// Whether bytes are those of a descriptor.
fn check(bytes: &[u8], digest: &Digest, size: Option<u64>) -> Result<(), String> {
    if let Some(size) = size.filter(|size| *size != bytes.len() as u64) {
        return Err(format!("{} bytes came, {size} were announced", bytes.len()));
    }
    let mut hasher = digest.hasher();
    hasher.update(bytes);
    let found = hasher.finish();
    if found == *digest { Ok(()) } else { Err(format!("what came has the digest {found}")) }
}

fn range(offset: u64) -> Vec<(hyper::header::HeaderName, HeaderValue)> {
    let value = HeaderValue::from_str(&format!("bytes={offset}-")).ok().filter(|_| offset > 0);
    value.map(|value| (RANGE, value)).into_iter().collect()
}

/// The errors of an answer's body (distribution-spec, "Error Codes"), cut to what fits a line.
fn said(body: &[u8]) -> String {
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(body) else { return String::new() };
    let Some(first) = json["errors"].get(0) else { return String::new() };
    let words = [&first["code"], &first["message"]].map(|v| v.as_str().unwrap_or_default());
    let text: String = words.join(": ").chars().filter(|c| !c.is_control()).take(200).collect();
    format!(": {}", text.trim_matches([':', ' ']))
}

/// `Retry-After`: seconds or a date.
fn pause(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    Some(until.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

/// Which server to ask next, and after what pause: in order; all of them once more after a pause while one may yet do
/// better; never again one that said no.
pub(super) struct Rounds {
    alive: Vec<usize>,
    at: usize,
    round: u32,
    wait: Duration,
    backoff: Duration,
    /// The server whose word counts: the registry itself.
    last: usize,
    failures: Vec<(usize, Failure)>,
    progress: bool,
    domain: String,
}

/// Longest that a `Retry-After` is obeyed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Rounds {
    fn new(alive: Vec<usize>, last: usize, backoff: Duration, domain: &str) -> Rounds {
        let domain = domain.to_owned();
        Rounds { alive, at: 0, round: 0, wait: Duration::ZERO, backoff, last, failures: Vec::new(), progress: false, domain }
    }

    /// The next server, once it is time to ask it.
    pub(super) async fn next(&mut self) -> Option<usize> {
        let (at, wait) = self.pick()?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        Some(at)
    }

    fn pick(&mut self) -> Option<(usize, Duration)> {
        // A registry that cannot be reached at all is given up sooner than one that broke off.
        let dead = !self.progress && self.failures.iter().all(|(_, failure)| failure.kind == Kind::Unreachable);
        if self.round >= if dead { 2 } else { 5 } {
            return None;
        }
        let at = *self.alive.get(self.at)?;
        let wait = std::mem::take(&mut self.wait);
        (wait <= LONGEST_PAUSE).then_some((at, wait))
    }

    /// The server failed.
    pub(super) fn failed(&mut self, failure: Failure) {
        let Some(&server) = self.alive.get(self.at) else { return };
        if failure.is_transient() {
            self.at += 1;
            self.wait = self.wait.max(failure.retry_after.unwrap_or_default());
        } else {
            self.alive.remove(self.at);
        }
        self.failures.retain(|(other, _)| *other != server);
        self.failures.push((server, failure));
        if self.at >= self.alive.len() {
            self.at = 0;
            self.wait = self.wait.max(self.backoff * 2u32.pow(self.round.min(6)));
            self.round += 1;
        } else {
            // There is another one to ask now.
            self.wait = Duration::ZERO;
        }
    }

    /// The server broke off after it had given something: it is asked again at once.
    pub(super) fn broke(&mut self, failure: Failure) {
        let Some(&server) = self.alive.get(self.at) else { return };
        self.failures.retain(|(other, _)| *other != server);
        self.failures.push((server, failure));
        (self.round, self.wait, self.progress) = (0, Duration::ZERO, true);
    }

    /// Do not ask `server` any more.
    pub(super) fn exclude(&mut self, server: usize) {
        self.alive.retain(|at| *at != server);
    }

    /// The failure to report: the registry's own, and what the mirrors said behind it.
    pub(super) fn verdict(mut self) -> Failure {
        let own = self.failures.iter().position(|(at, _)| *at == self.last);
        let Some(own) = own.or(self.failures.len().checked_sub(1)) else {
            return Failure::new(Kind::Settings, format!("{}: hosts.toml leaves no server to ask", self.domain));
        };
        let (_, mut failure) = self.failures.remove(own);
        self.failures.sort_by_key(|(at, _)| *at);
        for (_, mirror) in &self.failures {
            failure.text += &format!("; mirror {}", mirror.text);
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(servers: usize) -> Rounds {
        Rounds::new((0..servers).collect(), servers - 1, Duration::from_secs(1), "quay.io")
    }

    fn failure(kind: Kind, text: &str) -> Failure {
        Failure::new(kind, text)
    }

    #[test]
    fn mirrors_first_and_pauses_between_rounds() {
        let mut rounds = rounds(3);
        let mut picked = Vec::new();
        while let Some((at, wait)) = rounds.pick() {
            picked.push((at, wait.as_secs()));
            rounds.failed(failure(if at == 1 { Kind::NotFound } else { Kind::Unavailable }, &format!("{at}: no")));
        }
        assert_eq!(picked, [(0, 0), (1, 0), (2, 0), (0, 1), (2, 0), (0, 2), (2, 0), (0, 4), (2, 0), (0, 8), (2, 0)]);
        assert_eq!(rounds.verdict().text, "2: no; mirror 0: no; mirror 1: no");
    }

    #[test]
    fn what_cannot_be_reached_is_tried_twice_and_what_broke_goes_on() {
        let mut once = rounds(1);
        once.failed(failure(Kind::Unreachable, "refused"));
        assert!(once.pick().is_some());
        once.failed(failure(Kind::Unreachable, "refused"));
        assert!(once.pick().is_none());
        let mut broken = rounds(2);
        for _ in 0..20 {
            assert_eq!(broken.pick(), Some((0, Duration::ZERO)));
            broken.broke(failure(Kind::Unavailable, "reset"));
        }
        broken.failed(failure(Kind::Unreachable, "refused"));
        assert_eq!(broken.pick(), Some((1, Duration::ZERO)));
    }

    #[test]
    fn retry_after_is_obeyed_within_reason() {
        let too_many = |seconds| Failure { retry_after: Some(Duration::from_secs(seconds)), ..failure(Kind::TooMany, "slow down") };
        let mut one = rounds(1);
        one.failed(too_many(7));
        assert_eq!(one.pick(), Some((0, Duration::from_secs(7))));
        one.failed(too_many(3600));
        assert_eq!(one.pick(), None);
        assert_eq!(one.verdict().kind, Kind::TooMany);
        let mut two = rounds(2);
        two.failed(too_many(3600));
        assert_eq!(two.pick(), Some((1, Duration::ZERO)));
        assert_eq!(pause("120"), Some(Duration::from_secs(120)));
        assert_eq!(pause("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(pause("soon"), None);
    }

    #[test]
    fn error_bodies_are_cut_to_a_line() {
        assert_eq!(said(br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"not\nknown"}]}"#), ": MANIFEST_UNKNOWN: notknown");
        assert_eq!(said(b"<html>"), "");
        assert!(said(format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(9000)).as_bytes()).len() < 210);
    }
}
