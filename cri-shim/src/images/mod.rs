//! Images: a store of unpacked layers, and everything that fills it.
//!
//! [`Images`] is the handle: look-ups from memory, [`Images::begin`] to add an image,
//! [`Images::load`] from disk, [`Images::remove`]. On disk: `images.redb`,
//! `layers/<id>/` (one folder per unpacked layer), `partial/` (what is being made or
//! removed; nothing in it survives a start but blobs of interrupted pulls).
//! An `Arc<Image>` is a lease: its layers stay while one is held.
mod auth;
mod blob;
pub mod bundle;
mod config;
mod db;
mod decompress;
mod digest;
mod export;
mod failure;
mod hosts;
mod http;
mod ingest;
mod keychain;
mod layers;
mod load;
mod lower;
mod policy;
pub mod progress;
mod pull;
mod reference;
mod registry;
mod resolve;
mod store;
pub mod tar;
pub mod unpack;
pub mod upper;

pub use auth::Credentials;
pub use config::{Descriptor, ImageConfig, ImageDocument, Manifest, Platform, media};
pub use digest::{Digest, Hasher, HashingReader};
pub use http::Pace;
pub use ingest::{Ingest, LayerPlan, LayerWriter, Names, NewImage};
pub use keychain::credentials;
pub use pull::Puller;
pub use reference::Reference;
pub use resolve::host_platform;
pub use store::{FsInfo, Image, Images};

/// Whether an error comes of a full disk or a quota.
pub fn disk_full(error: &anyhow::Error) -> bool {
    use rustix::io::Errno;
    let full = |errno: Errno| matches!(errno, Errno::NOSPC | Errno::DQUOT);
    error.chain().any(|cause| match cause.downcast_ref::<std::io::Error>() {
        Some(io) => io.raw_os_error().is_some_and(|raw| full(Errno::from_raw_os_error(raw))),
        None => cause.downcast_ref::<Errno>().is_some_and(|errno| full(*errno)),
    })
}

/// A step of the store's writes. Tests kill the process at each (`RRUN_CRI_DIE_AT=NAME`), in
/// debug builds only.
fn step(name: &str) {
    if cfg!(debug_assertions) && std::env::var("RRUN_CRI_DIE_AT").is_ok_and(|at| at == name) {
        std::process::abort();
    }
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
