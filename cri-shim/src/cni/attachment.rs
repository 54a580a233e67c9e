//! A pod as plugins see it: Kubernetes' CNI_ARGS and the capability arguments. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::config::is_name;
use crate::error::Error;

/// What a pod's attachment to the network needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attachment {
    /// The sandbox's id: CNI_CONTAINERID.
    pub pod_id: String,
    /// `metadata.name`.
    pub pod_name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Path of the pinned network namespace; [`Network::del`](super::Network::del) looks whether it is still there.
    pub netns: String,
    /// `port_mappings`, those with a host port.
    pub port_mappings: Vec<PortMapping>,
    /// `annotations` of the sandbox, all of them.
    pub annotations: BTreeMap<String, String>,
    /// `dns_config`.
    pub dns: Option<Dns>,
    /// `linux.cgroup_parent`, may be empty.
    pub cgroup_parent: String,
}

/// A port of the host that leads into the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// 1 to 65535.
    pub host_port: i32,
    /// 1 to 65535.
    pub container_port: i32,
    /// "tcp", "udp" or "sctp".
    pub protocol: String,
    /// Address of the host, empty for all.
    #[serde(rename = "hostIP")]
    pub host_ip: String,
}

/// The pod's name resolution, as the dns capability has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options of resolv.conf.
    pub options: Vec<String>,
}

impl Attachment {
    /// CNI_ARGS as pairs, in the order that containerd and CRI-O have them.
    pub(super) fn args(&self) -> Result<Vec<(String, String)>, Error> {
        self.check_id()?;
        let pairs = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &self.namespace),
            ("K8S_POD_NAME", &self.pod_name),
            ("K8S_POD_INFRA_CONTAINER_ID", &self.pod_id),
            ("K8S_POD_UID", &self.uid),
        ];
        // CNI_ARGS has no quoting: such a name would be read as more arguments.
        if let Some((key, value)) = pairs.iter().find(|(_, v)| v.contains([';', '=']) || v.contains(char::is_control)) {
            return Err(Error::InvalidArgument(format!(
                "{key}: {value:?} cannot be given to CNI plugins: it has ';', '=' or a control character"
            )));
        }
        Ok(pairs.iter().map(|(k, v)| (String::from(*k), String::from(*v))).collect())
    }

    /// The id becomes part of a file name.
    pub(super) fn check_id(&self) -> Result<(), Error> {
        if is_name(&self.pod_id) { Ok(()) } else { Err(Error::InvalidArgument(format!("{:?} is no sandbox id", self.pod_id))) }
    }

    /// Capability arguments by their conventional names; a plugin gets those that it declares.
    pub(super) fn capabilities(&self) -> Result<Map<String, Value>, Error> {
        let mut all = Map::new();
        if !self.annotations.is_empty() {
            all.insert("io.kubernetes.cri.pod-annotations".into(), json!(self.annotations));
        }
        if let Some(bandwidth) = bandwidth(&self.annotations)? {
            all.insert("bandwidth".into(), bandwidth);
        }
        if !self.cgroup_parent.is_empty() {
            all.insert("cgroupPath".into(), self.cgroup_parent.clone().into());
        }
        if let Some(dns) = &self.dns {
            all.insert("dns".into(), json!(dns));
        }
        if !self.port_mappings.is_empty() {
            self.port_mappings.iter().try_for_each(PortMapping::check)?;
            all.insert("portMappings".into(), json!(self.port_mappings));
        }
        Ok(all)
    }
}

impl PortMapping {
    fn check(&self) -> Result<(), Error> {
        let port = |name: &str, port: i32| match port {
            1..=65535 => Ok(()),
            _ => Err(Error::InvalidArgument(format!("port_mappings: {name} {port} is not between 1 and 65535"))),
        };
        port("host_port", self.host_port)?;
        port("container_port", self.container_port)?;
        if !self.host_ip.is_empty() && self.host_ip.parse::<std::net::IpAddr>().is_err() {
            return Err(Error::InvalidArgument(format!("port_mappings: host_ip {:?} is no address", self.host_ip)));
        }
        match self.protocol.as_str() {
            "tcp" | "udp" | "sctp" => Ok(()),
            other => Err(Error::InvalidArgument(format!("port_mappings: protocol {other:?} is not tcp, udp or sctp"))),
        }
    }
}

