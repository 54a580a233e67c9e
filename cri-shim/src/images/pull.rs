//! Pulls an image: name to manifest to layers, several at a time, each from the network into its folder in one pass.
//! The image service and `rrun-cri pull` call it. Pulls of the same name with the same credentials are one job; whoever asks
//! waits for it, and it ends when the last one who waits goes away. What is visible in the store is whole.
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use rustix::fs::FlockOperation;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::auth::Credentials;
use super::blob::{BlobReader, Outcome, Source};
use super::failure::{Failure, Kind};
use super::http::Pace;
use super::policy::Policy;
use super::progress::{Layer, Progress, State};
use super::registry::{Document, Registry, Repository};
use super::resolve::{self, Resolved};
use super::{Digest, Image, Images, Ingest, LayerWriter, Names, NewImage, Reference, disk_full};
use crate::config;
use crate::error::Error;

/// Partial files that nobody has come back for in this time are removed.
const PARTIAL_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How often a pull is begun anew because a server gave wrong bytes.
const ATTEMPTS: usize = 4;

/// Pulls into one store. Cheap to clone.
#[derive(Clone)]
pub struct Puller(Arc<Inner>);

struct Inner {
    images: Images,
    registry: Arc<Registry>,
    policy: PathBuf,
    parallel: usize,
    jobs: Mutex<HashMap<Key, Weak<Job>>>,
}

/// What makes two pulls the same: what one may see is not shown to another.
type Key = (String, Credentials);

/// A running pull. It is cancelled when nobody holds it any more.
struct Job {
    progress: Arc<Progress>,
    /// Nothing else keeps the image: who pulled it and removes it at once removes its layers.
    finished: Shared<BoxFuture<'static, Result<Arc<Image>, Failure>>>,
    task: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Puller {
    /// A puller into `images` with the settings of the `[images]` table.
    pub fn new(images: Images, settings: &config::Images) -> Puller {
        Puller::with_pace(images, settings, Pace::new(settings.stall_seconds))
    }

    /// The same at another pace.
    pub fn with_pace(images: Images, settings: &config::Images, pace: Pace) -> Puller {
        let registry = Registry::new(settings.registry_config_dirs.clone(), pace);
        let (policy, parallel) = (settings.policy.clone(), settings.parallel_layers.max(1));
        Puller(Arc::new(Inner { images, registry, policy, parallel, jobs: Mutex::default() }))
    }

    /// Pulls an image, or joins who does already. `watcher` is called with the layers whenever something changed. Dropping the
    /// future cancels the pull unless somebody else waits for it; what was fetched of large layers is kept for the next one.
    ///
    /// Errors name the image, the registry and the cause; `RegistryUnavailable` and `SignatureValidationFailed` are prefixes as
    /// CRI has them.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Credentials,
        mut watcher: impl FnMut(&[Layer]),
    ) -> Result<Arc<Image>, Error> {
        let job = self.job(reference, credentials);
        let (mut layers, mut finished) = (job.progress.watch(), job.finished.clone());
        let result = loop {
            tokio::select! {
                biased;
                Ok(()) = layers.changed() => {
                    let now = layers.borrow_and_update().clone();
                    watcher(&now);
                }
                result = &mut finished => break result,
            }
        };
        result.map_err(|failure| failure.into_error(&reference.to_string()))
    }

    fn job(&self, reference: &Reference, credentials: Credentials) -> Arc<Job> {
        let key = (reference.to_string(), credentials.clone());
        let mut jobs = self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.retain(|_, job| job.strong_count() > 0);
        // A job that has its result is history: what it saw may have changed since.
        if let Some(job) = jobs.get(&key).and_then(Weak::upgrade)
            && !job.task.is_finished()
        {
            return job;
        }
        let progress = Arc::new(Progress::new());
        let (puller, reference, watched) = (self.clone(), reference.clone(), progress.clone());
        let running = tokio::spawn(async move { puller.run(&reference, credentials, &watched).await });
        let task = running.abort_handle();
        let ended =
            |result: Result<_, tokio::task::JoinError>| result.unwrap_or_else(|error| Err(Failure::new(Kind::Local, error.to_string())));
        let job = Arc::new(Job { progress, finished: running.map(ended).boxed().shared(), task });
        jobs.insert(key, Arc::downgrade(&job));
        job
    }

