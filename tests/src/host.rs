//! What this machine and this user can do, and the one way to skip a test.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Says on standard error that the current test was skipped, and why. Not captured by the test
/// harness, so that a run can list its skips.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "SKIP {}: {reason}", thread.name().unwrap_or("?"));
}

/// Whether the tests run as root of the initial user namespace, or of one that acts as if.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The version of the cgroup hierarchy at `/sys/fs/cgroup`: 2 where it is a cgroup2 mount, else 1
/// (hybrid too: there the controllers are on v1).
pub fn cgroup_version() -> u32 {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 }
}

/// Whether systemd is process 1.
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Whether the kernel is user mode Linux, which is slow.
pub fn is_user_mode() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|t| t.contains("User Mode Linux"))
}

/// Whether the namespace type (`time`, `user`, …) exists here.
pub fn has_namespace(name: &str) -> bool {
    Path::new("/proc/self/ns").join(name).exists()
}

/// The first of the usual folders that holds the program.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    folders.filter(|f| !f.is_empty()).map(|f| Path::new(f).join(program)).find(|p| p.is_file())
}

/// A static busybox, for tests that need a shell.
pub fn busybox() -> Option<PathBuf> {
    let path = find("busybox")?;
    let bytes = fs::read(&path).ok()?;
    // A dynamic program names its interpreter.
    let dynamic = bytes.windows(8).any(|w| w == b"/ld-linu");
    (!dynamic).then_some(path)
}

/// Makes an executable file that can be executed at once. While it is written, another thread may start a process, which
/// holds a copy of the descriptor until it executes its program, and until then the file is busy (`ETXTBSY`, execve(2)).
/// That nobody has it open for writing any more is what a read lease says (`F_SETLEASE`, fcntl(2): `EAGAIN` till then).
#[track_caller]
pub fn write_program(path: &Path, content: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let file = fs::File::open(path).unwrap();
    let busy = || crate::sys::read_lease(&file) == Err(nix::errno::Errno::EAGAIN);
    assert!(wait_until(20, || !busy()), "{}: somebody writes to it", path.display());
}

/// Waits until `condition` holds, for at most `seconds`; whether it did.
pub fn wait_until(seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The inode of a namespace of process `pid` (`self` for this one), as its link tells it.
pub fn namespace(pid: &str, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The capability bits this process could still have (`CapBnd`).
pub fn capability_bounding_set() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap_or("0");
    u64::from_str_radix(line.trim(), 16).unwrap_or(0)
}

/// The processors this process may use.
pub fn cpus() -> Vec<usize> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    (0..nix::sched::CpuSet::count()).filter(|&n| set.is_set(n).unwrap_or(false)).collect()
}
