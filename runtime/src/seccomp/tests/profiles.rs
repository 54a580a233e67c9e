//! Docker's profile, bad profiles, names and flags.

use super::super::names::{self, Architecture, NEWER, Number};
use super::super::{FLAG_LOG, FLAG_NEW_LISTENER, FLAG_SPEC_ALLOW, FLAG_WAIT_KILLABLE_RECV, compile};
use super::docker;
use super::generate::{ARCHS, Random};
use super::interpreter::{Call, run};
use super::oracle::{Oracle, differences, known_names};
use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp};
use serde_json::{Value, json};

const X86_64: u32 = 0xc000_003e;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

fn profile(json: Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

fn refusal(json: Value) -> String {
    format!("{:#}", compile(&profile(json)).unwrap_err())
}

fn number(name: &str, arch: Arch) -> Number {
    names::resolve(names::c_name(name, &mut [0; 64]).unwrap(), Architecture(arch as u32))
}

#[test]
fn dockers_profile_decides_like_libseccomp() {
    let mut profile = docker::profile();
    let newer: Vec<&str> = NEWER.iter().map(|(name, _)| *name).collect();
    let mut calls = profile.syscalls().clone().unwrap();
    for call in &mut calls {
        let names = call.names().iter().filter(|name| !newer.contains(&name.as_str())).cloned().collect();
        call.set_names(names);
    }
    profile.set_syscalls(Some(calls));
    let ours = compile(&profile).unwrap();
    for layout in [1, 2] {
        let found = differences(&profile, &ours.program, &Oracle::new(&profile, layout).unwrap(), &mut Random(9), 500);
        assert!(found.is_empty(), "{found:x?}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn dockers_profile_is_short_to_load() {
    let filter = compile(&docker::profile()).unwrap();
    // The kernel runs each number through the program: the budget is what decides the time of a load.
    let steps: usize = (0..470).map(|nr| run(&filter.program, &Call { nr, arch: X86_64, args: [0; 6] }).1).sum();
    assert!(filter.program.len() <= 280, "{} instructions", filter.program.len());
    assert!(steps / 470 <= 12, "{steps} steps for 470 numbers");
}

#[test]
fn numbers_beyond_the_profile_get_enosys() {
    let allowing = |default: &str| {
        let json = json!({"defaultAction": default, "architectures": ["SCMP_ARCH_NATIVE"],
            "syscalls": [{"names": ["getpid", "mseal", "no_such_call"], "action": "SCMP_ACT_ALLOW"}]});
        let filter = compile(&profile(json)).unwrap();
        let arch = Architecture::native().audit();
        move |nr| run(&filter.program, &Call { nr, arch, args: [0; 6] }).0
    };
    let errno = allowing("SCMP_ACT_ERRNO");
    assert_eq!([errno(461), errno(462), errno(463), errno(1000)], [EPERM, ALLOW, ENOSYS, ENOSYS]);
    let log = allowing("SCMP_ACT_LOG");
    assert_eq!([log(462), log(463)], [ALLOW, libc::SECCOMP_RET_LOG]);
}

#[test]
fn repeated_argument_is_an_alternative() {
    let arg = |value: u64| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"});
    let json = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [arg(0), arg(8)]}]});
    let filter = compile(&profile(json)).unwrap();
    let arch = Architecture::native();
    let Number::Direct(nr) = number("personality", ARCHS.into_iter().find(|a| *a as u32 == arch.0).unwrap()) else { panic!("no number") };
    let decide = |value| run(&filter.program, &Call { nr, arch: arch.audit(), args: [value, 0, 0, 0, 0, 0] }).0;
    assert_eq!([decide(0), decide(8), decide(1), decide(1 << 32)], [ALLOW, ALLOW, EPERM, EPERM]);
}

#[test]
fn bad_profiles_are_refused() {
    let refused = |json: Value, words: &str| {
        let text = refusal(json);
        assert!(text.contains(words), "{text}");
    };
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]});
    refused(
        json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
        "linux.seccomp.defaultAction: SCMP_ACT_ALLOW takes no errnoRet",
    );
    refused(
        rule(json!({"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1})),
        "linux.seccomp.syscalls[0]: SCMP_ACT_KILL takes no",
    );
    refused(rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000})), "errnoRet 5000 is not an errno");
    refused(json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY cannot be used as default action");
    refused(rule(json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"})), "SCMP_ACT_NOTIFY cannot be used for the write syscall");
    refused(rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})), "seccomp listenerPath is not set");
    refused(rule(json!({"names": [""], "action": "SCMP_ACT_ALLOW"})), "linux.seccomp.syscalls[0]: an empty string");
    let arg = json!({"index": 6, "value": 0, "op": "SCMP_CMP_EQ"});
    refused(rule(json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [arg]})), "linux.seccomp.syscalls[0]: args: index 6");
    let on = |action: &str| json!({"names": ["read"], "action": action, "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]});
    let contradiction = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [on("SCMP_ACT_ALLOW"), on("SCMP_ACT_KILL")]});
    refused(contradiction, "linux.seccomp.syscalls: read: two rules ask for different actions under the same condition");
}

