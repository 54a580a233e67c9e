//! Pods on a real network: bridge, host-local, portmap.

use rrun_proto::v1;

use crate::client::{namespaces, script};
use crate::node::{Network, Node};
use crate::node_or_skip;

#[test]
fn pods_reach_each_other_and_ports_lead_to_them() {
    tests::require!(std::path::Path::new("/usr/lib/cni/bridge").exists(), "no containernetworking-plugins");
    tests::require!(tests::host::find("iptables").is_some(), "no iptables");
    let node = node_or_skip!(Node::new(Network::Bridge));
    let on_network = |port: Option<v1::PortMapping>| {
        node.pod_with(|config| {
            namespaces(config).network = v1::NamespaceMode::Pod.into();
            config.port_mappings.extend(port);
        })
    };
    let server = on_network(Some(v1::PortMapping { host_port: 12345, container_port: 80, ..Default::default() }));
    let listening = server.start(&script("echo up; while :; do echo hello | nc -l -p 80; done"));
    listening.wait_for_line("up");
    let ip = server.status().unwrap().network.unwrap().ip;
    assert!(ip.starts_with("10.66.0."), "{ip}");
    let client = on_network(None);
    let seen = client.output(&script(&format!("ip -4 addr show dev eth0 | grep -o 'inet [0-9.]*'; ip addr show lo | grep -o 'UP' | head -n 1; for try in 1 2 3 4 5 6 7 8 9; do nc -w 2 {ip} 80 </dev/null && break; sleep 0.2; done")));
    let own = client.status().unwrap().network.unwrap().ip;
    assert_eq!(seen, [format!("inet {own}"), "UP".into(), "hello".into()]);
    assert_ne!(own, ip);
    let gateway = "10.66.0.1";
    let forwarded =
        node.sh(&format!("for try in 1 2 3 4 5 6 7 8 9; do busybox nc -w 2 {gateway} 12345 </dev/null && break; sleep 0.2; done"));
    assert_eq!(forwarded, "hello", "the port of the host");
    // Addresses come back, also after the daemon was away, and rules go.
    node.restart_daemon();
    assert_eq!(server.status().unwrap().network.unwrap().ip, ip);
    server.end();
    client.end();
    node.assert_empty();
    assert!(!node.sh("iptables-save").contains("12345"), "the rules of the port are gone");
}
