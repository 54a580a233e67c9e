//! The command line: formats, texts, exit codes, and the very lines that callers run.

use serde_json::{Value, json};
use std::fs;
use tests::{Call, Done, Runtime, host, require};

const SLEEP: [&str; 2] = ["/probe", "sleep"];

fn line_starting(done: &Done, prefix: &str) -> String {
    let found = done.stdout.lines().find(|l| l.starts_with(prefix));
    found.unwrap_or_else(|| panic!("no line that starts with {prefix:?}\n{done}")).to_string()
}

#[test]
fn version_has_the_lines_callers_read() {
    let rt = Runtime::new();
    let done = rt.bare().arg("--version").ok();
    // Docker takes the last line with this word; there must be one.
    let lines: Vec<&str> = done.stdout.lines().filter(|l| l.to_lowercase().contains("version")).collect();
    assert_eq!(lines.len(), 1, "{done}");
    let words: Vec<&str> = lines[0].split(' ').collect();
    assert_eq!((words.len(), words[1]), (3, "version"), "{done}");
    assert!(words[2].starts_with(|c: char| c.is_ascii_digit()), "{done}");
    line_starting(&done, "commit: ");
    assert!(line_starting(&done, "spec: ").starts_with("spec: 1."), "{done}");
    assert_eq!(rt.bare().arg("-v").ok().stdout, done.stdout);
}

#[test]
fn features_has_what_callers_look_up() {
    let rt = Runtime::new();
    let features = rt.bare().arg("features").ok().json();
    let words = |pointer: &str| -> Vec<String> {
        let list = features.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{pointer} in {features}"));
        list.iter().map(|v| v.as_str().unwrap().to_string()).collect()
    };
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert!(features["ociVersionMax"].as_str().unwrap().starts_with("1."), "{features}");
    for option in ["rro", "rbind", "ro", "nosuid", "tmpcopyup", "rnosuid", "private", "rslave", "noatime"] {
        assert!(words("/mountOptions").iter().any(|o| o == option), "mountOptions has no {option}");
    }
    let hooks = ["createContainer", "createRuntime", "poststart", "poststop", "prestart", "startContainer"];
    let mut found = words("/hooks");
    found.sort();
    assert_eq!(found, hooks);
    for kind in ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"] {
        assert!(words("/linux/namespaces").iter().any(|n| n == kind), "no namespace {kind}");
    }
    assert!(words("/linux/capabilities").iter().any(|c| c == "CAP_SYS_ADMIN"));
    for field in ["v1", "v2", "systemd"] {
        assert_eq!(features["linux"]["cgroup"][field], true, "cgroup.{field}");
    }
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    assert!(words("/linux/seccomp/actions").iter().any(|a| a == "SCMP_ACT_ERRNO"));
    assert_eq!(features.pointer("/linux/mountExtensions/idmap/enabled"), Some(&json!(true)));
}

#[test]
fn state_is_indented_json_without_a_last_newline() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let done = c.call(["state"]).ok();
    assert!(done.stdout.starts_with("{\n  \"ociVersion\": \""), "{done}");
    if !rt.differs("state last newline") {
        assert!(done.stdout.ends_with("\n}"), "{done}");
    }
    let fields: Vec<&str> = done.stdout.lines().filter_map(|l| l.trim_start().split('"').nth(1)).collect();
    if !rt.differs("state order") {
        assert_eq!(fields, ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"], "{done}");
    }
}

#[test]
fn list_prints_a_table() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    let done = rt.call(["list"]).ok();
    let lines: Vec<Vec<&str>> = done.stdout.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], "{done}");
    assert_eq!(lines.len(), 2, "{done}");
    let state = c.state();
    assert_eq!(lines[1][..4], [&c.id, &state["pid"].to_string(), "running", c.bundle.dir.to_str().unwrap()], "{done}");
    // Columns are as wide as their widest cell, at least 12, and three blanks apart.
    if !rt.differs("list widths") {
        let at = done.stdout.lines().next().unwrap().find("PID").unwrap();
        assert_eq!(at, 12.max(c.id.len() + 3), "{done}");
    }
}

