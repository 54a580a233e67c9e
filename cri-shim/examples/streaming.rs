//! The streaming server over plain processes, for integration/streams: a request per line of stdin, as JSON, an URL
//! per line of stdout; it ends with its stdin.

#[path = "../tests/streaming/backend.rs"]
mod backend;

use std::sync::Arc;

use rrun_cri::config;
use rrun_cri::streaming::{Attach, Exec, PortForward, Streams, bind};

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct Request {
    exec: Vec<String>,
    attach: String,
    pod: String,
    ports: Vec<u16>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = std::env::args().collect::<Vec<_>>();
    let mut settings = config::Streaming::default();
    if let [_, certificate, key] = &arguments[..] {
        (settings.tls_cert, settings.tls_key) = (certificate.into(), key.into());
    }
    let (urls, listener) = bind(&settings).await?;
    let server = tokio::spawn(listener.serve(Arc::new(backend::Plain)));
    for line in std::io::stdin().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let streams = Streams { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
        let url = if !request.exec.is_empty() {
            urls.exec(Exec { container: "c".into(), command: request.exec, streams })
        } else if !request.attach.is_empty() {
            urls.attach(Attach { container: request.attach, streams })
        } else {
            urls.port_forward(PortForward { pod: request.pod, ports: request.ports })
        };
        println!("{}", url.unwrap_or_else(|error| format!("error: {error}")));
    }
    server.abort();
    Ok(())
}
