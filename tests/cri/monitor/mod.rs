//! The pod monitor, driven through the daemon's own client, over the runtime under test.

mod attach;
mod exec;
mod killed;
mod lifecycle;
mod logs;
mod memory;
mod sandbox;
mod upgrade;

use rrun_cri::monitor::{Create, Created, Event, Events, Exec, ExecProcess, Exited, Monitor, watch};
use serde_json::json;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tests::{Bundle, Runtime};
use tokio::time::timeout;

/// Long enough for a busy machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

/// The monitor's program: `$RRUN_MONITOR`, else that of `make build`.
fn program() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bin/rrun-monitor");
    let path = std::env::var_os("RRUN_MONITOR").map_or(built, PathBuf::from);
    path.canonicalize().unwrap_or_else(|e| panic!("{}: {e} (run 'make build', or set RRUN_MONITOR)", path.display()))
}

/// Whether these tests can run; else it says what is missing.
macro_rules! pod {
    () => {{
        tests::require!(tests::host::is_root(), "needs root");
        tests::require!(tests::host::busybox().is_some(), "needs a static busybox");
        $crate::monitor::Pod::new().await
    }};
}
use pod;

/// A pod's folder, its monitor, and the containers in it.
struct Pod {
    rt: Runtime,
    dir: PathBuf,
    monitor: Monitor,
    events: tokio::sync::Mutex<Events>,
    ids: Mutex<Vec<String>>,
}

impl Pod {
    async fn new() -> Pod {
        let rt = Runtime::new();
        let dir = rt.dir().join("pod");
        fs::create_dir_all(&dir).unwrap();
        let (monitor, events) = Monitor::start(&program(), &dir).await.unwrap();
        Pod { rt, dir, monitor, events: tokio::sync::Mutex::new(events), ids: Mutex::default() }
    }

    fn pid(&self) -> u32 {
        self.monitor.welcome().pid
    }

    fn bundle(&self, script: &str) -> Bundle {
        self.rt.bundle().shell().args(["sh", "-c", script])
    }

    /// What makes a container that runs the script; not made yet.
    fn container(&self, script: &str) -> Create {
        self.container_of(self.bundle(script))
    }

    fn container_of(&self, mut bundle: Bundle) -> Create {
        let id = self.rt.id();
        bundle.write(&self.rt, &id);
        let dir = self.dir.join(&id);
        fs::create_dir_all(&dir).unwrap();
        self.ids.lock().unwrap().push(id.clone());
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        Create {
            runtime: text(tests::runtime::program().0.clone()),
            args: [vec!["--root".into(), text(self.rt.root())], self.rt.globals.clone()].concat(),
            bundle: text(bundle.dir.clone()),
            log_path: text(dir.join("log")),
            exit_path: text(dir.join("exit.json")),
            dir: text(dir),
            id,
            ..Create::default()
        }
    }

    /// Makes and starts it.
    async fn start(&self, create: &Create) -> Created {
        let created = self.monitor.create(create).await.unwrap();
        self.monitor.start_container(&create.id, None).await.unwrap();
        created
    }

    /// Makes, starts, and waits for the end.
    async fn run(&self, create: &Create) -> Exited {
        self.start(create).await;
        self.exited(&create.id).await
    }

    async fn event(&self) -> Event {
        let mut events = self.events.lock().await;
        timeout(PATIENCE, events.recv()).await.expect("no event comes").expect("the monitor is gone")
    }

    /// Waits for the end of this container, which comes next.
    async fn exited(&self, id: &str) -> Exited {
        match self.event().await {
            Event::Exited(exited) => {
                assert_eq!(exited.id, id);
                exited
            }
            other => panic!("{other:?}"),
        }
    }

    async fn exec(&self, create: &Create, script: &str) -> rrun_cri::monitor::Result<ExecProcess> {
        self.exec_with(create, script, |e| e).await
    }

    async fn exec_with(&self, create: &Create, script: &str, change: fn(Exec) -> Exec) -> rrun_cri::monitor::Result<ExecProcess> {
        let exec = change(Exec { id: create.id.clone(), stdout: true, stderr: true, ..Exec::default() });
        let process = json!({
            "terminal": exec.tty, "user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", script], "cwd": "/",
            "env": ["PATH=/bin", "TERM=xterm"],
        });
        let path = Path::new(&create.dir).join("process.json");
        fs::write(&path, process.to_string()).unwrap();
        self.monitor.exec(&Exec { process: path, ..exec }).await
    }

    /// Kills the monitor alone.
    fn kill_monitor(&self) {
        kill(self.pid(), 9);
        assert!(tests::host::wait_until(10, || !is_alive(self.pid())));
    }

    /// A monitor in place of one that died.
    async fn succeed(&mut self) {
        assert!(matches!(Monitor::connect(&self.dir).await, Err(rrun_cri::monitor::Error::Gone)));
        let (monitor, events) = Monitor::start(&program(), &self.dir).await.unwrap();
        (self.monitor, self.events) = (monitor, tokio::sync::Mutex::new(events));
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for id in self.ids.lock().unwrap().iter() {
            let _ = self.rt.call(["delete", "--force", id]).run();
        }
        kill(self.pid(), 9);
    }
}

fn kill(pid: u32, signal: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::try_from(signal).unwrap());
}

/// Whether it runs; a zombie does not.
fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

/// The log's lines without their times, which are checked.
fn log_of(create: &Create) -> Vec<String> {
    let text = fs::read_to_string(&create.log_path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    text.lines().map(strip_time).collect()
}

#[track_caller]
fn strip_time(line: &str) -> String {
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.len() == 30 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{line:?}");
    rest.to_owned()
}

fn wait_for_log(create: &Create, line: &str) {
    let there = tests::host::wait_until(20, || fs::read_to_string(&create.log_path).is_ok_and(|t| t.lines().any(|l| l.ends_with(line))));
    assert!(there, "{line:?} is not in {:?}", fs::read_to_string(&create.log_path));
}

/// Everything until the end of the stream.
async fn read_all(fd: OwnedFd) -> String {
    let (fd, mut text) = (watch(fd).unwrap(), Vec::new());
    loop {
        let mut buffer = [0; 4096];
        let read = fd.async_io(tokio::io::Interest::READABLE, |fd| Ok(nix::unistd::read(fd.as_fd(), &mut buffer)?));
        match timeout(PATIENCE, read).await.expect("the stream does not end") {
            // A terminal says EIO.
            Ok(0) | Err(_) => return String::from_utf8(text).unwrap(),
            Ok(n) => text.extend_from_slice(&buffer[..n]),
        }
    }
}

fn write_all(fd: &OwnedFd, text: &str) {
    assert_eq!(nix::unistd::write(fd, text.as_bytes()).unwrap(), text.len());
}
