//! Filters that the kernel runs, in a child that only makes system calls.

use super::super::{Filter, compile};
use super::docker;
use crate::sys;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

/// Loads the filter in a child and runs `check` there: how the child ended.
fn under(filter: &Filter, check: impl FnOnce() -> bool) -> WaitStatus {
    match sys::clone(0, None).unwrap() {
        // The parent may have threads: nothing here allocates unless something fails.
        sys::Cloned::Child => {
            let _ = sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0);
            let status = match filter.load() {
                Ok(fd) if fd.is_some() == filter.listener.is_some() => {
                    drop(fd);
                    i32::from(!check())
                }
                _ => 2,
            };
            sys::exit_now(status)
        }
        sys::Cloned::Parent(pid, _) => waitpid(Pid::from_raw(pid), None).unwrap(),
    }
}

fn exited(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::Exited(_, 0))
}

fn filter(json: serde_json::Value) -> Filter {
    compile(&serde_json::from_value(json).unwrap()).unwrap()
}

#[test]
fn dockers_profile_works() {
    let filter = compile(&docker::profile()).unwrap();
    assert!(exited(under(&filter, || nix::unistd::getppid().as_raw() > 0)));
    assert!(exited(under(&filter, || sys::umount(c"/nowhere", 0) == Err(Errno::EPERM))));
    assert!(exited(under(&filter, || sys::personality(0xffff_ffff).is_ok())));
    assert!(exited(under(&filter, || sys::personality(0x1234) == Err(Errno::EPERM))));
    // Not in the profile, and below its largest number.
    assert!(exited(under(&filter, || sys::fsopen(c"tmpfs").err() == Some(Errno::EPERM))));
}

#[test]
fn actions_work() {
    let on_umount =
        |action: &str| filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["umount2"], "action": action}]}));
    let umount = || sys::umount(c"/nowhere", 0);
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let status = under(&on_umount(action), || umount().is_ok());
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{action}: {status:?}");
    }
    assert!(exited(under(&on_umount("SCMP_ACT_LOG"), || umount() != Err(Errno::ENOSYS))));
    // Without a tracer the call is not made.
    assert!(exited(under(&on_umount("SCMP_ACT_TRACE"), || umount() == Err(Errno::ENOSYS))));
    assert!(exited(under(&on_umount("SCMP_ACT_ERRNO"), || umount() == Err(Errno::EPERM))));
}

#[test]
fn notify_makes_a_listener() {
    let notifying = filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent",
        "syscalls": [{"names": ["umount2"], "action": "SCMP_ACT_NOTIFY"}]}));
    // `under` has seen and closed the descriptor: nobody listens any more.
    assert!(exited(under(&notifying, || sys::umount(c"/nowhere", 0) == Err(Errno::ENOSYS))));
}

#[test]
fn sixty_four_bits_are_compared() {
    let arg = json!({"index": 1, "value": 0x1_0000_0005u64, "op": "SCMP_CMP_GE"});
    let filter = filter(json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["prctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 93, "args": [arg]}]}));
    let refused = |value| sys::prctl(libc::PR_SET_DUMPABLE, value, 0) == Err(Errno::EPROTONOSUPPORT);
    assert!(exited(under(&filter, || !refused(0xffff_ffff) && !refused(0x1_0000_0004) && refused(0x1_0000_0005) && refused(u64::MAX))));
}
