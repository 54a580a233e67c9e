//! process: user, environment, capabilities, limits, what is executed and how its absence is told.

use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use tests::bundle::ALL_CAPABILITIES;
use tests::{Runtime, host, require};

/// Bits of the named capabilities, as /proc/self/status prints them.
fn bits(names: &[&str]) -> String {
    let mut mask = 0u64;
    for name in names {
        mask |= 1 << ALL_CAPABILITIES.iter().position(|c| c == name).unwrap();
    }
    format!("{mask:016x}")
}

#[test]
fn ids_groups_and_umask() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: more than one id");
    let user = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 10, 4000000], "umask": 0o27});
    let report = rt.report(rt.bundle().set("/process/user", user));
    assert_eq!(report["status"]["Uid"], "1000\t1000\t1000\t1000");
    assert_eq!(report["status"]["Gid"], "1001\t1001\t1001\t1001");
    assert_eq!(report["status"]["Groups"], "5 10 4000000");
    assert_eq!(report["umask"], "0027");
}

#[test]
fn groups_of_the_caller_are_dropped_and_umask_is_022() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle());
    assert_eq!(report["umask"], "0022");
    if !rt.is_rootless() {
        assert_eq!(report["status"]["Groups"], if rt.differs("gid among the groups") { "0" } else { "" });
    }
}

#[test]
fn environment_is_the_configuration_s_alone() {
    let rt = Runtime::new();
    let env = json!(["PATH=/", "A=1", "B=x=y z", "EMPTY=", "HOME=/here"]);
    let c = rt.container(rt.bundle().set("/process/env", env.clone()));
    let report = c.run_with(&[]).env("LEAK", "yes").ok().json();
    assert_eq!(report["env_list"], env);
}

#[test]
fn home_comes_from_passwd_when_absent() {
    let rt = Runtime::new();
    let passwd = "root:x:0:0:root:/the/home:/bin/sh\nother:x:1000:1000::/home/other:/bin/sh\n";
    let report = rt.report(rt.bundle().file("/etc/passwd", passwd));
    assert_eq!(report["env"]["HOME"], "/the/home");
    let report = rt.report(rt.bundle());
    let expected = if rt.differs("HOME of root without passwd") { json!("/root") } else { json!("/") };
    assert_eq!(report["env"]["HOME"], expected);
    require!(!rt.is_rootless(), "root: more than one id");
    let report = rt.report(rt.bundle().file("/etc/passwd", passwd).set("/process/user", json!({"uid": 1000, "gid": 1000})));
    assert_eq!(report["env"]["HOME"], "/home/other");
}

#[test]
fn the_last_of_a_repeated_variable_wins() {
    let rt = Runtime::new();
    let env = json!(["PATH=/", "A=first", "HOME=/", "A=last"]);
    let report = rt.report(rt.bundle().set("/process/env", env));
    let list = report["env_list"].as_array().unwrap();
    let values: Vec<&Value> = list.iter().filter(|v| v.as_str().unwrap().starts_with("A=")).collect();
    assert!(rt.differs("repeated variables") || values == ["A=last"], "{list:?}");
}

#[test]
fn cwd_is_entered_and_made() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle().folder("/work/here").set("/process/cwd", json!("/work/here")));
    assert_eq!(report["cwd"], "/work/here");
    require!(!rt.differs("cwd made"), "this peer wants the folder to be there");
    let report = rt.report(rt.bundle().writable().set("/process/cwd", json!("/not/yet")));
    assert_eq!(report["cwd"], "/not/yet");
}

