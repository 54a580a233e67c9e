//! The runtime under test with a state root, a folder and a tag of its own.

use crate::bundle::Bundle;
use crate::call::Call;
use crate::container::Container;
use crate::dir::Dir;
use crate::{host, known, leftovers};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Which program is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Rrun,
    /// The reference.
    Runc,
    /// The other peer.
    Crun,
}

/// The runtime, its state root, and the folder where bundles and output are. When it goes, nothing
/// of what it made may be left.
#[derive(Debug)]
pub struct Runtime {
    /// In the name of everything this test makes.
    pub tag: String,
    /// Global flags of every call.
    pub globals: Vec<String>,
    /// Write a JSON log with every call.
    pub log: Option<PathBuf>,
    /// The ordinary user that calls, instead of the one who runs the tests.
    pub user: Option<u32>,
    dir: Dir,
    calls: AtomicU32,
    containers: AtomicU32,
}

/// Path and kind of the program under test, found once.
pub fn program() -> &'static (PathBuf, Kind) {
    static PROGRAM: OnceLock<(PathBuf, Kind)> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin/rrun");
        let path = std::env::var_os("RRUN").map_or(built, PathBuf::from);
        let path = path.canonicalize().unwrap_or_else(|e| panic!("{}: {e} (run 'make build', or set RRUN)", path.display()));
        let output = Command::new(&path).arg("--version").output().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let kind = match text.split(' ').next() {
            Some("runc") => Kind::Runc,
            Some("crun") => Kind::Crun,
            _ => Kind::Rrun,
        };
        (path, kind)
    })
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime::new()
    }
}

impl Runtime {
    /// A state root nobody else uses.
    pub fn new() -> Runtime {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Dir::new(&tag);
        let (calls, containers) = Default::default();
        // More global flags for a whole run, as `--systemd-cgroup`.
        let globals = std::env::var("RRUN_TEST_GLOBALS").unwrap_or_default().split_whitespace().map(String::from).collect();
        Runtime { tag, globals, log: None, user: None, dir, calls, containers }
    }

    /// The same, driving cgroups through systemd.
    pub fn systemd() -> Runtime {
        let mut rt = Runtime::new();
        rt.globals = vec!["--systemd-cgroup".into()];
        rt
    }

    /// The same, called by an ordinary user with nothing set up. Needs root.
    pub fn rootless(user: u32) -> Runtime {
        let mut rt = Runtime::new();
        rt.user = Some(user);
        std::os::unix::fs::chown(rt.dir(), Some(user), Some(user)).unwrap();
        rt
    }

    /// The kind of program under test.
    pub fn kind(&self) -> Kind {
        program().1
    }

    /// Whether the program under test is known to do otherwise here; see [`known`].
    pub fn differs(&self, what: &str) -> bool {
        known::differs(self.kind(), what)
    }

    /// Whether containers of this runtime are made without root's rights.
    pub fn is_rootless(&self) -> bool {
        self.user.is_some() || !host::is_root()
    }

    /// The folder of this test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The state root.
    pub fn root(&self) -> PathBuf {
        self.dir().join("root")
    }

    /// A call with this state root and the usual global flags.
    pub fn call<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Call {
        let mut globals = vec!["--root".to_string(), self.root().display().to_string()];
        if let Some(log) = &self.log {
            globals.extend(["--log".into(), log.display().to_string(), "--log-format".into(), "json".into()]);
        }
        globals.extend(self.globals.iter().cloned());
        self.bare().args(globals).args(args)
    }

    /// A call without any flag of ours.
    pub fn bare(&self) -> Call {
        let program = &program().0;
        let mut command = match self.user {
            Some(user) => {
                let mut c = Command::new("setpriv");
                c.args(["--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups", "--inh-caps=-all"]).arg(program);
                c.env("HOME", self.dir()).env("XDG_RUNTIME_DIR", self.dir());
                c
            }
            None => Command::new(program),
        };
        command.env("RRUN_TEST", &self.tag).env_remove("NOTIFY_SOCKET");
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        Call::new(command, self.dir().join(format!("call{number}")), self.log.clone())
    }