#[test]
fn list_quiet_and_json() {
    let rt = Runtime::new();
    let empty = rt.dir().join("empty");
    fs::create_dir(&empty).unwrap();
    let at = |root: &std::path::Path, args: &[&str]| rt.bare().arg("--root").arg(root).args(args).run();
    assert_eq!(at(&empty, &["list", "-q"]).ok().stdout, "");
    if !rt.differs("list of nothing") {
        assert_eq!(at(&empty, &["list", "-f", "json"]).ok().stdout, "null\n");
        assert_eq!(at(&empty, &["list"]).ok().stdout.trim_end(), "ID          PID         STATUS      BUNDLE      CREATED     OWNER");
        at(&rt.dir().join("absent"), &["list"]).fails(1, &["no such file or directory"]);
    }
    let c = rt.start(rt.bundle().args(SLEEP));
    assert_eq!(rt.call(["list", "--quiet"]).ok().stdout, format!("{}\n", c.id));
    let json = rt.call(["list", "--format=json"]).ok();
    let mut expected = c.state();
    // state leaves the owner's name out, as runc does.
    expected["owner"] = json.json()[0]["owner"].clone();
    assert_eq!(json.json(), json!([expected]), "{json}");
    if !rt.differs("list json in one line") {
        assert_eq!(json.stdout.lines().count(), 1);
    }
    if !rt.differs("list format text") {
        rt.call(["list", "-f", "yaml"]).fails(1, &["invalid format option"]);
    }
}

#[test]
fn list_goes_on_beside_a_damaged_folder() {
    let rt = Runtime::new();
    let c = rt.start(rt.bundle().args(SLEEP));
    fs::create_dir(rt.root().join("damaged")).unwrap();
    fs::write(rt.root().join("damaged/state.json"), "{").unwrap();
    assert!(rt.call(["list", "-q"]).run().stdout.contains(&c.id));
    fs::remove_dir_all(rt.root().join("damaged")).unwrap();
}

#[test]
fn ps_prints_the_host_s_table_or_pids() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a cgroup to find processes in");
    let c = rt.container(rt.bundle().args(["/probe", "children", "2"]));
    let created = c.create().ok();
    c.call(["start"]).ok();
    assert!(host::wait_until(20, || created.output_now().contains("ready")));
    let pids = c.call(["ps", "--format", "json"]).ok();
    assert_eq!(pids.json().as_array().unwrap().len(), 3, "{pids}");
    assert!(pids.json().as_array().unwrap().contains(&json!(c.pid())), "{pids}");
    if rt.differs("ps") {
        return;
    }
    assert!(pids.stdout.ends_with("]\n") && !pids.stdout.contains(' '), "{pids}");
    require!(host::find("ps").is_some(), "ps of the host (procps)");
    let table = c.call(["ps"]).ok();
    assert!(table.stdout.starts_with("UID"), "{table}");
    assert_eq!(table.stdout.lines().count(), 4, "{table}");
    let table = c.call(["ps"]).args(["-o", "pid,args"]).ok();
    assert!(table.stdout.contains("/probe sleep") && table.stdout.trim_start().starts_with("PID"), "{table}");
}

#[test]
fn usage_errors() {
    let rt = Runtime::new();
    // What was typed, the exit code, and what standard error must hold.
    let cases: &[(&[&str], i32, &str)] = &[
        (&["create", "--bundle"], 1, "flag needs an argument"),
        (&["create", "--no-such-flag", "x"], 1, "flag provided but not defined: -no-such-flag"),
        (&["state"], 1, "\"state\" requires exactly 1 argument(s)"),
        (&["start"], 1, "\"start\" requires exactly 1 argument(s)"),
        (&["kill"], 1, "\"kill\" requires a minimum of 1 argument(s)"),
        (&["kill", "a", "b", "c"], 1, "\"kill\" requires a maximum of 2 argument(s)"),
        (&["exec"], 1, "\"exec\" requires a minimum of 1 argument(s)"),
        (&["create", "a", "b"], 1, "\"create\" requires exactly 1 argument(s)"),
        (&["delete", "a", "b"], 1, "\"delete\" requires exactly 1 argument(s)"),
        (&["frob"], 3, "No help topic for 'frob'"),
        (&["state", "absent"], 1, "container does not exist"),
        (&["start", "absent"], 1, "container does not exist"),
        (&["kill", "absent", "KILL"], 1, "container does not exist"),
        (&["pause", "absent"], 1, "container does not exist"),
        (&["resume", "absent"], 1, "container does not exist"),
        (&["ps", "absent"], 1, "container does not exist"),
        (&["update", "absent"], 1, "container does not exist"),
        (&["delete", "absent"], 1, "container does not exist"),
        (&["restore", "--lsm-mount-context"], 1, "flag needs an argument"),
    ];
    for (args, code, text) in cases {
        let done = rt.call(*args).run();
        if rt.differs("usage texts") {
            assert_ne!(done.code(), 0, "{done}");
        } else {
            done.fails(*code, &[text]);
        }
    }
    let exec = rt.call(["exec", "absent", "x"]).run();
    if !rt.differs("usage texts") {
        exec.fails(255, &["container does not exist"]);
        rt.call(["list"]).run();
        rt.bare().args(["--root", "/", "list"]).fails(1, &["root", "/"]);
        rt.bare().args(["--log-format", "yaml", "list"]).fails(1, &["invalid log-format"]);
    }
}

