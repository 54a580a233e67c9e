//! The image store as CRI shows it.

use std::collections::BTreeMap;

use rrun_proto::v1;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::images::progress::{Layer, State};
use crate::images::{Credentials, Image, Reference};
use crate::metrics::{PULLED, PULLS};
use crate::pods::blocking;
use crate::shim::{Shim, now};
use crate::trace::Span;

pub(super) fn list(shim: &Shim, filter: Option<&v1::ImageFilter>) -> Vec<v1::Image> {
    match filter.and_then(|filter| filter.image.as_ref()).filter(|image| !image.image.is_empty()) {
        Some(wanted) => shim.images.lookup(&wanted.image).iter().map(|image| message(shim, image)).collect(),
        None => shim.images.list().iter().map(|image| message(shim, image)).collect(),
    }
}

pub(super) fn status(shim: &Shim, request: &v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse> {
    let name = named(request.image.as_ref())?;
    let image = shim.images.lookup(name);
    let info = match &image {
        Some(image) if request.verbose => info(shim, image)?,
        _ => BTreeMap::new(),
    };
    Ok(v1::ImageStatusResponse { image: image.map(|image| message(shim, &image)), info })
}

pub(super) async fn pull(shim: &Shim, request: v1::PullImageRequest) -> Result<String> {
    let name = named(request.image.as_ref())?;
    let reference = Reference::parse(name).map_err(|error| Error::InvalidArgument(format!("{error:#}")))?;
    let credentials = Credentials::from_cri(request.auth.as_ref(), &reference.domain)?;
    let (mut timer, mut fetched) = (PULLS.time("error"), 0);
    let watcher = |layers: &[Layer]| {
        fetched = layers.iter().filter(|layer| layer.state != State::Present).map(|layer| layer.current).sum();
    };
    let mut span = Span::child("pull");
    span.set("container.image.name", name);
    let result = span.of(shim.puller.pull(&reference, credentials, watcher)).await;
    PULLED.add(&[], fetched);
    let image = result?;
    timer.set_label("ok");
    Ok(image.id.clone())
}

pub(super) async fn remove(shim: &Shim, request: &v1::RemoveImageRequest) -> Result<()> {
    let (images, name) = (shim.images.clone(), named(request.image.as_ref())?.to_owned());
    blocking(move || Ok(images.remove(&name)?)).await
}

pub(super) async fn fs_info(shim: &Shim) -> Result<v1::ImageFsInfoResponse> {
    let images = shim.images.clone();
    let info = blocking(move || Ok(images.fs_info())).await?;
    let images = v1::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: info.mountpoint.display().to_string() }),
        used_bytes: Some(v1::UInt64Value { value: info.used_bytes }),
        inodes_used: Some(v1::UInt64Value { value: info.inodes }),
    };
    Ok(v1::ImageFsInfoResponse { image_filesystems: vec![images], container_filesystems: vec![crate::stats::writable_layers(shim).await?] })
}

fn named(image: Option<&v1::ImageSpec>) -> Result<&str> {
    let name = image.map(|image| image.image.as_str()).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::InvalidArgument("image.image is empty".into()));
    }
    Ok(name)
}

fn message(shim: &Shim, image: &Image) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = user.parse().ok();
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        spec: Some(v1::ImageSpec { image: image.id.clone(), ..Default::default() }),
        pinned: image.pinned || shim.config.images.pinned.iter().any(|name| image.is(name)),
    }
}

/// The verbose part, in the shape that containerd gives it.
fn info(shim: &Shim, image: &Image) -> Result<BTreeMap<String, String>> {
    let digest = crate::images::Digest::parse(&image.id)?;
    let config = shim.images.blob(&digest)?.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    Ok([("info".to_owned(), json!({ "chainID": "", "imageSpec": config }).to_string())].into())
}
