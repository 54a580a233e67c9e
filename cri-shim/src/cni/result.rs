//! CNI results of all versions: what is in them, and one version's form as another's. Pure.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::config::{NEWEST, Version};

/// Order of a pod's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IpPref {
    /// The first IPv4 address, then the rest as the plugins gave them.
    Ipv4,
    /// The first IPv6 address, then the rest as the plugins gave them.
    Ipv6,
    /// As the plugins gave them.
    Cni,
}

impl IpPref {
    /// The setting `cni.ip_pref`, checked where it was read.
    pub(super) fn of(setting: &str) -> IpPref {
        match setting {
            "ipv6" => IpPref::Ipv6,
            "cni" => IpPref::Cni,
            _ => IpPref::Ipv4,
        }
    }
}

/// An interface that plugins made, in the pod or on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Path of the network namespace that it is in; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// What plugins say about name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResultDns {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: String,
    /// Search domains.
    pub search: Vec<String>,
    /// Options of resolv.conf.
    pub options: Vec<String>,
}

/// A result, understood.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    pub(super) interfaces: Vec<Interface>,
    pub(super) ips: Vec<(IpAddr, Option<usize>)>,
    pub(super) dns: ResultDns,
}

/// Reads a plugin's answer to ADD. An answer without a version has the configuration's (as libcni takes it).
pub(super) fn read(bytes: &[u8], version: Version) -> Result<Value> {
    let value: Value = serde_json::from_slice(bytes).context("no JSON")?;
    let Value::Object(mut object) = value else { bail!("no JSON object") };
    if object.get("cniVersion").and_then(Value::as_str).unwrap_or("").is_empty() {
        object.insert("cniVersion".into(), version.to_string().into());
    }
    let value = Value::Object(object);
    parse(&value)?;
    Ok(value)
}

/// Understands a result of any version.
pub(super) fn parse(result: &Value) -> Result<Parsed> {
    let upright = convert(result, NEWEST)?;
    let raw: Raw = serde_json::from_value(upright).context("unexpected shape")?;
    let mut ips = Vec::new();
    for (i, ip) in raw.ips.iter().flatten().enumerate() {
        let address = ip.address.split('/').next().unwrap_or_default();
        let address = address.parse().ok().with_context(|| format!("ips[{i}].address: {:?} is no address", ip.address))?;
        if let Some(n) = ip.interface {
            ensure!(n < raw.interfaces.iter().flatten().count(), "ips[{i}].interface: there is no interface {n}");
        }
        ips.push((address, ip.interface));
    }
    Ok(Parsed { interfaces: raw.interfaces.unwrap_or_default(), ips, dns: raw.dns.unwrap_or_default() })
}

#[derive(Deserialize)]
struct Raw {
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<RawIp>>,
    dns: Option<ResultDns>,
}

#[derive(Deserialize)]
struct RawIp {
    address: String,
    interface: Option<usize>,
}

impl Parsed {
    /// The pod's addresses, the preferred first: those of `ifname` inside the pod. An address without interface (plugins
    /// before 0.3.0, and IPAM-like ones) is the pod's.
    pub(super) fn pod_ips(&self, ifname: &str, pref: IpPref) -> Vec<IpAddr> {
        let mut ips: Vec<IpAddr> = Vec::new();
        for (ip, index) in &self.ips {
            let here = index.and_then(|i| self.interfaces.get(i)).is_none_or(|i| i.name == ifname && !i.sandbox.is_empty());
            if here && !ips.contains(ip) {
                ips.push(*ip);
            }
        }
        let first = match pref {
            IpPref::Ipv4 => ips.iter().position(IpAddr::is_ipv4),
            IpPref::Ipv6 => ips.iter().position(IpAddr::is_ipv6),
            IpPref::Cni => None,
        };
        ips[..first.map_or(0, |i| i + 1)].rotate_right(usize::from(first.is_some()));
        ips
    }
}

/// The result in the form of another version: what a plugin of that version reads as `prevResult`. Before 0.3.0 there
/// were `ip4` and `ip6`; until 0.4.0 an address said its `version`. The same form is left as it is.
pub(super) fn convert(result: &Value, to: Version) -> Result<Value> {
    let mut object = result.as_object().context("no JSON object")?.clone();
    let version = object.get("cniVersion").and_then(Value::as_str).unwrap_or("");
    let from = Version::parse(version).context("cniVersion")?;
    ensure!(from <= NEWEST, "cniVersion: {from} is newer than {NEWEST}, the newest supported");
    if from == to {
        return Ok(result.clone());
    }
    ensure!(to >= Version(0, 3, 0), "a result of version {from} has no form in version {to}");
    if from < Version(0, 3, 0) {
        lift(&mut object);
    }
    let old = Version(1, 0, 0);
    for ip in object.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(ip) = ip.as_object_mut() else { bail!("ips: not a list of objects") };
        if to >= old {
            ip.remove("version");
        } else if !ip.contains_key("version") {
            let six = ip.get("address").and_then(Value::as_str).is_some_and(|a| a.contains(':'));
            ip.insert("version".into(), if six { "6" } else { "4" }.into());
        }
    }
    object.insert("cniVersion".into(), to.to_string().into());
    Ok(Value::Object(object))
}

