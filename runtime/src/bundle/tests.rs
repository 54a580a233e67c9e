//! The reader against serde's, and the errors that it gives.

use super::*;
use oci_spec::runtime::{LinuxResources, Process, SpecBuilder};
use serde_json::{Value, json};

/// What Docker made of an ordinary container.
const DOCKER: &str = include_str!("../../../bench/docker.json");

fn read(value: &Value) -> Spec {
    parse(value.to_string().as_bytes()).unwrap()
}

fn error(json: &str) -> String {
    parse::<Spec>(json.as_bytes()).unwrap_err().to_string()
}

/// The reader's specification is serde's.
fn agree(json: &str) {
    let ours: Spec = parse(json.as_bytes()).unwrap();
    let theirs: Spec = serde_json::from_str(json).unwrap();
    assert_eq!(ours, theirs, "{json}");
}

/// A document with every field of the sections for Linux.
fn full() -> Value {
    let maps = json!([{"containerID": 0, "hostID": 1000, "size": 1}, {"containerID": 1, "hostID": 100_000, "size": 65536}]);
    let hook = json!([{"path": "/bin/x", "args": ["x", "-y"], "env": ["A=b"], "timeout": 5}, {"path": "/bin/z"}]);
    let throttle = json!([{"major": 8, "minor": 0, "rate": u64::MAX}]);
    json!({
        "ociVersion": "1.3.0",
        "root": {"path": "r\u{f6}otfs", "readonly": true},
        "hostname": "h", "domainname": "d",
        "mounts": [{"destination": "/a", "type": "bind", "source": "/b", "options": ["rbind", "ro"], "uidMappings": maps, "gidMappings": maps}],
        "hooks": {"prestart": hook, "createRuntime": hook, "createContainer": hook, "startContainer": hook, "poststart": hook, "poststop": hook},
        "annotations": {"a": "1", "b/c.d": "\"\\\n\u{1}\u{1f600}"},
        "process": {
            "terminal": true, "consoleSize": {"height": 25, "width": 80},
            "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4], "username": "u"},
            "args": ["sh", "-c", ""], "commandLine": "c", "env": ["A=b"], "cwd": "/",
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_BPF"], "effective": ["sys_admin"], "inheritable": [], "permitted": ["CAP_KILL"], "ambient": ["CAP_SYSLOG"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": u64::MAX, "soft": 0}, {"type": "RLIMIT_RTTIME", "hard": 1, "soft": 1}],
            "noNewPrivileges": true, "apparmorProfile": "p", "oomScoreAdj": -999, "selinuxLabel": "l",
            "ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 3},
            "scheduler": {"policy": "SCHED_DEADLINE", "nice": -1, "priority": 2, "flags": ["SCHED_FLAG_RECLAIM"], "runtime": 1, "deadline": 2, "period": 3},
            "execCPUAffinity": {"initial": "0-1", "final": "1,3"},
        },
        "linux": {
            "netDevices": {"eth0": {"name": "x"}, "eth1": {}},
            "uidMappings": maps, "gidMappings": maps,
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "cgroupsPath": "/a/b",
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "user"}, {"type": "cgroup"}, {"type": "time"}],
            "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 5, "gid": 6}, {"type": "p"}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_S390X"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], "listenerPath": "/l", "listenerMetadata": "m",
                "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                    {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                     "args": [{"index": 0, "value": 2_114_060_288, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]}],
            },
            "rootfsPropagation": "slave", "maskedPaths": ["/proc/kcore"], "readonlyPaths": [], "mountLabel": "ml",
            "intelRdt": {"closID": "c", "schemata": ["s"], "l3CacheSchema": "l3", "memBwSchema": "mb", "enableCmt": true, "enableMbm": false, "enableMonitoring": true},
            "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
            "personality": {"domain": "LINUX32", "flags": ["x"]},
            "timeOffsets": {"monotonic": {"secs": -5, "nanosecs": 7}, "boottime": {}},
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "r"}],
                "memory": {"limit": -1, "reservation": 1, "swap": 2, "kernel": 3, "kernelTCP": 4, "swappiness": 60, "disableOOMKiller": true,
                    "useHierarchy": false, "checkBeforeUpdate": true},
                "cpu": {"shares": 1, "quota": -1, "idle": 1, "burst": 2, "period": 3, "realtimeRuntime": 4, "realtimePeriod": 5, "cpus": "0", "mems": "1"},
                "pids": {"limit": 5},
                "blockIO": {"weight": 10, "leafWeight": 11, "weightDevice": [{"major": 1, "minor": 2, "weight": 3, "leafWeight": 4}],
                    "throttleReadBpsDevice": throttle, "throttleWriteBpsDevice": throttle, "throttleReadIOPSDevice": throttle, "throttleWriteIOPSDevice": throttle},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
                "network": {"classID": 7, "priorities": [{"name": "eth0", "priority": 2}]},
                "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 4}, "none": {}},
                "unified": {"memory.high": "max"},
            },
        },
    })
}

