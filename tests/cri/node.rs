//! A node: a daemon with everything of its own, in mount, PID and network namespaces of their own. Their init lives on
//! while the daemon, monitors, or both are killed and started again. All of it goes when the fixture does, or the test.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rrun_proto::v1;
use tests::host::{busybox, find, wait_until};

use crate::client::Cri;
use crate::image;

/// Why a test cannot run here, where it cannot.
pub(crate) fn lacking() -> Option<String> {
    if !tests::host::is_root() {
        return Some("the daemon needs root".into());
    }
    if busybox().is_none() {
        return Some("no static busybox".into());
    }
    let programs = ["unshare", "nsenter", "ip"];
    programs.into_iter().find(|name| find(name).is_none()).map(|name| format!("no program {name}"))
}

/// Ends the test as skipped where a node cannot be made.
#[macro_export]
macro_rules! node_or_skip {
    ($node:expr) => {{
        if let Some(reason) = $crate::node::lacking() {
            tests::host::skip(&reason);
            return;
        }
        $node
    }};
}

/// Runs the node's init for as long as our end of its input is open, anew for every line; then removes all of it.
const GUARD: &str = r#"
trap '' HUP INT TERM
start() { rm -f "$dir/up"; unshare --mount --pid --net --fork --kill-child --mount-proc /bin/sh -c "$init" init "$dir" </dev/null & u=$!; }
end() { kill -9 $u; wait $u; } 2>/dev/null
cgroups() {
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    left=$(find /sys/fs/cgroup -maxdepth 3 -name "$name" -prune 2>/dev/null)
    [ -n "$left" ] || break
    for cgroup in $left; do find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null; done
    sleep 0.1
done
}
dir=$1 name=$2 init=$3
start
while read -r _; do end; cgroups; start; done
end
cgroups
[ -n "$RRUN_TEST_KEEP" ] || rm -rf "$dir"
"#;

/// Waits as process 1, reaping whatever comes to it.
const INIT: &str = r#"
# A user namespace may mount procfs where a whole one is visible.
mkdir -p "$1/by-test-proc" && mount -t proc proc "$1/by-test-proc"
mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
ip link set lo up
mount --bind "$1/shared" "$1/shared" && mount --make-shared "$1/shared"
# Where the monitor looks for programs first.
[ ! -e "$1/sbin/criu" ] || mount -t overlay -o "lowerdir=$1/sbin:/usr/local/sbin" none /usr/local/sbin
: >"$1/up"
while :; do sleep 31536000; done
"#;

/// How pods get addresses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Network {
    /// By a script that gives addresses out of a counter and makes no device: cheap.
    Cheap,
    /// By the reference plugins bridge, host-local and portmap.
    Bridge,
}

/// The fixture.
pub(crate) struct Node {
    dir: PathBuf,
    name: String,
    guard: Mutex<Child>,
    daemon: Mutex<Option<Daemon>>,
    cri: Mutex<Cri>,
    starts: AtomicU32,
}

struct Daemon {
    nsenter: Child,
    pid: Pid,
}

/// Program `name`: as `variable` says, else that of `make build`.
pub(crate) fn program(variable: &str, name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin").join(name);
    let path = std::env::var_os(variable).map_or(built, PathBuf::from);
    path.canonicalize().unwrap_or_else(|error| panic!("{}: {error} (run 'make build', or set {variable})", path.display()))
}

