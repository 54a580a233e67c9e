//! Network configurations on disk and in the cache: what libcni reads, read the same way.
//!
//! A folder gives its networks in the order of file names. A file that cannot be used is an error, not skipped: pods
//! must not land in the next network because the first one's file is half written.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value, json};

/// Newest version of the CNI specification that is spoken here.
pub(super) const NEWEST: Version = Version(1, 1, 0);

/// Loads the first `max` networks of `dir` (0: all). A folder that does not exist holds none.
pub(super) fn load_dir(dir: &Path, max: usize) -> Result<Vec<NetworkConf>> {
    let mut networks: Vec<NetworkConf> = Vec::new();
    for file in files(dir, &["conf", "conflist", "json"])? {
        let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let network = NetworkConf::parse(&bytes, Some(dir)).with_context(|| file.display().to_string())?;
        if let Some(twin) = networks.iter().find(|n| n.name == network.name) {
            bail!("{}: network {:?} is also defined in {}", file.display(), network.name, twin.file.display());
        }
        networks.push(NetworkConf { file, ..network });
        if networks.len() == max {
            break;
        }
    }
    Ok(networks)
}

/// A network: a name, a version and the plugins that make an attachment, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NetworkConf {
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) disable_check: bool,
    pub(super) disable_gc: bool,
    pub(super) plugins: Vec<PluginConf>,
    /// The configuration as one list, complete: what the cache keeps for DEL.
    pub(super) bytes: Vec<u8>,
    /// Where it was read from; empty for a cached one.
    pub(super) file: PathBuf,
}

/// One plugin's part of a network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PluginConf {
    /// Name of the program.
    pub(super) kind: String,
    /// The configuration object, handed through.
    pub(super) raw: Map<String, Value>,
}

impl NetworkConf {
    /// Reads a list, or a single plugin's configuration as a list of one. `dir` is where `<name>/*.conf` may hold more
    /// plugins of a list that does not say `loadOnlyInlinedPlugins`.
    pub(super) fn parse(bytes: &[u8], dir: Option<&Path>) -> Result<NetworkConf> {
        let object: Map<String, Value> = serde_json::from_slice(bytes).context("no JSON object")?;
        if object.contains_key("type") && !object.contains_key("plugins") {
            return Self::single(object);
        }
        let name = network_name(&object)?;
        let inlined = flag(&object, "loadOnlyInlinedPlugins")?;
        let mut plugins = match object.get("plugins") {
            Some(Value::Array(list)) if list.is_empty() => bail!("plugins: the list is empty"),
            Some(Value::Array(list)) => list
                .iter()
                .enumerate()
                .map(|(i, p)| PluginConf::parse(p).with_context(|| format!("plugins[{i}]")))
                .collect::<Result<Vec<_>>>()?,
            Some(_) => bail!("plugins: no list"),
            None if inlined => bail!("loadOnlyInlinedPlugins is true and there is no plugins list"),
            None => Vec::new(),
        };
        let mut bytes = bytes.to_vec();
        if let (false, Some(dir)) = (inlined, dir) {
            let more = plugins_of_folder(&dir.join(&name))?;
            if !more.is_empty() {
                plugins.extend(more);
                bytes = inline(object.clone(), &plugins)?;
            }
        }
        ensure!(!plugins.is_empty(), "the network {name:?} has no plugins");
        Ok(NetworkConf {
            version: version_of(&object)?,
            disable_check: flag(&object, "disableCheck")?,
            disable_gc: flag(&object, "disableGC")?,
            name,
            plugins,
            bytes,
            file: PathBuf::new(),
        })
    }

    /// What people and tools see of it.
    pub(super) fn info(&self) -> Value {
        let plugins: Value =
            self.plugins.iter().map(|p| json!({ "Network": p.raw, "Source": Value::Object(p.raw.clone()).to_string() })).collect();
        let source = String::from_utf8_lossy(&self.bytes);
        json!({ "Name": self.name, "CNIVersion": self.version.to_string(), "Plugins": plugins, "Source": source })
    }

