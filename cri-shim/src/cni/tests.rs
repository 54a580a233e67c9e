//! The network as a whole, over plugins that are shell scripts: they write down what they were given and answer what
//! the test wants. What libcni gives and keeps was recorded from libcni 1.3 and stands here as the expectation.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use super::*;

mod misbehaved;
mod real;

/// The namespace of the test itself: a real one that stays.
const NETNS: &str = "/proc/self/ns/net";

/// A folder with configurations, plugins, a cache, and the plugins' notes in `calls`.
struct Fixture {
    dir: PathBuf,
}

impl Fixture {
    fn new() -> Fixture {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!("rrun-cni-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        for part in ["bin", "conf", "calls"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        Fixture { dir }
    }

    fn settings(&self) -> Cni {
        Cni {
            conf_dir: self.dir.join("conf"),
            bin_dirs: vec![self.dir.join("missing"), self.dir.join("bin")],
            cache_dir: self.dir.join("cache"),
            timeout_seconds: 20,
            ..Cni::default()
        }
    }

    async fn network(&self) -> Network {
        Network::load(&self.settings()).await
    }

    /// A plugin that notes its call and then runs `body`.
    fn plugin(&self, name: &str, body: &str) {
        let note = format!(
            "#!/bin/sh\ncd {}/calls\nn=$(ls | wc -l); f=$(printf %03d $n)-{name}-$CNI_COMMAND\n\
             (env | grep ^CNI_ | sort; cat) >$f\n",
            self.dir.display()
        );
        let path = self.dir.join("bin").join(name);
        // Written by another process: a child of a test beside this one may hold a copy of a descriptor of ours for a moment,
        // and a file that is open for writing is not executed (ETXTBSY).
        let put =
            Command::new("sh").args(["-c", "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"]).arg(&path).arg(note + body).status();
        assert!(put.unwrap().success());
    }

    /// A plugin that answers ADD with `result`.
    fn good(&self, name: &str, result: &Value) {
        self.plugin(name, &format!("[ $CNI_COMMAND != ADD ] || echo '{result}'\n"));
    }

    fn conf(&self, name: &str, conf: &Value) {
        std::fs::write(self.dir.join("conf").join(name), conf.to_string()).unwrap();
    }

    /// A network of `version` with the plugins `first` and `second`.
    fn two(&self, version: &str) {
        self.good("first", &json!({ "cniVersion": version, "ips": [{ "address": "10.9.0.5/24" }] }));
        self.good("second", &result(version));
        self.conf("10-net.conflist", &two(version));
    }

    /// "000-first-ADD" and so on, in the order of the calls.
    fn calls(&self) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(self.dir.join("calls")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Environment and standard input of a call.
    fn call(&self, name: &str) -> (String, Value) {
        let text = std::fs::read_to_string(self.dir.join("calls").join(name)).unwrap();
        let (env, stdin) = text.split_at(text.find('{').unwrap());
        (env.to_owned(), serde_json::from_str(stdin).unwrap())
    }

    fn forget_calls(&self) {
        for name in self.calls() {
            std::fs::remove_file(self.dir.join("calls").join(name)).unwrap();
        }
    }

    fn cache(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir.join("cache/results")) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn cached(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.join("cache/results").join(name)).unwrap()).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn two(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "net", "plugins": [
        { "type": "first", "bridge": "cni0", "capabilities": { "bandwidth": true, "dns": false } },
        { "type": "second", "capabilities": { "portMappings": true, "io.kubernetes.cri.pod-annotations": true } }] })
}

fn result(version: &str) -> Value {
    json!({ "cniVersion": version, "interfaces": [{ "name": "cni0" }, { "name": "eth0", "sandbox": NETNS }],
        "ips": [{ "interface": 1, "address": "10.9.0.5/24", "gateway": "10.9.0.1" }] })
}

fn pod(id: &str) -> Attachment {
    Attachment {
        pod_id: id.into(),
        pod_name: "web".into(),
        namespace: "default".into(),
        uid: "u-1".into(),
        netns: NETNS.into(),
        port_mappings: vec![PortMapping { host_port: 8080, container_port: 80, protocol: "tcp".into(), host_ip: String::new() }],
        annotations: [("kubernetes.io/ingress-bandwidth".to_owned(), "1M".to_owned())].into(),
        ..Attachment::default()
    }
}

fn env(dir: &Path, command: &str, netns: &str) -> String {
    format!(
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u-1\n\
         CNI_COMMAND={command}\nCNI_CONTAINERID=p1\nCNI_IFNAME=eth0\nCNI_NETNS={netns}\nCNI_PATH={0}/missing:{0}/bin\n",
        dir.display()
    )
}

/// Waits until `done`, which something in the background brings about.
async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..300 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("waited in vain: {what}");
}