impl Node {
    /// The node that tests share which do not disturb each other.
    pub(crate) fn shared() -> &'static Node {
        static NODE: OnceLock<Node> = OnceLock::new();
        NODE.get_or_init(|| Node::new(Network::Cheap))
    }

    /// A node with a running daemon and its images.
    pub(crate) fn new(network: Network) -> Node {
        Node::with_settings(network, "")
    }

    /// The same with more settings (TOML).
    pub(crate) fn with_settings(network: Network, settings: &str) -> Node {
        let name = format!("rrun-cri-test-{}-{}", std::process::id(), crate::client::unique());
        let dir = std::env::temp_dir().canonicalize().unwrap().join(&name);
        for folder in ["lib", "run", "net.d", "bin", "cni", "ipam", "netns", "logs", "shared", "cdi"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        if let Some(criu) = find("criu") {
            fs::create_dir(dir.join("sbin")).unwrap();
            std::os::unix::fs::symlink(criu, dir.join("sbin/criu")).unwrap();
        }
        let node = Node {
            guard: Mutex::new(guard(&dir, &name)),
            cri: Mutex::new(Cri::new(&dir.join("cri.sock"))),
            daemon: Mutex::default(),
            starts: AtomicU32::new(0),
            dir,
            name,
        };
        node.write_settings(settings);
        node.set_network(network);
        node.wait_for_init();
        node.load_images();
        node.start_daemon(&[]);
        node
    }

    /// Its folder, which it sees as the host does.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name, which is that of the cgroup of all its pods.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A client of the daemon that runs now.
    pub(crate) fn cri(&self) -> Cri {
        self.cri.lock().unwrap().clone()
    }

    fn write_settings(&self, more: &str) {
        let dir = self.dir.display();
        let runc = find("runc").unwrap_or("runc".into());
        let text = format!(
            r#"
root = "{dir}/lib"
state = "{dir}/run"
socket = "{dir}/cri.sock"
monitor = "{monitor}"
log_level = "info,rrun_cri=debug"
cgroup_driver = "cgroupfs"
cdi_dirs = ["{dir}/cdi"]
{more}
[runtimes.rrun]
path = "{rrun}"
[runtimes.runc]
path = "{runc}"
[cni]
conf_dir = "{dir}/net.d"
bin_dirs = ["{dir}/bin", "/opt/cni/bin", "/usr/lib/cni"]
cache_dir = "{dir}/cni"
netns_dir = "{dir}/netns"
timeout_seconds = 5
[nri]
socket = "{dir}/nri.sock"
plugin_dir = "{dir}/nri"
plugin_config_dir = "{dir}/nri-config"
"#,
            monitor = program("RRUN_MONITOR", "rrun-monitor").display(),
            rrun = program("RRUN", "rrun").display(),
            runc = runc.display(),
        );
        fs::write(self.dir.join("config.toml"), text).unwrap();
    }

    /// Changes how pods get addresses.
    pub(crate) fn set_network(&self, network: Network) {
        let dir = self.dir.display();
        let list = match network {
            Network::Cheap => {
                self.write_plugin("cheap", &CHEAP.replace("@DIR@", &dir.to_string()));
                r#"{"cniVersion":"1.0.0","name":"cheap","plugins":[{"type":"cheap"}]}"#.to_owned()
            }
            Network::Bridge => format!(
                r#"{{"cniVersion":"1.0.0","name":"net","plugins":[
                {{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
                 "ipam":{{"type":"host-local","dataDir":"{dir}/ipam","ranges":[[{{"subnet":"10.66.0.0/24"}}]],
                 "routes":[{{"dst":"0.0.0.0/0"}}]}}}},
                {{"type":"portmap","capabilities":{{"portMappings":true}},"snat":true}}]}}"#
            ),
        };
        fs::write(self.dir.join("net.d/10-net.conflist"), list).unwrap();
    }

    /// A CNI plugin that is a shell script.
    pub(crate) fn write_plugin(&self, name: &str, text: &str) {
        let (path, new) = (self.dir.join("bin").join(name), self.dir.join("bin").join(format!(".{name}")));
        tests::host::write_program(&new, text.as_bytes());
        fs::rename(new, path).unwrap();
    }

    fn load_images(&self) {
        let layout = self.dir.join("layout");
        image::write_layout(&layout, &busybox().unwrap());
        self.load(&layout);
    }

    /// Takes the images of a layout into the store, while no daemon runs; the layout goes.
    #[track_caller]
    pub(crate) fn load(&self, layout: &Path) {
        let mut load = self.enter(&program("RRUN_CRI", "rrun-cri"));
        let load = load.arg("--config").arg(self.dir.join("config.toml")).arg("load").arg(layout).output().unwrap();
        assert!(load.status.success(), "load: {}", String::from_utf8_lossy(&load.stderr));
        fs::remove_dir_all(layout).unwrap();
    }

    /// A program in the node's namespaces.
    pub(crate) fn enter(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.init().to_string(), "-m", "-p", "-n", "--"]).arg(program);
        command
    }

    /// What a shell script in the node's namespaces prints; it must succeed.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        let done = self.enter(Path::new("/bin/sh")).args(["-ec", script]).output().unwrap();
        let (out, errors) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(done.status.success(), "{script}: {out}{errors}");
        out.trim_end().to_owned()
    }

    /// Process 1 of the node, as the host numbers it.
    pub(crate) fn init(&self) -> i32 {
        let unshare = child(self.guard.lock().unwrap().id() as i32).expect("the guard's child");
        child(unshare).expect("the node's init")
    }

    fn wait_for_init(&self) {
        assert!(wait_until(20, || self.dir.join("up").exists()), "the node's namespaces are not there");
    }

    /// Starts the daemon with these variables in its environment and waits until it serves.
    #[track_caller]
    pub(crate) fn start_daemon(&self, variables: &[(&str, &str)]) {
        let log = File::options().create(true).append(true).open(self.dir.join("daemon.log")).unwrap();
        let mut command = self.enter(&program("RRUN_CRI", "rrun-cri"));
        command.arg("--config").arg(self.dir.join("config.toml")).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.envs(variables.iter().copied());
        let nsenter = command.spawn().unwrap();
        let mut pid = None;
        assert!(
            wait_until(10, || {
                pid = child(nsenter.id() as i32);
                pid.is_some()
            }),
            "the daemon does not start\n{}",
            self.log_tail()
        );
        *self.daemon.lock().unwrap() = Some(Daemon { nsenter, pid: Pid::from_raw(pid.unwrap()) });
        *self.cri.lock().unwrap() = Cri::new(&self.dir.join("cri.sock"));
        self.starts.fetch_add(1, Ordering::Relaxed);
        let serves = wait_until(30, || self.cri().version(v1::VersionRequest::default()).is_ok());
        assert!(serves, "the daemon does not serve\n{}", self.log_tail());
    }

    /// How often the daemon was started.
    pub(crate) fn starts(&self) -> u32 {
        self.starts.load(Ordering::Relaxed)
    }

    /// Whether the daemon has ended, or is about to: its connection may break a moment before.
    pub(crate) fn daemon_has_ended(&self) -> bool {
        let mut daemon = self.daemon.lock().unwrap();
        let Some(daemon) = daemon.as_mut() else { return true };
        wait_until(1, || daemon.nsenter.try_wait().unwrap().is_some())
    }

    /// Kills the daemon with a signal and waits for its end.
    pub(crate) fn kill_daemon(&self, signal: Signal) {
        let Some(mut daemon) = self.daemon.lock().unwrap().take() else { return };
        let _ = kill(daemon.pid, signal);
        daemon.nsenter.wait().unwrap();
    }

    /// Waits until the daemon has ended by itself.
    #[track_caller]
    pub(crate) fn wait_for_daemon(&self) {
        let mut daemon = self.daemon.lock().unwrap().take().expect("a daemon");
        assert!(wait_until(60, || daemon.nsenter.try_wait().unwrap().is_some()), "the daemon does not end\n{}", self.log_tail());
    }

    /// Kills the daemon without a warning, and starts it again.
    #[track_caller]
    pub(crate) fn restart_daemon(&self) {
        self.restart_daemon_with(&[]);
    }

    /// The same, with variables in its environment.
    #[track_caller]
    pub(crate) fn restart_daemon_with(&self, variables: &[(&str, &str)]) {
        self.kill_daemon(Signal::SIGKILL);
        self.start_daemon(variables);
    }

    /// What a power cycle does: all processes, mounts and namespaces gone, /run empty, another boot id.
    #[track_caller]
    pub(crate) fn reboot(&self) {
        let _ = self.daemon.lock().unwrap().take().map(|mut daemon| {
            let _ = kill(daemon.pid, Signal::SIGKILL);
            daemon.nsenter.wait()
        });
        write_boot_id(&self.dir);
        let old = self.init();
        let _ = fs::remove_file(self.dir.join("up"));
        writeln!(self.guard.lock().unwrap().stdin.as_mut().unwrap(), "again").unwrap();
        assert!(wait_until(20, || !Path::new(&format!("/proc/{old}/ns/pid")).exists()), "the old init lives on");
        self.wait_for_init();
        for folder in ["run", "netns"] {
            fs::remove_dir_all(self.dir.join(folder)).unwrap();
            fs::create_dir_all(self.dir.join(folder)).unwrap();
        }
        let _ = fs::remove_file(self.dir.join("cri.sock"));
        self.start_daemon(&[]);
    }

    /// The last of what the daemon said.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The containers of a pod.
    #[track_caller]
    pub(crate) fn containers_of(&self, pod: &str) -> Vec<v1::Container> {
        let filter = v1::ContainerFilter { pod_sandbox_id: pod.to_owned(), ..Default::default() };
        self.cri().list_containers(v1::ListContainersRequest { filter: Some(filter) }).unwrap().containers
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        self.kill_daemon(Signal::SIGKILL);
        let guard = self.guard.get_mut().unwrap();
        drop(guard.stdin.take());
        let _ = guard.wait();
    }
}

