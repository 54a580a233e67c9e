//! The commands for a person: images, rmi, inspect, export, bundle.
//!
//! Called by `cli`. The store has one owner: while the daemon runs, lists and removals go to it
//! over CRI; what needs the layers themselves waits until it is stopped. An ordinary user has
//! a store in `$XDG_DATA_HOME/rrun-cri`.
use crate::config::Config;
use crate::images::{Image, Images, Reference, bundle, unpack};
use crate::server;
use anyhow::{Context, Result, bail};
use rrun_proto::v1;
use rustix::fd::{AsFd, OwnedFd};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens the store of whoever calls: the configured one for root, else the user's own.
pub fn open_images(config: &Config) -> Result<Images> {
    if rustix::process::geteuid().is_root() {
        return server::open_images(config).context("image store (is rrun-cri running?)");
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    let data = data.or_else(home).context("neither XDG_DATA_HOME nor HOME is set: no place for images")?;
    Images::open(&data.join("rrun-cri"), unpack::Options { squash: true, ..Default::default() })
}

/// `rrun-cri images`: a table.
pub fn list(config: &Config) -> Result<()> {
    let images = match daemon(config) {
        Some(mut daemon) => daemon.list()?,
        None => open_images(config)?.list().iter().map(|image| Line::of(image)).collect(),
    };
    println!("{:<58} {:<13} {:>10}", "NAME", "ID", "SIZE");
    for Line { mut names, id, size } in images {
        if names.is_empty() {
            names.push("<none>".into());
        }
        let id = id.strip_prefix("sha256:").unwrap_or(&id).get(..12).unwrap_or_default().to_owned();
        for name in names {
            println!("{name:<58} {id:<13} {:>10}", human(size));
        }
    }
    Ok(())
}

/// `rrun-cri rmi NAME`: all names of the image, and the image.
pub fn remove(config: &Config, name: &str) -> Result<()> {
    match daemon(config) {
        Some(mut daemon) => daemon.remove(name),
        None => {
            let images = open_images(config)?;
            find(&images, name)?;
            images.remove(name)
        }
    }
}

/// `rrun-cri inspect NAME`: the image as JSON.
pub fn inspect(config: &Config, name: &str) -> Result<()> {
    let images = open_images(config)?;
    let image = find(&images, name)?;
    let config = images.blob(&crate::images::Digest::parse(&image.id)?)?.context("the image's config is missing")?;
    let config: serde_json::Value = serde_json::from_slice(&config)?;
    let shown = serde_json::json!({
        "id": image.id,
        "repoTags": image.repo_tags,
        "repoDigests": image.repo_digests,
        "size": image.size,
        "pinned": image.pinned,
        "manifest": image.manifest,
        "layers": image.layers,
        "config": config,
    });
    println!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(())
}

/// `rrun-cri export NAME DIR`: an OCI image layout.
pub fn export(config: &Config, name: &str, dir: &str) -> Result<()> {
    let images = open_images(config)?;
    let image = find(&images, name)?;
    let shown = image.repo_tags.first().cloned().unwrap_or_else(|| name.to_owned());
    println!("{}", images.export(&image, Path::new(dir), &shown)?);
    Ok(())
}

/// `rrun-cri bundle NAME DIR`: what `rrun run DIR` starts.
pub fn bundle(config: &Config, name: &str, dir: &str) -> Result<()> {
    let images = open_images(config)?;
    let image = find(&images, name)?;
    let terminal = std::io::stdin().is_terminal();
    let user = |root: &OwnedFd| Ok(crate::containers::oci::image_user(&image.config.user, root.as_fd())?);
    let done = bundle::make(&image, Path::new(dir), images.squashes(), terminal, user)?;
    if images.squashes() && !matches!(image.config.user.as_str(), "" | "0" | "root") {
        eprintln!("rrun-cri: one id is mapped: it runs as root of its user namespace, not as {}", image.config.user);
    }
    if done.devices > 0 {
        eprintln!("rrun-cri: {} devices of the image left out: they need root", done.devices);
    }
    Ok(())
}

fn find(images: &Images, name: &str) -> Result<Arc<Image>> {
    if let Some(image) = images.lookup(name) {
        return Ok(image);
    }
    let full = Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.to_string());
    bail!("image {full} is not here; rrun-cri images lists those that are")
}

struct Line {
    names: Vec<String>,
    id: String,
    size: u64,
}

impl Line {
    fn of(image: &Image) -> Line {
        Line { names: image.repo_tags.clone(), id: image.id.clone(), size: image.size }
    }
}

fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// The running daemon, asked over CRI.
struct Daemon {
    runtime: tokio::runtime::Runtime,
    client: v1::image_service_client::ImageServiceClient<tonic::transport::Channel>,
}

/// `None` where nothing listens on the socket, or for an ordinary user.
fn daemon(config: &Config) -> Option<Daemon> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", config.socket.display())).ok()?;
    let channel = runtime.block_on(endpoint.connect()).ok()?;
    Some(Daemon { runtime, client: v1::image_service_client::ImageServiceClient::new(channel) })
}

impl Daemon {
    fn list(&mut self) -> Result<Vec<Line>> {
        let answer = self.runtime.block_on(self.client.list_images(v1::ListImagesRequest::default()));
        let images = answer.context("ListImages")?.into_inner().images;
        Ok(images.into_iter().map(|image| Line { names: image.repo_tags, id: image.id, size: image.size }).collect())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
        self.runtime.block_on(self.client.remove_image(v1::RemoveImageRequest { image })).context("RemoveImage")?;
        Ok(())
    }
}
