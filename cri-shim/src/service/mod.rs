//! The two services of CRI: one line per RPC.

pub(crate) mod deadline;
mod image;
mod images;
mod pull;
mod runtime;
mod version;

use std::pin::Pin;

use rrun_proto::v1::ContainerEventResponse;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_stream::Stream;
use tonic::{Response, Status};

pub use image::Image;
pub use pull::Pull;
pub use runtime::Runtime;

/// What an RPC answers.
type Answer<T> = Result<Response<T>, Status>;
/// What a streaming RPC answers with.
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How many items one message of a streamed list has.
const PIECE: usize = 250;

/// A list in pieces.
fn pieces<T>(items: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.into_iter();
    std::iter::from_fn(move || Some(items.by_ref().take(PIECE).collect::<Vec<_>>()).filter(|piece| !piece.is_empty()))
}

/// Messages as a streaming RPC's answer.
fn stream<T: Send + 'static>(messages: impl Iterator<Item = T> + Send + 'static) -> Response<Streamed<T>> {
    Response::new(Box::pin(tokio_stream::iter(messages.map(Ok))))
}

/// Events from now on. A reader that was too slow is told by the stream's end: it has to list everything anew.
fn follow(events: Receiver<ContainerEventResponse>) -> impl Stream<Item = Result<ContainerEventResponse, Status>> + Send {
    futures_util::stream::unfold(Some(events), |events| async {
        let mut events = events?;
        match events.recv().await {
            Ok(event) => Some((Ok(event), Some(events))),
            Err(RecvError::Lagged(lost)) => {
                let text = format!("{lost} events were lost because they were not read: list everything, then listen again");
                Some((Err(Status::data_loss(text)), None))
            }
            Err(RecvError::Closed) => None,
        }
    })
}

/// An RPC that is not there.
fn unimplemented(rpc: &str) -> Status {
    Status::unimplemented(format!("{rpc} is not part of this release of rrun-cri"))
}

/// An answer without content.
fn done<T: Default>() -> Response<T> {
    Response::new(T::default())
}
