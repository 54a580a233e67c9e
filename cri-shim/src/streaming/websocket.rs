//! WebSocket frames as RFC 6455 has them for a server. No IO, and nothing is gathered: a message is handed on in the pieces
//! it comes in, unmasked in place, so its length does not matter. The fuzz target `websocket` drives it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// Longest head of a frame that a server sends.
pub const HEAD_LIMIT: usize = 10;

/// Why a connection is closed (RFC 6455, 7.4.1).
pub const CLOSE_NORMAL: u16 = 1000;
/// The peer broke the protocol.
pub const CLOSE_PROTOCOL: u16 = 1002;

const CONTINUE: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The value of `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key`.
pub fn accept_key(key: &str) -> String {
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()))
}

/// What makes a connection unusable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("WebSocket: {0}")]
pub struct Error(pub(super) &'static str);

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A piece of a message.
    Message {
        /// The bytes, perhaps none.
        bytes: &'a [u8],
        /// The first piece.
        start: bool,
        /// The last piece.
        end: bool,
    },
    /// To be answered by a pong with the same bytes.
    Ping(Vec<u8>),
    /// The client leaves; to be answered by a close.
    Close,
}

/// Reads what a client sends.
#[derive(Debug, Default)]
pub struct Parser {
    head: [u8; 14],
    have: usize,
    payload: Option<Payload>,
    /// A message has begun and not ended.
    inside: bool,
    control: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Payload {
    opcode: u8,
    fin: bool,
    start: bool,
    left: u64,
    mask: [u8; 4],
}

impl Parser {
    /// Takes bytes off `input`, unmasking them, until there is something to tell; `None` when `input` is used up. After an
    /// error nothing more can be read.
    pub fn next<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Event<'a>>, Error> {
        loop {
            let Some(payload) = &mut self.payload else {
                if !self.read_head(input)? {
                    return Ok(None);
                }
                continue;
            };
            if input.is_empty() && payload.left > 0 {
                return Ok(None);
            }
            let length = usize::try_from(payload.left).map_or(input.len(), |left| left.min(input.len()));
            let (bytes, rest) = std::mem::take(input).split_at_mut(length);
            *input = rest;
            unmask(bytes, &mut payload.mask);
            payload.left -= length as u64;
            let (this, done) = (*payload, payload.left == 0);
            payload.start = false;
            if done {
                self.payload = None;
            }
            if this.opcode < CLOSE {
                self.inside = !(done && this.fin);
                return Ok(Some(Event::Message { bytes, start: this.start, end: done && this.fin }));
            }
            self.control.extend_from_slice(bytes);
            if done {
                let control = std::mem::take(&mut self.control);
                match this.opcode {
                    PING => return Ok(Some(Event::Ping(control))),
                    CLOSE => return Ok(Some(Event::Close)),
                    _ => {}
                }
            }
        }
    }

    /// Reads on in the head of a frame; true when it is there.
    fn read_head(&mut self, input: &mut &mut [u8]) -> Result<bool, Error> {
        loop {
            let (extended, want) = match (self.have, self.head[1] & 0x7f) {
                (0 | 1, _) => (0, 2),
                (_, 126) => (2, 8),
                (_, 127) => (8, 14),
                _ => (0, 6),
            };
            if self.have >= 6 && self.have == want {
                let mut mask = [0; 4];
                mask.copy_from_slice(&self.head[want - 4..want]);
                let left = match extended {
                    0 => u64::from(self.head[1] & 0x7f),
                    n => self.head[2..2 + n].iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
                };
                self.begin(left, mask)?;
                self.have = 0;
                return Ok(true);
            }
            let taken = input.len().min(want - self.have);
            if taken == 0 {
                return Ok(false);
            }
            let (piece, rest) = std::mem::take(input).split_at_mut(taken);
            self.head[self.have..self.have + taken].copy_from_slice(piece);
            self.have += taken;
            *input = rest;
        }
    }

    fn begin(&mut self, left: u64, mask: [u8; 4]) -> Result<(), Error> {
        let (first, masked) = (self.head[0], self.head[1] & 0x80 != 0);
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        let wrong = match opcode {
            _ if first & 0x70 != 0 => Some("a reserved bit is set: no extension was agreed on"),
            _ if !masked => Some("a client's frame is not masked"),
            _ if left > i64::MAX as u64 => Some("a frame of more than 2^63 bytes"),
            CONTINUE if !self.inside => Some("a continuation of no message"),
            TEXT | BINARY if self.inside => Some("a message within a message"),
            CLOSE..=PONG if !fin || left > 125 => Some("a control frame is fragmented or longer than 125 bytes"),
            CONTINUE..=BINARY | CLOSE..=PONG => None,
            _ => Some("an opcode that is not defined"),
        };
        if let Some(wrong) = wrong {
            return Err(Error(wrong));
        }
        self.payload = Some(Payload { opcode, fin, start: matches!(opcode, TEXT | BINARY), left, mask });
        Ok(())
    }
}

