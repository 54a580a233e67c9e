//! The settings, a TOML file. Every field has a default and stands in what `rrun-cri config default` prints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// Where the file is looked for unless `--config` names one.
pub const DEFAULT_PATH: &str = "/etc/rrun/rrun-cri.toml";

/// All settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What outlives a reboot: records, images, layers, writable layers.
    pub root: PathBuf,
    /// What a reboot ends: sockets, FIFOs, bundles, mounts.
    pub state: PathBuf,
    /// The socket that kubelet's endpoint names.
    pub socket: PathBuf,
    /// The group that may use the socket (name or number); empty: root's.
    pub socket_group: String,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter as `RUST_LOG` has it.
    pub log_level: String,
    /// `text` or `json`.
    pub log_format: String,
    /// The monitor's program.
    pub monitor: PathBuf,
    /// The handler of pods that name none.
    pub default_runtime: String,
    /// OCI runtimes by handler name (a RuntimeClass's `handler`).
    pub runtimes: BTreeMap<String, Runtime>,
    /// `cgroupfs`, `systemd`, or `auto`: systemd where it is process 1.
    pub cgroup_driver: String,
    /// What a container's cgroup or scope is called before its id: `cri-containerd-<id>.scope`, which is the form that node
    /// tools look for.
    pub cgroup_prefix: String,
    /// Longest piece of a log line, in bytes, before it is split.
    pub max_log_line: u32,
    /// How long an ExecSync waits for output after its process has ended and something else keeps its pipes open, in
    /// seconds.
    pub exec_drain_seconds: u64,
    /// Bytes kept of each stream of an ExecSync; the rest is read and dropped.
    pub exec_output_limit: usize,
    /// AppArmor profile of containers that ask for the runtime's default.
    pub apparmor_profile: String,
    /// Seccomp profile (a file) of containers that ask for the runtime's default; empty: the one built in.
    pub seccomp_profile: String,
    /// Also for containers that say nothing about seccomp.
    pub seccomp_by_default: bool,
    /// Folders with CDI specifications.
    pub cdi_dirs: Vec<PathBuf>,
    /// Let containers that share no host network bind ports below 1024 and send pings without capabilities.
    pub unprivileged_ports_and_ping: bool,
    /// Network by CNI plugins.
    pub cni: Cni,
    /// Registries and the image store.
    pub images: Images,
    /// kubectl exec, attach, port-forward.
    pub streaming: Streaming,
    /// The Node Resource Interface.
    pub nri: Nri,
    /// Prometheus metrics of the daemon itself.
    pub metrics: Metrics,
    /// Traces of requests.
    pub tracing: Tracing,
}

/// An OCI runtime.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// The program: a path, or a name to look for in `PATH`.
    pub path: PathBuf,
    /// Arguments before the command's name.
    pub args: Vec<String>,
    /// Annotations of a pod that are passed on to its containers, as shell patterns.
    pub pod_annotations: Vec<String>,
    /// Privileged containers of this handler get no host devices.
    pub privileged_without_host_devices: bool,
}

/// Network by CNI plugins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cni {
    /// Where network configurations are; the first by name counts.
    pub conf_dir: PathBuf,
    /// Where plugins are.
    pub bin_dirs: Vec<PathBuf>,
    /// Results of additions, in libcni's layout.
    pub cache_dir: PathBuf,
    /// Where network namespaces are pinned.
    pub netns_dir: PathBuf,
    /// How many configurations are used; 0: all of them.
    pub max_conf_num: usize,
    /// How long a plugin may take, in seconds.
    pub timeout_seconds: u64,
    /// How many pods' networks are set up at the same time.
    pub parallel: usize,
    /// Which of a pod's addresses is its first: `ipv4`, `ipv6`, or `cni` for the plugins' order.
    pub ip_pref: String,
}

/// Registries and the image store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// Folders with a folder per registry host that has a `hosts.toml`; the first that knows a host counts.
    pub registry_config_dirs: Vec<PathBuf>,
    /// Layers of one image fetched at the same time.
    pub parallel_layers: usize,
    /// A connection that gives no byte for so long is given up and resumed, in seconds.
    pub stall_seconds: u64,
    /// Most bytes that one layer may unpack to; 0: 64 GiB.
    pub max_layer_bytes: u64,
    /// Most entries that one layer may have; 0: four million.
    pub max_layer_entries: u64,
    /// Images that are never removed by kubelet.
    pub pinned: Vec<String>,
    /// Which images are taken from whom, in the format of containers' policy.json.
    pub policy: PathBuf,
}

/// kubectl exec, attach, port-forward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// Address to listen on. The kubelet beside us is the only client.
    pub address: String,
    /// Port; 0: any free one.
    pub port: u16,
    /// An idle connection is closed after so long, in seconds.
    pub idle_seconds: u64,
    /// Certificate chain in PEM; with it and the key the server speaks TLS.
    pub tls_cert: PathBuf,
    /// Its key in PEM.
    pub tls_key: PathBuf,
}

/// The Node Resource Interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nri {
    /// No plugins.
    pub disable: bool,
    /// The socket that plugins connect to.
    pub socket: PathBuf,
    /// Plugins that are started with the daemon.
    pub plugin_dir: PathBuf,
    /// Their configurations.
    pub plugin_config_dir: PathBuf,
    /// How long a plugin has to register, in seconds.
    pub registration_seconds: u64,
    /// How long a plugin may take for a request, in seconds.
    pub request_seconds: u64,
}

/// Prometheus metrics of the daemon itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// `ADDRESS:PORT` to serve `/metrics` on; empty: not served.
    pub address: String,
}

