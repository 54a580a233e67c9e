//! What `features` lists is tried: whatever a caller reads there works in a container.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use tests::runtime::Kind;
use tests::{Runtime, has_option, host, mount_at, require};

fn features(rt: &Runtime) -> Value {
    rt.bare().arg("features").ok().json()
}

fn list(features: &Value, pointer: &str) -> Vec<String> {
    let list = features.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{pointer} in {features}"));
    list.iter().map(|v| v.as_str().unwrap().to_string()).collect()
}

/// How an option of `mountOptions` shows.
#[derive(Clone, Copy)]
enum Effect {
    /// By this word among the mount's options.
    Word(&'static str),
    /// By its absence, though the option named before it sets it.
    NoWord(&'static str, &'static str),
    /// The same two among the file system's options.
    Super(&'static str),
    NoSuper(&'static str, &'static str),
    /// In a bind mount, and in what is mounted below it, too.
    Deep(&'static str),
    NoDeep(&'static str, &'static str),
    /// By the optional fields of mountinfo, of the mount alone.
    Propagation(&'static str),
    /// Nothing shows it: it must be taken.
    Taken,
    /// Looked at by the test itself.
    Own,
}

#[rustfmt::skip]
const EFFECTS: &[(&str, Effect)] = {
    use Effect::*;
    &[
        ("async", NoSuper("sync", "sync")), ("atime", NoWord("noatime", "noatime")), ("bind", Own), ("defaults", Taken),
        ("dev", NoWord("nodev", "nodev")), ("diratime", NoWord("nodiratime", "nodiratime")), ("dirsync", Super("dirsync")),
        ("exec", NoWord("noexec", "noexec")), ("idmap", Own), ("iversion", Taken), ("lazytime", Super("lazytime")), ("loud", Taken),
        ("mand", Super("mand")), ("noatime", Word("noatime")), ("nodev", Word("nodev")), ("nodiratime", Word("nodiratime")),
        ("noexec", Word("noexec")), ("noiversion", Taken), ("nolazytime", NoSuper("lazytime", "lazytime")),
        ("nomand", NoSuper("mand", "mand")), ("norelatime", Taken), ("nostrictatime", NoWord("strictatime", "strictatime")),
        ("nosuid", Word("nosuid")), ("nosymfollow", Word("nosymfollow")), ("private", Propagation("")),
        ("ratime", NoDeep("rnoatime", "noatime")), ("rbind", Own), ("rdev", NoDeep("rnodev", "nodev")),
        ("rdiratime", NoDeep("rnodiratime", "nodiratime")), ("relatime", Word("relatime")), ("remount", Own),
        ("rexec", NoDeep("rnoexec", "noexec")), ("ridmap", Own), ("rnoatime", Deep("noatime")), ("rnodev", Deep("nodev")),
        ("rnodiratime", Deep("nodiratime")), ("rnoexec", Deep("noexec")), ("rnorelatime", Taken), ("rnostrictatime", Taken),
        ("rnosuid", Deep("nosuid")), ("rnosymfollow", Deep("nosymfollow")), ("ro", Word("ro")), ("rprivate", Propagation("")),
        ("rrelatime", Deep("relatime")), ("rro", Deep("ro")), ("rrw", NoDeep("rro", "ro")), ("rshared", Propagation("shared:")),
        ("rslave", Propagation("master:")), ("rstrictatime", NoDeep("rnoatime", "noatime")), ("rsuid", NoDeep("rnosuid", "nosuid")),
        ("rsymfollow", NoDeep("rnosymfollow", "nosymfollow")), ("runbindable", Propagation("unbindable")), ("rw", NoWord("ro", "ro")),
        ("shared", Propagation("shared:")), ("silent", Taken), ("slave", Propagation("master:")),
        ("strictatime", NoWord("noatime", "relatime")), ("suid", NoWord("nosuid", "nosuid")),
        ("symfollow", NoWord("nosymfollow", "nosymfollow")), ("sync", Super("sync")), ("tmpcopyup", Own),
        ("unbindable", Propagation("unbindable")),
    ]
};

#[test]
fn mount_options() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: a shared mount to bind, id maps");
    require!(rt.kind() == Kind::Rrun, "the table is rrun's");
    let features = features(&rt);
    assert_eq!(list(&features, "/mountOptions"), EFFECTS.iter().map(|e| e.0).collect::<Vec<_>>(), "an option without an effect here");
    let dir = rt.dir().join("source").display().to_string();
    fs::create_dir(&dir).unwrap();
    let setup =
        format!("mount -t tmpfs t {dir}; mount --make-shared {dir}; mkdir {dir}/sub; mount -t tmpfs t {dir}/sub; echo x >{dir}/file");
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 1000}]);
    let mut bundle = rt.bundle().file("/tmpcopyup/of-the-image", "x").mount("/bind", "none", &dir, &["bind"]);
    bundle = bundle.mount("/rbind", "none", &dir, &["rbind"]).mount("/remount", "none", &dir, &["bind", "remount", "ro"]);
    bundle = bundle.mount("/tmpcopyup", "tmpfs", "t", &["tmpcopyup"]);
    for option in ["idmap", "ridmap"] {
        let mount = json!({"destination": format!("/{option}"), "source": dir, "options": ["rbind", option], "uidMappings": map, "gidMappings": map});
        bundle = bundle.set("/mounts/-", mount);
    }
    for (option, effect) in EFFECTS {
        let target = format!("/{option}");
        bundle = match effect {
            Effect::Word(_) | Effect::Super(_) | Effect::Taken if !option.starts_with("rno") => {
                bundle.mount(&target, "tmpfs", "t", &[option])
            }
            Effect::NoWord(before, _) | Effect::NoSuper(before, _) => bundle.mount(&target, "tmpfs", "t", &[before, option]),
            Effect::NoDeep(before, _) => bundle.mount(&target, "none", &dir, &["rbind", before, option]),
            Effect::Deep(_) | Effect::Propagation(_) | Effect::Taken => bundle.mount(&target, "none", &dir, &["rbind", option]),
            _ => bundle,
        };
    }
    let c = rt.container(bundle.args(["/probe", "report"]));
    let report = c.run_after(&setup).ok().json();
    let at = |target: &str| mount_at(&report, target).clone();
    for (option, effect) in EFFECTS {
        let (one, below) = (format!("/{option}"), format!("/{option}/sub"));
        let has = |target: &str, field: &str, word: &str| has_option(&at(target)[field], word);
        let fits = match effect {
            Effect::Word(word) => has(&one, "options", word),
            Effect::NoWord(_, word) => !has(&one, "options", word),
            Effect::Super(word) => has(&one, "super", word),
            Effect::NoSuper(_, word) => !has(&one, "super", word),
            Effect::Deep(word) => has(&one, "options", word) && has(&below, "options", word),
            Effect::NoDeep(_, word) => !has(&one, "options", word) && !has(&below, "options", word),
            Effect::Propagation(word) => {
                let seen = at(&one)["optional"].as_str().unwrap().to_string();
                seen.starts_with(word) && seen.is_empty() == word.is_empty()
            }
            Effect::Taken | Effect::Own => true,
        };
        assert!(fits, "{option}: {}, below it {}", at(&one), report["mounts"]);
    }
    assert!(has_option(&at("/remount")["options"], "ro"), "{}", at("/remount"));
    let targets: BTreeSet<&str> = report["mounts"].as_array().unwrap().iter().map(|m| m["target"].as_str().unwrap()).collect();
    assert!(targets.contains("/rbind/sub") && !targets.contains("/bind/sub"), "{targets:?}");
    drop(c);
    let c = rt.container(
        rt.bundle().file("/up/of-the-image", "x").mount("/up", "tmpfs", "t", &["tmpcopyup"]).args(["/probe", "try", "list /up"]),
    );
    assert_eq!(c.run().ok().json()["list /up"], "of-the-image");
}

