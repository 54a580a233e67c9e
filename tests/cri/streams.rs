//! What open streams see: exec, attach and port-forward when the daemon is killed, and readers of events that do not read.
//! The protocols have tests of their own (cri-shim/tests/streaming, integration/streams.sh).

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal::SIGKILL;
use rrun_proto::v1;
use rrun_proto::v1::ContainerEventType::{ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent};
use tests::host::{busybox, wait_until};

use crate::client::{script, wait};
use crate::node::{Network, Node};
use crate::node_or_skip;

/// An open connection to a stream's URL, through a program in the node's network.
struct Stream {
    netcat: Child,
    input: ChildStdin,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Stream {
    /// Opens a WebSocket.
    fn open(node: &Node, url: &str) -> Stream {
        let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let (host, port) = address.split_once(':').unwrap();
        let mut netcat = node.enter(&busybox().unwrap());
        let mut netcat = netcat.args(["nc", host, port]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut input, mut output) = (netcat.stdin.take().unwrap(), netcat.stdout.take().unwrap());
        write!(
            input,
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )
        .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        Stream { netcat, input, seen }
    }

    /// Sends a text on channel 0, masked with zeros.
    fn send(&mut self, text: &str) {
        let mut frame = vec![0x82, 0x80 | (text.len() as u8 + 1), 0, 0, 0, 0, 0];
        frame.extend(text.bytes());
        self.input.write_all(&frame).unwrap();
    }

    /// Waits until a text has come.
    #[track_caller]
    fn wait_for(&self, text: &str) {
        let has = || self.seen.lock().unwrap().windows(text.len()).any(|window| window == text.as_bytes());
        assert!(wait_until(20, has), "no {text:?}: {:?}", String::from_utf8_lossy(&self.seen.lock().unwrap()));
    }

    /// Waits until the other side has closed it.
    #[track_caller]
    fn closed(mut self, what: &str) {
        assert!(wait_until(20, || self.netcat.try_wait().unwrap().is_some()), "the {what} does not end");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.netcat.kill();
        let _ = self.netcat.wait();
    }
}

#[test]
fn streams_end_with_the_daemon_and_containers_go_on() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let pod = node.pod();
    let mut config = script(
        "nc -l -p 7000 -e sh -c 'cat; echo over >/pair-ended' & \
         (n=0; while :; do echo tick $((n += 1)); sleep 0.05; done) & \
         echo up; while read -r line; do echo \"got $line\"; done; while :; do sleep 1; done",
    );
    config.stdin = true;
    let container = pod.start(&config);
    container.wait_for_line("up");
    let (log, pid, root) = (container.log_path(), container.pid(), format!("/proc/{}/root", container.pid()));

    let exec = |tty: bool, text: &str| {
        let cmd = ["/bin/sh", "-c", text].map(str::to_owned).to_vec();
        let request = v1::ExecRequest { container_id: container.id.clone(), cmd, tty, stdin: true, stdout: true, stderr: !tty };
        Stream::open(&node, &node.cri().exec(request).unwrap().url)
    };
    let piped = exec(false, "echo begun; cat; echo eof >/exec-ended");
    let terminal = exec(true, "trap 'echo hang-up >/terminal-ended; exit' HUP; echo begun; while :; do sleep 0.05; done");
    // Output after the end finds a closed pipe.
    let writer = exec(
        false,
        "trap 'echo broken >/writer-ended; exit' PIPE; echo begun; while echo more; do sleep 0.05; done; echo broken >/writer-ended",
    );
    let request = v1::AttachRequest { container_id: container.id.clone(), stdin: true, stdout: true, ..Default::default() };
    let mut attached = Stream::open(&node, &node.cri().attach(request).unwrap().url);
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![7000] };
    let mut forward = Stream::open(&node, &node.cri().port_forward(request).unwrap().url);
    for stream in [&piped, &terminal, &writer] {
        stream.wait_for("begun");
    }
    attached.send("by attach\n");
    attached.wait_for("got by attach\n");
    forward.send("through the pod");
    forward.wait_for("through the pod");

    node.kill_daemon(SIGKILL);
    let streams = [("exec", piped), ("terminal", terminal), ("writer", writer), ("attach", attached), ("port-forward", forward)];
    for (name, stream) in streams {
        stream.closed(name);
    }
    let told = |file: &str, text: &str| {
        let read = || std::fs::read_to_string(format!("{root}/{file}")).unwrap_or_default();
        assert!(wait_until(20, || read() == text), "{file}: {:?}", read());
    };
    told("exec-ended", "eof\n");
    told("terminal-ended", "hang-up\n");
    told("writer-ended", "broken\n");
    told("pair-ended", "over\n");
    // Nobody is there, and the container and its log go on.
    let length = || std::fs::metadata(&log).unwrap().len();
    let before = length();
    assert!(wait_until(20, || length() > before + 500), "the log stands still");

    node.start_daemon(&[]);
    assert_eq!(container.pid(), pid);
    let ticks: Vec<u32> = container.log().iter().filter_map(|line| line.text.strip_prefix("tick ")?.parse().ok()).collect();
    assert!(ticks.iter().copied().eq(1..=ticks.len() as u32), "a line is missing or twice: {ticks:?}");
    let request = v1::AttachRequest { container_id: container.id.clone(), stdin: true, stdout: true, ..Default::default() };
    let mut again = Stream::open(&node, &node.cri().attach(request).unwrap().url);
    again.send("by attach again\n");
    again.wait_for("got by attach again\n");
    pod.end();
}

#[test]
fn a_reader_of_events_that_does_not_read_holds_nobody() {
    let node = node_or_skip!(Node::new(Network::Cheap));
    let mut client = node.cri().runtime.clone();
    let mut slow = wait(async move { client.get_container_events(v1::GetEventsRequest {}).await }).unwrap().into_inner();
    let mut client = node.cri().runtime.clone();
    // One that goes without a word.
    drop(wait(async move { client.get_container_events(v1::GetEventsRequest {}).await }).unwrap());
    let reader = node.cri().events();
    let pod = node.pod();
    let ids: Vec<_> = (0..5)
        .map(|_| {
            let container = pod.start(&script("exit 0"));
            container.ended();
            container.remove().unwrap();
            container.id
        })
        .collect();
    let pod_id = pod.id.clone();
    pod.end();
    let mut seen = Vec::new();
    while let Ok(event) = reader.recv_timeout(std::time::Duration::from_secs(20)) {
        let last = event.container_id == pod_id && event.container_event_type() == ContainerDeletedEvent;
        seen.push((event.container_id.clone(), event.container_event_type()));
        if last {
            break;
        }
    }
    let all = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent];
    for id in &ids {
        let kinds: Vec<_> = seen.iter().filter(|(container, _)| container == id).map(|(_, kind)| *kind).collect();
        assert_eq!(kinds, all);
    }
    // The slow one finds the same, in the same order.
    for expected in &seen {
        let event = wait(slow.message()).unwrap().expect("an event");
        assert_eq!(&(event.container_id.clone(), event.container_event_type()), expected);
    }
}
