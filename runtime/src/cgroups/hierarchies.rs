//! Which cgroup hierarchies this host has, where they are mounted, where the caller is in them, and
//! where a container's folder goes. Called once per create by `Cgroup::plan`; makes nothing.
//!
//! The ordinary host needs neither a parse of mountinfo (it grows with the number of containers)
//! nor a search: every hierarchy is where everybody mounts it, and `statfs` proves it.

use anyhow::{Context, Result, bail};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};
use std::path::{Component, Path, PathBuf};

/// Where every distribution mounts the hierarchies.
const ROOT: &str = "/sys/fs/cgroup";

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    /// cgroup v2.
    pub(super) v2: bool,
    /// As in `/proc/self/cgroup`: `cpu,cpuacct`, `name=systemd`, empty for v2.
    pub(super) controllers: String,
    /// Where it is mounted.
    pub(super) mountpoint: PathBuf,
    /// The part of the hierarchy that is mounted there: `/` but for bind mounts.
    root: PathBuf,
    /// The caller's cgroup, from the root of its cgroup namespace.
    own: PathBuf,
}

impl Mounted {
    /// The caller's own folder.
    pub(super) fn own_dir(&self) -> PathBuf {
        let below = self.own.strip_prefix(&self.root).unwrap_or(&self.own);
        self.mountpoint.join(below.strip_prefix("/").unwrap_or(below))
    }

    /// The container's folder for a `linux.cgroupsPath` of the cgroupfs driver.
    ///
    /// An absolute path is below the hierarchy's mount point. A relative one, or `id` when there is
    /// none, is below the caller's cgroup on v1, and beside it on v2, where a cgroup with processes
    /// of its own cannot hand controllers down (the rules of runc).
    pub(super) fn place(&self, path: Option<&Path>, id: &str) -> PathBuf {
        let (absolute, inner) = match path {
            Some(p) if !p.as_os_str().is_empty() => (p.is_absolute(), clean(p)),
            _ => (false, clean(Path::new(id))),
        };
        if absolute {
            return self.mountpoint.join(inner);
        }
        let own = self.own_dir();
        match own.parent() {
            Some(parent) if self.v2 && own != self.mountpoint => parent.join(inner),
            _ => own.join(inner),
        }
    }
}

/// Finds the hierarchies. `own` says that [`Mounted::own_dir`] will be asked for.
pub(super) fn discover(own: bool) -> Result<Vec<Mounted>> {
    if is(Path::new(ROOT), CGROUP2_SUPER_MAGIC) {
        let mut unified =
            Mounted { v2: true, controllers: String::new(), mountpoint: ROOT.into(), root: "/".into(), own: PathBuf::from("/") };
        if own {
            unified.own = memberships()?.into_iter().find(|(c, _)| c.is_empty()).map_or_else(|| "/".into(), |(_, path)| path);
        }
        return Ok(vec![unified]);
    }
    let memberships = memberships()?;
    let usual = usual_places(&memberships);
    let trusted = usual.as_ref().is_some_and(|found| !own || found.iter().all(|h| h.own == Path::new("/") || h.own_dir().is_dir()));
    match usual {
        Some(found) if trusted => Ok(found),
        _ => {
            let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
            Ok(from_mountinfo(&mountinfo, &memberships))
        }
    }
}

/// Whether a file system of type `magic` is at `path`.
fn is(path: &Path, magic: FsType) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == magic)
}

/// `/proc/self/cgroup`: controllers and path of each hierarchy.
fn memberships() -> Result<Vec<(String, PathBuf)>> {
    let text = crate::sys::read_file(Path::new("/proc/self/cgroup"), 4096).context("/proc/self/cgroup")?;
    Ok(parse_memberships(&String::from_utf8_lossy(&text)))
}

/// Reads the lines `ID:CONTROLLERS:PATH`.
pub(super) fn parse_memberships(text: &str) -> Vec<(String, PathBuf)> {
    let line = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?.to_owned(), PathBuf::from(fields.next()?)))
    };
    text.lines().filter_map(line).collect()
}

/// The hierarchies at `/sys/fs/cgroup/CONTROLLERS`; `None` when one of v1 is not there.
fn usual_places(memberships: &[(String, PathBuf)]) -> Option<Vec<Mounted>> {
    let mut found = Vec::with_capacity(memberships.len());
    for (controllers, own) in memberships {
        let v2 = controllers.is_empty();
        let name = if v2 { "unified" } else { controllers.strip_prefix("name=").unwrap_or(controllers) };
        let mountpoint = Path::new(ROOT).join(name);
        if is(&mountpoint, if v2 { CGROUP2_SUPER_MAGIC } else { CGROUP_SUPER_MAGIC }) {
            found.push(Mounted { v2, controllers: controllers.clone(), mountpoint, root: "/".into(), own: own.clone() });
        } else if !v2 {
            return None;
        }
    }
    Some(found)
}

