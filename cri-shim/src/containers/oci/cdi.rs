//! The Container Device Interface 1.1: files of vendors that say what a container needs for a device. Read anew for each
//! container that names one, as drivers rewrite them; blocks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use oci_spec::runtime::{Hook, Hooks, LinuxDeviceBuilder, LinuxDeviceType, Mount, MountBuilder};
use serde::Deserialize;
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use super::devices::{self, Device};
use super::{Input, invalid};
use crate::error::Result;

/// What CDI devices ask for, all together.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// Mounts, as the files have them.
    pub mounts: Vec<EditMount>,
    /// Hooks by their names in the runtime specification.
    pub hooks: Vec<EditHook>,
    /// Groups that the process gets.
    pub additional_gids: Vec<u32>,
}

/// A file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    #[allow(dead_code)]
    annotations: BTreeMap<String, String>,
    devices: Vec<DeviceSpec>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DeviceSpec {
    name: String,
    #[serde(default)]
    #[allow(dead_code)]
    annotations: BTreeMap<String, String>,
    container_edits: ContainerEdits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct ContainerEdits {
    env: Vec<String>,
    device_nodes: Vec<EditNode>,
    net_devices: Vec<Value>,
    hooks: Vec<EditHook>,
    mounts: Vec<EditMount>,
    intel_rdt: Option<Value>,
    #[serde(alias = "additionalGIDs")]
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct EditNode {
    path: PathBuf,
    host_path: PathBuf,
    #[serde(rename = "type")]
    typ: String,
    major: i64,
    minor: i64,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

/// A mount of a CDI file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct EditMount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(rename = "type")]
    typ: String,
    options: Vec<String>,
}

/// A hook of a CDI file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct EditHook {
    hook_name: String,
    path: PathBuf,
    args: Vec<String>,
    env: Vec<String>,
    timeout: Option<i64>,
}

/// What the container's CDI devices ask for: by the field, or by annotation as older kubelets do.
pub(super) fn of_container(input: &Input<'_>) -> Result<Edits> {
    let mut names: Vec<&str> = input.config.cdi_devices.iter().map(|device| device.name.as_str()).collect();
    if names.is_empty() {
        let annotated = input.config.annotations.iter().filter(|(key, _)| key.starts_with("cdi.k8s.io/"));
        names = annotated.flat_map(|(_, list)| list.split(',')).map(str::trim).filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
    }
    names.dedup();
    if names.is_empty() {
        return Ok(Edits::default());
    }
    edits(&input.settings.cdi_dirs, &names).map_err(|error| invalid(format!("CDI_devices: {error:#}")))
}

/// Adds devices to a configuration that is made already.
///
/// # Errors
/// No such device, or a broken file that may have it.
pub fn inject(folders: &[PathBuf], names: &[&str], config: &mut Value) -> anyhow::Result<()> {
    let edits = edits(folders, names).context("CDI_devices")?;
    let mut extend = |path: &[&str], added: Vec<Value>| {
        if added.is_empty() {
            return;
        }
        let mut at = &mut *config;
        for name in path {
            at = &mut at[*name];
        }
        match at {
            Value::Array(list) => list.extend(added),
            other => *other = Value::Array(added),
        }
    };
    let values = |list: &dyn Fn() -> serde_json::Result<Value>| match list()? {
        Value::Array(list) => Ok::<_, serde_json::Error>(list),
        _ => Ok(Vec::new()),
    };
    extend(&["process", "env"], edits.env.iter().map(|text| Value::from(text.as_str())).collect());
    extend(&["process", "user", "additionalGids"], edits.additional_gids.iter().map(|id| Value::from(*id)).collect());
    let mounts = edits.mounts()?;
    extend(&["mounts"], values(&|| serde_json::to_value(&mounts))?);
    let (mut nodes, mut rules) = (Vec::new(), Vec::new());
    for device in &edits.devices {
        let node = serde_json::to_value(&device.node)?;
        let (kind, major, minor) = (node["type"].clone(), node["major"].clone(), node["minor"].clone());
        rules.push(serde_json::json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": device.access}));
        nodes.push(node);
    }
    extend(&["linux", "devices"], nodes);
    extend(&["linux", "resources", "devices"], rules);
    if let Some(hooks) = edits.hooks()
        && let Value::Object(hooks) = serde_json::to_value(hooks)?
    {
        for (name, list) in hooks {
            extend(&["hooks", &name], values(&|| Ok(list.clone()))?);
        }
    }
    Ok(())
}

/// Finds the devices. The last folder that has one counts.
fn edits(folders: &[PathBuf], names: &[&str]) -> anyhow::Result<Edits> {
    let (files, broken) = read(folders)?;
    let mut edits = Edits::default();
    let mut used: Vec<&Path> = Vec::new();
    for name in names {
        let (kind, device) = name.split_once('=').with_context(|| format!("{name:?} is not of the form VENDOR/CLASS=NAME"))?;
        let found: Vec<_> = files
            .iter()
            .filter(|file| file.spec.kind == kind)
            .filter_map(|file| file.spec.devices.iter().find(|d| d.name == device).map(|d| (file, d)))
            .collect();
        let Some((file, found)) = newest(&found, name)? else {
            let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            match broken.first() {
                Some(broken) => bail!("no device {name} in {}; and {broken}", folders.join(", ")),
                None => bail!("no device {name} in {}", folders.join(", ")),
            }
        };
        if !used.contains(&file.path.as_path()) {
            used.push(&file.path);
            edits.add(&file.spec.container_edits).with_context(|| file.path.display().to_string())?;
        }
        edits.add(&found.container_edits).with_context(|| format!("{}: device {device}", file.path.display()))?;
    }
    Ok(edits)
}

/// Of those with one name the one of the last folder; two in one folder leave nobody knowing which is meant.
fn newest<'a, T: Copy>(found: &[(&'a File, T)], name: &str) -> anyhow::Result<Option<(&'a File, T)>> {
    let Some(last) = found.last() else { return Ok(None) };
    let rivals: Vec<_> = found.iter().filter(|(file, _)| file.priority == last.0.priority).collect();
    match rivals.as_slice() {
        [one, other, ..] => bail!("device {name} is in {} and in {}", one.0.path.display(), other.0.path.display()),
        _ => Ok(Some(*last)),
    }
}