#[tokio::test]
async fn a_pod_comes_and_goes() {
    let f = Fixture::new();
    f.two("1.0.0");
    let network = f.network().await;
    network.status().unwrap();

    let added = network.add(&pod("p1")).await.unwrap();
    assert_eq!(added.ips, ["10.9.0.5".parse::<IpAddr>().unwrap()]);
    assert_eq!(added.interfaces.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["cni0", "eth0"]);
    assert_eq!(added.raw["eth0"], result("1.0.0"));
    network.check(&pod("p1")).await.unwrap();
    assert_eq!(f.cache(), ["net-p1-eth0"]);
    let cached = f.cached("net-p1-eth0");
    network.del(&pod("p1")).await.unwrap();
    assert!(f.cache().is_empty());

    assert_eq!(f.calls(), ["000-first-ADD", "001-second-ADD", "002-first-CHECK", "003-second-CHECK", "004-second-DEL", "005-first-DEL"]);
    let bandwidth = json!({ "bandwidth": { "ingressRate": 1_000_000, "ingressBurst": 4_294_967_295u32 } });
    let annotations = json!({ "kubernetes.io/ingress-bandwidth": "1M" });
    let ports = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "" }]);
    let first = json!({ "name": "net", "cniVersion": "1.0.0", "type": "first", "bridge": "cni0",
        "capabilities": { "bandwidth": true, "dns": false }, "runtimeConfig": bandwidth });
    assert_eq!(f.call("000-first-ADD"), (env(&f.dir, "ADD", NETNS), first));
    let second = json!({ "name": "net", "cniVersion": "1.0.0", "type": "second",
        "capabilities": { "portMappings": true, "io.kubernetes.cri.pod-annotations": true },
        "runtimeConfig": { "portMappings": ports, "io.kubernetes.cri.pod-annotations": annotations },
        "prevResult": { "cniVersion": "1.0.0", "ips": [{ "address": "10.9.0.5/24" }] } });
    assert_eq!(f.call("001-second-ADD"), (env(&f.dir, "ADD", NETNS), second.clone()));
    let mut later = second;
    later["prevResult"] = result("1.0.0");
    assert_eq!(f.call("003-second-CHECK"), (env(&f.dir, "CHECK", NETNS), later.clone()));
    assert_eq!(f.call("004-second-DEL"), (env(&f.dir, "DEL", NETNS), later));

    let config = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, cached["config"].as_str().unwrap()).unwrap();
    assert_eq!(config, std::fs::read(f.dir.join("conf/10-net.conflist")).unwrap());
    let mut rest = cached;
    rest["config"] = Value::Null;
    let args = json!([
        ["IgnoreUnknown", "1"],
        ["K8S_POD_NAMESPACE", "default"],
        ["K8S_POD_NAME", "web"],
        ["K8S_POD_INFRA_CONTAINER_ID", "p1"],
        ["K8S_POD_UID", "u-1"]
    ]);
    assert_eq!(
        rest,
        json!({ "kind": "cniCacheV1", "containerId": "p1", "config": null, "ifName": "eth0", "networkName": "net", "netns": NETNS,
            "cniArgs": args, "result": result("1.0.0"),
            "capabilityArgs": { "bandwidth": bandwidth["bandwidth"], "io.kubernetes.cri.pod-annotations": annotations, "portMappings": ports } })
    );
}

#[tokio::test]
async fn del_may_be_repeated_and_does_without_the_namespace() {
    let f = Fixture::new();
    f.two("1.0.0");
    let network = f.network().await;
    network.add(&pod("p1")).await.unwrap();
    f.forget_calls();
    // The record's path outlives the namespace, at a reboot for one.
    let file = f.dir.join("cache/results/net-p1-eth0");
    let gone = std::fs::read_to_string(&file).unwrap().replace("\"netns\":\"/proc/self/ns/net\"", "\"netns\":\"/var/run/netns/cni-gone\"");
    std::fs::write(&file, gone).unwrap();
    network.del(&pod("p1")).await.unwrap();
    assert_eq!(f.call("000-second-DEL").0, env(&f.dir, "DEL", ""));
    network.del(&pod("p1")).await.unwrap();
    assert_eq!(f.calls().len(), 4);
    assert_eq!(f.call("002-second-DEL").1.get("prevResult"), None);

    // A pod that could not be attached for its name is stopped all the same.
    let odd = Attachment { pod_name: "a;b=c".into(), ..pod("p2") };
    assert!(matches!(network.add(&odd).await, Err(Error::InvalidArgument(_))));
    network.del(&odd).await.unwrap();
    f.forget_calls();

    // Without configuration there is nothing to take back.
    std::fs::remove_file(f.dir.join("conf/10-net.conflist")).unwrap();
    f.network().await.del(&pod("p1")).await.unwrap();
    assert!(f.calls().is_empty());
}

