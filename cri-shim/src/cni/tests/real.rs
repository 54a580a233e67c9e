//! Debian's plugins (bridge, host-local, portmap, bandwidth, firewall, tuning) in namespaces of the test's own.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;

use super::*;

const PLUGINS: [&str; 6] = ["bridge", "host-local", "portmap", "bandwidth", "firewall", "tuning"];
const INSIDE: &str = "RRUN_CNI_INSIDE";

/// Runs itself once more, as root of new network and mount namespaces.
#[test]
fn real_plugins_attach_and_detach_a_dual_stack_pod() {
    if std::env::var_os(INSIDE).is_some() {
        return tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(inside());
    }
    let missing: Vec<_> = PLUGINS.iter().filter(|p| !bin_dirs().iter().any(|d| d.join(p).exists())).collect();
    let root = rustix::process::geteuid().is_root();
    let iptables = Command::new("iptables").arg("--version").output().is_ok();
    if !missing.is_empty() || !root || !iptables {
        eprintln!("SKIP: real CNI plugins: missing plugins {missing:?}, root: {root}, iptables: {iptables}");
        return;
    }
    let name = "cni::tests::real::real_plugins_attach_and_detach_a_dual_stack_pod";
    let test = std::env::current_exe().unwrap();
    let done = Command::new("unshare")
        .args(["--net", "--mount"])
        .arg(test)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
}

/// `RRUN_CNI_BIN`: other plugins than the system's, newer ones say.
fn bin_dirs() -> Vec<PathBuf> {
    std::env::var_os("RRUN_CNI_BIN").map_or_else(|| Cni::default().bin_dirs, |dir| vec![dir.into()])
}

