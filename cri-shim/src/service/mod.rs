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

/// An answer without content.
fn done<T: Default>() -> Response<T> {
    Response::new(T::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Events;
    use futures_util::StreamExt;

    fn event(at: i64) -> ContainerEventResponse {
        ContainerEventResponse { created_at: at, ..Default::default() }
    }

    #[tokio::test]
    async fn events_without_a_reader_are_nobodys_and_a_slow_reader_is_told() {
        let events = Events::default();
        events.publish(event(1));
        assert!(!events.has_readers());
        let (slow, mut good) = (follow(events.subscribe()), Box::pin(follow(events.subscribe())));
        for at in 2..6000 {
            events.publish(event(at));
            assert_eq!(good.next().await.unwrap().unwrap().created_at, at);
        }
        let read: Vec<_> = slow.collect().await;
        assert_eq!(read.len(), 1, "its end comes at once");
        let end = read[0].as_ref().unwrap_err();
        assert!(end.code() == tonic::Code::DataLoss && end.message().contains("list everything"), "{end:?}");
        drop(good);
        assert!(!events.has_readers());
    }
}