/// The hierarchies by mountinfo, wherever they are: the first mount of each counts.
fn from_mountinfo(mountinfo: &str, memberships: &[(String, PathBuf)]) -> Vec<Mounted> {
    let mut found: Vec<Mounted> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(root), Some(mountpoint)) = (left.split(' ').nth(3), left.split(' ').nth(4)) else { continue };
        let mut right = right.split(' ');
        let (fstype, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        let v2 = match fstype {
            "cgroup" => false,
            "cgroup2" => true,
            _ => continue,
        };
        let mounted_here = |controllers: &str| controllers.split(',').all(|c| options.split(',').any(|o| o == c));
        let membership = memberships.iter().find(|(c, _)| if v2 { c.is_empty() } else { !c.is_empty() && mounted_here(c) });
        let Some((controllers, own)) = membership else { continue };
        if found.iter().any(|h| h.controllers == *controllers) {
            continue;
        }
        found.push(Mounted {
            v2,
            controllers: controllers.clone(),
            mountpoint: unescape(mountpoint),
            root: unescape(root),
            own: own.clone(),
        });
    }
    found
}

/// Undoes mountinfo's octal escapes (`\040`).
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Makes a path relative and takes `.` and `..` out of it; `..` never leads above its start.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => (),
        }
    }
    clean
}

/// Checks that `dir` is a folder strictly below `mountpoint`: what is not is never made or removed.
pub(super) fn check_below(dir: &Path, mountpoint: &Path) -> Result<()> {
    let below = dir.strip_prefix(mountpoint).ok().filter(|_| mountpoint.is_absolute());
    match below {
        Some(rest) if rest.components().next().is_some() && rest.components().all(|c| matches!(c, Component::Normal(_))) => Ok(()),
        _ => bail!("{}: not a cgroup below {} (see linux.cgroupsPath)", dir.display(), mountpoint.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounted(v2: bool, root: &str, own: &str) -> Mounted {
        Mounted { v2, controllers: "cpu".into(), mountpoint: "/sys/fs/cgroup/cpu".into(), root: root.into(), own: own.into() }
    }

    #[test]
    fn an_absolute_path_is_below_the_mount_point() {
        for (path, dir) in [("/a/b", "a/b"), ("/../../a", "a"), ("/a/./b/../c/", "a/c"), ("//a", "a")] {
            let got = mounted(false, "/", "/me").place(Some(Path::new(path)), "id");
            assert_eq!(got, Path::new("/sys/fs/cgroup/cpu").join(dir), "{path}");
        }
    }

    #[test]
    fn a_relative_path_is_below_the_caller_on_v1_and_beside_it_on_v2() {
        let path = Some(Path::new("a/../../b"));
        assert_eq!(mounted(false, "/", "/me").place(path, "id"), Path::new("/sys/fs/cgroup/cpu/me/b"));
        assert_eq!(mounted(true, "/", "/me/session").place(path, "id"), Path::new("/sys/fs/cgroup/cpu/me/b"));
        assert_eq!(mounted(true, "/", "/").place(None, "id"), Path::new("/sys/fs/cgroup/cpu/id"));
        assert_eq!(mounted(false, "/", "/").place(Some(Path::new("")), "id"), Path::new("/sys/fs/cgroup/cpu/id"));
    }

    #[test]
    fn a_bind_mount_of_a_part_is_seen_through() {
        assert_eq!(mounted(false, "/docker/x", "/docker/x/me").own_dir(), Path::new("/sys/fs/cgroup/cpu/me"));
        assert_eq!(mounted(false, "/docker/x", "/docker/x").own_dir(), Path::new("/sys/fs/cgroup/cpu/"));
    }

    #[test]
    fn mountinfo_is_understood() {
        let memberships = parse_memberships("3:cpu,cpuacct:/me\n2:name=systemd:/\n1:net_cls:/\n0::/u:v\n");
        assert_eq!(memberships[3], (String::new(), PathBuf::from("/u:v")));
        let info = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /c\\040g/cpu rw,relatime shared:4 - cgroup cgroup rw,cpuacct,cpu\n\
            40 31 0:37 / /cg/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 /part /cg/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            42 31 0:38 / /other rw - cgroup2 cgroup2 rw\n";
        let found = from_mountinfo(info, &memberships);
        let places: Vec<_> = found.iter().map(|h| (h.controllers.as_str(), h.v2, h.mountpoint.to_str().unwrap())).collect();
        assert_eq!(places, [("cpu,cpuacct", false, "/c g/cpu"), ("name=systemd", false, "/cg/systemd"), ("", true, "/cg/unified")]);
        assert_eq!(found[0].own_dir(), Path::new("/c g/cpu/me"));
    }

    #[test]
    fn only_folders_below_the_mount_point_pass() {
        let mountpoint = Path::new("/sys/fs/cgroup");
        assert!(check_below(Path::new("/sys/fs/cgroup/a"), mountpoint).is_ok());
        for bad in ["", "/", "a", "/sys/fs/cgroup", "/sys/fs/cgroup/", "/sys/fs/cgroup/../x", "/bin"] {
            assert!(check_below(Path::new(bad), mountpoint).is_err(), "{bad}");
        }
        assert!(check_below(Path::new("bin/a"), Path::new("bin")).is_err());
        assert!(check_below(Path::new("a"), Path::new("")).is_err());
    }
}
