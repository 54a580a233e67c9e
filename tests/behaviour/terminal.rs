//! Terminals: the console socket, run and exec on a terminal of the caller, sizes, raw mode.

use serde_json::json;
use std::fs::File;
use std::process::Command;
use tests::terminal::{ConsoleSocket, Terminal, is_raw, settings};
use tests::{Bundle, Call, Runtime, host};

fn terminal(rt: &Runtime) -> Bundle {
    rt.bundle().set("/process/terminal", json!(true))
}

/// Puts the call onto the slave side of a terminal.
fn on(call: Call, slave: &File) -> Call {
    call.stdio(|command: &mut Command| {
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave.try_clone().unwrap());
    })
}

#[test]
fn create_sends_the_terminal_over_the_console_socket() {
    let rt = Runtime::new();
    let c = rt.container(terminal(&rt).args(["/probe", "try", "stat /dev/console", "open /dev/tty rw", "stat /proc/self/fd/0"]));
    let socket = ConsoleSocket::listen(&rt.dir().join("console"));
    c.create_with(&["--console-socket", socket.path.to_str().unwrap()]).ok();
    let (bytes, terminal) = socket.receive();
    assert!(!bytes.is_empty(), "a name goes with the descriptor");
    c.call(["start"]).ok();
    terminal.wait_for("}");
    let text = terminal.text();
    assert!(text.contains("\"open /dev/tty rw\":\"ok\""), "{text}");
    assert!(text.contains("\"stat /dev/console\":\"char 06"), "{text}");
    c.wait_status("stopped");
}

#[test]
fn console_size_is_set() {
    let rt = Runtime::new();
    let bundle = terminal(&rt).args(["/probe", "size"]).set("/process/consoleSize", json!({"height": 33, "width": 121}));
    let c = rt.container(bundle);
    let socket = ConsoleSocket::listen(&rt.dir().join("console"));
    c.run_with(&["-d", "--console-socket", socket.path.to_str().unwrap()]).ok();
    let (_, terminal) = socket.receive();
    terminal.wait_for("size [33,121]");
    terminal.resize(50, 60);
    terminal.wait_for("size [50,60]");
    terminal.write("\u{3}");
    c.wait_status("stopped");
}

#[test]
fn the_terminal_belongs_to_the_user() {
    let rt = Runtime::new();
    let mut bundle = terminal(&rt).args(["/probe", "try", "stat /dev/pts/0"]);
    let mut expected = "char 0620 0:";
    if !rt.is_rootless() {
        bundle = bundle.set("/process/user", json!({"uid": 1000, "gid": 1000}));
        expected = "char 0620 1000:";
    }
    let c = rt.container(bundle);
    let socket = ConsoleSocket::listen(&rt.dir().join("console"));
    c.run_with(&["-d", "--console-socket", socket.path.to_str().unwrap()]).ok();
    let (_, terminal) = socket.receive();
    terminal.wait_for(expected);
}

#[test]
fn a_terminal_and_no_socket_or_a_socket_and_no_terminal() {
    let rt = Runtime::new();
    let c = rt.container(terminal(&rt));
    let differs = rt.differs("console socket texts");
    let text = if differs { "" } else { "without setting console socket" };
    c.create().fails(1, &[text]);
    rt.assert_nothing_left();
    c.run_with(&["--detach"]).fails(1, &[text]);
    rt.assert_nothing_left();
    if !differs {
        let c = rt.container(rt.bundle());
        let socket = ConsoleSocket::listen(&rt.dir().join("console"));
        c.create_with(&["--console-socket", socket.path.to_str().unwrap()]).fails(1, &["cannot use console socket"]);
        rt.assert_nothing_left();
    }
}

#[test]
fn a_console_socket_that_is_none() {
    let rt = Runtime::new();
    let file = rt.dir().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file, rt.dir().join("absent")] {
        let c = rt.container(terminal(&rt));
        let done = c.create_with(&["--console-socket", path.to_str().unwrap()]).fails(1, &[]);
        if rt.kind() == tests::runtime::Kind::Rrun {
            done.fails(1, &["console", path.to_str().unwrap()]);
        }
        rt.assert_nothing_left();
    }
}

