//! The runtime is killed at every step: what is left, `delete --force` removes.

use std::process::Command;
use tests::runtime::{Kind, program};
use tests::{Container, Done, Runtime, host, require};

fn tracer() -> bool {
    host::find("strace").is_some() && Command::new("strace").args(["-o", "/dev/null", "true"]).output().is_ok_and(|o| o.status.success())
}

/// `create` under strace, with what it injects.
fn create_under(rt: &Runtime, c: &Container, strace: &[&str]) -> Done {
    let (program, root, dir) = (program().0.display().to_string(), rt.root().display().to_string(), c.bundle.dir.display().to_string());
    let mut args = vec!["strace", "-o", "/dev/null"];
    args.extend(strace);
    let pid_file = c.bundle.dir.join("pid");
    args.extend([program.as_str(), "--root", &root, "create", "--pid-file", pid_file.to_str().unwrap(), "--bundle", &dir, &c.id]);
    let mut running = rt.shell("exec \"$@\"", &args).spawn();
    // With -f strace stays with a container that was made after all. The pid file comes last.
    host::wait_until(60, || running.has_ended() || (strace.contains(&"-f") && pid_file.exists()));
    if !running.has_ended() {
        c.call(["delete", "--force"]).ok();
    }
    running.wait()
}

/// Nothing is left after `delete --force`, and the id is free again.
#[track_caller]
fn force_removes_all(rt: &Runtime, c: &Container, when: &str) {
    let done = c.call(["delete", "--force"]).run();
    assert!(done.code() == 0, "killed at {when}: {done}");
    let gone = host::wait_until(2, || rt.leftovers().is_empty());
    assert!(gone, "killed at {when}, left behind: {:#?}", rt.leftovers());
}

/// How many system calls the runtime's own process makes for one create.
fn calls_of_create(rt: &Runtime) -> usize {
    let c = rt.container(rt.bundle().args(["/probe", "sleep"]));
    let (program, root, dir) = (program().0.display().to_string(), rt.root().display().to_string(), c.bundle.dir.display().to_string());
    let trace = rt.dir().join("trace").display().to_string();
    rt.shell("exec \"$@\"", &["strace", "-o", &trace, &program, "--root", &root, "create", "--bundle", &dir, &c.id]).ok();
    c.call(["delete", "--force"]).ok();
    std::fs::read_to_string(trace).unwrap().lines().filter(|l| l.contains('(')).count()
}

/// Kills create at its calls `first`, `first + step`, … .
fn sweep(first: usize, step: usize) {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "rrun: a peer's process may be more than one thread");
    require!(tracer(), "strace, and leave to trace");
    let count = calls_of_create(&rt);
    assert!(count > 30, "{count} system calls");
    // System calls are 20 to 40 times dearer in user mode Linux.
    let step = if host::is_user_mode() { step * 8 } else { step };
    for n in (first..=count + 5).step_by(step) {
        let c = rt.container(rt.bundle().args(["/probe", "sleep"]));
        create_under(&rt, &c, &["-e", &format!("inject=all:signal=KILL:when={n}")]);
        force_removes_all(&rt, &c, &format!("call {n} of {count}"));
    }
}

// Four sweeps, so that they run beside each other.
#[test]
fn create_killed_at_every_call_1() {
    sweep(1, 4);
}

#[test]
fn create_killed_at_every_call_2() {
    sweep(2, 4);
}

#[test]
fn create_killed_at_every_call_3() {
    sweep(3, 4);
}

#[test]
fn create_killed_at_every_call_4() {
    sweep(4, 4);
}

/// Kills `start`, `exec` and `delete` at every third of their calls; afterwards the container can be
/// removed whole.
#[test]
fn other_commands_killed_on_the_way() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "rrun: a peer's process may be more than one thread");
    require!(tracer(), "strace, and leave to trace");
    let (program, root) = (program().0.display().to_string(), rt.root().display().to_string());
    let step = if host::is_user_mode() { 25 } else { 3 };
    for (command, args) in [("start", &[][..]), ("exec", &["/probe", "sleep"]), ("delete", &[])] {
        for n in (1..).step_by(step) {
            let c = rt.container(rt.bundle().args(["/probe", "sleep"]));
            c.create().ok();
            match command {
                "exec" => drop(c.call(["start"]).ok()),
                "delete" => {
                    c.call(["start"]).ok();
                    c.kill("KILL").ok();
                    c.wait_status("stopped");
                }
                _ => (),
            }
            let inject = format!("inject=all:signal=KILL:when={n}");
            let mut line = vec!["strace", "-o", "/dev/null", "-e", &inject, &program, "--root", &root, command];
            if command == "exec" {
                line.push("--detach");
            }
            line.push(&c.id);
            line.extend(args);
            let done = rt.shell("exec \"$@\"", &line).run();
            force_removes_all(&rt, &c, &format!("call {n} of {command}"));
            if done.code() == 0 {
                break;
            }
        }
    }
}

/// Calls that the child alone makes on its way to be the container.
const CHILD: [&str; 9] = ["sethostname", "pivot_root", "move_mount", "fsmount", "mount_setattr", "mkdirat", "fchdir", "capset", "chdir"];

#[test]
fn a_child_that_dies_on_the_way_is_told_and_leaves_nothing() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "rrun's own steps");
    require!(tracer(), "strace, and leave to trace");
    for call in CHILD {
        let c = rt.container(rt.bundle().args(["/probe", "sleep"]));
        let done = create_under(&rt, &c, &["-f", "-e", &format!("inject={call}:signal=KILL:when=1")]);
        if [0, 137].contains(&done.code()) {
            // The call is not made on this kernel, or the parent makes it too.
            force_removes_all(&rt, &c, call);
            continue;
        }
        done.fails(1, &["init"]).one_line();
        rt.assert_nothing_left();
    }
}

#[test]
fn a_step_that_fails_is_named_and_leaves_nothing() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "rrun's own steps");
    require!(tracer(), "strace, and leave to trace");
    for call in [
        "clone3",
        "pivot_root",
        "move_mount",
        "fsmount",
        "sethostname",
        "mkdirat",
        "capset",
        "socketpair",
        "mknodat",
        "renameat",
        "fchownat",
    ] {
        for (errno, words) in [("EIO", "i/o error"), ("ENOMEM", "memory")] {
            let c = rt.container(rt.bundle().args(["/probe", "sleep"]));
            let done = create_under(&rt, &c, &["-f", "-e", &format!("inject={call}:error={errno}:when=1")]);
            if done.code() == 0 {
                force_removes_all(&rt, &c, call);
                continue;
            }
            let text = done.stderr.to_lowercase();
            assert!(text.contains(&errno.to_lowercase()) || text.contains(words), "{done}");
            done.exits(1).one_line();
            rt.assert_nothing_left();
        }
    }
}

#[test]
fn a_created_container_survives_the_death_of_everybody_else() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(["/probe", "sleep"]));
    c.create().ok();
    let second = rt.container(rt.bundle().args(["/probe", "sleep"]));
    let mut start = second.run_with(&[]).spawn();
    assert!(host::wait_until(20, || rt.root().join(&second.id).exists() && second.call(["state"]).run().stdout.contains("running")));
    // The foreground run dies: its container goes on, and can be removed.
    start.child.kill().unwrap();
    start.wait();
    assert_eq!(second.status(), "running");
    second.call(["delete", "--force"]).ok();
    assert_eq!(c.status(), "created");
    c.call(["start"]).ok();
    c.end();
}
