//! How far a pull is, for whoever watches it: one list of layers behind a watch channel. A watcher that is slow misses steps
//! and never the last one, and delays nobody.
use tokio::sync::watch;

use super::digest::Digest;

/// What is done with a layer at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not begun.
    Waiting,
    /// Was there before.
    Present,
    /// Being fetched and unpacked.
    Fetching,
    /// Unpacked and stored.
    Done,
}

/// One layer of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the compressed layer.
    pub digest: Digest,
    /// Bytes of it that have been unpacked.
    pub current: u64,
    /// Its size in bytes.
    pub total: u64,
    /// What is done with it.
    pub state: State,
}

/// The layers of a pull, lowest first; empty until its manifest is known.
pub struct Progress {
    layers: watch::Sender<Vec<Layer>>,
}

impl Progress {
    /// No layer known yet.
    pub fn new() -> Progress {
        Progress { layers: watch::Sender::new(Vec::new()) }
    }

    /// A receiver that sees the present state and is woken by each change.
    pub fn watch(&self) -> watch::Receiver<Vec<Layer>> {
        self.layers.subscribe()
    }

    /// The manifest is known.
    pub(super) fn begin(&self, layers: impl IntoIterator<Item = (Digest, u64)>) {
        let all = layers.into_iter().map(|(digest, total)| Layer { digest, current: 0, total, state: State::Waiting }).collect();
        self.layers.send_replace(all);
    }

    /// Layer `at` has come to a state.
    pub(super) fn set(&self, at: usize, state: State, current: u64) {
        self.layers.send_modify(|layers| {
            if let Some(layer) = layers.get_mut(at) {
                (layer.state, layer.current) = (state, current);
            }
        });
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}
