//! seccomp: actions, arguments, flags, and that the filter is there when and where it must be.

use libc::{SYS_getcwd, SYS_getpriority, SYS_umask};
use serde_json::{Value, json};
use std::os::unix::net::UnixListener;
use tests::{Bundle, Runtime, require, sys};

fn profile(rt: &Runtime, seccomp: Value) -> Bundle {
    rt.bundle().set("/linux/seccomp", seccomp)
}

/// Everything is allowed but what `rules` say.
fn allow(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})
}

/// The actions that do the calls `umask(0)` to `umask(count - 1)`, and their outcomes in order.
fn umasks(rt: &Runtime, seccomp: Value, count: u32) -> Vec<String> {
    let actions: Vec<String> = (0..count).map(|n| format!("syscall {SYS_umask} {n}")).collect();
    let result = rt.tries(profile(rt, seccomp), &actions.iter().map(String::as_str).collect::<Vec<_>>());
    actions.iter().map(|a| result[a].as_str().unwrap().to_string()).collect()
}

/// Which of the outcomes are refusals.
fn refused(outcomes: &[String]) -> Vec<usize> {
    outcomes.iter().enumerate().filter(|(_, o)| *o == "EPERM").map(|(n, _)| n).collect()
}

#[test]
fn errno_with_and_without_a_number() {
    let rt = Runtime::new();
    let rules = json!([
        {"names": ["umask"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ]);
    let actions = [SYS_umask, SYS_getpriority, SYS_getcwd].map(|n| format!("syscall {n} 0 0"));
    let result = rt.tries(profile(&rt, allow(rules)), &[&actions[0], &actions[1], &actions[2]]);
    assert_eq!(result[&actions[0]], "EPERM");
    assert_eq!(result[&actions[1]], "ENOSPC");
    assert_eq!(result[&actions[2]], "ENOSYS");
}

#[test]
fn the_default_action_and_its_errno() {
    let rt = Runtime::new();
    // What the probe and its start need is too long a list: so allow by an argument nobody misses.
    let rules = json!([{"names": ["umask"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]}]);
    let mut seccomp = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 28, "syscalls": rules});
    let all = all_calls_but(&["umask"]);
    seccomp["syscalls"].as_array_mut().unwrap().push(json!({"names": all, "action": "SCMP_ACT_ALLOW"}));
    let outcomes = umasks(&rt, seccomp.clone(), 6);
    assert_eq!(outcomes[..5], ["ENOSPC"; 5].map(String::from));
    assert_ne!(outcomes[5], "ENOSPC");
    seccomp.as_object_mut().unwrap().remove("defaultErrnoRet");
    assert_eq!(refused(&umasks(&rt, seccomp, 6)), [0, 1, 2, 3, 4]);
}

/// Names of the calls that exist here, by libseccomp, without some.
fn all_calls_but(some: &[&str]) -> Vec<String> {
    let names = (0..600).filter_map(|n| libseccomp::ScmpSyscall::from(n).get_name().ok());
    names.filter(|n| !some.contains(&n.as_str())).collect()
}

#[test]
fn calls_newer_than_the_profile_are_not_implemented() {
    let rt = Runtime::new();
    require!(!rt.differs("ENOSYS for newer calls"), "this peer answers with the default action");
    let seccomp =
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": all_calls_but(&["umask"]), "action": "SCMP_ACT_ALLOW"}]});
    let actions = [format!("syscall {SYS_umask} 0"), "syscall 5000".to_string()];
    let result = rt.tries(profile(&rt, seccomp), &[&actions[0], &actions[1]]);
    assert_eq!(result[&actions[0]], "EPERM");
    assert_eq!(result[&actions[1]], "ENOSYS");
}

#[test]
fn killing_actions() {
    let rt = Runtime::new();
    let call = format!("syscall {SYS_umask} 0");
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"] {
        let seccomp = allow(json!([{"names": ["umask"], "action": action}]));
        // 128 + SIGSYS. Process 1 dies of it like any other.
        rt.container(profile(&rt, seccomp).args(["/probe", "try", &call])).run().exits(159);
    }
}

#[test]
fn log_allows_and_trace_without_a_tracer_is_not_implemented() {
    let rt = Runtime::new();
    let outcomes = umasks(&rt, allow(json!([{"names": ["umask"], "action": "SCMP_ACT_LOG"}])), 1);
    assert_ne!(outcomes[0], "EPERM");
    let outcomes = umasks(&rt, allow(json!([{"names": ["umask"], "action": "SCMP_ACT_TRACE"}])), 1);
    assert_eq!(outcomes[0], "ENOSYS");
}

