//! `mounts` of config.json, read and checked: a list of [`MountOp`] for [`super::mounter`].

use super::attach::Filesystem;
use super::options::{Options, attr};
use super::{Context, idmap, paths};
use anyhow::{Context as _, Result, bail};
use oci_spec::runtime::{LinuxIdMapping, Mount};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Files of /proc that tools such as lxcfs may cover; everything else below /proc must be the
/// kernel's, because the runtime itself writes there (runc has the same list).
const PROC_FILES: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "net/dev",
    "slabinfo",
    "stat",
    "swaps",
    "sys/crypto/fips_enabled",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// One entry of `mounts`, ready to be made.
#[derive(Debug)]
pub(super) struct MountOp {
    /// `mounts[3] (/data, bind from /srv/x)`.
    pub label: String,
    /// Absolute and clean.
    pub destination: PathBuf,
    /// What is mounted there.
    pub kind: Kind,
    /// How.
    pub options: Options,
    /// The mappings of an id-mapped mount.
    pub id_maps: Option<IdMaps>,
}

/// Where the mappings of an id-mapped mount are from.
#[derive(Debug)]
pub(super) enum IdMaps {
    /// User ids, group ids.
    Lists(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>),
    /// The user namespace that the container joins.
    Joined(OwnedFd),
}

/// What is mounted.
#[derive(Debug)]
pub(super) enum Kind {
    /// A copy of what is at a path of the host.
    Bind(PathBuf),
    /// A file system.
    Filesystem(Filesystem),
    /// The container's view of the cgroups, whatever the host's version.
    Cgroup,
}

/// Reads the list.
pub(super) fn plan(list: &[Mount], bundle: &Path, rootfs: &Path, context: &Context<'_>) -> Result<Vec<MountOp>> {
    list.iter().enumerate().map(|(i, mount)| plan_one(i, mount, bundle, rootfs, context)).collect()
}

fn plan_one(i: usize, mount: &Mount, bundle: &Path, rootfs: &Path, context: &Context<'_>) -> Result<MountOp> {
    let options = Options::parse(mount.options().as_deref().unwrap_or_default());
    let typ = mount.typ().as_deref().unwrap_or_default();
    let bind = options.bind.is_some() || typ == "bind" || typ == "rbind";
    let source = mount.source().clone().unwrap_or_default();
    let label = if bind {
        format!("mounts[{i}] ({}, bind from {})", mount.destination().display(), source.display())
    } else {
        let typ = if typ.is_empty() { "no type" } else { typ };
        format!("mounts[{i}] ({}, {typ})", mount.destination().display())
    };
    let mut destination = paths::clean(mount.destination());
    // As runc: a host's path of the root file system is meant within it.
    if let Ok(inside) = destination.strip_prefix(rootfs) {
        destination = Path::new("/").join(inside);
    }
    let mut op = MountOp { destination, kind: Kind::Cgroup, options, id_maps: None, label };
    op.fill(mount, typ, bind.then(|| bundle.join(source)), context).with_context(|| op.label.clone())?;
    Ok(op)
}

impl MountOp {
    fn fill(&mut self, mount: &Mount, typ: &str, bind: Option<PathBuf>, context: &Context<'_>) -> Result<()> {
        if mount.destination().as_os_str().is_empty() {
            bail!("destination: missing");
        }
        if self.destination == Path::new("/") {
            bail!("destination: the root itself cannot be mounted over (see root.path)");
        }
        if bind.is_some() && mount.source().as_ref().is_none_or(|s| s.as_os_str().is_empty()) {
            bail!("source: missing");
        }
        if bind.is_some() && self.options.bind.is_none() {
            self.options.bind = Some(typ == "rbind");
        }
        self.options.check(typ)?;
        self.id_maps = id_maps(mount, &self.options, context)?;
        if self.id_maps.is_some() && self.options.idmap.is_none() {
            self.options.idmap = Some(false);
        }
        self.kind = match (bind, typ) {
            (Some(path), _) => Kind::Bind(path),
            (None, "") => bail!("type: missing (a bind mount needs the option bind or rbind)"),
            (None, "cgroup" | "cgroup2") => Kind::Cgroup,
            (None, _) => Kind::Filesystem(self.filesystem(mount, typ, context)?),
        };
        // Through links in the image this is checked again when the target is known.
        check_proc(&self.destination, &self.kind)
    }

