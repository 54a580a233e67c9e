//! Frames: bytes in, frames out, and back. Called by the session; no IO, and no buffer but that of one control frame, as
//! data is handed on in the pieces it comes in.
//!
//! ```text
//! control  1 | version 15 | type 16 | flags 8 | length 24 | body        data  0 | stream 31 | flags 8 | length 24 | bytes
//! ```

use super::headers::{Headers, Inflater, Storer};

/// Longest control frame. Ours are tens of bytes; the peers' limit of a header is 1 MiB.
pub const CONTROL_LIMIT: usize = 1 << 20;
/// Longest data frame that the 24 bits can say.
pub const DATA_LIMIT: usize = (1 << 24) - 1;

const VERSION: u16 = 3;
const FIN: u8 = 1;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is refused or broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reset {
    /// The stream makes no sense.
    Protocol = 1,
    /// It was refused before anything was done.
    Refused = 3,
    /// It is no longer wanted.
    Cancel = 5,
    /// Something broke on this side.
    Internal = 6,
}

/// What makes a connection unusable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Not SPDY/3.
    #[error("SPDY frame of version {0}: only version 3 is spoken")]
    Version(u16),
    /// The frame is longer than anyone needs.
    #[error("SPDY control frame of type {0} has {1} bytes: the limit is {CONTROL_LIMIT}")]
    TooLong(u16, usize),
    /// The frame is shorter than its type demands.
    #[error("SPDY control frame of type {0} is too short")]
    TooShort(u16),
    /// Stream 0, or one that cannot be.
    #[error("SPDY stream {0} cannot be")]
    Stream(u32),
    /// The header block is wrong.
    #[error("SPDY headers: {0}")]
    Headers(&'static str),
}

/// A frame, or a piece of a data frame. What needs no answer (SETTINGS, WINDOW_UPDATE, HEADERS, replies) is not told.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The client opens a stream.
    Open {
        /// Its id.
        stream: u32,
        /// Its headers.
        headers: Headers,
        /// The client will send nothing on it.
        fin: bool,
    },
    /// Bytes of a stream.
    Data {
        /// Its id.
        stream: u32,
        /// The bytes, perhaps none.
        bytes: &'a [u8],
        /// The last ones.
        fin: bool,
    },
    /// The client breaks a stream off.
    Reset {
        /// Its id.
        stream: u32,
    },
    /// To be sent back as it is.
    Ping {
        /// Its id.
        id: u32,
    },
    /// The client is about to leave.
    GoAway,
}

/// Reads one direction of a connection.
pub struct Parser {
    state: State,
    inflater: Inflater,
}

enum State {
    Head { bytes: [u8; 8], have: usize },
    Control { kind: u16, flags: u8, length: usize, body: Vec<u8> },
    Data { stream: u32, left: usize, fin: bool },
    Skip { left: usize },
}

const START: State = State::Head { bytes: [0; 8], have: 0 };

impl Default for Parser {
    fn default() -> Self {
        Parser { state: START, inflater: Inflater::default() }
    }
}

