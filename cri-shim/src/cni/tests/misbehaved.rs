//! Plugins that hang, crash, print nonsense or leave something behind.

use super::*;

#[tokio::test]
async fn bad_answers_are_named() {
    let f = Fixture::new();
    f.conf("10-net.conflist", &json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [{ "type": "p" }] }));
    let cases = [
        ("echo oops", "ADD: answered no CNI result: no JSON: expected value at line 1 column 1, output: \"oops\""),
        ("", "ADD: answered no CNI result: no JSON: EOF while parsing a value at line 1 column 0, no output"),
        ("echo '[]'", "ADD: answered no CNI result: no JSON object, output: \"[]\""),
        ("echo '{\"cniVersion\":\"3.0.0\"}'", "cniVersion: 3.0.0 is newer than 1.1.0"),
        ("echo half; echo why >&2; exit 3", "ADD: exit status: 3, output: \"why; half\""),
        ("kill -SEGV $$", "ADD: signal: 11 (SIGSEGV)"),
        ("exit 1", "ADD: exit status: 1, no output"),
        ("printf %s '{\"code\":100,\"msg\":\"two\\nlines\"}'; exit 1", "ADD: two; lines (code 100)"),
        ("head -c 3000000 /dev/zero", "ADD: answered no CNI result: more than 1048576 bytes"),
    ];
    for (body, text) in cases {
        f.plugin("p", &format!("[ $CNI_COMMAND = ADD ] || exit 0\n{body}\n"));
        let error = f.network().await.add(&pod("p1")).await.unwrap_err().to_string();
        assert!(error.starts_with("CNI plugin \"p\" of network \"net\": ADD: ") && error.contains(text), "{body}: {error}");
        assert!(!error.contains('\n') && error.len() < 3000, "{error}");
        assert!(f.cache().is_empty(), "{body}");
    }
    f.plugin("p", "[ $CNI_COMMAND != ADD ] || echo '{}'\n");
    let error = f.network().await.add(&pod("p1")).await.unwrap_err().to_string();
    assert!(error.contains("no address for the pod's eth0"), "{error}");
    assert!(f.cache().is_empty());
}

#[tokio::test]
async fn a_hanging_plugin_dies_with_its_children() {
    let f = Fixture::new();
    f.conf("10-net.conflist", &json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [{ "type": "p" }] }));
    f.plugin("p", "[ $CNI_COMMAND = ADD ] || exit 0\necho stuck >&2\nsleep 1000 & echo $! >../child\necho $$ >../plugin\nwait\n");
    let network = Network::load(&Cni { timeout_seconds: 1, ..f.settings() }).await;
    let error = network.add(&pod("p1")).await.unwrap_err().to_string();
    assert_eq!(error, "CNI plugin \"p\" of network \"net\": ADD: killed after 1 s (cni.timeout_seconds), output: \"stuck\"");
    for who in ["plugin", "child"] {
        let pid = std::fs::read_to_string(f.dir.join(who)).unwrap();
        until("the end of a killed process", || !runs(&pid)).await;
    }
    assert!(f.cache().is_empty());
}

#[tokio::test]
async fn a_dropped_add_kills_its_plugin_and_leaves_a_trace() {
    let f = Fixture::new();
    f.conf("10-net.conflist", &json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [{ "type": "p" }] }));
    f.plugin("p", "[ $CNI_COMMAND = ADD ] || exit 0\necho $$ >../plugin.tmp; mv ../plugin.tmp ../plugin\nsleep 1000\n");
    let network = f.network().await;
    let file = f.dir.join("plugin");
    let p1 = pod("p1");
    tokio::select! {
        _ = network.add(&p1) => panic!("the plugin hangs"),
        () = until("the plugin's start", || file.exists()) => {}
    }
    let pid = std::fs::read_to_string(file).unwrap();
    until("the end of the plugin", || !runs(&pid)).await;
    assert_eq!(f.cache(), ["net-p1-eth0"]);
    f.network().await.del(&pod("p1")).await.unwrap();
    assert_eq!(f.calls(), ["000-p-ADD", "001-p-DEL"]);
    assert!(f.cache().is_empty());
}

#[tokio::test]
async fn a_child_left_behind_does_not_hold_the_plugin() {
    let f = Fixture::new();
    f.conf("10-net.conflist", &json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [{ "type": "p" }] }));
    f.plugin("p", &format!("[ $CNI_COMMAND = ADD ] || exit 0\nsleep 1000 & echo $! >../child\necho '{}'\n", result("1.0.0")));
    f.network().await.add(&pod("p1")).await.unwrap();
    let pid = std::fs::read_to_string(f.dir.join("child")).unwrap();
    assert!(runs(&pid));
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_plugin_that_is_being_written_is_waited_for() {
    let f = Fixture::new();
    f.conf("10-net.conflist", &json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [{ "type": "p" }] }));
    f.good("p", &result("1.0.0"));
    let writer = std::fs::OpenOptions::new().append(true).open(f.dir.join("bin/p")).unwrap();
    let network = f.network().await;
    let p1 = pod("p1");
    let close = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(f.calls().is_empty());
        drop(writer);
    };
    let (added, ()) = tokio::join!(network.add(&p1), close);
    added.unwrap();
}

/// Whether a process runs; one that waits for its parent does not.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with(['Z', 'X']))
}
