//! What a checkpoint must be told of: with the flag it is kept, without it CRIU refuses. `probe hold` has it open.

use super::{another_id, checkpoint, count, folders, restore, start, wait_beyond};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::terminal::Terminal;
use tests::{Bundle, Container, Runtime, host};

/// A container that holds it, as of `tests/probe/holds.rs`.
fn holding(rt: &Runtime, what: &str) -> Bundle {
    rt.bundle().shell().writable().args(["/probe", "hold", what])
}

fn started(rt: &Runtime, bundle: Bundle) -> Container<'_> {
    let c = start(rt, bundle);
    wait_beyond(&c, 1);
    c
}

/// A checkpoint with these flags does not come about, for the reason that CRIU's log has.
#[track_caller]
fn refused(c: &Container<'_>, flags: &[&str], text: &str) {
    let (images, _) = folders(c.rt);
    let done = c.call(["checkpoint", "--image-path", &images].iter().chain(flags)).run();
    assert_ne!(done.code(), 0, "a checkpoint with {flags:?}");
    let log = fs::read_to_string(Path::new(&images).join("dump.log")).unwrap();
    assert!(log.contains(text), "{log}");
    assert_eq!(c.status(), "running");
}

/// Restores it and watches it use what it holds.
fn goes_on(c: &Container<'_>, flags: &[&str]) {
    let saved = count(c);
    restore(c, flags);
    wait_beyond(c, saved);
    assert!(!c.bundle.rootfs().join("ended").exists());
}

/// What a restore's log says of its failure.
fn restore_fails(c: &Container<'_>, flags: &[&str], text: &str) {
    let (images, work) = folders(c.rt);
    let bundle = c.bundle.dir.display().to_string();
    let done = c.call(["restore", "-d", "--bundle", &bundle, "--image-path", &images, "--work-path", &work].iter().chain(flags)).run();
    assert_ne!(done.code(), 0, "a restore with {flags:?}");
    let log = fs::read_to_string(Path::new(&work).join("restore.log")).unwrap();
    assert!(log.contains(text), "{log}");
}

#[test]
fn file_locks() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = started(&rt, holding(&rt, "lock"));
    refused(&c, &[], "You can try --file-locks");
    checkpoint(&c, &["--file-locks"]);
    let lock = || Flock::lock(File::open(c.bundle.rootfs().join("lock")).unwrap(), FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e);
    drop(lock().unwrap());
    goes_on(&c, &["--file-locks"]);
    assert_eq!(lock().err(), Some(Errno::EWOULDBLOCK));
    c.end();
}

#[test]
fn link_remap() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = started(&rt, holding(&rt, "removed"));
    refused(&c, &[], "Use link-remap option");
    checkpoint(&c, &["--link-remap"]);
    let written = |c: &Container<'_>| fs::metadata(c.bundle.rootfs().join("after")).unwrap().len();
    let before = written(&c);
    goes_on(&c, &[]);
    assert!(written(&c) > before, "it writes to another file");
    c.end();
}

#[test]
fn tcp_connections() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = started(&rt, holding(&rt, "tcp"));
    refused(&c, &[], "consider using --tcp-established");
    checkpoint(&c, &["--tcp-established"]);
    if rt.differs("network of a checkpoint") {
        return;
    }
    restore_fails(&c, &[], "Connected TCP socket in image");
    goes_on(&c, &["--tcp-established"]);
    c.end();
    restore(&c, &["--tcp-close"]);
    let ended = c.bundle.rootfs().join("ended");
    assert!(host::wait_until(20, || fs::read_to_string(&ended).is_ok_and(|t| t.contains("BrokenPipe"))), "the connection is open");
    c.end();
}

#[test]
fn tcp_connections_that_nobody_accepted() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = started(&rt, holding(&rt, "backlog"));
    refused(&c, &["--tcp-established"], "In-flight connection");
    checkpoint(&c, &["--tcp-established", "--tcp-skip-in-flight"]);
    if rt.differs("network of a checkpoint") {
        return;
    }
    goes_on(&c, &["--tcp-established"]);
    c.end();
}

#[test]
fn a_unix_socket_of_the_host() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let outside = rt.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let path = outside.join("socket").display().to_string();
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let place = outside.to_str().unwrap();
    // CRIU sees the host's sockets in the host's network namespace, and connects by the name that they have there.
    let bundle = holding(&rt, "unix").args(["/probe", "hold", "unix", &path]).mount(place, "bind", place, &["rbind", "rw"]);
    let c = started(&rt, bundle.without_namespace("network").without_mount("/sys"));
    refused(&c, &[], "Consider using --ext-unix-sk option");
    checkpoint(&c, &["--ext-unix-sk"]);
    while socket.recv(&mut [0]).is_ok() {}
    goes_on(&c, &["--ext-unix-sk"]);
    assert!(socket.recv(&mut [0]).is_ok(), "nothing comes to the host's socket");
    c.end();
}