    fn filesystem(&self, mount: &Mount, typ: &str, context: &Context<'_>) -> Result<Filesystem> {
        let source = mount.source().as_ref().map_or(typ.into(), |s| s.to_string_lossy());
        let mut filesystem = Filesystem::new(typ, &source)?;
        let pseudo = matches!(typ, "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue");
        for (key, value) in &self.options.data {
            let unmapped = |id: &Option<String>| {
                let id = id.as_deref().and_then(|v| v.parse().ok());
                context.user_namespace && id.is_some_and(|gid| !context.maps_gid(gid))
            };
            // The usual gid=5 (tty) exists in no map of an ordinary user; without it devpts gives
            // the terminal to the group of its opener.
            if !(typ == "devpts" && key == "gid" && unmapped(value)) {
                filesystem.option(key, value.as_deref())?;
            }
        }
        if let (Some(label), false) = (context.mount_label, matches!(typ, "proc" | "sysfs")) {
            filesystem.option("context", Some(label))?;
        }
        filesystem.attributes = self.options.attributes();
        filesystem.flags = self.options.set;
        // Of these the mount is read-only, not the file system, which may have other mounts.
        let superblock = self.options.superblock();
        filesystem.superblock = superblock.filter(|name| !(pseudo && *name == c"ro")).collect();
        if self.ends_readonly_as(typ) {
            filesystem.attributes &= !attr::RDONLY;
            filesystem.flags &= !libc::MS_RDONLY;
        }
        Ok(filesystem)
    }

    /// A user namespace with the mappings of an id-mapped mount.
    pub(super) fn id_map(&self) -> Result<Option<OwnedFd>> {
        match &self.id_maps {
            Some(IdMaps::Lists(uids, gids)) => idmap::user_namespace(uids, gids).map(Some),
            Some(IdMaps::Joined(namespace)) => Ok(Some(namespace.try_clone()?)),
            None => Ok(None),
        }
    }

    /// Something has yet to be made in it: it becomes read-only at the very end.
    pub(super) fn ends_readonly(&self) -> bool {
        self.ends_readonly_as(std::str::from_utf8(self.fstype()).unwrap_or_default())
    }

    fn ends_readonly_as(&self, fstype: &str) -> bool {
        fstype == "tmpfs" || self.destination == Path::new("/dev")
    }

    pub(super) fn is_readonly(&self) -> bool {
        self.options.set & libc::MS_RDONLY != 0
    }

    pub(super) fn fstype(&self) -> &[u8] {
        match &self.kind {
            Kind::Filesystem(f) => f.fstype.as_bytes(),
            _ => b"",
        }
    }

    /// A tmpfs of ours at /dev, in which nodes can be made without looking anything up.
    pub(super) fn is_dev_tmpfs(&self) -> bool {
        self.destination == Path::new("/dev") && self.fstype() == b"tmpfs"
    }
}

/// The mappings of an id-mapped mount: its own, or with only the option the container's.
fn id_maps(mount: &Mount, options: &Options, context: &Context<'_>) -> Result<Option<IdMaps>> {
    let (uids, gids) = (mount.uid_mappings().as_deref().unwrap_or_default(), mount.gid_mappings().as_deref().unwrap_or_default());
    if uids.is_empty() != gids.is_empty() {
        bail!("uidMappings, gidMappings: one is there without the other");
    }
    if !uids.is_empty() {
        if options.bind.is_none() {
            bail!("uidMappings: an id-mapped mount must be a bind mount");
        }
        return Ok(Some(IdMaps::Lists(uids.to_vec(), gids.to_vec())));
    }
    if options.idmap.is_none() {
        return Ok(None);
    }
    let (uids, gids) = context.id_maps;
    if let (true, Some(namespace)) = (uids.is_empty(), context.joined_user_namespace) {
        return Ok(Some(IdMaps::Joined(namespace.try_clone_to_owned()?)));
    }
    if uids.is_empty() || gids.is_empty() {
        bail!("idmap: needs uidMappings and gidMappings here, or those of a user namespace in linux");
    }
    Ok(Some(IdMaps::Lists(uids.to_vec(), gids.to_vec())))
}

