//! Makes the files, links, devices and directories of a layer, with all their metadata.
//!
//! Called by `unpack`. Owners come before modes (chown clears setuid), attributes after
//! both. Directories get theirs at the end: what is put into them changes their times,
//! and none has a set-group-id bit or a default ACL that its contents would inherit.
use super::super::tar::{Archive, Entry, Kind};
use super::Unpacked;
use super::tree::{Found, Place, Tree, check_depth, kind_of};
use anyhow::{Context, Result, bail};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::CString;
use std::io::Read;

const BLOCK: u64 = 4096;

/// Metadata of a directory; `None`s are for one that is no entry.
struct Meta {
    mode: u32,
    owner: (u32, u32),
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    implied: bool,
}

/// Puts entries into a layer.
pub(super) struct Maker {
    tree: Tree,
    squash: bool,
    /// Who files belong to when they are made, and what the umask takes from their modes.
    me: (u32, u32),
    umask: u32,
    dirs: HashMap<Vec<u8>, Meta>,
    done: Unpacked,
}

impl Maker {
    pub(super) fn new(tree: Tree, squash: bool) -> Maker {
        let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Maker { tree, squash, me, umask: umask(), dirs: HashMap::new(), done: Unpacked::default() }
    }

    /// Remembers a directory's metadata until the end.
    pub(super) fn describe(&mut self, path: Vec<u8>, entry: &Entry) {
        let meta = Meta {
            mode: self.mode(entry, 0o700),
            owner: (entry.uid, entry.gid),
            mtime: Some(entry.mtime),
            xattrs: entry.xattrs.clone(),
            implied: false,
        };
        self.dirs.insert(path, meta);
    }

    pub(super) fn dir(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<()> {
        let place = self.parent(parent)?;
        let path = place.join(name);
        check_depth(&path)?;
        match rustix::fs::mkdirat(&place.fd, name, Mode::RWXU) {
            Ok(()) => self.count(BLOCK),
            Err(Errno::EXIST) => match kind_of(&place.fd, name)? {
                Found::Dir => {}
                found => {
                    self.clear(&place, name)?;
                    rustix::fs::mkdirat(&place.fd, name, Mode::RWXU).context("mkdir")?;
                    self.count(BLOCK);
                    if found == Found::Whiteout {
                        self.tree.set_opaque(&path)?;
                    }
                }
            },
            Err(error) => return Err(error).context("mkdir"),
        }
        self.describe(path, entry);
        Ok(())
    }

    pub(super) fn file<R: Read>(&mut self, parent: &[u8], name: &[u8], entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
        let place = self.parent(parent)?;
        let wanted = self.mode(entry, 0o400);
        let mode = Mode::from_raw_mode(wanted & 0o777);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.fresh(&place, name, "create", |dir| rustix::fs::openat(dir, name, flags, mode))?;
        match &entry.sparse {
            None => write_all(&file, entry.size, archive)?,
            Some(map) => write_sparse(&file, map, entry.size, archive)?,
        }
        let stored = entry.sparse.as_ref().map_or(entry.size, |map| map.iter().map(|(_, length)| length).sum());
        self.count(stored.next_multiple_of(BLOCK));
        let owned = self.owned(entry);
        if let Some((uid, gid)) = owned {
            rustix::fs::fchown(&file, Some(uid), Some(gid)).context("chown")?;
        }
        if owned.is_some() && wanted & 0o6000 != 0 || wanted & (self.umask | 0o7000) != 0 {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(wanted)).context("chmod")?;
        }
        for (name, value) in &entry.xattrs {
            self.xattr(name, |xattr| rustix::fs::fsetxattr(&file, xattr, value, XattrFlags::empty()))?;
        }
        rustix::fs::futimens(&file, &times(entry.mtime)).context("utimens")
    }

