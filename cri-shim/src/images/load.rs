//! Loads images from disk: an OCI image layout (folder or tar) and `docker save` archives.
//!
//! Called by `rrun-cri load` and by tests. The files are as hostile as a registry's: names
//! are opened beneath the folder, sizes and digests are checked.
use super::config::{Descriptor, ImageDocument, Manifest, Platform, media};
use super::decompress::decoder;
use super::digest::{Digest, Hasher, HashingReader};
use super::ingest::{Names, NewImage};
use super::reference::Reference;
use super::store::{Image, Images};
use super::tar::{Archive, Kind, Limits};
use anyhow::{Context, Result, bail};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const MAX_DOCUMENT: u64 = 8 << 20;

impl Images {
    /// Adds the images at `path`: a folder with an OCI image layout, or a tar archive (also
    /// compressed) of one or of `docker save`. `name` names the image where there is one.
    pub fn load(&self, path: &Path, name: Option<&str>) -> Result<Vec<Arc<Image>>> {
        self.load_all(path, name).with_context(|| format!("load {}", path.display()))
    }

    fn load_all(&self, path: &Path, name: Option<&str>) -> Result<Vec<Arc<Image>>> {
        let name = name.map(Reference::parse).transpose()?;
        let source = if path.is_dir() { Source::folder(path)? } else { Source::archive(path, self.partial_dir())? };
        let mut found = match (source.has("index.json"), source.has("manifest.json")) {
            (true, _) => layout(&source)?,
            (false, true) => docker(&source)?,
            (false, false) => bail!("holds neither index.json (an OCI image layout) nor manifest.json (docker save)"),
        };
        if let Some(name) = name {
            let [one] = &mut found[..] else { bail!("holds {} images; a name can be given to one only", found.len()) };
            one.names = names_of(&name, one);
        }
        found.into_iter().map(|one| self.load_one(&source, one)).collect()
    }

    fn load_one(&self, source: &Source, one: Found) -> Result<Arc<Image>> {
        let ingest = self.begin(one.new)?;
        for index in 0..ingest.layers().len() {
            if let Some(layer) = ingest.claim_blocking(index) {
                let file = one.files.get(index).cloned().unwrap_or_else(|| blob_path(&layer.plan().descriptor.digest));
                layer.write(source.open(&file)?.0)?;
            }
        }
        ingest.commit(one.names)
    }
}

/// An image in the source. `files` are its layers' where they are not named by digest.
struct Found {
    new: NewImage,
    files: Vec<String>,
    names: Names,
}

fn names_of(name: &Reference, one: &Found) -> Names {
    let manifests = [Some(&one.new.manifest), one.new.index.as_ref()];
    let digests = manifests.into_iter().flatten().map(|bytes| name.with_digest(&Digest::of(bytes))).collect();
    Names { tags: if name.tag.is_some() { vec![name.to_string()] } else { Vec::new() }, digests, pinned: false }
}

/// The images of an index.json that run here.
fn layout(source: &Source) -> Result<Vec<Found>> {
    let index = Manifest::parse(&source.read("index.json")?)?;
    let mut found = Vec::new();
    for entry in &index.manifests {
        let Some((manifest, index)) = choose(source, entry, 0)? else { continue };
        let config = Manifest::parse(&manifest)?.config.with_context(|| format!("manifest {}: no config", entry.digest))?;
        let config = source.blob(&config)?;
        let mut one = Found { new: NewImage { manifest, config, index }, files: Vec::new(), names: Names::default() };
        let annotation = |key: &str| entry.annotations.get(key).cloned();
        // The second is a tag alone (image-spec annotations.md); a full name is what tools write.
        let name = annotation("io.containerd.image.name").or_else(|| annotation("org.opencontainers.image.ref.name"));
        if let Some(name) = name.filter(|name| name.contains(['/', ':'])).and_then(|name| Reference::parse(&name).ok()) {
            one.names = names_of(&name, &one);
        }
        found.push(one);
    }
    if found.is_empty() {
        bail!("no image for {} in the layout", std::env::consts::ARCH);
    }
    Ok(found)
}

/// A manifest and the innermost index that led to it, as raw bytes.
type Chosen = (Vec<u8>, Option<Vec<u8>>);

/// Follows indexes to the manifest for this machine.
fn choose(source: &Source, entry: &Descriptor, depth: u32) -> Result<Option<Chosen>> {
    if depth > 4 {
        bail!("index {}: nested deeper than four indexes", entry.digest);
    }
    let bytes = source.blob(entry)?;
    let manifest = Manifest::parse(&bytes)?;
    if !manifest.is_index() {
        return Ok(fits(entry.platform.as_ref()).then_some((bytes, None)));
    }
    for inner in manifest.manifests.iter().filter(|inner| fits(inner.platform.as_ref())) {
        if let Some((found, index)) = choose(source, inner, depth + 1)? {
            return Ok(Some((found, index.or(Some(bytes)))));
        }
    }
    Ok(None)
}

