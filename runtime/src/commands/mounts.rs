//! `mounts add` and `mounts remove`: mounts of a running container.

use crate::bundle::{self, Bundle};
use crate::cli::{Globals, Mounts};
use crate::container::{Container, Error, Status};
use crate::namespaces::{self, NEWNS, NEWPID, NEWUSER};
use crate::user_ns::IdMaps;
use crate::{process, rootfs, sys};
use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Mount, Spec};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Adds the mounts of a list, or removes what is mounted at their destinations.
pub fn run(globals: &Globals, args: &Mounts) -> Result<i32> {
    let list: Vec<Mount> =
        sys::read_input(&args.file).and_then(|json| bundle::parse(&json)).with_context(|| args.file.display().to_string())?;
    let container = Container::load(&globals.root, &args.id)?;
    // One change at a time. What another has changed is in the record.
    let _alone = container.lock()?;
    let mut container = Container::load(&globals.root, &args.id)?;
    if matches!(container.status()?, Status::Creating | Status::Stopped) {
        bail!(Error::NotRunning);
    }
    if container.record.namespaces & NEWNS == 0 {
        bail!("the container has no mount namespace of its own (see linux.namespaces): its mounts are the host's");
    }
    let spec = container.config()?;
    let before = spec.mounts().clone().unwrap_or_default();
    if args.remove {
        remove(&mut container, &spec, &list, before)?;
    } else {
        add(&mut container, spec, list, before)?;
    }
    Ok(0)
}

/// What is to be made is on disk first: a checkpoint must know of it.
fn add(container: &mut Container, spec: Spec, list: Vec<Mount>, before: Vec<Mount>) -> Result<()> {
    let mounts = rootfs::Mounts::new(plan(container, spec, list.clone())?)?;
    container.save_mounts(&[before.as_slice(), &list].concat())?;
    let added = process::add_mounts(container, mounts);
    if added.is_err() {
        container.save_mounts(&before)?;
    }
    added
}

fn remove(container: &mut Container, spec: &Spec, list: &[Mount], mut before: Vec<Mount>) -> Result<()> {
    let destinations: Vec<PathBuf> = list.iter().map(|mount| rootfs::clean(mount.destination())).collect();
    let linux = spec.linux().as_ref();
    let kept = [linux.and_then(|l| l.masked_paths().as_deref()), linux.and_then(|l| l.readonly_paths().as_deref())];
    let kept: Vec<PathBuf> = kept.into_iter().flatten().flatten().map(|path| rootfs::clean(Path::new(path))).collect();
    process::remove_mounts(container, &destinations, &kept)?;
    for destination in &destinations {
        // Of several on one point the last was on top.
        if let Some(at) = before.iter().rposition(|mount| rootfs::clean(mount.destination()) == *destination) {
            before.remove(at);
        }
    }
    container.save_mounts(&before)
}

/// The list, read and checked as create does it, for a container as this one is.
fn plan(container: &Container, mut spec: Spec, list: Vec<Mount>) -> Result<rootfs::Plan> {
    let (record, linux) = (&container.record, spec.linux().clone());
    let has = |kind| record.namespaces & kind != 0;
    let maps = IdMaps::new(linux.as_ref())?;
    let path = format!("/proc/{}/ns/user", record.pid);
    let users = has(NEWUSER).then(|| File::open(&path)).transpose().context(path)?;
    spec.set_mounts(Some(list));
    let bundle = Bundle { dir: record.bundle.clone(), spec, json: Vec::new() };
    let context = rootfs::Context {
        privileged: sys::started_as() == 0,
        user_namespace: has(NEWUSER) || !namespaces::in_initial_user_namespace(),
        new_mount_namespace: true,
        new_cgroup_namespace: has(namespaces::NEWCGROUP),
        new_pid_namespace: has(NEWPID),
        new_network_namespace: has(namespaces::NEWNET),
        cgroup_views: Vec::new(),
        mount_label: linux.as_ref().and_then(|l| l.mount_label().as_deref()),
        no_pivot: false,
        id_maps: (&maps.uids, &maps.gids),
        joined_user_namespace: users.as_ref().map(AsFd::as_fd),
    };
    rootfs::Plan::new(&bundle, &context)
}
