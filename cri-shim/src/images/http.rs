//! HTTP to registries: one pooled client per TLS setting, proxies from the environment, and bodies whose pace is watched.
//! [`super::registry`] and [`super::auth`] call it. No text made here holds a query, a header or a body that could be a secret.
use std::collections::HashMap;
use std::error::Error as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;

use super::failure::{Failure, Kind};
use super::hosts::Tls;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Longest wait for a connection and an answer's head, and between two pieces of a body.
    pub stall: Duration,
    /// Fewest bytes in that time, waiting for ourselves not counted.
    pub least: u64,
    /// First pause before asking again; it doubles.
    pub backoff: Duration,
}

impl Pace {
    /// The pace of settings: a kilobyte a second is the least.
    pub fn new(stall_seconds: u64) -> Pace {
        let seconds = stall_seconds.max(1);
        Pace { stall: Duration::from_secs(seconds), least: seconds * 1024, backoff: Duration::from_millis(500) }
    }
}

type HyperClient = Client<HttpsConnector<Connect>, Full<Bytes>>;

/// A client with the times of its certificate files: one that was replaced is read again.
struct Made {
    client: HyperClient,
    stamps: Vec<Option<SystemTime>>,
}

/// A GET, and what may follow it where.
pub(super) struct Ask<'a> {
    /// What is asked for.
    pub(super) uri: Uri,
    /// Headers that any server may see.
    pub(super) public: HeaderMap,
    /// Headers for the server of `uri` alone: they do not follow a redirect to another.
    pub(super) private: HeaderMap,
    /// TLS of that server; its client certificate is not shown to others.
    pub(super) tls: &'a Tls,
    /// Longest time to wait for a connection.
    pub(super) dial: Option<Duration>,
    /// The content is checked by its digest, so that it may come over a connection that is not secured.
    pub(super) verified: bool,
}

/// What a GET gave in the end.
pub(super) struct Answer {
    /// The answer, any status but a redirect.
    pub(super) response: Response<Incoming>,
    /// Where it came from.
    pub(super) uri: Uri,
    /// Whether that is another server than the one that was asked.
    pub(super) away: bool,
}

impl Answer {
    /// The server that answered.
    pub(super) fn server(&self) -> String {
        self.uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default()
    }
}

/// A URL without user, query and fragment, which may hold secrets.
pub(super) fn shown(uri: &Uri) -> String {
    let host = uri.authority().map_or("", |a| a.as_str()).rsplit('@').next().unwrap_or_default();
    format!("{}://{host}{}", uri.scheme_str().unwrap_or("http"), uri.path())
}

/// All clients in use; a connection is shared by all pulls.
pub(super) struct Clients {
    pace: Pace,
    proxy: Arc<Matcher>,
    roots: Vec<CertificateDer<'static>>,
    made: Mutex<HashMap<(Tls, Option<Duration>), Made>>,
}

impl Clients {
    /// Reads the system's roots and the environment's proxies once.
    pub(super) fn new(pace: Pace) -> Clients {
        let roots = rustls_native_certs::load_native_certs().certs;
        Clients { pace, proxy: Arc::new(Matcher::from_env()), roots, made: Mutex::default() }
    }

    /// The pace that everything here keeps to.
    pub(super) fn pace(&self) -> Pace {
        self.pace
    }

    /// Sends one request and waits for the answer's head. Redirects and statuses are the caller's.
    pub(super) async fn send(
        &self,
        tls: &Tls,
        dial: Option<Duration>,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        let uri = request.uri().clone();
        let server = uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let client = self.client(tls, dial).map_err(|error| Failure::new(Kind::Settings, format!("{server}: {error:#}")))?;
        match tokio::time::timeout(self.pace.stall, client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(sent(&server, &error)),
            Err(_) => Err(Failure::new(Kind::Unavailable, format!("{server}: no answer in {} s", self.pace.stall.as_secs()))),
        }
    }