/// Unmasks `bytes` and turns the mask to where the next byte continues.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let word = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let mut words = bytes.chunks_exact_mut(8);
    for chunk in words.by_ref() {
        let mut value = [0; 8];
        value.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(value) ^ word).to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
    mask.rotate_left(bytes.len() % 4);
}

/// The head of a message in one frame, and its length.
pub fn message_head(length: usize, text: bool) -> ([u8; HEAD_LIMIT], usize) {
    head(if text { TEXT } else { BINARY }, length)
}

/// A pong. Without a ping it is a sign of life.
pub fn pong(bytes: &[u8]) -> Vec<u8> {
    control(PONG, bytes)
}

/// A close with its reason; the reason is cut to what a control frame holds.
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    control(CLOSE, &[&code.to_be_bytes(), &reason.as_bytes()[..end]].concat())
}

fn control(opcode: u8, bytes: &[u8]) -> Vec<u8> {
    let (head, length) = head(opcode, bytes.len());
    [&head[..length], bytes].concat()
}

fn head(opcode: u8, length: usize) -> ([u8; HEAD_LIMIT], usize) {
    let mut head = [0; HEAD_LIMIT];
    head[0] = 0x80 | opcode;
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..126), _) => {
            head[1] = short;
            (head, 2)
        }
        (_, Ok(middle)) => {
            head[1] = 126;
            head[2..4].copy_from_slice(&middle.to_be_bytes());
            (head, 4)
        }
        _ => {
            head[1] = 127;
            head[2..].copy_from_slice(&(length as u64).to_be_bytes());
            (head, 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let ([_, second, extended @ ..], length) = head(0, payload.len());
        let mut out = vec![first, second | 0x80];
        out.extend_from_slice(&extended[..length - 2]);
        out.extend_from_slice(&mask);
        out.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
        out
    }

    /// Messages and other events of `bytes` when they come in pieces of `step`.
    fn told(bytes: &[u8], step: usize) -> Result<Vec<String>, Error> {
        let mut parser = Parser::default();
        let (mut out, mut message) = (Vec::new(), Vec::new());
        let mut bytes = bytes.to_vec();
        for mut piece in bytes.chunks_mut(step) {
            while let Some(event) = parser.next(&mut piece)? {
                match event {
                    Event::Message { bytes, start, end } => {
                        assert!(!start || message.is_empty());
                        message.extend_from_slice(bytes);
                        if end {
                            out.push(format!("{:?}", String::from_utf8_lossy(&std::mem::take(&mut message))));
                        }
                    }
                    other => out.push(format!("{other:?}")),
                }
            }
        }
        Ok(out)
    }

    #[test]
    fn messages_are_the_same_however_they_are_cut() {
        let long = "0123456789".repeat(30);
        let bytes = [
            frame(0x82, b"\0hello"),
            frame(0x02, b"one "),
            frame(0x89, b"?"),
            frame(0x80, b"two"),
            frame(0x81, b""),
            frame(0x8a, b"late"),
            frame(0x82, long.as_bytes()),
            frame(0x88, &[3, 232]),
        ]
        .concat();
        let whole = told(&bytes, bytes.len()).unwrap();
        let expected = ["\"\\0hello\"", "Ping([63])", "\"one two\"", "\"\"", &format!("\"{long}\""), "Close"];
        assert_eq!(whole, expected);
        for step in 1..60 {
            assert_eq!(told(&bytes, step).unwrap(), whole, "in steps of {step}");
        }
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        let mut plain = frame(0x82, b"x");
        plain[1] &= 0x7f;
        let huge = [&[0x82, 0xff][..], &[0xff; 12]].concat();
        for (what, bytes) in [
            ("not masked", [plain, vec![0; 8]].concat()),
            ("reserved bit", frame(0xc2, b"x")),
            ("opcode", frame(0x83, b"x")),
            ("continuation of nothing", frame(0x80, b"x")),
            ("message in a message", [frame(0x02, b"x"), frame(0x82, b"y")].concat()),
            ("fragmented ping", frame(0x09, b"x")),
            ("long ping", frame(0x89, &[0; 126])),
            ("huge", huge),
        ] {
            assert!(told(&bytes, bytes.len()).is_err(), "{what}");
        }
    }

    #[test]
    fn heads_and_keys_are_the_published_ones() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(message_head(125, false), ([0x82, 125, 0, 0, 0, 0, 0, 0, 0, 0], 2));
        assert_eq!(message_head(126, true), ([0x81, 126, 0, 126, 0, 0, 0, 0, 0, 0], 4));
        assert_eq!(message_head(65536, false), ([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], 10));
        assert_eq!(pong(b"hi"), [0x8a, 2, b'h', b'i']);
        assert_eq!(close(1000, &"ü".repeat(100)).len(), 2 + 2 + 122);
    }

    #[test]
    fn damaged_conversations_end_in_errors_not_panics() {
        let good = [frame(0x02, b"\0one"), frame(0x89, b"?"), frame(0x80, b"two"), frame(0x88, b"")].concat();
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = random as usize % bytes.len();
            bytes[at] = (random >> 32) as u8;
            assert_eq!(told(&bytes, bytes.len()), told(&bytes, 1 + random as usize % 20));
        }
    }
}