    async fn run(&self, reference: &Reference, credentials: Credentials, progress: &Arc<Progress>) -> Result<Arc<Image>, Failure> {
        let repository = Arc::new(self.0.registry.repository(reference, credentials)?);
        let policy = Policy::load(&self.0.policy, reference).map_err(|error| Failure::new(Kind::Settings, format!("{error:#}")))?;
        let top = resolve::top(&repository, reference).await?;
        policy.check(&repository, reference, &top).await?;
        let known = |digest: &Digest| self.0.images.blob(digest).ok().flatten();
        let resolved = resolve::resolve(&repository, top, &resolve::host_platform(), &known).await?;
        let names = names(reference, &resolved);
        let ingest = self.fill(&repository, &resolved, progress).await?;
        let image = blocking(move || ingest.commit(names).map_err(local)).await?;
        self.sweep().await;
        Ok(image)
    }

    /// Brings all layers into the store; begins anew where a server gave wrong bytes and there is another.
    async fn fill(&self, repository: &Arc<Repository>, resolved: &Resolved, progress: &Arc<Progress>) -> Result<Ingest, Failure> {
        let mut excluded: HashMap<Digest, Vec<usize>> = HashMap::new();
        let mut attempt = 1;
        loop {
            let (images, new) = (self.0.images.clone(), new_image(resolved));
            let ingest = blocking(move || images.begin(new).map_err(|error| Failure::new(Kind::Unsupported, format!("{error:#}")))).await?;
            progress.begin(ingest.layers().iter().map(|plan| (plan.descriptor.digest.clone(), plan.descriptor.size)));
            let Err((failure, wrong)) = self.layers(repository, &ingest, progress, &excluded).await else { return Ok(ingest) };
            attempt += 1;
            let Some(wrong) = wrong.filter(|_| attempt <= ATTEMPTS) else { return Err(self.give_up(failure).await) };
            let servers = excluded.entry(wrong.digest).or_default();
            servers.extend(wrong.servers);
            if repository.pullable().all(|at| servers.contains(&at)) {
                return Err(failure);
            }
        }
    }

    /// All layers once, lowest first, some at a time. The first failure ends the others.
    async fn layers(
        &self,
        repository: &Arc<Repository>,
        ingest: &Ingest,
        progress: &Arc<Progress>,
        excluded: &HashMap<Digest, Vec<usize>>,
    ) -> Result<(), (Failure, Option<Wrong>)> {
        let cancelled = CancellationToken::new();
        let _guard = cancelled.clone().drop_guard();
        let places = Arc::new(Semaphore::new(self.0.parallel));
        let mut running = JoinSet::new();
        let ended = |result: Result<Result<(), (Failure, Option<Wrong>)>, tokio::task::JoinError>| {
            result.unwrap_or_else(|error| Err((Failure::new(Kind::Local, format!("unpack: {error}")), None)))
        };
        for (at, plan) in ingest.layers().iter().enumerate() {
            let place = loop {
                tokio::select! {
                    biased;
                    Some(result) = running.join_next() => ended(result)?,
                    place = places.clone().acquire_owned() => break place,
                }
            };
            // Another pull may be making it: that one's failure is not ours.
            let writer = tokio::select! {
                writer = ingest.claim(at) => writer,
                failure = first_failure(&mut running) => return Err(failure),
            };
            let digest = &plan.descriptor.digest;
            let partial = self.0.images.partial_dir().join(digest.as_str().replace(':', "-"));
            let Some(writer) = writer else {
                remove_unlocked(&partial);
                progress.set(at, State::Present, plan.descriptor.size);
                continue;
            };
            progress.set(at, State::Fetching, 0);
            let source = Source {
                repository: repository.clone(),
                descriptor: plan.descriptor.clone(),
                partial: Some(partial),
                excluded: excluded.get(digest).cloned().unwrap_or_default(),
                cancelled: cancelled.clone(),
            };
            let watched = progress.clone();
            let outcome = Arc::new(Mutex::new(Outcome::default()));
            let reader = BlobReader::new(source, outcome.clone(), Box::new(move |bytes| watched.set(at, State::Fetching, bytes)));
            let (watched, size) = (progress.clone(), plan.descriptor.size);
            running.spawn_blocking(move || {
                let _place = place;
                write_layer(writer, reader, &outcome)?;
                watched.set(at, State::Done, size);
                Ok(())
            });
        }
        while let Some(result) = running.join_next().await {
            ended(result)?;
        }
        Ok(())
    }

