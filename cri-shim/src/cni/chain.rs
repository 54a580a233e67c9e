//! One network's operations: the plugins of its list in order, with what each gets on its standard input.
//!
//! Called by `Network`, which decides what runs and when. CNI specification 1.1.0, section 3.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::cache::{Cache, Cached};
use super::config::{NetworkConf, PluginConf, Version};
use super::error::{Failure, PluginError};
use super::exec::{Call, Exec, shorten};
use super::result::{convert, read};
use crate::error::Error;
use crate::trace::Span;

/// How long STATUS may take: it is asked often and has nothing to do.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);

/// ADD: the first plugin makes, the next ones add to it. A failed ADD is followed by DEL, as the specification demands.
pub(super) async fn add(exec: &Exec, cache: &Cache, network: &NetworkConf, mut cached: Cached) -> Result<Value, Error> {
    // On disk before anything can exist, so that whatever happens to us DEL finds it.
    write(cache, &cached).await?;
    let added = match add_each(exec, network, &cached).await {
        Ok(result) => {
            cached.result = Some(result.clone());
            write(cache, &cached).await.map(|()| result)
        }
        failed => failed,
    };
    if added.is_err()
        && let Err(second) = del(exec, cache, network, &cached).await
    {
        tracing::warn!(pod = cached.container_id, "DEL after a failed ADD: {second}; it is tried again when the pod is stopped");
    }
    added
}

async fn add_each(exec: &Exec, network: &NetworkConf, cached: &Cached) -> Result<Value, Error> {
    let mut result: Option<Value> = None;
    for plugin in &network.plugins {
        let previous = result.as_ref().map(|r| convert(r, network.version)).transpose()?;
        let input = input(network, plugin, previous, Some(cached));
        let answer = run(exec, "ADD", network, plugin, Some(cached), &cached.netns, input).await?;
        result = Some(read(&answer, network.version).map_err(|e| {
            let failure = Failure::Garbage { problem: format!("{e:#}"), output: shorten(&answer) };
            PluginError { plugin: plugin.kind.clone(), network: network.name.clone(), command: "ADD", failure }
        })?);
    }
    result.with_context(|| format!("network {:?} has no plugins", network.name)).map_err(Error::Internal)
}

/// DEL in reverse order with ADD's result; then the attachment is forgotten. May be repeated.
pub(super) async fn del(exec: &Exec, cache: &Cache, network: &NetworkConf, cached: &Cached) -> Result<(), Error> {
    let previous = previous(network, cached);
    let netns = if is_netns(&cached.netns) { cached.netns.as_str() } else { "" };
    for plugin in network.plugins.iter().rev() {
        let input = input(network, plugin, previous.clone(), Some(cached));
        run(exec, "DEL", network, plugin, Some(cached), netns, input).await?;
    }
    let (cache, cached) = (cache.clone(), cached.clone());
    blocking(move || cache.remove(&cached)).await
}

/// CHECK in order, where the network allows it and its version has it.
pub(super) async fn check(exec: &Exec, network: &NetworkConf, cached: &Cached) -> Result<(), Error> {
    if network.disable_check || network.version < Version(0, 4, 0) {
        return Ok(());
    }
    let previous = previous(network, cached);
    for plugin in &network.plugins {
        let input = input(network, plugin, previous.clone(), Some(cached));
        run(exec, "CHECK", network, plugin, Some(cached), &cached.netns, input).await?;
    }
    Ok(())
}

/// STATUS, from 1.1.0 on; for any network, that its plugins are there.
pub(super) async fn status(exec: &Exec, network: &NetworkConf) -> Result<(), PluginError> {
    let exec = exec.within(STATUS_PATIENCE);
    for plugin in &network.plugins {
        if network.version >= Version(1, 1, 0) {
            run(&exec, "STATUS", network, plugin, None, "", input(network, plugin, None, None)).await?;
        } else if let Err(failure) = exec.find(&plugin.kind) {
            return Err(missing(network, plugin, failure));
        }
    }
    Ok(())
}