#[tokio::test]
async fn a_changed_configuration_does_not_strand_a_pod() {
    let f = Fixture::new();
    f.two("0.4.0");
    f.network().await.add(&pod("p1")).await.unwrap();
    f.forget_calls();
    std::fs::remove_file(f.dir.join("conf/10-net.conflist")).unwrap();
    f.good("other", &result("1.0.0"));
    f.conf("10-other.conflist", &json!({ "cniVersion": "1.0.0", "name": "other", "plugins": [{ "type": "other" }] }));
    f.network().await.del(&pod("p1")).await.unwrap();
    assert_eq!(f.calls(), ["000-other-DEL", "001-second-DEL", "002-first-DEL"]);
    assert_eq!(f.call("001-second-DEL").1["prevResult"], result("0.4.0"));
    assert!(f.cache().is_empty());
}

#[tokio::test]
async fn a_failed_add_is_taken_back() {
    let f = Fixture::new();
    f.two("1.0.0");
    f.plugin(
        "second",
        "[ $CNI_COMMAND != ADD ] || { echo '{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"no more\",\"details\":\"ports\"}'; exit 1; }\n",
    );
    let network = f.network().await;
    let error = network.add(&pod("p1")).await.unwrap_err();
    assert_eq!(error.to_string(), "CNI plugin \"second\" of network \"net\": ADD: no more; ports (code 11)");
    assert_eq!(f.calls(), ["000-first-ADD", "001-second-ADD", "002-second-DEL", "003-first-DEL"]);
    assert!(f.cache().is_empty());

    // The result cannot be kept: an attachment that nobody knows of is none.
    f.forget_calls();
    f.plugin("second", &format!("[ $CNI_COMMAND != ADD ] || {{ rm -r ../cache; touch ../cache; echo '{}'; }}\n", result("1.0.0")));
    let error = network.add(&pod("p1")).await.unwrap_err().to_string();
    assert!(error.contains("cache/results"), "{error}");
    assert_eq!(f.calls(), ["000-first-ADD", "001-second-ADD", "002-second-DEL", "003-first-DEL"]);
    std::fs::remove_file(f.dir.join("cache")).unwrap();

    // What cannot be taken back waits for StopPodSandbox.
    f.plugin("second", "echo '{\"msg\":\"broken\"}'; exit 1\n");
    network.add(&pod("p1")).await.unwrap_err();
    assert_eq!(f.cache(), ["net-p1-eth0"]);
    f.two("1.0.0");
    network.del(&pod("p1")).await.unwrap();
    assert!(f.cache().is_empty());
}

#[tokio::test]
async fn readiness_follows_the_folder() {
    let f = Fixture::new();
    f.good("p", &result("1.0.0"));
    std::fs::remove_dir(f.dir.join("conf")).unwrap();
    let settings = Cni { conf_dir: f.dir.join("conf/net.d"), ..f.settings() };
    let network = Network::load(&settings).await;
    let message = || network.status().unwrap_err().message;
    assert_eq!(network.status().unwrap_err().reason, "NetworkPluginNotReady");
    assert_eq!(message(), format!("no CNI configuration in {}", settings.conf_dir.display()));
    assert!(matches!(network.add(&pod("p1")).await, Err(Error::Unavailable(_))));

    std::fs::create_dir_all(&settings.conf_dir).unwrap();
    f.conf("net.d/10-net.conf", &json!({ "cniVersion": "1.0.0", "name": "net", "type": "p" }));
    until("a network", || network.status().is_ok()).await;
    assert_eq!(network.names(), ["net"]);
    // A file before it wins, a broken one stops.
    f.conf("net.d/05-net.conf", &json!({ "cniVersion": "1.0.0", "name": "before", "type": "p" }));
    until("the first network", || network.names() == ["before"]).await;
    std::fs::write(settings.conf_dir.join("01-broken.conf"), "{").unwrap();
    until("no network", || network.status().is_err()).await;
    assert!(message().contains("01-broken.conf: no JSON object"), "{}", message());
    std::fs::remove_file(settings.conf_dir.join("01-broken.conf")).unwrap();
    until("the first network again", || network.status().is_ok()).await;
    std::fs::remove_dir_all(&settings.conf_dir).unwrap();
    until("no network", || network.status().is_err()).await;
}

