//! exec: every flag, `--process`, detached, and how failures end.

use serde_json::{Value, json};
use std::fs;
use tests::{Container, Runtime, host, require};

const SLEEP: [&str; 2] = ["/probe", "sleep"];
const REPORT: [&str; 2] = ["/probe", "report"];

fn report(c: &Container, flags: &[&str]) -> Value {
    c.exec(flags, &REPORT).ok().json()
}

#[test]
fn exec_gives_back_the_exit_status() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    for code in [0, 1, 42, 255] {
        c.exec(&[], &["/probe", "exit", &code.to_string()]).run().exits(code);
    }
    c.exec(&[], &["/probe", "die", "15"]).run().exits(143);
    c.exec(&[], &["/probe", "die", "9"]).run().exits(137);
}

#[test]
fn exec_runs_beside_init() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let seen = report(&c, &[]);
    let pid = c.pid().to_string();
    for kernel in ["pid", "net", "ipc", "uts", "mnt", "cgroup", "user"] {
        assert_eq!(seen["ns"][kernel], host::namespace(&pid, kernel), "{kernel}");
    }
    assert_ne!(seen["pid"], 1);
    assert_eq!(seen["hostname"], "probe");
    assert_eq!(seen["cwd"], "/");
    assert_eq!(seen["status"]["NoNewPrivs"], "1");
    let fds: Vec<&String> = seen["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2"], "{}", seen["fds"]);
}

#[test]
fn exec_joins_the_cgroup() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup of its own");
    let c = rt.start(rt.bundle().args(SLEEP).without_namespace("cgroup"));
    let init = fs::read_to_string(format!("/proc/{}/cgroup", c.pid())).unwrap();
    let mut seen: Vec<String> = report(&c, &[])["cgroup"].as_array().unwrap().iter().map(|l| l.as_str().unwrap().into()).collect();
    let mut init: Vec<String> = init.lines().map(String::from).collect();
    seen.sort();
    init.sort();
    assert_eq!(seen, init);
}

#[test]
fn exec_has_the_container_s_environment_and_limits_and_capabilities() {
    let rt = Runtime::new();
    let bundle = rt.bundle().args(SLEEP).set("/process/env", json!(["PATH=/x", "A=1", "B=2", "HOME=/h"]));
    let c = rt.start(bundle.set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}])));
    let seen = report(&c, &["-e", "B=3", "-e", "C=4"]);
    assert_eq!(seen["env"]["PATH"], "/x");
    assert_eq!((&seen["env"]["A"], &seen["env"]["B"], &seen["env"]["C"]), (&json!("1"), &json!("3"), &json!("4")));
    assert_eq!(seen["limits"]["Max open files"], json!(["77", "88"]));
    let own = c.exec(&[], &["/probe", "try", "read /proc/1/status"]).ok().json();
    let init = own["read /proc/1/status"].as_str().unwrap().to_string();
    for set in ["CapBnd", "CapEff", "CapPrm"] {
        assert!(init.contains(&format!("{set}:\t{}", seen["status"][set].as_str().unwrap())), "{set}");
    }
}

#[test]
fn cwd_flag() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().folder("/some/where").args(SLEEP));
    assert_eq!(report(&c, &["--cwd", "/some/where"])["cwd"], "/some/where");
    c.exec(&["--cwd", "relative"], &REPORT).fails(255, &["cwd"]);
}

#[test]
fn user_and_additional_groups() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: more than one id");
    let c = rt.start(rt.bundle().args(SLEEP));
    let seen = report(&c, &["--user", "1000:1001"]);
    assert_eq!((&seen["status"]["Uid"], &seen["status"]["Gid"]), (&json!("1000\t1000\t1000\t1000"), &json!("1001\t1001\t1001\t1001")));
    assert_eq!(report(&c, &["-u", "5"])["status"]["Uid"], "5\t5\t5\t5");
    if !rt.differs("exec -g") {
        assert_eq!(report(&c, &["-u", "5", "-g", "6", "-g", "7"])["status"]["Groups"], "6 7");
    }
    c.exec(&["--user", "nobody"], &REPORT).fails(255, &["nobody"]);
}

