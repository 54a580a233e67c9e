//! The store's memory and its rules: names, look-ups, removal, what may be freed.
//!
//! Disk first, memory after. Look-ups and lists hold a lock for a clone and never over IO.
use super::config::{ImageConfig, ImageDocument};
use super::db::{Db, ImageRecord, LayerRecord, Op};
use super::digest::Digest;
use super::layers::Folders;
use super::reference::Reference;
use super::unpack::Options;
use super::{now, step};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Layers that no image has are kept this long: a pull that failed finds them again.
const ORPHAN_SECONDS: u64 = 3600;

/// The image store. Cheap to clone.
#[derive(Clone)]
pub struct Images(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) folders: Folders,
    pub(super) db: Db,
    pub(super) options: Options,
    pub(super) state: RwLock<State>,
    /// Held by whoever writes names: read, decide, commit, publish.
    pub(super) writing: Mutex<()>,
    /// Held by whoever makes a layer, by chain id.
    pub(super) claims: Mutex<HashMap<String, std::sync::Weak<tokio::sync::Mutex<()>>>>,
    pub(super) commits: super::layers::Commits,
}

#[derive(Default)]
pub(super) struct State {
    images: HashMap<Digest, Arc<Image>>,
    names: BTreeMap<String, Digest>,
    /// Images that were removed while a container ran on them.
    removed: HashMap<Digest, Arc<Image>>,
    pub(super) layers: HashMap<String, LayerRecord>,
    /// Layers that a running ingest counts on, and how many do.
    pub(super) ingesting: HashMap<String, usize>,
}

/// An image. Whoever holds the `Arc` holds its layers.
#[derive(Debug)]
pub struct Image {
    /// Config digest, `sha256:<hex>`: CRI's image id and image_ref everywhere. Of an artifact, the manifest's digest.
    pub id: String,
    /// Canonical names with tags.
    pub repo_tags: Vec<String>,
    /// Canonical names with digests of manifests or indexes.
    pub repo_digests: Vec<String>,
    /// Unpacked bytes of its layers.
    pub size: u64,
    /// Not to be collected by kubelet.
    pub pinned: bool,
    /// Its files are a checkpoint of a container, to be restored: an annotation of its manifest says so.
    pub checkpoint: bool,
    /// How to run it.
    pub config: ImageConfig,
    /// Platform and creation time, as in the config.
    pub document: ImageDocument,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Folders of the layers, lowest first: overlayfs wants them the other way round.
    pub layers: Vec<PathBuf>,
    record: ImageRecord,
    lease: Arc<()>,
}

/// What the store takes of its file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsInfo {
    /// A folder on that file system.
    pub mountpoint: PathBuf,
    /// Bytes of layers, of partial downloads and of the database.
    pub used_bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

impl Images {
    /// Opens the store in `root` (made if missing), after checking it against what is on disk.
    pub fn open(root: &Path, options: Options) -> Result<Images> {
        let folders = Folders::open(root)?;
        let db = Db::open(root)?;
        let (images, layers) = db.load()?;
        let state = State { layers: layers.into_iter().map(|l| (l.id.clone(), l)).collect(), ..State::default() };
        let inner = Inner {
            folders,
            db,
            options,
            state: RwLock::new(state),
            writing: Mutex::default(),
            claims: Mutex::default(),
            commits: super::layers::Commits::default(),
        };
        let store = Images(Arc::new(inner));
        store.check(images).context("image store: check")?;
        Ok(store)
    }

    /// An image by name, id, id prefix or repo digest.
    pub fn lookup(&self, name: &str) -> Option<Arc<Image>> {
        let state = self.state();
        state.find(name).cloned()
    }

    /// An image by id, also one that was removed while something ran on it (for recovery).
    pub fn by_id(&self, id: &str) -> Option<Arc<Image>> {
        let id = Digest::parse(id).ok()?;
        let state = self.state();
        state.images.get(&id).or_else(|| state.removed.get(&id)).cloned()
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = self.state().images.values().cloned().collect();
        images.sort_by(|a, b| a.id.cmp(&b.id));
        images
    }

