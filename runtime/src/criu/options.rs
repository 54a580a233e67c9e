//! What a request asks of CRIU (`criu_opts`).

use super::wire::Message;
use super::{External, Request};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// `--manage-cgroups-mode` (`criu_cg_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// Nothing of them.
    Ignore = 0,
    /// Properties of those that are made.
    Soft = 3,
    /// All.
    Full = 4,
    /// All, and none may be there.
    Strict = 5,
    /// As CRIU sees fit.
    #[default]
    Default = 6,
}

/// The options of a request. Descriptors are numbers of this process, but for `inherit`, whose numbers
/// are CRIU's own.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Folder of the images.
    pub images: i32,
    /// Folder of the log and other files.
    pub work: Option<i32>,
    /// The process to save.
    pub pid: Option<i32>,
    /// The log's name.
    pub log_file: &'static str,
    /// The container's root file system.
    pub root: PathBuf,
    /// Bring back rather than save.
    pub restore: bool,
    /// Go on after the dump.
    pub leave_running: bool,
    /// Keep unix sockets to processes outside.
    pub ext_unix_sk: bool,
    /// Keep open TCP connections.
    pub tcp_established: bool,
    /// Leave out connections that are being made.
    pub tcp_skip_in_flight: bool,
    /// Close TCP connections.
    pub tcp_close: bool,
    /// The terminal is the caller's.
    pub shell_job: bool,
    /// Keep file locks.
    pub file_locks: bool,
    /// Keep open files that were removed.
    pub link_remap: bool,
    /// Drop memory from images once it is taken over.
    pub auto_dedup: bool,
    /// Bring memory when it is asked for.
    pub lazy_pages: bool,
    /// Where memory goes: address and port.
    pub page_server: Option<(String, u16)>,
    /// Folder of an earlier checkpoint.
    pub parent: Option<PathBuf>,
    /// What to do with cgroups.
    pub cgroup_mode: CgroupMode,
    /// `CLONE_NEW*` of namespaces whose contents are left out.
    pub empty_namespaces: u32,
    /// The cgroup to freeze.
    pub freezer: Option<PathBuf>,
    /// CRIU's configuration file.
    pub config: Option<OsString>,
    /// Profile to restore with.
    pub lsm_profile: Option<String>,
    /// SELinux context of mounts to restore with.
    pub lsm_mount_context: Option<String>,
    /// Mounts of the host.
    pub mounts: Vec<External>,
    /// What else is the host's, in CRIU's words.
    pub external: Vec<String>,
    /// Descriptors for what was external.
    pub inherit: Vec<(String, i32)>,
    /// Kinds and paths of namespaces to be joined.
    pub join: Vec<(&'static str, PathBuf)>,
    /// Controllers and the paths of the cgroups that take the place of the saved ones.
    pub cgroup_roots: Vec<(String, String)>,
}

impl Options {
    /// What a request of this kind has in its log.
    pub fn log_of(request: Request) -> &'static str {
        if request == Request::Restore { "restore.log" } else { "dump.log" }
    }

    pub(super) fn message(&self) -> Message {
        let mut m = Message::default();
        m.number(1, i64::from(self.images));
        if let Some(pid) = self.pid {
            m.number(2, i64::from(pid));
        }
        for (field, on) in [
            (3, self.leave_running),
            (4, self.ext_unix_sk),
            (5, self.tcp_established),
            // Restored only: devices that have no name any more.
            (6, self.restore),
            (7, self.shell_job),
            (8, self.file_locks),
            (12, true),
            (15, self.parent.is_some()),
            (16, self.auto_dedup),
            (18, self.link_remap),
            (24, true),
            // A child of ours, not of CRIU's.
            (26, self.restore),
            (46, self.tcp_skip_in_flight),
            (48, self.lazy_pages),
            (50, true),
            (52, self.tcp_close),
        ] {
            m.switch(field, on);
        }
        m.number(9, 4);
        m.bytes(10, self.log_file.as_bytes());
        if let Some((address, port)) = &self.page_server {
            let mut server = Message::default();
            server.bytes(1, address.as_bytes());
            server.number(2, i64::from(*port));
            m.nested(11, &server);
        }
        m.bytes(13, self.root.as_os_str().as_bytes());
        if let Some(parent) = &self.parent {
            m.bytes(14, parent.as_os_str().as_bytes());
        }
        if let Some(work) = self.work {
            m.number(17, i64::from(work));
        }
        for (controller, path) in &self.cgroup_roots {
            let mut root = Message::default();
            root.bytes(1, controller.as_bytes());
            root.bytes(2, path.as_bytes());
            m.nested(25, &root);
        }
        for mount in &self.mounts {
            m.nested(23, &pair(mount.key.as_bytes(), mount.value.as_os_str().as_bytes()));
        }
        for (key, fd) in &self.inherit {
            let mut inherit = Message::default();
            inherit.bytes(1, key.as_bytes());
            inherit.number(2, i64::from(*fd));
            m.nested(27, &inherit);
        }
        m.number(34, self.cgroup_mode as i64);
        for external in &self.external {
            m.bytes(37, external.as_bytes());
        }
        m.number(38, i64::from(self.empty_namespaces));
        for (kind, path) in &self.join {
            m.nested(39, &pair(kind.as_bytes(), path.as_os_str().as_bytes()));
        }
        if let Some(freezer) = &self.freezer {
            m.bytes(44, freezer.as_os_str().as_bytes());
        }
        if let Some(config) = &self.config {
            m.bytes(51, config.as_bytes());
        }
        for (field, text) in [(53, &self.lsm_profile), (63, &self.lsm_mount_context)] {
            if let Some(text) = text {
                m.bytes(field, text.as_bytes());
            }
        }
        m
    }
}

fn pair(one: &[u8], two: &[u8]) -> Message {
    let mut pair = Message::default();
    pair.bytes(1, one);
    pair.bytes(2, two);
    pair
}
