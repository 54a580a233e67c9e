//! The pod network: CNI plugins, run as libcni runs them, with its files.
//!
//! `pods/network.rs` attaches and detaches pods, Status asks for [`Network::status`], recovery and the janitor collect
//! garbage. Loopback is not done here (the monitor sets it up), nor for pods of the host's network.
//! Invariant: GC runs alone; any ADD that may have had an effect has a file in the cache until its DEL succeeded.

mod attachment;
mod cache;
mod chain;
mod config;
mod error;
mod exec;
mod pin;
mod result;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::{RwLock as Gate, Semaphore};

pub use attachment::{Attachment, Dns, PortMapping};
pub use error::{Failure, NotReady, PluginError};
pub use pin::Pins;
pub use result::{Interface, ResultDns};

use cache::{Cache, Cached};
use chain::{blocking, is_netns};
use config::NetworkConf;
use exec::Exec;
use result::IpPref;
use watch::Watch;

use crate::config::Cni;
use crate::error::Error;

/// How often the configuration and STATUS are looked at, once ready and until then.
const POLL_READY: Duration = Duration::from_secs(10);
const POLL_WAITING: Duration = Duration::from_secs(1);
/// Installers write several files: changes this close together are one.
const SETTLE: Duration = Duration::from_millis(50);

/// The handle of the pod network; clones share it. The last one dropped ends its background work.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Cni,
    exec: Exec,
    cache: Cache,
    /// Configuration and readiness, replaced as a whole.
    state: RwLock<Arc<State>>,
    /// Shared by ADD and DEL, exclusive for GC (specification, section 3).
    gate: Gate<()>,
    running: Semaphore,
}

#[derive(Default)]
struct State {
    networks: Vec<NetworkConf>,
    not_ready: Option<NotReady>,
}

/// What a pod got from the network; kept in the pod's record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetResult {
    /// The pod's addresses, the primary one first; never empty.
    pub ips: Vec<IpAddr>,
    /// All interfaces that plugins reported, the host's too.
    pub interfaces: Vec<Interface>,
    /// Name resolution as the first network has it.
    pub dns: ResultDns,
    /// The plugins' results as they gave them, by the pod's interface ("eth0").
    pub raw: Map<String, Value>,
}

impl Network {
    /// Reads the configuration and goes on watching it. A missing or broken one is no error: it is not ready then.
    pub async fn load(settings: &Cni) -> Network {
        let inner = Arc::new(Inner {
            exec: Exec::new(settings),
            cache: Cache::new(&settings.cache_dir),
            state: RwLock::default(),
            gate: Gate::new(()),
            running: Semaphore::new(settings.parallel.clamp(1, Semaphore::MAX_PERMITS)),
            settings: settings.clone(),
        });
        let watch = inner.watch();
        inner.look(None).await;
        tokio::spawn(follow(Arc::downgrade(&inner), watch));
        Network { inner }
    }

    /// Whether pods can be attached: there is a configuration, its plugins exist and say so. Answers from memory.
    pub fn status(&self) -> Result<(), NotReady> {
        self.inner.state().not_ready.clone().map_or(Ok(()), Err)
    }

    /// Names of the networks in use, the one of eth0 first.
    pub fn names(&self) -> Vec<String> {
        self.inner.state().networks.iter().map(|n| n.name.clone()).collect()
    }

    /// The configuration in use, for the CRI's verbose Status (`cniconfig`, in the shape that containerd gives it).
    pub fn info(&self) -> Value {
        let settings = &self.inner.settings;
        let networks = self
            .inner
            .state()
            .networks
            .iter()
            .enumerate()
            .map(|(i, n)| json!({ "Config": n.info(), "IFName": format!("eth{i}") }))
            .collect::<Value>();
        json!({ "PluginDirs": settings.bin_dirs, "PluginConfDir": settings.conf_dir, "PluginMaxConfNum": settings.max_conf_num,
            "Prefix": "eth", "Networks": networks })
    }

    /// Attaches a pod to the networks. A failure has been taken back by DEL when this returns; what could not be taken
    /// back is still in the cache, for [`Network::del`] and [`Network::gc`]. Let it run to its end: a dropped call kills
    /// the plugin where it is.
    pub async fn add(&self, pod: &Attachment) -> Result<NetResult, Error> {
        let (args, capabilities) = (pod.args()?, pod.capabilities()?);
        let _shared = self.inner.gate.read().await;
        let _turn = self.inner.running.acquire().await.map_err(|e| Error::Internal(e.into()))?;
        let state = self.inner.state();
        if state.networks.is_empty() {
            return Err(state.not_ready.clone().unwrap_or_else(|| NotReady::new("the CNI configuration is not read yet")).into());
        }
        let mut results = Map::new();
        for (i, network) in state.networks.iter().enumerate() {
            let ifname = format!("eth{i}");
            let mut cached = Cached::new(&network.name, &network.bytes, &pod.pod_id, &ifname, &pod.netns);
            cached.cni_args = args.clone();
            cached.capability_args = capabilities.clone();
            let added = chain::add(&self.inner.exec, &self.inner.cache, network, cached).await;
            match added {
                Ok(result) => results.insert(ifname, result),
                Err(e) => return Err(self.inner.take_back(pod, e).await),
            };
        }
        match understand(results, IpPref::of(&self.inner.settings.ip_pref), &state.networks[0].name) {
            Ok(result) => Ok(result),
            Err(e) => Err(self.inner.take_back(pod, e).await),
        }
    }