/// What can be said of a network before its plugins are asked.
pub(super) fn unasked(exec: &Exec, network: &NetworkConf) -> Option<String> {
    let missing = network.plugins.iter().find_map(|p| exec.find(&p.kind).err().map(|failure| missing(network, p, failure)));
    let ask = || (network.version >= Version(1, 1, 0)).then(|| format!("CNI network {:?}: its plugins are not asked yet", network.name));
    missing.map(|e| e.to_string()).or_else(ask)
}

fn missing(network: &NetworkConf, plugin: &PluginConf, failure: Failure) -> PluginError {
    PluginError { plugin: plugin.kind.clone(), network: network.name.clone(), command: "STATUS", failure }
}

/// GC, from 1.1.0 on: every plugin hears which attachments are valid, (container id, interface). All errors are returned.
pub(super) async fn gc(exec: &Exec, network: &NetworkConf, valid: &[(String, String)]) -> Vec<PluginError> {
    let mut errors = Vec::new();
    if network.version < Version(1, 1, 0) {
        return errors;
    }
    let valid: Value = valid.iter().map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname })).collect();
    for plugin in &network.plugins {
        let mut object = input(network, plugin, None, None);
        // The second name is what the specification first printed by mistake; plugins read either.
        object.insert("cni.dev/valid-attachments".into(), valid.clone());
        object.insert("cni.dev/attachments".into(), valid.clone());
        if let Err(e) = run(exec, "GC", network, plugin, None, "", object).await {
            errors.push(e);
        }
    }
    errors
}

/// Whether a network namespace is mounted at `path` (a path alone may be what is left of a pin).
pub(super) fn is_netns(path: &str) -> bool {
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    !path.is_empty() && rustix::fs::statfs(Path::new(path)).is_ok_and(|s| s.f_type as u64 == NSFS_MAGIC)
}

/// Runs blocking work on files.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Internal(e.into()))?.map_err(Error::Internal)
}

async fn write(cache: &Cache, cached: &Cached) -> Result<(), Error> {
    let (cache, cached) = (cache.clone(), cached.clone());
    blocking(move || cache.write(&cached)).await
}

/// ADD's result for DEL and CHECK, from 0.4.0 on. One that cannot be read is left out: plugins must do without.
fn previous(network: &NetworkConf, cached: &Cached) -> Option<Value> {
    let result = cached.result.as_ref().filter(|_| network.version >= Version(0, 4, 0))?;
    convert(result, network.version).ok()
}

/// The plugin's configuration with what this run adds to it.
fn input(network: &NetworkConf, plugin: &PluginConf, previous: Option<Value>, cached: Option<&Cached>) -> Map<String, Value> {
    let mut object = plugin.raw.clone();
    object.insert("name".into(), network.name.clone().into());
    object.insert("cniVersion".into(), network.version.to_string().into());
    if let Some(previous) = previous {
        object.insert("prevResult".into(), previous);
    }
    let declared = cached.map(|c| c.capability_args.iter().filter(|(key, _)| plugin.has(key)).map(|(k, v)| (k.clone(), v.clone())));
    let runtime: Map<String, Value> = declared.into_iter().flatten().collect();
    if !runtime.is_empty() {
        object.insert("runtimeConfig".into(), runtime.into());
    }
    object
}

async fn run(
    exec: &Exec,
    command: &'static str,
    network: &NetworkConf,
    plugin: &PluginConf,
    cached: Option<&Cached>,
    netns: &str,
    input: Map<String, Value>,
) -> Result<Vec<u8>, PluginError> {
    let args = cached.map(|c| c.cni_args.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(";")).unwrap_or_default();
    let call = Call {
        command,
        plugin: &plugin.kind,
        network: &network.name,
        container_id: cached.map_or("", |c| &c.container_id),
        netns,
        ifname: cached.map_or("", |c| &c.if_name),
        args: &args,
        stdin: Value::Object(input).to_string().into_bytes(),
    };
    Span::child(&format!("CNI {command}: {}", plugin.kind)).of(exec.run(&call)).await
}