fn guard(dir: &Path, name: &str) -> Child {
    write_boot_id(dir);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", GUARD, "guard"]).arg(dir).args([name, INIT]).stdin(Stdio::piped());
    // Whoever ends the test with a signal to its group does not end what cleans up after it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().unwrap()
}

fn write_boot_id(dir: &Path) {
    fs::write(dir.join("boot_id"), fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap()).unwrap();
}

/// The first child of a process.
fn child(pid: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_ascii_whitespace().next()?.parse().ok()
}

/// Gives 10.88.x.y out of a counter; remembers who has it in a file per attachment.
const CHEAP: &str = r#"#!/bin/sh
mine="@DIR@/ipam/$CNI_CONTAINERID"
case $CNI_COMMAND in
ADD)
    exec 9>>"@DIR@/counter"; flock 9
    echo >>"@DIR@/counter"; set -- $(wc -l <"@DIR@/counter"); n=$1
    echo "$n" >"$mine"
    echo "{\"cniVersion\":\"1.0.0\",\"interfaces\":[{\"name\":\"eth0\",\"sandbox\":\"$CNI_NETNS\"}],\"ips\":[{\"address\":\"10.88.$((n / 250)).$((n % 250 + 1))/16\",\"interface\":0}]}" ;;
DEL) rm -f "$mine" ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
esac
"#;
