//! `mounts add` and `mounts remove`: mounts of a container that is there already.

use serde_json::{Value, json};
use std::fs;
use tests::runtime::Kind;
use tests::{Container, Done, Runtime, host, require};

const SLEEP: [&str; 2] = ["/probe", "sleep"];

fn change(c: &Container, action: &str, list: &Value) -> Done {
    c.rt.call(["mounts", action, &c.id, "-"]).input(&list.to_string()).run()
}

/// What is mounted in the container, as its own process sees it: `TARGET OPTIONS`.
fn mounted(c: &Container) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", c.pid())).unwrap();
    text.lines().map(|line| line.split(' ').skip(4).take(2).collect::<Vec<_>>().join(" ")).collect()
}

/// A folder of the host with a file and a folder in it.
fn source(rt: &Runtime) -> String {
    let dir = rt.dir().join("source");
    fs::create_dir_all(dir.join("folder")).unwrap();
    fs::write(dir.join("file"), "from the host").unwrap();
    dir.display().to_string()
}

fn bind(destination: &str, source: &str, options: &[&str]) -> Value {
    let options: Vec<&str> = ["rbind"].iter().chain(options).copied().collect();
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

#[test]
fn what_is_added_is_there_and_what_is_removed_is_gone() {
    let rt = Runtime::new();
    require!(rt.kind() != Kind::Runc, "crun and rrun have it");
    let source = source(&rt);
    let c = rt.start(rt.bundle().writable().folder("/there").args(SLEEP));
    let before = mounted(&c);
    let list = json!([
        bind("/there", &source, &["ro", "nosuid"]),
        bind("/new/file", &format!("{source}/file"), &[]),
        {"destination": "/new/memory", "type": "tmpfs", "source": "tmpfs", "options": ["noexec", "size=64k"]},
        bind("/there/folder", &source, &["rro"]),
    ]);
    change(&c, "add", &list).ok();
    let seen = c.tries(&[
        "read /there/file",
        "create /there/file x",
        "read /new/file",
        "write /new/file changed",
        "create /new/memory/x y",
        "create /there/folder/x y",
    ]);
    assert_eq!(seen["read /there/file"], "from the host");
    assert_eq!(seen["create /there/file x"], "EROFS");
    assert_eq!(seen["read /new/file"], "from the host");
    assert_eq!(seen["write /new/file changed"], "ok");
    assert_eq!(seen["create /new/memory/x y"], "ok");
    assert_eq!(seen["create /there/folder/x y"], "EROFS");
    let now = mounted(&c);
    assert_eq!(now.len(), before.len() + 4);
    let options = |target: &str| now.iter().find_map(|m| m.strip_prefix(&format!("{target} "))).unwrap().to_string();
    // More may be locked where the tests run in a user namespace.
    for (target, wanted) in [("/there", "ro"), ("/there", "nosuid"), ("/new/memory", "rw"), ("/new/memory", "noexec")] {
        assert!(options(target).split(',').any(|option| option == wanted), "{target}: {}, not {wanted}", options(target));
    }
    // From a file, too; in the opposite order, because the last is inside the first.
    let file = rt.dir().join("list.json");
    fs::write(&file, json!([list[3], list[2], list[1], list[0]]).to_string()).unwrap();
    rt.call(["mounts", "remove", &c.id, file.to_str().unwrap()]).ok();
    assert_eq!(mounted(&c), before);
    let said = change(&c, "remove", &json!([list[0]]));
    assert_ne!(said.code(), 0, "{said}");
    if rt.kind() == Kind::Rrun {
        assert!(said.stderr.contains("mounts[0] (/there): destination: nothing is mounted there"), "{said}");
    }
}

#[test]
fn all_of_a_list_or_nothing() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "rrun's promise");
    let source = source(&rt);
    let c = rt.start(rt.bundle().writable().folder("/there").file("/file", "").args(SLEEP));
    let before = mounted(&c);
    let good = [bind("/there", &source, &[]), bind("/made/below/here", &source, &[]), bind("/made/file", &format!("{source}/file"), &[])];
    for (bad, text) in [
        (bind("/x", &format!("{source}/missing"), &[]), "mounts[3] (/x, bind from"),
        (bind("/file", &source, &[]), "the source is a folder, the destination is a file"),
        (bind("/file/x/y", &source, &[]), "mounts[3] (/file/x/y, bind from"),
        (json!({"destination": "/y/z", "type": "tmpfs", "source": "t", "options": ["size=lots"]}), "mounts[3] (/y/z, tmpfs)"),
        (json!({"destination": "/z", "type": "no-such-type", "source": "t"}), "no-such-type"),
    ] {
        let said = change(&c, "add", &json!([good[0], good[1], good[2], bad])).exits(1);
        assert!(said.stderr.contains(text), "{text}: {said}");
        assert_eq!(mounted(&c), before, "{text}");
        for made in ["made", "x", "y", "z"] {
            assert!(!c.bundle.rootfs().join(made).exists(), "{text}: /{made} was left");
        }
    }
    // The same for removal: here the last entry names what is no mount.
    change(&c, "add", &json!([good[0], good[1]])).ok();
    let with = mounted(&c);
    let said = change(&c, "remove", &json!([good[0], good[1], {"destination": "/file"}])).exits(1);
    assert!(said.stderr.contains("mounts[2] (/file): destination: nothing is mounted there"), "{said}");
    assert_eq!(mounted(&c), with);
    change(&c, "remove", &json!([good[0], good[1]])).ok();
    assert_eq!(mounted(&c), before);
}

