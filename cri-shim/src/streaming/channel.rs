//! One channel towards the client: a SPDY stream, or a channel number of a WebSocket.

use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::link::{Chunk, Outgoing};
use super::spdy::frame;
use super::websocket;

/// A channel that can be written to.
#[derive(Clone)]
pub(super) struct Channel {
    out: Arc<Outgoing>,
    framing: Framing,
}

#[derive(Clone, Copy)]
enum Framing {
    Spdy { stream: u32 },
    WebSocket { number: u8, base64: bool },
}

impl Channel {
    /// A SPDY stream.
    pub(super) fn spdy(out: Arc<Outgoing>, stream: u32) -> Channel {
        Channel { out, framing: Framing::Spdy { stream } }
    }

    /// A channel of a WebSocket.
    pub(super) fn websocket(out: Arc<Outgoing>, number: u8, base64: bool) -> Channel {
        Channel { out, framing: Framing::WebSocket { number, base64 } }
    }

    /// Whether either side can end its direction and go on with the other.
    pub(super) fn half_closes(&self) -> bool {
        matches!(self.framing, Framing::Spdy { .. })
    }

    /// Writes the payload in `chunk`, which is of no use afterwards until it is cleared.
    pub(super) async fn write(&self, chunk: &mut Chunk) -> io::Result<()> {
        self.frame(chunk);
        self.out.write(chunk).await
    }

    /// Writes a copy of `bytes`.
    pub(super) async fn write_copy(&self, bytes: &[u8]) -> io::Result<()> {
        self.write(&mut Chunk::from(bytes)).await
    }

    /// A last text on this channel, its end, and the end of others after it, in one write: nobody who sees one of the others
    /// end can have missed the text. A WebSocket's channels have no ends.
    pub(super) async fn finish(&self, text: &[u8], others: &[Channel]) -> io::Result<()> {
        let mut all = Chunk::new(0);
        if let Framing::Spdy { stream } = self.framing {
            all.buffer().extend_from_slice(&frame::data_head(stream, text.len(), true));
            all.buffer().extend_from_slice(text);
            for other in others {
                if let Framing::Spdy { stream } = other.framing {
                    all.buffer().extend_from_slice(&frame::data_head(stream, 0, true));
                }
            }
        } else if !text.is_empty() {
            return self.write_copy(text).await;
        } else {
            return Ok(());
        }
        self.out.write(&mut all).await
    }

    /// Breaks a SPDY stream off; nothing with a WebSocket.
    pub(super) async fn reset(&self, why: frame::Reset) {
        if let Framing::Spdy { stream } = self.framing {
            self.out.control(frame::reset(stream, why)).await;
        }
    }

    fn frame(&self, chunk: &mut Chunk) {
        match self.framing {
            Framing::Spdy { stream } => {
                let head = frame::data_head(stream, chunk.bytes().len(), false);
                chunk.prepend(&head);
            }
            Framing::WebSocket { number, base64 } => {
                if base64 {
                    *chunk = Chunk::from(STANDARD.encode(chunk.bytes()).as_bytes());
                }
                chunk.prepend(&[if base64 { b'0' + number } else { number }]);
                let (head, length) = websocket::message_head(chunk.bytes().len(), base64);
                chunk.prepend(&head[..length]);
            }
        }
    }
}
