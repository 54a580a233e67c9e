//! The store's database: one redb file with names, manifests, configs and layers.
//!
//! Called by `images::store` alone, which keeps everything but the blobs in memory. A
//! commit is on disk when [`Db::apply`] returns. A full disk poisons redb's handle: it is
//! closed and opened again, and for removals a reserve file makes room first.
use super::digest::Digest;
use anyhow::{Context, Result, anyhow};
use redb::{Database, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");
const BLOBS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("blobs");
/// Bytes held back for removing images on a full disk.
const RESERVE: usize = 4 << 20;
const CACHE: usize = 4 << 20;

/// An image as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// Config digest.
    pub(super) id: Digest,
    /// Digest of the manifest that brought the config, then those of others with the same config
    /// and of indexes: all are blobs.
    pub(super) manifests: Vec<Digest>,
    pub(super) tags: Vec<String>,
    pub(super) digests: Vec<String>,
    /// Layer ids, lowest first.
    pub(super) layers: Vec<String>,
    pub(super) pinned: bool,
    /// Seconds since the epoch.
    pub(super) added: u64,
    /// Removed by its name, but a container still runs on it.
    #[serde(default)]
    pub(super) removed: bool,
}

/// An unpacked layer as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// Name of its folder: hex of the diff id, or of the chain id where it depends on the layers below.
    pub(super) id: String,
    pub(super) diff_id: Digest,
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// Seconds since the epoch.
    pub(super) added: u64,
}

/// One change.
pub(super) enum Op {
    PutImage(ImageRecord),
    DeleteImage(Digest),
    PutLayer(LayerRecord),
    DeleteLayer(String),
    PutBlob(Digest, Vec<u8>),
    DeleteBlob(Digest),
}

/// The open database.
pub(super) struct Db {
    path: PathBuf,
    reserve: PathBuf,
    handle: Mutex<Option<Database>>,
}

impl Db {
    /// Opens or makes `images.redb` in `root`, with a reserve file beside it.
    pub(super) fn open(root: &Path) -> Result<Db> {
        let db = Db { path: root.join("images.redb"), reserve: root.join("images.reserve"), handle: Mutex::new(None) };
        let handle = match db.open_handle() {
            Err(_) if db.release() => db.open_handle()?,
            other => other?,
        };
        *db.lock() = Some(handle);
        db.fill_reserve();
        Ok(db)
    }

    /// All images and layers.
    pub(super) fn load(&self) -> Result<(Vec<ImageRecord>, Vec<LayerRecord>)> {
        self.with(|handle| {
            let read = handle.begin_read()?;
            let images = read.open_table(IMAGES)?.iter()?.map(|row| Ok(serde_json::from_slice(row?.1.value())?)).collect::<Result<_>>()?;
            let layers = read.open_table(LAYERS)?.iter()?.map(|row| Ok(serde_json::from_slice(row?.1.value())?)).collect::<Result<_>>()?;
            Ok((images, layers))
        })
        .context("images.redb: read")
    }

    /// The raw bytes of a manifest, index or config.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        self.with(|handle| Ok(handle.begin_read()?.open_table(BLOBS)?.get(digest.as_str())?.map(|value| value.value().to_vec())))
            .context("images.redb: read")
    }

    /// Commits all changes, or none.
    pub(super) fn apply(&self, ops: &[Op]) -> Result<()> {
        let removes = ops.iter().all(|op| matches!(op, Op::DeleteImage(_) | Op::DeleteLayer(_) | Op::DeleteBlob(_)))
            || ops.iter().any(|op| matches!(op, Op::PutImage(record) if record.removed));
        let Err(first) = self.with(|handle| commit(handle, ops)) else { return Ok(()) };
        // A write that failed leaves the handle unusable.
        if removes {
            self.release();
        }
        let mut handle = self.lock();
        *handle = None;
        *handle = Some(self.open_handle().context("images.redb: open again after a failed write")?);
        drop(handle);
        if !removes {
            return Err(first).context("images.redb: commit");
        }
        let again = self.with(|handle| commit(handle, ops)).context("images.redb: commit");
        self.fill_reserve();
        again
    }

    fn open_handle(&self) -> Result<Database> {
        let name = || format!("{}: open", self.path.display());
        let handle = Database::builder().set_cache_size(CACHE).create_with_file_format_v3(true).create(&self.path).with_context(name)?;
        if handle.begin_read()?.open_table(BLOBS).is_err() {
            let write = handle.begin_write().with_context(name)?;
            write.open_table(IMAGES)?;
            write.open_table(LAYERS)?;
            write.open_table(BLOBS)?;
            write.commit().with_context(name)?;
        }
        Ok(handle)
    }

    fn with<T>(&self, run: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        run(self.lock().as_ref().ok_or_else(|| anyhow!("could not be opened again after a full disk; restart"))?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Database>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self) -> bool {
        std::fs::remove_file(&self.reserve).is_ok()
    }

    /// Real blocks, not a hole. Without space there is no reserve until the next time.
    fn fill_reserve(&self) {
        if self.reserve.metadata().is_ok_and(|meta| meta.len() == RESERVE as u64) {
            return;
        }
        let written = File::create(&self.reserve).and_then(|file| file.write_all_at(&vec![0; RESERVE], 0));
        if written.is_err() {
            self.release();
        }
    }
}

fn commit(handle: &Database, ops: &[Op]) -> Result<()> {
    let write = handle.begin_write()?;
    {
        let mut images = write.open_table(IMAGES)?;
        let mut layers = write.open_table(LAYERS)?;
        let mut blobs = write.open_table(BLOBS)?;
        for op in ops {
            match op {
                Op::PutImage(record) => drop(images.insert(record.id.as_str(), &serde_json::to_vec(record)?[..])?),
                Op::DeleteImage(id) => drop(images.remove(id.as_str())?),
                Op::PutLayer(record) => drop(layers.insert(&record.id[..], &serde_json::to_vec(record)?[..])?),
                Op::DeleteLayer(id) => drop(layers.remove(&id[..])?),
                Op::PutBlob(digest, bytes) => drop(blobs.insert(digest.as_str(), &bytes[..])?),
                Op::DeleteBlob(digest) => drop(blobs.remove(digest.as_str())?),
            }
        }
    }
    write.commit()?;
    Ok(())
}
