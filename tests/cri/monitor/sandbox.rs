//! The pod's namespaces and the init of its PID namespace.

use super::{Pod, is_alive, kill, log_of, pod, read_all};
use rrun_cri::monitor::{MakeSandbox, unpin};
use std::fs;
use std::path::PathBuf;

const KINDS: [&str; 4] = ["ipc", "uts", "net", "pid"];

impl Pod {
    fn pin(&self, kind: &str) -> PathBuf {
        self.dir.join("ns").join(kind)
    }

    fn sandbox(&self) -> MakeSandbox {
        let path = |kind: &str| self.pin(kind).to_str().unwrap().to_owned();
        MakeSandbox {
            hostname: "podname".into(),
            ipc_path: path("ipc"),
            uts_path: path("uts"),
            net_path: path("net"),
            pid_path: path("pid"),
            ..MakeSandbox::default()
        }
    }

    /// A script in a container that joins the pod's namespaces.
    fn joined(&self, script: &str) -> tests::Bundle {
        let bundle = self.bundle(script).unset("/hostname");
        [("ipc", "ipc"), ("uts", "uts"), ("net", "network"), ("pid", "pid")]
            .into_iter()
            .fold(bundle, |b, (pin, kind)| b.namespace(kind, Some(&self.pin(pin))))
    }

    fn unpin_all(&self) {
        for kind in ["ipc", "uts", "net", "pid", "user"] {
            unpin(&self.pin(kind)).unwrap();
            unpin(&self.pin(kind)).unwrap();
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.to_str().unwrap()), "{mounts}");
    }
}

#[tokio::test]
async fn containers_join_them() {
    let pod = pod!();
    let mut request = pod.sandbox();
    request.sysctls = vec!["net.ipv4.ip_forward=1".into(), "kernel.msgmax=4096".into()];
    let made = pod.monitor.make_sandbox(&request).await.unwrap();
    assert!(made.init_pid != 0 && made.init_start_time != 0);
    for kind in KINDS {
        let (own, pinned) = (fs::metadata(format!("/proc/self/ns/{kind}")).unwrap(), fs::metadata(pod.pin(kind)).unwrap());
        assert_ne!(std::os::unix::fs::MetadataExt::ino(&own), std::os::unix::fs::MetadataExt::ino(&pinned), "{kind}");
    }
    let script = "echo $(busybox hostname); cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /sys/class/net/lo/flags; \
                  busybox ip addr show lo | busybox grep -c 127.0.0.1; echo $$";
    let create = pod.container_of(pod.joined(script));
    assert_eq!(pod.run(&create).await.code, 0);
    let log = log_of(&create);
    assert_eq!(log[..5], ["stdout F podname", "stdout F 1", "stdout F 4096", "stdout F 0x9", "stdout F 1"], "{log:?}");
    assert_ne!(log[5], "stdout F 1", "it is the first process");
    pod.monitor.stop_sandbox().await.unwrap();
    pod.monitor.stop_sandbox().await.unwrap();
    assert!(!is_alive(made.init_pid));
    pod.unpin_all();
}

#[tokio::test]
async fn the_init_reaps_ignores_and_shows_nothing() {
    let pod = pod!();
    let made = pod.monitor.make_sandbox(&pod.sandbox()).await.unwrap();
    let create = pod.container_of(pod.joined("sleep 100").privileged());
    pod.start(&create).await;
    let script = "ls -A /proc/1/root/ | busybox wc -l; ls /proc/1/fd | busybox wc -l; echo x 2>/dev/null > /proc/1/exe && echo written; \
                  (sleep 0.1 & ) ; sleep 0.4; busybox ps -o pid,ppid,stat,comm";
    let mut process = pod.exec(&create, script).await.unwrap();
    let text = read_all(process.stdout.take().unwrap()).await;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines[..2], ["0", "0"], "{text}");
    assert!(!text.contains("written") && text.contains("pod-init") && !text.contains(" Z "), "{text}");
    for signal in [15, 1, 2, 3, 10, 12] {
        kill(made.init_pid, signal);
    }
    assert!(is_alive(made.init_pid));
    let status = fs::read_to_string(format!("/proc/{}/status", made.init_pid)).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000") && status.contains("NoNewPrivs:\t1"), "{status}");
    pod.monitor.stop_sandbox().await.unwrap();
    assert_eq!(pod.exited(&create.id).await.code, 137);
    pod.unpin_all();
}

#[tokio::test]
async fn the_init_survives_the_monitor() {
    let mut pod = pod!();
    let made = pod.monitor.make_sandbox(&pod.sandbox()).await.unwrap();
    pod.kill_monitor();
    assert!(is_alive(made.init_pid));
    pod.succeed().await;
    pod.monitor.adopt_init(&made).await.unwrap();
    assert_eq!(pod.monitor.state().await.unwrap().0, made);
    let create = pod.container_of(pod.joined("exit 3"));
    assert_eq!(pod.run(&create).await.code, 3);
    pod.monitor.stop_sandbox().await.unwrap();
    assert!(!is_alive(made.init_pid));
    pod.unpin_all();
}

#[tokio::test]
async fn a_user_namespace_owns_the_others() {
    let pod = pod!();
    let user_path = pod.pin("user").to_str().unwrap().to_owned();
    let map = vec!["0 200000 65536".to_owned()];
    let request =
        MakeSandbox { user_path, uid_maps: map.clone(), gid_maps: map, sysctls: vec!["net.ipv4.ip_forward=1".into()], ..pod.sandbox() };
    let made = pod.monitor.make_sandbox(&request).await.unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", made.init_pid)).unwrap();
    assert!(status.contains("Uid:\t200000\t200000"), "{status}");
    let map = fs::read_to_string(format!("/proc/{}/uid_map", made.init_pid)).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    pod.monitor.stop_sandbox().await.unwrap();
    pod.unpin_all();
}

#[tokio::test]
async fn what_cannot_be_made_is_said_and_can_be_taken_down() {
    let pod = pod!();
    let good = pod.sandbox();
    for (bad, says) in [
        (MakeSandbox { sysctls: vec!["net.no.such=1".into()], ..good.clone() }, "net/no/such"),
        (MakeSandbox { sysctls: vec!["../x=1".into()], ..good.clone() }, "../x"),
        (MakeSandbox { hostname: "x".repeat(100), ..good.clone() }, "hostname"),
        (MakeSandbox { user_path: pod.pin("user").to_str().unwrap().into(), uid_maps: vec!["0 0 0".into()], ..good.clone() }, "uid_map"),
        (MakeSandbox { ipc_path: "relative".into(), ..good.clone() }, "relative"),
        (MakeSandbox { net_path: "/proc/nowhere/net".into(), ..good.clone() }, "/proc/nowhere"),
    ] {
        let error = pod.monitor.make_sandbox(&bad).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        pod.unpin_all();
    }
    assert!(unpin("relative".as_ref()).is_err());
    // And nothing of it runs, once the kernel has ended what was killed.
    let children = || fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.pid())).unwrap();
    assert!(tests::host::wait_until(10, || children().is_empty()), "{}", children());
}
