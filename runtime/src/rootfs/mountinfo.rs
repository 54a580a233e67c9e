//! What a line of /proc/PID/mountinfo says (proc_pid_mountinfo(5)).

use std::path::PathBuf;

/// A mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mounted<'a> {
    /// `MAJOR:MINOR` of its file system.
    pub device: &'a str,
    /// The folder of the file system that it shows, `/` for all of it.
    pub root: PathBuf,
    /// Where it is, as the reader of the file sees it.
    pub point: PathBuf,
    /// The flags of the mount itself: `ro`, `nosuid`, …
    flags: &'a str,
    pub fstype: &'a str,
}

impl<'a> Mounted<'a> {
    /// `None`: no such line.
    pub(super) fn parse(line: &'a str) -> Option<Mounted<'a>> {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(2);
        let (device, root, point, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(Mounted { device, root: unescape(root), point: unescape(point), flags, fstype: right.split(' ').next()? })
    }

    /// For an error: `proc, rw,nosuid`.
    pub(super) fn describe(&self) -> String {
        format!("{}, {}", self.fstype, self.flags)
    }

    pub(super) fn has(&self, flag: &str) -> bool {
        self.flags.split(',').any(|f| f == flag)
    }
}

/// Undoes the octal escapes (`\040`).
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = if *first == b'\\' { tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()) } else { None };
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (bytes.push(byte), rest = &tail[3..]),
            None => (bytes.push(*first), rest = tail),
        };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = r"22 27 0:20 / /mnt/a\040b rw,nosuid shared:7 - proc proc ro";
        let mounted = Mounted::parse(line).unwrap();
        assert_eq!((mounted.device, mounted.fstype), ("0:20", "proc"));
        assert_eq!((mounted.root, mounted.point), ("/".into(), "/mnt/a b".into()));
        let mounted = Mounted::parse("1 2 8:1 /sub /x ro,nodev - ext4 /dev/sda rw").unwrap();
        assert_eq!(mounted.root, PathBuf::from("/sub"));
        assert!(mounted.has("ro") && mounted.has("nodev") && !mounted.has("rw"));
        assert_eq!(Mounted::parse("nonsense"), None);
    }
}