fn fits(platform: Option<&Platform>) -> bool {
    let here = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    platform.is_none_or(|platform| platform.os == "linux" && platform.architecture == here)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// `docker save`: layers are named by path, and there is no manifest: one is made, over the
/// files as they are.
fn docker(source: &Source) -> Result<Vec<Found>> {
    let entries: Vec<DockerEntry> = serde_json::from_slice(&source.read("manifest.json")?).context("manifest.json: not of docker save")?;
    let mut found = Vec::new();
    for entry in entries {
        let config = source.read(&entry.config)?;
        ImageDocument::parse(&config)?;
        let mut layers = Vec::new();
        for file in &entry.layers {
            let (reader, size) = source.open(file)?;
            let mut hashing = HashingReader::new(reader, Hasher::sha256());
            std::io::copy(&mut hashing, &mut std::io::sink()).with_context(|| file.clone())?;
            layers.push(serde_json::json!({"mediaType": media::LAYER, "digest": hashing.digest(), "size": size}));
        }
        let described = serde_json::json!({"mediaType": media::CONFIG, "digest": Digest::of(&config), "size": config.len()});
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media::MANIFEST, "config": described, "layers": layers});
        let new = NewImage { manifest: serde_json::to_vec(&manifest)?, config, index: None };
        let tags = entry.repo_tags.unwrap_or_default();
        let tags = tags.iter().map(|tag| Ok(Reference::parse(tag)?.to_string())).collect::<Result<_>>()?;
        found.push(Found { new, files: entry.layers, names: Names { tags, ..Names::default() } });
    }
    Ok(found)
}

/// Where the files of a layout are.
enum Source {
    Folder(OwnedFd),
    /// Offset and size of each file of an archive.
    Tar(Arc<File>, HashMap<String, (u64, u64)>),
}

impl Source {
    fn folder(path: &Path) -> Result<Source> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Source::Folder(rustix::fs::open(path, flags, Mode::empty()).context("open")?))
    }

    fn archive(path: &Path, partial: &Path) -> Result<Source> {
        let mut file = File::open(path).context("open")?;
        let mut start = [0; 6];
        let length = file.read(&mut start)?;
        file.seek(SeekFrom::Start(0))?;
        if start[..length].starts_with(&[0x1f, 0x8b]) || start[..length].starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let plain = rustix::fs::open(partial, flags, Mode::RUSR | Mode::WUSR);
            let mut plain = File::from(plain.with_context(|| format!("{}: temporary file", partial.display()))?);
            std::io::copy(&mut decoder(&mut BufReader::new(file))?, &mut plain).context("decompress")?;
            plain.seek(SeekFrom::Start(0))?;
            file = plain;
        }
        let file = Arc::new(file);
        let names = list(&file)?;
        Ok(Source::Tar(file, names))
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Source::Folder(_) => self.open(name).is_ok(),
            Source::Tar(_, names) => names.contains_key(name),
        }
    }

    /// A file and its size.
    fn open(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Source::Folder(root) => {
                let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file =
                    File::from(rustix::fs::openat2(root, name, flags, Mode::empty(), resolve).with_context(|| format!("{name}: open"))?);
                let meta = file.metadata()?;
                if !meta.is_file() {
                    bail!("{name}: is not a regular file");
                }
                Ok((Box::new(file), meta.len()))
            }
            Source::Tar(file, names) => {
                let (offset, size) = *names.get(name).with_context(|| format!("{name}: not in the archive"))?;
                Ok((Box::new(Piece { file: file.clone(), offset, left: size }), size))
            }
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let (reader, size) = self.open(name)?;
        if size > MAX_DOCUMENT {
            bail!("{name}: {size} bytes; the most is {MAX_DOCUMENT}");
        }
        let mut bytes = Vec::new();
        reader.take(MAX_DOCUMENT).read_to_end(&mut bytes).with_context(|| format!("{name}: read"))?;
        Ok(bytes)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let bytes = self.read(&blob_path(&descriptor.digest))?;
        let mut hasher = descriptor.digest.hasher();
        hasher.update(&bytes);
        if hasher.finish() != descriptor.digest {
            bail!("blob {}: its digest is {}", descriptor.digest, hasher.finish());
        }
        Ok(bytes)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replace(':', "/"))
}

/// Where the files of an archive are; `docker save` of old links equal layers to each other.
fn list(file: &Arc<File>) -> Result<HashMap<String, (u64, u64)>> {
    let size = file.metadata()?.len();
    let mut archive = Archive::new(Piece { file: file.clone(), offset: 0, left: size }, Limits { bytes: u64::MAX, ..Limits::default() });
    let mut files = HashMap::new();
    let mut links = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let name = normal("", &String::from_utf8_lossy(&entry.path));
        match entry.kind {
            Kind::File if entry.sparse.is_none() => drop(files.insert(name, (archive.position(), entry.size))),
            Kind::Symlink => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                links.push((name.clone(), normal(folder, &String::from_utf8_lossy(&entry.link))));
            }
            Kind::Link => links.push((name, normal("", &String::from_utf8_lossy(&entry.link)))),
            _ => {}
        }
    }
    for (name, target) in links {
        if let Some(&place) = files.get(&target) {
            files.insert(name, place);
        }
    }
    Ok(files)
}

/// A path in an archive without `.` and `..`.
fn normal(folder: &str, path: &str) -> String {
    let mut parts = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A stretch of a file, read by position: several may be read at once.
struct Piece {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Piece {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read_at(&mut buf[..want], self.offset)?;
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
