//! Clients of a container's streams.

use super::{PATIENCE, log_of, pod, wait_for_log, write_all};
use rrun_cri::monitor::{Attachment, Create, Output, resize};
use tokio::time::timeout;

/// What the client gets until the container ends: standard output, standard error, bytes lost.
async fn output(client: &Attachment) -> (String, String, u64) {
    let (mut out, mut err, mut lost, mut buffer) = (Vec::new(), Vec::new(), 0, vec![0; 1 << 16]);
    loop {
        match timeout(PATIENCE, client.next(&mut buffer)).await.expect("no output and no end").unwrap() {
            Output::Stdout(data) => out.extend_from_slice(data),
            Output::Stderr(data) => err.extend_from_slice(data),
            Output::Lost(bytes) => lost += bytes,
            Output::End => return (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), lost),
        }
    }
}

#[tokio::test]
async fn every_client_gets_what_it_asked_for() {
    let pod = pod!();
    let create =
        Create { stdin: true, ..pod.container("while read line; do echo got $line; echo error $line >&2; [ $line = end ] && exit; done") };
    pod.start(&create).await;
    let both = pod.monitor.attach(&create.id, true, true, true).await.unwrap();
    let other = pod.monitor.attach(&create.id, true, true, false).await.unwrap();
    let errors = pod.monitor.attach(&create.id, false, false, true).await.unwrap();
    assert!(errors.stdin.is_none());
    // Input comes from whoever has some.
    write_all(both.stdin.as_ref().unwrap(), "one\n");
    wait_for_log(&create, "got one");
    write_all(other.stdin.as_ref().unwrap(), "end\n");
    let (out, err) = ("got one\ngot end\n".to_owned(), "error one\nerror end\n".to_owned());
    assert_eq!(output(&both).await, (out.clone(), err.clone(), 0));
    assert_eq!(output(&other).await, (out, String::new(), 0));
    assert_eq!(output(&errors).await, (String::new(), err, 0));
    pod.exited(&create.id).await;
    assert!(pod.monitor.attach(&create.id, true, true, true).await.unwrap_err().to_string().contains("ended"));
}

#[tokio::test]
async fn input_that_ends_once() {
    let pod = pod!();
    let create = Create { stdin: true, stdin_once: true, ..pod.container("cat; echo eof; sleep 0.1") };
    pod.start(&create).await;
    let mut client = pod.monitor.attach(&create.id, true, true, true).await.unwrap();
    write_all(client.stdin.as_ref().unwrap(), "data\n");
    client.end_input().unwrap();
    assert_eq!(output(&client).await.0, "data\neof\n");
    pod.exited(&create.id).await;
}

#[tokio::test]
async fn the_first_client_to_go_ends_it_too() {
    let pod = pod!();
    let create = Create { stdin: true, stdin_once: true, ..pod.container("cat; echo eof") };
    pod.start(&create).await;
    // One without input changes nothing.
    drop(pod.monitor.attach(&create.id, false, true, true).await.unwrap());
    let client = pod.monitor.attach(&create.id, true, true, true).await.unwrap();
    write_all(client.stdin.as_ref().unwrap(), "data\n");
    wait_for_log(&create, "data");
    drop(client);
    pod.exited(&create.id).await;
    assert_eq!(log_of(&create), ["stdout F data", "stdout F eof"]);
}

#[tokio::test]
async fn input_that_does_not_end_survives_its_clients() {
    let pod = pod!();
    let create = Create { stdin: true, ..pod.container("while read x; do echo got $x; [ $x = end ] && exit; done; echo eof") };
    pod.start(&create).await;
    for text in ["one\n", "end\n"] {
        let client = pod.monitor.attach(&create.id, true, false, false).await.unwrap();
        write_all(client.stdin.as_ref().unwrap(), text);
        wait_for_log(&create, &format!("got {}", text.trim()));
    }
    pod.exited(&create.id).await;
    assert_eq!(log_of(&create), ["stdout F got one", "stdout F got end"]);
}

#[tokio::test]
async fn without_input_it_is_empty() {
    let pod = pod!();
    let create = pod.container("cat; echo eof");
    pod.run(&create).await;
    assert_eq!(log_of(&create), ["stdout F eof"]);
}

#[tokio::test]
async fn a_slow_client_stops_neither_log_nor_container() {
    let pod = pod!();
    let create = pod.container("i=0; while [ $i -lt 1000 ]; do printf '%08000d\\n' $i; i=$((i+1)); done; sleep 0.2; echo end");
    pod.monitor.create(&create).await.unwrap();
    let slow = pod.monitor.attach(&create.id, false, true, true).await.unwrap();
    pod.monitor.start_container(&create.id, None).await.unwrap();
    pod.exited(&create.id).await;
    assert_eq!(log_of(&create).len(), 1001);
    // It reads only now: a beginning without a gap, and at some point the news of what it lost.
    let (out, _, lost) = output(&slow).await;
    assert!(out.starts_with(&format!("{:08000}\n{:08000}\n", 0, 1)) && out.len() > 100_000, "{}", out.len());
    assert!(lost == 0 || out.len() as u64 + lost == 8001 * 1000 + 4, "{} {lost}", out.len());
}

#[tokio::test]
async fn a_terminal() {
    let pod = pod!();
    let bundle = pod.bundle("read x; stty size; echo error >&2; exit 3").set("/process/terminal", serde_json::json!(true));
    let create = Create { tty: true, stdin: true, ..pod.container_of(bundle) };
    let created = pod.start(&create).await;
    pod.monitor.resize(&create.id, 91, 37).await.unwrap();
    resize(created.pty.as_ref().unwrap(), 92, 38).unwrap();
    let client = pod.monitor.attach(&create.id, true, true, true).await.unwrap();
    write_all(client.stdin.as_ref().unwrap(), "x\n");
    assert_eq!(output(&client).await.0, "x\r\n38 92\r\nerror\r\n");
    assert_eq!(pod.exited(&create.id).await.code, 3);
    assert_eq!(log_of(&create), ["stdout F x", "stdout F 38 92", "stdout F error"]);
}