#[test]
fn a_program_that_is_too_long_is_refused() {
    let arg = |index: usize, value: usize| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let rules: Vec<_> = (0..700).map(|i| json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [arg(0, i), arg(1, i)]})).collect();
    let text = refusal(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}));
    assert!(text.contains("instructions, the kernel takes 4096"), "{text}");
}

#[test]
fn long_programs_reach_their_returns() {
    // 300 pairs of conditions: far more than a jump of 255 instructions reaches.
    let arg = |index: usize, value: usize| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let rules: Vec<_> = (0..300).map(|i| json!({"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [arg(0, i), arg(1, i)]})).collect();
    let filter = compile(&profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}))).unwrap();
    let Number::Direct(nr) = names::resolve(c"read", Architecture::native()) else { panic!("no read") };
    let decide = |a, b| run(&filter.program, &Call { nr, arch: Architecture::native().audit(), args: [a, b, 0, 0, 0, 0] }).0;
    for i in 0..300 {
        assert_eq!([decide(i, i), decide(i, i + 1)], [ALLOW, EPERM]);
    }
}

#[test]
fn flags_are_runcs() {
    let flags = |flags: Value| {
        let filter = compile(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}))).unwrap();
        (filter.flags, filter.optional)
    };
    assert_eq!(flags(Value::Null), (FLAG_SPEC_ALLOW, FLAG_SPEC_ALLOW));
    assert_eq!(flags(json!([])), (0, 0));
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"])), (FLAG_LOG, 0));
    assert_eq!(flags(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])), (0, 0));
    let json = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], "listenerPath": "/run/agent",
        "listenerMetadata": "x", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    let filter = compile(&profile(json)).unwrap();
    assert_eq!(filter.flags, FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV);
    assert_eq!(filter.listener.unwrap().metadata.as_deref(), Some("x"));
}

/// Our tables of numbers, where libseccomp knows them too.
#[test]
fn numbers_are_libseccomps() {
    for name in known_names() {
        let name = names::c_name(&name, &mut [0; 64]).unwrap().to_owned();
        let mut both = names::Name::new(&name);
        both.on(Architecture(X86_64));
        let i386 = Architecture(Arch::ScmpArchX86 as u32);
        assert_eq!(both.on(i386), names::resolve(&name, i386), "{name:?} on i386");
    }
    for (name, at_424) in NEWER {
        let Ok(theirs) = ScmpSyscall::from_name_by_arch(name, ScmpArch::Aarch64) else { continue };
        let ours = i32::try_from(at_424).unwrap();
        assert!(theirs.as_raw_syscall() == ours || theirs.as_raw_syscall() < 0, "{name}");
    }
    for arch in [Arch::ScmpArchX86, Arch::ScmpArchS390, Arch::ScmpArchS390x, Arch::ScmpArchPpc, Arch::ScmpArchPpc64le, Arch::ScmpArchMipsel]
    {
        let theirs: ScmpArch = arch.to_string().parse().unwrap();
        let base = if arch == Arch::ScmpArchMipsel { 4000 } else { 0 };
        for nr in base..base + 600 {
            let Ok(name) = ScmpSyscall::from(nr).get_name_by_arch(theirs) else { continue };
            let is_it = match number(&name, arch) {
                Number::Direct(n) => n == nr as u32,
                Number::Multiplexed { direct, .. } => direct == Some(nr as u32),
                _ => false,
            };
            assert!(is_it, "{name} on {arch} is {nr}, not {:?}", number(&name, arch));
        }
    }
}

#[test]
fn newer_names_have_numbers_everywhere() {
    assert_eq!(number("file_setattr", Arch::ScmpArchX86), Number::Direct(469));
    assert_eq!(number("file_setattr", Arch::ScmpArchX32), Number::Direct(0x4000_0000 + 469));
    assert_eq!(number("file_setattr", Arch::ScmpArchMipsel64), Number::Direct(5469));
    assert_eq!(number("uretprobe", Arch::ScmpArchX86_64), Number::Direct(335));
    // libseccomp 2.6 knows the name, and that this architecture lacks it.
    assert!(matches!(number("uretprobe", Arch::ScmpArchAarch64), Number::Unknown | Number::Absent));
}

#[test]
fn architectures_of_no_calls_change_nothing() {
    let with = |architectures: Value| {
        let rules = json!([{"names": ["umask"], "action": "SCMP_ACT_ERRNO"}]);
        compile(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": rules}))).unwrap()
    };
    let alone = with(json!([]));
    // Of another byte order; of no table (libseccomp 2.6 has one).
    for name in ["SCMP_ARCH_S390X", "SCMP_ARCH_SHEB"] {
        assert_eq!(format!("{:?}", with(json!([name]))), format!("{alone:?}"), "{name}");
    }
}