    pub(super) fn symlink(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<()> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            bail!("symbolic link to {:?}", String::from_utf8_lossy(&entry.link));
        }
        let place = self.parent(parent)?;
        self.fresh(&place, name, "symlink", |dir| rustix::fs::symlinkat(&entry.link[..], dir, name))?;
        self.count(0);
        self.finish_node(&place, name, entry)
    }

    /// Devices and named pipes.
    pub(super) fn special(&mut self, parent: &[u8], name: &[u8], entry: &Entry) -> Result<()> {
        if self.squash && entry.kind != Kind::Fifo {
            self.done.devices += 1;
            return Ok(());
        }
        let place = self.parent(parent)?;
        let kind = match entry.kind {
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        self.fresh(&place, name, "mknod", |dir| rustix::fs::mknodat(dir, name, kind, mode, device))?;
        self.count(0);
        self.finish_node(&place, name, entry)
    }

    pub(super) fn link(&mut self, parent: &[u8], name: &[u8], to_parent: &[u8], to_name: &[u8]) -> Result<()> {
        let from = self.tree.existing(to_parent)?;
        match kind_of(&from.fd, to_name)? {
            Found::Nothing => bail!("no such file in this layer"),
            Found::Dir => bail!("the target is a directory"),
            _ => {}
        }
        let place = self.parent(parent)?;
        if place.join(name) == from.join(to_name) {
            return Ok(());
        }
        self.fresh(&place, name, "link", |dir| rustix::fs::linkat(&from.fd, to_name, dir, name, AtFlags::empty()))
    }

    /// Hides `name` of the layers below: a character device 0:0 in its place. Where this layer
    /// has a directory of that name, the directory is new.
    pub(super) fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<()> {
        let place = self.parent(parent)?;
        match rustix::fs::mknodat(&place.fd, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.count(0);
                Ok(())
            }
            Err(Errno::EXIST) if kind_of(&place.fd, name)? == Found::Dir => self.tree.set_opaque(&place.join(name)),
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).context("mknod"),
        }
    }

    pub(super) fn opaque(&mut self, dir: &[u8]) -> Result<()> {
        let place = self.parent(dir)?;
        self.tree.set_opaque(&place.path)
    }

    /// Gives the directories their metadata, children first.
    pub(super) fn finish(mut self) -> Result<Unpacked> {
        let mut dirs: Vec<(Vec<u8>, Meta)> = std::mem::take(&mut self.dirs).into_iter().collect();
        dirs.sort_by(|a, b| b.0.cmp(&a.0));
        if !dirs.last().is_some_and(|(path, _)| path.is_empty()) {
            dirs.push((Vec::new(), self.implied_meta()));
        }
        for (path, meta) in dirs {
            let dir = self.tree.open(&path).and_then(|dir| self.finish_dir(&dir, &meta).map(|()| dir));
            dir.with_context(|| format!("directory {:?}: metadata", String::from_utf8_lossy(&path)))?;
            if meta.implied && !path.is_empty() {
                self.done.implied.push(path);
            }
        }
        self.done.implied.reverse();
        self.done.inodes += 1;
        self.done.bytes += BLOCK;
        Ok(self.done)
    }

    fn finish_dir(&mut self, dir: &OwnedFd, meta: &Meta) -> rustix::io::Result<()> {
        if !self.squash && meta.owner != self.me {
            rustix::fs::fchown(dir, Some(Uid::from_raw(meta.owner.0)), Some(Gid::from_raw(meta.owner.1)))?;
        }
        for (name, value) in &meta.xattrs {
            self.try_xattr(name, |xattr| rustix::fs::fsetxattr(dir, xattr, value, XattrFlags::empty()))?;
        }
        rustix::fs::fchmod(dir, Mode::from_raw_mode(meta.mode))?;
        meta.mtime.map_or(Ok(()), |mtime| rustix::fs::futimens(dir, &times(mtime)))
    }

    /// Owner, mode, attributes and times of something that is not opened.
    fn finish_node(&mut self, place: &Place, name: &[u8], entry: &Entry) -> Result<()> {
        if let Some((uid, gid)) = self.owned(entry) {
            rustix::fs::chownat(&place.fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).context("chown")?;
        }
        if entry.kind != Kind::Symlink && entry.mode & (self.umask | 0o7000) != 0 {
            rustix::fs::chmodat(&place.fd, name, Mode::from_raw_mode(entry.mode), AtFlags::empty()).context("chmod")?;
        }
        if !entry.xattrs.is_empty() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let node = rustix::fs::openat(&place.fd, name, flags, Mode::empty()).context("open")?;
            let path = format!("/proc/self/fd/{}", node.as_raw_fd());
            for (name, value) in &entry.xattrs {
                self.xattr(name, |xattr| rustix::fs::setxattr(&path, xattr, value, XattrFlags::empty()))?;
            }
        }
        rustix::fs::utimensat(&place.fd, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).context("utimens")
    }

    fn parent(&mut self, path: &[u8]) -> Result<std::rc::Rc<Place>> {
        let place = self.tree.dir(path)?;
        for made in self.tree.take_made() {
            self.count(BLOCK);
            let meta = self.implied_meta();
            self.dirs.insert(made, meta);
        }
        Ok(place)
    }

    fn implied_meta(&self) -> Meta {
        Meta { mode: 0o755, owner: self.me, mtime: None, xattrs: Vec::new(), implied: true }
    }

    /// Runs `make`; where the name is taken, by an earlier entry, that one goes first.
    fn fresh<T>(
        &mut self,
        place: &Place,
        name: &[u8],
        call: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        match make(place.fd.as_fd()) {
            Err(Errno::EXIST) => {
                self.clear(place, name)?;
                make(place.fd.as_fd()).context(call)
            }
            made => made.context(call),
        }
    }

    fn clear(&mut self, place: &Place, name: &[u8]) -> Result<()> {
        if kind_of(&place.fd, name)? == Found::Dir {
            let path = place.join(name);
            let below = [&path[..], b"/"].concat();
            self.dirs.retain(|dir, _| *dir != path && !dir.starts_with(&below));
        }
        // What led through here may lead elsewhere now.
        self.tree.forget();
        crate::tree::remove(place.fd.as_fd(), &CString::new(name)?).context("replacing an earlier entry")
    }

    /// The mode of a file or directory. An ordinary user's store keeps what its owner needs to move, read and remove it;
    /// to the container's root, who may do that anyway, it makes no difference.
    fn mode(&self, entry: &Entry, needed: u32) -> u32 {
        if self.squash { entry.mode | needed } else { entry.mode }
    }

    /// Owner to set, where it is not already so.
    fn owned(&self, entry: &Entry) -> Option<(Uid, Gid)> {
        (!self.squash && (entry.uid, entry.gid) != self.me).then(|| (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
    }

    fn xattr(&mut self, name: &[u8], set: impl FnOnce(&[u8]) -> rustix::io::Result<()>) -> Result<()> {
        self.try_xattr(name, set).with_context(|| format!("extended attribute {:?}", String::from_utf8_lossy(name)))
    }

    /// Overlay's own marks are never taken from an archive; SELinux labels come from the
    /// mount. Elsewhere only a file capability must not get lost.
    fn try_xattr(&mut self, name: &[u8], set: impl FnOnce(&[u8]) -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        let ours = [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|prefix| name.starts_with(prefix));
        let needs_root = self.squash && !name.starts_with(b"user.");
        if ours || needs_root || name == b"security.selinux" || name.is_empty() || name.contains(&0) {
            self.done.xattrs += 1;
            return Ok(());
        }
        match set(name) {
            Err(Errno::OPNOTSUPP | Errno::PERM) if name != b"security.capability" => {
                self.done.xattrs += 1;
                Ok(())
            }
            other => other,
        }
    }

    fn count(&mut self, bytes: u64) {
        self.done.inodes += 1;
        self.done.bytes += bytes;
    }
}

fn write_all<R: Read>(file: &OwnedFd, size: u64, archive: &mut Archive<R>) -> Result<()> {
    let mut written = 0;
    while written < size {
        let piece = archive.contents()?;
        written += piece.len() as u64;
        put(file, piece, None)?;
    }
    Ok(())
}

fn write_sparse<R: Read>(file: &OwnedFd, map: &[(u64, u64)], size: u64, archive: &mut Archive<R>) -> Result<()> {
    rustix::fs::ftruncate(file, size).context("truncate")?;
    // The pieces lie one after the other in the archive, cut anywhere by its buffer.
    let mut pieces = map.iter().copied();
    let (mut offset, mut length) = (0, 0);
    loop {
        let mut bytes = archive.contents()?;
        if bytes.is_empty() {
            return Ok(());
        }
        while !bytes.is_empty() {
            while length == 0 {
                (offset, length) = pieces.next().context("contents after the last piece of a sparse file")?;
            }
            let take = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
            put(file, &bytes[..take], Some(offset))?;
            bytes = &bytes[take..];
            (offset, length) = (offset + take as u64, length - take as u64);
        }
    }
}

fn put(file: &OwnedFd, mut bytes: &[u8], mut at: Option<u64>) -> Result<()> {
    while !bytes.is_empty() {
        let result = match at {
            None => rustix::io::write(file, bytes),
            Some(offset) => rustix::io::pwrite(file, bytes, offset),
        };
        match result {
            Ok(n) => {
                bytes = &bytes[n..];
                at = at.map(|offset| offset + n as u64);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("write"),
        }
    }
    Ok(())
}

fn times(mtime: (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() },
    }
}

/// The process's umask; all bits where /proc does not tell, so that every mode is set.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0o777)
}