#[test]
fn a_terminal_of_the_caller() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let (_terminal, slave) = Terminal::open(24, 80);
    let c = rt.container(holding(&rt, "memory"));
    c.run_with(&["-d"])
        .stdio(|command| {
            command.stdin(slave.try_clone().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
        })
        .ok();
    wait_beyond(&c, 1);
    refused(&c, &[], "tty");
    checkpoint(&c, &["--shell-job"]);
    rt.assert_nothing_left();
}

#[test]
fn an_empty_network_namespace() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = started(&rt, holding(&rt, "memory"));
    let flags = |c: &Container<'_>| c.exec(&[], &["/bin/sh", "-c", "cat /sys/class/net/lo/flags"]).ok().stdout;
    assert_eq!(flags(&c), "0x9\n");
    checkpoint(&c, &[]);
    goes_on(&c, &["--empty-ns", "network"]);
    assert_eq!(flags(&c), "0x8\n", "the device is up as it was");
    c.end();
    if rt.differs("network of a checkpoint") {
        return;
    }
    restore(&c, &[]);
    assert_eq!(flags(&c), "0x9\n");
    // And saved without it, nothing is there to bring back.
    checkpoint(&c, &["--empty-ns", "network"]);
    restore(&c, &[]);
    assert_eq!(flags(&c), "0x8\n");
    c.end();
}

#[test]
fn cgroup_modes() {
    let rt = Runtime::new();
    needs_criu!(rt);
    if host::cgroup_version() != 1 {
        host::skip("needs cgroup v1: its pids.max is looked at");
        return;
    }
    for (mode, limit) in [("soft", "50"), ("ignore", "50"), ("full", "77")] {
        // What ignores cgroups ignores their namespace, without which the restore of one that has it is refused.
        let bundle = holding(&rt, "memory").set("/linux/resources/pids", json!({"limit": 50}));
        let c = started(&rt, if mode == "ignore" { bundle.without_namespace("cgroup") } else { bundle });
        // Not the configuration's, so that only CRIU can bring it back.
        let file = |c: &Container<'_>| {
            let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
            let path = cgroups.lines().find_map(|l| l.split_once(":pids:")).unwrap().1;
            format!("/sys/fs/cgroup/pids{path}/pids.max")
        };
        fs::write(file(&c), "77").unwrap();
        checkpoint(&c, &["--manage-cgroups-mode", mode]);
        goes_on(&c, &["--manage-cgroups-mode", mode]);
        assert_eq!(fs::read_to_string(file(&c)).unwrap().trim(), limit, "{mode}");
        c.end();
    }
    // The runtime has made the cgroups, so strict has something to refuse.
    let c = started(&rt, holding(&rt, "memory"));
    checkpoint(&c, &["--manage-cgroups-mode", "strict"]);
    restore_fails(&c, &["--manage-cgroups-mode", "strict"], "Abort restore of existing cgroups");
}

#[test]
fn memory_is_dropped_from_the_images() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = started(&rt, holding(&rt, "memory"));
    checkpoint(&c, &[]);
    let pages = rt.dir().join("images/pages-1.img");
    let kept = || fs::metadata(&pages).unwrap().blocks() * 512;
    let all = kept();
    assert!(all > 8 << 20, "{all}");
    goes_on(&c, &[]);
    c.end();
    assert_eq!(kept(), all);
    goes_on(&c, &["--auto-dedup"]);
    assert!(kept() < 1 << 20, "{} of {all} bytes are left", kept());
    c.end();
}

/// An address on loopback where nobody listens: host and port.
fn free_address() -> (String, String) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    (address.to_string(), address.port().to_string())
}

/// Waits for the byte that tells of a server that is ready.
#[track_caller]
fn wait_for_byte(file: &Path) {
    assert!(host::wait_until(20, || fs::read(file).is_ok_and(|bytes| bytes == [0])), "nothing tells that it is ready");
}

#[test]
fn memory_goes_to_a_page_server() {
    let rt = Runtime::new();
    needs_criu!(rt);
    let c = started(&rt, holding(&rt, "memory"));
    let (pages, ready) = (rt.dir().join("pages"), rt.dir().join("ready"));
    fs::create_dir(&pages).unwrap();
    let (address, port) = free_address();
    let serve = "exec criu page-server --images-dir \"$0\" --address 127.0.0.1 --port $1 --status-fd 3 3>\"$2\" >/dev/null 2>&1";
    let mut server = Command::new("sh").arg("-c").arg(serve).arg(&pages).arg(port).arg(&ready).spawn().unwrap();
    wait_for_byte(&ready);
    checkpoint(&c, &["--page-server", &address]);
    assert!(server.wait().unwrap().success());
    let images = |folder: &Path| -> Vec<_> {
        let all = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        all.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("page")).collect()
    };
    assert_eq!(images(&rt.dir().join("images")), Vec::<PathBuf>::new());
    let moved = images(&pages);
    assert!(moved.len() >= 2, "{moved:?}");
    for file in moved {
        fs::rename(&file, rt.dir().join("images").join(file.file_name().unwrap())).unwrap();
    }
    goes_on(&c, &[]);
    c.end();
}