    fn single(object: Map<String, Value>) -> Result<NetworkConf> {
        let name = network_name(&object)?;
        let version = version_of(&object)?;
        let plugin = PluginConf::parse(&Value::Object(object.clone()))?;
        let mut list = Map::new();
        list.insert("cniVersion".into(), object.get("cniVersion").cloned().unwrap_or_else(|| "".into()));
        list.insert("name".into(), name.clone().into());
        list.insert("plugins".into(), vec![Value::Object(object)].into());
        let bytes = serde_json::to_vec(&list)?;
        Ok(NetworkConf { name, version, disable_check: false, disable_gc: false, plugins: vec![plugin], bytes, file: PathBuf::new() })
    }
}

impl PluginConf {
    fn parse(value: &Value) -> Result<PluginConf> {
        let raw = value.as_object().context("no object")?.clone();
        let kind = raw.get("type").and_then(Value::as_str).filter(|k| !k.is_empty()).context("type: missing")?.to_owned();
        ensure!(!kind.contains('/') && kind != "." && kind != "..", "type: {kind:?} is no program name");
        if let Some(capabilities) = raw.get("capabilities") {
            let fits = capabilities.is_null() || capabilities.as_object().is_some_and(|c| c.values().all(Value::is_boolean));
            ensure!(fits, "capabilities: not an object of true and false");
        }
        Ok(PluginConf { kind, raw })
    }

    /// Whether the plugin declares `capability`, and so gets it in `runtimeConfig`.
    pub(super) fn has(&self, capability: &str) -> bool {
        self.raw.get("capabilities").and_then(|c| c.get(capability)).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// A version of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

impl Version {
    /// "1.0.0"; an empty text is 0.1.0, as the specification has it.
    pub(super) fn parse(text: &str) -> Result<Version> {
        if text.is_empty() {
            return Ok(Version(0, 1, 0));
        }
        let parts = text.split('.').map(str::parse).collect::<Result<Vec<u32>, _>>().ok().filter(|p| p.len() <= 3 && text.len() < 20);
        let parts = parts.ok_or_else(|| anyhow!("{text:?} is no version of the CNI specification"))?;
        let part = |i| parts.get(i).copied().unwrap_or(0);
        Ok(Version(part(0), part(1), part(2)))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// A network's name or a container id: it becomes part of a file name.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn network_name(object: &Map<String, Value>) -> Result<String> {
    let name = object.get("name").context("name: missing")?.as_str().context("name: no text")?;
    ensure!(is_name(name), "name: {name:?} must start with a letter or digit and hold only those, '_', '.' and '-'");
    Ok(name.to_owned())
}

/// The newest version that the list offers and that is known here.
fn version_of(object: &Map<String, Value>) -> Result<Version> {
    let text = |v: &Value, key: &str| v.as_str().map(str::to_owned).with_context(|| format!("{key}: no text"));
    let mut versions = Vec::new();
    if let Some(list) = object.get("cniVersions") {
        for v in list.as_array().context("cniVersions: no list")? {
            versions.push(Version::parse(&text(v, "cniVersions")?).context("cniVersions")?);
        }
    }
    if let Some(v) = object.get("cniVersion") {
        versions.push(Version::parse(&text(v, "cniVersion")?).context("cniVersion")?);
    }
    let Some(newest) = versions.iter().max() else { return Ok(Version(0, 1, 0)) };
    let usable = versions.iter().filter(|v| **v <= NEWEST).max();
    usable.copied().with_context(|| format!("cniVersion: {newest} is newer than {NEWEST}, the newest supported"))
}

/// A boolean that people also write as text.
fn flag(object: &Map<String, Value>, key: &str) -> Result<bool> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(b)) => Ok(*b),
        Some(Value::String(s)) if s.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(s)) if s.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => bail!("{key}: {other} is neither true nor false"),
    }
}

fn plugins_of_folder(dir: &Path) -> Result<Vec<PluginConf>> {
    let mut plugins = Vec::new();
    for file in files(dir, &["conf"])? {
        let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let value: Value = serde_json::from_slice(&bytes).with_context(|| format!("{}: no JSON", file.display()))?;
        plugins.push(PluginConf::parse(&value).with_context(|| file.display().to_string())?);
    }
    Ok(plugins)
}

/// The list with all its plugins inside, for the cache: the folder may be gone when DEL comes.
fn inline(mut list: Map<String, Value>, plugins: &[PluginConf]) -> Result<Vec<u8>> {
    list.insert("plugins".into(), plugins.iter().map(|p| Value::Object(p.raw.clone())).collect());
    list.insert("loadOnlyInlinedPlugins".into(), true.into());
    Ok(serde_json::to_vec(&list)?)
}

fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read folder {}", dir.display()))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read folder {}", dir.display()))?.path();
        let wanted = path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e));
        if wanted && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkConf> {
        NetworkConf::parse(text.as_bytes(), None)
    }

    fn error(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn a_single_configuration_becomes_a_list_of_one() {
        let conf = parse(r#"{"cniVersion":"0.4.0","name":"net","type":"bridge","ipam":{}}"#).unwrap();
        assert_eq!(conf.plugins[0].kind, "bridge");
        assert_eq!(
            String::from_utf8(conf.bytes).unwrap(),
            r#"{"cniVersion":"0.4.0","name":"net","plugins":[{"cniVersion":"0.4.0","ipam":{},"name":"net","type":"bridge"}]}"#
        );
    }

    #[test]
    fn the_newest_known_version_is_taken() {
        let of = |versions: &str| parse(&format!(r#"{{"name":"n",{versions},"plugins":[{{"type":"p"}}]}}"#)).map(|c| c.version.to_string());
        assert_eq!(of(r#""cniVersion":"1.0.0""#).unwrap(), "1.0.0");
        assert_eq!(of(r#""cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","9.0.0"]"#).unwrap(), "1.1.0");
        assert_eq!(of(r#""cniVersion":"""#).unwrap(), "0.1.0");
        assert_eq!(
            format!("{:#}", of(r#""cniVersion":"2.0.0""#).unwrap_err()),
            "cniVersion: 2.0.0 is newer than 1.1.0, the newest supported"
        );
    }

    #[test]
    fn wrong_fields_are_named() {
        assert_eq!(error(r#"{"plugins":[{"type":"p"}]}"#), "name: missing");
        assert!(error(r#"{"name":"../x","plugins":[{"type":"p"}]}"#).starts_with("name: \"../x\""));
        assert_eq!(error(r#"{"name":"n","plugins":[{"type":"p"},{}]}"#), "plugins[1]: type: missing");
        assert_eq!(error(r#"{"name":"n","plugins":[{"type":"../../bin/sh"}]}"#), "plugins[0]: type: \"../../bin/sh\" is no program name");
        assert_eq!(error(r#"{"name":"n","plugins":[]}"#), "plugins: the list is empty");
        assert_eq!(error(r#"{"name":"n"}"#), "the network \"n\" has no plugins");
        assert_eq!(error(r#"{"name":"n","disableGC":3,"plugins":[{"type":"p"}]}"#), "disableGC: 3 is neither true nor false");
        assert!(error("").starts_with("no JSON object"));
        assert!(error("[]").starts_with("no JSON object"));
    }

    #[test]
    fn flags_may_be_text() {
        let conf = parse(r#"{"name":"n","disableCheck":"True","disableGC":"false","plugins":[{"type":"p"}]}"#).unwrap();
        assert!(conf.disable_check && !conf.disable_gc);
    }

    #[test]
    fn a_folder_gives_its_first_files_and_their_plugin_folders() {
        let dir = std::env::temp_dir().join(format!("rrun-cni-config-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("net")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
        write("20-second.conf", r#"{"name":"second","type":"ptp"}"#);
        write("10-first.conflist", r#"{"name":"net","plugins":[{"type":"a"}]}"#);
        write("05-ignored.txt", "no configuration");
        write("net/20.conf", r#"{"type":"c"}"#);
        write("net/10.conf", r#"{"type":"b"}"#);
        let first = load_dir(&dir, 1).unwrap();
        let all = load_dir(&dir, 0).unwrap();
        write("10-first.conflist", "{");
        let broken = format!("{:#}", load_dir(&dir, 1).unwrap_err());
        std::fs::remove_dir_all(&dir).unwrap();

        let kinds = |n: &NetworkConf| n.plugins.iter().map(|p| p.kind.clone()).collect::<Vec<_>>();
        assert_eq!(first.len(), 1);
        assert_eq!(kinds(&first[0]), ["a", "b", "c"]);
        assert_eq!(all.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["net", "second"]);
        // The cached form needs no folder.
        assert_eq!(kinds(&NetworkConf::parse(&first[0].bytes, Some(&dir)).unwrap()), ["a", "b", "c"]);
        assert!(broken.contains("10-first.conflist: no JSON object"), "{broken}");
        assert!(load_dir(&dir, 1).unwrap().is_empty());
    }
}