    /// A GET that follows redirects, leaving behind what is not for other servers.
    pub(super) async fn get(&self, ask: Ask<'_>) -> Result<Answer, Failure> {
        let origin = |uri: &Uri| (uri.scheme_str().map(str::to_owned), uri.authority().cloned());
        let home = origin(&ask.uri);
        let mut uri = ask.uri.clone();
        for _ in 0..10 {
            let away = origin(&uri) != home;
            let mut request = Request::get(uri.clone()).body(Full::default()).map_err(|_| refused(&uri, "a broken URL"))?;
            request.headers_mut().extend(ask.public.clone());
            request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(concat!("rrun-cri/", env!("CARGO_PKG_VERSION"))));
            let elsewhere = Tls { client: None, ..ask.tls.clone() };
            if !away {
                request.headers_mut().extend(ask.private.clone());
            }
            let response = self.send(if away { &elsewhere } else { ask.tls }, ask.dial, request).await.map_err(|failure| {
                let text = format!("{} (redirected by {})", failure.text, shown(&ask.uri));
                if away { Failure { text, ..failure } } else { failure }
            })?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, uri, away });
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|text| join(&uri, text)).ok_or_else(|| refused(&uri, "a redirect to nowhere"))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() == Some("http") && !ask.verified {
                return Err(refused(&uri, &format!("a redirect from https to {}", shown(&next))));
            }
            uri = next;
        }
        Err(refused(&ask.uri, "more than 10 redirects"))
    }

    fn client(&self, tls: &Tls, dial: Option<Duration>) -> Result<HyperClient> {
        let key = (tls.clone(), dial);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let files = tls.ca.iter().chain(tls.client.iter().flat_map(|(cert, key)| [cert, key]));
        let stamps: Vec<_> = files.map(|file| std::fs::metadata(file).and_then(|m| m.modified()).ok()).collect();
        if let Some(made) = made.get(&key).filter(|made| made.stamps == stamps) {
            return Ok(made.client.clone());
        }
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(dial.unwrap_or(self.pace.stall)));
        let config = tls_config(tls, &self.roots)?;
        let connect = Connect { http, proxy: self.proxy.clone() };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(8)
            .http1_max_buf_size(256 << 10)
            .build(HttpsConnector::from((connect, config)));
        made.insert(key, Made { client: client.clone(), stamps });
        Ok(client)
    }
}

fn refused(uri: &Uri, what: &str) -> Failure {
    Failure::new(Kind::Refused, format!("{}: {what}", shown(uri)))
}

/// Where a `Location` leads from a URL (RFC 3986, 5.2, without dot segments, which servers resolve).
fn join(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let text = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.is_empty() || location.split('/').next().is_some_and(|first| first.contains(':')) {
        return None;
    } else {
        let folder = from.path().rfind('/').map_or("/", |at| &from.path()[..=at]);
        format!("{scheme}://{authority}{folder}{location}")
    };
    text.parse().ok().filter(|uri: &Uri| uri.authority().is_some())
}

/// What became of a request without an answer.
fn sent(server: &str, error: &hyper_util::client::legacy::Error) -> Failure {
    let mut texts: Vec<String> = Vec::new();
    let mut certificate = false;
    let mut source = error.source();
    while let Some(cause) = source {
        certificate |= is_certificate(cause);
        let text = cause.to_string();
        if !texts.last().is_some_and(|last| last.contains(&text)) {
            texts.push(text);
        }
        source = cause.source();
    }
    let text = texts.join(": ");
    if certificate {
        return Failure::new(Kind::Certificate, format!("{server}: {text} (hosts.toml may name its ca)"));
    }
    let kind = if error.is_connect() { Kind::Unreachable } else { Kind::Unavailable };
    Failure::new(kind, format!("{server}: {}", if text.is_empty() { "connection lost".to_owned() } else { text }))
}

/// Whether an error is about the server's certificate; `io::Error` hides what it wraps from `source`.
fn is_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref()) {
        Some(inner) => is_certificate(inner),
        None => matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))),
    }
}

