//! Requests that wait for their client, by token. A token is good once and for a minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, Result};

/// How long a token is good.
const LIFETIME: Duration = Duration::from_secs(60);
/// Requests that may wait at the same time.
const LIMIT: usize = 1000;
/// Random bytes of a token: it is all that a client on this host has to show.
const BYTES: usize = 12;

/// The waiting requests.
pub(super) struct Tokens<R>(Mutex<HashMap<String, (Instant, R)>>);

impl<R> Default for Tokens<R> {
    fn default() -> Self {
        Tokens(Mutex::default())
    }
}

impl<R> Tokens<R> {
    /// Keeps a request and returns its token.
    pub(super) fn insert(&self, request: R) -> Result<String> {
        self.insert_at(request, Instant::now())
    }

    /// The request of a token, once.
    pub(super) fn take(&self, token: &str) -> Option<R> {
        self.take_at(token, Instant::now())
    }

    fn insert_at(&self, request: R, now: Instant) -> Result<String> {
        let mut bytes = [0; BYTES];
        let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        if filled != Ok(BYTES) {
            return Err(anyhow::anyhow!("getrandom for a token: {filled:?}").into());
        }
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| now.duration_since(*since) < LIFETIME);
        if waiting.len() >= LIMIT {
            return Err(Error::ResourceExhausted(format!("{LIMIT} streaming requests already wait for their clients")));
        }
        waiting.insert(token.clone(), (now, request));
        Ok(token)
    }

    fn take_at(&self, token: &str, now: Instant) -> Option<R> {
        let (since, request) = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(token)?;
        (now.duration_since(since) < LIFETIME).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_once_and_for_a_minute() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let [first, second] = ["a", "b"].map(|request| tokens.insert_at(request, now).unwrap());
        assert!(first.len() >= 8 && first != second);
        assert_eq!(tokens.take_at(&first, now + Duration::from_secs(59)), Some("a"));
        assert_eq!(tokens.take_at(&first, now), None);
        assert_eq!(tokens.take_at(&second, now + LIFETIME), None);
        assert_eq!(tokens.take_at("", now), None);
    }

    #[test]
    fn a_thousand_wait_at_most() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for _ in 0..LIMIT {
            tokens.insert_at((), now).unwrap();
        }
        let refused = tokens.insert_at((), now).unwrap_err();
        assert!(matches!(refused, Error::ResourceExhausted(_)), "{refused}");
        tokens.insert_at((), now + LIFETIME).unwrap();
    }
}
