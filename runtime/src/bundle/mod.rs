//! The bundle: `config.json`, read once and checked before anything is made.
//!
//! [`Bundle::load`] is the only reader of a bundle's `config.json`; [`check`] holds every rule that
//! can be decided from the file alone, so that a wrong field is an error that names it and leaves
//! nothing behind.

mod fields;
mod linux;
mod spec;
#[cfg(test)]
mod tests;

use crate::hooks;
use crate::json;
pub use crate::json::Read;
use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;
use std::path::{Path, PathBuf};

/// The OCI runtime specification that this runtime implements.
pub const SPEC_VERSION: &str = "1.3.0";

/// A bundle on disk.
#[derive(Debug)]
pub struct Bundle {
    /// Absolute path of the folder that holds `config.json`.
    pub dir: PathBuf,
    /// Its configuration, checked.
    pub spec: Spec,
    /// The bytes of `config.json`, kept for the container's own copy.
    pub json: Vec<u8>,
}

impl Bundle {
    /// Reads and checks `DIR/config.json` (or `config` where it is given: crun's `--config`).
    pub fn load(dir: &Path, config: Option<&Path>) -> Result<Bundle> {
        let dir = std::path::absolute(dir).with_context(|| format!("bundle {}", dir.display()))?;
        let path = config.map_or_else(|| dir.join("config.json"), |c| dir.join(c));
        let json = crate::sys::read_file(&path, 16 << 10).with_context(|| {
            format!(
                "{}: cannot read the bundle's configuration (name the bundle with --bundle, or make one with 'rrun spec')",
                path.display()
            )
        })?;
        let spec: Spec = parse(&json).with_context(|| path.display().to_string())?;
        check(&spec).with_context(|| path.display().to_string())?;
        Ok(Bundle { dir, spec, json })
    }

    /// Absolute path of the root file system as `root.path` names it.
    pub fn rootfs(&self) -> PathBuf {
        match self.spec.root() {
            Some(root) => self.dir.join(root.path()),
            None => self.dir.join("rootfs"),
        }
    }
}

/// Parses a document of the specification; a wrong value is an error that names its path.
pub fn parse<T: Read>(json: &[u8]) -> Result<T> {
    let (value, mut unknown) = json::parse(json)?;
    if !unknown.is_empty() {
        unknown.sort();
        unknown.dedup();
        crate::log::warn(format!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" ")));
    }
    Ok(value)
}

/// Checks everything that can be decided from the configuration alone.
pub fn check(spec: &Spec) -> Result<()> {
    check_version(spec.version())?;
    let Some(root) = spec.root() else { bail!("root: missing; it must name the root file system") };
    if root.path().as_os_str().is_empty() {
        bail!("root.path: empty; it must name the root file system");
    }
    if let Some(process) = spec.process() {
        check_process(process)?;
    }
    if let Some(hooks) = spec.hooks() {
        hooks::check(hooks)?;
    }
    let foreign = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    for (field, there) in foreign {
        if there && spec.linux().is_none() {
            bail!("{field}: this runtime makes Linux containers, and the configuration has no linux section");
        }
    }
    Ok(())
}

/// Checks a process, from config.json or from `exec --process`.
pub fn check_process(process: &oci_spec::runtime::Process) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        bail!("process.args: empty; it must name the program to run");
    }
    if !process.cwd().is_absolute() {
        bail!("process.cwd: {:?} is not an absolute path", process.cwd());
    }
    Ok(())
}

fn check_version(version: &str) -> Result<()> {
    if version.is_empty() {
        bail!("ociVersion: missing");
    }
    if !version.starts_with("1.") {
        bail!("ociVersion: {version:?} is not supported; this runtime implements {SPEC_VERSION} and accepts every 1.x");
    }
    Ok(())
}
