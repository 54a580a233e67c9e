//! A layer's compressed bytes as a blocking [`Read`]: from the partial file first, then from the network, checked on the way.
//! [`super::pull`] hands it to the unpacker in a blocking thread; the fetching runs as a task beside it and resumes, at the same
//! server or the next, without the reader noticing. The reader's end of file means that size and digest were right.
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use rustix::fs::FlockOperation;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::config::Descriptor;
use super::digest::Hasher;
use super::failure::{Failure, Kind};
use super::http::Answer;
use super::registry::Repository;

/// Layers smaller than this are fetched again rather than resumed.
const WORTH_KEEPING: u64 = 4 << 20;
/// Bytes that a new connection must have given for the fetching to count as going on.
const PROGRESS: u64 = 64 << 10;
/// Pieces on their way to the reader; each is at most hyper's buffer of 256 KiB.
const QUEUE: usize = 12;

/// Which blob, and where its bytes may be.
pub(super) struct Source {
    pub(super) repository: Arc<Repository>,
    pub(super) descriptor: Descriptor,
    /// The file that survives a break of ours; `None`: not kept.
    pub(super) partial: Option<PathBuf>,
    /// Servers that gave wrong bytes.
    pub(super) excluded: Vec<usize>,
    /// Nobody waits any more.
    pub(super) cancelled: CancellationToken,
}

/// What the reader found out, for the puller.
#[derive(Default)]
pub(super) struct Outcome {
    /// Why the fetching ended early, or the bytes were wrong.
    pub(super) failure: Option<Failure>,
    /// Servers that gave bytes.
    pub(super) servers: Vec<usize>,
    /// Bytes that were taken from the partial file.
    pub(super) kept: u64,
}

/// The reader.
pub(super) struct BlobReader {
    source: Arc<Source>,
    outcome: Arc<Mutex<Outcome>>,
    on_bytes: Box<dyn FnMut(u64) + Send>,
    handle: Handle,
    hasher: Option<Hasher>,
    offset: u64,
    begun: bool,
    prefix: Option<io::Take<File>>,
    partial: Arc<Partial>,
    fetching: Option<mpsc::Receiver<Bytes>>,
    piece: Bytes,
}

impl BlobReader {
    /// A reader of a blob. `on_bytes` is told the offset now and then. Within a tokio runtime.
    pub(super) fn new(source: Source, outcome: Arc<Mutex<Outcome>>, on_bytes: Box<dyn FnMut(u64) + Send>) -> BlobReader {
        BlobReader {
            hasher: Some(source.descriptor.digest.hasher()),
            source: Arc::new(source),
            outcome,
            on_bytes,
            handle: Handle::current(),
            offset: 0,
            begun: false,
            prefix: None,
            partial: Arc::default(),
            fetching: None,
            piece: Bytes::new(),
        }
    }

    /// Opens the partial file: what it holds comes first, what follows is added to it.
    fn open_partial(&mut self) -> io::Result<()> {
        let size = self.source.descriptor.size;
        let Some(path) = self.source.partial.as_ref().filter(|_| size >= WORTH_KEEPING) else { return Ok(()) };
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        // Another layer of the same content may be on its way.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let length = file.metadata()?.len();
        if length > size {
            file.set_len(0)?;
        } else if length > 0 {
            self.outcome().kept = length;
            self.prefix = Some(File::open(path)?.take(length));
        }
        *self.partial.file() = Some(file);
        Ok(())
    }

    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why no more bytes come; where nobody said why, nobody waits for them.
    fn ended(&self) -> io::Error {
        let cancelled = || Failure::new(Kind::Cancelled, "cancelled");
        io::Error::other(self.outcome().failure.get_or_insert_with(cancelled).clone())
    }

    /// A partial file that cannot be used is done without.
    fn begin(&mut self) {
        self.begun = true;
        if self.open_partial().is_err() {
            self.prefix = None;
            self.outcome().kept = 0;
        }
    }