struct File {
    path: PathBuf,
    priority: usize,
    spec: Spec,
}

/// All files of the folders, and what is wrong with those that do not count.
fn read(folders: &[PathBuf]) -> anyhow::Result<(Vec<File>, Vec<String>)> {
    let (mut files, mut broken) = (Vec::new(), Vec::new());
    for (priority, folder) in folders.iter().enumerate() {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.with_context(|| folder.display().to_string())?,
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let yaml = match path.extension().and_then(|ending| ending.to_str()) {
                Some("json") => false,
                Some("yaml" | "yml") => true,
                _ => continue,
            };
            // One vendor's broken file shall not keep another's devices from working.
            match fs::read_to_string(&path).map_err(anyhow::Error::from).and_then(|text| parse(&text, yaml)) {
                Ok(spec) => files.push(File { path, priority, spec }),
                Err(error) => broken.push(format!("{}: {error:#}", path.display())),
            }
        }
    }
    Ok((files, broken))
}

fn parse(text: &str, yaml: bool) -> anyhow::Result<Spec> {
    let value = match yaml {
        false => serde_json::from_str(text)?,
        true => {
            let documents = YamlLoader::load_from_str(text)?;
            let [document] = documents.as_slice() else { bail!("{} YAML documents instead of one", documents.len()) };
            to_json(document)?
        }
    };
    let spec: Spec = serde_json::from_value(value)?;
    let known = spec.cdi_version.strip_prefix('v').unwrap_or(&spec.cdi_version);
    ensure!(known.starts_with("0.") || known.starts_with("1."), "cdiVersion {:?} is unknown", spec.cdi_version);
    ensure!(spec.kind.contains('/'), "kind {:?} is not of the form VENDOR/CLASS", spec.kind);
    Ok(spec)
}

/// YAML's values are JSON's but for keys, which have to be text.
fn to_json(yaml: &Yaml) -> anyhow::Result<Value> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(value) => Value::from(*value),
        Yaml::Integer(value) => Value::from(*value),
        Yaml::Real(value) => value.parse::<f64>().map(Value::from)?,
        Yaml::String(value) => Value::from(value.as_str()),
        Yaml::Array(list) => Value::Array(list.iter().map(to_json).collect::<anyhow::Result<_>>()?),
        Yaml::Hash(map) => {
            let entry = |(key, value): (&Yaml, &Yaml)| -> anyhow::Result<(String, Value)> {
                Ok((key.as_str().with_context(|| format!("key {key:?} is not text"))?.to_owned(), to_json(value)?))
            };
            Value::Object(map.iter().map(entry).collect::<anyhow::Result<_>>()?)
        }
        Yaml::Alias(_) | Yaml::BadValue => bail!("a value that cannot be read"),
    })
}

