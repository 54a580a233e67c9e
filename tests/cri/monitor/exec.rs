//! Further processes in a container.

use super::{PATIENCE, is_alive, pod, read_all, write_all};
use rrun_cri::monitor::{Create, Error, Exec, Monitor, resize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

#[tokio::test]
async fn output_and_exit_code() {
    let pod = pod!();
    let create = pod.container("sleep 100");
    pod.start(&create).await;
    let mut process = pod.exec(&create, "echo out; echo err >&2; exit 5").await.unwrap();
    assert_eq!(read_all(process.stdout.take().unwrap()).await, "out\n");
    assert_eq!(read_all(process.stderr.take().unwrap()).await, "err\n");
    let exited = timeout(PATIENCE, process.exited).await.unwrap().unwrap();
    assert_eq!((exited.code, exited.signal, exited.timed_out), (5, 0, false));
    // Many that end at once: the number of none is mistaken.
    for code in 0..20 {
        let process = pod.exec(&create, &format!("exit {code}")).await.unwrap();
        assert_eq!(timeout(PATIENCE, process.exited).await.unwrap().unwrap().code, code);
    }
}

#[tokio::test]
async fn several_at_once() {
    let pod = pod!();
    let create = pod.container("sleep 100");
    pod.start(&create).await;
    let execs = (0..8).map(|code| {
        let (pod, create) = (&pod, &create);
        async move {
            let exec = Exec { id: create.id.clone(), process: format!("{}/process{code}.json", create.dir).into(), ..Exec::default() };
            let process = serde_json::json!({"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", format!("exit {code}")], "cwd": "/", "env": ["PATH=/bin"]});
            std::fs::write(&exec.process, process.to_string()).unwrap();
            let process = pod.monitor.exec(&exec).await.unwrap();
            timeout(PATIENCE, process.exited).await.unwrap().unwrap().code
        }
    });
    let codes = futures_util::future::join_all(execs).await;
    assert_eq!(codes, (0..8).collect::<Vec<u32>>());
}

/// The files that the monitor holds open of the program at `path`.
fn held(pod: &super::Pod, path: &Path) -> Vec<PathBuf> {
    let identity = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let open = std::fs::read_dir(format!("/proc/{}/fd", pod.pid())).unwrap().map(|fd| fd.unwrap().path());
    open.filter(|fd| identity(fd) == identity(path)).collect()
}

