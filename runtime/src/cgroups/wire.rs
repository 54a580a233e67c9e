//! D-Bus messages and the values in them, as the specification has them on the wire ("Message
//! Protocol"). What arrives is checked for its bounds: nonsense is an error, never a panic.

use anyhow::{Result, bail};

/// The longest message that is taken.
const LONGEST: usize = 1 << 20;

/// A value of one of D-Bus' types.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    Str(String),
    /// The signature of its elements, and these.
    Array(String, Vec<Value>),
    Tuple(Vec<Value>),
    Variant(Box<Value>),
}

impl From<&str> for Value {
    fn from(s: &str) -> Value {
        Value::Str(s.to_owned())
    }
}

impl Value {
    /// The type's signature.
    pub(super) fn signature(&self) -> String {
        match self {
            Value::Byte(_) => "y".into(),
            Value::Bool(_) => "b".into(),
            Value::I16(_) => "n".into(),
            Value::U16(_) => "q".into(),
            Value::I32(_) => "i".into(),
            Value::U32(_) => "u".into(),
            Value::I64(_) => "x".into(),
            Value::U64(_) => "t".into(),
            Value::F64(_) => "d".into(),
            Value::Str(_) => "s".into(),
            Value::Array(element, _) => format!("a{element}"),
            Value::Tuple(fields) => format!("({})", fields.iter().map(Value::signature).collect::<String>()),
            Value::Variant(_) => "v".into(),
        }
    }

    /// Appends it; alignment counts from the start of `to`.
    fn write(&self, to: &mut Vec<u8>) {
        fn put<const N: usize>(to: &mut Vec<u8>, bytes: [u8; N]) {
            pad(to, N);
            to.extend_from_slice(&bytes);
        }
        match self {
            Value::Byte(n) => to.push(*n),
            Value::Bool(b) => put(to, u32::from(*b).to_le_bytes()),
            Value::I16(n) => put(to, n.to_le_bytes()),
            Value::U16(n) => put(to, n.to_le_bytes()),
            Value::I32(n) => put(to, n.to_le_bytes()),
            Value::U32(n) => put(to, n.to_le_bytes()),
            Value::I64(n) => put(to, n.to_le_bytes()),
            Value::U64(n) => put(to, n.to_le_bytes()),
            Value::F64(n) => put(to, n.to_le_bytes()),
            Value::Str(s) => {
                put(to, (s.len() as u32).to_le_bytes());
                to.extend_from_slice(s.as_bytes());
                to.push(0);
            }
            Value::Array(element, items) => {
                put(to, [0; 4]);
                let length_at = to.len() - 4;
                // The padding to the first element stands before it even where there is none, and
                // does not count.
                pad(to, alignment(element));
                let start = to.len();
                items.iter().for_each(|item| item.write(to));
                let length = (to.len() - start) as u32;
                to[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
            }
            Value::Tuple(fields) => {
                pad(to, 8);
                fields.iter().for_each(|field| field.write(to));
            }
            Value::Variant(value) => {
                write_signature(&value.signature(), to);
                value.write(to);
            }
        }
    }
}

fn write_signature(signature: &str, to: &mut Vec<u8>) {
    to.push(signature.len() as u8);
    to.extend_from_slice(signature.as_bytes());
    to.push(0);
}

fn pad(to: &mut Vec<u8>, alignment: usize) {
    to.resize(to.len().next_multiple_of(alignment), 0);
}

fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'n' | b'q') => 2,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 4,
    }
}

/// A method to call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

/// A received message, as far as anybody asks.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) reply_to: u32,
    pub(super) member: String,
    pub(super) error: String,
    body: Vec<u8>,
}

const METHOD_CALL: u8 = 1;
pub(super) const METHOD_RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

impl Message {
    /// Its body, to be read in order.
    pub(super) fn body(&self) -> Reader<'_> {
        Reader { bytes: &self.body, at: 0 }
    }
}

/// An error that the called side answered with.
#[derive(Debug)]
pub(super) struct Refused {
    /// Such as `org.freedesktop.systemd1.UnitExists`.
    pub(super) name: String,
    pub(super) text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.text.is_empty() { f.write_str(&self.name) } else { f.write_str(&self.text) }
    }
}

impl std::error::Error for Refused {}

/// Reads values off a message's body; alignment counts from its start.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let piece = self.bytes.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(piece)
    }

    fn align(&mut self, n: usize) {
        self.at = self.at.next_multiple_of(n);
    }

    /// A `u`.
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// An `s` or `o`.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = usize::from(*self.take(1)?.first()?);
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }

    /// A `v` that holds an `s`.
    pub(super) fn text_variant(&mut self) -> Option<&'a str> {
        (self.signature()? == "s").then(|| self.text())?
    }
}