#[test]
fn home_follows_the_user() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: more than one id");
    let passwd = "root:x:0:0::/root-home:/bin/sh\nsome:x:1000:1000::/some-home:/bin/sh\n";
    let c = rt.start(rt.bundle().args(SLEEP).file("/etc/passwd", passwd));
    assert_eq!(report(&c, &[])["env"]["HOME"], "/root-home");
    assert_eq!(report(&c, &["-u", "1000"])["env"]["HOME"], "/some-home");
}

#[test]
fn cap_adds_but_never_inheritable() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP).set("/process/capabilities", json!({"bounding": ["CAP_KILL", "CAP_NET_RAW"]})));
    let seen = report(&c, &["--cap", "CAP_NET_RAW"]);
    let mask = format!("{:016x}", 1u64 << 13);
    assert_eq!(seen["status"]["CapEff"], mask);
    assert_eq!(seen["status"]["CapInh"], format!("{:016x}", 0));
}

#[test]
fn no_new_privs_flag() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP).set("/process/noNewPrivileges", json!(false)));
    assert_eq!(report(&c, &[])["status"]["NoNewPrivs"], "0");
    assert_eq!(report(&c, &["--no-new-privs"])["status"]["NoNewPrivs"], "1");
}

#[test]
fn preserve_fds_flag() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let (program, root) = (tests::runtime::program().0.display().to_string(), rt.root().display().to_string());
    let call = [&program, "--root", &root, "exec", "--preserve-fds", "1", &c.id, "/probe", "report"];
    let seen = rt.shell("exec \"$@\" 3</dev/zero 4</dev/zero", &call).ok().json();
    let fds: Vec<&String> = seen["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2", "3"], "{}", seen["fds"]);
}

#[test]
fn process_file() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP).folder("/in"));
    let process = json!({
        "args": REPORT, "cwd": "/in", "env": ["ONLY=this", "HOME=/"], "user": {"uid": 0, "gid": 0, "umask": 0o77},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}], "oomScoreAdj": 900,
        "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}, "noNewPrivileges": false,
    });
    let path = rt.dir().join("process.json");
    fs::write(&path, process.to_string()).unwrap();
    let seen = c.call(["exec", "--process", path.to_str().unwrap()]).ok().json();
    assert_eq!(seen["env_list"], json!(["ONLY=this", "HOME=/"]));
    assert_eq!(seen["cwd"], "/in");
    if !rt.differs("umask and oom score of exec") {
        assert_eq!((&seen["umask"], &seen["oom_score_adj"]), (&json!("0077"), &json!("900")));
    }
    assert_eq!(seen["limits"]["Max open files"], json!(["50", "60"]));
    assert_eq!(seen["status"]["CapEff"], format!("{:016x}", 1 << 5));
    assert_eq!(seen["status"]["NoNewPrivs"], "0");
}

/// As a shell's `<(...)` names one.
#[test]
fn process_file_by_a_descriptor() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let path = rt.dir().join("process.json");
    fs::write(&path, json!({"args": REPORT, "cwd": "/", "env": ["ONLY=this"], "user": {"uid": 0, "gid": 0}}).to_string()).unwrap();
    let (program, root) = (tests::runtime::program().0.display().to_string(), rt.root().display().to_string());
    let call = [path.to_str().unwrap(), &program, "--root", &root, "exec", "--process", "/dev/fd/7", &c.id];
    let seen = rt.shell("exec 7<\"$1\"; shift; exec \"$@\"", &call).ok().json();
    assert_eq!(seen["env"]["ONLY"], "this");
    assert_eq!(seen["fds"].as_object().unwrap().keys().collect::<Vec<_>>(), ["0", "1", "2"]);
}

