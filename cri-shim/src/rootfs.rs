//! A container's root file system: an overlay over the image's layers, mounted by the new mount API (no page-size limit
//! on their number). In a pod with a user namespace the layers are id-mapped mounts; nothing is ever chowned but the
//! writable layer's own folder.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

/// What to mount.
#[derive(Debug)]
pub struct Overlay<'a> {
    /// The layers, lowest first.
    pub layers: &'a [PathBuf],
    /// An existing folder that gets `upper` and `work`; none for a read-only mount (image volumes).
    pub writable: Option<&'a Path>,
    /// Where the container sees it.
    pub target: &'a Path,
    /// The pod's user namespace, and the host's ids of its root.
    pub user: Option<(BorrowedFd<'a>, u32, u32)>,
    /// The SELinux label of all files in it; empty: none.
    pub label: &'a str,
}

impl Overlay<'_> {
    /// Mounts it. Blocks. After an error nothing is mounted.
    pub fn mount(&self) -> Result<()> {
        let (layers, lower) = match self.user {
            Some((user, ..)) => self.map_layers(user)?,
            None => (self.layers.to_vec(), None),
        };
        let made = self.make(&layers);
        // The overlay has its own hold on its layers.
        drop(lower);
        made
    }

    fn make(&self, layers: &[PathBuf]) -> Result<()> {
        fs::create_dir_all(self.target).with_context(|| format!("make {}", self.target.display()))?;
        if let [only] = layers
            && self.writable.is_none()
        {
            // An overlay wants two folders; one alone is simply bound. A bind mount has no label of its own: then the
            // empty target is the second folder.
            if !self.label.is_empty() {
                return self.overlay(&[self.target.to_owned(), only.clone()]);
            }
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, only, flags).with_context(|| format!("open_tree {}", only.display()))?;
            crate::sys::set_read_only(tree.as_fd()).context("mount_setattr read-only")?;
            return self.attach(tree.as_fd());
        }
        self.overlay(layers)
    }

    fn overlay(&self, layers: &[PathBuf]) -> Result<()> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen overlay")?;
        let set = |name: &str, value: &Path| {
            let bytes = value.as_os_str().as_bytes();
            ensure!(bytes.len() < 256, "overlay {name}={}: longer than the kernel's 255 bytes", value.display());
            let value = CString::new(bytes)?;
            fsconfig_set_string(fs.as_fd(), name, value.as_c_str())
                .with_context(|| format!("overlay {name}={}", Path::new(self.target).display()))
        };
        for layer in layers.iter().rev() {
            set("lowerdir+", layer)?;
        }
        let mut attributes = MountAttrFlags::empty();
        match self.writable {
            Some(folder) => {
                let (upper, work) = (folder.join("upper"), folder.join("work"));
                for path in [&upper, &work] {
                    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
                }
                self.own(&upper)?;
                set("upperdir", &upper)?;
                set("workdir", &work)?;
                // Its only reader after a power loss would be a container that is gone by then.
                let _ = fsconfig_set_flag(fs.as_fd(), "volatile");
            }
            None => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
        }
        let _ = fsconfig_set_string(fs.as_fd(), "source", "overlay");
        if !self.label.is_empty() {
            fsconfig_set_string(fs.as_fd(), "context", self.label)
                .with_context(|| format!("overlay context={}: {}", self.label, log(&fs)))?;
        }
        fsconfig_create(fs.as_fd()).with_context(|| format!("mount the overlay of {}: {}", self.target.display(), log(&fs)))?;
        let mount = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).context("fsmount overlay")?;
        self.attach(mount.as_fd())
    }

    fn attach(&self, mount: BorrowedFd<'_>) -> Result<()> {
        move_mount(mount, "", CWD, self.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .with_context(|| format!("move_mount to {}", self.target.display()))
    }

    /// The root of the writable layer has the modes of the image's, and belongs to the container's root.
    fn own(&self, upper: &Path) -> Result<()> {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let Some(top) = self.layers.last() else { return Ok(()) };
        let from = fs::metadata(top).with_context(|| format!("layer {}", top.display()))?;
        let (uid, gid) = self.user.map_or((from.uid(), from.gid()), |(_, uid, gid)| (uid, gid));
        std::os::unix::fs::chown(upper, Some(uid), Some(gid)).with_context(|| format!("chown {}", upper.display()))?;
        fs::set_permissions(upper, fs::Permissions::from_mode(from.mode() & 0o7777)).with_context(|| format!("chmod {}", upper.display()))
    }

    /// Id-mapped mounts of the layers below a folder beside the target, which hides and ends with the guard.
    fn map_layers(&self, user: BorrowedFd<'_>) -> Result<(Vec<PathBuf>, Option<Lower>)> {
        let folder = self.target.with_file_name("lower");
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let mut lower = Lower { folder, mounted: Vec::new() };
        for (number, layer) in self.layers.iter().enumerate() {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, layer, flags).with_context(|| format!("open_tree {}", layer.display()))?;
            crate::sys::map_ids(tree.as_fd(), user).with_context(|| {
                format!("mount_setattr: map the ids of {}: its file system must support id-mapped mounts", layer.display())
            })?;
            let path = lower.folder.join(number.to_string());
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
            move_mount(tree.as_fd(), "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .with_context(|| format!("move_mount to {}", path.display()))?;
            lower.mounted.push(path);
        }
        Ok((lower.mounted.clone(), Some(lower)))
    }
}

/// Mounts that are needed only while the overlay is made.
struct Lower {
    folder: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Drop for Lower {
    fn drop(&mut self) {
        for path in &self.mounted {
            let _ = unmount(path, UnmountFlags::DETACH);
        }
        let _ = remove_tree_of_folders(&self.folder);
    }
}

fn remove_tree_of_folders(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        fs::remove_dir(entry?.path())?;
    }
    fs::remove_dir(folder)
}

/// Takes a mount of ours away, and the empty folder or file that it was on; nothing there is success. Blocks.
pub fn unmount_and_remove(target: &Path) -> Result<()> {
    ensure!(target.is_absolute() && target.components().count() > 2, "unmount {target:?}: not a mount of ours");
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {} // once more: mounts may be stacked
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(error).with_context(|| format!("umount {}", target.display())),
        }
    }
    let removed = match fs::symlink_metadata(target) {
        Ok(data) if data.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", target.display())),
        _ => Ok(()),
    }
}

/// What the kernel says of a failed mount.
fn log(fs: &OwnedFd) -> String {
    let mut text = [0u8; 512];
    match rustix::io::read(fs, &mut text[..]) {
        Ok(length) => String::from_utf8_lossy(&text[..length]).trim().to_owned(),
        Err(_) => String::new(),
    }
}