#[test]
fn every_comparison_of_arguments() {
    let rt = Runtime::new();
    let cases: &[(&str, u64, u64, &[usize])] = &[
        ("SCMP_CMP_EQ", 3, 0, &[3]),
        ("SCMP_CMP_NE", 3, 0, &[0, 1, 2, 4, 5, 6, 7]),
        ("SCMP_CMP_LT", 3, 0, &[0, 1, 2]),
        ("SCMP_CMP_LE", 3, 0, &[0, 1, 2, 3]),
        ("SCMP_CMP_GT", 3, 0, &[4, 5, 6, 7]),
        ("SCMP_CMP_GE", 3, 0, &[3, 4, 5, 6, 7]),
        ("SCMP_CMP_MASKED_EQ", 6, 4, &[4, 5]),
    ];
    for (op, value, second, expected) in cases {
        let arg = json!({"index": 0, "value": value, "valueTwo": second, "op": op});
        let rules = json!([{"names": ["umask"], "action": "SCMP_ACT_ERRNO", "args": [arg]}]);
        assert_eq!(refused(&umasks(&rt, allow(rules), 8)), *expected, "{op}");
    }
}

#[test]
fn conditions_of_one_rule_are_all_needed_and_rules_are_alternatives() {
    let rt = Runtime::new();
    let between = json!([
        {"index": 0, "value": 2, "op": "SCMP_CMP_GE"},
        {"index": 1, "value": 0, "op": "SCMP_CMP_EQ"},
    ]);
    let rules = json!([
        {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "args": between},
        {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
    ]);
    let actions: Vec<String> = [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)].map(|(a, b)| format!("syscall {SYS_umask} {a} {b}")).into();
    let result = rt.tries(profile(&rt, allow(rules)), &actions.iter().map(String::as_str).collect::<Vec<_>>());
    let outcomes: Vec<String> = actions.iter().map(|a| result[a].as_str().unwrap().to_string()).collect();
    assert_eq!(refused(&outcomes), [0, 2, 4]);
}

#[test]
fn sixty_four_bits_are_compared() {
    let rt = Runtime::new();
    let arg = json!({"index": 1, "value": 0x1_0000_0002u64, "op": "SCMP_CMP_EQ"});
    let rules = json!([{"names": ["umask"], "action": "SCMP_ACT_ERRNO", "args": [arg]}]);
    let actions = [format!("syscall {SYS_umask} 0 0x100000002"), format!("syscall {SYS_umask} 0 2")];
    let result = rt.tries(profile(&rt, allow(rules)), &[&actions[0], &actions[1]]);
    assert_eq!(result[&actions[0]], "EPERM");
    assert_ne!(result[&actions[1]], "EPERM");
}

#[test]
fn names_this_kernel_has_not_are_passed_over() {
    let rt = Runtime::new();
    let rules = json!([{"names": ["never_heard_of", "umask"], "action": "SCMP_ACT_ERRNO"}]);
    assert_eq!(umasks(&rt, allow(rules), 1), ["EPERM"]);
}

#[test]
fn one_filter_is_loaded() {
    let rt = Runtime::new();
    let report = rt.report(profile(&rt, allow(json!([{"names": ["umask"], "action": "SCMP_ACT_ERRNO"}]))));
    assert_eq!(report["status"]["Seccomp"], "2");
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let before: u32 = own.lines().find_map(|l| l.strip_prefix("Seccomp_filters:")).map_or(0, |n| n.trim().parse().unwrap());
    assert_eq!(report["status"]["Seccomp_filters"], (before + 1).to_string());
}