fn sh(command: &str) -> String {
    let done = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// What could be left of a pod on the host: rules, interfaces, reserved addresses, cached results.
fn leftovers(f: &Fixture) -> String {
    let rules = sh("iptables-save; ip6tables-save | grep -E 'CNI|10\\.77|fd77' | grep -v -E '^(#|:)' || true");
    let rules: Vec<_> = rules.lines().filter(|l| l.contains("10.77.0.") || l.contains("fd77::") || l.contains("18080")).collect();
    let links = sh("ip -o link show type veth; ip -o link show type ifb");
    let ips: Vec<_> = std::fs::read_dir(f.dir.join("ipam/pods"))
        .map(|d| d.map(|e| e.unwrap().file_name().into_string().unwrap()).filter(|n| n.starts_with("10.") || n.starts_with("fd")).collect())
        .unwrap_or_default();
    let ips: Vec<String> = ips;
    format!("{}{links}{}{}", rules.join("\n"), ips.join("\n"), f.cache().join("\n"))
}

async fn inside() {
    sh("mkdir -p /run/netns; mount -t tmpfs none /run/netns; ip link set lo up");
    let f = Fixture::new();
    let version = if std::env::var_os("RRUN_CNI_BIN").is_some() { "1.1.0" } else { "1.0.0" };
    f.conf(
        "10-pods.conflist",
        &json!({ "cniVersion": version, "name": "pods", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
              "ipam": { "type": "host-local", "dataDir": f.dir.join("ipam"), "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                        "ranges": [[{ "subnet": "fd77::/64" }], [{ "subnet": "10.77.0.0/24" }]] } },
            { "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" } },
            { "type": "firewall" },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            { "type": "portmap", "capabilities": { "portMappings": true } }] }),
    );
    let network = Network::load(&Cni { bin_dirs: bin_dirs(), ..f.settings() }).await;
    until("the plugins", || network.status().is_ok()).await;

    let config = crate::config::Config { root: f.dir.clone(), ..Default::default() };
    let pins = Pins::new(&config);
    let pin = pins.new_path().unwrap();
    let name = pin.file_name().unwrap().to_str().unwrap().to_owned();
    sh(&format!("ip netns add {name}"));
    let mut pod = pod("p1");
    pod.netns = pin.to_str().unwrap().into();
    pod.port_mappings[0].host_port = 18080;
    pod.annotations.insert("kubernetes.io/egress-bandwidth".into(), "100M".into());

    let added = network.add(&pod).await.unwrap();
    assert_eq!(added.ips, ["10.77.0.2".parse::<IpAddr>().unwrap(), "fd77::2".parse().unwrap()]);
    let inside =
        sh(&format!("ip netns exec {name} ip -o addr show eth0; ip netns exec {name} cat /proc/sys/net/ipv4/conf/eth0/arp_filter"));
    assert!(inside.contains("10.77.0.2/24") && inside.contains("fd77::2/64") && inside.ends_with("1\n"), "{inside}");
    assert!(sh("ip -o link show type ifb").contains("bwp"), "no device that limits the bandwidth");
    assert_eq!(ask(&pod.netns), "pod p1");
    let full = leftovers(&f);
    assert!(full.contains("18080") && full.contains("pods-p1-eth0") && full.contains("10.77.0.2"), "{full}");

    // A second pod, whose namespace dies without DEL, as at a crash. (With ipMasq, the bridge of plugins 1.1 would leave
    // its rules: it learns the addresses from the namespace.)
    let gone = pins.new_path().unwrap();
    sh(&format!("ip netns add {}", gone.file_name().unwrap().to_str().unwrap()));
    let lost = Attachment { pod_id: "p2".into(), netns: gone.to_str().unwrap().into(), port_mappings: Vec::new(), ..pod.clone() };
    assert_eq!(network.add(&lost).await.unwrap().ips[0], "10.77.0.3".parse::<IpAddr>().unwrap());
    // Not of the first pod: CHECK of portmap 1.1 looks for IPv4 rules among the IPv6 ones of a dual-stack pod.
    network.check(&lost).await.unwrap();
    assert_eq!(pins.orphans(&HashSet::from([pin.clone()])).unwrap(), std::slice::from_ref(&gone));
    pins.unpin(&gone).unwrap();
    pins.unpin(&gone).unwrap();
    assert!(!gone.exists());
    let errors = network.gc(|| HashSet::from(["p1".to_owned()]), |netns| pins.is_ours(Path::new(netns))).await;
    assert!(errors.is_empty(), "{errors:?}");
    assert!(!leftovers(&f).contains("10.77.0.3"), "{}", leftovers(&f));
    assert_eq!(ask(&pod.netns), "pod p1");

    // A failed ADD gives its address back: the port's rule cannot be made.
    let ports = vec![PortMapping { host_ip: "fd77::1".into(), ..pod.port_mappings[0].clone() }];
    let wrong = Attachment { pod_id: "p3".into(), netns: "/run/netns/nowhere".into(), port_mappings: ports, ..pod.clone() };
    let error = network.add(&wrong).await.unwrap_err().to_string();
    assert!(error.starts_with("CNI plugin \"bridge\" of network \"pods\": ADD: failed to open netns"), "{error}");
    assert_eq!(leftovers(&f), full);

    network.del(&pod).await.unwrap();
    assert_eq!(leftovers(&f), "");
    network.del(&pod).await.unwrap();
    pins.unpin(&pin).unwrap();
    network.del(&pod).await.unwrap();
    assert_eq!(leftovers(&f), "");
}

/// What the pod's port answers through the host's port.
fn ask(netns: &str) -> String {
    let netns = std::fs::File::open(netns).unwrap();
    let (ready, started) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(rustix::thread::LinkNameSpaceType::Network))
            .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
        ready.send(()).unwrap();
        listener.accept().unwrap().0.write_all(b"pod p1").unwrap();
    });
    started.recv().unwrap();
    let mut text = String::new();
    TcpStream::connect("10.77.0.1:18080").unwrap().read_to_string(&mut text).unwrap();
    server.join().unwrap();
    text
}
