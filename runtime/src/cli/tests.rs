//! The command lines that callers send (docker, containerd, Podman, conmon, CRI-O, go-runc).

use super::parse::{Asked, Parsed, parse};
use super::*;
use std::path::Path;

fn line(text: &str) -> (Parsed, Result<Asked>) {
    parse(text.split_whitespace().map(OsString::from))
}

#[track_caller]
fn of(text: &str) -> (Parsed, Parsed) {
    let (globals, asked) = line(text);
    let (command, parsed) = asked.unwrap().unwrap();
    assert!((command.count.0..=command.count.1).contains(&parsed.operands.len()), "{:?}", parsed.operands);
    (globals, parsed)
}

#[track_caller]
fn error(text: &str) -> String {
    format!("{:#}", line(text).1.unwrap_err())
}

fn path(text: &str) -> Option<std::path::PathBuf> {
    Some(Path::new(text).to_owned())
}

#[test]
fn containerd() {
    const GLOBALS: &str = "--root /run/containerd/runc/k8s.io --log /b/log.json --log-format json --systemd-cgroup";
    let (g, p) = of(&format!("{GLOBALS} create --bundle /b --pid-file /b/init.pid --console-socket /s --no-pivot --no-new-keyring abc"));
    assert_eq!(g.path("root"), path("/run/containerd/runc/k8s.io"));
    assert_eq!(convert::log_format(&g).unwrap(), LogFormat::Json);
    assert_eq!(convert::cgroup_manager(&g).unwrap(), CgroupManager::Systemd);
    let create = Create {
        id: "abc".into(),
        bundle: path("/b"),
        pid_file: path("/b/init.pid"),
        console_socket: path("/s"),
        no_pivot: true,
        no_new_keyring: true,
        ..Default::default()
    };
    assert_eq!(convert::create(&p).unwrap(), create);
    let (_, p) = of(&format!("{GLOBALS} exec --process /t/p --console-socket /s --detach --pid-file /t/pid abc"));
    let exec = convert::exec(&p).unwrap();
    assert_eq!((exec.id.as_str(), exec.process, exec.detach, exec.pid_file), ("abc", path("/t/p"), true, path("/t/pid")));
    for (text, all, signal) in [("kill abc 9", false, 9), ("kill --all abc 15", true, 15), ("kill abc", false, 15)] {
        assert_eq!(convert::kill(&of(text).1).unwrap(), Kill { id: "abc".into(), signal, all });
    }
    assert!(convert::delete(&of("delete --force abc").1).unwrap().force);
    assert!(convert::ps(&of("ps --format json abc").1).unwrap().json);
    let update = convert::update(&of("update --resources=- abc").1).unwrap();
    assert_eq!((update.id.as_str(), update.resources), ("abc", path("-")));
    let (_, p) = of(
        "checkpoint --image-path /i --work-path /w --parent-path ../d --tcp-established --ext-unix-sk --shell-job --file-locks --empty-ns network --leave-running abc",
    );
    assert_eq!((p.path("image-path"), p.on("leave-running")), (path("/i"), true));
    let (_, p) = of("restore --image-path /i --detach --pid-file /p --console-socket /s --no-pivot -no-subreaper --bundle /b abc");
    assert!(p.on("no-subreaper"));
    of("start abc");
    of("pause abc");
    of("resume abc");
    of("features");
}

#[test]
fn go_runc() {
    assert!(convert::list(&of("list --format=json").1).unwrap().json);
    let ps = convert::ps(&of("ps --format table abc -ef --forest").1).unwrap();
    assert_eq!((ps.json, ps.options), (false, vec!["-ef".to_owned(), "--forest".to_owned()]));
    let (g, p) = of("--rootless=true run --pidfd-socket /p --bundle /b -no-subreaper --preserve-fds=3 abc");
    assert_eq!(convert::rootless(&g).unwrap(), Some(true));
    let run = convert::run(&p).unwrap();
    assert_eq!((run.create.pidfd_socket, run.no_subreaper, run.create.preserve_fds), (path("/p"), true, 3));
    assert_eq!(convert::rootless(&of("--rootless auto state abc").0).unwrap(), None);
    of("state abc");
    assert!(of("events --stats abc").1.on("stats"));
    assert_eq!(of("events --interval=5s abc").1.text("interval").unwrap().as_deref(), Some("5s"));
    assert!(line("--version").0.on("version"));
}

#[test]
fn conmon() {
    let (g, p) = of("--systemd-cgroup --log-format=json create --bundle /b --pid-file /p --preserve-fds 2 --console-socket /s abc");
    assert!(g.on("systemd-cgroup"));
    assert_eq!(convert::create(&p).unwrap().preserve_fds, 2);
    let exec = convert::exec(&of("exec --pid-file /p --process /spec --detach --preserve-fds 1 --console-socket /s abc").1).unwrap();
    assert!(exec.args.is_empty() && exec.process.is_some());
}

#[test]
fn podman_and_crio() {
    assert_eq!(convert::cgroup_manager(&of("--cgroup-manager disabled state a").0).unwrap(), CgroupManager::Disabled);
    assert_eq!(convert::update(&of("update --resources=/f abc").1).unwrap().resources, path("/f"));
    assert_eq!(convert::update(&of("update --resources - abc").1).unwrap().resources, path("-"));
    assert!(convert::kill(&of("kill -a abc 9").1).unwrap().all);
    of("exec --process /f abc");
    // Podman probes a runtime with such a line and looks for the text.
    assert_eq!(error("restore --lsm-mount-context"), "flag needs an argument: -lsm-mount-context");
    of("restore --lsm-profile=selinux:l --lsm-mount-context=c --tcp-close --file-locks --image-path /i abc");
    assert_eq!(error("create --bundle"), "flag needs an argument: -bundle");
}

