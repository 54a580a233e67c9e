//! Directories of a layer being unpacked, found by openat2 beneath the layer's fd.
//!
//! Called by `unpack::node`. A directory that a symbolic link of the same layer leads
//! to is found within the layer, whatever the link says; missing ones are made.
//! Everything is kept by *canonical* path (no symbolic link in it).
use anyhow::{Context, Result, bail};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// Depth that no honest layer has, and that everything else on a system can still handle.
const MAX_DEPTH: usize = 512;
const MAX_SYMLINKS: usize = 40;
const CACHED: usize = 256;
const STRICT: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// An open directory and its canonical path.
pub(super) struct Place {
    pub(super) fd: OwnedFd,
    pub(super) path: Vec<u8>,
}

impl Place {
    /// The canonical path of something in it.
    pub(super) fn join(&self, name: &[u8]) -> Vec<u8> {
        join(&self.path, name)
    }
}

/// Directories of a layer.
pub(super) struct Tree {
    root: OwnedFd,
    squash: bool,
    cache: HashMap<Vec<u8>, Rc<Place>>,
    last: Option<(Vec<u8>, Rc<Place>)>,
    /// Canonical paths of directories made because something lies in them.
    made: Vec<Vec<u8>>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, squash: bool) -> Result<Tree> {
        rustix::fs::fchmod(&root, Mode::RWXU).context("layer directory: chmod")?;
        Ok(Tree { root, squash, cache: HashMap::new(), last: None, made: Vec::new() })
    }

    /// The directory `path`, made with its parents where missing.
    pub(super) fn dir(&mut self, path: &[u8]) -> Result<Rc<Place>> {
        self.find(path, true)
    }

    /// The directory `path`, which must exist.
    pub(super) fn existing(&mut self, path: &[u8]) -> Result<Rc<Place>> {
        self.find(path, false)
    }

    /// Directories that were made without an entry, since the last call.
    pub(super) fn take_made(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.made)
    }

    /// Forgets open directories: something that may be on the way to one was removed.
    pub(super) fn forget(&mut self) {
        self.cache.clear();
        self.last = None;
    }

    /// Opens a directory by canonical path for reading.
    pub(super) fn open(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        self.open_as(path, OFlags::RDONLY)
    }

    /// Marks a directory as hiding what the layers below have in it.
    pub(super) fn set_opaque(&self, path: &[u8]) -> Result<()> {
        let name = if self.squash { c"user.overlay.opaque" } else { c"trusted.overlay.opaque" };
        let dir = self.open(path).context("open")?;
        rustix::fs::fsetxattr(&dir, name, b"y", XattrFlags::empty()).context("opaque mark: setxattr")
    }

    fn open_as(&self, path: &[u8], access: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        rustix::fs::openat2(&self.root, path, access | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), STRICT)
    }

    fn find(&mut self, path: &[u8], make: bool) -> Result<Rc<Place>> {
        if let Some((last, place)) = &self.last
            && last == path
        {
            return Ok(place.clone());
        }
        let place = match self.cache.get(path) {
            Some(place) => place.clone(),
            None => self.resolve(path, make)?,
        };
        if self.cache.len() >= CACHED {
            self.cache.clear();
        }
        self.cache.insert(path.to_vec(), place.clone());
        self.last = Some((path.to_vec(), place.clone()));
        Ok(place)
    }

    fn resolve(&mut self, path: &[u8], make: bool) -> Result<Rc<Place>> {
        let canonical = match self.open_as(path, OFlags::PATH) {
            Ok(fd) => return Ok(Rc::new(Place { fd, path: path.to_vec() })),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => self.walk(path, make)?,
            Err(error) => return Err(error).context("parent directory: open"),
        };
        let fd = self.open_as(&canonical, OFlags::PATH).context("parent directory: open")?;
        Ok(Rc::new(Place { fd, path: canonical }))
    }

    /// Goes through a path name by name: follows symbolic links within the layer, makes
    /// what is missing. Returns the canonical path.
    fn walk(&mut self, path: &[u8], make: bool) -> Result<Vec<u8>> {
        let mut names: VecDeque<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let mut here: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(name) = names.pop_front() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    let up = here.iter().rposition(|b| *b == b'/').unwrap_or(0);
                    here.truncate(up);
                    continue;
                }
                _ => {}
            }
            let dir = self.open_as(&here, OFlags::PATH).context("parent directory: open")?;
            match kind_of(&dir, &name)? {
                Found::Dir => here = join(&here, &name),
                Found::Link => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        bail!("parent directory: more than {MAX_SYMLINKS} symbolic links on the way");
                    }
                    let target = rustix::fs::readlinkat(&dir, &name[..], Vec::new()).context("parent directory: readlink")?;
                    let target = target.to_bytes();
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    for part in target.rsplit(|b| *b == b'/') {
                        names.push_front(part.to_vec());
                    }
                }
                Found::Nothing | Found::Whiteout if !make => bail!("no such file in this layer"),
                found @ (Found::Nothing | Found::Whiteout) => {
                    let path = join(&here, &name);
                    check_depth(&path)?;
                    if found == Found::Whiteout {
                        rustix::fs::unlinkat(&dir, &name[..], AtFlags::empty()).context("parent directory: unlink")?;
                    }
                    rustix::fs::mkdirat(&dir, &name[..], Mode::RWXU).context("parent directory: mkdir")?;
                    if found == Found::Whiteout {
                        self.set_opaque(&path)?;
                    }
                    self.made.push(path.clone());
                    here = path;
                }
                Found::Other => bail!("parent directory: {:?} is not a directory", String::from_utf8_lossy(&join(&here, &name))),
            }
        }
        Ok(here)
    }
}

/// What a name is at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    Nothing,
    Dir,
    Link,
    Whiteout,
    Other,
}

/// Looks at `name` in `dir` without following it.
pub(super) fn kind_of(dir: impl AsFd, name: &[u8]) -> Result<Found> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(error) => return Err(error).context("stat"),
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Found::Dir,
        FileType::Symlink => Found::Link,
        FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    })
}

pub(super) fn check_depth(path: &[u8]) -> Result<()> {
    if path.iter().filter(|b| **b == b'/').count() >= MAX_DEPTH {
        bail!("lies deeper than {MAX_DEPTH} directories");
    }
    Ok(())
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}
