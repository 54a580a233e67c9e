//! The options of a mount, as config.json spells them, and what each means to the kernel.
//!
//! One table for the parser and for `rrun features`. What is in no list is handed to the file
//! system as its own option; a bind mount has no file system to ask, so there it is an error.

use anyhow::{Result, bail};

/// What an option name asks for.
#[derive(Clone, Copy, Debug)]
enum Meaning {
    /// Sets a bit of `mount(2)`.
    Set(u64),
    /// Clears it.
    Clear(u64),
    /// Sets bits of `mount_setattr(2)` on the whole tree: to set, to clear.
    Recursive(u64, u64),
    /// Changes the propagation.
    Propagation(u64),
    /// A bind mount; `true`: with everything mounted below.
    Bind(bool),
    /// An id-mapped mount; `true`: with everything mounted below.
    IdMap(bool),
    /// The tmpfs starts with what was in the folder that it covers.
    CopyUp,
    /// Nothing.
    Default,
}
use Meaning::*;

/// `MS_LAZYTIME`, `MS_NOSYMFOLLOW`: not in every libc.
const MS_LAZYTIME: u64 = 1 << 25;
/// See `mount(2)`.
pub(super) const MS_NOSYMFOLLOW: u64 = 256;
const MS_REC: u64 = libc::MS_REC;

/// Attributes of one mount (`linux/mount.h`).
pub(super) mod attr {
    pub(crate) const RDONLY: u64 = 0x01;
    pub(crate) const NOSUID: u64 = 0x02;
    pub(crate) const NODEV: u64 = 0x04;
    pub(crate) const NOEXEC: u64 = 0x08;
    /// The field of three access time modes; 0 in it is relatime.
    pub(crate) const ATIME: u64 = 0x70;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const IDMAP: u64 = 0x10_0000;
    pub(crate) const NOSYMFOLLOW: u64 = 0x20_0000;
}

const OPTIONS: &[(&str, Meaning)] = &[
    ("async", Clear(libc::MS_SYNCHRONOUS)),
    ("atime", Clear(libc::MS_NOATIME)),
    ("bind", Bind(false)),
    ("defaults", Default),
    ("dev", Clear(libc::MS_NODEV)),
    ("diratime", Clear(libc::MS_NODIRATIME)),
    ("dirsync", Set(libc::MS_DIRSYNC)),
    ("exec", Clear(libc::MS_NOEXEC)),
    ("idmap", IdMap(false)),
    ("iversion", Set(libc::MS_I_VERSION)),
    ("lazytime", Set(MS_LAZYTIME)),
    ("loud", Clear(libc::MS_SILENT)),
    ("mand", Set(libc::MS_MANDLOCK)),
    ("noatime", Set(libc::MS_NOATIME)),
    ("nodev", Set(libc::MS_NODEV)),
    ("nodiratime", Set(libc::MS_NODIRATIME)),
    ("noexec", Set(libc::MS_NOEXEC)),
    ("noiversion", Clear(libc::MS_I_VERSION)),
    ("nolazytime", Clear(MS_LAZYTIME)),
    ("nomand", Clear(libc::MS_MANDLOCK)),
    ("norelatime", Clear(libc::MS_RELATIME)),
    ("nostrictatime", Clear(libc::MS_STRICTATIME)),
    ("nosuid", Set(libc::MS_NOSUID)),
    ("nosymfollow", Set(MS_NOSYMFOLLOW)),
    ("private", Propagation(libc::MS_PRIVATE)),
    ("ratime", Recursive(0, attr::NOATIME)),
    ("rbind", Bind(true)),
    ("rdev", Recursive(0, attr::NODEV)),
    ("rdiratime", Recursive(0, attr::NODIRATIME)),
    ("relatime", Set(libc::MS_RELATIME)),
    ("remount", Set(libc::MS_REMOUNT)),
    ("rexec", Recursive(0, attr::NOEXEC)),
    ("ridmap", IdMap(true)),
    ("rnoatime", Recursive(attr::NOATIME, 0)),
    ("rnodev", Recursive(attr::NODEV, 0)),
    ("rnodiratime", Recursive(attr::NODIRATIME, 0)),
    ("rnoexec", Recursive(attr::NOEXEC, 0)),
    ("rnorelatime", Recursive(0, 0)),
    ("rnostrictatime", Recursive(0, attr::STRICTATIME)),
    ("rnosuid", Recursive(attr::NOSUID, 0)),
    ("rnosymfollow", Recursive(attr::NOSYMFOLLOW, 0)),
    ("ro", Set(libc::MS_RDONLY)),
    ("rprivate", Propagation(libc::MS_PRIVATE | MS_REC)),
    ("rrelatime", Recursive(0, attr::ATIME)),
    ("rro", Recursive(attr::RDONLY, 0)),
    ("rrw", Recursive(0, attr::RDONLY)),
    ("rshared", Propagation(libc::MS_SHARED | MS_REC)),
    ("rslave", Propagation(libc::MS_SLAVE | MS_REC)),
    ("rstrictatime", Recursive(attr::STRICTATIME, 0)),
    ("rsuid", Recursive(0, attr::NOSUID)),
    ("rsymfollow", Recursive(0, attr::NOSYMFOLLOW)),
    ("runbindable", Propagation(libc::MS_UNBINDABLE | MS_REC)),
    ("rw", Clear(libc::MS_RDONLY)),
    ("shared", Propagation(libc::MS_SHARED)),
    ("silent", Set(libc::MS_SILENT)),
    ("slave", Propagation(libc::MS_SLAVE)),
    ("strictatime", Set(libc::MS_STRICTATIME)),
    ("suid", Clear(libc::MS_NOSUID)),
    ("symfollow", Clear(MS_NOSYMFOLLOW)),
    ("sync", Set(libc::MS_SYNCHRONOUS)),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagation(libc::MS_UNBINDABLE)),
];