#[tokio::test]
async fn a_runtime_executed_from_a_read_only_mount() {
    let pod = pod!();
    tests::require!(tests::runtime::program().1 == tests::runtime::Kind::Rrun, "only rrun is executed so");
    let program = pod.dir.join("runtime");
    let put = |file: &Path| {
        tests::host::write_program(&pod.dir.join("new"), &std::fs::read(file).unwrap());
        std::fs::rename(pod.dir.join("new"), &program).unwrap();
    };
    put(&tests::runtime::program().0);
    let create = Create { read_only: true, runtime: program.to_str().unwrap().into(), ..pod.container("sleep 100") };
    pod.start(&create).await;
    let code = async || Ok::<_, Error>(pod.exec(&create, "exit 3").await?.exited.await.unwrap().code);
    assert_eq!(code().await.unwrap(), 3);
    let open = held(&pod, &program);
    assert_eq!(open.len(), 1, "{open:?}");
    let error = std::fs::File::options().write(true).open(&open[0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
    // What takes the program's place is executed from now on, and the old one let go.
    put(&tests::host::find("false").unwrap());
    assert!(matches!(code().await, Err(Error::Failed { code: 1, .. })));
    put(&tests::runtime::program().0);
    assert_eq!(code().await.unwrap(), 3);
    assert_eq!(held(&pod, &program).len(), 1);
    std::fs::remove_file(&program).unwrap();
    let gone = code().await.unwrap_err().to_string();
    assert!(gone.contains("execute the OCI runtime") && gone.contains("No such file"), "{gone}");
}

#[tokio::test]
async fn input() {
    let pod = pod!();
    let create = pod.container("sleep 100");
    pod.start(&create).await;
    let mut process = pod.exec_with(&create, "cat", |e| Exec { stdin: true, ..e }).await.unwrap();
    write_all(process.stdin.as_ref().unwrap(), "through\n");
    process.stdin = None;
    assert_eq!(read_all(process.stdout.take().unwrap()).await, "through\n");
    assert_eq!(process.exited.await.unwrap().code, 0);
}

#[tokio::test]
async fn a_terminal() {
    let pod = pod!();
    let create = pod.container("sleep 100");
    pod.start(&create).await;
    let mut process = pod.exec_with(&create, "read x; stty size; test -t 1 && exit 6", |e| Exec { tty: true, ..e }).await.unwrap();
    let pty = process.pty.take().unwrap();
    resize(&pty, 93, 41).unwrap();
    write_all(&pty, "go\n");
    let text = read_all(pty).await;
    assert!(text.contains("41 93"), "{text:?}");
    assert_eq!(process.exited.await.unwrap().code, 6);
}

#[tokio::test]
async fn a_program_that_is_not_there() {
    let pod = pod!();
    let create = pod.container("sleep 100");
    pod.start(&create).await;
    let path = std::path::Path::new(&create.dir).join("bad.json");
    std::fs::write(&path, r#"{"user":{"uid":0,"gid":0},"args":["/nowhere"],"cwd":"/"}"#).unwrap();
    let exec = Exec { id: create.id.clone(), process: path, ..Exec::default() };
    let Err(Error::Failed { text, code, .. }) = pod.monitor.exec(&exec).await else { panic!("it runs") };
    assert!(text.contains("/nowhere") && code != 0, "{text} {code}");
    let none = Exec { id: "nobody".into(), ..exec };
    assert!(matches!(pod.monitor.exec(&none).await, Err(Error::Failed { not_found: true, .. })));
}

#[tokio::test]
async fn its_timeout_kills_its_process_group() {
    let pod = pod!();
    let create = pod.container("sleep 100");
    pod.start(&create).await;
    let mut process = pod
        .exec_with(&create, "sleep 99 & echo started; wait", |e| Exec { timeout: Some(Duration::from_millis(1500)), ..e })
        .await
        .unwrap();
    // The end of the stream: the one in the background has been killed as well.
    assert_eq!(read_all(process.stdout.take().unwrap()).await, "started\n");
    let exited = process.exited.await.unwrap();
    assert_eq!((exited.code, exited.timed_out), (137, true));
}

#[tokio::test]
async fn killed_on_request() {
    let pod = pod!();
    let create = pod.container("sleep 100");
    pod.start(&create).await;
    let process = pod.exec(&create, "trap 'exit 9' TERM; sleep 99 & wait").await.unwrap();
    // Its trap may not be set yet: then it dies of the signal.
    pod.monitor.kill_exec(process.exec, 15).await.unwrap();
    let exited = timeout(PATIENCE, process.exited).await.unwrap().unwrap();
    assert!([9, 143].contains(&exited.code), "{exited:?}");
    pod.monitor.kill_exec(process.exec, 0).await.unwrap();
}

#[tokio::test]
async fn what_dies_with_the_connection_and_what_does_not() {
    let mut pod = pod!();
    let create = pod.container("sleep 100");
    pod.start(&create).await;
    let probe = pod.exec_with(&create, "sleep 99", |e| Exec { dies_with_connection: true, ..e }).await.unwrap();
    let stays = pod.exec_with(&create, "exec sleep 98", |e| Exec { stdout: false, stderr: false, ..e }).await.unwrap();
    let shell = pod.exec_with(&create, "exec sh", |e| Exec { tty: true, ..e }).await.unwrap();
    let (probe_pid, stays_pid, shell_pid) = (probe.pid, stays.pid, shell.pid);
    let (monitor, events) = Monitor::connect(&pod.dir).await.unwrap();
    assert!(tests::host::wait_until(10, || !is_alive(probe_pid)));
    assert!(timeout(PATIENCE, probe.exited).await.unwrap().is_err(), "its end is told to somebody else");
    assert!(is_alive(stays_pid) && is_alive(shell_pid));
    // The daemon's death closes the terminal's master: the shell sees the hang-up.
    drop(shell.pty);
    assert!(tests::host::wait_until(10, || !is_alive(shell_pid)));
    (pod.monitor, pod.events) = (monitor, tokio::sync::Mutex::new(events));
    assert_eq!(pod.monitor.state().await.unwrap().1[0].state.execs, 1);
}

#[tokio::test]
async fn it_has_its_containers_oom_score() {
    let pod = pod!();
    let bundle = pod.bundle("sleep 100").set("/process/oomScoreAdj", serde_json::json!(500));
    let create = pod.container_of(bundle);
    pod.start(&create).await;
    let mut process = pod.exec(&create, "cat /proc/self/oom_score_adj").await.unwrap();
    assert_eq!(read_all(process.stdout.take().unwrap()).await, "500\n");
}