    /// The raw bytes of a stored manifest, index or config.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        self.0.db.blob(digest)
    }

    /// Removes an image with all its names, by any of them. One that is not there is success.
    /// Its layers go in the background, once no other image and no container has them.
    pub fn remove(&self, name: &str) -> Result<()> {
        let writing = self.writing();
        let Some(image) = self.lookup(name) else { return Ok(()) };
        let mut record = image.record.clone();
        drop(image);
        (record.tags, record.digests, record.removed) = (Vec::new(), Vec::new(), true);
        let id = record.id.clone();
        self.0.db.apply(&[Op::PutImage(record)]).with_context(|| format!("remove image {id}"))?;
        step("image-removed");
        let mut state = self.state_mut();
        state.names.retain(|_, image| *image != id);
        if let Some(image) = state.images.remove(&id) {
            state.removed.insert(id, image);
        }
        drop(state);
        drop(writing);
        self.collect()
    }

    /// Marks images that kubelet must not collect (its sandbox image, configured ones).
    pub fn pin(&self, name: &str, pinned: bool) -> Result<()> {
        let _writing = self.writing();
        let Some(image) = self.lookup(name) else { return Ok(()) };
        let record = ImageRecord { pinned, ..image.record.clone() };
        self.0.db.apply(&[Op::PutImage(record.clone())]).with_context(|| format!("pin image {}", image.id))?;
        self.publish(record)?;
        Ok(())
    }

    /// Frees what nothing has any more: images removed while a container ran on them, layers of
    /// removed images, layers of pulls that failed long ago. Call it after a container is removed.
    pub fn collect(&self) -> Result<()> {
        let _writing = self.writing();
        let (ops, layers) = {
            let state = self.state();
            let gone: HashSet<&Digest> = state.removed.iter().filter(|(_, image)| image.unused()).map(|(id, _)| id).collect();
            let kept: Vec<&ImageRecord> = state.images.values().map(|image| &image.record).collect();
            let held: Vec<&ImageRecord> = state.removed.iter().filter(|(id, _)| !gone.contains(id)).map(|(_, i)| &i.record).collect();
            let used: HashSet<&String> = kept.iter().chain(&held).flat_map(|record| &record.layers).collect();
            let dropped: HashSet<&String> = gone.iter().flat_map(|id| &state.removed[*id].record.layers).collect();
            let old = now().saturating_sub(ORPHAN_SECONDS);
            let layers: Vec<String> = state
                .layers
                .values()
                .filter(|layer| !used.contains(&layer.id) && !state.ingesting.contains_key(&layer.id))
                .filter(|layer| dropped.contains(&layer.id) || layer.added < old)
                .map(|layer| layer.id.clone())
                .collect();
            let blobs: HashSet<&Digest> = kept.iter().chain(&held).flat_map(|record| record.manifests.iter().chain([&record.id])).collect();
            let mut ops: Vec<Op> = layers.iter().cloned().map(Op::DeleteLayer).collect();
            for id in gone {
                ops.push(Op::DeleteImage(id.clone()));
                let record = &state.removed[id].record;
                let unused = record.manifests.iter().chain([&record.id]).filter(|digest| !blobs.contains(digest));
                ops.extend(unused.cloned().map(Op::DeleteBlob));
            }
            (ops, layers)
        };
        if ops.is_empty() {
            return Ok(());
        }
        self.0.db.apply(&ops).context("image store: collect")?;
        step("layers-forgotten");
        let mut state = self.state_mut();
        for op in &ops {
            match op {
                Op::DeleteImage(id) => drop(state.removed.remove(id)),
                Op::DeleteLayer(id) => {
                    if let Some(layer) = state.layers.remove(id) {
                        self.0.folders.discard_layer(id, layer.bytes, layer.inodes);
                    }
                }
                _ => {}
            }
        }
        drop(layers);
        Ok(())
    }

    /// What the store takes on its file system, from memory but for the downloads in flight.
    pub fn fs_info(&self) -> FsInfo {
        let state = self.state();
        let (mut bytes, mut inodes) = self.0.folders.extra_usage();
        for layer in state.layers.values() {
            bytes += layer.bytes;
            inodes += layer.inodes;
        }
        FsInfo { mountpoint: self.0.folders.root().to_owned(), used_bytes: bytes, inodes }
    }

    /// Where partial downloads are kept: plain files here survive a restart.
    pub fn partial_dir(&self) -> &Path {
        self.0.folders.partial()
    }

    /// Whether this is a store of an ordinary user with a single id.
    pub fn squashes(&self) -> bool {
        self.0.options.squash
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn writing(&self) -> MutexGuard<'_, ()> {
        self.0.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an image, or names to one that is there. Called with `writing` held.
    pub(super) fn put(&self, record: ImageRecord, mut blobs: Vec<Op>) -> Result<Arc<Image>> {
        let mut merged = record.clone();
        let mut moved = Vec::new();
        {
            let state = self.state();
            if let Some(known) = state.images.get(&record.id) {
                let known = &known.record;
                merged.added = known.added;
                merged.pinned |= known.pinned;
                merge(&mut merged.manifests, &known.manifests);
                merge(&mut merged.tags, &known.tags);
                merge(&mut merged.digests, &known.digests);
            }
            // A tag that moves leaves the image that had it.
            for other in state.images.values().filter(|other| other.record.id != record.id) {
                if other.record.tags.iter().any(|tag| merged.tags.contains(tag)) {
                    let mut other = other.record.clone();
                    other.tags.retain(|tag| !merged.tags.contains(tag));
                    moved.push(other);
                }
            }
        }
        blobs.push(Op::PutImage(merged.clone()));
        blobs.extend(moved.iter().cloned().map(Op::PutImage));
        self.0.db.apply(&blobs).with_context(|| format!("image {}: commit", record.id))?;
        step("image-committed");
        for other in moved {
            self.publish(other)?;
        }
        self.publish(merged)
    }

    /// Brings a committed record into memory.
    fn publish(&self, record: ImageRecord) -> Result<Arc<Image>> {
        let config = self.blob(&record.id)?.with_context(|| format!("image {}: its config is missing", record.id))?;
        let document = ImageDocument::parse(&config)?;
        let mut checkpoint = false;
        for manifest in &record.manifests {
            checkpoint |= self.blob(manifest)?.is_some_and(|bytes| super::config::is_checkpoint(&bytes));
        }
        let mut state = self.state_mut();
        let lease = match state.images.get(&record.id).or_else(|| state.removed.get(&record.id)) {
            Some(known) => known.lease.clone(),
            None => Arc::default(),
        };
        let image = Arc::new(Image {
            id: record.id.to_string(),
            repo_tags: record.tags.clone(),
            repo_digests: record.digests.clone(),
            size: record.layers.iter().filter_map(|id| state.layers.get(id)).map(|layer| layer.bytes).sum(),
            pinned: record.pinned,
            checkpoint,
            config: document.config.clone(),
            document,
            manifest: record.manifests.first().unwrap_or(&record.id).clone(),
            layers: record.layers.iter().map(|id| self.0.folders.layer(id)).collect(),
            lease,
            record,
        });
        let id = image.record.id.clone();
        if image.record.removed {
            state.removed.insert(id, image.clone());
            return Ok(image);
        }
        state.removed.remove(&id);
        state.names.retain(|_, owner| *owner != id);
        for name in image.repo_tags.iter().chain(&image.repo_digests) {
            state.names.insert(name.clone(), id.clone());
        }
        state.images.insert(id, image.clone());
        Ok(image)
    }

    /// What is committed and not on disk is forgotten (and will be pulled again); what is on
    /// disk and not committed is removed.
    fn check(&self, images: Vec<ImageRecord>) -> Result<()> {
        let mut ops = Vec::new();
        let present = self.0.folders.present()?;
        let mut state = self.state_mut();
        let missing: HashSet<String> = state.layers.keys().filter(|id| !present.contains(*id)).cloned().collect();
        for id in &missing {
            tracing::warn!(layer = %id, "image store: the folder of a layer is missing; its images are forgotten");
            state.layers.remove(id);
            ops.push(Op::DeleteLayer(id.clone()));
        }
        for id in present.iter().filter(|id| !state.layers.contains_key(*id)) {
            self.0.folders.discard_layer(id, 0, 0);
        }
        let layers: HashSet<String> = state.layers.keys().cloned().collect();
        drop(state);
        for record in images {
            let whole = record.layers.iter().all(|id| layers.contains(id));
            let id = record.id.clone();
            if !whole || self.publish(record).inspect_err(|error| tracing::warn!("image store: {error:#}")).is_err() {
                ops.push(Op::DeleteImage(id));
            }
        }
        if !ops.is_empty() {
            self.0.db.apply(&ops)?;
        }
        Ok(())
    }
}