#[test]
fn id_mapped_mounts() {
    let rt = Runtime::new();
    require!(host::is_root(), "root: id maps");
    let enabled = features(&rt).pointer("/linux/mountExtensions/idmap/enabled") == Some(&json!(true));
    let dir = rt.dir().join("source").display().to_string();
    fs::create_dir(&dir).unwrap();
    let setup = format!("mount -t tmpfs t {dir}; mkdir {dir}/sub; mount -t tmpfs t {dir}/sub; chown 1005:1006 {dir} {dir}/sub");
    let map = json!([{"containerID": 1000, "hostID": 2000, "size": 100}]);
    for (option, below) in [("idmap", "1005:1006"), ("ridmap", "2005:2006")] {
        let mount = json!({"destination": "/m", "source": dir, "options": ["rbind", option], "uidMappings": map, "gidMappings": map});
        let c = rt.container(rt.bundle().set("/mounts/-", mount).args(["/probe", "try", "stat /m", "stat /m/sub"]));
        let done = c.run_after(&setup);
        assert_eq!(done.code() == 0, enabled, "idmap.enabled is {enabled}: {done}");
        if enabled {
            let seen = done.json();
            assert!(seen["stat /m"].as_str().unwrap().contains(" 2005:2006 "), "{option}: {seen}");
            assert!(seen["stat /m/sub"].as_str().unwrap().contains(&format!(" {below} ")), "{option}: {seen}");
        }
    }
}

