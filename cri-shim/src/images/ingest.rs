//! Adds an image to the store: which layers it wants, who makes each, the final commit.
//!
//! Called by the pull pipeline and by `images::load`. A layer is made once: two images
//! that want it at the same time share one claim, by chain id. Claims are taken lowest
//! layer first and a claim waits only for lower ones, so nothing can wait in a circle.
use super::config::{Descriptor, ImageDocument, Manifest};
use super::db::{ImageRecord, LayerRecord, Op};
use super::decompress::decoder;
use super::digest::{Digest, Hasher, HashingReader};
use super::layers::Scratch;
use super::store::{Image, Images};
use super::tar::of_one_file;
use super::unpack::{Unpacked, unpack};
use super::{lower, now, step};
use anyhow::{Context, Result, bail};
use std::io::{BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;

/// The documents of an image to add, as received and with their digests already checked.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Raw bytes of the manifest.
    pub manifest: Vec<u8>,
    /// Raw bytes of the image config.
    pub config: Vec<u8>,
    /// Raw bytes of the index that led to the manifest, where one did.
    pub index: Option<Vec<u8>>,
}

/// Names of an image, in canonical form.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// `docker.io/library/busybox:latest`.
    pub tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:…` of the manifest and of the index.
    pub digests: Vec<String>,
    /// Never to be collected by kubelet.
    pub pinned: bool,
}

/// A layer of an image being added.
#[derive(Clone, Debug)]
pub struct LayerPlan {
    /// Digest, size and media type of the blob.
    pub descriptor: Descriptor,
    /// Digest of its uncompressed tar archive; of an artifact's file, of its name and digest.
    pub diff_id: Digest,
    /// Identity of this layer upon those below it (image-spec config.md, "Layer ChainID").
    pub chain_id: Digest,
    /// An artifact's file has a name, and is no archive.
    pub file: Option<String>,
}

/// An image being added. Its layers are not freed while this lives; when the last clone is
/// dropped, writers that still wait for a layer fail. Cheap to clone.
#[derive(Clone)]
pub struct Ingest(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.fail();
    }
}

struct Shared {
    images: Images,
    new: NewImage,
    /// The image's id: its config's digest, or an artifact's manifest's.
    config: Digest,
    plan: Vec<LayerPlan>,
    /// The folder of each layer that is in the store by now.
    ids: Mutex<Vec<Option<String>>>,
    changed: Condvar,
    failed: std::sync::atomic::AtomicBool,
}

impl Images {
    /// Starts adding an image. Fails where its documents do not belong together.
    pub fn begin(&self, new: NewImage) -> Result<Ingest> {
        let manifest = Manifest::parse(&new.manifest)?;
        let Some(config) = &manifest.config else { bail!("manifest: has no config; it is an index, not an image") };
        if let Some(kind) = manifest.artifact() {
            return self.begin_artifact(&manifest, kind, new.clone());
        }
        if config.digest != digest_like(&config.digest, &new.config) {
            bail!("image config: digest is not {}", config.digest);
        }
        let document = ImageDocument::parse(&new.config)?;
        let diff_ids = document.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            bail!("image config names {} layers, the manifest {}", diff_ids.len(), manifest.layers.len());
        }
        if diff_ids.is_empty() {
            bail!("image has no layers");
        }
        let config = config.digest.clone();
        Ok(self.ingest(new, config, manifest.layers.into_iter().zip(diff_ids).map(|(layer, diff_id)| (layer, diff_id, None))))
    }

    /// An artifact is a folder of its layers, each a file (image-spec manifest.md). Its config may be the same as any other's,
    /// so its id is the manifest's digest.
    fn begin_artifact(&self, manifest: &Manifest, kind: &str, new: NewImage) -> Result<Ingest> {
        if manifest.layers.is_empty() {
            bail!("artifact ({}): has no files", kind.escape_default());
        }
        let file = |layer: &Descriptor| {
            let title = layer.annotations.get("org.opencontainers.image.title").filter(|title| !title.is_empty());
            let name = title.cloned().unwrap_or_else(|| layer.digest.hex().to_owned());
            // In an archive these would be other things than files.
            if name.ends_with('/') || name.split('/').any(|part| part.starts_with(".wh.")) {
                bail!("artifact: layer {}: {name:?} is no name for a file", layer.digest);
            }
            Ok((layer.clone(), Digest::of(format!("{name} {}", layer.digest).as_bytes()), Some(name)))
        };
        let files = manifest.layers.iter().map(file).collect::<Result<Vec<_>>>()?;
        let id = Digest::of(&new.manifest);
        Ok(self.ingest(new, id, files.into_iter()))
    }

    fn ingest(&self, new: NewImage, config: Digest, layers: impl Iterator<Item = (Descriptor, Digest, Option<String>)>) -> Ingest {
        let mut plan: Vec<LayerPlan> = Vec::new();
        for (descriptor, diff_id, file) in layers {
            let chain_id = match plan.last() {
                None => diff_id.clone(),
                Some(below) => Digest::of(format!("{} {diff_id}", below.chain_id).as_bytes()),
            };
            plan.push(LayerPlan { descriptor, diff_id, chain_id, file });
        }
        let ids = Mutex::new(vec![None; plan.len()]);
        let shared = Shared { images: self.clone(), new, config, plan, ids, changed: Condvar::new(), failed: false.into() };
        Ingest(Arc::new(Handle(Arc::new(shared))))
    }
}

impl Ingest {
    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[LayerPlan] {
        &self.shared().plan
    }

    /// The image's id: the digest of its config; of an artifact, of its manifest.
    pub fn id(&self) -> &Digest {
        &self.shared().config
    }

    /// Whether the store has a layer, so that [`Ingest::claim`] will give `None` at once.
    pub fn has(&self, index: usize) -> bool {
        self.shared().find(index).is_some()
    }

    /// Takes on a layer: `None` where the store has it. While another ingest makes it, waits for
    /// that one to succeed or fail. Claim lowest layer first.
    pub async fn claim(&self, index: usize) -> Option<LayerWriter> {
        if self.shared().settle(index) {
            return None;
        }
        let lock = self.shared().claim_lock(index);
        let claim = lock.lock_owned().await;
        self.claimed(index, claim)
    }

    /// [`Ingest::claim`] for threads outside of the runtime's.
    pub fn claim_blocking(&self, index: usize) -> Option<LayerWriter> {
        if self.shared().settle(index) {
            return None;
        }
        let claim = self.shared().claim_lock(index).blocking_lock_owned();
        self.claimed(index, claim)
    }

    fn claimed(&self, index: usize, claim: OwnedMutexGuard<()>) -> Option<LayerWriter> {
        if self.shared().settle(index) {
            return None;
        }
        Some(LayerWriter { ingest: self.shared().clone(), index, finished: false, _claim: claim })
    }

    /// Makes the image visible under its names, once all layers are in the store. Blocks on IO.
    pub fn commit(&self, names: Names) -> Result<Arc<Image>> {
        let shared = self.shared();
        let mut layers: Vec<String> = Vec::new();
        for (index, id) in shared.ids.lock().unwrap_or_else(PoisonError::into_inner).iter().enumerate() {
            let Some(id) = id else { bail!("layer {} was not added", shared.plan[index].diff_id) };
            // The same layer twice: what lies over it decides, so the lower one adds nothing,
            // and overlayfs takes a folder only once.
            layers.retain(|lower| lower != id);
            layers.push(id.clone());
        }
        let manifest = Digest::of(&shared.new.manifest);
        let mut manifests = vec![manifest.clone()];
        let mut blobs = vec![Op::PutBlob(manifest.clone(), shared.new.manifest.clone())];
        if shared.config != manifest {
            blobs.push(Op::PutBlob(shared.config.clone(), shared.new.config.clone()));
        }
        if let Some(index) = &shared.new.index {
            let digest = Digest::of(index);
            manifests.push(digest.clone());
            blobs.push(Op::PutBlob(digest, index.clone()));
        }
        let Names { tags, digests, pinned } = names;
        let record = ImageRecord { id: shared.config.clone(), manifests, tags, digests, layers, pinned, added: now(), removed: false };
        let _writing = shared.images.writing();
        shared.images.put(record, blobs)
    }
}

impl Shared {
    fn ids(&self) -> std::sync::MutexGuard<'_, Vec<Option<String>>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folder that holds a layer: its own content, or that content upon these lower layers.
    fn find(&self, index: usize) -> Option<String> {
        let plan = &self.plan[index];
        let state = self.images.state();
        [plan.diff_id.hex(), plan.chain_id.hex()].into_iter().find(|id| state.layers.contains_key(*id)).map(str::to_owned)
    }

    /// Counts on the layer if the store has it.
    fn settle(&self, index: usize) -> bool {
        let mut ids = self.ids();
        if ids[index].is_none() {
            let plan = &self.plan[index];
            let mut state = self.images.state_mut();
            let known = [plan.diff_id.hex(), plan.chain_id.hex()].into_iter().find(|id| state.layers.contains_key(*id));
            let Some(id) = known else { return false };
            *state.ingesting.entry(id.to_owned()).or_default() += 1;
            ids[index] = Some(id.to_owned());
            self.changed.notify_all();
        }
        true
    }

    fn claim_lock(&self, index: usize) -> Arc<tokio::sync::Mutex<()>> {
        let mut claims = self.images.0.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|_, lock| lock.strong_count() > 0);
        let entry = claims.entry(self.plan[index].chain_id.to_string()).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let lock = Arc::default();
            *entry = Arc::downgrade(&lock);
            lock
        })
    }

    /// The folders of the layers below, once they all are there.
    fn wait_for_lower(&self, index: usize) -> Result<Vec<String>> {
        let mut ids = self.ids();
        loop {
            if self.failed.load(std::sync::atomic::Ordering::Relaxed) {
                bail!("a layer below failed, or the pull was given up");
            }
            if let Some(lower) = ids[..index].iter().cloned().collect::<Option<Vec<String>>>() {
                return Ok(lower);
            }
            ids = self.changed.wait(ids).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn fail(&self) {
        let _ids = self.ids();
        self.failed.store(true, std::sync::atomic::Ordering::Relaxed);
        self.changed.notify_all();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut state = self.images.state_mut();
        for id in self.ids.get_mut().unwrap_or_else(PoisonError::into_inner).iter().flatten() {
            if let Some(count) = state.ingesting.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.ingesting.remove(id);
                }
            }
        }
    }
}

/// The right to make one layer. Dropped unfinished, it fails the ingest and the next in line
/// may try.
pub struct LayerWriter {
    ingest: Arc<Shared>,
    index: usize,
    finished: bool,
    _claim: OwnedMutexGuard<()>,
}

impl LayerWriter {
    /// What is to be made.
    pub fn plan(&self) -> &LayerPlan {
        &self.ingest.plan[self.index]
    }

    /// Reads the blob once: size, digest, decompression, diff id, unpacking; then makes the layer
    /// permanent. On any error nothing of it stays. Blocks; for a blocking thread.
    pub fn write(self, blob: impl Read) -> Result<()> {
        let descriptor = self.plan().descriptor.clone();
        self.write_verified(Verified::new(blob, descriptor))
    }

    /// [`LayerWriter::write`] of a reader that vouches for what it gives: it ends without an error only after exactly the
    /// descriptor's bytes.
    pub(super) fn write_verified(mut self, blob: impl Read) -> Result<()> {
        let plan = self.plan().clone();
        let name = || format!("layer {}", plan.descriptor.digest);
        let inner = &self.ingest.images.0;
        let scratch = inner.folders.scratch()?;
        step("layer-begun");
        let unpacked = self.unpack(blob, &scratch).with_context(name)?;
        let id = match unpacked.implied.is_empty() {
            true => plan.diff_id.hex(),
            false => {
                let lower = self.ingest.wait_for_lower(self.index).with_context(name)?;
                let lower: Vec<_> = lower.iter().rev().map(|id| inner.folders.layer(id)).collect();
                lower::copy_implied(scratch.fd(), &unpacked.implied, &lower, inner.options.squash).with_context(name)?;
                plan.chain_id.hex()
            }
        };
        let record =
            LayerRecord { id: id.to_owned(), diff_id: plan.diff_id.clone(), bytes: unpacked.bytes, inodes: unpacked.inodes, added: now() };
        inner.commit_layer(scratch, record).with_context(name)?;
        if !self.ingest.settle(self.index) {
            bail!("layer {}: vanished after its commit", plan.descriptor.digest);
        }
        self.finished = true;
        Ok(())
    }

    fn unpack(&self, blob: impl Read, scratch: &Scratch) -> Result<Unpacked> {
        let LayerPlan { descriptor, diff_id, file, .. } = self.plan();
        let mut compressed = BufReader::with_capacity(128 << 10, blob);
        let (root, options) = (scratch.fd().try_clone().context("dup")?, self.ingest.images.0.options);
        let (unpacked, tar) = match file {
            Some(name) => (unpack(of_one_file(name.as_bytes(), descriptor.size, &mut compressed)?, root, options)?.0, diff_id.clone()),
            None => {
                let tar = HashingReader::new(decoder(&mut compressed)?, diff_id.hasher());
                let (unpacked, tar) = unpack(tar, root, options)?;
                (unpacked, tar.digest())
            }
        };
        // What follows the archive belongs to the blob, and only at its end is it known to be the right one.
        std::io::copy(&mut compressed, &mut std::io::sink()).context("read")?;
        if tar != *diff_id {
            bail!("diff id is {tar}, the image config says {diff_id}");
        }
        Ok(unpacked)
    }
}

impl Drop for LayerWriter {
    fn drop(&mut self) {
        if !self.finished {
            self.ingest.fail();
        }
    }
}

/// A reader whose end means that size and digest were as described.
struct Verified<R> {
    blob: HashingReader<std::io::Take<R>>,
    wanted: Descriptor,
}

impl<R: Read> Verified<R> {
    fn new(blob: R, wanted: Descriptor) -> Verified<R> {
        Verified { blob: HashingReader::new(blob.take(wanted.size.saturating_add(1)), wanted.digest.hasher()), wanted }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.blob.read(buf)?;
        if n == 0 && !buf.is_empty() {
            let (count, digest) = (self.blob.count(), self.blob.digest());
            if count != self.wanted.size {
                return Err(std::io::Error::other(format!("size is {count} bytes or more, not {}", self.wanted.size)));
            }
            if digest != self.wanted.digest {
                return Err(std::io::Error::other(format!("digest is {digest}")));
            }
        }
        Ok(n)
    }
}

fn digest_like(wanted: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher: Hasher = wanted.hasher();
    hasher.update(bytes);
    hasher.finish()
}
