//! The plan of a new container: all that its configuration asks for, checked and converted before
//! anything is made. Init interprets it (init.rs), the parent keeps its side of it (parent.rs).

use super::setup::Setup;
use crate::bundle::Bundle;
use crate::cgroups::{self, Cgroup};
use crate::cli::{CgroupManager, Create, Globals};
use crate::container::Record;
use crate::intel_rdt;
use crate::namespaces::{self, NEWCGROUP, NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS, Namespaces};
use crate::net_devices::{self, NetDevice};
use crate::rootfs;
use crate::sys;
use crate::sysctl::Sysctls;
use crate::user_ns::IdMaps;
use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Hooks, LinuxResources, Mount, Spec};
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::path::Path;

/// What `create` and `run` will do.
#[derive(Debug)]
pub struct Plan {
    /// Container id.
    pub id: String,
    /// Namespaces made and joined.
    pub namespaces: Namespaces,
    /// Id maps of a new user namespace.
    pub id_maps: IdMaps,
    /// Mounts, devices, masks.
    pub rootfs: rootfs::Plan,
    /// The process.
    pub setup: Setup,
    /// Where its cgroups are.
    pub cgroup: Cgroup,
    /// Who may divide the v2 cgroup: a user of the host.
    pub cgroup_owner: Option<u32>,
    /// Their limits.
    pub resources: Option<LinuxResources>,
    /// The configuration's annotations.
    pub annotations: HashMap<String, String>,
    /// `hostname`.
    pub hostname: Option<String>,
    /// `domainname`.
    pub domainname: Option<CString>,
    /// `linux.sysctl`, checked.
    pub sysctls: Sysctls,
    /// `linux.netDevices`.
    pub net_devices: Vec<NetDevice>,
    /// `linux.intelRdt`.
    pub intel_rdt: Option<intel_rdt::Plan>,
    /// `hooks`.
    pub hooks: Hooks,
    /// The caller is root, in whatever user namespace: it may write maps and mount.
    pub privileged: bool,
    /// The caller has no power over the host.
    pub rootless: bool,
}