    /// Detaches a pod from everything it was attached to, with the configuration it was attached with. May be repeated;
    /// a namespace that is gone is given to the plugins as an empty path.
    pub async fn del(&self, pod: &Attachment) -> Result<(), Error> {
        pod.check_id()?;
        let _shared = self.inner.gate.read().await;
        let _turn = self.inner.running.acquire().await.map_err(|e| Error::Internal(e.into()))?;
        self.inner.detach(pod).await
    }

    /// Whether the pod's attachments are as ADD left them (CHECK).
    pub async fn check(&self, pod: &Attachment) -> Result<(), Error> {
        pod.check_id()?;
        let _shared = self.inner.gate.read().await;
        let _turn = self.inner.running.acquire().await.map_err(|e| Error::Internal(e.into()))?;
        for cached in self.inner.cached(Some(&pod.pod_id)).await? {
            chain::check(&self.inner.exec, &self.inner.config_of(&cached)?, &cached).await?;
        }
        Ok(())
    }

    /// Collects garbage: attachments of pods that are gone are detached, then the plugins hear what is left (GC).
    ///
    /// `valid` gives the ids of the pods that exist, attached or not; it is called when it counts, twice. `ours` tells
    /// whether a namespace path is one of this daemon's ([`Pins::is_ours`]). An attachment of someone else's is left alone
    /// while its namespace lives: other runtimes keep theirs in the same folder. Returns what failed; all else is done.
    pub async fn gc(&self, valid: impl Fn() -> HashSet<String>, ours: impl Fn(&str) -> bool) -> Vec<Error> {
        let mut errors = Vec::new();
        let state = self.inner.state();
        let networks = || state.networks.iter().filter(|n| !n.disable_gc);
        // The cache before the records: an attachment's pod has its record first.
        let all = match self.inner.cached(None).await {
            Ok(all) => all,
            Err(e) => return vec![e],
        };
        let pods = valid();
        let stale = |c: &Cached| !pods.contains(&c.container_id) && (ours(&c.netns) || !is_netns(&c.netns));
        let named = |c: &Cached| networks().any(|n| n.name == c.network_name);
        for cached in all.iter().filter(|c| stale(c) && named(c)) {
            if let Err(e) = self.detach_stale(cached).await {
                errors.push(e);
            }
        }
        if networks().all(|n| n.version < config::Version(1, 1, 0)) {
            return errors;
        }
        let _alone = self.inner.gate.write().await;
        let left = match self.inner.cached(None).await {
            Ok(left) => left,
            Err(e) => return errors.into_iter().chain([e]).collect(),
        };
        let pods = valid();
        for network in networks() {
            let attached = left.iter().filter(|c| c.network_name == network.name);
            let mut valid: Vec<_> = attached.map(|c| (c.container_id.clone(), c.if_name.clone())).collect();
            let index = state.networks.iter().position(|n| n.name == network.name).unwrap_or(0);
            // Attached by a runtime that lost its cache, perhaps.
            valid.extend(pods.iter().map(|id| (id.clone(), format!("eth{index}"))));
            valid.sort();
            valid.dedup();
            errors.extend(chain::gc(&self.inner.exec, network, &valid).await.into_iter().map(Error::from));
        }
        errors
    }

    async fn detach_stale(&self, cached: &Cached) -> Result<(), Error> {
        let _shared = self.inner.gate.read().await;
        let _turn = self.inner.running.acquire().await.map_err(|e| Error::Internal(e.into()))?;
        chain::del(&self.inner.exec, &self.inner.cache, &self.inner.config_of(cached)?, cached).await
    }
}

impl Inner {
    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// After a failed ADD: the pod's other networks go too. The first error is the one to report.
    async fn take_back(&self, pod: &Attachment, e: Error) -> Error {
        if let Ok(left) = self.cached(Some(&pod.pod_id)).await {
            for cached in left.iter().filter(|c| c.result.is_some()) {
                if let Err(second) = self.detach_cached(cached).await {
                    tracing::warn!(pod = pod.pod_id, "DEL after a failed ADD: {second}; it is tried again when the pod is stopped");
                }
            }
        }
        e
    }

    async fn detach(&self, pod: &Attachment) -> Result<(), Error> {
        let mut attached = self.cached(Some(&pod.pod_id)).await?;
        // Without a file there was no ADD, unless the file was lost: then the present configuration has to do.
        for (i, network) in self.state().networks.iter().enumerate() {
            if !attached.iter().any(|c| c.network_name == network.name) {
                let mut lost = Cached::new(&network.name, &network.bytes, &pod.pod_id, &format!("eth{i}"), &pod.netns);
                // A pod whose ADD was refused for them is stopped like any other.
                lost.cni_args = pod.args().unwrap_or_default();
                lost.capability_args = pod.capabilities().unwrap_or_default();
                attached.push(lost);
            }
        }
        let mut done = Ok(());
        for cached in attached.iter().rev() {
            done = done.and(self.detach_cached(cached).await);
        }
        done
    }

