//! Port-forward.

use std::time::Duration;

use rrun_cri::streaming::PortForward;
use rrun_cri::streaming::spdy::frame;
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::client::{Frame, Spdy};
use crate::server;

async fn connect() -> Spdy {
    let url = server().await.port_forward(PortForward { pod: "host".into(), ports: Vec::new() }).unwrap();
    Spdy::connect(&url, "portforward.k8s.io").await
}

/// A pod's port.
async fn listen(address: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().await.unwrap().0
}

/// Reads the frame that ends `stream`, and nothing before it but replies.
async fn end_of(client: &mut Spdy, stream: u32) {
    loop {
        match client.frame().await {
            Frame::Reply(_) => {}
            Frame::Data(id, bytes, true) if id == stream && bytes.is_empty() => return,
            other => panic!("{other:?} while the end of stream {stream} was expected"),
        }
    }
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let (listener, port) = listen("127.0.0.1").await;
    let mut client = connect().await;
    let (error, data) = client.open_pair("0", port).await;
    client.data(data, b"question", true).await;
    let mut pod = accept(&listener).await;
    let mut question = String::new();
    pod.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    for part in ["ans", "wer"] {
        pod.write_all(part.as_bytes()).await.unwrap();
        assert_eq!(client.bytes(data, part.len()).await, part.as_bytes());
    }
    drop(pod);
    let (bytes, _) = client.read_to_ends(&[data, error]).await;
    assert!(bytes.values().all(|bytes| bytes.is_empty()), "{bytes:?}");
}

#[tokio::test]
async fn the_pod_may_end_first() {
    let (listener, port) = listen("127.0.0.1").await;
    let mut client = connect().await;
    let (error, data) = client.open_pair("0", port).await;
    let mut pod = accept(&listener).await;
    pod.write_all(b"bye").await.unwrap();
    pod.shutdown().await.unwrap();
    let (bytes, _) = client.read_to_ends(&[error, data]).await;
    assert_eq!(bytes[&data], b"bye");
    client.data(data, b"one more thing", true).await;
    let mut rest = String::new();
    pod.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "one more thing");
}

#[tokio::test]
async fn a_reset_breaks_its_own_pair_only() {
    let (listener, port) = listen("127.0.0.1").await;
    let mut client = connect().await;
    let (_, steady) = client.open_pair("steady", port).await;
    let mut pod = accept(&listener).await;
    // The pod resets.
    let (error, data) = client.open_pair("by the pod", port).await;
    let broken = accept(&listener).await;
    set_socket_linger(&broken, Some(Duration::ZERO)).unwrap();
    drop(broken);
    let mut resets = Vec::new();
    while resets.len() < 2 {
        match client.frame().await {
            Frame::Reset(stream) => resets.push(stream),
            Frame::Reply(_) => {}
            other => panic!("{other:?}"),
        }
    }
    resets.sort_unstable();
    assert_eq!(resets, [error, data]);
    // The client resets: the pod's socket closes, and the error stream ends.
    let (error, data) = client.open_pair("by the client", port).await;
    let mut left = accept(&listener).await;
    client.data(data, b"x", false).await;
    assert_eq!(left.read_u8().await.unwrap(), b'x');
    client.socket.write_all(&frame::reset(data, frame::Reset::Cancel)).await.unwrap();
    assert_eq!(left.read(&mut [0]).await.unwrap_or(0), 0);
    end_of(&mut client, error).await;
    // And the first goes on.
    client.data(steady, b"ping", false).await;
    let mut ping = [0; 4];
    pod.read_exact(&mut ping).await.unwrap();
    pod.write_all(b"pong").await.unwrap();
    assert_eq!(client.bytes(steady, 4).await, b"pong");
}

#[tokio::test]
async fn where_nobody_listens_the_error_stream_says_so() {
    let (listener, port) = listen("127.0.0.1").await;
    drop(listener);
    let mut client = connect().await;
    let (error, data) = client.open_pair("0", port).await;
    let (bytes, ends) = client.read_to_ends(&[error, data]).await;
    let text = String::from_utf8_lossy(&bytes[&error]).into_owned();
    assert!(text.contains(&format!("port {port} of pod host")) && text.contains("refused"), "{text}");
    assert_eq!(ends[0], error);
}

#[tokio::test]
async fn ipv6_is_tried_after_ipv4() {
    let (listener, port) = listen("::1").await;
    let mut client = connect().await;
    let (_, data) = client.open_pair("0", port).await;
    accept(&listener).await.write_all(b"six").await.unwrap();
    assert_eq!(client.bytes(data, 3).await, b"six");
}

#[tokio::test]
async fn pairs_without_request_ids_and_streams_that_make_no_sense() {
    let (listener, port) = listen("127.0.0.1").await;
    let mut client = connect().await;
    let text = port.to_string();
    let error = client.open(&[("streamtype", "error"), ("port", &text)]).await;
    let data = client.open(&[("streamtype", "data"), ("port", &text)]).await;
    assert_eq!(data, error + 2);
    accept(&listener).await.write_all(b"old").await.unwrap();
    assert_eq!(client.bytes(data, 3).await, b"old");
    client.read_to_ends(&[error, data]).await;
    let wrong: [&[(&str, &str)]; 5] = [
        &[("streamtype", "data"), ("port", "0"), ("requestid", "1")],
        &[("streamtype", "data"), ("port", "65536"), ("requestid", "1")],
        &[("streamtype", "data"), ("requestid", "1")],
        &[("streamtype", "stdin"), ("port", "80"), ("requestid", "1")],
        &[("port", "80")],
    ];
    for headers in wrong {
        let stream = client.open(headers).await;
        assert_eq!(client.frame().await, Frame::Reset(stream), "{headers:?}");
    }
}

#[tokio::test]
async fn what_was_sent_arrives_though_the_client_left() {
    let (listener, port) = listen("127.0.0.1").await;
    let mut client = connect().await;
    let (_, data) = client.open_pair("0", port).await;
    let mut pod = accept(&listener).await;
    // A socket that closes with something unread resets the connection, and that loses what is under way.
    for _ in 0..2 {
        assert!(matches!(client.frame().await, Frame::Reply(_)));
    }
    let much = vec![b'x'; 900_000];
    client.data(data, &much, true).await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut got = Vec::new();
    timeout(Duration::from_secs(30), pod.read_to_end(&mut got)).await.unwrap().unwrap();
    assert_eq!(got.len(), much.len());
}

#[tokio::test]
async fn a_pod_with_a_network_of_its_own() {
    // A process holds the namespace; its listener is made by a thread in there, as a pod's would be by the pod.
    let mut pod = tokio::process::Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 1000"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = [0; 3];
    if pod.stdout.take().unwrap().read_exact(&mut line).await.is_err() {
        eprintln!("SKIP forwards::a_pod_with_a_network_of_its_own: unshare --net and ip link need root and iproute2");
        return;
    }
    let netns = format!("/proc/{}/ns/net", pod.id().unwrap());
    let inside = std::fs::File::open(&netns).unwrap();
    let listener = std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&inside), None).unwrap();
        std::net::TcpListener::bind("127.0.0.1:80").unwrap()
    });
    let listener = listener.join().unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let url = server().await.port_forward(PortForward { pod: netns, ports: Vec::new() }).unwrap();
    let mut client = Spdy::connect(&url, "portforward.k8s.io").await;
    let (_, data) = client.open_pair("0", 80).await;
    accept(&listener).await.write_all(b"from the pod").await.unwrap();
    assert_eq!(client.bytes(data, 12).await, b"from the pod");
}