impl Parser {
    /// Takes bytes off `input` until there is a frame to tell; `None` when `input` is used up. After an error nothing more
    /// can be read.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, Error> {
        loop {
            match &mut self.state {
                State::Head { bytes, have } => {
                    let (piece, rest) = input.split_at(input.len().min(8 - *have));
                    bytes[*have..*have + piece.len()].copy_from_slice(piece);
                    *have += piece.len();
                    *input = rest;
                    if *have < 8 {
                        return Ok(None);
                    }
                    let head = *bytes;
                    self.state = begin(head)?;
                }
                State::Control { kind, flags, length, body } => {
                    let (piece, rest) = input.split_at(input.len().min(*length - body.len()));
                    body.extend_from_slice(piece);
                    *input = rest;
                    if body.len() < *length {
                        return Ok(None);
                    }
                    let (kind, flags, body) = (*kind, *flags, std::mem::take(body));
                    self.state = START;
                    if let Some(frame) = self.control(kind, flags, &body)? {
                        return Ok(Some(frame));
                    }
                }
                State::Data { stream, left, fin } => {
                    if input.is_empty() && *left > 0 {
                        return Ok(None);
                    }
                    let (bytes, rest) = input.split_at(input.len().min(*left));
                    *input = rest;
                    *left -= bytes.len();
                    let frame = Frame::Data { stream: *stream, bytes, fin: *fin && *left == 0 };
                    if *left == 0 {
                        self.state = START;
                    }
                    return Ok(Some(frame));
                }
                State::Skip { left } => {
                    let skipped = input.len().min(*left);
                    *input = &input[skipped..];
                    *left -= skipped;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.state = START;
                }
            }
        }
    }

    fn control<'a>(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Frame<'a>>, Error> {
        let word = |at: usize| match body.get(at..at + 4) {
            Some(&[a, b, c, d]) => Ok(u32::from_be_bytes([a, b, c, d])),
            _ => Err(Error::TooShort(kind)),
        };
        let block = |from: usize| body.get(from..).ok_or(Error::TooShort(kind));
        Ok(match kind {
            SYN_STREAM => {
                let stream = word(0)? & 0x7fff_ffff;
                let headers = self.inflater.headers(block(10)?)?;
                Some(Frame::Open { stream, headers, fin: flags & FIN != 0 })
            }
            // Nobody needs them, but the zlib stream goes through them.
            SYN_REPLY | HEADERS => {
                self.inflater.headers(block(4)?)?;
                None
            }
            RST_STREAM => Some(Frame::Reset { stream: word(0)? & 0x7fff_ffff }),
            PING => Some(Frame::Ping { id: word(0)? }),
            _ => Some(Frame::GoAway),
        })
    }
}

/// What a frame's first eight bytes lead to.
fn begin(head: [u8; 8]) -> Result<State, Error> {
    let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
    if head[0] & 0x80 == 0 {
        let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if stream == 0 {
            return Err(Error::Stream(0));
        }
        return Ok(State::Data { stream, left: length, fin: head[4] & FIN != 0 });
    }
    let version = u16::from_be_bytes([head[0] & 0x7f, head[1]]);
    if version != VERSION {
        return Err(Error::Version(version));
    }
    let kind = u16::from_be_bytes([head[2], head[3]]);
    if length > CONTROL_LIMIT {
        return Err(Error::TooLong(kind, length));
    }
    match kind {
        SYN_STREAM | SYN_REPLY | RST_STREAM | PING | GOAWAY | HEADERS => {
            Ok(State::Control { kind, flags: head[4], length, body: Vec::with_capacity(length.min(4096)) })
        }
        _ => Ok(State::Skip { left: length }),
    }
}

/// The head of a data frame; `length` at most [`DATA_LIMIT`].
pub fn data_head(stream: u32, length: usize, fin: bool) -> [u8; 8] {
    let ([a, b, c, d], [_, e, f, g]) = (stream.to_be_bytes(), (length as u32).to_be_bytes());
    [a, b, c, d, u8::from(fin), e, f, g]
}

/// The acceptance of a stream, without headers.
pub fn reply(stream: u32, storer: &mut Storer) -> Vec<u8> {
    let block = storer.block(&[]);
    [&stream.to_be_bytes()[..], &block].concat().into_control(SYN_REPLY, 0)
}

/// The opening of a stream, for clients of this module: tests and the fuzz target.
pub fn open(stream: u32, headers: &[(&str, &str)], fin: bool, storer: &mut Storer) -> Vec<u8> {
    let block = storer.block(headers);
    [&stream.to_be_bytes()[..], &[0; 6], &block].concat().into_control(SYN_STREAM, u8::from(fin))
}

/// The end of a stream, out of turn.
pub fn reset(stream: u32, why: Reset) -> Vec<u8> {
    [stream.to_be_bytes(), (why as u32).to_be_bytes()].concat().into_control(RST_STREAM, 0)
}

/// A ping or its answer.
pub fn ping(id: u32) -> Vec<u8> {
    id.to_be_bytes().to_vec().into_control(PING, 0)
}

trait IntoControl {
    fn into_control(self, kind: u16, flags: u8) -> Vec<u8>;
}

