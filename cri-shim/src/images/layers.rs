//! The folders of layers, and how one becomes permanent.
//!
//! Called by `images::ingest` and `images::store`. Order for power loss: unpacked under
//! `partial/`, syncfs, rename to `layers/`, sync of that folder, commit. Layers that
//! finish together share one sync and one commit ([`Commits`]).
use super::db::{LayerRecord, Op};
use super::step;
use super::store::Inner;
use crate::tree;
use anyhow::{Context, Result, anyhow};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};

/// `layers/` and `partial/` of a store.
pub(super) struct Folders {
    root: PathBuf,
    partial: PathBuf,
    layers_fd: OwnedFd,
    partial_fd: Arc<OwnedFd>,
    sweeper: mpsc::Sender<Sweep>,
    /// Bytes and inodes of folders on their way out.
    leaving: Arc<(AtomicU64, AtomicU64)>,
    serial: AtomicU64,
}

struct Sweep {
    name: CString,
    bytes: u64,
    inodes: u64,
}

impl Folders {
    pub(super) fn open(root: &Path) -> Result<Folders> {
        anyhow::ensure!(root.is_absolute(), "image store {}: not an absolute path", root.display());
        let layers = open_dir(&root.join("layers"))?;
        let partial = root.join("partial");
        let partial_fd = Arc::new(open_dir(&partial)?);
        let leaving = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let sweeper = sweep(partial_fd.clone(), leaving.clone())?;
        let folders =
            Folders { root: root.to_owned(), partial, layers_fd: layers, partial_fd, sweeper, leaving, serial: AtomicU64::new(0) };
        folders.sweep_leftovers()?;
        Ok(folders)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }

    pub(super) fn layer(&self, id: &str) -> PathBuf {
        self.root.join("layers").join(id)
    }

    /// Ids of the layer folders that exist.
    pub(super) fn present(&self) -> Result<HashSet<String>> {
        let path = self.root.join("layers");
        let entries = std::fs::read_dir(&path).with_context(|| format!("{}: read", path.display()))?;
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, std::io::Error>>()
            .map_err(Into::into)
    }

    /// A new folder under `partial/`, removed again when dropped.
    pub(super) fn scratch(&self) -> Result<Scratch> {
        let name = self.fresh_name("layer")?;
        rustix::fs::mkdirat(&self.partial_fd, &name, Mode::RWXU).with_context(|| format!("{}: mkdir", self.partial.display()))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.partial_fd, &name, flags, Mode::empty()).context("layer directory: open")?;
        Ok(Scratch { parent: self.partial_fd.clone(), name: Some(name), fd })
    }

    /// Moves a layer out of the way at once and removes it in the background.
    pub(super) fn discard_layer(&self, id: &str, bytes: u64, inodes: u64) {
        let Ok(name) = self.fresh_name("old") else { return };
        match rustix::fs::renameat(&self.layers_fd, id, &self.partial_fd, &name) {
            Ok(()) => {
                self.leaving.0.fetch_add(bytes, Ordering::Relaxed);
                self.leaving.1.fetch_add(inodes, Ordering::Relaxed);
                // Without the thread it is swept at the next start.
                self.sweeper.send(Sweep { name, bytes, inodes }).ok();
            }
            Err(Errno::NOENT) => {}
            Err(error) => tracing::warn!(layer = id, "image store: a layer that nothing uses could not be removed: {error}"),
        }
    }

    /// Bytes and inodes outside of layers: folders being removed, downloads, the database.
    pub(super) fn extra_usage(&self) -> (u64, u64) {
        let (mut bytes, mut inodes) = (self.leaving.0.load(Ordering::Relaxed), self.leaving.1.load(Ordering::Relaxed));
        for folder in [&self.root, &self.partial] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if let Ok(meta) = entry.metadata()
                    && meta.is_file()
                {
                    bytes += std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
                    inodes += 1;
                }
            }
        }
        (bytes, inodes)
    }

    /// Folders in `partial/` are of a process that is gone.
    fn sweep_leftovers(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.partial).with_context(|| format!("{}: read", self.partial.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                let name = CString::new(entry.file_name().into_encoded_bytes())?;
                self.sweeper.send(Sweep { name, bytes: 0, inodes: 0 }).ok();
            }
        }
        Ok(())
    }

    fn fresh_name(&self, what: &str) -> Result<CString> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        // The time tells it from leftovers that are still being swept.
        let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
        Ok(CString::new(format!("{what}-{nanos:x}-{serial}"))?)
    }
}

/// A folder that is being filled.
pub(super) struct Scratch {
    parent: Arc<OwnedFd>,
    name: Option<CString>,
    fd: OwnedFd,
}

