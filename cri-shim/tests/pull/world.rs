//! A store, its puller, and a folder of settings for one test.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rrun_cri::config;
use rrun_cri::error::Error;
use rrun_cri::images::{Credentials, Image, Images, Pace, Puller, Reference, unpack};

/// All of one test; its folder goes with it.
pub(crate) struct World {
    dir: PathBuf,
    settings: config::Images,
    store: Option<(Images, Puller)>,
}

/// Fast enough for a test, slow enough for a busy machine.
fn pace() -> Pace {
    Pace { stall: Duration::from_millis(700), least: 4096, backoff: Duration::from_millis(5) }
}

fn open(dir: &Path, settings: &config::Images) -> (Images, Puller) {
    let options = unpack::Options { squash: !rustix::process::geteuid().is_root(), ..Default::default() };
    let deadline = Instant::now() + Duration::from_secs(20);
    let images = loop {
        match Images::open(&dir.join("store"), options) {
            // The threads of a pull that was given up hold the old store until they notice.
            Err(error) if format!("{error:#}").contains("already open") && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5))
            }
            opened => break opened.unwrap(),
        }
    };
    (images.clone(), Puller::with_pace(images, settings, pace()))
}

impl World {
    pub(crate) fn new() -> World {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!("rrun-pull-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(dir.join("certs.d")).unwrap();
        let settings = config::Images {
            registry_config_dirs: vec![dir.join("certs.d")],
            policy: dir.join("policy.json"),
            ..config::Images::default()
        };
        let store = Some(open(&dir, &settings));
        World { dir, settings, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes `certs.d/<host>/hosts.toml`.
    pub(crate) fn hosts(&self, host: &str, text: &str) {
        let dir = self.dir.join("certs.d").join(host);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    /// As a restart of the daemon does.
    pub(crate) fn restart(&mut self) {
        // The old store ends first: its database has one owner.
        let (dir, settings) = (self.dir.clone(), self.settings.clone());
        self.store = None;
        self.store = Some(open(&dir, &settings));
    }

    pub(crate) fn images(&self) -> &Images {
        &self.store.as_ref().unwrap().0
    }

    pub(crate) fn puller(&self) -> &Puller {
        &self.store.as_ref().unwrap().1
    }

    pub(crate) async fn pull(&self, image: &str) -> Result<Arc<Image>, Error> {
        self.pull_as(image, Credentials::Anonymous).await
    }

    pub(crate) async fn pull_as(&self, image: &str, credentials: Credentials) -> Result<Arc<Image>, Error> {
        let reference = Reference::parse(image).unwrap();
        tokio::time::timeout(Duration::from_secs(120), self.puller().pull(&reference, credentials, |_| ())).await.expect("a pull that ends")
    }

    /// Nothing of an image is there: no name, no layer, no folder half made.
    pub(crate) fn assert_untouched(&self) {
        assert!(self.images().list().is_empty());
        // The blocking thread of a layer that was given up may still be cleaning.
        for _ in 0..200 {
            if self.folders().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("left behind: {:?}", self.folders());
    }

    fn folders(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.images().partial_dir()).unwrap().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
    }

    /// Partial files and their sizes.
    pub(crate) fn partials(&self) -> Vec<(String, u64)> {
        let entries = std::fs::read_dir(self.images().partial_dir()).unwrap().flatten();
        let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        files.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().unwrap().len())).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.store = None;
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

pub(crate) fn basic(username: &str, password: &str) -> Credentials {
    Credentials::Basic { username: username.to_owned(), password: password.to_owned() }
}
