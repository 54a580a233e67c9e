//! As much of D-Bus as talking to systemd needs: connect, authenticate, call, wait for a signal.
//! Synchronous, without threads; used by `systemd.rs` alone.
//!
//! The wire format is that of the D-Bus specification ("Message Protocol", "Authentication
//! Protocol"); messages are in `wire.rs`.

use super::wire::{ERROR, METHOD_RETURN, Message, Method, Reader, Refused, SIGNAL, Value, decode, encode, length};
use anyhow::{Context, Result, anyhow, bail};
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

/// How long a reply or a signal is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a message bus.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    incoming: Vec<u8>,
    /// Signals that came while a reply was waited for.
    signals: Vec<Message>,
}

impl Bus {
    /// Connects to the first of the addresses (`unix:path=…;unix:abstract=…`) that answers, and
    /// says hello.
    pub(super) fn connect(addresses: &str) -> Result<Bus> {
        let mut failed = anyhow!("no unix address in it");
        for address in addresses.split(';').filter_map(parse_address) {
            match address.and_then(|a| UnixStream::connect_addr(&a)) {
                Ok(stream) => return Bus::greet(stream).with_context(|| format!("D-Bus at {addresses}")),
                Err(e) => failed = e.into(),
            }
        }
        Err(failed).with_context(|| format!("connect to D-Bus at {addresses}"))
    }

    /// On a connection that is made, before anything is said.
    pub(super) fn over(stream: UnixStream) -> Bus {
        Bus { stream, serial: 0, incoming: Vec::new(), signals: Vec::new() }
    }

    fn greet(stream: UnixStream) -> Result<Bus> {
        let mut bus = Bus::over(stream);
        // Without a name in EXTERNAL the other side takes the socket's credentials, which are right
        // in a user namespace, too.
        bus.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").context("authenticate")?;
        let until = Instant::now() + PATIENCE;
        loop {
            let line = bus.line(until)?;
            match line.split(' ').next() {
                Some("DATA") => (),
                Some("OK") => break,
                _ => bail!("authentication refused: {line}"),
            }
        }
        const BUS: &str = "org.freedesktop.DBus";
        bus.call(Method { destination: BUS, path: "/org/freedesktop/DBus", interface: BUS, member: "Hello" }, &[])?;
        Ok(bus)
    }

    fn line(&mut self, until: Instant) -> Result<String> {
        loop {
            if let Some(end) = self.incoming.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.incoming[..end]).into_owned();
                self.incoming.drain(..end + 2);
                return Ok(line);
            }
            self.receive(until)?;
        }
    }

    /// Waits for more bytes.
    fn receive(&mut self, until: Instant) -> Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no answer within {} seconds", PATIENCE.as_secs());
        }
        self.stream.set_read_timeout(Some(left)).context("set a time limit")?;
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) => bail!("the other side closed the connection"),
            Ok(n) => self.incoming.extend_from_slice(&piece[..n]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock) => (),
            Err(e) => return Err(e).context("read from D-Bus"),
        }
        Ok(())
    }

    fn message(&mut self, until: Instant) -> Result<Message> {
        loop {
            if let Some(n) = length(&self.incoming)?.filter(|&n| n <= self.incoming.len()) {
                let message = decode(&self.incoming[..n]);
                self.incoming.drain(..n);
                return message.context("a D-Bus message that makes no sense");
            }
            self.receive(until)?;
        }
    }

    /// Calls a method and waits for the answer; a refusal is a [`Refused`].
    pub(super) fn call(&mut self, method: Method<'_>, arguments: &[Value]) -> Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        let until = Instant::now() + PATIENCE;
        let what = || format!("D-Bus call {}", method.member);
        self.stream.write_all(&encode(serial, method, arguments)).with_context(what)?;
        loop {
            let message = self.message(until).with_context(what)?;
            match message.kind {
                METHOD_RETURN if message.reply_to == serial => return Ok(message),
                ERROR if message.reply_to == serial => {
                    let text = message.body().text().unwrap_or_default().to_owned();
                    return Err(Refused { name: message.error, text }.into());
                }
                SIGNAL => self.signals.push(message),
                _ => (),
            }
        }
    }

    /// Has the bus send the signals that `rule` describes.
    pub(super) fn add_match(&mut self, rule: &str) -> Result<()> {
        const BUS: &str = "org.freedesktop.DBus";
        let method = Method { destination: BUS, path: "/org/freedesktop/DBus", interface: BUS, member: "AddMatch" };
        self.call(method, &[Value::from(rule)]).map(drop)
    }

    /// Waits for the signal `member` about which `fits` answers; signals that came before count.
    pub(super) fn wait<T>(&mut self, member: &str, fits: impl Fn(&mut Reader<'_>) -> Option<T>) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            for signal in std::mem::take(&mut self.signals) {
                if signal.member == member
                    && let Some(found) = fits(&mut signal.body())
                {
                    return Ok(found);
                }
            }
            let message = self.message(until).with_context(|| format!("D-Bus signal {member}"))?;
            if message.kind == SIGNAL {
                self.signals.push(message);
            }
        }
    }
}

/// One address of a list; `None` for other transports than unix.
fn parse_address(address: &str) -> Option<std::io::Result<SocketAddr>> {
    let keys = address.strip_prefix("unix:")?;
    keys.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let value = unescape(value);
        match key {
            "path" => {
                use std::os::unix::ffi::OsStringExt;
                Some(SocketAddr::from_pathname(std::path::PathBuf::from(std::ffi::OsString::from_vec(value))))
            }
            "abstract" => Some(SocketAddr::from_abstract_name(value)),
            _ => None,
        }
    })
}

/// Undoes the `%2f` of addresses.
fn unescape(value: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).filter(|_| first == b'%').and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let path = |a: &str| parse_address(a).and_then(|a| a.ok()?.as_pathname().map(|p| p.to_str().unwrap().to_owned()));
        assert_eq!(path("unix:path=/run/user/1000/bus,guid=12").as_deref(), Some("/run/user/1000/bus"));
        assert_eq!(path("unix:guid=1,path=/a%20b").as_deref(), Some("/a b"));
        assert!(parse_address("unix:abstract=/tmp/x").unwrap().unwrap().as_abstract_name().is_some());
        assert!(parse_address("tcp:host=localhost").is_none());
    }
}