/// All option names that this runtime understands itself, sorted.
pub fn mount_options() -> Vec<&'static str> {
    OPTIONS.iter().map(|(name, _)| *name).collect()
}

/// `MS_*` bits of a propagation's name (`shared`, `rslave`, …), as in `linux.rootfsPropagation`.
pub(super) fn propagation(name: &str) -> Option<u64> {
    match lookup(name) {
        Some(Propagation(bits)) => Some(bits),
        _ => None,
    }
}

fn lookup(name: &str) -> Option<Meaning> {
    OPTIONS.binary_search_by_key(&name, |(n, _)| n).ok().map(|i| OPTIONS[i].1)
}

/// The options of one mount.
#[derive(Clone, Debug, std::default::Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `Some(recursive)`: a bind mount.
    pub bind: Option<bool>,
    /// `MS_*` bits that were asked for.
    pub set: u64,
    /// `MS_*` bits that were asked not to be there.
    pub clear: u64,
    /// Changes of propagation, in the order given.
    pub propagation: Vec<u64>,
    /// `MOUNT_ATTR_*` for the whole tree: to set, to clear.
    pub recursive: Option<(u64, u64)>,
    /// `Some(recursive)`: id-mapped.
    pub idmap: Option<bool>,
    /// `tmpcopyup`.
    pub copy_up: bool,
    /// The file system's own options.
    pub data: Vec<(String, Option<String>)>,
}

impl Options {
    /// Parses a list of options. Of two that exclude each other the later one counts.
    pub(super) fn parse(list: &[String]) -> Options {
        let mut options = Options::default();
        for text in list {
            options.add(text);
        }
        options
    }

    fn add(&mut self, text: &str) {
        match lookup(text) {
            Some(Set(bit)) => (self.set, self.clear) = (self.set | bit, self.clear & !bit),
            Some(Clear(bit)) => (self.set, self.clear) = (self.set & !bit, self.clear | bit),
            Some(Recursive(set, clear)) => self.add_recursive(set, clear),
            Some(Propagation(bits)) => self.propagation.push(bits),
            Some(Bind(recursive)) => self.bind = Some(recursive || self.bind == Some(true)),
            Some(IdMap(recursive)) => self.idmap = Some(recursive),
            Some(CopyUp) => self.copy_up = true,
            Some(Default) => (),
            None => match text.split_once('=') {
                Some((key, value)) => self.data.push((key.to_owned(), Some(value.to_owned()))),
                None if text.is_empty() => (),
                None => self.data.push((text.to_owned(), None)),
            },
        }
    }

    fn add_recursive(&mut self, set: u64, clear: u64) {
        let (mut all_set, mut all_clear) = self.recursive.unwrap_or((0, 0));
        let either = set | clear;
        // The kernel wants the whole access time field cleared before one mode is set.
        let field = if either & attr::ATIME != 0 { attr::ATIME | either } else { either };
        all_set = all_set & !field | set;
        all_clear = all_clear & !set & !field | if either & attr::ATIME != 0 { clear | attr::ATIME } else { clear };
        self.recursive = Some((all_set, all_clear));
    }

    /// Whether any flag of the mount itself was mentioned: only then are a bind mount's flags
    /// changed at all.
    pub(super) fn mentions_flags(&self) -> bool {
        self.set | self.clear != 0
    }