#[test]
fn run_on_a_terminal_relays_and_restores_it() {
    let rt = Runtime::new();
    let c = rt.container(terminal(&rt).args(["/probe", "size"]));
    let (terminal, slave) = Terminal::open(41, 97);
    let before = settings(&slave);
    let running = on(c.run_with(&[]), &slave).spawn();
    terminal.wait_for("size [41,97]");
    assert!(is_raw(&settings(&slave)), "the caller's terminal is raw meanwhile");
    terminal.resize(42, 98);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid()), nix::sys::signal::SIGWINCH).unwrap();
    terminal.wait_for("size [42,98]");
    // Interrupt goes to the container's process, which ends with the signal's number.
    terminal.write("\u{3}");
    running.wait().exits(2);
    let after = settings(&slave);
    assert_eq!((before.local_flags, before.input_flags, before.output_flags), (after.local_flags, after.input_flags, after.output_flags));
    rt.assert_nothing_left();
}

#[test]
fn run_on_a_terminal_passes_what_is_typed() {
    let rt = Runtime::new();
    let c = rt.container(terminal(&rt).args(["/probe", "echo"]));
    let (terminal, slave) = Terminal::open(24, 80);
    let running = on(c.run_with(&[]), &slave).spawn();
    assert!(host::wait_until(20, || is_raw(&settings(&slave))));
    terminal.write("some words\n");
    // Once echoed by the container's terminal, once copied by the probe.
    assert!(host::wait_until(20, || terminal.text().matches("some words").count() == 2), "{}", terminal.text());
    terminal.write("\u{4}");
    running.wait().exits(0);
}

#[test]
fn a_lot_of_output_comes_through_whole() {
    let rt = Runtime::new();
    let words = "Q".repeat(60_000);
    let c = rt.container(terminal(&rt).args(["/probe", "say", &words]));
    let (terminal, slave) = Terminal::open(24, 80);
    on(c.run_with(&[]), &slave).run().exits(0);
    assert!(host::wait_until(10, || terminal.text().matches('Q').count() == 120_000), "{}", terminal.text().len());
}

#[test]
fn the_terminal_is_restored_when_run_fails_or_is_told_to_end() {
    let rt = Runtime::new();
    let (terminal, slave) = Terminal::open(24, 80);
    let before = settings(&slave).local_flags;
    let c = rt.container(terminal_with(&rt, &["/no/such/program"]));
    assert_ne!(on(c.run_with(&[]), &slave).run().code(), 0);
    assert_eq!(settings(&slave).local_flags, before);
    let c = rt.container(terminal_with(&rt, &["/probe", "trap", "5"]));
    let running = on(c.run_with(&[]), &slave).spawn();
    terminal.wait_for("ready");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid()), nix::sys::signal::SIGTERM).unwrap();
    running.wait().exits(5);
    assert_eq!(settings(&slave).local_flags, before);
    rt.assert_nothing_left();
}

fn terminal_with(rt: &Runtime, args: &[&str]) -> Bundle {
    terminal(rt).args(args)
}

#[test]
fn exec_on_a_terminal() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(["/probe", "sleep"]));
    let (terminal, slave) = Terminal::open(30, 70);
    let before = settings(&slave).local_flags;
    let running = on(c.exec(&["--tty"], &["/probe", "size"]), &slave).spawn();
    terminal.wait_for("size [30,70]");
    assert!(is_raw(&settings(&slave)));
    terminal.resize(31, 71);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid()), nix::sys::signal::SIGWINCH).unwrap();
    terminal.wait_for("size [31,71]");
    terminal.write("\u{3}");
    running.wait().exits(2);
    assert_eq!(settings(&slave).local_flags, before);
}

#[test]
fn exec_detached_on_a_console_socket() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(["/probe", "sleep"]));
    let socket = ConsoleSocket::listen(&rt.dir().join("console"));
    let flags = ["--tty", "--detach", "--console-socket", socket.path.to_str().unwrap()];
    c.exec(&flags, &["/probe", "size"]).ok();
    let (_, terminal) = socket.receive();
    terminal.wait_for("size ");
    terminal.write("\u{3}");
}

#[test]
fn exec_process_file_with_a_console_size() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(["/probe", "sleep"]));
    let socket = ConsoleSocket::listen(&rt.dir().join("console"));
    let process = json!({"args": ["/probe", "size"], "cwd": "/", "terminal": true, "user": {"uid": 0, "gid": 0}, "consoleSize": {"height": 11, "width": 22}});
    let file = rt.dir().join("process.json");
    std::fs::write(&file, process.to_string()).unwrap();
    c.call(["exec", "-d", "-p", file.to_str().unwrap(), "--console-socket", socket.path.to_str().unwrap()]).ok();
    let (_, terminal) = socket.receive();
    if !rt.differs("console size of exec") {
        terminal.wait_for("size [11,22]");
    }
    terminal.wait_for("size ");
    terminal.write("\u{3}");
}
