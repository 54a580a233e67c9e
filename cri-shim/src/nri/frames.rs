//! What goes over a plugin's socket, without the socket: ttrpc's frames in those of NRI's multiplexer.
//!
//! A multiplexer's frame is the number of a connection (1: the plugin serves, 2: we do) and a length, both u32 and
//! big-endian, and that many bytes of the connection. Its frames and ttrpc's need not begin together. A frame of ttrpc is the
//! length of its data and the number of a stream, both u32 and big-endian, a type, a byte of flags, and the data.

use std::collections::BTreeMap;

/// The connection on which the plugin serves.
pub(super) const PLUGIN: u32 = 1;
/// The connection on which we serve.
pub(super) const RUNTIME: u32 = 2;
/// The type of a call.
pub(super) const REQUEST: u8 = 1;
/// The type of an answer.
pub(super) const RESPONSE: u8 = 2;
/// Most bytes of a ttrpc frame's data.
pub(super) const DATA_MAX: usize = 4 << 20;

const MUX_HEADER: usize = 8;
const HEADER: usize = 10;
/// What the other side's reader takes in one piece before it knows the length: its buffer.
const FIRST_PIECE: usize = 4096;

/// A frame of ttrpc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its connection.
    pub connection: u32,
    /// The call's number: odd.
    pub stream: u32,
    /// [`REQUEST`] or [`RESPONSE`].
    pub kind: u8,
    /// A [`rrun_proto::ttrpc`] message.
    pub data: Vec<u8>,
}

impl Frame {
    /// Its bytes for the socket. The data has at most [`DATA_MAX`] bytes.
    ///
    /// The reader of Go's stub fills a buffer of 4096 bytes, then reads what is missing of the frame at once, and cannot take
    /// a piece of the multiplexer in parts; it also has room for 256 pieces only. Two pieces cut there suit it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEADER + self.data.len());
        frame.extend((self.data.len() as u32).to_be_bytes());
        frame.extend(self.stream.to_be_bytes());
        frame.extend([self.kind, 0]);
        frame.extend(&self.data);
        let (first, rest) = frame.split_at(frame.len().min(FIRST_PIECE));
        let mut bytes = Vec::with_capacity(frame.len() + 2 * MUX_HEADER);
        for piece in [first, rest].into_iter().filter(|piece| !piece.is_empty()) {
            bytes.extend(self.connection.to_be_bytes());
            bytes.extend((piece.len() as u32).to_be_bytes());
            bytes.extend(piece);
        }
        bytes
    }
}

/// Finds frames in the bytes of a socket.
#[derive(Debug, Default)]
pub(super) struct Reader {
    trunk: Vec<u8>,
    connections: BTreeMap<u32, Vec<u8>>,
}

impl Reader {
    /// Takes further bytes; answers the frames that end in them.
    ///
    /// # Errors
    /// What is no such protocol, as text: nothing behind it can be read.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, String> {
        self.trunk.extend(bytes);
        let mut rest = self.trunk.as_slice();
        while let Some(header) = rest.first_chunk::<MUX_HEADER>() {
            let (connection, length) = (number(&header[..4]), number(&header[4..]) as usize);
            if length > HEADER + DATA_MAX {
                return Err(format!("a piece of {length} bytes for connection {connection}: that is no NRI plugin"));
            }
            let Some(piece) = rest.get(MUX_HEADER..MUX_HEADER + length) else { break };
            // Pieces for others are nobody's, as in Go's multiplexer.
            if [PLUGIN, RUNTIME].contains(&connection) {
                self.connections.entry(connection).or_default().extend(piece);
            }
            rest = &rest[MUX_HEADER + length..];
        }
        self.trunk = rest.to_vec();
        let mut frames = Vec::new();
        for (connection, bytes) in &mut self.connections {
            let mut rest = bytes.as_slice();
            while let Some(header) = rest.first_chunk::<HEADER>() {
                let length = number(&header[..4]) as usize;
                let kind = header[8];
                if length > DATA_MAX {
                    return Err(format!("a message of {length} bytes: at most {DATA_MAX} are allowed"));
                }
                if ![REQUEST, RESPONSE].contains(&kind) {
                    return Err(format!("a message of type {kind}: only calls and answers are known"));
                }
                let Some(data) = rest.get(HEADER..HEADER + length) else { break };
                frames.push(Frame { connection: *connection, stream: number(&header[4..8]), kind, data: data.to_vec() });
                rest = &rest[HEADER + length..];
            }
            *bytes = rest.to_vec();
        }
        Ok(frames)
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(connection: u32, stream: u32, length: usize) -> Frame {
        Frame { connection, stream, kind: REQUEST, data: (0..length).map(|byte| byte as u8).collect() }
    }

    #[test]
    fn the_bytes_of_a_small_frame() {
        let bytes = Frame { connection: RUNTIME, stream: 3, kind: RESPONSE, data: b"xy".to_vec() }.encode();
        assert_eq!(bytes, [0, 0, 0, 2, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 3, 2, 0, b'x', b'y']);
    }

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let sent = [frame(PLUGIN, 1, 0), frame(RUNTIME, 1, 5000), frame(PLUGIN, 3, 4086), frame(PLUGIN, 5, 4087)];
        let mut bytes = frame(7, 1, 40).encode();
        bytes.extend(sent.iter().flat_map(Frame::encode));
        for step in [1, 7, 4096, bytes.len()] {
            let mut reader = Reader::default();
            let mut got: Vec<Frame> = bytes.chunks(step).flat_map(|bytes| reader.read(bytes).unwrap()).collect();
            got.sort_by_key(|frame| (frame.connection, frame.stream));
            assert_eq!(got, [sent[0].clone(), sent[2].clone(), sent[3].clone(), sent[1].clone()], "{step} bytes at once");
        }
    }

    #[test]
    fn a_large_frame_has_two_pieces() {
        let bytes = frame(PLUGIN, 1, DATA_MAX).encode();
        assert_eq!(bytes.len(), DATA_MAX + HEADER + 2 * MUX_HEADER);
        assert_eq!(number(&bytes[4..8]) as usize, FIRST_PIECE);
    }

    #[test]
    fn what_is_no_plugin_is_refused() {
        assert!(Reader::default().read(b"GET / HTTP/1.1\r\n").unwrap_err().contains("no NRI plugin"));
        let mut bytes = frame(PLUGIN, 1, 0).encode();
        bytes[16] = 9;
        assert!(Reader::default().read(&bytes).unwrap_err().contains("type 9"));
        let mut bytes = frame(PLUGIN, 1, 0).encode();
        bytes[8] = 1;
        assert!(Reader::default().read(&bytes).unwrap_err().contains("at most"));
    }
}
