//! The monitor dies, and another takes its place.

use super::{Pod, is_alive, kill, log_of, pod, wait_for_log, write_all};
use rrun_cri::monitor::{Create, Created, Exec};
use std::os::fd::AsFd;

impl Pod {
    async fn adopt(&self, create: &Create, created: &Created) -> Created {
        let (pidfd, pty) = (created.pidfd.as_ref().map(AsFd::as_fd), created.pty.as_ref().map(AsFd::as_fd));
        self.monitor.adopt(create, created.pid, created.start_time, true, pidfd, pty).await.unwrap()
    }
}

#[tokio::test]
async fn the_container_lives_on_and_its_log_too() {
    let mut pod = pod!();
    let create = Create { stdin: true, ..pod.container("while read x; do echo got $x; [ $x = end ] && exit 5; done") };
    let created = pod.start(&create).await;
    let client = pod.monitor.attach(&create.id, true, true, true).await.unwrap();
    write_all(client.stdin.as_ref().unwrap(), "one\n");
    wait_for_log(&create, "got one");
    pod.kill_monitor();
    // It writes while nobody listens.
    write_all(client.stdin.as_ref().unwrap(), "two\n");
    assert!(is_alive(created.pid));
    pod.succeed().await;
    pod.adopt(&create, &created).await;
    wait_for_log(&create, "got two");
    let client = pod.monitor.attach(&create.id, true, true, true).await.unwrap();
    let process = pod.exec(&create, "exit 8").await.unwrap();
    assert_eq!(process.exited.await.unwrap().code, 8);
    write_all(client.stdin.as_ref().unwrap(), "end\n");
    let exited = pod.exited(&create.id).await;
    assert_eq!((exited.code, exited.unknown), (5, false));
    assert_eq!(log_of(&create), ["stdout F got one", "stdout F got two", "stdout F got end"]);
    assert!(std::fs::read_to_string(&create.exit_path).unwrap().contains("\"code\":5"));
}

#[tokio::test]
async fn the_end_of_one_that_ended_meanwhile_comes_from_its_pidfd() {
    let mut pod = pod!();
    let create = pod.container("echo begun; sleep 0.5; echo over; exit 6");
    let created = pod.start(&create).await;
    wait_for_log(&create, "begun");
    pod.kill_monitor();
    assert!(tests::host::wait_until(10, || !is_alive(created.pid)));
    pod.succeed().await;
    pod.adopt(&create, &created).await;
    let exited = pod.exited(&create.id).await;
    if exited.unknown {
        tests::host::skip("this kernel keeps no exit status in a pidfd (Linux 6.15 does)");
        return;
    }
    assert_eq!(exited.code, 6);
    assert_eq!(log_of(&create), ["stdout F begun", "stdout F over"]);
}

#[tokio::test]
async fn one_that_nobody_knows_anything_of_is_unknown_and_never_invented() {
    let mut pod = pod!();
    let create = pod.container("exit 0");
    let created = pod.monitor.create(&create).await.unwrap();
    pod.kill_monitor();
    kill(created.pid, 9);
    assert!(tests::host::wait_until(10, || !std::path::Path::new(&format!("/proc/{}", created.pid)).exists()));
    pod.succeed().await;
    pod.monitor.adopt(&create, created.pid, created.start_time, false, None, None).await.unwrap();
    let exited = pod.exited(&create.id).await;
    assert_eq!((exited.code, exited.unknown), (255, true));
}

#[tokio::test]
async fn a_record_is_believed() {
    let mut pod = pod!();
    let create = pod.container("exit 4");
    let created = pod.start(&create).await;
    let before = pod.exited(&create.id).await;
    pod.kill_monitor();
    pod.succeed().await;
    pod.adopt(&create, &created).await;
    assert_eq!(pod.exited(&create.id).await, before);
    assert_eq!(before.code, 4);
}

#[tokio::test]
async fn at_no_step_does_its_death_kill_the_container() {
    let mut pod = pod!();
    let script = "i=0; while :; do echo $i; echo $i >&2; i=$((i+1)); done";
    for step in 0..6 {
        let bundle = if step == 4 { pod.bundle(script).set("/process/terminal", serde_json::json!(true)) } else { pod.bundle(script) };
        let create = Create { stdin: step == 2, tty: step == 4, ..pod.container_of(bundle) };
        let created = pod.start(&create).await;
        let exec = Exec { id: create.id.clone(), tty: true, process: format!("{}/process.json", create.dir).into(), ..Exec::default() };
        std::fs::write(&exec.process, r#"{"terminal":true,"user":{"uid":0,"gid":0},"args":["sleep","99"],"cwd":"/","env":["PATH=/bin"]}"#)
            .unwrap();
        let client = match step {
            1 | 2 => Some(pod.monitor.attach(&create.id, true, true, true).await.unwrap()),
            _ => None,
        };
        let process = if step == 3 { Some(pod.monitor.exec(&exec).await.unwrap()) } else { None };
        let monitor = pod.monitor.clone();
        // A request on its way.
        let asked = (step == 5).then(|| tokio::spawn(async move { monitor.exec(&exec).await.map(drop) }));
        pod.kill_monitor();
        pod.succeed().await;
        // A tick of a loop that a broken pipe would have ended.
        assert!(is_alive(created.pid), "step {step}");
        assert!(process.as_ref().is_none_or(|p| is_alive(p.pid)));
        pod.adopt(&create, &created).await;
        // Read while it is written: the last line may be half there.
        let lines = || std::fs::read_to_string(&create.log_path).unwrap().lines().count();
        let before = lines();
        assert!(tests::host::wait_until(20, || lines() > before + 100), "step {step}");
        kill(created.pid, 9);
        assert_eq!(pod.exited(&create.id).await.code, 137);
        pod.monitor.remove(&create.id).await.unwrap();
        drop((client, asked));
    }
}
