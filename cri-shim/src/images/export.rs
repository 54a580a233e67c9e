//! Writes an image as an OCI image layout, which scanners and other tools read.
//!
//! Called by `rrun-cri export`. Compressed blobs are not kept, so the layers are made
//! anew: the same files always give the same bytes, but not those that were pulled.
//! The config therefore carries new diff ids, and the image a new digest.
use super::config::{Descriptor, Manifest, media};
use super::digest::{Digest, Hasher};
use super::store::{Image, Images};
use super::tar::{Entry, Kind, Writer};
use super::upper::Owners;
use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

impl Images {
    /// Writes `image` into the new folder `dir` under the name `name`. Gives the digest of the
    /// manifest that was written.
    pub fn export(&self, image: &Image, dir: &Path, name: &str) -> Result<Digest> {
        if image.is_artifact() {
            bail!(
                "{name} is an artifact: its files are in {}",
                image.layers.iter().map(|l| l.display().to_string()).collect::<Vec<_>>().join(", ")
            );
        }
        std::fs::create_dir(dir).with_context(|| format!("{}: mkdir", dir.display()))?;
        let result = self.write_layout(image, dir, name).with_context(|| format!("export {name} to {}", dir.display()));
        if result.is_err() && dir.is_absolute() {
            std::fs::remove_dir_all(dir).ok();
        }
        result
    }

    fn write_layout(&self, image: &Image, dir: &Path, name: &str) -> Result<Digest> {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for layer in &image.layers {
            let (descriptor, diff_id) = write_layer(layer, &blobs).with_context(|| format!("layer {}", layer.display()))?;
            layers.push(descriptor);
            diff_ids.push(diff_id);
        }
        let id = Digest::parse(&image.id)?;
        let mut config: Value = serde_json::from_slice(&self.blob(&id)?.context("the image's config is missing")?)?;
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        // What is left out of the layers (a repeated one) would not agree with the history.
        if config.get("history").is_some()
            && diff_ids.len() != image.document.rootfs.diff_ids.len()
            && let Some(config) = config.as_object_mut()
        {
            config.remove("history");
        }
        let config = write_blob(&blobs, media::CONFIG, &serde_json::to_vec(&config)?)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: media::MANIFEST.into(),
            config: Some(config),
            layers,
            manifests: Vec::new(),
            artifact_type: None,
        };
        let mut manifest = write_blob(&blobs, media::MANIFEST, &serde_json::to_vec(&manifest)?)?;
        let digest = manifest.digest.clone();
        manifest.platform = Some(image.document.platform.clone());
        manifest.annotations = BTreeMap::from([("org.opencontainers.image.ref.name".to_owned(), name.to_owned())]);
        let index = json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": [manifest]});
        std::fs::write(dir.join("index.json"), index.to_string())?;
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(digest)
    }
}

pub(super) fn open_layer(layer: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(layer, flags, Mode::empty()).with_context(|| format!("{}: open", layer.display()))
}

fn write_blob(blobs: &Path, media_type: &str, bytes: &[u8]) -> Result<Descriptor> {
    let digest = Digest::of(bytes);
    std::fs::write(blobs.join(digest.hex()), bytes).with_context(|| format!("blob {digest}: write"))?;
    Ok(descriptor(media_type, digest, bytes.len() as u64))
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    let (urls, annotations) = (Vec::new(), BTreeMap::new());
    Descriptor { media_type: media_type.into(), digest, size, urls, annotations, platform: None, artifact_type: None }
}

/// Writes a layer as a gzip blob; gives its descriptor and its diff id.
fn write_layer(layer: &Path, blobs: &Path) -> Result<(Descriptor, Digest)> {
    let partial = blobs.join("partial");
    let file = HashingWriter::new(BufWriter::with_capacity(128 << 10, File::create(&partial)?));
    let tar = HashingWriter::new(GzEncoder::new(file, Compression::fast()));
    let writer = Writer::new(BufWriter::with_capacity(128 << 10, tar));
    let (writer, _) = Walk::layer(writer, open_layer(layer)?, Owners::default())?;
    let tar = writer.finish()?.into_inner().map_err(|error| error.into_error())?;
    let diff_id = tar.hasher.finish();
    let mut file = tar.inner.finish()?;
    file.flush()?;
    let digest = file.hasher.finish();
    std::fs::rename(&partial, blobs.join(digest.hex()))?;
    Ok((descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, file.count), diff_id))
}

/// Writes the files of one layer, whiteouts included, or of several as overlayfs merges them.
pub(super) struct Walk<W: Write> {
    writer: Writer<W>,
    whiteouts: bool,
    owners: Owners,
    /// Paths of what whiteouts hide.
    hidden: Vec<Vec<u8>>,
    /// First path of a file with several names, by inode.
    links: HashMap<u64, Vec<u8>>,
}

impl<W: Write> Walk<W> {
    /// What the folders hold together, uppermost first.
    pub(super) fn merged(writer: Writer<W>, layers: &[OwnedFd]) -> Result<Writer<W>> {
        let mut walk = Walk::new(writer, false, Owners::default());
        walk.dir(layers, Path::new(""))?;
        Ok(walk.writer)
    }

    /// One layer, its files' owners as `owners` has them inside; and the paths that it hides of the layers below.
    pub(super) fn layer(writer: Writer<W>, layer: OwnedFd, owners: Owners) -> Result<(Writer<W>, Vec<Vec<u8>>)> {
        let mut walk = Walk::new(writer, true, owners);
        walk.dir(&[layer], Path::new(""))?;
        Ok((walk.writer, walk.hidden))
    }

