//! A pod's attachment to the network, from its configuration.

use rrun_proto::v1;

use super::Pod;
use crate::cni::{Attachment, Dns, PortMapping};
use crate::error::{Error, Result};
use crate::metrics::NETWORK;
use crate::record;
use crate::shim::Shim;
use crate::trace::Span;

/// CNI ADD; the pod's addresses and what the plugins said.
pub(crate) async fn add(shim: &Shim, pod: &Pod) -> Result<(Vec<String>, serde_json::Value)> {
    let _timer = NETWORK.time("ADD");
    let attachment = attachment(&pod.record());
    let result = Span::child("CNI ADD").of(shim.network.add(&attachment)).await?;
    if result.ips.is_empty() {
        return Err(Error::Internal(anyhow::anyhow!("the CNI plugins gave pod sandbox {} no address", pod.id)));
    }
    Ok((result.ips.iter().map(ToString::to_string).collect(), result.raw.into()))
}

/// CNI DEL; nothing there is success.
pub(crate) async fn del(shim: &Shim, record: &record::Pod) -> Result<()> {
    let _timer = NETWORK.time("DEL");
    Span::child("CNI DEL").of(shim.network.del(&attachment(record))).await
}

/// What the plugins are told of a pod.
pub fn attachment(record: &record::Pod) -> Attachment {
    let config = &record.config;
    let data = config.metadata.clone().unwrap_or_default();
    let port = |port: &v1::PortMapping| PortMapping {
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: port.protocol().as_str_name().to_lowercase(),
        host_ip: port.host_ip.clone(),
    };
    Attachment {
        pod_id: record.id.clone(),
        pod_name: data.name,
        namespace: data.namespace,
        uid: data.uid,
        netns: record.netns.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
        port_mappings: config.port_mappings.iter().filter(|port| port.host_port > 0).map(port).collect(),
        annotations: config.annotations.clone(),
        dns: config.dns_config.clone().map(|dns| Dns { servers: dns.servers, searches: dns.searches, options: dns.options }),
        cgroup_parent: config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default(),
    }
}
