//! Where a container's mounts come from: host paths found or made, links followed, propagation checked against the
//! host's mount table. Called by `find`; blocks.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rrun_proto::v1::{Mount, MountPropagation};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::{HostMount, Input, invalid, lsm};
use crate::error::Result;

/// The container's mounts in their order. `images` holds by index the folder of each mount that has an image.
pub(super) fn of_container(input: &Input<'_>, images: &HashMap<usize, PathBuf>) -> Result<Vec<HostMount>> {
    let mut all = Vec::new();
    for (index, mount) in input.config.mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let source = match &mount.image {
            Some(image) if !image.image.is_empty() => {
                if !mount.host_path.is_empty() {
                    return Err(invalid(format!("{field}: host_path and image are both set")));
                }
                if !mount.readonly {
                    return Err(invalid(format!("{field}.readonly: not set, and an image's files cannot be written")));
                }
                images.get(&index).cloned().with_context(|| format!("{field}.image: {} is not mounted", image.image))?
            }
            _ => host_path(&mount.host_path, &field)?,
        };
        check_propagation(mount, &source, &field)?;
        if mount.selinux_relabel {
            lsm::relabel(&source, &input.selinux.mount).with_context(|| format!("{field}.selinux_relabel"))?;
        }
        all.push(HostMount { mount: mount.clone(), source });
    }
    // The pod's files are its containers', which may have labels of their own; the last one wins.
    let files = input.pod.files;
    for file in [&files.resolv_conf, &files.hostname, &files.hosts].into_iter().flatten() {
        lsm::relabel(file, &input.selinux.mount)?;
    }
    Ok(all)
}

/// The file or folder at `path`; a folder is made where nothing is.
fn host_path(path: &str, field: &str) -> Result<PathBuf> {
    let field = format!("{field}.host_path");
    let wanted = Path::new(path);
    if !wanted.is_absolute() || path.contains('\0') {
        return Err(invalid(format!("{field}: {path:?} is not an absolute path")));
    }
    let failed = |what: &str, error: std::io::Error| -> crate::error::Error { anyhow::anyhow!("{field}: {what} {path}: {error}").into() };
    match fs::canonicalize(wanted) {
        Ok(found) => Ok(found),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if let Some((link, target)) = dangling(wanted) {
                let (link, target) = (link.display(), target.display());
                return Err(invalid(format!("{field}: {link} is a link to {target}, which does not exist")));
            }
            fs::create_dir_all(wanted).map_err(|error| failed("make folder", error))?;
            fs::canonicalize(wanted).map_err(|error| failed("resolve", error))
        }
        Err(error) => Err(failed("resolve", error)),
    }
}

/// The first link on the way to `path` that leads nowhere, and what it says.
fn dangling(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut upwards: Vec<&Path> = path.ancestors().collect();
    upwards.reverse();
    let link = upwards.into_iter().find(|part| part.is_symlink() && !part.exists())?;
    Some((link.to_path_buf(), fs::read_link(link).unwrap_or_default()))
}

/// What the container mounts can only reach the host, or the host's the container, through a shared mount.
fn check_propagation(mount: &Mount, source: &Path, field: &str) -> Result<()> {
    let field = format!("{field}.propagation");
    let propagation = MountPropagation::try_from(mount.propagation)
        .map_err(|_| invalid(format!("{field}: {} is none that the interface has a number for", mount.propagation)))?;
    if propagation == MountPropagation::PropagationPrivate {
        return Ok(());
    }
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let stat = statx(CWD, source, AtFlags::empty(), StatxFlags::MNT_ID).with_context(|| format!("{field}: statx {}", source.display()))?;
    // A mount in another mount namespace is none that could be judged here.
    let Some((place, tags)) = find(&table, stat.stx_mnt_id) else { return Ok(()) };
    let shared = tags.split(' ').any(|tag| tag.starts_with("shared:"));
    let slave = tags.split(' ').any(|tag| tag.starts_with("master:"));
    if shared || (slave && propagation == MountPropagation::PropagationHostToContainer) {
        return Ok(());
    }
    let (name, source) = (propagation.as_str_name(), source.display());
    Err(invalid(format!(
        "{field}: {name} needs a shared mount, and {place}, which holds {source}, is not one; try: mount --make-rshared {place}"
    )))
}

/// Mount point and tags (`shared:1 master:2`) of the mount with that number, from /proc/self/mountinfo.
fn find(table: &str, id: u64) -> Option<(String, &str)> {
    table.lines().find_map(|line| {
        let mut parts = line.splitn(7, ' ');
        if parts.next()?.parse() != Ok(id) {
            return None;
        }
        let place = parts.nth(3)?.replace("\\040", " ");
        let rest = parts.nth(1)?;
        Some((place, rest.split_once("- ").map_or("", |(tags, _)| tags)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("rrun-cri-sources-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::canonicalize(path).unwrap()
    }

    #[test]
    fn host_paths() {
        let base = folder("paths");
        let at = |name: &str| base.join(name).to_str().unwrap().to_owned();
        assert_eq!(host_path(&at("new/deep"), "mounts[0]").unwrap(), base.join("new/deep"));
        assert!(base.join("new/deep").is_dir());
        symlink("new", base.join("link")).unwrap();
        assert_eq!(host_path(&at("link/deep"), "mounts[0]").unwrap(), base.join("new/deep"));
        symlink("/nonexistent/x", base.join("dangling")).unwrap();
        for path in ["dangling", "dangling/deeper"] {
            let error = host_path(&at(path), "mounts[0]").unwrap_err().to_string();
            assert!(error.contains("dangling is a link to /nonexistent/x, which does not exist"), "{error}");
        }
        assert!(
            host_path("relative", "mounts[0]")
                .unwrap_err()
                .to_string()
                .contains("mounts[0].host_path: \"relative\" is not an absolute path")
        );
        assert!(host_path("", "mounts[0]").is_err());
        fs::write(base.join("file"), "").unwrap();
        assert!(host_path(&at("file/below"), "mounts[0]").is_err());
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn the_mount_table() {
        let table = "21 20 0:20 / / rw,relatime shared:1 - ext4 /dev/sda rw\n\
                     22 21 0:21 / /mnt/a\\040b rw - tmpfs tmpfs rw\n\
                     23 21 0:22 /x /mnt/c rw master:3 propagate_from:2 - tmpfs tmpfs rw\n";
        assert_eq!(find(table, 21).unwrap(), ("/".to_owned(), "shared:1 "));
        assert_eq!(find(table, 22).unwrap(), ("/mnt/a b".to_owned(), ""));
        assert_eq!(find(table, 23).unwrap(), ("/mnt/c".to_owned(), "master:3 propagate_from:2 "));
        assert!(find(table, 2).is_none());
    }
}