/// `ip4` and `ip6` as lists of addresses and routes.
fn lift(object: &mut Map<String, Value>) {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for key in ["ip4", "ip6"] {
        let Some(Value::Object(mut ip)) = object.remove(key) else { continue };
        if let Some(Value::Array(more)) = ip.remove("routes") {
            routes.extend(more);
        }
        let mut lifted = json!({ "address": ip.remove("ip") });
        if let Some(gateway) = ip.remove("gateway") {
            lifted["gateway"] = gateway;
        }
        ips.push(lifted);
    }
    object.insert("ips".into(), ips.into());
    object.insert("routes".into(), routes.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version(0, 4, 0);

    fn ips(result: Value, pref: IpPref) -> Vec<String> {
        parse(&result).unwrap().pod_ips("eth0", pref).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_dual_stack_pod_is_ordered_by_preference() {
        let result = json!({ "cniVersion": "1.0.0",
            "interfaces": [{ "name": "cni0" }, { "name": "veth1" }, { "name": "eth0", "sandbox": "/run/netns/x" }],
            "ips": [{ "interface": 2, "address": "fd00::5/64" }, { "interface": 2, "address": "10.1.0.5/16" },
                    { "interface": 2, "address": "10.1.0.6/16" }, { "interface": 0, "address": "10.1.0.1/16" }] });
        assert_eq!(ips(result.clone(), IpPref::Ipv4), ["10.1.0.5", "fd00::5", "10.1.0.6"]);
        assert_eq!(ips(result.clone(), IpPref::Ipv6), ["fd00::5", "10.1.0.5", "10.1.0.6"]);
        assert_eq!(ips(result, IpPref::Cni), ["fd00::5", "10.1.0.5", "10.1.0.6"]);
    }

    #[test]
    fn every_version_is_understood() {
        let old = json!({ "ip4": { "ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{ "dst": "0.0.0.0/0" }] }, "ip6": { "ip": "fd00::5/64" } });
        assert_eq!(ips(old.clone(), IpPref::Ipv4), ["10.1.0.5", "fd00::5"]);
        let middle = json!({ "cniVersion": "0.3.1", "ips": [{ "version": "4", "address": "10.1.0.5/16" }], "dns": {} });
        assert_eq!(ips(middle.clone(), IpPref::Ipv4), ["10.1.0.5"]);
        assert_eq!(convert(&middle, NEWEST).unwrap(), json!({ "cniVersion": "1.1.0", "ips": [{ "address": "10.1.0.5/16" }], "dns": {} }));
        assert_eq!(
            convert(&old, OLD).unwrap(),
            json!({ "cniVersion": "0.4.0", "routes": [{ "dst": "0.0.0.0/0" }],
                "ips": [{ "version": "4", "address": "10.1.0.5/16", "gateway": "10.1.0.1" }, { "version": "6", "address": "fd00::5/64" }] })
        );
        let new = json!({ "cniVersion": "1.1.0", "ips": [{ "address": "fd00::5/64" }] });
        assert_eq!(convert(&new, OLD).unwrap(), json!({ "cniVersion": "0.4.0", "ips": [{ "version": "6", "address": "fd00::5/64" }] }));
        assert!(convert(&json!({ "cniVersion": "7.0.0" }), NEWEST).is_err());
    }

    #[test]
    fn garbage_is_named() {
        let error = |text: &str| format!("{:#}", read(text.as_bytes(), NEWEST).unwrap_err());
        assert!(error("hello").starts_with("no JSON: "));
        assert!(error("").starts_with("no JSON: "));
        assert_eq!(error("null"), "no JSON object");
        assert_eq!(error("[1]"), "no JSON object");
        assert_eq!(error(r#"{"ips":[{"address":"10.0.0.300/8"}]}"#), "ips[0].address: \"10.0.0.300/8\" is no address");
        assert_eq!(
            error(r#"{"ips":[{"address":"10.0.0.3/8","interface":1}],"interfaces":[{"name":"a"}]}"#),
            "ips[0].interface: there is no interface 1"
        );
        assert!(error(r#"{"ips":{}}"#).starts_with("unexpected shape: "));
        assert!(error(r#"{"ips":[{"address":"10.0.0.3/8","interface":-1}]}"#).starts_with("unexpected shape: "));
    }

    #[test]
    fn a_missing_version_is_the_configurations() {
        assert_eq!(read(b"{}", OLD).unwrap(), json!({ "cniVersion": "0.4.0" }));
        assert_eq!(read(br#"{"cniVersion":"0.3.1"}"#, OLD).unwrap(), json!({ "cniVersion": "0.3.1" }));
    }
}