    /// A call in a mount namespace of its own, after a shell has run `setup` there. What the shell
    /// mounts goes with the runtime (and the container that keeps the namespace's copy).
    pub fn call_after<S: AsRef<str>>(&self, setup: &str, args: impl IntoIterator<Item = S>) -> Call {
        let program = program().0.display().to_string();
        let root = self.root().display().to_string();
        let script = format!("exec unshare --mount --propagation private sh -ec '{setup}\nexec \"$@\"' sh \"$@\"");
        let mut all = vec![program, "--root".into(), root];
        all.extend(self.globals.iter().cloned());
        all.extend(args.into_iter().map(|a| a.as_ref().to_string()));
        self.shell(&script, &all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Whether [`Runtime::in_jail`] can work: as root, with a runtime that needs no libraries there.
    pub fn can_jail(&self) -> bool {
        let dynamic = |program: Vec<u8>| program.windows(8).any(|w| w == b"/ld-linu");
        host::is_root() && self.globals.is_empty() && !dynamic(std::fs::read(&program().0).unwrap())
    }

    /// A shell that runs `script` in a mount namespace of its own, beside a chroot with the runtime: `in_jail ARGS`
    /// calls it there, where /bundle is the container's (`$id`'s) bundle. `mounted`: the chroot is the root of a mount.
    pub fn in_jail(&self, mounted: bool, container: &Container<'_>, script: &str) -> Call {
        let jail = self.dir().join("jail");
        for folder in ["proc", "sys", "dev", "bundle", "state"] {
            std::fs::create_dir_all(jail.join(folder)).unwrap();
        }
        host::write_program(&jail.join("rrun"), &std::fs::read(&program().0).unwrap());
        // Shared, as systemd has a host's mounts: what the runtime unmounts in its copy must stay here.
        let setup = r#"jail=$1; bundle=$2; id=$3
            mount --make-rshared /
            test -z "$4" || mount --bind "$jail" "$jail"
            for d in proc sys dev; do mount --rbind "/$d" "$jail/$d"; done
            mount --bind "$bundle" "$jail/bundle"
            in_jail() { chroot "$jail" /rrun --root /state "$@"; }
            trap 'in_jail delete --force "$id"' EXIT"#;
        let script = format!("{setup}\n{script}");
        let mounted = if mounted { "mounted" } else { "" };
        let args = [&script, "sh", jail.to_str().unwrap(), container.bundle.dir.to_str().unwrap(), &container.id, mounted];
        self.shell("exec unshare --mount --propagation private sh -ec \"$@\"", &args)
    }

    /// `sh -c SCRIPT sh ARGS`: for calls whose descriptors or limits a shell has to set.
    pub fn shell(&self, script: &str, args: &[&str]) -> Call {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).args(args).env("RRUN_TEST", &self.tag);
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        Call::new(command, self.dir().join(format!("call{number}")), self.log.clone())
    }

    /// A bundle with the probe in its root file system that prints a report.
    pub fn bundle(&self) -> Bundle {
        Bundle::new(self)
    }

    /// An id nobody has used.
    pub fn id(&self) -> String {
        format!("rt{}c{}", self.tag, self.containers.fetch_add(1, Ordering::Relaxed))
    }

    /// A container to be made from `bundle`, with a new id.
    pub fn container(&self, bundle: Bundle) -> Container<'_> {
        Container::new(self, bundle, self.id())
    }

    /// Creates a container from `bundle` and starts it.
    pub fn start(&self, bundle: Bundle) -> Container<'_> {
        let container = self.container(bundle);
        container.create().ok();
        container.call(["start"]).ok();
        container
    }

    /// What the probe reports from inside a container of `bundle`, run in the foreground.
    #[track_caller]
    pub fn report(&self, bundle: Bundle) -> Value {
        let done = self.container(bundle).run().ok();
        done.json()
    }

    /// What `probe try ACTIONS` answers from inside a container of `bundle`.
    #[track_caller]
    pub fn tries(&self, bundle: Bundle, actions: &[&str]) -> Value {
        let args = ["/probe", "try"].iter().chain(actions).copied();
        self.report(bundle.args(args))
    }

    /// Everything of this test that is left on the machine.
    pub fn leftovers(&self) -> Vec<String> {
        leftovers::find(&self.tag, &self.root())
    }

    /// Nothing of this test may be left; what a dying process still holds gets two seconds.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let gone = host::wait_until(2, || self.leftovers().is_empty());
        assert!(gone, "left behind: {:#?}", self.leftovers());
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.assert_nothing_left();
        }
    }
}