#[tokio::test]
async fn readiness_follows_the_plugins() {
    let f = Fixture::new();
    f.conf("10-net.conflist", &json!({ "cniVersion": "1.1.0", "name": "net", "plugins": [{ "type": "p" }] }));
    let network = f.network().await;
    let missing = format!("CNI plugin \"p\" of network \"net\": STATUS: no such program in {0}/missing, {0}/bin", f.dir.display());
    until("a missing plugin", || network.status().is_err_and(|e| e.message == missing)).await;
    f.plugin("p", "[ ! -e ../bad ] || { echo '{\"code\":50,\"msg\":\"no agent\"}'; exit 1; }\n");
    until("the plugin", || network.status().is_ok()).await;
    assert_eq!(f.call("000-p-STATUS").1, json!({ "cniVersion": "1.1.0", "name": "net", "type": "p" }));
    std::fs::write(f.dir.join("bad"), "").unwrap();
    // Any change of the folder has it asked at once.
    std::fs::write(f.dir.join("conf/touch"), "").unwrap();
    until("a plugin that is not ready", || network.status().is_err()).await;
    assert_eq!(network.status().unwrap_err().message, "CNI plugin \"p\" of network \"net\": STATUS: no agent (code 50)");
    std::fs::remove_file(f.dir.join("bad")).unwrap();
    until("the plugin again", || network.status().is_ok()).await;
}

#[tokio::test]
async fn garbage_is_collected_and_nothing_else() {
    let f = Fixture::new();
    f.two("1.1.0");
    let network = f.network().await;
    until("the plugins' STATUS", || network.status().is_ok()).await;
    for id in ["p1", "dead", "foreign", "lost"] {
        network.add(&Attachment { netns: if id == "dead" { "/gone".into() } else { NETNS.into() }, ..pod(id) }).await.unwrap();
    }
    // A namespace of this daemon's that lives, of a pod that nobody knows.
    let file = f.dir.join("cache/results/net-lost-eth0");
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap().replace("/proc/self/ns/net", "/proc/thread-self/ns/net")).unwrap();
    f.forget_calls();
    let valid = || HashSet::from(["p1".to_owned(), "new".to_owned()]);
    let errors = network.gc(valid, |netns| netns.starts_with("/proc/thread-self")).await;
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(f.cache(), ["net-foreign-eth0", "net-p1-eth0"]);
    let calls = f.calls();
    let calls: Vec<_> = calls.iter().filter(|c| !c.ends_with("-STATUS")).map(|c| &c[4..]).collect();
    assert_eq!(calls, ["second-DEL", "first-DEL", "second-DEL", "first-DEL", "first-GC", "second-GC"]);
    let gc = f.calls().into_iter().find(|c| c.ends_with("first-GC")).unwrap();
    let valid = json!([{ "containerID": "foreign", "ifname": "eth0" }, { "containerID": "new", "ifname": "eth0" }, { "containerID": "p1", "ifname": "eth0" }]);
    let (env, stdin) = f.call(&gc);
    assert_eq!(stdin["cni.dev/valid-attachments"], valid);
    assert_eq!(stdin["cni.dev/attachments"], valid);
    assert!(env.contains("CNI_CONTAINERID=\n") && env.contains("CNI_NETNS=\n"), "{env}");
}

#[tokio::test]
async fn flags_of_a_network_are_obeyed() {
    let f = Fixture::new();
    f.two("1.1.0");
    let mut conf = two("1.1.0");
    conf["disableCheck"] = true.into();
    conf["disableGC"] = true.into();
    f.conf("10-net.conflist", &conf);
    let network = f.network().await;
    until("the plugins' STATUS", || network.status().is_ok()).await;
    network.add(&Attachment { netns: "/gone".into(), ..pod("p1") }).await.unwrap();
    f.forget_calls();
    network.check(&pod("p1")).await.unwrap();
    assert!(network.gc(HashSet::new, |_| true).await.is_empty());
    assert_eq!(f.cache(), ["net-p1-eth0"]);
    assert!(f.calls().iter().all(|c| c.ends_with("-STATUS")), "{:?}", f.calls());
}

#[tokio::test]
async fn several_networks_are_several_interfaces() {
    let f = Fixture::new();
    f.two("1.0.0");
    f.good("p", &json!({ "interfaces": [{ "name": "eth1", "sandbox": NETNS }], "ips": [{ "interface": 0, "address": "10.8.0.5/24" }] }));
    f.conf("20-more.conf", &json!({ "cniVersion": "0.3.1", "name": "more", "type": "p" }));
    let network = Network::load(&Cni { max_conf_num: 0, ..f.settings() }).await;
    let added = network.add(&pod("p1")).await.unwrap();
    assert_eq!(added.ips.len(), 1);
    assert_eq!(added.raw.keys().collect::<Vec<_>>(), ["eth0", "eth1"]);
    assert_eq!(f.cache(), ["more-p1-eth1", "net-p1-eth0"]);

    // The second one fails: the first one is taken back too.
    network.del(&pod("p1")).await.unwrap();
    f.plugin("p", "[ $CNI_COMMAND != ADD ]\n");
    f.forget_calls();
    network.add(&pod("p1")).await.unwrap_err();
    assert_eq!(f.calls(), ["000-first-ADD", "001-second-ADD", "002-p-ADD", "003-p-DEL", "004-second-DEL", "005-first-DEL"]);
    assert!(f.cache().is_empty());
}
