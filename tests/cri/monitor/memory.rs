//! What a monitor costs. Figures are of the release build that `make build` makes.

use super::{PATIENCE, Pod, pod, program};
use rrun_cri::monitor::Create;
use tokio::time::timeout;

impl Pod {
    /// KiB of memory that is the monitor's alone.
    fn private_dirty(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("Private_Dirty:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Milliseconds of CPU that the monitor and all it has reaped took: the runtime and the exec's process too.
    fn cpu_ms(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let ticks: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(4).map(|t| t.parse::<u64>().unwrap()).sum();
        ticks * 10
    }
}

#[tokio::test]
async fn within_its_bounds() {
    let pod = pod!();
    let other = Pod::new().await;
    let create = Create { stdin: true, ..pod.container("while :; do echo a line of output; sleep 1; done") };
    pod.start(&create).await;
    other.start(&other.container("sleep 100")).await;
    super::wait_for_log(&create, "output");
    let one = pod.private_dirty();
    for _ in 0..4 {
        pod.start(&pod.container("printf 'no end'; sleep 100")).await;
    }
    let five = pod.private_dirty();
    let cpu = pod.cpu_ms();
    for _ in 0..100 {
        let process = pod.exec(&create, "true").await.unwrap();
        timeout(PATIENCE, process.exited).await.unwrap().unwrap();
    }
    let after = pod.private_dirty();
    eprintln!("CPU of an exec of 'true', all in all: {:.2} ms", (pod.cpu_ms() - cpu) as f64 / 100.0);
    eprintln!("private memory of the monitor: {one} KiB with one container, {five} with five, {after} after 100 execs");
    if program().ends_with("debug/rrun-monitor") {
        tests::host::skip("a debug build's memory says nothing");
        return;
    }
    assert!(one <= 300 && five <= 1024 && after <= 1024, "{one} {five} {after} KiB");
}
