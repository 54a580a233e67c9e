//! Which capabilities a container gets.

use std::collections::HashSet;
use std::str::FromStr;

use oci_spec::runtime::Capability;
use rrun_proto::v1;

use super::invalid;
use crate::error::Result;

/// What a container has that asks for nothing: enough for a program that starts as root and becomes somebody else.
pub const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// The granted capabilities, and those of them that are ambient. `host` is the bounding set of the daemon: `ALL`, the
/// default set and a privileged container's are what of it there is.
pub(super) fn granted(
    security: &v1::LinuxContainerSecurityContext,
    host: &HashSet<Capability>,
) -> Result<(HashSet<Capability>, HashSet<Capability>)> {
    if security.privileged {
        return Ok((host.clone(), HashSet::new()));
    }
    let Some(wish) = &security.capabilities else {
        return Ok((DEFAULT.into_iter().filter(|c| host.contains(c)).collect(), HashSet::new()));
    };
    let (add_all, add) = parse("add_capabilities", &wish.add_capabilities)?;
    let (drop_all, drop) = parse("drop_capabilities", &wish.drop_capabilities)?;
    let (ambient_all, mut ambient) = parse("add_ambient_capabilities", &wish.add_ambient_capabilities)?;
    let mut granted: HashSet<Capability> = match (add_all, drop_all) {
        // Dropping all wins over adding all, and what is added by name wins over both.
        (_, true) => HashSet::new(),
        (true, false) => host.clone(),
        (false, false) => DEFAULT.into_iter().filter(|c| host.contains(c)).collect(),
    };
    granted.extend(add);
    granted.extend(&ambient);
    granted.retain(|c| !drop.contains(c));
    if ambient_all {
        ambient.clone_from(&granted);
    }
    ambient.retain(|c| granted.contains(c));
    Ok((granted, ambient))
}

/// Whether `ALL` is among the names, and the others.
fn parse(field: &str, names: &[String]) -> Result<(bool, HashSet<Capability>)> {
    let mut all = false;
    let mut set = HashSet::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match bare {
            "ALL" => all = true,
            _ => match Capability::from_str(bare) {
                Ok(capability) => _ = set.insert(capability),
                Err(_) => {
                    return Err(invalid(format!("linux.security_context.capabilities.{field}: {name:?} is not a capability")));
                }
            },
        }
    }
    Ok((all, set))
}

/// The capabilities of a mask as in `/proc/self/status`.
pub(super) fn of_mask(mask: u64) -> HashSet<Capability> {
    NAMES.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1).filter_map(|(_, name)| Capability::from_str(name).ok()).collect()
}

/// capabilities(7), by number.
#[rustfmt::skip]
const NAMES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
    "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
    "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests {
    use super::*;
    use Capability::*;

    fn granted(add: &[&str], drop: &[&str], ambient: &[&str]) -> Result<(HashSet<Capability>, HashSet<Capability>)> {
        let strings = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let capabilities = Some(v1::Capability {
            add_capabilities: strings(add),
            drop_capabilities: strings(drop),
            add_ambient_capabilities: strings(ambient),
        });
        super::granted(&v1::LinuxContainerSecurityContext { capabilities, ..Default::default() }, &of_mask(!(1 << 24)))
    }

    #[test]
    fn adding_and_dropping() {
        let default = HashSet::from(DEFAULT);
        assert_eq!(granted(&[], &[], &[]).unwrap().0, default);
        let (set, ambient) = granted(&["NET_ADMIN", "cap_sys_time"], &["CHOWN"], &[]).unwrap();
        assert!(set.contains(&NetAdmin) && set.contains(&SysTime) && !set.contains(&Chown) && ambient.is_empty());
        assert_eq!(granted(&["ALL"], &[], &[]).unwrap().0.len(), 40, "all that the host has, which is all but SYS_RESOURCE");
        assert!(!granted(&["ALL"], &["CAP_SYS_ADMIN"], &[]).unwrap().0.contains(&SysAdmin));
        assert!(granted(&["ALL"], &["ALL"], &[]).unwrap().0.is_empty());
        assert_eq!(granted(&["KILL"], &["all"], &[]).unwrap().0, HashSet::from([Kill]));
        assert!(granted(&["SYS_RESOURCE"], &[], &[]).unwrap().0.contains(&SysResource), "asked for by name");
        let (set, ambient) = granted(&[], &["ALL"], &["NET_BIND_SERVICE"]).unwrap();
        assert_eq!((set, ambient), (HashSet::from([NetBindService]), HashSet::from([NetBindService])));
        let error = granted(&["FLY"], &[], &[]).unwrap_err().to_string();
        assert_eq!(error, "linux.security_context.capabilities.add_capabilities: \"FLY\" is not a capability");
    }

    #[test]
    fn privileged_is_what_the_host_has() {
        let security = v1::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        assert_eq!(super::granted(&security, &of_mask(0x1ff_ffff_ffff)).unwrap().0.len(), 41);
        assert_eq!(super::granted(&security, &of_mask(0)).unwrap().0.len(), 0);
    }
}
