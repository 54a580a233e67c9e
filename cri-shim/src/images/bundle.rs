//! Makes an OCI bundle of an image: a folder that `rrun run DIR` starts.
//!
//! Called by `rrun-cri bundle`. The root file system is a copy of the merged layers, so the
//! bundle is its owner's to change and needs no mount. For an ordinary user the container
//! has one id: the user's own, as root.
use super::export::{Walk, open_layer};
use super::store::Image;
use super::tar::{Limits, Writer};
use super::unpack::{Options, Unpacked, unpack};
use crate::containers::oci::DEFAULT_CAPABILITIES;
use anyhow::{Context, Result, anyhow};
use oci_spec::runtime::{Capabilities, LinuxCapabilities, Process, Root, Spec, User};
use rustix::fd::OwnedFd;
use std::io::BufWriter;
use std::path::Path;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who the container's process is: uid, gid, further groups.
pub type Ids = (u32, u32, Vec<u32>);

/// Makes the bundle in the new folder `dir`. `find_user` looks the image's user up in the root
/// file system; it is not asked where `squash` leaves only root. `terminal`: the process gets one.
pub fn make(image: &Image, dir: &Path, squash: bool, terminal: bool, find_user: impl FnOnce(&OwnedFd) -> Result<Ids>) -> Result<Unpacked> {
    anyhow::ensure!(!image.is_artifact(), "{} is an artifact, not an image: there is nothing to run", image.id);
    std::fs::create_dir(dir).with_context(|| format!("{}: mkdir", dir.display()))?;
    let dir = std::fs::canonicalize(dir)?;
    let result = fill(image, &dir, squash, terminal, find_user).with_context(|| format!("bundle {}", dir.display()));
    if result.is_err() {
        std::fs::remove_dir_all(&dir).ok();
    }
    result
}

fn fill(image: &Image, dir: &Path, squash: bool, terminal: bool, find_user: impl FnOnce(&OwnedFd) -> Result<Ids>) -> Result<Unpacked> {
    let rootfs = dir.join("rootfs");
    std::fs::create_dir(&rootfs)?;
    let root = open_layer(&rootfs)?;
    let done = copy(image, root.try_clone()?, squash)?;
    let ids = if squash { (0, 0, Vec::new()) } else { find_user(&root)? };
    let spec = spec(image, squash, terminal, ids)?;
    std::fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&spec)?)?;
    Ok(done)
}

/// One thread reads the layers, this one writes the files: an archive goes between them.
fn copy(image: &Image, root: OwnedFd, squash: bool) -> Result<Unpacked> {
    let layers = image.layers.iter().rev().map(|layer| open_layer(layer)).collect::<Result<Vec<_>>>()?;
    let (reader, writer) = std::io::pipe()?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> Result<()> {
            let writer = Writer::new(BufWriter::with_capacity(128 << 10, writer));
            Walk::merged(writer, &layers)?.finish()?.into_inner().map_err(|error| error.into_error())?;
            Ok(())
        });
        let options = Options { limits: Limits { bytes: u64::MAX, entries: u64::MAX }, squash };
        let read = unpack(reader, root, options);
        // Where the writer failed, the reader saw an archive that ends too early.
        let wrote = writing.join().map_err(|_| anyhow!("reading the layers: panicked"))?;
        match (read, wrote) {
            (Ok((done, _)), Ok(())) => Ok(done),
            (Err(error), Ok(())) => Err(error),
            (_, Err(error)) => Err(error.context("reading the layers")),
        }
    })
}

fn spec(image: &Image, squash: bool, terminal: bool, ids: Ids) -> Result<Spec> {
    let mut spec = match squash {
        true => Spec::rootless(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        false => Spec::default(),
    };
    let config = &image.config;
    let mut args: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
    if args.is_empty() {
        args.push("/bin/sh".into());
    }
    let mut env = config.env.clone();
    if !env.iter().any(|pair| pair.starts_with("PATH=")) {
        env.push(PATH.into());
    }
    if terminal {
        env.push("TERM=xterm".into());
    }
    let (uid, gid, groups) = ids;
    let mut user = User::default();
    user.set_uid(uid).set_gid(gid).set_additional_gids(Some(groups));
    let set: Capabilities = DEFAULT_CAPABILITIES.into_iter().collect();
    let none = Capabilities::new();
    let held = if uid == 0 { set.clone() } else { none.clone() };
    let mut capabilities = LinuxCapabilities::default();
    capabilities.set_bounding(Some(set)).set_effective(Some(held.clone())).set_permitted(Some(held));
    capabilities.set_inheritable(Some(none.clone())).set_ambient(Some(none));
    let mut process = Process::default();
    process.set_args(Some(args)).set_env(Some(env)).set_user(user).set_terminal(Some(terminal));
    process.set_cwd(if config.working_dir.is_empty() { "/".into() } else { config.working_dir.clone().into() });
    process.set_capabilities(Some(capabilities));
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(false));
    spec.set_process(Some(process)).set_root(Some(root)).set_hostname(Some("rrun".into()));
    Ok(spec)
}
