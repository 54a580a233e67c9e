//! Version, Status, RuntimeConfig: what the runtime says of itself.

use std::collections::BTreeMap;

use rrun_proto::v1;
use serde_json::json;

use crate::containers::oci::{self, CgroupDriver};
use crate::shim::Shim;

/// The name by which the runtime goes.
const NAME: &str = "rrun-cri";

pub(super) fn version() -> v1::VersionResponse {
    v1::VersionResponse {
        version: "0.1.0".into(),
        runtime_name: NAME.into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}

pub(super) fn status(shim: &Shim, verbose: bool) -> v1::StatusResponse {
    let network = shim.network.status();
    let ready = v1::RuntimeCondition { r#type: "RuntimeReady".into(), status: true, ..Default::default() };
    let network = v1::RuntimeCondition {
        r#type: "NetworkReady".into(),
        status: network.is_ok(),
        reason: network.as_ref().err().map_or_else(String::new, |reason| reason.reason.to_owned()),
        message: network.as_ref().err().map_or_else(String::new, |reason| reason.message.clone()),
    };
    let default = shim.runtimes.get("").into_iter().map(|runtime| (String::new(), runtime));
    let named = shim.runtimes.iter().map(|runtime| (runtime.name.clone(), runtime.clone()));
    let handler = |(name, runtime): (String, std::sync::Arc<crate::runtime::Runtime>)| {
        let features = oci::features(&runtime.features, &shim.host);
        v1::RuntimeHandler {
            name,
            features: Some(v1::RuntimeHandlerFeatures {
                recursive_read_only_mounts: features.recursive_read_only_mounts,
                user_namespaces: features.user_namespaces,
            }),
        }
    };
    v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions: vec![ready, network] }),
        info: if verbose { info(shim) } else { BTreeMap::new() },
        runtime_handlers: default.chain(named).map(handler).collect(),
        features: Some(v1::RuntimeFeatures { supplemental_groups_policy: true, user_namespaces_host_network: true, mount_options: true }),
    }
}

fn info(shim: &Shim) -> BTreeMap<String, String> {
    let mut config = json!(shim.config);
    if let Some(object) = config.as_object_mut() {
        // Names under which containerd shows its own.
        object.insert("rootDir".into(), json!(shim.config.root));
        object.insert("stateDir".into(), json!(shim.config.state));
    }
    let jobs = json!(shim.jobs.names());
    [("config".to_owned(), config.to_string()), ("jobs".to_owned(), jobs.to_string())].into()
}

pub(super) fn runtime_config(shim: &Shim) -> v1::RuntimeConfigResponse {
    let driver = match shim.host.cgroup_driver {
        CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
        CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
    };
    v1::RuntimeConfigResponse { linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) }
}
