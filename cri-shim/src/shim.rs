//! `Shim`: the handle that every RPC gets. It holds the settings, what the host can do, and all pods and containers in
//! memory; the records on disk are the truth, and written first.

use std::collections::BTreeMap;
use std::ops::{Bound, Deref};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cni::{Network, Pins};
use crate::config::Config;
use crate::containers::Container;
use crate::containers::oci::Host;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::images::{Images, Puller};
use crate::jobs::Jobs;
use crate::nri::Nri;
use crate::pods::Pod;
use crate::runtime::Runtimes;
use crate::stats::Stats;
use crate::streaming::Urls;

/// Everything, for everyone; a clone is the same one.
#[derive(Clone)]
pub struct Shim(Arc<Inner>);

/// What a [`Shim`] points at.
pub struct Inner {
    /// The settings.
    pub config: Config,
    /// What the host can do.
    pub host: Host,
    /// `/proc/sys/kernel/random/boot_id`: tells a restart from a reboot.
    pub boot_id: String,
    /// The OCI runtimes.
    pub runtimes: Runtimes,
    /// CNI.
    pub network: Network,
    /// Where network namespaces are pinned.
    pub pins: Pins,
    /// The image store.
    pub images: Images,
    /// Fills it from registries.
    pub puller: Puller,
    /// Running requests by name.
    pub jobs: Jobs,
    /// What happens to containers.
    pub events: Events,
    /// What pods and containers use.
    pub stats: Stats,
    /// NRI plugins.
    pub nri: Nri,
    urls: OnceLock<Urls>,
    objects: Mutex<Objects>,
}

#[derive(Default)]
struct Objects {
    pods: BTreeMap<String, Arc<Pod>>,
    containers: BTreeMap<String, Arc<Container>>,
}

impl Deref for Shim {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Shim {
    /// A shim that knows no pods yet (`recovery` reads them).
    pub fn new(config: Config, host: Host, boot_id: String, runtimes: Runtimes, network: Network, images: Images) -> Shim {
        let (jobs, events, objects) = (Jobs::default(), Events::default(), Mutex::default());
        let (urls, pins, stats) = (OnceLock::new(), Pins::new(&config), Stats::new(&config.root));
        let puller = Puller::new(images.clone(), &config.images);
        Shim(Arc::new(Inner {
            nri: Nri::default(),
            urls,
            pins,
            stats,
            config,
            host,
            boot_id,
            runtimes,
            network,
            images,
            puller,
            jobs,
            events,
            objects,
        }))
    }
}

impl Inner {
    /// Gives out URLs of streams from now on.
    pub fn set_urls(&self, urls: Urls) {
        let _ = self.urls.set(urls);
    }

    /// The streaming server's URLs.
    pub fn urls(&self) -> Result<&Urls> {
        self.urls.get().ok_or_else(|| Error::Unavailable("the streaming server is not up yet".into()))
    }

    /// The monitor's program.
    pub fn monitor_program(&self) -> Result<std::path::PathBuf> {
        let name = &self.config.monitor;
        let missing = || anyhow::anyhow!("monitor = {name:?}: no such program; install it beside rrun-cri, or name it in the settings");
        Ok(crate::runtime::program(name).ok_or_else(missing)?)
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod of that id, or of the only id that begins so.
    pub fn pod(&self, id: &str) -> Result<Arc<Pod>> {
        find(&self.objects().pods, id).cloned().ok_or_else(|| Error::NotFound(format!("no pod sandbox {id:?}")))
    }

    /// The container of that id, or of the only id that begins so.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        find(&self.objects().containers, id).cloned().ok_or_else(|| Error::NotFound(format!("no container {id:?}")))
    }

    /// All pods, by id.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.objects().pods.values().cloned().collect()
    }

    /// All containers, by id.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.objects().containers.values().cloned().collect()
    }

    /// The containers of a pod, by id.
    pub fn containers_of(&self, pod: &str) -> Vec<Arc<Container>> {
        self.objects().containers.values().filter(|container| container.pod == pod).cloned().collect()
    }

    /// Makes a pod known.
    pub fn add_pod(&self, pod: Arc<Pod>) {
        self.objects().pods.insert(pod.id.clone(), pod);
    }

    /// Makes a container known.
    pub fn add_container(&self, container: Arc<Container>) {
        self.objects().containers.insert(container.id.clone(), container);
    }

    /// Forgets a pod.
    pub fn forget_pod(&self, id: &str) {
        self.objects().pods.remove(id);
    }

    /// Forgets a container.
    pub fn forget_container(&self, id: &str) {
        self.objects().containers.remove(id);
    }
}

fn find<'a, T>(map: &'a BTreeMap<String, T>, id: &str) -> Option<&'a T> {
    if id.is_empty() {
        return None;
    }
    let mut from = map.range::<str, _>((Bound::Included(id), Bound::Unbounded)).take_while(|(key, _)| key.starts_with(id));
    let (key, first) = from.next()?;
    (key == id || from.next().is_none()).then_some(first)
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i64)
}

/// A new id: 64 hex digits.
pub fn new_id() -> Result<String> {
    let mut bytes = [0u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| anyhow::Error::new(error).context("getrandom"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether all of `selector` is in `labels`.
pub fn labels_match(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_by_a_prefix_that_only_it_has() {
        let map: BTreeMap<String, u32> = [("aa11".to_owned(), 1), ("aa1122".to_owned(), 2), ("ab".to_owned(), 3)].into();
        assert_eq!(find(&map, "aa11"), Some(&1), "the whole id counts, whatever begins with it");
        assert_eq!(find(&map, "aa112"), Some(&2));
        assert_eq!(find(&map, "aa"), None);
        assert_eq!(find(&map, "ab"), Some(&3));
        assert_eq!(find(&map, ""), None);
        assert_eq!(find(&map, "ac"), None);
    }

    #[test]
    fn ids_have_64_digits() {
        let id = new_id().unwrap();
        assert!(id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit()), "{id}");
    }
}