/// Every value of a document in turn, replaced by `other`.
fn replaced(value: &Value, other: &Value, each: &mut dyn FnMut(&str, Value), path: &str) {
    each(path, other.clone());
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let mut outer = map.clone();
                replaced(
                    inner,
                    other,
                    &mut |path, v| {
                        outer[key] = v;
                        each(path, Value::Object(outer.clone()));
                    },
                    &format!("{path}.{key}"),
                );
            }
        }
        Value::Array(list) => {
            for (i, inner) in list.iter().enumerate() {
                let mut outer = list.clone();
                replaced(
                    inner,
                    other,
                    &mut |path, v| {
                        outer[i] = v;
                        each(path, Value::Array(outer.clone()));
                    },
                    &format!("{path}[{i}]"),
                );
            }
        }
        _ => (),
    }
}

#[test]
fn the_same_as_serde() {
    agree(DOCKER);
    let full = full();
    agree(&full.to_string());
    agree(&serde_json::to_string_pretty(&full).unwrap());
    for made in [Spec::default(), Spec::rootless(1000, 1001), SpecBuilder::default().hostname("x").build().unwrap()] {
        agree(&serde_json::to_string(&made).unwrap());
    }
    agree("{}");
    agree(r#"{"process":{"cwd":"/","user":{}},"root":{},"linux":{}}"#);
    agree(r#"{"hostname":"a","nobody":[{"knows":[1.5e-3,true,null]}]}"#);
    let read: LinuxResources = parse(full["linux"]["resources"].to_string().as_bytes()).unwrap();
    assert_eq!(read, serde_json::from_value(full["linux"]["resources"].clone()).unwrap());
    let read: Process = parse(full["process"].to_string().as_bytes()).unwrap();
    assert_eq!(read, serde_json::from_value(full["process"].clone()).unwrap());
}

#[test]
fn every_known_name_is_the_specifications() {
    // What the type's own serialiser writes, but for two names that it gets wrong.
    use oci_spec::runtime::{
        Arch, Capability, IOPriorityClass, LinuxDeviceType, LinuxSchedulerFlag, LinuxSchedulerPolicy, LinuxSeccompAction,
        LinuxSeccompOperator, MemoryPolicyModeType, PosixRlimitType,
    };
    fn names<T: Read + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>() {
        let all = parse::<T>(b"\"?\"").unwrap_err().to_string();
        let (_, names) = all.split_once("known: ").unwrap();
        for name in names.trim_end_matches(')').split(", ") {
            let quoted = json!(name).to_string();
            let ours: T = parse(quoted.as_bytes()).unwrap();
            match serde_json::from_str::<T>(&quoted) {
                Ok(theirs) => assert_eq!(ours, theirs),
                Err(_) => assert!(["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"].contains(&name), "{name}"),
            }
        }
    }
    names::<Arch>();
    names::<IOPriorityClass>();
    names::<LinuxDeviceType>();
    names::<LinuxSchedulerFlag>();
    names::<LinuxSchedulerPolicy>();
    names::<LinuxSeccompAction>();
    names::<LinuxSeccompOperator>();
    names::<MemoryPolicyModeType>();
    names::<PosixRlimitType>();
    let set: std::collections::HashSet<Capability> = parse(br#"["cap_sysLog","SYSLOG","chown"]"#).unwrap();
    assert_eq!(set.len(), 2);
}

#[test]
fn a_wrong_kind_of_value_is_named_by_its_path() {
    let full = full();
    for (other, got) in [(json!(1.5), "number"), (json!([[]]), "list"), (json!({"x": {}}), "object"), (json!(true), "true or false")] {
        let mut places = 0;
        let mut refused = 0;
        replaced(
            &full,
            &other,
            &mut |path, document| {
                places += 1;
                let text = document.to_string();
                let Err(ours) = parse::<Spec>(text.as_bytes()) else {
                    // An object without the fields that are known is blank; a flag may be true.
                    assert!(other.is_object() || other.is_boolean(), "{path} {other}");
                    return;
                };
                refused += 1;
                let ours = ours.to_string();
                let path = path.trim_start_matches('.');
                assert!(ours.starts_with(path), "{path}: {ours}");
                let known = ["must be", "not a whole number", "missing"].iter().any(|text| ours.contains(text));
                assert!(known && (ours.contains(got) || ours.contains("whole") || ours.contains("missing")), "{ours}");
            },
            "",
        );
        assert!(places > 200 && refused > 100, "{places} {refused} {other}");
    }
}

#[test]
fn null_is_as_good_as_absent() {
    let full = full();
    let mut refused = Vec::new();
    replaced(
        &full,
        &Value::Null,
        &mut |path, document| {
            if let Err(e) = parse::<Spec>(document.to_string().as_bytes()) {
                refused.push((path.to_owned(), e.to_string()));
            }
        },
        "",
    );
    for (path, error) in refused {
        let needed = error.starts_with(&format!("{}: missing", path.trim_start_matches('.')));
        assert!(needed || path.is_empty() || path.ends_with(']'), "{path} {error}");
    }
    assert_eq!(read(&json!({"process": null, "hooks": {"poststop": null}})).process(), &None);
}

#[test]
fn errors() {
    let cases = [
        (
            r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"nope"}]}}"#,
            r#"linux.namespaces[1].type: unknown value "nope" (known: pid, network, mount, ipc, uts, user, cgroup, time)"#,
        ),
        (
            r#"{"linux":{"namespaces":[{"type":""}]}}"#,
            "linux.namespaces[0].type: empty (known: pid, network, mount, ipc, uts, user, cgroup, time)",
        ),
        (r#"{"linux":{"namespaces":[{"path":"/x"}]}}"#, "linux.namespaces[0].type: missing"),
        (r#"{"process":{"args":[1],"cwd":"/"}}"#, "process.args[0]: must be a string, not a number"),
        (r#"{"root":{"path":"a\"b{[","readonly":"yes"}}"#, "root.readonly: must be true or false, not a string"),
        (r#"{"mounts":[{"destination":"/a"},{"type":"x"}], "hostname":"x"}"#, "mounts[1].destination: missing"),
        (r#"{"hostname":["x"]}"#, "hostname: must be a string, not a list"),
        (r#"{"annotations":{"a":"1","b":2}}"#, "annotations.b: must be a string, not a number"),
        (r#"{"process":{"oomScoreAdj":2147483648}}"#, "process.oomScoreAdj: 2147483648 is not within -2147483648 and 2147483647"),
        (r#"{"process":{"user":{"uid":-1}}}"#, "process.user.uid: -1 is not within 0 and 4294967295"),
        (r#"{"process":{"user":{"uid":1e3}}}"#, "process.user.uid: 1e3 is not a whole number"),
        (
            r#"{"linux":{"resources":{"pids":{"limit":1234567890123456789012345678901234567890123}}}}"#,
            "linux.resources.pids.limit: 1234567890123456789012345678901234567890123 is not within -9223372036854775808 and 9223372036854775807",
        ),
        ("[]", "must be an object, not a list"),
        ("{", "line 1, column 2: expected the name of a field, in double quotes"),
        ("", "line 1, column 1: the text ends where a value should be"),
        ("{\n \"hostname\": \"x\"\n \"root\": {}}", "line 3, column 2: expected ',' or '}'"),
        ("{\"args\": [1 2]}", "line 1, column 13: expected ',' or ']'"),
        ("{\"a\" 1}", "line 1, column 6: expected ':' after the name of a field"),
        ("{\"a\": 1,}", "line 1, column 9: expected the name of a field, in double quotes"),
        ("{\"a\": [1,]}", "line 1, column 10: expected a value"),
        ("{} x", "line 1, column 4: expected nothing more"),
        ("{\"a\": nul}", "line 1, column 7: expected a value"),
        ("{\"hostname\": \"a\nb\"}", "line 1, column 16: control character in a string"),
        ("{\"hostname\": \"ab", "line 1, column 17: the text ends within a string"),
        (r#"{"hostname": "\x"}"#, "line 1, column 17: unknown escape in a string"),
        (r#"{"hostname": "\u12g4"}"#, "line 1, column 17: expected four hexadecimal digits after \\u"),
        (r#"{"hostname": "\ud800"}"#, "line 1, column 21: half of a surrogate pair"),
        (r#"{"hostname": "\ud800\u0041"}"#, "line 1, column 27: half of a surrogate pair"),
        (r#"{"hostname": "\udc00"}"#, "line 1, column 21: half of a surrogate pair"),
    ];
    for (json, expected) in cases {
        assert_eq!(error(json), expected, "{json}");
    }
    assert_eq!(parse::<Spec>(b"{\"hostname\":\n \"a\xff\"}").unwrap_err().to_string(), "line 2, column 4: not UTF-8");
}

#[test]
fn syntax_is_that_of_serde() {
    let numbers =
        ["0", "-0", "1", "01", "-", "-1", "1.", "1.5", ".5", "1e", "1e5", "1E+5", "1e-05", "+1", "0x1", "1.e5", "00", "-01", "NaN", "1_0"];
    let others = [
        "tru",
        "true",
        "truefalse",
        "nullx",
        "'a'",
        "\"\\u00e9\\ud83d\\ude00\"",
        "\"\\/\\b\\f\"",
        "\"\u{7f}\"",
        "[,1]",
        "[1,,2]",
        "[",
        "{]",
        "[}",
    ];
    for text in numbers.iter().chain(&others) {
        for json in [format!("{{\"x\":{text}}}"), format!("{{\"x\":[ {text} ]}}"), format!("\u{feff}{text}"), text.to_string()] {
            let ours = parse::<Spec>(json.as_bytes()).map_err(|e| e.to_string());
            let theirs = serde_json::from_str::<Value>(&json);
            let ours_fine = ours.is_ok() || ours.as_ref().is_err_and(|e| e.starts_with("must be an object"));
            // What is no object is refused before the rest of it is looked at.
            assert!(ours_fine == theirs.is_ok() || !json.starts_with('{'), "{json}: {ours:?}");
        }
    }
    // Cut anywhere: an error, not a panic.
    let text = full().to_string();
    for end in (0..text.len()).filter(|&i| text.is_char_boundary(i)) {
        assert!(parse::<Spec>(&text.as_bytes()[..end]).is_err());
    }
    let deep = |n: usize| format!("{{\"x\":{}{}}}", "[".repeat(n), "]".repeat(n));
    assert!(parse::<Spec>(deep(127).as_bytes()).is_ok());
    assert_eq!(error(&deep(128)), "line 1, column 134: nested too deeply");
    assert!(error(&deep(1_000_000)).contains("nested too deeply"));
    let twice: Spec = parse(br#"{"hostname":"a","hostname":"b"}"#).unwrap();
    assert_eq!(twice.hostname().as_deref(), Some("b"));
    let spec: Spec = parse(br#"{"h\u006fstname":"\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t"}"#).unwrap();
    assert_eq!(spec.hostname().as_deref(), Some("\u{e9}\u{1f600}\"\\/\u{8}\u{c}\n\r\t"));
}

#[test]
fn what_runc_takes_is_taken() {
    let spec: Spec =
        parse(br#"{"process":{"args":["x"],"cwd":"/","capabilities":{"bounding":["CAP_CHOWN","CAP_NOBODY_KNOWS"]}}}"#).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
    assert_eq!(process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(), 1);
    let unknown = json::parse::<Spec>(br#"{"process":{"capabilities":{"bounding":["CAP_X"],"ambient":["CAP_X"]}}}"#).unwrap().1;
    assert_eq!(unknown, ["CAP_X", "CAP_X"]);
    let spec = read(
        &json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}}, "windows": {"layerFolders": 1}}),
    );
    assert!(spec.windows().is_some());
    assert!(spec.linux().as_ref().unwrap().seccomp().as_ref().unwrap().syscalls().as_ref().unwrap()[0].names().is_empty());
    // Names in other capitals, but not the keys of maps.
    let spec: Spec = parse(
        br#"{"OCIVersion":"1.0.2","Process":{"ARGS":["x"],"Cwd":"/","user":{"UID":5}},"linux":{"Resources":{"CPU":{"Cpus":"0"}}},
            "hostname":"a","HostName":"b","annotations":{"A":"1","a":"2"}}"#,
    )
    .unwrap();
    let plain = json!({"ociVersion": "1.0.2", "process": {"args": ["x"], "cwd": "/", "user": {"uid": 5}},
        "linux": {"resources": {"cpu": {"cpus": "0"}}}, "hostname": "b", "annotations": {"A": "1", "a": "2"}});
    assert_eq!(spec, read(&plain));
    assert_eq!(error(r#"{"Process":{"Cwd":1}}"#), "Process.Cwd: must be a string, not a number");
}
/// The shortest of many times; without that of giving the memory back.
fn shortest<T>(mut read: impl FnMut() -> T) -> std::time::Duration {
    let once = |_| {
        let start = std::time::Instant::now();
        let value = std::hint::black_box(read());
        let took = start.elapsed();
        drop(value);
        took
    };
    (0..3000).map(once).min().unwrap()
}

#[test]
#[ignore = "prints how long Docker's configuration takes; needs --release"]
fn how_long_it_takes() {
    let json = std::hint::black_box(DOCKER.as_bytes());
    let ours = shortest(|| parse::<Spec>(json).unwrap());
    let serdes = shortest(|| serde_json::from_slice::<Spec>(json).unwrap());
    println!("{} bytes: {ours:?}, serde's reader {serdes:?}", json.len());
}