    /// A full disk is not left full of what did not fit.
    async fn give_up(&self, failure: Failure) -> Failure {
        if failure.kind == Kind::DiskFull {
            let dir = self.0.images.partial_dir().to_owned();
            let _ = tokio::task::spawn_blocking(move || sweep_partials(&dir, Duration::ZERO)).await;
        }
        failure
    }

    async fn sweep(&self) {
        let dir = self.0.images.partial_dir().to_owned();
        let _ = tokio::task::spawn_blocking(move || sweep_partials(&dir, PARTIAL_LIFE)).await;
    }
}

/// A blob that came wrong, and who gave it.
struct Wrong {
    digest: Digest,
    servers: Vec<usize>,
}

/// Fails with the first layer that does; never ends otherwise.
async fn first_failure(running: &mut JoinSet<Result<(), (Failure, Option<Wrong>)>>) -> (Failure, Option<Wrong>) {
    while let Some(result) = running.join_next().await {
        match result {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => return failure,
            Err(error) => return (Failure::new(Kind::Local, format!("unpack: {error}")), None),
        }
    }
    std::future::pending().await
}

/// One layer, in a blocking thread.
fn write_layer(writer: LayerWriter, mut reader: BlobReader, outcome: &Mutex<Outcome>) -> Result<(), (Failure, Option<Wrong>)> {
    let digest = writer.plan().descriptor.digest.clone();
    let Err(error) = writer.write_verified(&mut reader) else {
        reader.drop_partial();
        return Ok(());
    };
    let fetched_well = outcome.lock().unwrap_or_else(PoisonError::into_inner).failure.is_none();
    if fetched_well && !disk_full(&error) {
        // It broke in the middle of the archive: the rest of the bytes tells whether the image or the server is to blame.
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    }
    let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(failure) = outcome.failure.take() else {
        if !disk_full(&error) {
            reader.drop_partial();
        }
        return Err((local(error), None));
    };
    let (mut servers, kept) = (std::mem::take(&mut outcome.servers), outcome.kept);
    if kept > 0 {
        // What was kept of an earlier pull may have been the wrong part.
        servers.clear();
    }
    let wrong = (failure.kind == Kind::Corrupt).then_some(Wrong { digest, servers });
    Err((failure, wrong.filter(|wrong| kept > 0 || !wrong.servers.is_empty())))
}

fn local(error: anyhow::Error) -> Failure {
    Failure::new(if disk_full(&error) { Kind::DiskFull } else { Kind::Local }, format!("{error:#}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Failure::new(Kind::Local, error.to_string())))
}

fn new_image(resolved: &Resolved) -> NewImage {
    let index = (resolved.top.digest != resolved.manifest.digest).then(|| resolved.top.bytes.clone());
    NewImage { manifest: resolved.manifest.bytes.clone(), config: resolved.config.clone(), index }
}

fn names(reference: &Reference, resolved: &Resolved) -> Names {
    let by_digest = |document: &Document| reference.with_digest(&document.digest);
    let mut digests = vec![by_digest(&resolved.top)];
    if resolved.manifest.digest != resolved.top.digest {
        digests.push(by_digest(&resolved.manifest));
    }
    let tags = reference.tag.is_some().then(|| reference.to_string());
    Names { tags: tags.into_iter().collect(), digests, pinned: false }
}

/// Removes partial files older than `age` that no pull is writing to.
fn sweep_partials(dir: &std::path::Path, age: Duration) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let is_blob = entry.file_name().to_str().is_some_and(|name| name.starts_with("sha256-") || name.starts_with("sha512-"));
        let old = |modified: SystemTime| modified.elapsed().is_ok_and(|since| since >= age);
        if !is_blob || !entry.metadata().is_ok_and(|m| m.is_file() && m.modified().is_ok_and(old)) {
            continue;
        }
        remove_unlocked(&entry.path());
    }
}

/// Removes a partial file unless a pull is writing to it.
fn remove_unlocked(path: &std::path::Path) {
    let Ok(file) = std::fs::File::open(path) else { return };
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        let _ = std::fs::remove_file(path);
    }
}