#[test]
fn what_a_container_needs_stays() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "the words are rrun's");
    let source = source(&rt);
    let c = rt.start(rt.bundle().writable().symlink("/link", "/tmp").args(SLEEP));
    let before = mounted(&c);
    for (destination, text) in [
        ("/", "root"),
        ("/proc", "the container needs"),
        ("/sys", "the container needs"),
        ("/dev/pts", "the container needs"),
        ("/x/../dev", "the container needs"),
        ("/proc/sys", "inside /proc"),
        ("/proc/self/attr", "inside /proc"),
        ("/link", "a symbolic link is on the way"),
        ("/link/x", "a symbolic link is on the way"),
    ] {
        let said = change(&c, "add", &json!([bind(destination, &source, &[])])).exits(1);
        assert!(said.stderr.contains(text), "add {destination}: {said}");
        let said = change(&c, "remove", &json!([{"destination": destination}])).exits(1);
        let text = if destination == "/" { "the container needs" } else { text };
        assert!(said.stderr.contains(text), "remove {destination}: {said}");
    }
    let said = change(&c, "remove", &json!([{"destination": "/sys/firmware"}])).exits(1);
    assert!(said.stderr.contains("linux.maskedPaths"), "{said}");
    for (mount, text) in [
        (json!({"destination": "/p", "type": "proc"}), "type: a procfs"),
        (json!({"destination": "/c", "type": "cgroup"}), "type: cgroups"),
        (json!({"type": "tmpfs"}), "destination"),
        (bind("/x", &source, &["colour"]), "unknown option"),
    ] {
        let said = change(&c, "add", &json!([mount])).exits(1);
        assert!(said.stderr.contains(text), "{text}: {said}");
    }
    for list in [json!({"mounts": []}), json!("x"), json!([1])] {
        change(&c, "add", &list).exits(1);
    }
    rt.call(["mounts", "list", &c.id, "-"]).run().exits(1);
    rt.call(["mounts", "add", &c.id]).run().exits(1);
    rt.call(["mounts", "add", &c.id, "/no/such/file"]).run().exits(1);
    rt.call(["mounts", "add", "no-such-container", "-"]).input("[]").run().exits(1);
    change(&c, "add", &json!([])).ok();
    assert_eq!(mounted(&c), before);
}

#[test]
fn in_every_state() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "the words are rrun's");
    let source = source(&rt);
    let list = json!([bind("/there", &source, &[])]);
    let c = rt.container(rt.bundle().folder("/there").args(SLEEP));
    c.create().ok();
    change(&c, "add", &list).ok();
    c.call(["start"]).ok();
    assert_eq!(c.tries(&["read /there/file"])["read /there/file"], "from the host");
    if c.call(["pause"]).run().code() == 0 {
        change(&c, "remove", &list).ok();
        change(&c, "add", &list).ok();
        c.call(["resume"]).ok();
        assert_eq!(c.tries(&["read /there/file"])["read /there/file"], "from the host");
    }
    c.kill("KILL").ok();
    c.wait_status("stopped");
    for action in ["add", "remove"] {
        let said = change(&c, action, &list).exits(1);
        assert!(said.stderr.contains("container not running"), "{said}");
    }
    c.delete().ok();
    require!(!rt.is_rootless(), "root: a container in the host's mount namespace");
    let bundle = rt.bundle().writable().without_namespace("mount").unset("/linux/maskedPaths").unset("/linux/readonlyPaths");
    let c = rt.start(bundle.set("/mounts", json!([])).args(SLEEP));
    let said = change(&c, "add", &list).exits(1);
    assert!(said.stderr.contains("no mount namespace of its own"), "{said}");
}