impl Edits {
    fn add(&mut self, edits: &ContainerEdits) -> anyhow::Result<()> {
        ensure!(edits.net_devices.is_empty(), "netDevices are not supported");
        ensure!(edits.intel_rdt.is_none(), "intelRdt is not supported");
        for entry in &edits.env {
            ensure!(entry.find('=').is_some_and(|at| at > 0) && !entry.contains('\0'), "env: {entry:?} is not of the form NAME=VALUE");
        }
        for hook in &edits.hooks {
            ensure!(HOOKS.contains(&hook.hook_name.as_str()), "hooks: there is no hook {:?}", hook.hook_name);
            ensure!(hook.path.is_absolute(), "hooks: {:?} is not an absolute path", hook.path);
        }
        for mount in &edits.mounts {
            ensure!(mount.container_path.is_absolute() && !mount.host_path.as_os_str().is_empty(), "mounts: a path is missing or relative");
        }
        self.env.extend(edits.env.clone());
        for edit in &edits.device_nodes {
            self.devices.push(device(edit).with_context(|| format!("deviceNodes: {}", edit.path.display()))?);
        }
        self.mounts.extend(edits.mounts.clone());
        self.hooks.extend(edits.hooks.clone());
        self.additional_gids.extend(&edits.additional_gids);
        Ok(())
    }

    /// The mounts as the runtime specification has them.
    pub(super) fn mounts(&self) -> anyhow::Result<Vec<Mount>> {
        let one = |edit: &EditMount| {
            let mut options = edit.options.clone();
            let is_bind = options.iter().any(|option| option == "bind" || option == "rbind");
            let typ = if edit.typ.is_empty() { "bind" } else { &edit.typ };
            if typ == "bind" && !is_bind {
                options.insert(0, "rbind".to_owned());
            }
            Ok(MountBuilder::default().destination(&edit.container_path).source(&edit.host_path).typ(typ).options(options).build()?)
        };
        self.mounts.iter().map(one).collect()
    }

    /// The hooks as the runtime specification has them; `None` without any.
    pub(super) fn hooks(&self) -> Option<Hooks> {
        let of = |name: &str| {
            let list: Vec<Hook> = self.hooks.iter().filter(|hook| hook.hook_name == name).map(hook).collect();
            Some(list).filter(|list| !list.is_empty())
        };
        let mut hooks = Hooks::default();
        #[allow(deprecated)]
        hooks.set_prestart(of("prestart"));
        hooks.set_create_runtime(of("createRuntime")).set_create_container(of("createContainer"));
        hooks.set_start_container(of("startContainer")).set_poststart(of("poststart")).set_poststop(of("poststop"));
        (!self.hooks.is_empty()).then_some(hooks)
    }
}

const HOOKS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

fn hook(edit: &EditHook) -> Hook {
    let mut hook = Hook::default();
    let list = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
    hook.set_path(edit.path.clone()).set_args(list(&edit.args)).set_env(list(&edit.env)).set_timeout(edit.timeout);
    hook
}

