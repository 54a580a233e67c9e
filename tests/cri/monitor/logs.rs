//! The log's format, reopening, full disks.

use super::{Pod, log_of, pod, wait_for_log};
use rrun_cri::monitor::{Create, Event};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

#[tokio::test]
async fn long_lines_are_cut_and_the_last_piece_is_a_part() {
    let pod = pod!();
    let create = Create { log_line_max: 100, ..pod.container("printf '%0250d\\n' 1; printf 'a\\r\\n'; printf '\\n'; printf rest") };
    pod.run(&create).await;
    let zeros = "0".repeat(100);
    let last = format!("stdout F {}1", "0".repeat(49));
    let part = format!("stdout P {zeros}");
    assert_eq!(log_of(&create), [part.as_str(), part.as_str(), last.as_str(), "stdout F a", "stdout F ", "stdout P rest"]);
}

#[tokio::test]
async fn a_flood_is_logged_whole() {
    let pod = pod!();
    let create = pod.container("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done");
    pod.run(&create).await;
    let log = log_of(&create);
    assert_eq!(log.len(), 20000);
    assert!(log.iter().enumerate().all(|(i, l)| *l == format!("stdout F line {i}")));
}

#[tokio::test]
async fn reopened_at_a_lines_boundary() {
    let pod = pod!();
    let create = Create { stdin: true, ..pod.container("cat") };
    pod.start(&create).await;
    let client = pod.monitor.attach(&create.id, true, false, false).await.unwrap();
    let stdin = client.stdin.as_ref().unwrap();
    super::write_all(stdin, "before\nbeg");
    wait_for_log(&create, "before");
    let rotated = format!("{}.1", create.log_path);
    fs::rename(&create.log_path, &rotated).unwrap();
    pod.monitor.reopen_log(&create.id).await.unwrap();
    super::write_all(stdin, "un\n");
    wait_for_log(&create, "begun");
    assert_eq!(log_of(&create), ["stdout F begun"]);
    assert!(fs::read_to_string(rotated).unwrap().ends_with("before\n"));
    // Where the new file cannot be made the old one stays.
    let folder = std::path::Path::new(&create.log_path).parent().unwrap();
    let elsewhere = folder.with_extension("moved");
    fs::rename(folder, &elsewhere).unwrap();
    pod.monitor.reopen_log(&create.id).await.unwrap_err();
    fs::rename(&elsewhere, folder).unwrap();
    super::write_all(stdin, "still\n");
    wait_for_log(&create, "still");
}

#[tokio::test]
async fn a_full_disk_drops_lines_and_blocks_nobody() {
    let pod = pod!();
    let disk = pod.rt.dir().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(&disk).status().unwrap();
    assert!(mounted.success());
    let log_path = disk.join("log").to_str().unwrap().to_owned();
    let script = "i=0; while [ $i -lt 3000 ]; do echo a line of some length $i; i=$((i+1)); done; touch /done; read x; echo again";
    let bundle = pod.bundle(script).writable();
    let done = bundle.rootfs().join("done");
    let create = Create { log_path, stdin: true, ..pod.container_of(bundle) };
    pod.start(&create).await;
    let Event::LogErrors(errors) = pod.event().await else { panic!("no log error") };
    assert!(errors.text.contains("No space left"), "{errors:?}");
    assert!(tests::host::wait_until(30, || done.exists()), "the container is blocked by its log");
    // The monitor is through, too, with what the pipe held.
    let deadline = Instant::now() + Duration::from_secs(30);
    let kept = loop {
        let (kept, dropped) = (log_of(&create), dropped(&pod).await);
        if kept.len() as u64 + dropped == 3000 {
            break kept;
        }
        assert!(Instant::now() < deadline, "{} lines kept, {dropped} dropped", kept.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(kept.len() > 100 && kept.iter().enumerate().all(|(i, l)| *l == format!("stdout F a line of some length {i}")));
    // Room again: the next line is written.
    fs::write(&create.log_path, "").unwrap();
    let client = pod.monitor.attach(&create.id, true, false, false).await.unwrap();
    super::write_all(client.stdin.as_ref().unwrap(), "x\n");
    let Event::LogErrors(over) = pod.event().await else { panic!("it is not over") };
    assert_eq!(over.text, "");
    pod.exited(&create.id).await;
    assert_eq!(log_of(&create), ["stdout F again"]);
    assert_eq!(dropped(&pod).await, 3000 - kept.len() as u64);
    assert!(Command::new("umount").arg("--lazy").arg(&disk).status().unwrap().success());
}

/// How many lines of the pod's one container its log has lost.
async fn dropped(pod: &Pod) -> u64 {
    pod.monitor.state().await.unwrap().1[0].state.log_lines_dropped
}

#[tokio::test]
async fn no_log_at_all() {
    let pod = pod!();
    let create = Create { log_path: String::new(), ..pod.container("dd if=/dev/zero bs=1k count=500 2>/dev/null; exit 2") };
    assert_eq!(pod.run(&create).await.code, 2);
}
