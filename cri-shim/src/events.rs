//! What happened to pods and containers, in order, to every reader of GetContainerEvents. A reader that does not keep up
//! loses the oldest events and is told so by the end of its stream, so that it lists everything anew.

use rrun_proto::v1::ContainerEventResponse;
use tokio::sync::broadcast;

/// How many events wait for the slowest reader.
const WAITING: usize = 4096;

/// The event log.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<ContainerEventResponse>,
}

impl Default for Events {
    fn default() -> Self {
        Events { sender: broadcast::channel(WAITING).0 }
    }
}

impl Events {
    /// Tells all readers. Never waits.
    pub fn publish(&self, event: ContainerEventResponse) {
        let _ = self.sender.send(event); // nobody listens: nobody misses it
    }

    /// Everything from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.sender.subscribe()
    }

    /// Whether anybody listens: the statuses in an event are made for readers only.
    pub fn has_readers(&self) -> bool {
        self.sender.receiver_count() > 0
    }
}
