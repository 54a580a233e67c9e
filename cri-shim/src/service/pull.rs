//! Our own Images service: a pull that tells how far it is, for `rrun-cri pull`, and what else its commands want of the store.

use rrun_proto::rrun::images_server::Images;
use rrun_proto::rrun::{LayerProgress, LayerState, PullProgress, PullRequest, WorkRequest, WorkResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Answer, Streamed};
use crate::error::Error;
use crate::images::progress::{Layer, State};
use crate::images::{Credentials, Reference};
use crate::person::Work;
use crate::pods::blocking;
use crate::shim::Shim;
use crate::trace::Span;

/// The Images service of a shim.
pub struct Pull {
    shim: Shim,
}

impl Pull {
    /// Serves that one.
    pub fn new(shim: Shim) -> Pull {
        Pull { shim }
    }

    async fn work(&self, work: Work, request: Request<WorkRequest>) -> Answer<WorkResponse> {
        let (images, request) = (self.shim.images.clone(), request.into_inner());
        Ok(Response::new(blocking(move || Ok(work.of(&images, &request)?)).await?))
    }
}

#[tonic::async_trait]
impl Images for Pull {
    type PullStream = Streamed<PullProgress>;

    async fn pull(&self, request: Request<PullRequest>) -> Answer<Self::PullStream> {
        let r = request.into_inner();
        let reference = Reference::parse(&r.image).map_err(|error| Error::InvalidArgument(format!("{error:#}")))?;
        let credentials = match (r.registry_token, r.identity_token, r.username, r.password) {
            (token, ..) if !token.is_empty() => Credentials::Registry(token),
            (_, token, ..) if !token.is_empty() => Credentials::Identity(token),
            (_, _, username, password) if username.is_empty() && password.is_empty() => Credentials::Anonymous,
            (_, _, username, password) => Credentials::Basic { username, password },
        };
        let (messages, stream) = mpsc::channel(16);
        let (puller, progress) = (self.shim.puller.clone(), messages.clone());
        let mut span = Span::child("pull");
        span.set("container.image.name", &r.image);
        tokio::spawn(async move {
            // A client that reads slowly misses steps; the last message waits for it.
            let pull = puller.pull(&reference, credentials, |layers| drop(progress.try_send(Ok(message(layers)))));
            let result = tokio::select! {
                result = span.of(pull) => result,
                () = messages.closed() => return,
            };
            let last = result.map(|image| PullProgress { layers: Vec::new(), image_id: image.id.clone() });
            let _ = messages.send(last.map_err(Status::from)).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn inspect(&self, request: Request<WorkRequest>) -> Answer<WorkResponse> {
        self.work(Work::Inspect, request).await
    }

    async fn export(&self, request: Request<WorkRequest>) -> Answer<WorkResponse> {
        self.work(Work::Export, request).await
    }

    async fn bundle(&self, request: Request<WorkRequest>) -> Answer<WorkResponse> {
        self.work(Work::Bundle, request).await
    }

    async fn load(&self, request: Request<WorkRequest>) -> Answer<WorkResponse> {
        self.work(Work::Load, request).await
    }
}

fn message(layers: &[Layer]) -> PullProgress {
    let layer = |layer: &Layer| LayerProgress {
        digest: layer.digest.to_string(),
        current: layer.current,
        total: layer.total,
        state: match layer.state {
            State::Waiting => LayerState::Waiting,
            State::Present => LayerState::Present,
            State::Fetching => LayerState::Fetching,
            State::Done => LayerState::Done,
        } as i32,
    };
    PullProgress { layers: layers.iter().map(layer).collect(), image_id: String::new() }
}
