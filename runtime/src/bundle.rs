//! The bundle: `config.json`, read once and checked before anything is made.
//!
//! [`Bundle::load`] is the only reader of a bundle's `config.json`; [`check`] holds every rule that
//! can be decided from the file alone, so that a wrong field is an error that names it and leaves
//! nothing behind.

use crate::hooks;
use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::{Capability, Spec};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The OCI runtime specification that this runtime implements.
pub const SPEC_VERSION: &str = "1.3.0";

/// A bundle on disk.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute path of the folder that holds `config.json`.
    pub dir: PathBuf,
    /// Its configuration, checked.
    pub spec: Spec,
    /// The bytes of `config.json`, kept for the container's own copy.
    pub json: Vec<u8>,
}

impl Bundle {
    /// Reads and checks `DIR/config.json` (or `config` where it is given: crun's `--config`).
    pub fn load(dir: &Path, config: Option<&Path>) -> Result<Bundle> {
        let dir = std::path::absolute(dir).with_context(|| format!("bundle {}", dir.display()))?;
        let path = config.map_or_else(|| dir.join("config.json"), |c| dir.join(c));
        let json = std::fs::read(&path).with_context(|| {
            format!(
                "{}: cannot read the bundle's configuration (name the bundle with --bundle, or make one with 'rrun spec')",
                path.display()
            )
        })?;
        let spec: Spec = parse(&json).with_context(|| path.display().to_string())?;
        check(&spec).with_context(|| path.display().to_string())?;
        Ok(Bundle { dir, spec, json })
    }

    /// Absolute path of the root file system as `root.path` names it.
    pub fn rootfs(&self) -> PathBuf {
        match self.spec.root() {
            Some(root) => self.dir.join(root.path()),
            None => self.dir.join("rootfs"),
        }
    }
}

/// Parses JSON into one of the specification's types. The text is parsed once; only when that fails is
/// it parsed again, with what runc's callers leave out filled in, and the field at fault is looked for
/// (`linux.namespaces[2].type: unknown …`).
pub fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T> {
    let plain = match serde_json::from_slice(json) {
        Ok(value) => return Ok(value),
        Err(plain) => plain,
    };
    let Ok(mut value) = serde_json::from_slice::<Value>(json) else { bail!("{plain}") };
    tolerate(&mut value);
    let json = serde_json::to_vec(&value)?;
    serde_json::from_slice(&json).map_err(|e| {
        let text = e.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text);
        // The text is one line; the column is that of the last byte read.
        match field_at(&json, e.column()) {
            path if path.is_empty() => anyhow!("{what}"),
            path => anyhow!("{path}: {what}"),
        }
    })
}

/// The path of the value in which the first `end` bytes of a JSON text without white space end.
fn field_at(json: &[u8], end: usize) -> String {
    let mut path: Vec<String> = Vec::new();
    let mut key = None;
    let mut at = 0;
    let end = end.min(json.len());
    while at < end {
        match json[at] {
            b'"' => {
                let length = json[at + 1..].iter().scan(false, |escaped, &b| {
                    let closes = b == b'"' && !*escaped;
                    *escaped = b == b'\\' && !*escaped;
                    (!closes).then_some(())
                });
                let close = at + 1 + length.count();
                if json.get(close + 1) == Some(&b':') {
                    key = Some(String::from_utf8_lossy(&json[at + 1..close]).into_owned());
                }
                at = close;
            }
            b'{' => path.push(key.take().map_or_else(String::new, |k| format!(".{k}"))),
            b'[' => path.push(key.take().map_or_else(String::new, |k| format!(".{k}")) + "[0]"),
            b'}' | b']' if at + 1 < end => {
                path.pop();
                key = None;
            }
            b',' => match path.last_mut().filter(|last| last.ends_with(']')) {
                Some(last) => {
                    let open = last.rfind('[').unwrap_or(0);
                    let index: usize = last[open + 1..last.len() - 1].parse().unwrap_or(0);
                    last.truncate(open);
                    last.push_str(&format!("[{}]", index + 1));
                }
                None => key = None,
            },
            _ => (),
        }
        at += 1;
    }
    // A closing brace as the last byte: something is missing in what it closes.
    let closed = end > 0 && matches!(json[end - 1], b'}' | b']');
    let last = key.filter(|_| !closed).map_or_else(String::new, |k| format!(".{k}"));
    (path.concat() + &last).trim_start_matches('.').to_owned()
}

