//! The `channel.k8s.io` protocols: a WebSocket's messages as channels, for exec, attach and old port-forward clients. The
//! taking apart does no IO; the fuzz target `websocket` drives it too.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::link::{Gone, Incoming, Outgoing, Patience};
use super::websocket::{self, Error, Event};

/// What channels lead to.
pub(super) trait Handler: Send {
    /// A piece of a channel.
    fn piece(&mut self, piece: Piece<'_>, patience: &Patience) -> impl Future<Output = Result<(), Gone>> + Send;
}

/// Reads until the client leaves; answers pings and the close.
pub(super) async fn read(
    incoming: &mut Incoming,
    out: &Outgoing,
    mut channels: Channels,
    patience: &Patience,
    handler: &mut impl Handler,
) -> anyhow::Result<()> {
    let mut parser = websocket::Parser::default();
    loop {
        let mut bytes = incoming.read().await?;
        if bytes.is_empty() {
            return Ok(());
        }
        while let Some(event) = parser.next(&mut bytes)? {
            match event {
                Event::Message { bytes, start, end } => {
                    if let Some(piece) = channels.piece(bytes, start, end)? {
                        handler.piece(piece, patience).await?;
                    }
                }
                Event::Ping(bytes) => out.websocket_control(websocket::pong(&bytes)).await,
                Event::Close => {
                    out.websocket_close(websocket::CLOSE_NORMAL).await;
                    out.controls_written().await;
                    return Ok(());
                }
            }
        }
    }
}

/// Takes messages apart into channels: the first byte is the channel's number, with base64 an ASCII digit.
#[derive(Debug, Default)]
pub struct Channels {
    base64: bool,
    half_close: bool,
    current: Option<u8>,
    /// The current message has said which channel it ends.
    ended: bool,
    /// Base64 text that is no whole group of four yet.
    carry: Vec<u8>,
    decoded: Vec<u8>,
}

/// What a piece of a message means.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of a channel.
    Data(u8, &'a [u8]),
    /// The client will send nothing more on this channel (v5).
    End(u8),
}

/// The channel of v5's half-close messages.
const HALF_CLOSE: u8 = 255;

impl Channels {
    /// Channels of a protocol, with base64 text or not, with half-close messages (v5) or not.
    pub fn new(base64: bool, half_close: bool) -> Channels {
        Channels { base64, half_close, ..Channels::default() }
    }

    /// Takes the next piece of a message, as [`Event::Message`] tells it.
    pub fn piece<'a>(&'a mut self, mut bytes: &'a [u8], start: bool, end: bool) -> Result<Option<Piece<'a>>, Error> {
        if start {
            self.current = None;
            self.ended = false;
            self.carry.clear();
        }
        let channel = match self.current {
            Some(channel) => channel,
            None => {
                let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
                bytes = rest;
                let channel = match self.base64 {
                    true if first.is_ascii_digit() => first - b'0',
                    true => return Err(Error("a message does not begin with a channel's digit")),
                    false => *first,
                };
                self.current = Some(channel);
                channel
            }
        };
        if channel == HALF_CLOSE && self.half_close {
            let named = bytes.first().filter(|_| !self.ended).map(|channel| Piece::End(*channel));
            self.ended |= named.is_some();
            return Ok(named);
        }
        if self.base64 {
            self.decode(bytes, end)?;
            bytes = &self.decoded;
        }
        Ok(Some(Piece::Data(channel, bytes)))
    }

    fn decode(&mut self, text: &[u8], end: bool) -> Result<(), Error> {
        self.carry.extend_from_slice(text);
        let whole = if end { self.carry.len() } else { self.carry.len() / 4 * 4 };
        self.decoded.clear();
        let encoded = self.carry[..whole].trim_ascii_end();
        let engine = if encoded.len().is_multiple_of(4) { STANDARD } else { STANDARD_NO_PAD };
        engine.decode_vec(encoded, &mut self.decoded).map_err(|_| Error("a message is not base64"))?;
        self.carry.drain(..whole);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_of_binary_base64_and_half_close() {
        let mut v5 = Channels::new(false, true);
        assert_eq!(v5.piece(b"", true, false), Ok(None));
        assert_eq!(v5.piece(b"\0ab", false, false), Ok(Some(Piece::Data(0, b"ab"))));
        assert_eq!(v5.piece(b"c", false, true), Ok(Some(Piece::Data(0, b"c"))));
        assert_eq!(v5.piece(&[255, 0], true, true), Ok(Some(Piece::End(0))));
        assert_eq!(v5.piece(&[255], true, false), Ok(None));
        assert_eq!(v5.piece(&[0], false, false), Ok(Some(Piece::End(0))));
        assert_eq!(v5.piece(&[1], false, true), Ok(None), "one message ends one channel");
        assert_eq!(Channels::new(false, false).piece(&[255, 0], true, true), Ok(Some(Piece::Data(255, &[0]))));
        let text = STANDARD.encode("hello, world");
        for cut in 0..=text.len() {
            let mut base64 = Channels::new(true, false);
            let (first, second) = (format!("0{}", &text[..cut]), &text[cut..]);
            let mut out = Vec::new();
            for (bytes, start) in [(first.as_bytes(), true), (second.as_bytes(), false)] {
                let Ok(Some(Piece::Data(0, bytes))) = base64.piece(bytes, start, !start) else { panic!("cut at {cut}") };
                out.extend_from_slice(bytes);
            }
            assert_eq!(out, b"hello, world", "cut at {cut}");
        }
        assert!(Channels::new(true, false).piece(b"x", true, true).is_err());
        assert!(Channels::new(true, false).piece(b"0!!!!", true, true).is_err());
    }
}