#[test]
fn flags_around_operands() {
    let update = convert::update(&of("update abc --memory 1g -cpu-quota=5000").1).unwrap();
    assert_eq!(update.values, [("memory", "1g".to_owned()), ("cpu-quota", "5000".to_owned())]);
    assert!(convert::delete(&of("delete abc -f").1).unwrap().force);
    let exec = convert::exec(&of("exec -t -u 1:2 -e A=1,2 -e B -g 5 --cap CAP_KILL abc ls -la --cwd /x").1).unwrap();
    assert_eq!(exec.args, ["ls", "-la", "--cwd", "/x"]);
    assert_eq!((exec.user, exec.tty, exec.cwd), (Some((1, Some(2))), true, None));
    assert_eq!((exec.env, exec.additional_gids), (vec!["A=1,2".to_owned(), "B".to_owned()], vec![5]));
    assert_eq!(convert::exec(&of("exec -- abc -x").1).unwrap().args, ["-x"]);
    let kill = of("kill abc KILL").1;
    assert_eq!(convert::kill(&kill).unwrap().signal, 9);
    assert!(convert::exec(&of("exec -td abc sh").1).unwrap().detach);
    assert_eq!(convert::exec(&of("exec -tu5 abc sh").1).unwrap().user, Some((5, None)));
    assert_eq!(convert::create(&of("create -b/x abc").1).unwrap().bundle, path("/x"));
    assert_eq!(of("state abc --root /r").0.path("root"), path("/r"));
}

#[test]
fn durations() {
    let interval = |text: &str| convert::events(&of(&format!("events --interval {text} abc")).1).map(|e| e.interval.as_millis()).ok();
    for (text, ms) in [("100ms", 100), ("5s", 5000), ("1m0.5s", 60_500), ("1h", 3_600_000), ("0", 0), ("-1s", 0), ("1500us", 1)] {
        assert_eq!(interval(text), Some(ms), "{text}");
    }
    for text in ["5", "s", "1x", "1.2.3s", "."] {
        assert_eq!(interval(text), None, "{text}");
    }
    assert_eq!(convert::events(&of("events abc --stats").1).unwrap().interval.as_secs(), 5);
}

#[test]
fn switches_with_values() {
    let exec = |text| convert::exec(&of(text).1).unwrap();
    assert_eq!(exec("exec --no-new-privs=false abc x").no_new_privs, Some(false));
    assert_eq!(exec("exec --no-new-privs abc x").no_new_privs, Some(true));
    assert_eq!(exec("exec abc x").no_new_privs, None);
    assert!(!exec("exec --detach --detach=F abc x").detach);
    assert_eq!(error("exec --detach=maybe abc x"), "invalid boolean value \"maybe\" for -detach: parse error");
}

#[test]
fn empty_values_count_as_absent() {
    let args = ["exec", "--pid-file", "", "--apparmor=", "abc", ""].map(OsString::from);
    let exec = convert::exec(&parse(args.into_iter()).1.unwrap().unwrap().1).unwrap();
    assert_eq!((exec.pid_file, exec.apparmor, exec.args), (None, None, vec![String::new()]));
}

#[test]
fn mistakes() {
    assert_eq!(error("--bogus state a"), "flag provided but not defined: -bogus");
    assert_eq!(error("create --bogus a"), "flag provided but not defined: -bogus");
    assert_eq!(error("foo"), "No help topic for 'foo'");
    assert_eq!(exit_code(&line("foo").1.unwrap_err()), 3);
    assert_eq!(error("--root"), "flag needs an argument: -root");
    assert!(line("").1.unwrap().is_none());
    assert!(convert::create(&of("create --preserve-fds -1 a").1).is_err());
    assert!(convert::create(&of("create --preserve-fds x a").1).is_err());
    assert!(convert::exec(&of("exec -u root a sh").1).is_err());
    assert!(convert::exec(&of("exec a").1).is_err());
    assert!(convert::kill(&of("kill a NOSUCH").1).is_err());
    assert!(convert::list(&of("list -f yaml").1).is_err());
}

#[test]
fn a_wrong_command_still_has_its_log() {
    let (globals, asked) = line("--log /l --log-format json create --bogus");
    assert!(asked.is_err());
    assert_eq!(globals.path("log"), path("/l"));
}

#[test]
fn names() {
    assert_eq!(name("/usr/bin/runc"), "runc");
    assert_eq!(name("runc"), "runc");
    assert_eq!(name("/usr/bin/rrun"), "rrun");
}

#[test]
fn the_table_has_no_name_twice() {
    let tables = table::COMMANDS.iter().map(|c| c.flags).chain([table::GLOBAL_FLAGS]);
    for flags in tables {
        for (i, flag) in flags.iter().enumerate() {
            let same = |f: &table::Flag| f.name == flag.name || f.letter.is_some() && f.letter == flag.letter;
            assert!(!flags[i + 1..].iter().any(same), "--{}", flag.name);
        }
    }
    for (i, command) in table::COMMANDS.iter().enumerate() {
        assert!(table::COMMANDS[i + 1..].iter().all(|c| c.name != command.name));
    }
}
