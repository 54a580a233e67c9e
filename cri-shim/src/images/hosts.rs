//! Which servers a registry's images are fetched from: `hosts.toml` in containerd's folder layout
//! (`<dir>/<host[:port]>/hosts.toml`, `_default`, Docker's bare `*.crt`, `*.cert`, `*.key`), mirrors in the order of the file,
//! the registry itself last. Read anew for every pull, so that a change needs no restart. [`super::registry`] calls it.
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// TLS settings of a server beside the system's roots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    /// PEM files with more roots.
    pub(super) ca: Vec<PathBuf>,
    /// Client certificate and key, PEM; the same file twice where one holds both.
    pub(super) client: Option<(PathBuf, PathBuf)>,
    /// Take any certificate.
    pub(super) skip_verify: bool,
}

/// A server that answers the distribution API for a registry's repositories.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// `https://host:port/v2`: what stands before `/<repository>/manifests/…`.
    pub(super) base: Uri,
    /// Tags may be looked up here.
    pub(super) resolve: bool,
    /// Blobs and manifests by digest may be fetched here.
    pub(super) pull: bool,
    /// Sent with each request to this server and no other.
    pub(super) headers: HeaderMap,
    /// How its TLS is checked.
    pub(super) tls: Tls,
    /// Whether this is the registry itself, the only place that credentials go to.
    pub(super) upstream: bool,
    /// Longest time to wait for a connection.
    pub(super) dial_timeout: Option<Duration>,
}