impl IntoControl for Vec<u8> {
    fn into_control(self, kind: u16, flags: u8) -> Vec<u8> {
        let (version, length) = ((0x8000 | VERSION).to_be_bytes(), (self.len() as u32).to_be_bytes());
        let head = [version[0], version[1], kind.to_be_bytes()[0], kind.to_be_bytes()[1], flags, length[1], length[2], length[3]];
        [&head[..], &self].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything told about `bytes` when they come in pieces of `step`, pieces of data joined.
    fn told(bytes: &[u8], step: usize) -> Result<Vec<String>, Error> {
        let mut parser = Parser::default();
        let (mut out, mut data) = (Vec::new(), Vec::new());
        for mut piece in bytes.chunks(step) {
            while let Some(frame) = parser.next(&mut piece)? {
                match frame {
                    Frame::Data { stream, bytes, fin } => {
                        data.extend_from_slice(bytes);
                        if fin {
                            out.push(format!("{stream} {:?}", String::from_utf8_lossy(&std::mem::take(&mut data))));
                        }
                    }
                    other => out.push(format!("{other:?}")),
                }
            }
        }
        Ok(out)
    }

    fn conversation() -> Vec<u8> {
        let mut storer = Storer::default();
        let settings = [0, 0, 0, 0].to_vec().into_control(4, 0);
        let window = [0; 8].to_vec().into_control(9, 0);
        let goaway = [0; 8].to_vec().into_control(GOAWAY, 0);
        [
            open(1, &[("streamtype", "error")], true, &mut storer),
            settings,
            open(3, &[("streamtype", "stdin")], false, &mut storer),
            data_head(3, 5, false).to_vec(),
            b"hello".to_vec(),
            window,
            ping(7),
            reply(1, &mut storer),
            data_head(3, 6, true).to_vec(),
            b" world".to_vec(),
            data_head(1, 0, true).to_vec(),
            reset(3, Reset::Cancel),
            goaway,
        ]
        .concat()
    }

    #[test]
    fn frames_are_the_same_however_they_are_cut() {
        let bytes = conversation();
        let whole = told(&bytes, bytes.len()).unwrap();
        assert_eq!(whole.len(), 7, "{whole:?}");
        assert_eq!(whole[2], "Ping { id: 7 }");
        assert_eq!(whole[3], "3 \"hello world\"");
        assert_eq!(whole[4], "1 \"\"");
        for step in 1..40 {
            assert_eq!(told(&bytes, step).unwrap(), whole, "in steps of {step}");
        }
    }

    #[test]
    fn layouts_are_the_published_ones() {
        assert_eq!(ping(0x01020304), [0x80, 3, 0, 6, 0, 0, 0, 4, 1, 2, 3, 4]);
        assert_eq!(reset(5, Reset::Refused), [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 3]);
        assert_eq!(data_head(0x7fff_fffe, 0x01_0203, true), [0x7f, 0xff, 0xff, 0xfe, 1, 1, 2, 3]);
        let reply = reply(9, &mut Storer::default());
        assert_eq!(&reply[..12], [0x80, 3, 0, 2, 0, 0, 0, (reply.len() - 8) as u8, 0, 0, 0, 9]);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let mut long = data_head(0, 2 << 20, false);
        long[..4].copy_from_slice(&[0x80, 3, 0, 1]);
        assert_eq!(told(&long, 8), Err(Error::TooLong(1, 2 << 20)));
        assert_eq!(told(&[0x80, 2, 0, 1, 0, 0, 0, 0], 8), Err(Error::Version(2)));
        assert_eq!(told(&[0; 8], 8), Err(Error::Stream(0)));
        assert_eq!(told(&[0x80, 3, 0, 6, 0, 0, 0, 1, 0], 9), Err(Error::TooShort(6)));
        assert_eq!(told(&[0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1], 12), Err(Error::TooShort(1)));
        assert_eq!(told(b"GET / HTTP/1.1\r\n", 16).unwrap(), Vec::<String>::new(), "a long data frame that never ends");
    }

    #[test]
    fn damaged_conversations_end_in_errors_not_panics() {
        let good = conversation();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..1 + random % 4 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let at = random as usize % bytes.len();
                bytes[at] = (random >> 32) as u8;
            }
            let (whole, cut) = (told(&bytes, bytes.len()), told(&bytes, 1 + random as usize % 30));
            assert_eq!(whole, cut);
        }
    }
}