#[test]
fn help_is_no_error() {
    let rt = Runtime::new();
    for args in [&["--help"][..], &["-h"], &["help"], &["create", "--help"], &["checkpoint", "--help"], &["exec", "-h"]] {
        if args == ["help"] && rt.differs("usage texts") {
            continue;
        }
        let done = rt.bare().args(args).ok();
        assert!(done.stdout.len() > 50, "{done}");
    }
}

/// Some tools parse runc's own texts.
#[test]
fn called_runc_it_speaks_as_runc() {
    let rt = Runtime::new();
    require!(rt.kind() != tests::runtime::Kind::Crun, "crun has no such name");
    let runc = rt.dir().join("runc");
    std::os::unix::fs::symlink(&tests::runtime::program().0, &runc).unwrap();
    let said = |args: &str| rt.shell(&format!("exec {} {args}", runc.display()), &[]).ok().stdout;
    assert!(said("--version").starts_with("runc version "));
    assert!(said("--help").starts_with("NAME:\n   runc - Open Container Initiative runtime\n"));
    for command in ["create", "delete", "exec", "list"] {
        let help = said(&format!("{command} --help"));
        assert!(help.starts_with(&format!("NAME:\n   runc {command} - ")), "{help}");
    }
}

#[test]
fn long_flags_with_one_dash_and_flags_after_the_id() {
    let rt = Runtime::new();
    require!(!rt.differs("flags anywhere"), "this peer's parser is older");
    let c = rt.container(rt.bundle().args(SLEEP));
    let dir = c.bundle.dir.to_str().unwrap();
    rt.call(["create", "-bundle", dir, &c.id]).ok();
    rt.call(["delete", &c.id, "-force"]).ok();
    rt.call(["run", &c.id, "--detach", "-no-subreaper", "--bundle", dir]).ok();
    rt.call(["delete", &c.id, "--force=true"]).ok();
    rt.call(["run", "-d=true", "-b", dir, "--", &c.id]).ok();
    rt.call(["delete", "-f", &c.id]).ok();
}

#[test]
fn the_bundle_is_the_current_folder_by_default() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(["/probe", "exit", "6"]));
    rt.call(["run", &c.id]).current_dir(&c.bundle.dir).run().exits(6);
    let relative = c.bundle.dir.file_name().unwrap().to_str().unwrap();
    rt.call(["run", "--bundle", relative, &c.id]).current_dir(rt.dir()).run().exits(6);
}

#[test]
fn run_takes_a_folder_instead_of_an_id() {
    let rt = Runtime::new();
    require!(rt.kind() == tests::runtime::Kind::Rrun, "rrun's own form of run");
    let c = rt.container(rt.bundle().args(["/probe", "report"]).unset("/linux/cgroupsPath"));
    let report = rt.call(["run"]).arg(&c.bundle.dir).ok().json();
    assert_eq!(report["pid"], 1);
    rt.assert_nothing_left();
}

#[test]
fn spec_writes_a_bundle_that_runs() {
    let rt = Runtime::new();
    let bundle = rt.bundle();
    let mut spec = rt.call(["spec"]).current_dir(&bundle.dir);
    if rt.is_rootless() {
        spec = spec.arg("--rootless");
    }
    spec.ok();
    let path = bundle.dir.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\n\t\"ociVersion\": \""), "indented with tabs: {text}");
    rt.call(["spec"]).current_dir(&bundle.dir).fails(1, &["exists"]);
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["process"]["terminal"], true);
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert_eq!(config["root"], json!({"path": "rootfs", "readonly": true}));
    let mut bundle = bundle;
    bundle.config = config;
    let report = rt.report(bundle.set("/process/terminal", json!(false)).args(["/probe", "report"]));
    assert_eq!(report["pid"], 1);
}

#[test]
fn spec_rootless_maps_the_caller() {
    let rt = Runtime::new();
    let dir = rt.dir().join("spec");
    fs::create_dir(&dir).unwrap();
    rt.call(["spec", "--rootless", "--bundle"]).arg(&dir).ok();
    let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let namespaces = config["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.contains(&json!({"type": "user"})), "{config}");
    assert!(!namespaces.contains(&json!({"type": "network"})), "{config}");
    let uid = nix::unistd::geteuid().as_raw();
    assert_eq!(config["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": uid, "size": 1}]));
}

#[test]
fn errors_go_to_the_log_as_one_json_object() {
    let mut rt = Runtime::new();
    rt.log = Some(rt.dir().join("log.json"));
    let c = rt.container(rt.bundle().args(["/no/such/program"]));
    let done = c.create();
    let start = if done.code() == 0 { c.call(["start"]).run() } else { done };
    assert_ne!(start.code(), 0, "{start}");
    if rt.is_rootless() && rt.differs("warnings in the log") {
        return;
    }
    let log: Value = serde_json::from_str(&start.log).unwrap_or_else(|e| panic!("{e}: the log must be one object\n{start}"));
    assert_eq!(log["level"], "error", "{start}");
    assert!(log["msg"].as_str().unwrap().contains("no such file or directory"), "{start}");
    assert!(log["time"].as_str().unwrap().contains('T'), "{start}");
    assert!(start.stderr.contains("no such file or directory"), "the error goes to standard error too\n{start}");
}