impl Scratch {
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(error) = tree::remove(self.parent.as_fd(), &name)
        {
            tracing::warn!("image store: partial layer {name:?} stays until the next start: {error:#}");
        }
    }
}

/// Layers waiting to become permanent.
#[derive(Default)]
pub(super) struct Commits {
    queue: Mutex<Queue>,
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<(u64, Scratch, LayerRecord)>,
    results: Vec<(u64, Result<(), String>)>,
    next: u64,
    busy: bool,
}

impl Inner {
    /// Makes a layer permanent. Whoever comes first works for all that wait; the others find
    /// their result.
    pub(super) fn commit_layer(&self, scratch: Scratch, record: LayerRecord) -> Result<()> {
        let commits = &self.commits;
        let mut queue = commits.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = queue.next;
        queue.next += 1;
        queue.waiting.push((ticket, scratch, record));
        loop {
            if let Some(at) = queue.results.iter().position(|(of, _)| *of == ticket) {
                return queue.results.swap_remove(at).1.map_err(|text| anyhow!(text));
            }
            if queue.busy {
                queue = commits.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            queue.busy = true;
            let batch = std::mem::take(&mut queue.waiting);
            drop(queue);
            let tickets: Vec<u64> = batch.iter().map(|(ticket, ..)| *ticket).collect();
            let result = self.commit_layers(batch.into_iter().map(|(_, scratch, record)| (scratch, record)).collect());
            queue = commits.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.busy = false;
            // The leader keeps the error with its causes; the others get its text.
            let text = result.as_ref().copied().map_err(|error| format!("{error:#}"));
            queue.results.extend(tickets.iter().filter(|of| **of != ticket).map(|of| (*of, text.clone())));
            commits.done.notify_all();
            if tickets.contains(&ticket) {
                return result;
            }
        }
    }

    fn commit_layers(&self, batch: Vec<(Scratch, LayerRecord)>) -> Result<()> {
        step("layer-unpacked");
        rustix::fs::syncfs(&self.folders.partial_fd).context("image store: sync")?;
        step("layer-synced");
        let mut records = Vec::new();
        for (mut scratch, record) in batch {
            let known = self.state.read().unwrap_or_else(PoisonError::into_inner).layers.contains_key(&record.id);
            let Some(name) = scratch.name.as_ref().filter(|_| !known) else { continue };
            match rustix::fs::renameat(&self.folders.partial_fd, name, &self.folders.layers_fd, &record.id) {
                Ok(()) => scratch.name = None,
                // The same layer came twice in one batch.
                Err(Errno::NOTEMPTY | Errno::EXIST) if records.iter().any(|of: &LayerRecord| of.id == record.id) => continue,
                Err(error) => {
                    self.discard_all(&records);
                    return Err(error).with_context(|| format!("layer {}: rename", record.id));
                }
            }
            step("layer-renamed");
            records.push(record);
        }
        let ops: Vec<Op> = records.iter().cloned().map(Op::PutLayer).collect();
        let synced = rustix::fs::fsync(&self.folders.layers_fd).context("layers folder: sync");
        if let Err(error) = synced.and_then(|()| self.db.apply(&ops)) {
            self.discard_all(&records);
            return Err(error);
        }
        step("layer-committed");
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.layers.extend(records.into_iter().map(|record| (record.id.clone(), record)));
        Ok(())
    }

    fn discard_all(&self, records: &[LayerRecord]) {
        for record in records {
            self.folders.discard_layer(&record.id, record.bytes, record.inodes);
        }
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    std::fs::create_dir_all(path).with_context(|| format!("{}: mkdir", path.display()))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("{}: open", path.display()))?;
    rustix::fs::fchmod(&fd, Mode::RWXU).with_context(|| format!("{}: chmod", path.display()))?;
    Ok(fd)
}

/// The thread that removes folders; ends with the store.
fn sweep(partial: Arc<OwnedFd>, leaving: Arc<(AtomicU64, AtomicU64)>) -> Result<mpsc::Sender<Sweep>> {
    let (sender, receiver) = mpsc::channel::<Sweep>();
    std::thread::Builder::new().name("images-sweep".into()).spawn(move || {
        for Sweep { name, bytes, inodes } in receiver {
            if let Err(error) = tree::remove(partial.as_fd(), &name) {
                tracing::warn!("image store: {name:?} stays until the next start: {error:#}");
            }
            leaving.0.fetch_sub(bytes, Ordering::Relaxed);
            leaving.1.fetch_sub(inodes, Ordering::Relaxed);
        }
    })?;
    Ok(sender)
}
