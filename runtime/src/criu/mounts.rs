//! The mounts that CRIU shall not save but take from the host: each has a key that both sides know.
//!
//! The key of a mount is its destination as the configuration has it. At a checkpoint CRIU is told where
//! that is in the container, links resolved below its root; at a restore what on the host it stands for.
//! CRIU writes key and path in one text, `mnt[PATH]:KEY`, so neither may look like its end.

use crate::cgroups::View;
use crate::rootfs;
use anyhow::{Context, Result};
use oci_spec::runtime::Spec;
use std::path::{Path, PathBuf};

/// One of them, as a request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// At a checkpoint the path in the container, at a restore the key.
    pub key: String,
    /// At a checkpoint the key, at a restore the path on the host.
    pub value: PathBuf,
}

/// The destinations of the configuration's external mounts with their sources on the host, in its order.
/// `views`: of v1 cgroups without a namespace, each bound by itself.
pub fn externals(spec: &Spec, bundle: &Path, views: &[View]) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut list = Vec::new();
    for (i, mount) in spec.mounts().iter().flatten().enumerate() {
        let destination = rootfs::clean(mount.destination());
        if rootfs::is_bind(mount) {
            let source = mount.source().clone().unwrap_or_default();
            list.push((destination, bundle.join(source)));
        } else if matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) {
            match views {
                [view] if view.v2 => list.push((destination, view.mountpoint.clone())),
                views => list.extend(views.iter().map(|view| (destination.join(&view.name), view.host_dir.clone()))),
            }
        } else {
            continue;
        }
        if let Some((destination, _)) = list.last() {
            check(destination, i)?;
        }
    }
    Ok(list)
}

/// [`rootfs::check_key`] of a mount of the configuration.
pub(super) fn check(path: &Path, index: usize) -> Result<()> {
    rootfs::check_key(path).with_context(|| format!("mounts[{index}] ({})", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_that_ends_a_key_is_refused() {
        assert!(check(Path::new("/a]:b"), 3).unwrap_err().to_string().starts_with("mounts[3] (/a]:b)"));
        assert!(check(Path::new("/a]b:c"), 0).is_ok());
    }
}