#[test]
fn in_a_user_namespace() {
    let rt = Runtime::new();
    require!(host::is_root() && rt.kind() == Kind::Rrun, "root: ids of others");
    let source = source(&rt);
    // Only root gets there.
    fs::set_permissions(rt.dir().join("source"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let c = rt.start(rt.bundle().user_namespace(100_000).writable().args(SLEEP));
    let list = json!([
        bind("/plain", &format!("{source}/file"), &[]),
        bind("/mapped", &source, &["idmap"]),
        {"destination": "/memory", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"]},
    ]);
    let added = change(&c, "add", &list);
    if added.stderr.contains("cannot be id-mapped") {
        return host::skip("a file system that can be id-mapped");
    }
    added.ok();
    let seen = c.tries(&["stat /plain", "stat /mapped", "read /mapped/file", "create /memory/x y", "stat /memory"]);
    assert!(seen["stat /plain"].as_str().unwrap().contains("65534:65534"), "{seen}");
    assert!(seen["stat /mapped"].as_str().unwrap().starts_with("dir 0700 0:0"), "{seen}");
    assert_eq!(seen["read /mapped/file"], "from the host");
    assert_eq!(seen["create /memory/x y"], "ok");
    assert!(seen["stat /memory"].as_str().unwrap().starts_with("dir 0700 0:0"), "{seen}");
    change(&c, "remove", &list).ok();
}

/// What the host has mounted read-only stays so for the root of a user namespace, who may mount.
#[test]
fn flags_of_the_host_s_mounts_are_locked_in_a_user_namespace() {
    let rt = Runtime::new();
    require!(host::is_root() && rt.kind() == Kind::Rrun, "root: a read-only mount");
    let source = source(&rt);
    let c = rt.container(rt.bundle().privileged().user_namespace(100_000).args(SLEEP));
    let list = rt.dir().join("list.json");
    fs::write(&list, json!([bind("/there", &source, &[])]).to_string()).unwrap();
    c.create().ok();
    c.call(["start"]).ok();
    rt.call_after(
        &format!("mount --bind {source} {source}; mount -o remount,bind,ro {source}"),
        ["mounts", "add", &c.id, list.to_str().unwrap()],
    )
    .ok();
    // MS_REMOUNT | MS_BIND, without MS_RDONLY.
    let seen = c.tries(&["create /there/x y", "remount /there", "create /there/x y "]);
    assert_eq!((&seen["create /there/x y"], &seen["remount /there"]), (&json!("EROFS"), &json!("EPERM")), "{seen}");
    assert_eq!(seen["create /there/x y "], "EROFS");
}

#[test]
fn by_an_ordinary_user() {
    require!(host::is_root(), "root: to become another user");
    let rt = Runtime::rootless(1234);
    require!(rt.kind() == Kind::Rrun, "rrun's rootless containers");
    let source = source(&rt);
    let c = rt.start(rt.bundle().writable().folder("/there").args(SLEEP));
    let list = json!([bind("/there", &source, &["ro"]), {"destination": "/memory", "type": "tmpfs", "source": "tmpfs"}]);
    let file = rt.dir().join("list.json");
    fs::write(&file, list.to_string()).unwrap();
    let call = |action| rt.call(["mounts", action, &c.id, file.to_str().unwrap()]).ok();
    let before = mounted(&c);
    call("add");
    let seen = c.tries(&["read /there/file", "create /there/x y", "create /memory/x y"]);
    assert_eq!(seen["read /there/file"], "from the host");
    assert_eq!((&seen["create /there/x y"], &seen["create /memory/x y"]), (&json!("EROFS"), &json!("ok")));
    call("remove");
    assert_eq!(mounted(&c), before);
}

#[test]
fn in_a_chroot() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun && rt.can_jail(), "root and a static runtime: chroot");
    let script = r#"
        in_jail run -d --bundle /bundle "$id" </dev/null >/dev/null 2>&1
        echo '[{"destination": "/tmp", "type": "bind", "source": "/bundle", "options": ["bind"]}]' >"$jail/list"
        in_jail mounts add "$id" /list
        in_jail exec "$id" /probe try 'stat /tmp/config.json' | grep '"file'
        in_jail mounts remove "$id" /list
        in_jail exec "$id" /probe try 'stat /tmp/config.json' | grep ENOENT"#;
    for mounted in [true, false] {
        let c = rt.container(rt.bundle().args(SLEEP));
        rt.in_jail(mounted, &c, script).ok();
        rt.assert_nothing_left();
    }
}

#[test]
fn a_kernel_that_cannot_is_told() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun && host::is_root(), "root: a filter");
    let c = rt.start(rt.bundle().folder("/there").args(SLEEP));
    let before = mounted(&c);
    let list = rt.dir().join("list.json");
    fs::write(&list, json!([bind("/there", "/etc", &[]), {"destination": "/tmp", "type": "tmpfs", "source": "t"}]).to_string()).unwrap();
    let (tool, program, root) = (env!("CARGO_BIN_EXE_fake-enosys"), &tests::runtime::program().0, rt.root());
    for calls in ["mount_setattr", "mount_setattr,open_tree,move_mount,fsopen"] {
        let args =
            [tool, calls, program.to_str().unwrap(), "--root", root.to_str().unwrap(), "mounts", "add", &c.id, list.to_str().unwrap()];
        rt.shell("exec \"$@\"", &args).fails(1, &["needs Linux 5.12"]);
        assert_eq!(mounted(&c), before);
    }
}