    async fn detach_cached(&self, cached: &Cached) -> Result<(), Error> {
        chain::del(&self.exec, &self.cache, &self.config_of(cached)?, cached).await
    }

    async fn cached(&self, id: Option<&str>) -> Result<Vec<Cached>, Error> {
        let (cache, id) = (self.cache.clone(), id.map(str::to_owned));
        blocking(move || cache.find(id.as_deref())).await
    }

    /// The configuration that an attachment was made with; the present one of that name if it cannot be read.
    fn config_of(&self, cached: &Cached) -> Result<NetworkConf, Error> {
        let then = cached.config().and_then(|bytes| NetworkConf::parse(&bytes, Some(&self.settings.conf_dir)));
        then.or_else(|e| {
            let now = self.state().networks.iter().find(|n| n.name == cached.network_name).cloned();
            now.ok_or_else(|| Error::Internal(e.context(format!("cached configuration of network {:?}", cached.network_name))))
        })
    }

    fn watch(&self) -> Option<Watch> {
        let more: Vec<_> = self.state().networks.iter().map(|n| self.settings.conf_dir.join(&n.name)).collect();
        // Too many users of inotify, mostly: the poll sees changes too, later.
        Watch::new(&self.settings.conf_dir, &more).ok()
    }

    /// Reads the folder, asks STATUS, replaces the state. `failures` is how often STATUS has failed until now: a network
    /// that was ready may fail once, so that one slow answer does not take the node out of service. None: do not ask, the
    /// daemon starts and a plugin may take its time. Returns the new count.
    async fn look(&self, failures: Option<u32>) -> u32 {
        let (dir, max) = (self.settings.conf_dir.clone(), self.settings.max_conf_num);
        let loaded = blocking(move || config::load_dir(&dir, max)).await;
        let before = self.state();
        let (networks, mut not_ready) = match loaded {
            Ok(n) if n.is_empty() => (n, Some(NotReady::new(format!("no CNI configuration in {}", self.settings.conf_dir.display())))),
            Ok(n) => (n, None),
            Err(e) => (Vec::new(), Some(NotReady::new(format!("CNI configuration: {e}")))),
        };
        let same = networks == before.networks;
        if !same {
            let names: Vec<_> = networks.iter().map(|n| format!("{} ({})", n.name, n.file.display())).collect();
            tracing::info!("CNI networks: {}", if names.is_empty() { "none".into() } else { names.join(", ") });
        }
        let mut failed = 0;
        for network in &networks {
            let problem = match failures {
                None => chain::unasked(&self.exec, network),
                Some(_) => chain::status(&self.exec, network).await.err().map(|e| e.to_string()),
            };
            let Some(problem) = problem else { continue };
            failed = failures.unwrap_or(0) + 1;
            let forgiven = failed == 1 && same && before.not_ready.is_none();
            not_ready = not_ready.or_else(|| (!forgiven).then(|| NotReady::new(problem)));
        }
        if not_ready != before.not_ready {
            match &not_ready {
                Some(reason) => tracing::warn!("pod network not ready: {}", reason.message),
                None => tracing::info!("pod network ready"),
            }
        }
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(State { networks, not_ready });
        failed
    }
}

/// Looks again at every change of the folder and from time to time, as long as somebody holds the network.
async fn follow(network: Weak<Inner>, mut watch: Option<Watch>) {
    let mut failures = match network.upgrade() {
        Some(inner) => inner.look(Some(0)).await,
        None => return,
    };
    loop {
        let Some(waiting) = network.upgrade().map(|n| failures > 0 || n.state().not_ready.is_some()) else { return };
        let pause = if waiting { POLL_WAITING } else { POLL_READY };
        let changed = async {
            match &watch {
                Some(watch) => watch.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        if tokio::time::timeout(pause, changed).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
        let Some(inner) = network.upgrade() else { return };
        watch = inner.watch();
        failures = inner.look(Some(failures)).await;
    }
}

/// The pod's result out of those of its interfaces; the first network's counts for the addresses.
fn understand(raw: Map<String, Value>, pref: IpPref, network: &str) -> Result<NetResult, Error> {
    let mut result = NetResult::default();
    for (ifname, value) in &raw {
        let parsed = result::parse(value)?;
        if ifname == "eth0" {
            result.ips = parsed.pod_ips(ifname, pref);
            result.dns = parsed.dns;
        }
        result.interfaces.extend(parsed.interfaces);
    }
    if result.ips.is_empty() {
        return Err(Error::Internal(anyhow::anyhow!(
            "CNI network {network:?}: the result has no address for the pod's eth0: {}",
            Value::Object(raw)
        )));
    }
    result.raw = raw;
    Ok(result)
}
