//! One SPDY connection: reads frames, answers what is the session's own (pings, the rules of stream ids), and tells a
//! handler about streams. What carries the frames, a socket or a tunnel in a WebSocket, makes no difference to it.

use std::sync::Arc;

use super::frame::{self, Frame, Parser, Reset};
use super::headers::{Headers, Storer};
use crate::streaming::link::{Gone, Incoming, Outgoing, Patience};
use crate::streaming::websocket;

/// What happens on the streams of a session.
pub(in crate::streaming) trait Handler: Send {
    /// The client opens a stream, to be answered by [`Session::accept`] or [`Session::refuse`].
    fn open(&mut self, session: &mut Session, stream: u32, headers: Headers) -> impl Future<Output = ()> + Send;
    /// Bytes of an accepted stream.
    fn data(&mut self, stream: u32, bytes: &[u8], patience: &Patience) -> impl Future<Output = Result<(), Gone>> + Send;
    /// The client will send nothing more on it.
    fn end(&mut self, stream: u32);
    /// The client has broken it off.
    fn reset(&mut self, stream: u32);
}

/// A session as its handler sees it.
pub(in crate::streaming) struct Session {
    pub(in crate::streaming) out: Arc<Outgoing>,
    parser: Parser,
    storer: Storer,
    last: u32,
}

impl Session {
    pub(in crate::streaming) fn new(out: Arc<Outgoing>) -> Session {
        Session { out, parser: Parser::default(), storer: Storer::default(), last: 0 }
    }

    /// Reads until the client leaves. `tunnel` is the WebSocket's parser if there is one in between.
    pub(in crate::streaming) async fn run(
        mut self,
        incoming: &mut Incoming,
        mut tunnel: Option<websocket::Parser>,
        patience: &Patience,
        handler: &mut impl Handler,
    ) -> anyhow::Result<()> {
        loop {
            let mut bytes = incoming.read().await?;
            if bytes.is_empty() {
                return Ok(());
            }
            let Some(parser) = &mut tunnel else {
                self.take(bytes, patience, handler).await?;
                continue;
            };
            while let Some(event) = parser.next(&mut bytes)? {
                match event {
                    websocket::Event::Message { bytes, .. } => self.take(bytes, patience, handler).await?,
                    websocket::Event::Ping(bytes) => self.out.websocket_control(websocket::pong(&bytes)).await,
                    websocket::Event::Close => {
                        self.out.websocket_close(websocket::CLOSE_NORMAL).await;
                        self.out.controls_written().await;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Accepts a stream. The reply is queued before anything that is written to the stream after
    /// [`Outgoing::controls_written`].
    pub(in crate::streaming) async fn accept(&mut self, stream: u32) {
        let reply = frame::reply(stream, &mut self.storer);
        self.out.control(reply).await;
    }

    /// Refuses a stream.
    pub(in crate::streaming) async fn refuse(&self, stream: u32, why: Reset) {
        self.out.control(frame::reset(stream, why)).await;
    }

    async fn take(&mut self, mut bytes: &[u8], patience: &Patience, handler: &mut impl Handler) -> anyhow::Result<()> {
        while let Some(frame) = self.parser.next(&mut bytes)? {
            match frame {
                Frame::Open { stream, headers, fin } => {
                    if stream % 2 == 0 || stream <= self.last {
                        return Err(frame::Error::Stream(stream).into());
                    }
                    self.last = stream;
                    handler.open(self, stream, headers).await;
                    if fin {
                        handler.end(stream);
                    }
                }
                Frame::Data { stream, bytes, fin } => {
                    if !bytes.is_empty() {
                        handler.data(stream, bytes, patience).await?;
                    }
                    if fin {
                        handler.end(stream);
                    }
                }
                Frame::Reset { stream } => handler.reset(stream),
                Frame::Ping { id } if id % 2 == 1 => self.out.control(frame::ping(id)).await,
                // An answer to a ping of ours: there is none.
                Frame::Ping { .. } => {}
                Frame::GoAway => {}
            }
        }
        Ok(())
    }
}