/// Refuses to cover /proc with anything but a procfs, and anything in it but a few files.
pub(super) fn check_proc(destination: &Path, kind: &Kind) -> Result<()> {
    let Ok(rest) = destination.strip_prefix("/proc") else { return Ok(()) };
    if rest.as_os_str().is_empty() {
        return match kind {
            Kind::Filesystem(f) if f.fstype.as_bytes() == b"proc" => Ok(()),
            // Its source is looked at when it is open.
            Kind::Bind(_) => Ok(()),
            _ => bail!("{:?} cannot be mounted because it is not of type proc", destination),
        };
    }
    check_place(destination)
}

/// Refuses what is inside /proc, but for a few files.
pub(super) fn check_place(destination: &Path) -> Result<()> {
    match destination.strip_prefix("/proc") {
        Ok(rest) if !rest.as_os_str().is_empty() && !PROC_FILES.iter().any(|name| rest == Path::new(name)) => {
            bail!("{:?} cannot be mounted because it is inside /proc", destination)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Plans one mount for a container in a user namespace that maps the ids 0 and 1.
    fn planned(mount: Value) -> Result<MountOp> {
        let maps: Vec<LinuxIdMapping> = serde_json::from_value(json!([{"containerID": 0, "hostID": 1000, "size": 2}])).unwrap();
        let context = Context {
            privileged: false,
            user_namespace: true,
            new_mount_namespace: true,
            new_cgroup_namespace: true,
            new_pid_namespace: true,
            new_network_namespace: true,
            cgroup_views: Vec::new(),
            mount_label: Some("a:label"),
            no_pivot: false,
            id_maps: (&maps, &maps),
            joined_user_namespace: None,
        };
        let mount: Mount = serde_json::from_value(mount).unwrap();
        Ok(plan(&[mount], Path::new("/bundle"), Path::new("/bundle/rootfs"), &context)?.remove(0))
    }

    fn refused(mount: Value) -> String {
        format!("{:#}", planned(mount).unwrap_err())
    }

    fn filesystem(op: MountOp) -> Filesystem {
        let Kind::Filesystem(f) = op.kind else { panic!("{op:?}") };
        f
    }

    #[test]
    fn a_bind_is_one_by_type_or_option_and_its_source_is_the_bundle_s() {
        let op = planned(json!({"destination": "a/../b", "source": "x", "options": ["rbind"]})).unwrap();
        assert_eq!(op.label, "mounts[0] (a/../b, bind from x)");
        assert_eq!(op.destination, Path::new("/b"));
        let by_host = planned(json!({"destination": "/bundle/rootfs/b", "source": "x", "options": ["bind"]})).unwrap();
        assert_eq!(by_host.destination, Path::new("/b"));
        assert!(matches!(&op.kind, Kind::Bind(p) if p == Path::new("/bundle/x")));
        assert_eq!(op.options.bind, Some(true));
        let op = planned(json!({"destination": "/b", "type": "bind", "source": "/x"})).unwrap();
        assert!(matches!(&op.kind, Kind::Bind(p) if p == Path::new("/x")));
        assert_eq!(op.options.bind, Some(false));
    }

    #[test]
    fn a_file_system_gets_its_options_and_the_label() {
        let op = json!({"destination": "/t", "type": "tmpfs", "source": "shm", "options": ["ro", "noexec", "sync", "size=1m", "posix"]});
        let op = planned(op).unwrap();
        assert!(op.is_readonly() && op.ends_readonly());
        let f = filesystem(op);
        assert_eq!(f.attributes, attr::NOEXEC);
        assert_eq!(f.superblock, [c"sync"]);
        let wanted = [(c"size", Some(c"1m")), (c"posix", None), (c"context", Some(c"a:label"))];
        let wanted = wanted.map(|(key, value)| (key.to_owned(), value.map(|v| v.to_owned())));
        assert_eq!(f.data, wanted);
        let f = filesystem(planned(json!({"destination": "/proc", "type": "proc", "options": ["ro"]})).unwrap());
        assert_eq!((f.attributes, f.superblock.len(), f.data.len()), (attr::RDONLY, 0, 0));
        let f = filesystem(planned(json!({"destination": "/x", "type": "ext4", "source": "/dev/x", "options": ["ro"]})).unwrap());
        assert_eq!((f.attributes, f.superblock.as_slice()), (attr::RDONLY, &[c"ro"][..]));
    }

    #[test]
    fn the_group_of_terminals_is_dropped_where_it_does_not_exist() {
        let data = |gid: &str| {
            let options = [format!("gid={gid}"), "mode=0620".to_owned()];
            let f = filesystem(planned(json!({"destination": "/dev/pts", "type": "devpts", "options": options})).unwrap());
            f.data.iter().filter(|(key, _)| key.as_c_str() == c"gid").count()
        };
        assert_eq!((data("5"), data("1")), (0, 1));
    }

    #[test]
    fn id_maps_are_the_mount_s_own_or_the_container_s() {
        let own = json!([{"containerID": 7, "hostID": 8, "size": 1}]);
        let op =
            planned(json!({"destination": "/b", "source": "/x", "options": ["bind"], "uidMappings": own, "gidMappings": own})).unwrap();
        assert_eq!(op.options.idmap, Some(false));
        let Some(IdMaps::Lists(uids, _)) = op.id_maps else { panic!("{op:?}") };
        assert_eq!(uids[0].container_id(), 7);
        let op = planned(json!({"destination": "/b", "source": "/x", "options": ["rbind", "ridmap"]})).unwrap();
        let Some(IdMaps::Lists(uids, _)) = op.id_maps else { panic!("{op:?}") };
        assert_eq!((op.options.idmap, uids[0].host_id()), (Some(true), 1000));
        assert!(refused(json!({"destination": "/b", "source": "/x", "options": ["bind"], "uidMappings": own})).contains("one is there"));
        assert!(refused(json!({"destination": "/b", "type": "tmpfs", "uidMappings": own, "gidMappings": own})).contains("bind mount"));
    }

    #[test]
    fn nothing_covers_proc_but_what_may() {
        assert!(planned(json!({"destination": "/proc", "type": "proc"})).is_ok());
        assert!(planned(json!({"destination": "/proc/./cpuinfo", "source": "/x", "options": ["bind"]})).is_ok());
        assert!(planned(json!({"destination": "/process", "type": "tmpfs"})).is_ok());
        for destination in ["/proc", "/x/../proc", "proc", "/bundle/rootfs/proc"] {
            let text = refused(json!({"destination": destination, "type": "tmpfs"}));
            assert!(text.ends_with("\"/proc\" cannot be mounted because it is not of type proc"), "{text}");
        }
        let text = refused(json!({"destination": "/proc/self/attr", "type": "tmpfs"}));
        assert!(text.ends_with("because it is inside /proc"), "{text}");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(refused(json!({"destination": "", "type": "tmpfs"})).contains("destination: missing"));
        assert!(refused(json!({"destination": "/", "type": "tmpfs"})).contains("root.path"));
        assert!(refused(json!({"destination": "/a", "source": "x"})).contains("type: missing"));
        assert_eq!(
            refused(json!({"destination": "/a", "type": "bind", "options": ["bind"]})),
            "mounts[0] (/a, bind from ): source: missing"
        );
        let text = refused(json!({"destination": "/a", "source": "/x", "options": ["bind", "colour"]}));
        assert!(text.contains("unknown option \"colour\""), "{text}");
    }
}
