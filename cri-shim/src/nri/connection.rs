//! A plugin's socket: calls go out and their answers come back, calls come in. Whoever sends what is no such protocol, or
//! hangs up, is closed; a plugin that does not read makes calls to it late and nobody else.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rrun_proto::ttrpc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::frames::{DATA_MAX, Frame, PLUGIN, REQUEST, RESPONSE, RUNTIME, Reader};
use super::message::Message;

const PACKAGE: &str = "nri.pkg.api.v1alpha1";
/// Frames that wait for a plugin to read.
const BACKLOG: usize = 16;

/// A connected plugin.
pub(super) struct Connection {
    calls: Mutex<Calls>,
    out: mpsc::Sender<Frame>,
    closed: CancellationToken,
}

#[derive(Default)]
struct Calls {
    last: u32,
    waiting: HashMap<u32, oneshot::Sender<ttrpc::Response>>,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The plugin is gone, or what it says cannot be read.
    #[error("its connection is closed")]
    Closed,
    /// It did not answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// It answered with an error.
    #[error("{1}")]
    Refused(Code, String),
    /// The answer is not the message that it should be.
    #[error("its answer cannot be read: {0}")]
    Garbage(String),
}

impl Connection {
    /// Speaks on `socket` until one side closes it. `serve` answers the plugin's calls of the Runtime service: method and
    /// message in, message or error out.
    pub(super) fn start<F, A>(socket: UnixStream, serve: F) -> Arc<Connection>
    where
        F: Fn(String, Vec<u8>) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Vec<u8>, tonic::Status>> + Send + 'static,
    {
        let (out, mut queue) = mpsc::channel::<Frame>(BACKLOG);
        let connection = Arc::new(Connection { calls: Mutex::default(), out, closed: CancellationToken::new() });
        let (mut from, mut to) = socket.into_split();
        let (reading, writing) = (connection.clone(), connection.clone());
        tokio::spawn(async move {
            let write = async {
                while let Some(frame) = queue.recv().await {
                    if to.write_all(&frame.encode()).await.is_err() {
                        break;
                    }
                }
            };
            tokio::select! { () = write => writing.close(), () = writing.closed.cancelled() => {} }
        });
        tokio::spawn(async move {
            let (mut reader, mut bytes) = (Reader::default(), vec![0; 64 << 10]);
            let read = async {
                while let Ok(count @ 1..) = from.read(&mut bytes).await {
                    let frames = match reader.read(&bytes[..count]) {
                        Ok(frames) => frames,
                        Err(error) => {
                            tracing::warn!("NRI: a plugin sent {error}");
                            break;
                        }
                    };
                    for frame in frames {
                        reading.received(frame, &serve);
                    }
                }
            };
            tokio::select! { () = read => reading.close(), () = reading.closed.cancelled() => {} }
        });
        connection
    }

    fn received<F, A>(self: &Arc<Self>, frame: Frame, serve: &F)
    where
        F: Fn(String, Vec<u8>) -> A,
        A: Future<Output = Result<Vec<u8>, tonic::Status>> + Send + 'static,
    {
        match (frame.connection, frame.kind) {
            (PLUGIN, RESPONSE) => {
                let waiting = self.calls().waiting.remove(&frame.stream);
                // One whose caller does not wait any more is nobody's.
                if let (Some(waiting), Ok(response)) = (waiting, ttrpc::Response::decode(&frame.data)) {
                    let _ = waiting.send(response);
                }
            }
            (RUNTIME, REQUEST) => {
                let Ok(request) = ttrpc::Request::decode(&frame.data) else { return self.close() };
                let unknown = request.service != format!("{PACKAGE}.Runtime");
                let answer = serve(request.method, request.payload);
                let connection = self.clone();
                tokio::spawn(async move {
                    let answer = match unknown {
                        true => Err(tonic::Status::unimplemented(format!("there is no service {}", request.service))),
                        false => answer.await,
                    };
                    let response = match answer {
                        Ok(payload) => ttrpc::Response { status: None, payload },
                        Err(status) => {
                            let status = ttrpc::Status { code: status.code().into(), message: status.message().to_owned() };
                            ttrpc::Response { status: Some(status), payload: Vec::new() }
                        }
                    };
                    connection.send(RUNTIME, frame.stream, RESPONSE, &response).await;
                });
            }
            _ => {}
        }
    }

    async fn send(&self, connection: u32, stream: u32, kind: u8, message: &impl Message) {
        let data = message.encode();
        if data.len() > DATA_MAX {
            tracing::warn!("NRI: a message of {} bytes is too large for a plugin", data.len());
            return self.close();
        }
        let _ = self.out.send(Frame { connection, stream, kind, data }).await;
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a method of the plugin.
    pub(super) async fn call<T: Message>(&self, method: &str, message: &impl Message, patience: Duration) -> Result<T, CallError> {
        let request = ttrpc::Request {
            service: format!("{PACKAGE}.Plugin"),
            method: method.to_owned(),
            payload: message.encode(),
            timeout_nano: patience.as_nanos() as i64,
            metadata: Vec::new(),
        };
        let (answer, waiting) = oneshot::channel();
        let call = async {
            // Numbers rise in the order of the frames: Go's server insists.
            let slot = self.out.reserve().await.map_err(|_| CallError::Closed)?;
            let data = request.encode();
            if data.len() > DATA_MAX {
                return Err(CallError::Refused(Code::ResourceExhausted, format!("a message of {} bytes is too large", data.len())));
            }
            {
                let mut calls = self.calls();
                if self.is_closed() {
                    return Err(CallError::Closed);
                }
                let stream = if calls.last == 0 { 1 } else { calls.last + 2 };
                calls.last = stream;
                calls.waiting.insert(stream, answer);
                slot.send(Frame { connection: PLUGIN, stream, kind: REQUEST, data });
            }
            waiting.await.map_err(|_| CallError::Closed)
        };
        let response = tokio::time::timeout(patience, call).await.map_err(|_| CallError::Late(patience))??;
        match response.status {
            Some(status) if status.code != 0 => Err(CallError::Refused(status.code.into(), status.message)),
            _ => T::decode(&response.payload).map_err(CallError::Garbage),
        }
    }

    /// Whether it is over.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until it is over.
    pub(super) async fn ended(&self) {
        self.closed.cancelled().await;
    }

    /// Hangs up. Calls that wait fail.
    pub(super) fn close(&self) {
        let mut calls = self.calls();
        self.closed.cancel();
        calls.waiting.clear();
    }
}
