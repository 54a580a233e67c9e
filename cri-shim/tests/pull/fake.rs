//! A registry that does as it is told: what a rule does not answer is answered from its content, with ranges.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::image::Content;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path with its query.
    pub(crate) path: String,
    /// By name in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
    /// How often this path was asked for before.
    pub(crate) before: usize,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value)
    }
}

/// What is done with a request.
#[derive(Clone)]
pub(crate) enum Reply {
    /// What a good registry says.
    Good,
    /// A whole answer.
    Say(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// The good answer, of whose body so many bytes come, and then the connection ends.
    Cut(usize),
    /// The same, and then nothing happens.
    Stall(usize),
    /// A byte at a time with a pause after each.
    Drip(Duration),
    /// The good answer to a request without a range.
    NoRange,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Reply {
        Reply::Say(status, Vec::new(), Vec::new())
    }

    pub(crate) fn json(status: u16, body: &str) -> Reply {
        Reply::Say(status, vec![("content-type", "application/json".to_owned())], body.as_bytes().to_vec())
    }
}

type Rule = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A running fake on a port of loopback; its threads end with the process.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    pub(crate) fn start(content: Content, rule: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (content, rule, kept): (_, Arc<Rule>, _) = (Arc::new(content), Arc::new(rule), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (content, rule, log) = (content.clone(), rule.clone(), kept.clone());
                std::thread::spawn(move || serve(stream, &content, &*rule, &log));
            }
        });
        Fake { address, log }
    }

    /// What was asked so far.
    pub(crate) fn log(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }

    /// An image of this registry.
    pub(crate) fn image(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

fn serve(mut stream: TcpStream, content: &Content, rule: &Rule, log: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(mut asked) = read(&mut reader) {
        {
            let mut log = log.lock().unwrap();
            asked.before = log.iter().filter(|other| other.path == asked.path).count();
            log.push(asked.clone());
        }
        let reply = rule(&asked);
        let (status, headers, body) = match &reply {
            Reply::Say(status, headers, body) => (*status, headers.clone(), body.clone()),
            Reply::NoRange => good(content, &asked, ""),
            _ => good(content, &asked, asked.header("range")),
        };
        let mut head = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in &headers {
            head += &format!("{name}: {value}\r\n");
        }
        if stream.write_all(format!("{head}\r\n").as_bytes()).is_err() {
            return;
        }
        match reply {
            Reply::Cut(bytes) => {
                let _ = stream.write_all(&body[..bytes.min(body.len())]);
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
            Reply::Stall(bytes) => {
                let _ = stream.write_all(&body[..bytes.min(body.len())]);
                std::thread::sleep(Duration::from_secs(600));
                return;
            }
            Reply::Drip(pause) => {
                for byte in body.chunks(1) {
                    if stream.write_all(byte).is_err() {
                        return;
                    }
                    std::thread::sleep(pause);
                }
            }
            _ => {
                if stream.write_all(&body).is_err() {
                    return;
                }
            }
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked { method, path, headers, body: String::from_utf8_lossy(&body).into_owned(), before: 0 })
}

fn good(content: &Content, asked: &Asked, range: &str) -> (u16, Vec<(&'static str, String)>, Vec<u8>) {
    let path = asked.path.split('?').next().unwrap();
    let mut parts = path.rsplit('/');
    let (name, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match kind {
        "manifests" => match content.manifests.get(name) {
            Some((media_type, bytes)) => (200, vec![("content-type", media_type.clone())], bytes.clone()),
            None => missing("MANIFEST_UNKNOWN"),
        },
        "blobs" => match content.blobs.get(name) {
            Some(bytes) => match range.strip_prefix("bytes=").and_then(|text| text.strip_suffix('-')?.parse::<usize>().ok()) {
                Some(from) => {
                    let header = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                    (206, vec![("content-range", header)], bytes[from..].to_vec())
                }
                None => (200, vec![("content-type", "application/octet-stream".to_owned())], bytes.clone()),
            },
            None => missing("BLOB_UNKNOWN"),
        },
        _ => missing("UNSUPPORTED"),
    }
}

fn missing(code: &str) -> (u16, Vec<(&'static str, String)>, Vec<u8>) {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"not here"}}]}}"#);
    (404, vec![("content-type", "application/json".to_owned())], body.into_bytes())
}
