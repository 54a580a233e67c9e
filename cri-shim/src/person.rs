//! The commands for a person: images, rmi, inspect, export, bundle, load.
//!
//! Called by `cli`. The store has one owner: while the daemon runs, lists and removals go to it
//! over CRI, and the rest over a service of our own. An ordinary user has a store in
//! `$XDG_DATA_HOME/rrun-cri`.
use crate::config::Config;
use crate::images::{Image, Images, Reference, bundle, unpack};
use crate::server;
use anyhow::{Context, Result, anyhow, bail};
use rrun_proto::rrun::images_client::ImagesClient;
use rrun_proto::rrun::{WorkRequest, WorkResponse};
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

/// What a person wants of the store itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// `inspect NAME`: the image as JSON.
    Inspect,
    /// `export NAME DIR`: an OCI image layout.
    Export,
    /// `bundle NAME DIR`: what `rrun run DIR` starts.
    Bundle,
    /// `load PATH [NAME]`: images of an OCI layout or a docker-save archive.
    Load,
}

/// Does it, by the daemon where one runs. `path` is made absolute.
pub fn run(config: &Config, work: Work, image: &str, path: &str) -> Result<()> {
    let path = if path.is_empty() { PathBuf::new() } else { std::path::absolute(path)? };
    let path = path.into_os_string().into_string().map_err(|path| anyhow!("{path:?}: not UTF-8"))?;
    let request = WorkRequest { image: image.to_owned(), path, terminal: std::io::stdin().is_terminal() };
    let done = match daemon(config) {
        Some(daemon) => daemon.work(work, request)?,
        None => work.of(&open_images(config)?, &request)?,
    };
    done.lines.iter().for_each(|line| println!("{line}"));
    done.notes.iter().for_each(|note| eprintln!("rrun-cri: {note}"));
    Ok(())
}

impl Work {
    /// Does it in an open store. Blocks.
    pub fn of(self, images: &Images, request: &WorkRequest) -> Result<WorkResponse> {
        let (name, path) = (&*request.image, Path::new(&request.path));
        let lines = match self {
            Work::Load => {
                let all = images.load(path, Some(name).filter(|name| !name.is_empty()))?;
                all.iter().map(|image| format!("{} {}", image.id, image.repo_tags.join(" "))).collect()
            }
            Work::Inspect => vec![inspect(images, &*find(images, name)?)?],
            Work::Export => {
                let image = find(images, name)?;
                let shown = image.repo_tags.first().map_or(name, |tag| tag);
                vec![images.export(&image, path, shown)?.to_string()]
            }
            Work::Bundle => {
                let notes = bundle(images, &*find(images, name)?, path, request.terminal)?;
                return Ok(WorkResponse { lines: Vec::new(), notes });
            }
        };
        Ok(WorkResponse { lines, notes: Vec::new() })
    }
}

fn inspect(images: &Images, image: &Image) -> Result<String> {
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
    Ok(serde_json::to_string_pretty(&shown)?)
}

fn bundle(images: &Images, image: &Image, dir: &Path, terminal: bool) -> Result<Vec<String>> {
    let user = |root: &OwnedFd| Ok(crate::containers::oci::image_user(&image.config.user, root.as_fd())?);
    let done = bundle::make(image, dir, images.squashes(), terminal, user)?;
    let mut notes = Vec::new();
    if images.squashes() && !matches!(image.config.user.as_str(), "" | "0" | "root") {
        notes.push(format!("one id is mapped: it runs as root of its user namespace, not as {}", image.config.user));
    }
    if done.devices > 0 {
        notes.push(format!("{} devices of the image left out: they need root", done.devices));
    }
    Ok(notes)
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

/// The running daemon.
struct Daemon {
    runtime: tokio::runtime::Runtime,
    channel: tonic::transport::Channel,
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
    let client = v1::image_service_client::ImageServiceClient::new(channel.clone());
    Some(Daemon { runtime, channel, client })
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

    fn work(self, work: Work, request: WorkRequest) -> Result<WorkResponse> {
        let mut client = ImagesClient::new(self.channel).max_decoding_message_size(server::MESSAGE_MAX);
        let answer = self.runtime.block_on(async {
            match work {
                Work::Inspect => client.inspect(request).await,
                Work::Export => client.export(request).await,
                Work::Bundle => client.bundle(request).await,
                Work::Load => client.load(request).await,
            }
        });
        Ok(answer.map_err(|status| anyhow!("{}", status.message()))?.into_inner())
    }
}
