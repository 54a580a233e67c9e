//! `linux.namespaces`, and the rules of namespaces that a pod's or container's configuration can break.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};
use rrun_proto::v1::{self, NamespaceMode};

use super::{Features, Input, PidNamespace, invalid};
use crate::error::Result;

/// The namespaces a container joins or gets; those of the host are not in the list.
pub(super) fn namespaces(input: &Input<'_>) -> Result<Vec<LinuxNamespace>> {
    let pod = input.pod.namespaces;
    let user = pod.user.as_ref().map(|user| user.path.as_path());
    let mut list = Vec::new();
    let mut add = |typ, path: Option<&Path>| -> Result<()> {
        let builder = LinuxNamespaceBuilder::default().typ(typ);
        let builder = path.into_iter().fold(builder, |builder, path| builder.path(path));
        list.push(builder.build().map_err(anyhow::Error::from)?);
        Ok(())
    };
    for (typ, path) in [
        (LinuxNamespaceType::User, user),
        (LinuxNamespaceType::Ipc, pod.ipc.as_deref()),
        (LinuxNamespaceType::Uts, pod.uts.as_deref()),
        (LinuxNamespaceType::Network, pod.network.as_deref()),
    ] {
        if path.is_some() {
            add(typ, path)?;
        }
    }
    match &pod.pid {
        PidNamespace::Host => (),
        PidNamespace::Own => add(LinuxNamespaceType::Pid, None)?,
        PidNamespace::Path(path) => add(LinuxNamespaceType::Pid, Some(path))?,
    }
    add(LinuxNamespaceType::Mount, None)?;
    if input.host.cgroup2 && !input.security().privileged {
        add(LinuxNamespaceType::Cgroup, None)?;
    }
    Ok(list)
}

/// A pod's namespaces, and whether the handler can make them.
pub(super) fn check_pod(options: &v1::NamespaceOption, handler: &str, features: Features) -> Result<()> {
    let field = "linux.security_context.namespace_options";
    for (name, number) in [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)] {
        let unknown = |_| invalid(format!("{field}.{name}: {number} is no mode that the interface has a number for"));
        NamespaceMode::try_from(number).map_err(unknown)?;
    }
    if options.pid() == NamespaceMode::Target {
        return Err(invalid(format!("{field}.pid: TARGET is not for pods; POD, CONTAINER or NODE")));
    }
    for (name, mode) in [("network", options.network()), ("ipc", options.ipc())] {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            return Err(invalid(format!("{field}.{name}: {} is not for pods; POD or NODE", mode.as_str_name())));
        }
    }
    let Some(user) = &options.userns_options else { return Ok(()) };
    check_user(user, field)?;
    if user.mode() == NamespaceMode::Pod {
        if !features.user_namespaces {
            return Err(invalid(format!("{field}.userns_options: handler {handler:?} or this kernel has no user namespaces")));
        }
        for (name, mode) in [("pid", options.pid()), ("ipc", options.ipc())] {
            if mode == NamespaceMode::Node {
                return Err(invalid(format!("{field}.{name}: NODE does not go together with a user namespace")));
            }
        }
    }
    Ok(())
}

/// One range for users and one for groups, each of which begins at the container's 0.
fn check_user(user: &v1::UserNamespace, field: &str) -> Result<()> {
    let field = format!("{field}.userns_options");
    match user.mode() {
        NamespaceMode::Node if user.uids.is_empty() && user.gids.is_empty() => Ok(()),
        NamespaceMode::Node => Err(invalid(format!("{field}: mode NODE takes no uids or gids"))),
        NamespaceMode::Pod => [("uids", &user.uids), ("gids", &user.gids)].into_iter().try_for_each(|(name, maps)| {
            let [map] = maps.as_slice() else {
                return Err(invalid(format!("{field}.{name}: {} ranges; exactly one is supported", maps.len())));
            };
            match map {
                v1::IdMapping { container_id: 1.., .. } => {
                    Err(invalid(format!("{field}.{name}: the range begins at {} in the container; it has to begin at 0", map.container_id)))
                }
                v1::IdMapping { length: 0, .. } => Err(invalid(format!("{field}.{name}: the range is empty"))),
                _ if map.host_id.checked_add(map.length).is_none() => {
                    Err(invalid(format!("{field}.{name}: the range goes beyond the last id")))
                }
                _ => Ok(()),
            }
        }),
        mode => Err(invalid(format!("{field}.mode: {} is not supported; POD or NODE", mode.as_str_name()))),
    }
}

/// A container's namespaces: those of its pod, but for the process ids.
pub(super) fn check_container(input: &Input<'_>) -> Result<()> {
    let field = "linux.security_context";
    let pod = input.pod_security();
    if input.security().privileged && !pod.is_some_and(|pod| pod.privileged) {
        return Err(invalid(format!("{field}.privileged: the pod is not privileged")));
    }
    let Some(options) = &input.security().namespace_options else { return Ok(()) };
    if options.pid() == NamespaceMode::Target && options.target_id.is_empty() {
        return Err(invalid(format!("{field}.namespace_options.target_id: empty; mode TARGET needs a container")));
    }
    let user =
        |options: Option<&v1::NamespaceOption>| options.and_then(|o| o.userns_options.clone()).filter(|u| u.mode() != NamespaceMode::Node);
    let wanted = user(Some(options));
    if let Some(user) = &wanted {
        check_user(user, &format!("{field}.namespace_options"))?;
    }
    if wanted != user(pod.and_then(|pod| pod.namespace_options.as_ref())) {
        return Err(invalid(format!("{field}.namespace_options.userns_options: not those of the pod")));
    }
    Ok(())
}