#[test]
fn cwd_of_the_container_s_user() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: more than one id");
    // Only that user may enter it (without CAP_DAC_OVERRIDE root may not).
    let bundle = rt.bundle().folder("/home");
    std::os::unix::fs::chown(bundle.rootfs().join("home"), Some(1000), Some(1000)).unwrap();
    std::fs::set_permissions(bundle.rootfs().join("home"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let bundle = bundle.set("/process/user", json!({"uid": 1000, "gid": 1000})).set("/process/cwd", json!("/home"));
    assert_eq!(rt.report(bundle)["cwd"], "/home");
}

#[test]
fn capabilities_are_set_each_as_asked() {
    let rt = Runtime::new();
    let caps = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SETUID"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "inheritable": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN", "CAP_NET_RAW"],
        "ambient": ["CAP_CHOWN"],
    });
    // Of root, execve makes permitted and effective the bounding set; so ask as another user.
    require!(!rt.is_rootless(), "root: more than one id");
    let bundle = rt.bundle().set("/process/capabilities", caps).set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let report = rt.report(bundle);
    assert_eq!(report["status"]["CapBnd"], bits(&["CHOWN", "KILL", "NET_RAW", "SETUID"]));
    assert_eq!(report["status"]["CapInh"], bits(&["CHOWN", "KILL"]));
    assert_eq!(report["status"]["CapAmb"], bits(&["CHOWN"]));
    assert_eq!(report["status"]["CapPrm"], bits(&["CHOWN"]));
    assert_eq!(report["status"]["CapEff"], bits(&["CHOWN"]));
}

#[test]
fn no_capabilities_field_means_none_for_a_user_and_root_gets_the_bounding_set() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle().set("/process/capabilities", json!({})));
    for set in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(report["status"][set], bits(&[]), "{set}");
    }
    let some = json!({"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL"]});
    let report = rt.report(rt.bundle().set("/process/capabilities", some));
    assert_eq!(report["status"]["CapEff"], bits(&["KILL"]));
    assert_eq!(report["status"]["CapInh"], bits(&[]));
}

#[test]
fn unknown_and_unavailable_capabilities_are_warned_about_and_left_out() {
    let rt = Runtime::new();
    require!(!rt.differs("unknown capability"), "this peer refuses");
    let caps = json!(["CAP_KILL", "CAP_NEVER_HEARD_OF"]);
    let caps = json!({"bounding": caps, "permitted": caps, "effective": caps});
    let done = rt.container(rt.bundle().set("/process/capabilities", caps)).run().ok();
    assert_eq!(done.json()["status"]["CapEff"], bits(&["KILL"]));
    assert!(done.stderr.contains("CAP_NEVER_HEARD_OF"), "{done}");
}

#[test]
fn capabilities_that_the_caller_lacks_are_left_out_with_a_warning() {
    let rt = Runtime::new();
    require!(!rt.differs("capability the caller lacks"), "this peer refuses");
    require!(!rt.is_rootless() && host::capability_bounding_set() & (1 << 24) == 0, "a machine without CAP_SYS_RESOURCE");
    let caps = json!(["CAP_KILL", "CAP_SYS_RESOURCE"]);
    let caps = json!({"bounding": caps, "permitted": caps, "effective": caps});
    let done = rt.container(rt.bundle().set("/process/capabilities", caps)).run().ok();
    assert_eq!(done.json()["status"]["CapEff"], bits(&["KILL"]));
    assert!(done.stderr.contains("CAP_SYS_RESOURCE"), "{done}");
}

#[test]
fn rlimits() {
    let rt = Runtime::new();
    let limits = json!([
        {"type": "RLIMIT_NOFILE", "hard": 1000, "soft": 500},
        {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
        {"type": "RLIMIT_NPROC", "hard": 4000, "soft": 300},
        {"type": "RLIMIT_STACK", "hard": 67108864, "soft": 1048576},
    ]);
    let report = rt.report(rt.bundle().set("/process/rlimits", limits));
    assert_eq!(report["limits"]["Max open files"], json!(["500", "1000"]));
    assert_eq!(report["limits"]["Max core file size"], json!(["0", "0"]));
    assert_eq!(report["limits"]["Max processes"], json!(["300", "4000"]));
    assert_eq!(report["limits"]["Max stack size"], json!(["1048576", "67108864"]));
}

#[test]
fn oom_score_adj() {
    let rt = Runtime::new();
    assert_eq!(rt.report(rt.bundle().set("/process/oomScoreAdj", json!(321)))["oom_score_adj"], "321");
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(rt.report(rt.bundle())["oom_score_adj"], own.trim());
}

#[test]
fn no_new_privileges() {
    let rt = Runtime::new();
    assert_eq!(rt.report(rt.bundle())["status"]["NoNewPrivs"], "1");
    assert_eq!(rt.report(rt.bundle().set("/process/noNewPrivileges", json!(false)))["status"]["NoNewPrivs"], "0");
}

#[test]
fn process_one_leads_its_session() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle());
    // /proc/self/stat: pid (comm) state ppid pgrp session
    let stat = report["session"].as_str().unwrap().rsplit(')').next().unwrap().to_string();
    let fields: Vec<&str> = stat.split_whitespace().collect();
    assert_eq!(fields[2..4], ["1", "1"], "{stat}");
}