#[test]
fn namespaces() {
    let rt = Runtime::new();
    let features = features(&rt);
    for kind in list(&features, "/linux/namespaces") {
        let name = match kind.as_str() {
            "mount" => "mnt",
            "network" => "net",
            other => other,
        };
        if !host::has_namespace(name) || rt.is_rootless() && matches!(name, "net" | "time") {
            continue;
        }
        let bundle =
            if kind == "user" && !rt.is_rootless() { rt.bundle().user_namespace(100_000) } else { rt.bundle().namespace(&kind, None) };
        let report = rt.report(bundle);
        assert_ne!(report["ns"][name], host::namespace("self", name).as_str(), "{kind}");
    }
}

#[test]
fn capabilities() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: capabilities");
    let all = list(&features(&rt), "/linux/capabilities");
    let last: usize = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    assert!(all.len() > last, "the kernel knows {} capabilities, listed are {all:?}", last + 1);
    let mine = host::capability_bounding_set();
    let held: Vec<&String> = all.iter().enumerate().filter(|(bit, _)| mine & (1 << bit) != 0).map(|(_, name)| name).collect();
    let sets = json!({"bounding": held, "effective": held, "permitted": held, "inheritable": held, "ambient": held});
    let report = rt.report(rt.bundle().set("/process/capabilities", sets));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(report["status"][set], format!("{mine:016x}"), "{set}");
    }
}

#[test]
fn hooks() {
    let rt = Runtime::new();
    let mut listed = list(&features(&rt), "/hooks");
    let mut bundle = rt.bundle();
    let ran = rt.dir().join("hooks");
    fs::create_dir(&ran).unwrap();
    for kind in listed.iter().filter(|k| *k != "startContainer") {
        let file = ran.join(kind).display().to_string();
        bundle = bundle.set(&format!("/hooks/{kind}/-"), json!({"path": "/bin/sh", "args": ["sh", "-c", format!(": >{file}")]}));
    }
    // This one is the container's own program.
    bundle = bundle.writable().set("/hooks/startContainer/-", json!({"path": "/probe", "args": ["probe", "try", "mkdir /startContainer"]}));
    let inside = bundle.rootfs().join("startContainer");
    rt.container(bundle).run().ok();
    let mut found: Vec<String> = fs::read_dir(&ran).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    found.extend(inside.exists().then(|| "startContainer".to_string()));
    found.sort();
    listed.sort();
    assert_eq!(found, listed);
}

/// A filter with each thing by itself is loaded, and the process runs under it.
#[test]
fn seccomp() {
    let rt = Runtime::new();
    require!(!rt.is_rootless(), "root: a listener's descriptor");
    let features = features(&rt);
    let agent = rt.dir().join("agent");
    let listener = UnixListener::bind(&agent).unwrap();
    let run = |what: &str, mut seccomp: Value, notify: bool| {
        if notify {
            seccomp["listenerPath"] = json!(agent);
        }
        let report = rt.report(rt.bundle().set("/linux/seccomp", seccomp));
        assert_eq!(report["status"]["Seccomp"], "2", "{what}");
        if notify {
            drop(listener.accept().unwrap());
        }
    };
    // A call that the probe has no use for.
    let rule = |action: &str| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sethostname"], "action": action}]});
    for action in list(&features, "/linux/seccomp/actions") {
        run(&action, rule(&action), action == "SCMP_ACT_NOTIFY");
    }
    for operator in list(&features, "/linux/seccomp/operators") {
        let mut seccomp = rule("SCMP_ACT_ERRNO");
        seccomp["syscalls"][0]["args"] = json!([{"index": 1, "value": 77, "valueTwo": 77, "op": operator}]);
        run(&operator, seccomp, false);
    }
    for architecture in list(&features, "/linux/seccomp/archs") {
        let mut seccomp = rule("SCMP_ACT_ERRNO");
        seccomp["architectures"] = json!([architecture]);
        run(&architecture, seccomp, false);
    }
    let known = list(&features, "/linux/seccomp/knownFlags");
    for flag in list(&features, "/linux/seccomp/supportedFlags") {
        assert!(known.contains(&flag), "{flag}");
        let notify = flag == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
        let mut seccomp = rule(if notify { "SCMP_ACT_NOTIFY" } else { "SCMP_ACT_ERRNO" });
        seccomp["flags"] = json!([flag]);
        run(&flag, seccomp, notify);
    }
}