    /// The requested flags as `MOUNT_ATTR_*`, for a new mount.
    pub(super) fn attributes(&self) -> u64 {
        let mut out = 0;
        for (flag, attribute) in [
            (libc::MS_RDONLY, attr::RDONLY),
            (libc::MS_NOSUID, attr::NOSUID),
            (libc::MS_NODEV, attr::NODEV),
            (libc::MS_NOEXEC, attr::NOEXEC),
            (libc::MS_NODIRATIME, attr::NODIRATIME),
            (MS_NOSYMFOLLOW, attr::NOSYMFOLLOW),
        ] {
            if self.set & flag != 0 {
                out |= attribute;
            }
        }
        // The modes exclude each other; strictatime wins in mount(2) too.
        if self.set & libc::MS_STRICTATIME != 0 {
            out |= attr::STRICTATIME;
        } else if self.set & libc::MS_NOATIME != 0 {
            out |= attr::NOATIME;
        }
        out
    }

    /// The requested flags of the file system itself, as its option names.
    pub(super) fn superblock(&self) -> impl Iterator<Item = &'static std::ffi::CStr> + use<> {
        let set = self.set;
        [
            (libc::MS_RDONLY, c"ro"),
            (libc::MS_SYNCHRONOUS, c"sync"),
            (libc::MS_DIRSYNC, c"dirsync"),
            (libc::MS_MANDLOCK, c"mand"),
            (MS_LAZYTIME, c"lazytime"),
        ]
        .into_iter()
        .filter(move |(bit, _)| set & bit != 0)
        .map(|(_, name)| name)
    }

    /// Whether a file system option of that name is there.
    pub(super) fn has_data(&self, key: &str) -> bool {
        self.data.iter().any(|(k, _)| k == key)
    }

    /// Options that make no sense together, or not for this kind of mount.
    pub(super) fn check(&self, fstype: &str) -> Result<()> {
        if self.bind.is_some() {
            if let Some((key, _)) = self.data.first() {
                bail!("unknown option {key:?}; a bind mount has no options of a file system");
            }
            if self.copy_up {
                bail!("tmpcopyup is for tmpfs, not for a bind mount");
            }
            return Ok(());
        }
        if self.copy_up && fstype != "tmpfs" {
            bail!("tmpcopyup is for tmpfs, not for {fstype}");
        }
        if self.idmap.is_some() {
            bail!("idmap needs a bind mount (option bind or rbind)");
        }
        if self.set & libc::MS_REMOUNT != 0 {
            bail!("remount needs a bind mount (option bind or rbind)");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Options {
        Options::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn table_is_sorted_for_the_search() {
        assert!(OPTIONS.is_sorted_by_key(|(name, _)| *name));
        assert!(mount_options().contains(&"rro"));
    }

    #[test]
    fn the_later_of_two_opposites_counts() {
        let o = parse("ro,rw");
        assert_eq!((o.set, o.clear), (0, libc::MS_RDONLY));
        let o = parse("rw,ro");
        assert_eq!((o.set, o.clear), (libc::MS_RDONLY, 0));
    }

    #[test]
    fn unknown_words_go_to_the_file_system_but_not_to_a_bind() {
        let o = parse("nosuid,mode=755,size=64k,posixacl");
        assert_eq!(o.data.len(), 3);
        assert_eq!(o.data[0], ("mode".into(), Some("755".into())));
        assert_eq!(o.data[2], ("posixacl".into(), None));
        assert!(o.check("tmpfs").is_ok());
        let error = parse("rbind,colour=red").check("bind").unwrap_err().to_string();
        assert!(error.contains("\"colour\""), "{error}");
    }

    #[test]
    fn access_time_modes() {
        assert_eq!(parse("noatime").attributes(), attr::NOATIME);
        assert_eq!(parse("strictatime,nosuid").attributes(), attr::STRICTATIME | attr::NOSUID);
        assert_eq!(parse("relatime").attributes(), 0);
        assert_eq!(parse("rnoatime").recursive, Some((attr::NOATIME, attr::ATIME)));
        assert_eq!(parse("rrelatime").recursive, Some((0, attr::ATIME)));
    }

    #[test]
    fn recursive_attributes_gather() {
        assert_eq!(parse("rro,rnosuid,rdev").recursive, Some((attr::RDONLY | attr::NOSUID, attr::NODEV)));
        assert_eq!(parse("rro,rrw").recursive, Some((0, attr::RDONLY)));
        assert_eq!(parse("rrw,rro").recursive, Some((attr::RDONLY, 0)));
    }

    #[test]
    fn what_cannot_be_together_is_refused() {
        assert!(parse("idmap").check("tmpfs").is_err());
        assert!(parse("tmpcopyup").check("proc").is_err());
        assert!(parse("bind,tmpcopyup").check("bind").is_err());
        assert!(parse("remount,ro").check("tmpfs").is_err());
        assert!(parse("rbind,rro,rprivate,idmap").check("bind").is_ok());
    }
}