#[test]
fn a_process_file_without_capabilities_has_the_container_s() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let path = rt.dir().join("process.json");
    fs::write(&path, json!({"args": REPORT, "cwd": "/", "user": {"uid": 0, "gid": 0}}).to_string()).unwrap();
    let seen = c.call(["exec", "-p", path.to_str().unwrap()]).ok().json();
    assert_eq!(seen["status"]["CapEff"], report(&c, &[])["status"]["CapEff"]);
}

#[test]
fn detached_with_a_pid_file() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let file = rt.dir().join("exec.pid");
    let done = c.exec(&["--detach", "--pid-file", file.to_str().unwrap()], &["/probe", "trap", "0"]).ok();
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    assert!(host::wait_until(20, || done.output_now().contains("ready")));
    assert_eq!(host::namespace(&pid.to_string(), "mnt"), host::namespace(&c.pid().to_string(), "mnt"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM).unwrap();
    assert!(host::wait_until(20, || done.output_now().contains("15")));
}

#[test]
fn input_output_and_signals_pass() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    assert_eq!(c.exec(&[], &["/probe", "echo"]).input("a\nb\n").ok().stdout, "a\nb\n");
    let running = c.exec(&[], &["/probe", "trap", "3"]).spawn();
    running.wait_for("ready");
    for signal in [nix::sys::signal::SIGUSR2, nix::sys::signal::SIGTERM] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid()), signal).unwrap();
        running.wait_for(&(signal as i32).to_string());
    }
    running.wait().exits(3);
}

#[test]
fn a_program_that_cannot_run_is_told_in_docker_s_words() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP).file("/plain", "x").folder("/folder").program("/script", "#!/no/such\n"));
    let cases: &[(&str, &[&str])] = &[
        ("absent", &["exec failed", "exec: \"absent\"", "executable file not found in $PATH"]),
        ("/absent", &["exec failed", "/absent", "no such file or directory"]),
        ("/plain", &["exec failed", "/plain", "permission denied"]),
        ("/folder", &["exec failed", "/folder", "is a directory"]),
    ];
    for (program, texts) in cases {
        let done = c.exec(&[], &[program]).run();
        if rt.differs("exec texts") {
            assert_ne!(done.code(), 0, "{done}");
        } else {
            done.fails(255, texts);
        }
    }
    let done = c.exec(&[], &["/script"]).run();
    if !rt.differs("execve failure") {
        done.fails(255, &["/script", "no such file or directory"]);
    }
    assert_eq!(c.status(), "running");
}

#[test]
fn detached_exec_of_a_program_that_cannot_run_fails() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let file = rt.dir().join("pid");
    let done = c.exec(&["-d", "--pid-file", file.to_str().unwrap()], &["/absent"]).run();
    assert_ne!(done.code(), 0, "{done}");
}

#[test]
fn set_up_failures_exit_255() {
    let rt = Runtime::new();
    let code = if rt.differs("exec set-up code") { 1 } else { 255 };
    rt.call(["exec", "absent", "/probe"]).fails(code, &["does not exist"]);
    let c = rt.container(rt.bundle().args(SLEEP));
    c.create().ok();
    c.exec(&["--process", "/no/such/file"], &[]).fails(code, &["/no/such/file"]);
    let path = rt.dir().join("process.json");
    for (text, word) in [("{", ""), (r#"{"args":[],"cwd":"/"}"#, "args"), (r#"{"args":["/probe"],"cwd":"relative"}"#, "cwd")] {
        fs::write(&path, text).unwrap();
        c.exec(&["--process", path.to_str().unwrap()], &[]).fails(code, &[word]);
    }
    c.kill("KILL").ok();
    c.wait_status("stopped");
    let text = if rt.differs("exec texts") { "" } else { "cannot exec in a stopped container" };
    c.exec(&[], &REPORT).fails(code, &[text]);
}

#[test]
fn exec_in_a_created_container() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(SLEEP));
    c.create().ok();
    assert_eq!(report(&c, &[])["hostname"], "probe");
    assert_eq!(c.status(), "created");
}

