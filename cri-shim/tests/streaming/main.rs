//! The streaming server as clients meet it, over plain processes and the host's own ports. The libraries behind kubectl
//! drive it too: integration/streaming.sh.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod backend;
mod client;
mod commands;
mod forwards;
mod http;

use std::sync::Arc;

use rrun_cri::config;
use rrun_cri::streaming::{Exec, Streams, Urls, bind};

/// A server of its own on loopback.
async fn server() -> Urls {
    let (urls, listener) = bind(&config::Streaming::default()).await.unwrap();
    tokio::spawn(listener.serve(Arc::new(backend::Plain)));
    urls
}

/// The streams named: `stdin`, `stdout`, `stderr`, `tty`.
fn streams(names: &str) -> Streams {
    let has = |name| names.split(' ').any(|n| n == name);
    Streams { stdin: has("stdin"), stdout: has("stdout"), stderr: has("stderr"), tty: has("tty") }
}

/// A shell script with the streams named.
fn shell(script: &str, names: &str) -> Exec {
    Exec { container: "c".into(), command: ["sh", "-c", script].map(String::from).to_vec(), streams: streams(names) }
}