#[test]
fn flags_and_architectures_are_accepted() {
    let rt = Runtime::new();
    let mut seccomp = allow(json!([{"names": ["umask"], "action": "SCMP_ACT_ERRNO"}]));
    seccomp["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]);
    seccomp["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]);
    assert_eq!(umasks(&rt, seccomp.clone(), 1), ["EPERM"]);
    seccomp["flags"] = json!([]);
    assert_eq!(umasks(&rt, seccomp, 1), ["EPERM"]);
}

#[test]
fn it_holds_without_no_new_privileges_and_without_capabilities() {
    let rt = Runtime::new();
    for (no_new_privileges, uid) in [(false, 0), (true, 0), (false, 1000), (true, 1000)] {
        if uid != 0 && rt.is_rootless() {
            continue;
        }
        let bundle = profile(&rt, allow(json!([{"names": ["umask"], "action": "SCMP_ACT_ERRNO"}])));
        let bundle = bundle.set("/process/noNewPrivileges", json!(no_new_privileges)).set("/process/capabilities", json!({}));
        let call = format!("syscall {SYS_umask} 0");
        let result = rt.tries(bundle.set("/process/user", json!({"uid": uid, "gid": uid})), &[&call]);
        assert_eq!(result[&call], "EPERM", "noNewPrivileges {no_new_privileges}, uid {uid}");
    }
}

#[test]
fn exec_gets_it_too() {
    let rt = Runtime::new();
    let c = rt.start(profile(&rt, allow(json!([{"names": ["umask"], "action": "SCMP_ACT_ERRNO"}]))).args(["/probe", "sleep"]));
    let call = format!("syscall {SYS_umask} 0");
    assert_eq!(c.tries(&[&call])[&call], "EPERM");
}

#[test]
fn what_the_runtime_itself_calls_may_be_forbidden() {
    let rt = Runtime::new();
    // With no_new_privs the filter comes last: only execve and what the program calls are needed.
    let mut names = vec!["mount", "pivot_root", "umount2", "setns", "unshare", "sethostname"];
    if !rt.differs("calls after the filter") {
        names.extend(["setresuid", "setuid", "setgroups", "capset", "openat2"]);
    }
    let bundle = profile(&rt, allow(json!([{"names": names, "action": "SCMP_ACT_KILL_PROCESS"}])));
    assert_eq!(rt.report(bundle)["pid"], 1);
}

#[test]
fn bad_profiles_are_refused() {
    let rt = Runtime::new();
    let cases = [
        (json!({"defaultAction": "SCMP_ACT_NONSENSE"}), "SCMP_ACT_NONSENSE"),
        (allow(json!([{"names": ["umask"], "action": "SCMP_ACT_WHAT"}])), "SCMP_ACT_WHAT"),
        (
            allow(json!([{"names": ["umask"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_WHAT"}]}])),
            "SCMP_CMP_WHAT",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ABACUS"], "syscalls": [{"names": ["umask"], "action": "SCMP_ACT_ERRNO"}]}),
            "SCMP_ARCH_ABACUS",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WHAT"], "syscalls": [{"names": ["umask"], "action": "SCMP_ACT_ERRNO"}]}),
            "SECCOMP_FILTER_FLAG_WHAT",
        ),
    ];
    for (seccomp, word) in cases {
        let done = rt.container(profile(&rt, seccomp)).run();
        assert_ne!(done.code(), 0, "{done}");
        if !rt.differs("bad seccomp texts") {
            done.fails(1, &["seccomp", word]);
        }
        rt.assert_nothing_left();
    }
}

#[test]
fn a_listener_gets_the_notifier() {
    let rt = Runtime::new();
    let path = rt.dir().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    let mut seccomp = allow(json!([{"names": ["umask"], "action": "SCMP_ACT_NOTIFY"}]));
    seccomp["listenerPath"] = json!(path);
    seccomp["listenerMetadata"] = json!("some metadata");
    let call = format!("syscall {SYS_umask} 0");
    let c = rt.container(profile(&rt, seccomp).args(["/probe", "try", &call]));
    let created = c.create().ok();
    let (stream, _) = listener.accept().unwrap();
    let (bytes, fds) = sys::receive_fds(&stream);
    let state: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(state["fds"], json!(["seccompFd"]), "{state}");
    assert_eq!(state["metadata"], "some metadata");
    assert_eq!(state["state"]["id"], c.id.as_str());
    assert_eq!(state["pid"], c.pid());
    assert_eq!(fds.len(), 1);
    // Nobody answers any more: the call is then not implemented.
    drop(fds);
    c.call(["start"]).ok();
    c.wait_status("stopped");
    assert!(created.output_now().contains("ENOSYS"), "{}", created.output_now());
}

#[test]
fn notify_without_a_listener_is_refused() {
    let rt = Runtime::new();
    let c = rt.container(profile(&rt, allow(json!([{"names": ["umask"], "action": "SCMP_ACT_NOTIFY"}]))));
    c.create().fails(1, &["listenerPath"]);
    rt.assert_nothing_left();
}

#[test]
fn a_listener_that_nobody_serves_is_told_in_runc_s_words() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a listener's descriptor");
    let mut seccomp = allow(json!([{"names": ["umask"], "action": "SCMP_ACT_NOTIFY"}]));
    seccomp["listenerPath"] = json!(rt.dir().join("nobody.sock"));
    rt.container(profile(&rt, seccomp)).create().fails(1, &["failed to connect with seccomp agent"]);
    rt.assert_nothing_left();
}