#[test]
fn memory_policies() {
    let rt = Runtime::new();
    require!(std::path::Path::new("/proc/self/numa_maps").exists(), "a kernel with NUMA");
    let features = features(&rt);
    let policy = |policy: Value| {
        let bundle = rt.bundle().set("/linux/memoryPolicy", policy).args(["/probe", "try", "read /proc/self/numa_maps"]);
        let done = rt.container(bundle).run();
        let words = if done.code() == 0 { done.json()["read /proc/self/numa_maps"].as_str().unwrap().to_string() } else { String::new() };
        (done, words)
    };
    for mode in list(&features, "/linux/memoryPolicy/modes") {
        let shown = match mode.as_str() {
            "MPOL_DEFAULT" => "default",
            "MPOL_PREFERRED" => "prefer:0",
            "MPOL_BIND" => "bind:0",
            "MPOL_INTERLEAVE" => "interleave:0",
            "MPOL_LOCAL" => "local",
            "MPOL_PREFERRED_MANY" => "prefer (many):0",
            "MPOL_WEIGHTED_INTERLEAVE" => "weighted interleave:0",
            other => panic!("{other}: no effect here"),
        };
        let nodes = if shown.ends_with(":0") { "0" } else { "" };
        let (done, words) = policy(json!({"mode": mode, "nodes": nodes}));
        assert!(words.contains(&format!(" {shown} ")), "{mode}: {done}\n{words}");
    }
    for flag in list(&features, "/linux/memoryPolicy/flags") {
        let shown = match flag.as_str() {
            "MPOL_F_STATIC_NODES" => "bind=static:0",
            "MPOL_F_RELATIVE_NODES" => "bind=relative:0",
            "MPOL_F_NUMA_BALANCING" => "bind=balancing:0",
            other => panic!("{other}: no effect here"),
        };
        let (done, words) = policy(json!({"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]}));
        // A kernel without NUMA balancing refuses the flag.
        if done.stderr.contains("set_mempolicy") && flag.ends_with("BALANCING") {
            continue;
        }
        assert!(words.contains(shown), "{flag}: {done}\n{words}");
    }
}

/// What is enabled and cannot be here is told by name.
#[test]
fn what_the_host_must_have() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "the words are rrun's");
    let features = features(&rt);
    for (field, there, pointer, value, text) in [
        ("apparmor", "/sys/module/apparmor", "/process/apparmorProfile", json!("no-such-profile"), "process.apparmorProfile"),
        ("selinux", "/sys/fs/selinux/enforce", "/process/selinuxLabel", json!("a:b:c:s0"), "process.selinuxLabel"),
        ("intelRdt", "/sys/fs/resctrl/schemata", "/linux/intelRdt", json!({"closID": "x", "l3CacheSchema": "L3:0=1"}), "linux.intelRdt"),
        ("netDevices", "/sys/class/net/no-such", "/linux/netDevices", json!({"no-such": {}}), "linux.netDevices"),
    ] {
        assert_eq!(features["linux"][field]["enabled"], true, "{field}");
        if !std::path::Path::new(there).exists() && !rt.is_rootless() {
            let done = rt.container(rt.bundle().set(pointer, value)).run().exits(1);
            assert!(done.stderr.contains(text), "{field}: {done}");
        }
    }
    for field in ["v1", "v2", "systemd", "systemdUser", "rdma"] {
        assert_eq!(features["linux"]["cgroup"][field], true, "cgroup.{field}");
    }
    for field in ["schemata", "monitoring"] {
        assert_eq!(features["linux"]["intelRdt"][field], true, "intelRdt.{field}");
    }
}