impl Plan {
    /// Reads the whole configuration.
    pub fn new(globals: &Globals, args: &Create, bundle: &Bundle) -> Result<Plan> {
        let spec = &bundle.spec;
        let linux = spec.linux().as_ref();
        let privileged = sys::started_as() == 0;
        let initial = namespaces::in_initial_user_namespace();
        let rootless = globals.rootless.unwrap_or(!privileged || !initial);

        let mut namespaces = Namespaces::new(linux)?;
        let mut id_maps = IdMaps::new(linux)?;
        if !privileged && !namespaces.has(NEWUSER) {
            // An ordinary user can make a container only in a user namespace of its own.
            namespaces.new |= NEWUSER;
            id_maps = IdMaps::for_ordinary_user()?;
        }
        if namespaces.new & NEWUSER != 0 && id_maps.is_empty() {
            bail!("linux.uidMappings, linux.gidMappings: a new user namespace needs both");
        }
        if namespaces.new & NEWUSER == 0 && !namespaces.joins(NEWUSER) && !id_maps.is_empty() {
            bail!("linux.uidMappings: needs a user namespace in linux.namespaces");
        }

        let process = spec.process().as_ref().context("process: missing; it must say what to run")?;
        let new_user = namespaces.new & NEWUSER != 0;
        if new_user {
            id_maps.check_process(process.user().uid(), process.user().gid())?;
        }
        let keep_groups = new_user && !id_maps.allows_setgroups(privileged);
        let mut setup = Setup::new(process, linux, keep_groups)?;
        if !args.no_new_keyring {
            setup.keyring = Some(CString::new(format!("_ses.{}", args.id))?);
        }
        setup.first_closed = 3 + args.preserve_fds;
        setup.user_namespace = namespaces.has(NEWUSER);

        let named = |field: &str, name: &Option<String>| -> Result<Option<String>> {
            let name = name.clone().filter(|n| !n.is_empty());
            if name.is_some() && !namespaces.has(NEWUTS) {
                bail!("{field}: unable to set without a private UTS namespace (see linux.namespaces)");
            }
            Ok(name)
        };
        let hostname = named("hostname", spec.hostname())?;
        let domainname = named("domainname", spec.domainname())?.map(CString::new).transpose().context("domainname")?;

        let driver = match globals.cgroup_manager {
            CgroupManager::Cgroupfs => cgroups::Driver::Cgroupfs,
            CgroupManager::Systemd => cgroups::Driver::Systemd,
            CgroupManager::Disabled => cgroups::Driver::Disabled,
        };
        let cgroup = Cgroup::plan(linux, &args.id, driver, rootless)?;
        let context = rootfs::Context {
            privileged,
            user_namespace: namespaces.has(NEWUSER) || !initial,
            new_mount_namespace: namespaces.has(NEWNS),
            new_cgroup_namespace: namespaces.has(NEWCGROUP),
            new_pid_namespace: namespaces.has(NEWPID),
            new_network_namespace: namespaces.has(NEWNET),
            cgroup_views: cgroup.views(),
            mount_label: linux.and_then(|l| l.mount_label().as_deref()),
            no_pivot: args.no_pivot,
            id_maps: (&id_maps.uids, &id_maps.gids),
            joined_user_namespace: namespaces.joined.iter().find(|j| j.kind == NEWUSER).map(|j| j.fd.as_fd()),
        };
        Ok(Plan {
            id: args.id.clone(),
            net_devices: net_devices::plan(linux, &namespaces, rootless)?,
            intel_rdt: intel_rdt::Plan::new(linux, &args.id)?,
            sysctls: Sysctls::new(linux, &namespaces)?,
            rootfs: rootfs::Plan::new(bundle, &context)?,
            setup,
            cgroup,
            cgroup_owner: cgroup_owner(spec, &namespaces, &id_maps),
            resources: linux.and_then(|l| l.resources().clone()),
            annotations: spec.annotations().clone().unwrap_or_default(),
            hostname,
            domainname,
            hooks: spec.hooks().clone().unwrap_or_default(),
            privileged,
            rootless,
            namespaces,
            id_maps,
        })
    }

    /// The first record: what is going to be made.
    pub fn record(&self, bundle: &Bundle) -> Record {
        Record {
            oci_version: bundle.spec.version().clone(),
            id: self.id.clone(),
            bundle: bundle.dir.clone(),
            rootfs: bundle.rootfs(),
            created: crate::clock::rfc3339_nano(std::time::SystemTime::now()),
            owner: sys::started_as(),
            annotations: self.annotations.clone().into_iter().collect(),
            cgroup: self.cgroup.record(),
            rootless: self.rootless,
            namespaces: self.namespaces.kinds(),
            single_group: self.setup.credentials.keep_groups,
            intel_rdt: self.intel_rdt.as_ref().map(|plan| plan.groups.clone()),
            hooks: bundle.spec.hooks().is_some(),
            ..Record::default()
        }
    }
}

/// As in runc: a container with a cgroup namespace of its own and a writable mount of it gets its
/// cgroup, for the user that its process runs as.
fn cgroup_owner(spec: &Spec, namespaces: &Namespaces, id_maps: &IdMaps) -> Option<u32> {
    let writable = |m: &Mount| {
        let read_only = m.options().iter().flatten().any(|o| o == "ro");
        m.typ().as_deref().is_some_and(|t| t.starts_with("cgroup")) && m.destination() == Path::new("/sys/fs/cgroup") && !read_only
    };
    if namespaces.new & NEWCGROUP == 0 || !spec.mounts().iter().flatten().any(writable) {
        return None;
    }
    let uid = spec.process().as_ref()?.user().uid();
    let owner = if id_maps.is_empty() { Some(uid) } else { id_maps.host_uid(uid) };
    owner.filter(|&uid| uid != 0)
}