/// What runc takes and the strict types refuse: ids that are left out are 0, and capabilities that
/// nobody knows are left out with a warning.
fn tolerate(value: &mut Value) {
    let process = if value.get("process").is_some() { &mut value["process"] } else { value };
    let Some(process) = process.as_object_mut().filter(|p| p.contains_key("cwd") || p.contains_key("args")) else { return };
    let user = process.entry("user").or_insert_with(|| serde_json::json!({}));
    if let Some(user) = user.as_object_mut() {
        user.entry("uid").or_insert(0.into());
        user.entry("gid").or_insert(0.into());
    }
    let Some(sets) = process.get_mut("capabilities").and_then(Value::as_object_mut) else { return };
    let mut unknown: Vec<String> = Vec::new();
    for set in sets.values_mut().filter_map(Value::as_array_mut) {
        set.retain(|name| match name.as_str() {
            Some(text) if serde_json::from_str::<Capability>(&name.to_string()).is_err() => {
                unknown.push(text.to_owned());
                false
            }
            _ => true,
        });
    }
    if !unknown.is_empty() {
        unknown.sort();
        unknown.dedup();
        crate::log::warn(format!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" ")));
    }
}

/// Checks everything that can be decided from the configuration alone.
pub fn check(spec: &Spec) -> Result<()> {
    check_version(spec.version())?;
    let Some(root) = spec.root() else { bail!("root: missing; it must name the root file system") };
    if root.path().as_os_str().is_empty() {
        bail!("root.path: empty; it must name the root file system");
    }
    if let Some(process) = spec.process() {
        check_process(process)?;
    }
    if let Some(hooks) = spec.hooks() {
        hooks::check(hooks)?;
    }
    if let Some(linux) = spec.linux() {
        let unsupported = [
            ("linux.intelRdt", linux.intel_rdt().is_some()),
            ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|d| !d.is_empty())),
        ];
        refuse(&unsupported)?;
    }
    let foreign = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    for (field, there) in foreign {
        if there && spec.linux().is_none() {
            bail!("{field}: this runtime makes Linux containers, and the configuration has no linux section");
        }
    }
    Ok(())
}

/// What this version cannot do is an error, never left out in silence.
fn refuse(fields: &[(&str, bool)]) -> Result<()> {
    match fields.iter().find(|(_, there)| *there) {
        Some((field, _)) => bail!("{field}: not supported by this version of rrun"),
        None => Ok(()),
    }
}

/// Checks a process, from config.json or from `exec --process`.
pub fn check_process(process: &oci_spec::runtime::Process) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        bail!("process.args: empty; it must name the program to run");
    }
    if !process.cwd().is_absolute() {
        bail!("process.cwd: {:?} is not an absolute path", process.cwd());
    }
    Ok(())
}

fn check_version(version: &str) -> Result<()> {
    if version.is_empty() {
        bail!("ociVersion: missing");
    }
    if !version.starts_with("1.") {
        bail!("ociVersion: {version:?} is not supported; this runtime implements {SPEC_VERSION} and accepts every 1.x");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        parse::<Spec>(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_value_is_named_by_its_path() {
        assert!(
            error(r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"nope"}]}}"#)
                .starts_with("linux.namespaces[1].type: unknown variant `nope`")
        );
        assert!(error(r#"{"process":{"args":[1],"cwd":"/"}}"#).starts_with("process.args[0]: invalid type"));
        assert!(error(r#"{"root":{"path":"a\"b{[","readonly":"yes"}}"#).starts_with("root.readonly: invalid type"));
        assert!(
            error(r#"{"mounts":[{"destination":"/a"},{"type":"x"}], "hostname":"x"}"#)
                .starts_with("mounts[1]: missing field `destination`")
        );
        assert!(error(r#"{"hostname":["x"]}"#).starts_with("hostname"));
        assert!(error(r#"{"annotations":{"a":"1","b":2}}"#).starts_with("annotations.b: invalid type"));
        assert!(error("{").contains("EOF"));
    }

    #[test]
    fn what_runc_takes_is_taken() {
        let spec: Spec =
            parse(br#"{"process":{"args":["x"],"cwd":"/","capabilities":{"bounding":["CAP_CHOWN","CAP_NOBODY_KNOWS"]}}}"#).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        assert_eq!(process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(), 1);
    }
}
