//! Small clients: a request by hand, SPDY by the crate's own frames with a compressor of another make, WebSocket by
//! tungstenite.

use std::collections::HashMap;

use flate2::{Compress, Compression, FlushCompress};
use rrun_cri::streaming::spdy::frame;
use rrun_cri::streaming::spdy::headers::{DICTIONARY, Inflater};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A frame of the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Reply(u32),
    Data(u32, Vec<u8>, bool),
    Reset(u32),
    Ping(u32),
}

/// Sends a request and reads the head of the answer.
pub(crate) async fn ask(url: &str, headers: &str) -> (TcpStream, String) {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("POST /{path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    (socket, String::from_utf8(head).unwrap())
}

/// A SPDY client.
pub(crate) struct Spdy {
    pub(crate) socket: TcpStream,
    deflater: Compress,
    inflater: Inflater,
    next: u32,
}

impl Spdy {
    pub(crate) async fn connect(url: &str, protocol: &str) -> Spdy {
        let headers = format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n");
        let (socket, head) = ask(url, &headers).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut deflater = Compress::new(Compression::default(), true);
        deflater.set_dictionary(&DICTIONARY).unwrap();
        Spdy { socket, deflater, inflater: Inflater::default(), next: 1 }
    }

    /// Opens a stream without waiting for the answer.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut block = Vec::with_capacity(4096);
        self.deflater.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
        let stream = self.next;
        self.next += 2;
        let mut bytes = vec![0x80, 3, 0, 1, 0, 0];
        bytes.extend(((block.len() + 10) as u16).to_be_bytes());
        bytes.extend(stream.to_be_bytes());
        bytes.extend([0; 6]);
        bytes.extend(block);
        self.socket.write_all(&bytes).await.unwrap();
        stream
    }

    /// Opens the streams of a command and waits until they are accepted; their ids by type.
    pub(crate) async fn open_all(&mut self, types: &[&'static str]) -> HashMap<&'static str, u32> {
        let mut streams = HashMap::new();
        for kind in types {
            let stream = self.open(&[("streamtype", kind)]).await;
            assert_eq!(self.frame().await, Frame::Reply(stream));
            streams.insert(*kind, stream);
        }
        streams
    }

    /// Opens the pair of a port-forward; its error and its data stream.
    pub(crate) async fn open_pair(&mut self, id: &str, port: u16) -> (u32, u32) {
        let port = port.to_string();
        let mut streams = Vec::new();
        for kind in ["error", "data"] {
            streams.push(self.open(&[("streamtype", kind), ("port", &port), ("requestid", id)]).await);
        }
        (streams[0], streams[1])
    }

    pub(crate) async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.socket.write_all(&frame::data_head(stream, bytes.len(), fin)).await.unwrap();
        self.socket.write_all(bytes).await.unwrap();
    }

    /// The next frame.
    pub(crate) async fn frame(&mut self) -> Frame {
        let mut head = [0; 8];
        self.socket.read_exact(&mut head).await.expect("the server closed the connection");
        let word = |bytes: &[u8]| u32::from_be_bytes(bytes[..4].try_into().unwrap());
        let mut body = vec![0; word(&head[4..]) as usize & 0xff_ffff];
        self.socket.read_exact(&mut body).await.unwrap();
        if head[0] & 0x80 == 0 {
            return Frame::Data(word(&head), body, head[4] & 1 == 1);
        }
        match head[3] {
            2 => {
                self.inflater.headers(&body[4..]).unwrap();
                Frame::Reply(word(&body))
            }
            3 => Frame::Reset(word(&body)),
            6 => Frame::Ping(word(&body)),
            kind => panic!("frame of type {kind}"),
        }
    }

    /// Reads exactly `length` bytes of `stream`, in however many frames they come; replies in between.
    pub(crate) async fn bytes(&mut self, stream: u32, length: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < length {
            match self.frame().await {
                Frame::Reply(_) => {}
                Frame::Data(id, bytes, false) if id == stream => got.extend(bytes),
                other => panic!("{other:?} after {got:?} of stream {stream}"),
            }
        }
        got
    }

    /// Reads until all of `streams` have ended; what they gave, and the order of their ends.
    pub(crate) async fn read_to_ends(&mut self, streams: &[u32]) -> (HashMap<u32, Vec<u8>>, Vec<u32>) {
        let (mut bytes, mut ends) = (HashMap::<u32, Vec<u8>>::new(), Vec::new());
        while !streams.iter().all(|stream| ends.contains(stream)) {
            match self.frame().await {
                Frame::Data(stream, data, fin) => {
                    assert!(!ends.contains(&stream), "data after the end of stream {stream}");
                    bytes.entry(stream).or_default().extend(data);
                    if fin {
                        ends.push(stream);
                    }
                }
                Frame::Reset(stream) => ends.push(stream),
                _ => {}
            }
        }
        (bytes, ends)
    }
}