/// One complete message: header, fields, padding, body.
pub(super) fn encode(serial: u32, method: Method<'_>, arguments: &[Value]) -> Vec<u8> {
    let mut body = Vec::new();
    arguments.iter().for_each(|a| a.write(&mut body));
    let mut out = vec![b'l', METHOD_CALL, 0, 1];
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&serial.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let start = out.len();
    let mut field = |code: u8, kind: &str, text: &str| {
        pad(&mut out, 8);
        out.push(code);
        write_signature(kind, &mut out);
        if kind == "g" { write_signature(text, &mut out) } else { Value::from(text).write(&mut out) }
    };
    field(1, "o", method.path);
    field(2, "s", method.interface);
    field(3, "s", method.member);
    field(6, "s", method.destination);
    if !arguments.is_empty() {
        field(8, "g", &arguments.iter().map(Value::signature).collect::<String>());
    }
    let length = (out.len() - start) as u32;
    out[12..16].copy_from_slice(&length.to_le_bytes());
    pad(&mut out, 8);
    out.append(&mut body);
    out
}

/// Length of the message that `bytes` begin with; `None` while the header is not all there.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>> {
    let Some(head) = bytes.get(..16) else { return Ok(None) };
    if head[0] != b'l' || head[3] != 1 {
        bail!("not a little-endian D-Bus message of version 1");
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
    let (body, fields) = (word(4), word(12));
    if body > LONGEST || fields > LONGEST {
        bail!("a D-Bus message of {body} bytes");
    }
    Ok(Some((16 + fields).next_multiple_of(8) + body))
}

/// Reads one complete message.
pub(super) fn decode(bytes: &[u8]) -> Option<Message> {
    let mut message = Message { kind: *bytes.get(1)?, ..Message::default() };
    let mut r = Reader { bytes, at: 12 };
    let end = 16 + r.u32()? as usize;
    while r.at < end {
        r.align(8);
        let code = *r.take(1)?.first()?;
        match r.signature()? {
            "u" => {
                let number = r.u32()?;
                if code == 5 {
                    message.reply_to = number;
                }
            }
            "s" | "o" => {
                let text = r.text()?;
                match code {
                    3 => message.member = text.to_owned(),
                    4 => message.error = text.to_owned(),
                    _ => (),
                }
            }
            "g" => {
                r.signature()?;
            }
            _ => return None,
        }
    }
    r.align(8);
    message.body = bytes.get(r.at..)?.to_vec();
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        value.write(&mut out);
        out
    }

    #[test]
    fn values_are_aligned_and_counted() {
        assert_eq!(bytes(&"ab".into()), [2, 0, 0, 0, b'a', b'b', 0]);
        assert_eq!(bytes(&Value::Variant(Box::new(Value::Bool(true)))), [1, b'b', 0, 0, 1, 0, 0, 0]);
        let pair = Value::Tuple(vec!["a".into(), Value::Variant(Box::new(Value::U64(7)))]);
        assert_eq!(pair.signature(), "(sv)");
        let list = Value::Array("(sv)".into(), vec![pair]);
        assert_eq!(bytes(&list), [24, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'a', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        // An empty array of structures is padded, too, and its length does not say so.
        assert_eq!(bytes(&Value::Array("(ss)".into(), Vec::new())), [0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(&Value::Array("y".into(), vec![Value::Byte(3)])), [1, 0, 0, 0, 3]);
    }

    #[test]
    fn a_message_survives_the_wire() {
        let method = Method { destination: "a.b", path: "/x", interface: "a.b.C", member: "Do" };
        let message = encode(9, method, &["hello".into(), Value::U32(5)]);
        assert_eq!(length(&message).unwrap(), Some(message.len()));
        assert_eq!(length(&message[..15]).unwrap(), None);
        let read = decode(&message).unwrap();
        assert_eq!((read.kind, read.member.as_str()), (METHOD_CALL, "Do"));
        let mut body = read.body();
        assert_eq!((body.text(), body.u32(), body.u32()), (Some("hello"), Some(5), None));
    }

    #[test]
    fn nonsense_is_refused_without_a_panic() {
        let method = Method { destination: "a.b", path: "/x", interface: "a.b.C", member: "Do" };
        let message = encode(1, method, &["hello".into()]);
        for at in 0..message.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut broken = message.clone();
                broken[at] = byte;
                if let Some(m) = length(&broken).ok().flatten().and_then(|n| decode(broken.get(..n)?)) {
                    let _ = m.body().text();
                }
                let _ = decode(&broken[..at]);
            }
        }
        assert!(length(&[b'B'; 16]).is_err());
    }
}
