//! Exec and attach.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rrun_cri::streaming::Attach;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::client::{Frame, Spdy};
use crate::{server, shell, streams};

const V4: &str = "v4.channel.k8s.io";

#[tokio::test]
async fn the_status_goes_before_the_ends_of_the_output_and_after_all_of_it() {
    let url = server().await.exec(shell("cat; head -c 300000 /dev/zero >&2; exit 7", "stdin stdout stderr")).unwrap();
    let mut client = Spdy::connect(&url, V4).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    client.data(ids["stdin"], b"hello, ", false).await;
    client.data(ids["stdin"], b"world", true).await;
    let (bytes, ends) = client.read_to_ends(&ids.values().copied().collect::<Vec<_>>()).await;
    assert_eq!(bytes[&ids["stdout"]], b"hello, world");
    assert_eq!(bytes[&ids["stderr"]].len(), 300_000);
    let status: serde_json::Value = serde_json::from_slice(&bytes[&ids["error"]]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    assert_eq!(ends[0], ids["error"], "order of the ends: {ends:?}");
}

#[tokio::test]
async fn the_server_does_not_close_first_and_answers_late_streams_and_pings() {
    let url = server().await.exec(shell("true", "stdout")).unwrap();
    let mut client = Spdy::connect(&url, V4).await;
    let ids = client.open_all(&["error", "stdout"]).await;
    client.read_to_ends(&[ids["error"], ids["stdout"]]).await;
    let late = client.open(&[("streamtype", "resize")]).await;
    assert_eq!(client.frame().await, Frame::Reply(late));
    client.data(late, br#"{"Width":80,"Height":24}"#, false).await;
    client.socket.write_all(&rrun_cri::streaming::spdy::frame::ping(41)).await.unwrap();
    assert_eq!(client.frame().await, Frame::Ping(41));
}

#[tokio::test]
async fn an_exec_starts_with_the_first_stream_and_its_output_waits_for_all() {
    let dir = tempdir();
    let url = server().await.exec(shell(&format!("echo out; echo err >&2; touch {dir}/ended; exit 3"), "stdout stderr")).unwrap();
    let mut client = Spdy::connect(&url, V4).await;
    sleep(Duration::from_millis(200)).await;
    assert!(!std::fs::exists(format!("{dir}/ended")).unwrap(), "nothing without a stream");
    let mut ids = client.open_all(&["error"]).await;
    eventually(&format!("{dir}/ended")).await;
    for name in ["stdout", "stderr"] {
        // Its answer is the next frame: nothing was sent meanwhile.
        ids.extend(client.open_all(&[name]).await);
    }
    let (bytes, ends) = client.read_to_ends(&ids.values().copied().collect::<Vec<_>>()).await;
    assert_eq!((&bytes[&ids["stdout"]][..], &bytes[&ids["stderr"]][..]), (&b"out\n"[..], &b"err\n"[..]));
    assert!(String::from_utf8_lossy(&bytes[&ids["error"]]).contains("\"3\"") && ends[0] == ids["error"]);
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn an_exec_whose_client_leaves_before_its_streams_are_there_hangs_up() {
    let dir = tempdir();
    let url = server().await.exec(shell(&format!("cat; touch {dir}/ended"), "stdin stdout")).unwrap();
    let mut client = Spdy::connect(&url, V4).await;
    client.open_all(&["error"]).await;
    drop(client);
    eventually(&format!("{dir}/ended")).await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn with_a_terminal_nothing_starts_before_all_streams_are_there() {
    let dir = tempdir();
    let mut exec = shell(&format!("touch {dir}/started"), "stdout");
    exec.streams.tty = true;
    let mut client = Spdy::connect(&server().await.exec(exec).unwrap(), V4).await;
    let ids = client.open_all(&["error", "stdout"]).await;
    sleep(Duration::from_millis(200)).await;
    assert!(!std::fs::exists(format!("{dir}/started")).unwrap());
    client.open_all(&["resize"]).await;
    client.read_to_ends(&[ids["error"]]).await;
    assert!(std::fs::exists(format!("{dir}/started")).unwrap());
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn what_breaks_the_rules_of_spdy_ends_the_connection() {
    let urls = server().await;
    for bytes in [&b"\x80\x02\0\x01\0\0\0\0"[..], b"\0\0\0\0\0\0\0\0", b"\x80\x03\0\x01\0\0\0\x0c\0\0\0\x02\0\0\0\0\0\0ab"] {
        let mut client = Spdy::connect(&urls.exec(shell("true", "stdout")).unwrap(), V4).await;
        client.socket.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        client.socket.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
    }
}

#[tokio::test]
async fn a_process_that_reads_nothing_does_not_keep_a_client_that_has_gone() {
    let dir = tempdir();
    // It ends by SIGHUP or EPIPE at the latest, and tells.
    let script = format!("trap 'touch {dir}/ended; exit' HUP PIPE; while echo; do sleep 0.05; done 2>/dev/null; touch {dir}/ended");
    let url = server().await.exec(shell(&script, "stdin stdout")).unwrap();
    let mut client = Spdy::connect(&url, V4).await;
    let ids = client.open_all(&["error", "stdin", "stdout"]).await;
    let flood = vec![0; 1 << 20];
    // More than is kept for a reader that does not read: the connection stands still.
    let stuck = timeout(Duration::from_secs(2), async {
        loop {
            client.data(ids["stdin"], &flood, false).await;
        }
    });
    assert!(stuck.await.is_err());
    drop(client);
    eventually(&format!("{dir}/ended")).await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_does_not_keep_the_client() {
    let url = server().await.exec(shell("sleep 1000 & echo $!", "stdout")).unwrap();
    let mut client = Spdy::connect(&url, V4).await;
    let ids = client.open_all(&["error", "stdout"]).await;
    let ended = timeout(Duration::from_secs(30), client.read_to_ends(&[ids["error"], ids["stdout"]])).await;
    let (bytes, _) = ended.expect("an end while the child lives");
    let child = String::from_utf8_lossy(&bytes[&ids["stdout"]]).trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(child).unwrap(), rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_terminal_hangs_up_when_its_client_goes() {
    let dir = tempdir();
    let script = format!("trap 'touch {dir}/hung-up; exit' HUP; echo up; while :; do sleep 0.05; done");
    let url = server().await.exec(shell(&script, "stdin stdout tty")).unwrap();
    let mut client = Spdy::connect(&url, V4).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "resize"]).await;
    client.data(ids["resize"], br#"{"Width":80,"Height":24}"#, false).await;
    assert_eq!(client.bytes(ids["stdout"], 4).await, b"up\r\n");
    drop(client);
    eventually(&format!("{dir}/hung-up")).await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn an_attachment_ends_well_however_its_container_ended() {
    let attach = Attach { container: "echo hello; exit 9".into(), streams: streams("stdout") };
    let mut client = Spdy::connect(&server().await.attach(attach).unwrap(), V4).await;
    let ids = client.open_all(&["error", "stdout"]).await;
    let (bytes, _) = client.read_to_ends(&[ids["error"], ids["stdout"]]).await;
    assert_eq!(bytes[&ids["stdout"]], b"hello\n");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&bytes[&ids["error"]]).unwrap()["status"], "Success");
}

#[tokio::test]
async fn websocket_messages_of_any_size_and_half_close() {
    let url = server().await.exec(shell("md5sum; exit 4", "stdin stdout")).unwrap();
    let mut request = url.replace("http:", "ws:").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::client_async(request, tcp(&url).await).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(vec![1]));
    for length in [0, 1, 124, 125, 126, 65534, 65535, 65536, 5_000_000] {
        let mut message = vec![b'x'; length + 1];
        message[0] = 0;
        socket.send(Message::binary(message)).await.unwrap();
        socket.send(Message::Ping(length.to_string().into())).await.unwrap();
    }
    socket.send(Message::binary(vec![255, 0])).await.unwrap();
    let (mut out, mut pongs) = (vec![Vec::new(); 4], 0);
    while let Some(message) = socket.next().await {
        match message.unwrap() {
            Message::Binary(bytes) => out[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
            Message::Pong(_) => pongs += 1,
            Message::Close(why) => assert_eq!(why.map(|why| u16::from(why.code)), Some(1000)),
            other => panic!("{other:?}"),
        }
    }
    let total = 1 + 124 + 125 + 126 + 65534 + 65535 + 65536 + 5_000_000;
    let sum = std::process::Command::new("sh").args(["-c", &format!("head -c {total} /dev/zero | tr '\\0' x | md5sum")]).output().unwrap();
    assert_eq!(out[1], sum.stdout);
    assert_eq!(pongs, 9);
    assert!(String::from_utf8_lossy(&out[3]).contains("\"message\":\"4\""), "{:?}", String::from_utf8_lossy(&out[3]));
}

async fn tcp(url: &str) -> tokio::net::TcpStream {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    tokio::net::TcpStream::connect(address).await.unwrap()
}

fn tempdir() -> String {
    let name = format!("{}/rrun-streaming-{}", std::env::temp_dir().display(), rand());
    std::fs::create_dir(&name).unwrap();
    name
}

fn rand() -> u64 {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    u64::from_ne_bytes(bytes)
}

/// Waits for a file.
async fn eventually(path: &str) {
    let there = async {
        while !std::fs::exists(path).unwrap() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), there).await.unwrap_or_else(|_| panic!("no {path}"));
}
