//! The size of a terminal, as the resize channel tells it: JSON objects one after another.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::termios::{Winsize, tcsetwinsize};
use serde::Deserialize;

/// Longest text that may be waiting for its end.
const TEXT_LIMIT: usize = 4096;

/// A terminal that may come later than its first size.
#[derive(Default)]
pub(super) struct Terminal(Mutex<State>);

#[derive(Default)]
struct State {
    master: Option<OwnedFd>,
    size: Option<Size>,
    text: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

impl Terminal {
    /// The terminal is there: it gets the last size told, if any.
    pub(super) fn connect(&self, master: OwnedFd) {
        let mut state = self.state();
        state.master = Some(master);
        state.resize();
    }

    /// Bytes of the resize channel. What is no size is dropped.
    pub(super) fn text(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.text.extend_from_slice(bytes);
        if let Some(size) = take_sizes(&mut state.text) {
            state.size = Some(size);
            state.resize();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn resize(&self) {
        if let (Some(master), Some(size)) = (&self.master, self.size) {
            let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
            if let Err(error) = tcsetwinsize(master, size) {
                tracing::debug!("resize a terminal to {}x{}: {error}", size.ws_col, size.ws_row);
            }
        }
    }
}

/// Takes the whole objects off `text`; the last of them counts.
fn take_sizes(text: &mut Vec<u8>) -> Option<Size> {
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut last = None;
    let done = loop {
        match objects.next() {
            Some(Ok(size)) => last = Some(size),
            Some(Err(error)) if error.is_eof() => break objects.byte_offset(),
            None | Some(Err(_)) => break text.len(),
        }
    };
    text.drain(..done);
    if text.len() > TEXT_LIMIT {
        text.clear();
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_pieces() {
        let all = br#"{"Width":80,"Height":24}
{"Width":132,"Height":50}{"Width":1,"Height":2}"#;
        for cut in 0..all.len() {
            let mut text = all[..cut].to_vec();
            take_sizes(&mut text);
            text.extend_from_slice(&all[cut..]);
            let last = take_sizes(&mut text);
            assert!(last == Some(Size { width: 1, height: 2 }), "cut at {cut}: {last:?}");
            assert!(text.is_empty());
        }
    }

    #[test]
    fn what_is_no_size_is_dropped() {
        for wrong in ["nonsense", "{\"Width\":70000,\"Height\":1}", "[]", "{\"Width\":1}"] {
            let mut text = wrong.as_bytes().to_vec();
            assert_eq!(take_sizes(&mut text), None, "{wrong}");
            assert!(text.is_empty(), "{wrong}");
        }
        let mut endless = vec![b' '; 10_000];
        endless.insert(0, b'{');
        take_sizes(&mut endless);
        assert!(endless.is_empty());
    }
}