#[test]
fn the_log_is_appended_to() {
    let mut rt = Runtime::new();
    let log = rt.dir().join("log");
    fs::write(&log, "before\n").unwrap();
    rt.log = Some(log);
    let done = rt.call(["state", "absent"]).fails(1, &["does not exist"]);
    assert!(done.log.starts_with("before\n") && done.log.lines().count() == 2, "{done}");
}

#[test]
fn the_text_log_is_logrus_s() {
    let rt = Runtime::new();
    require!(!rt.differs("log text"), "this peer's form is another");
    let log = rt.dir().join("log");
    rt.bare().arg("--log").arg(&log).arg("--root").arg(rt.root()).args(["state", "absent"]).run().exits(1);
    let text = fs::read_to_string(log).unwrap();
    assert!(text.starts_with("time=\"") && text.ends_with("level=error msg=\"container does not exist\"\n"), "{text}");
}

/// One call as containerd's shim writes it.
fn shim(rt: &Runtime, log: &str, args: &[&str]) -> Call {
    rt.bare().args(["--root", rt.root().to_str().unwrap(), "--log", log, "--log-format", "json"]).args(args)
}

#[test]
fn containerd_s_lines() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: cgroups to update and pause");
    let c = rt.container(rt.bundle().args(SLEEP));
    let (id, dir) = (c.id.as_str(), c.bundle.dir.to_str().unwrap());
    let path = |name: &str| c.bundle.dir.join(name).to_str().unwrap().to_string();
    let (log, pid) = (path("log.json"), path("init.pid"));
    shim(&rt, &log, &["create", "--bundle", dir, "--pid-file", &pid, id]).ok();
    shim(&rt, &log, &["start", id]).ok();
    let process = json!({"args": ["/probe", "sleep"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=b"]});
    fs::write(path("process.json"), process.to_string()).unwrap();
    let exec_pid = path("exec.pid");
    shim(&rt, &log, &["exec", "--process", &path("process.json"), "--detach", "--pid-file", &exec_pid, id]).ok();
    let pids = shim(&rt, &log, &["ps", "--format", "json", id]).ok().json();
    let mut expected: Vec<i64> = [&pid, &exec_pid].iter().map(|p| fs::read_to_string(p).unwrap().parse().unwrap()).collect();
    let mut found: Vec<i64> = pids.as_array().unwrap().iter().map(|p| p.as_i64().unwrap()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    shim(&rt, &log, &["pause", id]).ok();
    shim(&rt, &log, &["resume", id]).ok();
    shim(&rt, &log, &["update", "--resources=-", id]).input(r#"{"cpu":{"shares":512}}"#).ok();
    shim(&rt, &log, &["state", id]).ok();
    shim(&rt, &log, &["kill", id, "9"]).ok();
    c.wait_status("stopped");
    shim(&rt, &log, &["kill", id, "9"]).run().exits(1);
    shim(&rt, &log, &["delete", id]).ok();
    shim(&rt, &log, &["delete", "--force", id]).ok();
    shim(&rt, &log, &["delete", id]).fails(1, &["does not exist"]);
}

#[test]
fn conmon_s_and_crio_s_lines() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(SLEEP));
    let (id, dir, root) = (c.id.as_str(), c.bundle.dir.to_str().unwrap(), rt.root());
    let root = root.to_str().unwrap();
    let pid = c.bundle.dir.join("pidfile");
    rt.bare().args(["--root", root, "create", "--bundle", dir, "--pid-file", pid.to_str().unwrap(), id]).ok();
    rt.bare().args(["--root", root, "start", id]).ok();
    let process = c.bundle.dir.join("exec.json");
    fs::write(&process, json!({"args": ["/probe", "exit", "5"], "cwd": "/", "user": {"uid": 0, "gid": 0}}).to_string()).unwrap();
    rt.bare().args(["--root", root, "exec", "--process", process.to_str().unwrap(), id]).run().exits(5);
    rt.bare().args(["--root", root, "kill", "-a", id, "9"]).ok();
    c.wait_status("stopped");
    rt.bare().args(["--root", root, "delete", "--force", id]).ok();
}

#[test]
fn a_small_environment_is_enough() {
    let rt = Runtime::new();
    let c = rt.container(rt.bundle().args(["/probe", "exit", "2"]));
    c.run_with(&[]).env_clear().run().exits(2);
}
