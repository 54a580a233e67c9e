//! Log files: their format, rotation, terminals, and disks that are full.

use std::fs;

use rrun_proto::v1;
use tests::host::wait_until;
use tonic::Code;

use crate::client::{parse_log, script};
use crate::node::Node;
use crate::node_or_skip;

#[test]
fn lines_have_time_stream_tag_and_text() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script("echo one; echo two >&2; echo; printf 'no newline'"));
    container.ended();
    let log = container.log();
    let of = |stream: &str| log.iter().filter(|line| line.stream == stream).map(|l| (l.tag.as_str(), l.text.as_str())).collect::<Vec<_>>();
    assert_eq!(of("stdout"), [("F", "one"), ("F", ""), ("P", "no newline")]);
    assert_eq!(of("stderr"), [("F", "two")]);
    for line in &log {
        let (date, rest) = line.time.split_once('T').unwrap();
        assert!(date.len() == 10 && (rest.ends_with('Z') || rest.contains('+')), "RFC 3339: {line:?}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(container.log_path()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o640, "as containerd has it");
    pod.end();
}

#[test]
fn long_lines_are_split() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let length = 16384 * 2 + 100;
    let container = pod.start(&script(&format!("head -c {length} /dev/zero | tr '\\0' x; echo; echo after")));
    container.ended();
    let log = container.log();
    let tags: Vec<_> = log.iter().map(|line| (line.tag.as_str(), line.text.len())).collect();
    assert_eq!(log.iter().map(|line| line.text.len()).sum::<usize>(), length + 5, "{tags:?}");
    assert!(log.iter().all(|line| line.text.len() <= 16384), "{tags:?}");
    assert_eq!(tags[..2], [("P", 16384), ("P", 16384)], "{tags:?}");
    assert_eq!(tags[tags.len() - 2..], [("F", 100), ("F", 5)], "{tags:?}");
    pod.end();
}

#[test]
fn rotation_loses_and_splits_nothing() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let container = pod.start(&script("i=0; while [ $i -lt 4000 ]; do echo line $i; i=$((i+1)); done; echo done; sleep 1000"));
    let path = container.log_path();
    let mut pieces = Vec::new();
    for number in 0..5 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let old = path.with_extension(format!("log.{number}"));
        fs::rename(&path, &old).unwrap();
        node.cri().reopen_container_log(v1::ReopenContainerLogRequest { container_id: container.id.clone() }).unwrap();
        assert!(path.exists(), "the new file is there when the call returns");
        pieces.push(old);
    }
    assert!(wait_until(20, || fs::read_to_string(&path).is_ok_and(|text| text.ends_with(" done\n")) || {
        pieces.iter().any(|piece| fs::read_to_string(piece).is_ok_and(|text| text.ends_with(" done\n")))
    }));
    pieces.push(path);
    let lines: Vec<_> = pieces.iter().flat_map(|piece| parse_log(&fs::read(piece).unwrap())).collect();
    assert!(lines.iter().all(|line| line.tag == "F"), "whole lines only");
    let texts: Vec<_> = lines.into_iter().map(|line| line.text).collect();
    let expected: Vec<_> = (0..4000).map(|number| format!("line {number}")).chain(["done".into()]).collect();
    assert_eq!(texts, expected);
    container.stop(0).unwrap();
    let over = node.cri().reopen_container_log(v1::ReopenContainerLogRequest { container_id: container.id.clone() }).unwrap_err();
    assert_eq!(over.code(), Code::FailedPrecondition, "{over:?}");
    pod.end();
}

#[test]
fn a_terminals_log_is_one_stream() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = script("echo out; echo errors >&2; test -t 0 && test -t 1 && echo terminal");
    config.tty = true;
    let container = pod.start(&config);
    container.ended();
    let log: Vec<_> = container.log().into_iter().map(|line| (line.stream, line.text)).collect();
    assert!(log.iter().all(|(stream, _)| stream == "stdout"), "{log:?}");
    let texts: Vec<_> = log.iter().map(|(_, text)| text.trim_end_matches('\r')).collect();
    assert_eq!(texts, ["out", "errors", "terminal"]);
    pod.end();
}

#[test]
fn a_full_disk_drops_lines_and_blocks_nobody() {
    let node = node_or_skip!(Node::shared());
    let folder = node.dir().join("by-test-full");
    fs::create_dir_all(&folder).unwrap();
    node.sh(&format!("mount -t tmpfs -o size=256k none {}", folder.display()));
    // The file system is the node's own: seen from here through its init.
    let seen = |path: &std::path::Path| std::path::PathBuf::from(format!("/proc/{}/root{}", node.init(), path.display()));
    let pod = node.pod_with(|config| config.log_directory = folder.join("logs").display().to_string());
    let flag = node.dir().join("shared/go-on");
    let text = "yes 0123456789012345678901234567890123456789 | head -n 40000; echo written >/data/written; \
                while [ ! -e /go/go-on ]; do sleep 0.05; done; echo after; sleep 1000";
    let mut config = script(text);
    config.mounts =
        vec![v1::Mount { container_path: "/go".into(), host_path: flag.parent().unwrap().display().to_string(), ..Default::default() }];
    let container = pod.start(&config);
    assert!(
        wait_until(20, || container.exec(&["test", "-e", "/data/written"], 5).is_ok_and(|answer| answer.exit_code == 0)),
        "the application waits for its log"
    );
    let path = seen(&container.log_path());
    assert!(fs::metadata(&path).unwrap().len() <= 256 << 10);
    // Room again: it goes on by itself, at the beginning of a line.
    fs::write(&path, "").unwrap();
    fs::write(seen(&flag), "").unwrap();
    let recovered = || parse_log(&fs::read(&path).unwrap()).last().is_some_and(|line| line.text == "after");
    assert!(wait_until(20, recovered), "{:?}\n{}", fs::read_to_string(&path), node.log_tail());
    container.stop(0).unwrap();
    pod.end();
    node.sh(&format!("umount {}; rmdir {}; rm {}", folder.display(), folder.display(), flag.display()));
}

#[test]
fn without_a_path_there_is_no_log() {
    let node = node_or_skip!(Node::shared());
    let pod = node.pod();
    let mut config = script("yes | head -n 100000; echo done >/data/done; sleep 1000");
    config.log_path.clear();
    let container = pod.start(&config);
    assert!(wait_until(20, || container.exec(&["test", "-e", "/data/done"], 5).is_ok_and(|answer| answer.exit_code == 0)));
    assert_eq!(container.status().log_path, "");
    pod.end();
}
