//! The monitor goes on as another program file.

use super::{PATIENCE, log_of, pod, program, read_all, wait_for_log, write_all};
use rrun_cri::monitor::{Create, Exec, Monitor, Output};
use tokio::time::timeout;

#[tokio::test]
async fn nothing_is_lost() {
    let pod = pod!();
    let create = Create { stdin: true, ..pod.container("while read x; do echo got $x; [ $x = end ] && exit 5; done") };
    let noisy = pod.container("i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); done");
    let ended = pod.container("exit 3");
    pod.run(&ended).await;
    pod.start(&create).await;
    let client = pod.monitor.attach(&create.id, true, true, true).await.unwrap();
    let mut shell = pod.exec_with(&create, "read x; echo said $x; exit 9", |e| Exec { tty: true, ..e }).await.unwrap();
    write_all(client.stdin.as_ref().unwrap(), "one\n");
    wait_for_log(&create, "got one");
    pod.start(&noisy).await;
    // As another file: what an upgrade is.
    let other = pod.rt.dir().join("rrun-monitor-2");
    tests::host::write_program(&other, &std::fs::read(program()).unwrap());
    for _ in 0..10 {
        pod.monitor.upgrade(&other).await.unwrap();
    }
    assert!(std::fs::read_link(format!("/proc/{}/exe", pod.pid())).unwrap().ends_with("rrun-monitor-2"));
    let (_, seen) = pod.monitor.state().await.unwrap();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().any(|s| s.state.exited.as_ref().is_some_and(|e| e.code == 3)));
    write_all(shell.pty.as_ref().unwrap(), "hello\n");
    assert!(read_all(shell.pty.take().unwrap()).await.contains("said hello"));
    assert_eq!(timeout(PATIENCE, shell.exited).await.unwrap().unwrap().code, 9);
    pod.exited(&noisy.id).await;
    assert!(log_of(&noisy).into_iter().eq((0..30000).map(|i| format!("stdout F {i}"))));
    write_all(client.stdin.as_ref().unwrap(), "end\n");
    let (mut text, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    while let Output::Stdout(data) = timeout(PATIENCE, client.next(&mut buffer)).await.unwrap().unwrap() {
        text.extend_from_slice(data);
    }
    assert_eq!(String::from_utf8(text).unwrap(), "got one\ngot end\n");
    assert_eq!(pod.exited(&create.id).await.code, 5);
    // A new connection finds it, too.
    Monitor::connect(&pod.dir).await.unwrap();
}

#[tokio::test]
async fn an_unfinished_line_is_kept() {
    let pod = pod!();
    let create = Create { stdin: true, ..pod.container("printf 'begun, '; echo x >&2; read x; echo done") };
    pod.start(&create).await;
    wait_for_log(&create, "x");
    pod.monitor.upgrade(&program()).await.unwrap();
    let client = pod.monitor.attach(&create.id, true, true, true).await.unwrap();
    write_all(client.stdin.as_ref().unwrap(), "go\n");
    pod.exited(&create.id).await;
    assert_eq!(log_of(&create), ["stderr F x", "stdout F begun, done"]);
}

#[tokio::test]
async fn a_program_that_is_not_there_changes_nothing() {
    let pod = pod!();
    let create = pod.container("sleep 0.5; exit 2");
    pod.start(&create).await;
    let error = pod.monitor.upgrade("/nowhere/monitor".as_ref()).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/monitor"), "{error}");
    assert_eq!(pod.exited(&create.id).await.code, 2);
}