    /// The next bytes, not past the announced size.
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(prefix) = &mut self.prefix {
            let n = prefix.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            self.prefix = None;
        }
        if self.offset >= self.source.descriptor.size {
            return Ok(0);
        }
        while self.piece.is_empty() {
            let pieces = self.fetching.get_or_insert_with(|| {
                let (sender, receiver) = mpsc::channel(QUEUE);
                let (outcome, partial) = (self.outcome.clone(), self.partial.clone());
                let pieces = Pieces { sender, outcome, partial, path: self.source.partial.clone() };
                let fetching = fetch(self.source.clone(), self.offset, pieces);
                self.handle.spawn(self.source.cancelled.clone().run_until_cancelled_owned(fetching));
                receiver
            });
            let Some(piece) = pieces.blocking_recv() else {
                return Err(self.ended());
            };
            self.piece = piece;
        }
        let n = self.piece.len().min(buf.len());
        buf[..n].copy_from_slice(&self.piece[..n]);
        self.piece.advance(n);
        Ok(n)
    }

    /// The partial file is of no use any more: the layer is stored, or the bytes are wrong.
    pub(super) fn drop_partial(&mut self) {
        self.partial.remove(self.source.partial.as_deref());
    }

    /// At the end: the digest.
    fn check(&mut self) -> io::Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let (found, wanted) = (hasher.finish(), &self.source.descriptor.digest);
        if found == *wanted {
            return Ok(());
        }
        let servers: Vec<String> = self.outcome().servers.iter().map(|at| self.source.repository.server(*at)).collect();
        let from = if servers.is_empty() { "a foreign URL or the partial file".to_owned() } else { servers.join(", ") };
        let failure = Failure::new(Kind::Corrupt, format!("{from}: blob {wanted}: what came has the digest {found}"));
        self.outcome().failure = Some(failure.clone());
        self.drop_partial();
        Err(io::Error::other(failure))
    }
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.begun {
            self.begin();
        }
        if buf.is_empty() {
            return Ok(0);
        }
        if self.source.cancelled.is_cancelled() {
            return Err(self.ended());
        }
        let n = self.fill(buf)?;
        if n == 0 {
            self.check()?;
            return Ok(0);
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        let step = self.offset >> 18;
        self.offset += n as u64;
        if self.offset >> 18 != step || self.offset == self.source.descriptor.size {
            (self.on_bytes)(self.offset);
        }
        Ok(n)
    }
}

/// The file that survives a break, while it is held. What came is in it at once, whether the reader has got to it or not.
#[derive(Default)]
struct Partial(Mutex<Option<File>>);

