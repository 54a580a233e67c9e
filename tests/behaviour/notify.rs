//! sd_notify and socket activation: `NOTIFY_SOCKET` and `LISTEN_FDS` of the caller.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;
use tests::{Runtime, host, require};

/// What arrives at a socket, until `BARRIER=1`.
fn heard(socket: &UnixDatagram) -> Vec<String> {
    let mut all = Vec::new();
    let mut buffer = [0; 512];
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    while let Ok(length) = socket.recv(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let last = text.starts_with("BARRIER");
        all.push(text);
        if last {
            break;
        }
    }
    all
}

const READY: &str = "import os,socket;s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM);s.sendto(b'READY=1',os.environ['NOTIFY_SOCKET'])";

#[test]
fn the_container_s_word_reaches_the_caller() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: it mounts the host's python");
    require!(host::find("python3").is_some(), "python3");
    let socket = rt.dir().join("notify");
    let listener = UnixDatagram::bind(&socket).unwrap();
    let mut bundle = rt.bundle().args(["/usr/bin/python3", "-c", &format!("{READY};import time;time.sleep(60)")]);
    for folder in ["/usr", "/lib", "/lib64"] {
        bundle = bundle.mount(folder, "bind", folder, &["rbind", "ro"]);
    }
    let c = rt.container(bundle);
    let run = c.run_with(&["--detach"]).env("NOTIFY_SOCKET", &socket).spawn();
    let heard = heard(&listener);
    run.wait().ok();
    assert_eq!(heard[0].trim_end(), "READY=1", "{heard:?}");
    assert_eq!(heard[1].trim_end(), format!("MAINPID={}", c.pid()));
    assert_eq!(heard[2], "BARRIER=1");
    c.end();
}

#[test]
fn a_container_that_ends_without_a_word_ends_the_wait() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root");
    let socket = rt.dir().join("notify");
    let _listener = UnixDatagram::bind(&socket).unwrap();
    let c = rt.container(rt.bundle().args(["/probe", "exit"]));
    c.create_with(&[]).env("NOTIFY_SOCKET", &socket).ok();
    rt.call(["start", &c.id]).env("NOTIFY_SOCKET", &socket).ok();
    c.wait_status("stopped");
    c.delete();
}

#[test]
fn listening_sockets_are_passed_on() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root");
    let bundle = rt.bundle().shell().args(["/bin/sh", "-c", "echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4"]);
    let c = rt.container(bundle.file("/one", "first\n").file("/two", "second\n"));
    let (dir, program) = (c.bundle.dir.display().to_string(), tests::runtime::program().0.display().to_string());
    let script =
        "exec 3<\"$1\"/rootfs/one 4<\"$1\"/rootfs/two; LISTEN_FDS=2 LISTEN_PID=$$ exec \"$2\" --root \"$3\" run --bundle \"$1\" \"$4\"";
    let done = rt.shell(script, &[&dir, &program, &rt.root().display().to_string(), &c.id]).run().ok();
    assert_eq!(done.stdout, "2 1\nfirst\nsecond\n");
}