#[test]
fn ignore_paused() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup to freeze");
    require!(!rt.differs("exec --ignore-paused"), "this peer has no --ignore-paused");
    let c = rt.start(rt.bundle().args(SLEEP));
    c.call(["pause"]).ok();
    c.exec(&[], &REPORT).fails(255, &["cannot exec in a paused container (use --ignore-paused to override)"]);
    let running = c.exec(&["--ignore-paused"], &["/probe", "exit", "8"]).spawn();
    std::thread::sleep(std::time::Duration::from_millis(200));
    c.call(["resume"]).ok();
    running.wait().exits(8);
}

#[test]
fn exec_into_a_sub_cgroup() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup of its own");
    require!(host::cgroup_version() == 1, "cgroup v1 (v2 forbids processes beside subtrees)");
    let c = rt.start(rt.bundle().args(SLEEP).without_namespace("cgroup"));
    fs::create_dir(format!("/sys/fs/cgroup/pids/{}/below", c.id)).unwrap();
    let seen = report(&c, &["--cgroup", "pids:below"]);
    let lines = seen["cgroup"].as_array().unwrap();
    assert!(lines.iter().any(|l| l.as_str().unwrap().ends_with(&format!("pids:/{}/below", c.id))), "{lines:?}");
    c.exec(&["--cgroup", "../../.."], &REPORT).fails(255, &["cgroup"]);
    c.exec(&["--cgroup", "pids:no-such"], &REPORT).fails(255, &["no-such"]);
}

#[test]
fn exec_in_a_user_namespace() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: mappings of other ids");
    let c = rt.start(rt.bundle().args(SLEEP).user_namespace(100000));
    let seen = report(&c, &["-u", "7:8"]);
    assert_eq!(seen["uid_map"], json!(["0 100000 65536"]));
    assert_eq!(seen["status"]["Uid"], "7\t7\t7\t7");
}

#[test]
fn many_at_once() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let calls: Vec<_> = (0..10).map(|n| c.exec(&[], &["/probe", "exit", &n.to_string()]).spawn()).collect();
    for (n, call) in calls.into_iter().enumerate() {
        call.wait().exits(n as i32);
    }
}

#[test]
fn flags_after_the_id_are_the_program_s() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let seen = c.exec(&[], &["/probe", "args", "--tty", "-u", "5"]).ok().json();
    assert_eq!(seen, json!(["/probe", "args", "--tty", "-u", "5"]));
}

#[test]
fn cpu_affinity() {
    let rt = Runtime::new();
    let all = host::cpus();
    require!(all.len() > 1, "two processors");
    let (first, last) = (all[0], all[all.len() - 1]);
    let affinity = json!({"initial": first.to_string(), "final": last.to_string()});
    let c = rt.start(rt.bundle().set("/process/execCPUAffinity", affinity).args(SLEEP));
    assert_eq!(c.tries(&["cpus"])["cpus"], format!("{:x}", 1u64 << last));
    let init = fs::read_to_string(format!("/proc/{}/status", c.pid())).unwrap();
    let list = init.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_string();
    assert_ne!(list, last.to_string(), "it is for exec alone");
}

/// exec visits a container that was made in a chroot, and comes back.
#[test]
fn a_caller_in_a_chroot_stays_there() {
    let rt = Runtime::new();
    require!(rt.can_jail(), "root and a static runtime: chroot");
    let script = r#"
        in_jail run -d --bundle /bundle "$id" </dev/null >/dev/null 2>&1
        in_jail exec -d --pid-file /exec.pid "$id" /probe sleep </dev/null >/dev/null 2>&1
        test -s "$jail/exec.pid" && test ! -e /exec.pid
        status=0; in_jail exec "$id" /probe exit 3 || status=$?
        test $status = 3"#;
    for mounted in [true, false] {
        let c = rt.container(rt.bundle().args(SLEEP));
        rt.in_jail(mounted, &c, script).ok();
        rt.assert_nothing_left();
    }
}