    fn new(writer: Writer<W>, whiteouts: bool, owners: Owners) -> Walk<W> {
        Walk { writer, whiteouts, owners, hidden: Vec::new(), links: HashMap::new() }
    }

    fn describe(&self, node: &OwnedFd, path: &Path) -> Result<Entry> {
        let mut entry = describe(node, path)?;
        (entry.uid, entry.gid) = self.owners.inside(entry.uid, entry.gid)?;
        Ok(entry)
    }

    /// A directory, then what is in it, by name.
    fn dir(&mut self, dirs: &[OwnedFd], path: &Path) -> Result<()> {
        let Some(top) = dirs.first() else { return Ok(()) };
        let entry = self.describe(top, path)?;
        self.writer.append(&entry, std::io::empty())?;
        if self.whiteouts && opaque(top) {
            self.writer.append(&Entry::file(&named(path, b".wh..wh..opq"), 0), std::io::empty())?;
        }
        let mut names = BTreeSet::new();
        for dir in dirs {
            for entry in Dir::read_from(dir).context("read")? {
                let name = entry.context("read")?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.insert(name);
                }
            }
        }
        for name in names {
            let path = path.join(OsStr::from_bytes(&name));
            self.member(dirs, &name, &path).with_context(|| format!("{path:?}"))?;
        }
        Ok(())
    }

    /// The uppermost thing of a name; a directory with those below that it does not hide.
    fn member(&mut self, dirs: &[OwnedFd], name: &[u8], path: &Path) -> Result<()> {
        let mut found = Vec::new();
        for dir in dirs {
            let open = |flags| rustix::fs::openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
            let node = match open(OFlags::PATH) {
                Err(Errno::NOENT) => continue,
                node => node.context("open")?,
            };
            let stat = rustix::fs::fstat(&node).context("stat")?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                found.push(open(OFlags::RDONLY | OFlags::DIRECTORY).context("open")?);
                if found.last().is_some_and(opaque) {
                    break;
                }
                continue;
            }
            if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
                if self.whiteouts && found.is_empty() {
                    let parent = path.parent().unwrap_or(Path::new(""));
                    let whiteout = Entry::file(&named(parent, &[b".wh.", name].concat()), 0);
                    self.writer.append(&whiteout, std::io::empty())?;
                    self.hidden.push(path.as_os_str().as_bytes().to_vec());
                }
            } else if found.is_empty() && kind != FileType::Socket {
                // A socket is whoever listens on it, which no archive has.
                self.leaf(dir, name, self.describe(&node, path)?, &stat)?;
            }
            break;
        }
        if found.is_empty() { Ok(()) } else { self.dir(&found, path) }
    }

    fn leaf(&mut self, dir: &OwnedFd, name: &[u8], mut entry: Entry, stat: &rustix::fs::Stat) -> Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                (entry.kind, entry.link, entry.size) = (Kind::Link, first.clone(), 0);
                entry.xattrs.clear();
                return self.writer.append(&entry, std::io::empty());
            }
            self.links.insert(stat.st_ino, entry.path.clone());
        }
        match entry.kind {
            Kind::File => {
                // Another may have taken its place, even a FIFO that nobody writes to.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(dir, name, flags, Mode::empty()).context("open")?;
                let opened = rustix::fs::fstat(&file).context("stat")?;
                if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
                    bail!("was replaced while it was read");
                }
                self.writer.append(&entry, File::from(file))
            }
            Kind::Symlink => {
                entry.link = rustix::fs::readlinkat(dir, name, Vec::new()).context("readlink")?.into_bytes();
                self.writer.append(&entry, std::io::empty())
            }
            _ => self.writer.append(&entry, std::io::empty()),
        }
    }
}

/// The entry of an open node, but for where a link leads.
fn describe(node: &OwnedFd, path: &Path) -> Result<Entry> {
    let stat = rustix::fs::fstat(node).context("stat")?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Fifo => Kind::Fifo,
        other => bail!("a {other:?} cannot be in an archive"),
    };
    let mut name = path.as_os_str().as_bytes().to_vec();
    if kind == Kind::Dir {
        name.extend_from_slice(if name.is_empty() { b"./" } else { b"/" });
    }
    Ok(Entry {
        path: name,
        link: Vec::new(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        size: if kind == Kind::File { u64::try_from(stat.st_size)? } else { 0 },
        device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        xattrs: xattrs(node)?,
        sparse: None,
    })
}

/// Extended attributes but overlay's own and the label, by name.
fn xattrs(node: &OwnedFd) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::listxattr(&path, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error).context("listxattr"),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let overlay = [&b"trusted.overlay."[..], b"user.overlay."].iter().any(|prefix| name.starts_with(prefix));
        if !overlay && name != b"security.selinux" {
            let mut value = vec![0_u8; 64 << 10];
            let size = rustix::fs::getxattr(&path, name, &mut value[..]).context("getxattr")?;
            value.truncate(size);
            found.push((name.to_vec(), value));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a directory hides what the layers below have in it.
fn opaque(dir: &OwnedFd) -> bool {
    let mut value = [0_u8; 4];
    [c"trusted.overlay.opaque", c"user.overlay.opaque"]
        .into_iter()
        .any(|name| rustix::fs::fgetxattr(dir, name, &mut value[..]).is_ok_and(|n| value[..n] == *b"y"))
}

fn named(dir: &Path, name: &[u8]) -> Vec<u8> {
    dir.join(OsStr::from_bytes(name)).as_os_str().as_bytes().to_vec()
}

struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
    count: u64,
}

impl<W: Write> HashingWriter<W> {
    fn new(inner: W) -> HashingWriter<W> {
        HashingWriter { inner, hasher: Hasher::sha256(), count: 0 }
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