#[test]
fn only_the_standard_descriptors_are_open() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle());
    let fds: Vec<&String> = report["fds"].as_object().unwrap().keys().collect();
    assert_eq!(fds, ["0", "1", "2"], "{}", report["fds"]);
}

#[test]
fn preserved_descriptors_arrive() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle());
    let run = "exec \"$@\" 3</dev/null 4</dev/zero";
    let program = tests::runtime::program().0.display().to_string();
    let root = rt.root().display().to_string();
    let dir = c.bundle.dir.display().to_string();
    let done = rt.shell(run, &[&program, "--root", &root, "run", "--preserve-fds", "2", "--bundle", &dir, &c.id]).ok();
    assert_eq!(done.json()["fds"]["3"], "/dev/null");
    assert_eq!(done.json()["fds"]["4"], "/dev/zero");
    assert_eq!(done.json()["fds"].as_object().unwrap().len(), 5);
}

#[test]
fn arguments_arrive_unchanged() {
    let rt = Runtime::new();
    let args = ["/probe", "args", "", " a b ", "--help", "-x", "ü\n\"\\"];
    assert_eq!(rt.report(rt.bundle().args(args)), json!(args));
}

#[test]
fn the_program_is_looked_up_in_the_container_s_path() {
    let rt = Runtime::new();
    let bundle = rt.bundle().folder("/first").folder("/second/probe");
    std::fs::hard_link(bundle.rootfs().join("probe"), bundle.rootfs().join("first/tool")).unwrap();
    let report = rt.report(bundle.args(["tool", "report"]).set("/process/env", json!(["PATH=/second:/first"])));
    assert_eq!((&report["args"][0], &report["exe"]), (&json!("tool"), &json!("/first/tool")));
}

#[test]
fn a_relative_program_starts_from_cwd() {
    let rt = Runtime::new();
    let bundle = rt.bundle().folder("/work");
    std::fs::hard_link(bundle.rootfs().join("probe"), bundle.rootfs().join("work/tool")).unwrap();
    let report = rt.report(bundle.args(["./tool", "report"]).set("/process/cwd", json!("/work")));
    assert_eq!(report["exe"], "/work/tool");
}

#[test]
fn a_program_that_cannot_run_is_told_in_docker_s_words() {
    let rt = Runtime::new();
    let differs = rt.differs("program texts");
    let bundle = || rt.bundle().file("/plain", "#!/probe\n").folder("/folder").file("/file", "");
    let cases: &[(&str, &[&str])] = &[
        ("absent", &["exec: \"absent\"", "executable file not found in $PATH"]),
        ("/absent", &["exec: \"/absent\"", "no such file or directory"]),
        ("/plain", &["exec: \"/plain\"", "permission denied"]),
        ("/folder", &["exec: \"/folder\"", "is a directory"]),
        ("/file/x", &["exec: \"/file/x\"", "not a directory"]),
    ];
    for (program, texts) in cases {
        let c = rt.container(bundle().args([program]));
        let done = c.run();
        if differs {
            assert_eq!(done.code(), 1, "{done}");
        } else {
            done.fails(1, texts);
        }
        rt.assert_nothing_left();
    }
}