/// The bandwidth capability of Kubernetes' annotations: bits per second, the burst as large as a plugin takes it.
fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Value>, Error> {
    let mut limits = Map::new();
    for direction in ["ingress", "egress"] {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        let Some(text) = annotations.get(&key) else { continue };
        let rate = quantity(text).ok_or_else(|| Error::InvalidArgument(format!("annotation {key}: {text:?} is no quantity like 10M")))?;
        if !(1_000..=1_000_000_000_000_000).contains(&rate) {
            return Err(Error::InvalidArgument(format!("annotation {key}: {text:?} is not between 1k and 1P")));
        }
        limits.insert(format!("{direction}Rate"), rate.into());
        limits.insert(format!("{direction}Burst"), u32::MAX.into());
    }
    Ok((!limits.is_empty()).then_some(Value::Object(limits)))
}

/// A quantity of Kubernetes ("1.5M", "64Ki", "1e6", "1500m"), rounded up to a whole number.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c)).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 18 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: u128 = digits.parse().ok()?;
    let (base, power): (u128, i32) = match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (2, 10),
        "Mi" => (2, 20),
        "Gi" => (2, 30),
        "Ti" => (2, 40),
        "Pi" => (2, 50),
        "Ei" => (2, 60),
        exponent => (10, exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|p| (-18..=18).contains(p))?),
    };
    let scaled = if power < 0 { digits } else { digits.checked_mul(base.checked_pow(power.unsigned_abs())?)? };
    let divisor = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let divisor = if power < 0 { divisor.checked_mul(base.checked_pow(power.unsigned_abs())?)? } else { divisor };
    u64::try_from(scaled.div_ceil(divisor)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_kubernetes() {
        let cases = [
            ("10M", 10_000_000),
            ("1Ki", 1024),
            ("1.5k", 1500),
            ("1e6", 1_000_000),
            ("1500m", 2),
            ("0.5Mi", 524_288),
            ("5", 5),
            ("+1E3", 1000),
        ];
        for (text, value) in cases {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for text in ["", "M", "-1M", "1..2", "1 M", "ten", "1KB", "1e99", "9999999999999999999", "1e", "."] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn capabilities_come_from_the_sandbox() {
        let pod = Attachment {
            annotations: [("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned())].into(),
            port_mappings: vec![PortMapping { host_port: 8080, container_port: 80, protocol: "tcp".into(), host_ip: String::new() }],
            dns: Some(Dns { servers: vec!["10.96.0.10".into()], ..Dns::default() }),
            cgroup_parent: "/kubepods/pod1".into(),
            ..Attachment::default()
        };
        assert_eq!(
            Value::Object(pod.capabilities().unwrap()),
            json!({ "bandwidth": { "egressRate": 10_000_000, "egressBurst": 4_294_967_295u32 },
                "cgroupPath": "/kubepods/pod1",
                "dns": { "servers": ["10.96.0.10"], "searches": [], "options": [] },
                "io.kubernetes.cri.pod-annotations": { "kubernetes.io/egress-bandwidth": "10M" },
                "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "" }] })
        );
    }

    #[test]
    fn wrong_requests_are_the_callers_fault() {
        let error = |pod: Attachment| match pod.args().and_then(|_| pod.capabilities()) {
            Err(Error::InvalidArgument(text)) => text,
            other => panic!("{other:?}"),
        };
        let pod = Attachment { pod_id: "a1".into(), ..Attachment::default() };
        assert!(error(Attachment { pod_id: "../a".into(), ..pod.clone() }).contains("is no sandbox id"));
        assert!(error(Attachment { pod_name: "a;K8S_POD_NAMESPACE=kube-system".into(), ..pod.clone() }).starts_with("K8S_POD_NAME: "));
        let annotate = |text: &str| [("kubernetes.io/ingress-bandwidth".to_owned(), text.to_owned())].into();
        assert!(error(Attachment { annotations: annotate("much"), ..pod.clone() }).contains("is no quantity"));
        assert!(error(Attachment { annotations: annotate("1"), ..pod.clone() }).contains("between 1k and 1P"));
        let port = PortMapping { host_port: 70000, container_port: 80, protocol: "tcp".into(), host_ip: String::new() };
        assert!(error(Attachment { port_mappings: vec![port], ..pod }).contains("host_port 70000"));
    }
}