/// A body read with an eye on the clock.
pub(super) struct Flow {
    body: Incoming,
    server: String,
    pace: Pace,
    waited: Duration,
    got: u64,
}

impl Flow {
    /// The body of an answer of `server`.
    pub(super) fn new(body: Incoming, server: &str, pace: Pace) -> Flow {
        Flow { body, server: server.to_owned(), pace, waited: Duration::ZERO, got: 0 }
    }

    /// The next piece, `None` at the end. Time spent elsewhere between two calls is not held against the server.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let began = Instant::now();
            let lost = |what: String| Failure::new(Kind::Unavailable, format!("{}: {what}", self.server));
            let frame = match tokio::time::timeout(self.pace.stall, self.body.frame()).await {
                Err(_) => return Err(lost(format!("no byte in {} s", self.pace.stall.as_secs()))),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    let cause = error.source().map_or_else(|| error.to_string(), |cause| cause.to_string());
                    return Err(lost(format!("connection broke: {cause}")));
                }
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            self.waited += began.elapsed();
            self.got += data.len() as u64;
            if self.waited >= self.pace.stall {
                if self.got < self.pace.least {
                    return Err(lost(format!("only {} bytes in {} s", self.got, self.waited.as_secs())));
                }
                (self.waited, self.got) = (Duration::ZERO, 0);
            }
            return Ok(Some(data));
        }
    }

    /// All of it, at most `limit` bytes.
    pub(super) async fn read_all(mut self, limit: usize) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while let Some(data) = self.next().await? {
            if all.len() + data.len() > limit {
                return Err(Failure::new(Kind::Corrupt, format!("{}: an answer of more than {limit} bytes", self.server)));
            }
            all.extend_from_slice(&data);
        }
        Ok(all)
    }
}

/// TCP to the server, or through the proxy that the environment names for it.
#[derive(Clone)]
pub(crate) struct Connect {
    http: HttpConnector,
    proxy: Arc<Matcher>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl tower_service::Service<Uri> for Connect {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<TcpStream>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let loopback = uri.host().is_some_and(super::hosts::is_loopback);
        match self.proxy.intercept(&uri).filter(|_| !loopback) {
            None => {
                let connecting = self.http.call(uri);
                Box::pin(async move { connecting.await.map_err(Into::into) })
            }
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.http.clone());
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let connecting = tunnel.call(uri);
                Box::pin(async move { connecting.await.map_err(|error| format!("proxy: {error}").into()) })
            }
        }
    }
}

fn tls_config(tls: &Tls, system: &[CertificateDer<'static>]) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system.iter().cloned());
    for file in &tls.ca {
        let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|error| anyhow::anyhow!("ca {}: {error}", file.display()))?;
        ensure!(!certificates.is_empty(), "ca {}: no certificate in it", file.display());
        for certificate in certificates {
            roots.add(certificate).with_context(|| format!("ca {}", file.display()))?;
        }
    }
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(roots)
    };
    let Some((cert, key)) = &tls.client else { return Ok(builder.with_no_client_auth()) };
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|error| anyhow::anyhow!("client {}: {error}", cert.display()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| anyhow::anyhow!("client {}: {error}", key.display()))?;
    builder.with_client_auth_cert(chain, private).with_context(|| format!("client {}", cert.display()))
}

/// `skip_verify`: any certificate; the signatures of the handshake are still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let from: Uri = "https://reg:5000/v2/a/blobs/x?y".parse().unwrap();
        for (location, wanted) in [
            ("http://other/z?q#f", Some("http://other/z?q")),
            ("//other/z", Some("https://other/z")),
            ("/z", Some("https://reg:5000/z")),
            ("z", Some("https://reg:5000/v2/a/blobs/z")),
            ("file:///etc/passwd", None),
            ("", None),
        ] {
            assert_eq!(join(&from, location).map(|uri| uri.to_string()).as_deref(), wanted, "{location}");
        }
        assert_eq!(shown(&"https://me:secret@h/p?token=secret".parse().unwrap()), "https://h/p");
    }
}