/// The servers to ask for images of `domain` (`docker.io`, `localhost:5000`), in order.
pub(super) fn endpoints(dirs: &[PathBuf], domain: &str) -> Result<Vec<Endpoint>> {
    let Some(dir) = find_dir(dirs, domain) else { return Ok(vec![upstream(domain, Tls::default())?]) };
    let file = dir.join("hosts.toml");
    match std::fs::read_to_string(&file) {
        Ok(text) => parse(&text, &dir, domain).with_context(|| file.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(vec![upstream(domain, docker_certs(&dir)?)?]),
        Err(error) => Err(error).with_context(|| file.display().to_string()),
    }
}

/// Whether `host` (without a port) is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The folder of a host: `<host>_<port>_` is containerd's other spelling, for file systems without colons.
fn find_dir(dirs: &[PathBuf], domain: &str) -> Option<PathBuf> {
    let mut names = vec![domain.to_owned()];
    if let Some((host, port)) = domain.rsplit_once(':') {
        names.insert(0, format!("{host}_{port}_"));
    }
    let of_host = dirs.iter().flat_map(|dir| names.iter().map(move |name| dir.join(name)));
    let of_all = dirs.iter().map(|dir| dir.join("_default"));
    of_host.chain(of_all).find(|dir| dir.is_dir())
}

/// Docker Hub's registry has another name than its images.
pub(super) fn server_name(domain: &str) -> &str {
    if domain == "docker.io" { "registry-1.docker.io" } else { domain }
}

fn upstream(domain: &str, tls: Tls) -> Result<Endpoint> {
    let mut endpoint = endpoint(server_name(domain), &toml::Table::new(), Path::new("/"))?;
    if tls != Tls::default() {
        endpoint.base = base(&format!("https://{}", server_name(domain)), false)?;
    }
    Ok(Endpoint { tls, upstream: true, ..endpoint })
}

fn parse(text: &str, dir: &Path, domain: &str) -> Result<Vec<Endpoint>> {
    let table: toml::Table = text.parse()?;
    let own = upstream(domain, Tls::default())?.base;
    let mut endpoints = Vec::new();
    match table.get("host") {
        None => {}
        Some(toml::Value::Table(hosts)) => {
            for (url, settings) in hosts {
                let settings = settings.as_table().with_context(|| format!("host.{url:?}: want a table"))?;
                let mut endpoint = endpoint(url, settings, dir).with_context(|| format!("host.{url:?}"))?;
                endpoint.upstream = endpoint.base.authority() == own.authority();
                endpoints.push(endpoint);
            }
        }
        Some(_) => bail!("host: want tables [host.\"https://…\"]"),
    }
    let server = match table.get("server") {
        None => server_name(domain).to_owned(),
        Some(value) => value.as_str().context("server: want a string")?.to_owned(),
    };
    let mut settings = table.clone();
    settings.remove("host");
    let server = Endpoint { upstream: true, ..endpoint(&server, &settings, dir).context("server")? };
    // A `server` that is among the hosts as well is asked once, where it stands there.
    if !endpoints.iter().any(|e| e.base == server.base) {
        endpoints.push(server);
    }
    Ok(endpoints)
}

/// One server with its settings; unknown keys are containerd's business.
fn endpoint(url: &str, settings: &toml::Table, dir: &Path) -> Result<Endpoint> {
    let flag = |name: &str| match settings.get(name) {
        None => Ok(false),
        Some(value) => value.as_bool().with_context(|| format!("{name}: want true or false")),
    };
    let tls = Tls { ca: files(settings, "ca", dir)?, client: client(settings, dir)?, skip_verify: flag("skip_verify")? };
    let able = match settings.get("capabilities") {
        None => vec!["pull".to_owned(), "resolve".to_owned()],
        Some(value) => strings(value).context("capabilities")?,
    };
    for capability in &able {
        ensure!(matches!(&**capability, "pull" | "resolve" | "push" | "dial"), "capabilities: {capability:?}: one of pull, resolve, push");
    }
    let plain = !url.contains("://") && tls == Tls::default() && {
        let (host, port) = split_port(url.split('/').next().unwrap_or(url));
        is_loopback(host) && port != Some("443")
    };
    let url = if url.contains("://") { url.to_owned() } else { format!("{}://{url}", if plain { "http" } else { "https" }) };
    Ok(Endpoint {
        base: base(&url, flag("override_path")?)?,
        resolve: able.iter().any(|c| c == "resolve"),
        pull: able.iter().any(|c| c == "pull"),
        headers: headers(settings)?,
        tls,
        upstream: false,
        dial_timeout: settings.get("dial_timeout").map(duration).transpose()?,
    })
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// `https://host/path` to the base of the API: `/v2` is added unless the path is to stand as it is.
fn base(url: &str, override_path: bool) -> Result<Uri> {
    let uri: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
    let scheme = uri.scheme_str().unwrap_or_default();
    ensure!(matches!(scheme, "http" | "https"), "{url:?}: want http:// or https://");
    let authority = uri.authority().with_context(|| format!("{url:?} names no host"))?;
    ensure!(!authority.as_str().contains('@'), "a URL with a password in it; use a credential file");
    ensure!(uri.query().is_none(), "{url:?}: no query here");
    let authority = if authority.as_str() == "docker.io" { server_name("docker.io") } else { authority.as_str() };
    let path = uri.path().trim_end_matches('/');
    let path = if override_path || path.ends_with("/v2") { path.to_owned() } else { format!("{path}/v2") };
    format!("{scheme}://{authority}{path}").parse().with_context(|| format!("{url:?} is not a URL"))
}

fn strings(value: &toml::Value) -> Result<Vec<String>> {
    match value {
        toml::Value::String(text) => Ok(vec![text.clone()]),
        toml::Value::Array(list) => list.iter().map(|v| v.as_str().map(str::to_owned).context("want strings")).collect(),
        _ => bail!("want a string or a list of strings"),
    }
}

fn files(settings: &toml::Table, name: &str, dir: &Path) -> Result<Vec<PathBuf>> {
    let Some(value) = settings.get(name) else { return Ok(Vec::new()) };
    Ok(strings(value).context(name.to_owned())?.into_iter().map(|file| dir.join(file)).collect())
}

/// `client`: a file with both, a list of such files, or a list of pairs; the first counts.
fn client(settings: &toml::Table, dir: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
    const WANTED: &str = "client: want a file, or a list of [\"certificate\", \"key\"]";
    let first = match settings.get("client") {
        None => return Ok(None),
        Some(toml::Value::Array(list)) => match list.first() {
            None => return Ok(None),
            Some(first) => first,
        },
        Some(value) => value,
    };
    let pair = strings(first).context(WANTED)?;
    match &pair[..] {
        [both] => Ok(Some((dir.join(both), dir.join(both)))),
        [cert, key] if key.is_empty() => Ok(Some((dir.join(cert), dir.join(cert)))),
        [cert, key] => Ok(Some((dir.join(cert), dir.join(key)))),
        _ => bail!(WANTED),
    }
}

fn headers(settings: &toml::Table) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    let Some(value) = settings.get("header") else { return Ok(map) };
    for (name, value) in value.as_table().context("header: want a table")? {
        let key = HeaderName::from_bytes(name.as_bytes()).with_context(|| format!("header.{name}"))?;
        for text in strings(value).with_context(|| format!("header.{name}"))? {
            // The value may be a secret: the message is without it.
            let mut value = HeaderValue::from_str(&text).with_context(|| format!("header.{name}"))?;
            value.set_sensitive(true);
            map.append(key.clone(), value);
        }
    }
    Ok(map)
}

/// Go's `1m30s`, `500ms`.
fn duration(value: &toml::Value) -> Result<Duration> {
    let wrong = || format!("dial_timeout: {value}: want a duration as 10s or 1m30s");
    let mut rest = value.as_str().with_context(wrong)?;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').with_context(wrong)?;
        let number: f64 = rest[..digits].parse().ok().with_context(wrong)?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        let seconds = match &rest[digits..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => bail!(wrong()),
        };
        total += Duration::try_from_secs_f64(number * seconds).ok().with_context(wrong)?;
        rest = &rest[unit..];
    }
    Ok(total)
}