impl Partial {
    fn file(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removed by whoever holds its lock, and by nobody else.
    fn remove(&self, path: Option<&Path>) {
        if let (Some(_), Some(path)) = (self.file().take(), path) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where the bytes go that were fetched.
struct Pieces {
    sender: mpsc::Sender<Bytes>,
    outcome: Arc<Mutex<Outcome>>,
    partial: Arc<Partial>,
    path: Option<PathBuf>,
}

impl Pieces {
    fn outcome(&self) -> std::sync::MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails where the reader is gone: so is the reason to go on. `server` is noted before: the reader may judge the blob with this
    /// piece.
    async fn send(&self, piece: Bytes, server: Option<usize>) -> Result<(), Failure> {
        if let Some(server) = server {
            let mut outcome = self.outcome();
            if !outcome.servers.contains(&server) {
                outcome.servers.push(server);
            }
        }
        if self.partial.file().is_some() {
            // A full disk: the layer may yet fit without it.
            tokio::task::block_in_place(|| {
                let written = self.partial.file().as_mut().map_or(Ok(()), |file| file.write_all(&piece));
                if written.is_err() {
                    self.partial.remove(self.path.as_deref());
                }
            });
        }
        self.sender.send(piece).await.map_err(|_| Failure::new(Kind::Cancelled, "cancelled"))
    }
}

/// Sends the blob's bytes from `offset` on, from whoever gives them; leaves the failure in `outcome` if nobody does.
async fn fetch(source: Arc<Source>, offset: u64, pieces: Pieces) {
    let mut offset = offset;
    let result = match from_servers(&source, &mut offset, &pieces).await {
        Err(failure) if !source.descriptor.urls.is_empty() => from_urls(&source, &mut offset, &pieces, failure).await,
        result => result,
    };
    if let Err(failure) = result {
        pieces.outcome().failure = Some(failure);
    }
}

async fn from_servers(source: &Source, offset: &mut u64, pieces: &Pieces) -> Result<(), Failure> {
    let mut rounds = source.repository.rounds(|endpoint| endpoint.pull);
    source.excluded.iter().for_each(|at| rounds.exclude(*at));
    while let Some(at) = rounds.next().await {
        let began = *offset;
        let result = match source.repository.blob(at, &source.descriptor.digest, began).await {
            Ok(answer) => stream(source, answer, offset, pieces, Some(at)).await,
            Err(failure) => Err(failure),
        };
        match result {
            Ok(()) => return Ok(()),
            Err(failure) if failure.is_transient() && *offset - began >= PROGRESS => rounds.broke(failure),
            Err(failure) => rounds.failed(failure),
        }
    }
    Err(rounds.verdict())
}

/// A foreign layer's own URLs, where the registry does not have it.
async fn from_urls(source: &Source, offset: &mut u64, pieces: &Pieces, registry: Failure) -> Result<(), Failure> {
    let mut last = registry;
    for url in &source.descriptor.urls {
        for _ in 0..3 {
            let began = *offset;
            let result = match source.repository.foreign(url, began).await {
                Ok(answer) => stream(source, answer, offset, pieces, None).await,
                Err(failure) => Err(failure),
            };
            let Err(failure) = result else { return Ok(()) };
            let go_on = failure.is_transient() && *offset > began;
            last = failure;
            if !go_on {
                break;
            }
        }
    }
    Err(last)
}

/// The body of one answer, from `offset` on; of a registry's server, which one.
async fn stream(source: &Source, answer: Answer, offset: &mut u64, pieces: &Pieces, server: Option<usize>) -> Result<(), Failure> {
    let Descriptor { digest, size, .. } = &source.descriptor;
    let place = format!("{}: blob {digest}", answer.server());
    let corrupt = |what: String| Failure::new(Kind::Corrupt, format!("{place}: {what}"));
    let header = |name| answer.response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    // A server without ranges begins at the beginning.
    let mut skip = *offset;
    let total = if answer.response.status() == StatusCode::PARTIAL_CONTENT {
        let text = header(CONTENT_RANGE).unwrap_or_default();
        let (start, total) = content_range(&text).ok_or_else(|| corrupt(format!("Content-Range {text:?} is not of bytes")))?;
        if start != *offset {
            return Err(corrupt(format!("bytes from {offset} were asked for, and come from {start}")));
        }
        skip = 0;
        total
    } else {
        header(CONTENT_LENGTH).and_then(|text| text.parse().ok())
    };
    let html = header(CONTENT_TYPE).is_some_and(|text| text.starts_with("text/html"));
    if html && total != Some(*size) {
        return Err(corrupt("an HTML page came instead".to_owned()));
    }
    if let Some(total) = total.filter(|total| total != size) {
        return Err(corrupt(format!("{total} bytes there, {size} were announced")));
    }
    let mut flow = source.repository.flow(answer);
    while let Some(mut piece) = flow.next().await? {
        let skipped = skip.min(piece.len() as u64);
        piece.advance(skipped as usize);
        skip -= skipped;
        if piece.is_empty() {
            continue;
        }
        if *offset + piece.len() as u64 > *size {
            return Err(corrupt(format!("more than the {size} bytes that were announced")));
        }
        *offset += piece.len() as u64;
        pieces.send(piece, server).await?;
        if offset == size {
            return Ok(());
        }
    }
    Err(Failure::new(Kind::Unavailable, format!("{place}: the connection ended after {offset} of {size} bytes")))
}

/// `bytes 5-9/10` to 5 and 10; `*` for a total that is not known.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    Some((start, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for text in ["", "bytes */10", "bytes 5/10", "lines 1-2/3"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