#[test]
fn tmpcopyup_and_modes() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "rrun's");
    let c = rt.start(rt.bundle().file("/there/file", "of the image").args(SLEEP));
    let list = json!([{"destination": "/there", "type": "tmpfs", "source": "t", "options": ["tmpcopyup", "ro"]}]);
    change(&c, "add", &list).ok();
    let seen = c.tries(&["read /there/file", "create /there/x y"]);
    assert_eq!((&seen["read /there/file"], &seen["create /there/x y"]), (&json!("of the image"), &json!("EROFS")));
}

/// Several commands at once: each list is there, and each is known.
#[test]
fn many_at_once() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "rrun's");
    let source = source(&rt);
    let c = rt.start(rt.bundle().writable().args(SLEEP));
    let before = mounted(&c).len();
    let lists: Vec<Value> = (0..8).map(|i| json!([bind(&format!("/many/{i}"), &source, &[])])).collect();
    let calls =
        |action: &str| lists.iter().map(|l| rt.call(["mounts", action, &c.id, "-"]).input(&l.to_string()).spawn()).collect::<Vec<_>>();
    calls("add").into_iter().for_each(|call| drop(call.wait().ok()));
    assert_eq!(mounted(&c).len(), before + 8);
    calls("remove").into_iter().for_each(|call| drop(call.wait().ok()));
    assert_eq!(mounted(&c).len(), before);
}

/// CRIU is told of them; a restore finds them in the bundle's configuration.
#[test]
fn a_checkpoint_knows_of_them() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun && host::is_root() && host::busybox().is_some(), "root, a static busybox");
    let checked = std::process::Command::new("criu").arg("check").stdin(std::process::Stdio::null()).output();
    require!(checked.is_ok_and(|output| output.status.success()), "a criu that 'criu check' is content with");
    let source = source(&rt);
    let bundle = rt.bundle().shell().folder("/there").args(["/bin/sh", "-c", "while :; do sleep 0.1; done"]);
    let mut c = rt.start(bundle);
    change(&c, "add", &json!([bind("/there", &source, &["ro"])])).ok();
    let images = rt.dir().join("images").display().to_string();
    c.call(["checkpoint", "--image-path", &images]).ok();
    c.bundle.config["mounts"].as_array_mut().unwrap().push(bind("/there", &source, &["ro"]));
    let id = c.id.clone();
    c.bundle.write(&rt, &id);
    let dir = c.bundle.dir.display().to_string();
    c.call(["restore", "--detach", "--bundle", &dir, "--image-path", &images]).ok();
    assert_eq!(c.exec(&[], &["/bin/cat", "/there/file"]).ok().stdout, "from the host");
    c.end();
}