#[test]
fn the_right_to_execute_may_come_from_a_capability() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: another user's file");
    let bundle = |caps: Value| {
        let bundle = rt.bundle().program("/tool", "#!/probe exit\n").set("/process/user", json!({"uid": 1000, "gid": 100})).args(["/tool"]);
        fs::set_permissions(bundle.rootfs().join("tool"), fs::Permissions::from_mode(0o700)).unwrap();
        bundle.set("/process/capabilities", caps)
    };
    let none: [&str; 0] = [];
    rt.container(bundle(json!({"bounding": none}))).create().fails(1, &["exec: \"/tool\"", "permission denied"]);
    let all = ["CAP_DAC_OVERRIDE"];
    let caps = json!({"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all});
    rt.container(bundle(caps)).run().exits(0);
}

#[test]
fn what_only_execve_finds_out_is_start_s_error() {
    let rt = Runtime::new();
    let bundle = || rt.bundle().program("/bad-format", "\u{1}\u{2}\u{3}").program("/no-interpreter", "#!/no/such\n");
    for (program, text) in [("/no-interpreter", "no such file or directory"), ("/bad-format", "exec format error")] {
        let c = rt.container(bundle().args([program]));
        c.create().ok();
        let start = c.call(["start"]).run();
        if !rt.differs("execve failure") {
            start.fails(1, &[&format!("exec {program}: {text}")]);
        }
        c.wait_status("stopped");
        c.delete().ok();
        // 'run' stands in the program's place: one line, and nothing around it.
        let run = c.run();
        assert_ne!(run.code(), 0);
        assert_eq!(run.stderr.trim_end(), format!("exec {program}: {text}"));
        rt.assert_nothing_left();
    }
}

#[test]
fn a_program_that_cannot_run_fails_create_or_start() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(["/absent"]));
    c.create().fails(1, &["no such file or directory"]);
    rt.assert_nothing_left();
}

#[test]
fn scripts_run() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle().program("/script", "#!/probe report\n").args(["/script"]));
    assert_eq!(report["args"], json!(["/probe", "report", "/script"]));
}

#[test]
fn personality() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle().set("/linux/personality", json!({"domain": "LINUX32"})));
    assert_eq!(report["personality"], "00000008");
    assert_eq!(rt.report(rt.bundle())["personality"], "00000000");
}

#[test]
fn hostname_and_domainname() {
    let rt = Runtime::new();
    let report = rt.report(rt.bundle().set("/hostname", json!("a-host")).set("/domainname", json!("a.domain")));
    assert_eq!(report["hostname"], "a-host");
    assert_eq!(report["domainname"], "a.domain");
}

#[test]
fn a_session_keyring_of_its_own_unless_told_otherwise() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle());
    let new = c.run().ok().json();
    assert!(new["keyring"].as_str().unwrap().contains(&format!("_ses.{}", c.id)), "{}", new["keyring"]);
    let old = c.run_with(&["--no-new-keyring"]).ok().json();
    assert!(!old["keyring"].as_str().unwrap().contains(&c.id), "{}", old["keyring"]);
}

#[test]
fn seccomp_is_off_without_a_profile() {
    let rt = Runtime::new();
    assert_eq!(
        rt.report(rt.bundle())["status"]["Seccomp"],
        std::fs::read_to_string("/proc/self/status").unwrap().lines().find_map(|l| l.strip_prefix("Seccomp:")).unwrap().trim()
    );
}

#[test]
fn scheduler_and_io_priority() {
    let rt = Runtime::new();
    let bundle = rt.bundle().set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 5}));
    let report = rt.report(bundle.set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 6})));
    // SCHED_BATCH; class and priority as ioprio_set(2) joins them.
    assert_eq!((&report["policy"], &report["nice"], &report["ioprio"]), (&json!(3), &json!(5), &json!(2 << 13 | 6)));
    let report = rt.report(rt.bundle().set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE"})));
    assert_eq!(report["ioprio"], json!(3 << 13));
}