impl Image {
    /// Whether this is an artifact: files to mount, nothing to run.
    pub fn is_artifact(&self) -> bool {
        self.manifest == self.record.id
    }

    /// Whether a person's name for an image means this one.
    pub fn is(&self, name: &str) -> bool {
        let full = Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.to_string());
        self.id == full || self.repo_tags.contains(&full) || self.repo_digests.contains(&full)
    }

    /// Nobody holds this or an earlier version of it. Asked of the store's own `Arc`.
    fn unused(self: &Arc<Image>) -> bool {
        Arc::strong_count(self) == 1 && Arc::strong_count(&self.lease) == 1
    }
}

impl State {
    fn find(&self, name: &str) -> Option<&Arc<Image>> {
        if let Ok(id) = Digest::parse(name) {
            return self.images.get(&id);
        }
        let canonical = Reference::parse(name).ok().map(|reference| reference.to_string());
        if let Some(id) = canonical.and_then(|canonical| self.names.get(&canonical)) {
            return self.images.get(id);
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.len() < 4 || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut found = self.images.values().filter(|image| image.record.id.hex().starts_with(prefix));
        found.next().filter(|_| found.next().is_none())
    }
}

fn merge<T: Clone + PartialEq>(into: &mut Vec<T>, from: &[T]) {
    for item in from {
        if !into.contains(item) {
            into.push(item.clone());
        }
    }
}
