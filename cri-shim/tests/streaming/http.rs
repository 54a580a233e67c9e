//! Requests that are refused, and addresses.

use rrun_cri::config;
use rrun_cri::error::Error;
use rrun_cri::streaming::{Exec, PortForward, bind};

use std::sync::Arc;

use futures_util::StreamExt;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::Message;

use crate::backend::Plain;
use crate::client::ask;
use crate::{server, shell, streams};

#[tokio::test]
async fn what_cannot_be_asked_for_is_refused_before_there_is_an_url() {
    let urls = server().await;
    for (names, words) in [("stdout stderr tty", "tty and stderr"), ("", "none of"), ("tty", "none of")] {
        let refused = urls.exec(shell("true", names)).unwrap_err();
        assert!(matches!(&refused, Error::InvalidArgument(text) if text.contains(words)), "{refused}");
    }
    let nothing = Exec { container: "c".into(), command: Vec::new(), streams: streams("stdout") };
    assert!(matches!(urls.exec(nothing), Err(Error::InvalidArgument(_))));
}

#[tokio::test]
async fn answers_to_requests_that_are_no_upgrade() {
    let urls = server().await;
    let url = || urls.exec(shell("true", "stdout")).unwrap();
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let websocket = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (url, headers, status) in [
        (url(), String::new(), 400),
        (url(), spdy.to_string(), 400),
        (url(), "Connection: Upgrade\r\nUpgrade: h2c\r\n".into(), 400),
        (url(), format!("{spdy}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n"), 403),
        (url(), format!("{spdy}X-Stream-Protocol-Version: v9.channel.k8s.io, v4.channel.k8s.io\r\n"), 101),
        (url(), websocket.to_string(), 426),
        (url(), format!("{websocket}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\n"), 403),
        (url(), format!("{websocket}Sec-WebSocket-Version: 13\r\n"), 101),
        (url().replace("/exec/", "/attach/../exec/"), spdy.to_string(), 404),
        (url().replace("/exec/", "/portforward/"), spdy.to_string(), 404),
        (url() + "x", spdy.to_string(), 404),
    ] {
        let (_, head) = ask(&url, &headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{url} {headers:?}: {head}");
    }
    let refused = format!("{spdy}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n");
    let (_, head) = ask(&url(), &refused).await;
    assert!(head.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io\r\n"), "{head}");
    let none = urls.port_forward(PortForward { pod: "host".into(), ports: Vec::new() }).unwrap();
    let (_, head) = ask(&none, &format!("{websocket}Sec-WebSocket-Version: 13\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
}

#[tokio::test]
async fn a_token_is_good_once() {
    let url = server().await.exec(shell("true", "stdout")).unwrap();
    let headers = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    for status in [101, 404] {
        let (_, head) = ask(&url, headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
}

#[tokio::test]
async fn urls_name_an_address_that_can_be_reached() {
    for (address, begin) in [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("localhost", "http://")] {
        let settings = config::Streaming { address: address.into(), ..config::Streaming::default() };
        let (urls, _listener) = bind(&settings).await.unwrap();
        let url = urls.exec(shell("true", "stdout")).unwrap();
        assert!(url.starts_with(begin) && url.contains("/exec/"), "{address}: {url}");
    }
    let half = config::Streaming { tls_cert: "/cert.pem".into(), ..config::Streaming::default() };
    let refused = bind(&half).await.err().unwrap();
    assert!(format!("{refused:#}").contains("tls_key"), "{refused:#}");
}

#[tokio::test]
async fn with_a_certificate_the_server_speaks_tls() {
    let dir = std::env::temp_dir().join(format!("rrun-streaming-tls-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let settings = config::Streaming { tls_cert: cert, tls_key: key, ..config::Streaming::default() };
    let (urls, listener) = bind(&settings).await.unwrap();
    tokio::spawn(listener.serve(Arc::new(Plain)));
    std::fs::remove_dir_all(dir).unwrap();
    let url = urls.exec(shell("head -c 300000 /dev/zero", "stdout")).unwrap();
    let address = url.strip_prefix("https://").unwrap().split('/').next().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(url.replace("https:", "ws:"), stream).await.unwrap();
    let mut length = 0;
    while let Some(Ok(Message::Binary(bytes))) = socket.next().await {
        length += bytes.len() - 1;
    }
    assert_eq!(length, 300_000);
}