/// Traces of requests, as kubelet's settings of the same names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// `HOST:PORT` of a collector that takes OTLP by gRPC; empty: no traces.
    pub endpoint: String,
    /// How many of a million requests are traced whose caller has not decided it.
    pub sampling_rate_per_million: u32,
}

impl Config {
    /// Reads the file. Without `path` the default one, which need not be there.
    pub fn load(path: Option<&Path>) -> anyhow::Result<Config> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(file) {
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("read settings {}", file.display()))?,
        };
        let config: Config = toml::from_str(&text).with_context(|| format!("settings {}", file.display()))?;
        config.check().with_context(|| format!("settings {}", file.display()))?;
        Ok(config)
    }

    /// All settings as a file, with the defaults.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Refuses what cannot work, naming the field.
    fn check(&self) -> anyhow::Result<()> {
        for (name, path) in [("root", &self.root), ("state", &self.state), ("socket", &self.socket)] {
            ensure!(path.is_absolute(), "{name} = {path:?}: give an absolute path");
        }
        ensure!(
            self.runtimes.contains_key(&self.default_runtime),
            "default_runtime = {:?}: there is no [runtimes.{}]",
            self.default_runtime,
            self.default_runtime
        );
        for (name, runtime) in &self.runtimes {
            ensure!(!runtime.path.as_os_str().is_empty(), "runtimes.{name}.path is empty: name a program");
        }
        let one_of = |name: &str, value: &str, values: &[&str]| -> anyhow::Result<()> {
            ensure!(values.contains(&value), "{name} = {value:?}: one of {}", values.join(", "));
            Ok(())
        };
        ensure!(
            self.tracing.sampling_rate_per_million <= 1_000_000,
            "tracing.sampling_rate_per_million = {}: at most 1000000",
            self.tracing.sampling_rate_per_million
        );
        one_of("cgroup_driver", &self.cgroup_driver, &["auto", "cgroupfs", "systemd"])?;
        one_of("log_format", &self.log_format, &["text", "json"])?;
        one_of("cni.ip_pref", &self.cni.ip_pref, &["ipv4", "ipv6", "cni"])?;
        ensure!(self.max_log_line >= 64, "max_log_line = {}: at least 64", self.max_log_line);
        Ok(())
    }

    /// The folder of a pod's records.
    pub fn pod_dir(&self, pod: &str) -> PathBuf {
        self.root.join("pods").join(pod)
    }

    /// The folder of what a pod has in this boot.
    pub fn pod_run_dir(&self, pod: &str) -> PathBuf {
        self.state.join("pods").join(pod)
    }
}

impl Default for Config {
    fn default() -> Self {
        let rrun = Runtime { path: "rrun".into(), ..Runtime::default() };
        let runc = Runtime { path: "runc".into(), ..Runtime::default() };
        Config {
            root: "/var/lib/rrun-cri".into(),
            state: "/run/rrun-cri".into(),
            socket: "/run/rrun/rrun-cri.sock".into(),
            socket_group: String::new(),
            log_level: "info".into(),
            log_format: "text".into(),
            monitor: "rrun-monitor".into(),
            default_runtime: "rrun".into(),
            runtimes: [("rrun".into(), rrun), ("runc".into(), runc)].into(),
            cgroup_driver: "auto".into(),
            cgroup_prefix: "cri-containerd".into(),
            max_log_line: 16384,
            exec_drain_seconds: 2,
            exec_output_limit: 16 << 20,
            apparmor_profile: "rrun-default".into(),
            seccomp_profile: String::new(),
            seccomp_by_default: false,
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            unprivileged_ports_and_ping: true,
            cni: Cni::default(),
            images: Images::default(),
            streaming: Streaming::default(),
            nri: Nri::default(),
            metrics: Metrics::default(),
            tracing: Tracing::default(),
        }
    }
}

impl Default for Cni {
    fn default() -> Self {
        Cni {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/cni".into(),
            netns_dir: "/var/run/netns".into(),
            max_conf_num: 1,
            timeout_seconds: 60,
            parallel: 8,
            ip_pref: "ipv4".into(),
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Images {
            registry_config_dirs: vec!["/etc/rrun/certs.d".into(), "/etc/containerd/certs.d".into()],
            parallel_layers: 4,
            stall_seconds: 30,
            max_layer_bytes: 0,
            max_layer_entries: 0,
            pinned: Vec::new(),
            policy: "/etc/containers/policy.json".into(),
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Streaming { address: "127.0.0.1".into(), port: 0, idle_seconds: 4 * 3600, tls_cert: PathBuf::new(), tls_key: PathBuf::new() }
    }
}

impl Default for Nri {
    fn default() -> Self {
        Nri {
            disable: false,
            socket: "/var/run/nri/nri.sock".into(),
            plugin_dir: "/opt/nri/plugins".into(),
            plugin_config_dir: "/etc/nri/conf.d".into(),
            registration_seconds: 5,
            request_seconds: 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_back() {
        let default = Config::default();
        let text = default.to_toml().unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), default);
        assert!(text.contains("[cni]") && text.contains("[runtimes.rrun]"), "{text}");
    }

    #[test]
    fn wrong_settings_are_named() {
        for (text, words) in [
            ("root = \"var\"", "root = \"var\": give an absolute path"),
            ("default_runtime = \"kata\"", "there is no [runtimes.kata]"),
            ("cgroup_driver = \"upstart\"", "cgroup_driver = \"upstart\": one of auto, cgroupfs, systemd"),
            ("rot = 1", "unknown field `rot`"),
        ] {
            let error =
                toml::from_str::<Config>(text).map_err(anyhow::Error::from).and_then(|config| config.check().map(|()| config)).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{text}: {error:#}");
        }
    }
}
