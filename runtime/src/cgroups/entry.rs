//! The ways into a container's cgroups, for its init and for `exec`.

use super::*;
use crate::sys;
use std::os::fd::AsFd;

impl Cgroup {
    /// The way in for `exec`. `sub` are the values of `--cgroup`: `[CONTROLLER[,…]:]PATH` below the
    /// container's cgroup. Without one, where the container has divided its v2 cgroup (so that it
    /// may hold no process of its own) or it is gone, the way leads to where `init` is.
    pub fn entry(&self, sub: &[String], init: i32) -> Result<Entry> {
        if self.record.unit.is_some() && self.record.rootless {
            // Between a user's session and the user's services only systemd may move a process.
            return Ok(Entry::Adopt);
        }
        if !sub.is_empty() {
            return self.entry_into(sub);
        }
        if let Some(h) = self.unified().filter(|h| h.ours && self.version() == Version::V2) {
            let children = folder::read_file(&h.dir, "cgroup.subtree_control");
            if !children.as_ref().is_ok_and(|c| c.trim_end().is_empty()) {
                let text = std::fs::read_to_string(format!("/proc/{init}/cgroup")).context("the cgroup of the container's init")?;
                let at = hierarchies::parse_memberships(&text).into_iter().find(|(c, _)| c.is_empty()).map(|(_, path)| path);
                let dir = h.mountpoint.join(hierarchies::clean(&at.unwrap_or_default()));
                // It may have left for elsewhere, and its first cgroup be gone.
                if dir.starts_with(&h.dir) || matches!(children, Err(Errno::ENOENT)) {
                    let folder = Folder::open(&dir).with_context(|| format!("the cgroup {}", dir.display()))?;
                    return Ok(Entry::Into(folder.into_fd()));
                }
            }
        }
        self.entry_into(&[])
    }

    pub(super) fn entry_into(&self, sub: &[String]) -> Result<Entry> {
        if self.version() != Version::V2 {
            return self.procs(sub);
        }
        let Some(h) = self.ours().next() else { return Ok(Entry::None) };
        let dir = below(h, sub)?.unwrap_or_else(|| h.dir.clone());
        let folder = Folder::open(&dir).with_context(|| format!("adding pid of the process: the container's cgroup {}", dir.display()))?;
        Ok(Entry::Into(folder.into_fd()))
    }

    /// The `cgroup.procs` files.
    fn procs(&self, sub: &[String]) -> Result<Entry> {
        for value in sub {
            if let Some((names, _)) = value.split_once(':')
                && let Some(unknown) = names.split(',').find(|n| !self.ours().any(|h| is_called(h, n)))
            {
                bail!("--cgroup {value}: unknown controller {unknown:?}: the container has no cgroup of it");
            }
        }
        let mut files = Vec::new();
        for h in self.ours() {
            let dir = below(h, sub)?.unwrap_or_else(|| h.dir.clone());
            let path = dir.join("cgroup.procs");
            let file = nix::fcntl::openat(crate::sys::CWD, &path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty());
            // In runc's words, which look for the process in it.
            files.push(file.with_context(|| format!("adding pid of the process: open {}", path.display()))?);
        }
        Ok(if files.is_empty() { Entry::None } else { Entry::Write(files) })
    }
}

impl Entry {
    /// [`Entry::Write`] in place of [`Entry::Into`]: for a kernel that cannot clone into a cgroup (before
    /// Linux 5.7, or a filter around us that denies clone3). A folder on a read-only mount of its own,
    /// as exec has it, is made writable for that; it is gone with the answer.
    pub fn by_write(self) -> Result<Entry> {
        let Entry::Into(folder) = self else { return Ok(self) };
        let open = || sys::openat(folder.as_fd(), c"cgroup.procs", nix::libc::O_WRONLY, 0);
        let procs = match open() {
            Err(Errno::EROFS) => {
                const MOUNT_ATTR_RDONLY: u64 = 1;
                let writable = sys::MountAttr { clear: MOUNT_ATTR_RDONLY, ..sys::MountAttr::default() };
                sys::mount_setattr(folder.as_fd(), false, &writable).and_then(|()| open())
            }
            other => other,
        };
        Ok(Entry::Write(vec![procs.context("open cgroup.procs")?]))
    }
}

fn is_called(h: &Hierarchy, name: &str) -> bool {
    h.has(name) || (h.controllers.strip_prefix("name=") == Some(name)) || (h.v2 && name.is_empty())
}

/// The folder that the values of `--cgroup` name in hierarchy `h`; never one outside the container's.
fn below(h: &Hierarchy, sub: &[String]) -> Result<Option<PathBuf>> {
    for value in sub {
        let (names, path) = match value.split_once(':') {
            Some((names, path)) => (Some(names), path),
            None => (None, value.as_str()),
        };
        if names.is_none_or(|names| names.split(',').any(|n| is_called(h, n))) {
            let path = Path::new(path);
            if path.components().any(|c| c == std::path::Component::ParentDir) {
                bail!("--cgroup {value}: bad sub cgroup path (it must stay below the container's cgroup)");
            }
            return Ok(Some(h.dir.join(hierarchies::clean(path))));
        }
    }
    Ok(None)
}
