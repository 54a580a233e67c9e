//! The Node Resource Interface: where plugins are asked and told. No plugin is served yet: every point lets pass.

use std::sync::Arc;

use oci_spec::runtime::Spec;
use rrun_proto::v1;

use crate::containers::Container;
use crate::error::Result;
use crate::pods::Pod;
use crate::shim::Shim;

/// A sandbox is made; an error takes it down again.
pub async fn run_pod_sandbox(_: &Shim, _: &Arc<Pod>) -> Result<()> {
    Ok(())
}

/// A sandbox is being stopped.
pub async fn stop_pod_sandbox(_: &Shim, _: &Arc<Pod>) {}

/// A sandbox is being removed.
pub async fn remove_pod_sandbox(_: &Shim, _: &Arc<Pod>) {}

/// A container is being made: plugins adjust its specification; an error takes it down again.
pub async fn create_container(_: &Shim, _: &Arc<Pod>, _: &Arc<Container>, _: &mut Spec) -> Result<()> {
    Ok(())
}

/// A container is made.
pub async fn post_create_container(_: &Shim, _: &Arc<Pod>, _: &Arc<Container>) {}

/// A container is about to start.
pub async fn start_container(_: &Shim, _: &Arc<Pod>, _: &Arc<Container>) -> Result<()> {
    Ok(())
}

/// A container runs.
pub async fn post_start_container(_: &Shim, _: &Arc<Pod>, _: &Arc<Container>) {}

/// A container's limits are about to change; plugins may change them further.
pub async fn update_container(_: &Shim, _: &Arc<Pod>, _: &Arc<Container>, _: &mut v1::LinuxContainerResources) -> Result<()> {
    Ok(())
}

/// A container's limits have changed.
pub async fn post_update_container(_: &Shim, _: &Arc<Pod>, _: &Arc<Container>) {}

/// A container has ended.
pub async fn stop_container(_: &Shim, _: &Arc<Container>) {}

/// A container is being removed.
pub async fn remove_container(_: &Shim, _: &Arc<Container>) {}
