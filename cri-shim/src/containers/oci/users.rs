//! Who a container runs as: the request, else the image's `User`, names looked up in the image's own files.

use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::Context;
use rrun_proto::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::{ImageConfig, User, invalid};
use crate::error::Result;

/// No image's passwd or group is longer; one that is, is not read further.
const LONGEST: u64 = 8 << 20;

/// A line of /etc/passwd.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// A line of /etc/group.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves the user and all groups. `root` is the root of the image's files.
pub(super) fn of_container(security: &LinuxContainerSecurityContext, image: &ImageConfig, root: BorrowedFd<'_>) -> Result<User> {
    let field = "linux.security_context";
    if security.run_as_group.is_some() && security.run_as_user.is_none() && security.run_as_username.is_empty() {
        return Err(invalid(format!("{field}.run_as_group: set without run_as_user or run_as_username")));
    }
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    let files = Files { accounts: accounts(&passwd), groups: groups(&group) };
    let (user_part, group_part) = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(uid), _) => (id(uid.value, "run_as_user")?.to_string(), String::new()),
        (None, "") => match image.user.split_once(':') {
            Some((user, group)) => (user.to_owned(), group.to_owned()),
            None => (image.user.clone(), String::new()),
        },
        (None, name) => (name.to_owned(), String::new()),
    };
    let from_request = security.run_as_user.is_some() || !security.run_as_username.is_empty();
    let whose = if from_request { format!("{field}.run_as_username") } else { "the image's User".to_owned() };
    let (name, uid, primary) =
        files.user(&user_part).ok_or_else(|| invalid(format!("{whose}: {user_part:?} is not in the image's /etc/passwd")))?;
    let gid = match (&security.run_as_group, group_part.as_str()) {
        (Some(gid), _) => id(gid.value, "run_as_group")?,
        (None, "") => primary,
        (None, part) => files.group(part).ok_or_else(|| invalid(format!("{whose}: group {part:?} is not in the image's /etc/group")))?,
    };
    let mut all = vec![gid];
    for given in &security.supplemental_groups {
        all.push(id(*given, "supplemental_groups")?);
    }
    if security.supplemental_groups_policy() == SupplementalGroupsPolicy::Merge {
        all.extend(name.into_iter().flat_map(|name| files.memberships(name)));
    }
    let mut unique: Vec<u32> = Vec::new();
    for gid in all {
        if !unique.contains(&gid) {
            unique.push(gid);
        }
    }
    Ok(User { uid, gid, groups: unique })
}

fn id(number: i64, field: &str) -> Result<u32> {
    // The last number means "no id" to the kernel.
    match u32::try_from(number) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(invalid(format!("linux.security_context.{field}: {number} is not an id"))),
    }
}

struct Files<'a> {
    accounts: Vec<Account<'a>>,
    groups: Vec<Group<'a>>,
}

impl<'a> Files<'a> {
    /// Name, id and group of `user`, a name or a number; nothing at all is root.
    fn user(&self, user: &str) -> Option<(Option<&'a str>, u32, u32)> {
        if user.is_empty() {
            return self.user("0");
        }
        let known = |account: &Account<'a>| (Some(account.name), account.uid, account.gid);
        if let Ok(uid) = user.parse::<u32>() {
            // A number needs no account.
            return Some(self.accounts.iter().find(|a| a.uid == uid).map_or((None, uid, 0), known));
        }
        self.accounts.iter().find(|account| account.name == user).map(known)
    }

    fn group(&self, group: &str) -> Option<u32> {
        group.parse().ok().or_else(|| self.groups.iter().find(|g| g.name == group).map(|g| g.gid))
    }

    /// The groups that have `name` as a member.
    fn memberships(&self, name: &str) -> impl Iterator<Item = u32> {
        self.groups.iter().filter(move |group| group.members.split(',').any(|member| member.trim() == name)).map(|group| group.gid)
    }
}

/// passwd(5). What is no account is left out.
fn accounts(text: &str) -> Vec<Account<'_>> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.split(':');
            let name = parts.next()?;
            let uid = parts.nth(1)?.parse().ok()?;
            Some(Account { name, uid, gid: parts.next()?.parse().ok()? })
        })
        .collect()
}

/// group(5). What is no group is left out.
fn groups(text: &str) -> Vec<Group<'_>> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.split(':');
            let name = parts.next()?;
            let gid = parts.nth(1)?.parse().ok()?;
            Some(Group { name, gid, members: parts.next().unwrap_or_default() })
        })
        .collect()
}

/// A file of the image; links cannot lead out of it. A file that is not there is an empty one.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file: OwnedFd = match openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
        opened => opened.with_context(|| format!("open the image's {path}"))?,
    };
    let file = File::from(file);
    if !file.metadata().with_context(|| format!("stat the image's {path}"))?.is_file() {
        return Ok(String::new());
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).with_context(|| format!("read the image's {path}"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
