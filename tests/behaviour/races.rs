//! A neighbour exchanges files of a shared volume with links to the host while containers are made.

use nix::fcntl::{RenameFlags, renameat2};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use tests::runtime::Kind;
use tests::{Bundle, Runtime, require};

/// How often a container is made against each target.
const ROUNDS: usize = 25;

/// A thread that exchanges two paths as fast as it can, until dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Swapper {
    fn new(one: PathBuf, other: PathBuf) -> Swapper {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !flag.load(Ordering::Relaxed) {
                let cwd = nix::fcntl::AT_FDCWD;
                renameat2(cwd, &one, cwd, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
                count += 1;
            }
            count
        });
        Swapper { stop, thread: Some(thread) }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let count = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || count.unwrap() > 0);
    }
}

/// The canary: a folder of the host with one file, which must stay as it is.
fn canary(rt: &Runtime) -> PathBuf {
    let dir = rt.dir().join("canary");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("file"), "untouched").unwrap();
    dir
}

fn assert_untouched(dir: &Path) {
    let names: Vec<_> = fs::read_dir(dir).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "untouched");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()), "{mounts}");
}

/// Makes containers of `bundle` while `target` of its root file system and a link to `link` change
/// places; they may fail, but must not reach the host.
fn race(rt: &Runtime, bundle: Bundle, target: &str, link: &Path) {
    let dir = canary(rt);
    let one = bundle.rootfs().join(target);
    let other = bundle.rootfs().join("swapped");
    std::os::unix::fs::symlink(link, &other).unwrap();
    let swapper = Swapper::new(one, other);
    for _ in 0..ROUNDS {
        let done = rt.container(bundle.clone()).run();
        assert_untouched(&dir);
        assert!(done.code() == 0 || !done.stderr.is_empty(), "{done}");
        if done.stdout.contains("try-read") {
            assert!(!done.stdout.contains("untouched"), "the host's file was read\n{done}");
        }
    }
    drop(swapper);
    rt.assert_nothing_left();
}

#[test]
fn a_mount_target() {
    let rt = Runtime::new();
    let dir = canary(&rt);
    let bundle = rt.bundle().folder("/volume").mount("/volume", "tmpfs", "t", &[]);
    race(&rt, bundle.args(["/probe", "args"]), "volume", &dir);
}

#[test]
fn the_parent_of_a_target_that_is_yet_to_be_made() {
    let rt = Runtime::new();
    let dir = canary(&rt);
    let bundle = rt.bundle().folder("/volume").mount("/volume/made/here", "tmpfs", "t", &[]);
    let file = dir.join("file").display().to_string();
    let bundle = bundle.mount("/volume/made/file", "bind", &file, &["bind", "ro"]);
    race(&rt, bundle.args(["/probe", "args"]), "volume", &dir);
}

#[test]
fn a_read_only_path() {
    let rt = Runtime::new();
    let dir = canary(&rt);
    let bundle = rt.bundle().folder("/volume/sub").set("/linux/readonlyPaths", json!(["/volume", "/volume/sub"]));
    race(&rt, bundle.args(["/probe", "args"]), "volume", &dir);
}

#[test]
fn a_masked_path() {
    let rt = Runtime::new();
    let dir = canary(&rt);
    let bundle = rt.bundle().folder("/volume").file("/volume/file", "inside").set("/linux/maskedPaths", json!(["/volume/file", "/volume"]));
    race(&rt, bundle.args(["/probe", "args"]), "volume", &dir);
}

#[test]
fn the_working_folder() {
    let rt = Runtime::new();
    let dir = canary(&rt);
    let bundle = rt.bundle().writable().folder("/volume").set("/process/cwd", json!("/volume/new"));
    race(&rt, bundle.args(["/probe", "args"]), "volume", &dir);
}

#[test]
fn the_folder_of_devices() {
    let rt = Runtime::new();
    let dir = canary(&rt);
    let mut bundle = rt.bundle().writable();
    bundle.config["mounts"].as_array_mut().unwrap().retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    race(&rt, bundle.args(["/probe", "args"]), "dev", &dir);
}

/// The same while mounts are added to a container that runs, and taken away again.
#[test]
fn a_mount_of_a_running_container() {
    let rt = Runtime::new();
    require!(rt.kind() == Kind::Rrun, "crun follows the link inside the container");
    let dir = canary(&rt);
    let bundle = rt.bundle().writable().folder("/volume/below").args(["/probe", "sleep"]);
    let (one, other) = (bundle.rootfs().join("volume"), bundle.rootfs().join("swapped"));
    std::os::unix::fs::symlink(&dir, &other).unwrap();
    let c = rt.start(bundle);
    let tmpfs = |at: &str| json!([{"destination": at, "type": "tmpfs", "source": "t"}]).to_string();
    let swapper = Swapper::new(one, other);
    let (mut added, mut refused) = (0, 0);
    for i in 0..4 * ROUNDS {
        let list = tmpfs(["/volume", "/volume/below", "/volume/made/here"][i % 3]);
        let call = |action| rt.call(["mounts", action, &c.id, "-"]).input(&list).run();
        match call("add").code() {
            0 => added += 1,
            _ => refused += 1,
        }
        call("remove");
        assert_untouched(&dir);
    }
    drop(swapper);
    assert!(added > 0 && refused > 0, "{added} were added, {refused} refused");
}