/// Docker's layout: every `*.crt` is a root, `NAME.cert` and `NAME.key` are a client's.
fn docker_certs(dir: &Path) -> Result<Tls> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .with_context(|| dir.display().to_string())?;
    names.sort();
    let mut tls = Tls::default();
    for file in names {
        match file.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(file),
            Some("cert") if tls.client.is_none() => {
                let key = file.with_extension("key");
                ensure!(key.is_file(), "{}: its key {} is missing", file.display(), key.display());
                tls.client = Some((file, key));
            }
            _ => {}
        }
    }
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(endpoints: &[Endpoint]) -> Vec<String> {
        endpoints.iter().map(|e| e.base.to_string()).collect()
    }

    fn parsed(text: &str, domain: &str) -> Result<Vec<Endpoint>> {
        parse(text, Path::new("/etc/certs"), domain)
    }

    #[test]
    fn without_settings_the_registry_itself() {
        for (domain, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("quay.io", "https://quay.io/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.3:5000", "http://127.0.0.3:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("localhost:443", "https://localhost:443/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ] {
            assert_eq!(bases(&endpoints(&[], domain).unwrap()), [base], "{domain}");
        }
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file() {
        let text = r#"
            server = "https://docker.io"
            [host."https://z.example"]
              capabilities = ["pull"]
              ca = "ca.crt"
              client = [["c.cert", "c.key"]]
            [host."http://a.example:5000/some/path"]
              skip_verify = true
              override_path = true
              dial_timeout = "1m2s"
              [host."http://a.example:5000/some/path".header]
                x-key = ["one", "two"]
            [host."https://registry-1.docker.io"]
              capabilities = ["resolve", "push"]
        "#;
        let all = parsed(text, "docker.io").unwrap();
        assert_eq!(bases(&all), ["https://z.example/v2", "http://a.example:5000/some/path", "https://registry-1.docker.io/v2"]);
        assert!(all[0].pull && !all[0].resolve && !all[0].upstream && !all[1].upstream && all[2].upstream);
        assert_eq!(all[0].tls.ca, [Path::new("/etc/certs/ca.crt")]);
        assert_eq!(all[0].tls.client, Some(("/etc/certs/c.cert".into(), "/etc/certs/c.key".into())));
        assert_eq!(all[1].headers.get_all("x-key").iter().count(), 2);
        assert_eq!(all[1].dial_timeout, Some(Duration::from_secs(62)));
        let fallback = parsed("[host.\"mirror.example\"]", "quay.io").unwrap();
        assert_eq!(bases(&fallback), ["https://mirror.example/v2", "https://quay.io/v2"]);
    }

    #[test]
    fn what_is_wrong_is_named_and_no_header_shown() {
        for (text, words) in [
            ("server = 1", "server: want a string"),
            ("server = \"ftp://x\"", "want http:// or https://"),
            ("[host.\"https://m\"]\ncapabilities = [\"fetch\"]", "host.\"https://m\": capabilities: \"fetch\""),
            ("[host.\"https://m\"]\nskip_verify = \"yes\"", "skip_verify: want true or false"),
            ("[host.\"https://m\"]\ndial_timeout = \"soon\"", "dial_timeout"),
            ("[host.\"https://m\".header]\nkey = \"secret\\n\"", "header.key"),
            ("server = \"https://user:secret@x\"", "password"),
        ] {
            let error = format!("{:#}", parsed(text, "quay.io").unwrap_err());
            assert!(error.contains(words) && !error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn folders_are_found_as_containerd_names_them() {
        let dir = std::env::temp_dir().join(format!("rrun-hosts-{}", std::process::id()));
        let write = |name: &str, text: &str| {
            std::fs::create_dir_all(dir.join(name)).unwrap();
            std::fs::write(dir.join(name).join("hosts.toml"), text).unwrap();
        };
        write("_default", "[host.\"https://all.example\"]");
        write("reg.example_5000_", "server = \"http://one.example\"");
        std::fs::create_dir_all(dir.join("certs.example")).unwrap();
        std::fs::write(dir.join("certs.example/ca.crt"), "").unwrap();
        let of = |domain: &str| endpoints(&[dir.join("none"), dir.clone()], domain);
        assert_eq!(bases(&of("reg.example:5000").unwrap()), ["http://one.example/v2"]);
        assert_eq!(bases(&of("quay.io").unwrap()), ["https://all.example/v2", "https://quay.io/v2"]);
        assert_eq!(of("certs.example").unwrap()[0].tls.ca, [dir.join("certs.example/ca.crt")]);
        std::fs::write(dir.join("certs.example/c.cert"), "").unwrap();
        assert!(of("certs.example").unwrap_err().to_string().contains("c.key is missing"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