/// A device node: what the file leaves out is the host's.
fn device(edit: &EditNode) -> anyhow::Result<Device> {
    ensure!(edit.path.is_absolute(), "not an absolute path");
    let access = if edit.permissions.is_empty() { "rwm" } else { &edit.permissions };
    ensure!(access.chars().all(|c| "rwm".contains(c)), "permissions {access:?} have other letters than r, w, m");
    let host = if edit.host_path.as_os_str().is_empty() { &edit.path } else { &edit.host_path };
    let mut device = match edit.typ.as_str() {
        "" => devices::node(host, &edit.path, access)?.with_context(|| format!("{} is no device", host.display()))?,
        typ => {
            let typ = match typ {
                "b" => LinuxDeviceType::B,
                "c" | "u" => LinuxDeviceType::C,
                "p" => LinuxDeviceType::P,
                _ => bail!("type {typ:?} is not one of b, c, u, p"),
            };
            let on_host = if edit.major == 0 && edit.minor == 0 { devices::node(host, &edit.path, access).ok().flatten() } else { None };
            let (major, minor) = on_host.map_or((edit.major, edit.minor), |device| (device.node.major(), device.node.minor()));
            let node = LinuxDeviceBuilder::default().path(&edit.path).typ(typ).major(major).minor(minor);
            Device { node: node.build()?, access: access.to_owned() }
        }
    };
    for (wish, set) in [
        (edit.file_mode, oci_spec::runtime::LinuxDevice::set_file_mode as fn(&mut _, _) -> &mut _),
        (edit.uid, oci_spec::runtime::LinuxDevice::set_uid),
        (edit.gid, oci_spec::runtime::LinuxDevice::set_gid),
    ] {
        if wish.is_some() {
            set(&mut device.node, wish);
        }
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
        "devices": [
            {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/null", "permissions": "rw"}]}},
            {"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/gpu1", "type": "c", "major": 195, "minor": 1, "gid": 44}]}}],
        "containerEdits": {"env": ["GPU=yes"], "additionalGids": [44],
            "mounts": [{"hostPath": "/usr/lib/x", "containerPath": "/usr/lib/y", "options": ["ro"]}],
            "hooks": [{"hookName": "createContainer", "path": "/usr/bin/hook", "args": ["hook", "run"]}]}}"#;
    const YAML: &str = "cdiVersion: \"1.1.0\"\nkind: vendor.com/net\ndevices:\n- name: eth\n  containerEdits:\n    env:\n    - NET=1\n";

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("rrun-cri-cdi-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        for (file, text) in files {
            fs::write(path.join(file), text).unwrap();
        }
        path
    }

    #[test]
    fn devices_of_two_vendors() {
        let dir = folder("two", &[("gpu.json", JSON), ("net.yaml", YAML), ("broken.json", "{"), ("README", "")]);
        let edits =
            edits(&[PathBuf::from("/nonexistent"), dir.clone()], &["vendor.com/gpu=0", "vendor.com/gpu=1", "vendor.com/net=eth"]).unwrap();
        assert_eq!(edits.env, ["GPU=yes", "NET=1"], "a file's own edits are made once");
        assert_eq!(edits.devices.len(), 2);
        assert_eq!((edits.devices[0].node.major(), edits.devices[0].access.as_str()), (1, "rw"));
        assert_eq!((edits.devices[1].node.major(), edits.devices[1].node.gid()), (195, Some(44)));
        assert_eq!(edits.mounts().unwrap()[0].options().as_ref().unwrap(), &["rbind", "ro"]);
        assert_eq!(edits.hooks().unwrap().create_container().as_ref().unwrap().len(), 1);
        assert_eq!(edits.additional_gids, [44]);
        let error = format!("{:#}", super::edits(std::slice::from_ref(&dir), &["vendor.com/gpu=9"]).unwrap_err());
        assert!(error.contains("no device vendor.com/gpu=9 in") && error.contains("broken.json"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_later_folder_counts_and_doubles_are_refused() {
        let first = folder("first", &[("net.yaml", YAML)]);
        let second = folder("second", &[("net.yaml", &YAML.replace("NET=1", "NET=2"))]);
        let names = ["vendor.com/net=eth"];
        assert_eq!(edits(&[first.clone(), second.clone()], &names).unwrap().env, ["NET=2"]);
        fs::write(second.join("again.yaml"), YAML).unwrap();
        let error = format!("{:#}", edits(&[first.clone(), second.clone()], &names).unwrap_err());
        assert!(error.contains("again.yaml") && error.contains("net.yaml"), "{error}");
        for dir in [first, second] {
            fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn wrong_files_say_why() {
        for (text, words) in [
            (JSON.replace("vendor.com/gpu", "gpu"), "VENDOR/CLASS"),
            (JSON.replace("0.6.0", "9"), "cdiVersion"),
            (JSON.replace("\"env\"", "\"enw\""), "enw"),
        ] {
            assert!(format!("{:#}", parse(&text, false).unwrap_err()).contains(words), "{words}");
        }
        let mut edits = Edits::default();
        let bad = |json: &str| serde_json::from_str::<ContainerEdits>(json).unwrap();
        for json in
            [r#"{"env": ["x"]}"#, r#"{"hooks": [{"hookName": "no", "path": "/x"}]}"#, r#"{"intelRdt": {}}"#, r#"{"netDevices": [{}]}"#]
        {
            assert!(edits.add(&bad(json)).is_err(), "{json}");
        }
    }
}