#[test]
fn memory_stays_until_it_is_asked_for() {
    let rt = Runtime::new();
    needs_criu!(rt);
    if !Command::new("criu").args(["check", "--feature", "uffd-noncoop"]).stdout(Stdio::null()).status().unwrap().success() {
        host::skip("needs a kernel whose userfaultfd tells of forks and mappings");
        return;
    }
    let mut c = started(&rt, holding(&rt, "memory"));
    let (address, _) = free_address();
    let (images, work) = folders(&rt);
    let ready = rt.dir().join("ready");
    let flags =
        ["checkpoint", "--lazy-pages", "--page-server", &address, "--status-fd", "3", "--image-path", &images, "--work-path", &work, &c.id];
    let saving = rt.call_after(&format!("exec 3>{}", ready.display()), flags).spawn();
    wait_for_byte(&ready);
    let saved: u64 = [".", "pages-1.img"].map(|f| fs::metadata(Path::new(&images).join(f)).unwrap().len()).iter().sum();
    assert!(saved < 1 << 20, "{saved} bytes are in the images");
    // CRIU 4.2.1 ends amid the pages (`splice: -1: Bad file descriptor`), for runc, too. So what is seen is whom it asks.
    let first = std::mem::take(&mut c.id);
    another_id(&mut c);
    restore_fails(&c, &["--lazy-pages"], "lazy-pages.socket");
    c.id = first;
    // Who goes has all the pages that it wanted.
    drop(TcpStream::connect(&address).unwrap());
    saving.wait().ok();
    rt.assert_nothing_left();
}

#[test]
fn profiles_of_security_modules() {
    let rt = Runtime::new();
    needs_criu!(rt);
    if Path::new("/sys/kernel/security/apparmor").exists() {
        host::skip("needs a kernel without AppArmor, which refuses its profiles");
        return;
    }
    let c = started(&rt, holding(&rt, "memory"));
    checkpoint(&c, &[]);
    restore_fails(&c, &["--lsm-profile", "apparmor:other"], "apparmor LSM specified but apparmor not supported by kernel");
    goes_on(&c, &[]);
    c.end();
}

/// A CRIU that says yes to every question, with two yeses about features, and to every request, and keeps them in the
/// file `requests` beside it. For what no kernel here can do.
fn yes(rt: &Runtime) -> PathBuf {
    let folder = rt.dir().join("yes");
    fs::create_dir(&folder).unwrap();
    // Of a request the first field is its type (`criu_req_type`); the answers are `criu_resp`.
    let script = r#"#!/bin/bash
[ "$1" = swrk ] || exit 1
here=${0%/*}
dd bs=65536 count=1 <&$2 >"$here/last" 2>/dev/null
cat "$here/last" >>"$here/requests"
case $(od -An -tu1 -N2 "$here/last") in
*' 1') printf '\10\1\20\1' ;;
*' 2') printf '\10\2\20\1' ;;
*' 4') printf '\10\4\20\1' ;;
*' 9') printf '\10\11\20\1\102\4\10\1\20\1' ;;
*' 10') printf '\10\12\20\1\122\4\10\4\20\2' ;;
esac >"$here/answer"
dd bs=65536 <"$here/answer" >&$2 2>/dev/null
"#;
    let program = folder.join("criu");
    host::write_program(&program, script.as_bytes());
    folder
}

#[test]
fn what_no_kernel_here_can_is_asked_for() {
    let rt = Runtime::new();
    if rt.is_rootless() || !host::is_root() {
        host::skip("needs root: CRIU needs it");
        return;
    }
    let c = started(&rt, holding(&rt, "memory"));
    let (images, work) = folders(&rt);
    fs::create_dir(rt.dir().join("parent")).unwrap();
    let criu = yes(&rt);
    let path = format!("{}:{}", criu.display(), std::env::var("PATH").unwrap());
    let asked = |call: tests::Call, fields: &[&[u8]]| {
        let done = call.env("PATH", &path).run();
        let requests = fs::read(criu.join("requests")).unwrap_or_default();
        for field in fields {
            assert!(requests.windows(field.len()).any(|w| w == *field), "{field:?} is not in {requests:?}: {}", done.stderr);
        }
        fs::remove_file(criu.join("requests")).unwrap();
        c.call(["delete", "--force"]).ok();
    };
    // Fields of `criu_opts`: parent_img (14), track_mem (15).
    let saved = || c.call(["checkpoint", "--pre-dump", "--parent-path", "../parent", "--image-path", &images]);
    asked(saved(), &[b"\x72\x09../parent", b"\x78\x01"]);
    // lsm_profile (53), lsm_mount_context (63). It restores nothing, which ends the restore.
    fs::write(Path::new(&images).join("descriptors.json"), "[\"\",\"\",\"\"]").unwrap();
    let bundle = c.bundle.dir.display().to_string();
    let from = ["restore", "-d", "--bundle", &bundle, "--image-path", &images, "--work-path", &work];
    asked(c.call(from.iter().chain(&["--lsm-profile", "selinux:some_t"])), &[b"\xaa\x03\x0eselinux:some_t"]);
    asked(c.call(from.iter().chain(&["--lsm-mount-context", "some_u:some_r"])), &[b"\xfa\x03\x0dsome_u:some_r"]);
    rt.assert_nothing_left();
}
