//! Decisions of our programs against those of libseccomp's, built the way runc builds them.

use super::super::names::{self, Architecture, Number};
use super::super::{action, compile};
use super::generate::{self, Random, Shape};
use super::interpreter::{Call, run};
use libc::sock_filter;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompOperator as Operator};

const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const X32_BIT: u32 = 0x4000_0000;

/// What runc would load: libseccomp's program, and what its ENOSYS stub checks before.
pub(super) struct Oracle {
    pub(super) program: Vec<sock_filter>,
    largest: Vec<(Architecture, u32)>,
}

fn scmp_arch(arch: Arch) -> ScmpArch {
    arch.to_string().parse().unwrap()
}

fn scmp_action(of: Action, errno: Option<u32>) -> ScmpAction {
    let code = errno.unwrap_or(libc::EPERM as u32);
    match of {
        Action::ScmpActKill | Action::ScmpActKillThread => ScmpAction::KillThread,
        Action::ScmpActKillProcess => ScmpAction::KillProcess,
        Action::ScmpActTrap => ScmpAction::Trap,
        Action::ScmpActErrno => ScmpAction::Errno(code as i32),
        Action::ScmpActNotify => ScmpAction::Notify,
        Action::ScmpActTrace => ScmpAction::Trace(code as u16),
        Action::ScmpActLog => ScmpAction::Log,
        Action::ScmpActAllow => ScmpAction::Allow,
    }
}

fn comparison(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (operator, value) = match arg.op() {
        Operator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Operator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Operator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Operator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Operator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Operator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        Operator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0)),
    };
    ScmpArgCompare::new(arg.index() as u32, operator, value)
}

impl Oracle {
    /// The error is libseccomp's.
    pub(super) fn new(profile: &LinuxSeccomp, optimize: u32) -> Result<Self, libseccomp::error::SeccompError> {
        let default = scmp_action(profile.default_action(), profile.default_errno_ret());
        let mut filter = ScmpFilterContext::new(default)?;
        let mut archs = vec![Architecture::native()];
        for arch in profile.architectures().iter().flatten() {
            filter.add_arch(scmp_arch(*arch))?;
            archs.push(Architecture(*arch as u32));
        }
        filter.set_ctl_optimize(optimize)?;
        for call in profile.syscalls().iter().flatten() {
            let action = scmp_action(call.action(), call.errno_ret());
            if action == default {
                continue;
            }
            for name in call.names() {
                let Ok(number) = ScmpSyscall::from_name(name) else { continue };
                let args: Vec<_> = call.args().iter().flatten().map(comparison).collect();
                let mut indices: Vec<_> = call.args().iter().flatten().map(|arg| arg.index()).collect();
                indices.sort_unstable();
                if indices.windows(2).any(|pair| pair[0] == pair[1]) {
                    for arg in args {
                        filter.add_rule_conditional(action, number, &[arg])?;
                    }
                } else {
                    filter.add_rule_conditional(action, number, &args)?;
                }
            }
        }
        let file = nix::sys::memfd::memfd_create(c"bpf", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        filter.export_bpf(&file)?;
        let bytes = std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
        let instruction = |b: &[u8]| sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        };
        Ok(Self { program: bytes.chunks_exact(8).map(instruction).collect(), largest: largest(profile, &archs) })
    }

    pub(super) fn decide(&self, call: &Call) -> u32 {
        let is_x32 = |arch: &Architecture| arch.is_x32() == (call.nr & X32_BIT != 0);
        let largest = self.largest.iter().find(|(arch, _)| arch.audit() == call.arch && (call.arch != 0xc000_003e || is_x32(arch)));
        match largest {
            Some((_, largest)) if call.nr > *largest => ENOSYS,
            _ => run(&self.program, call).0,
        }
    }
}

/// The largest number of each architecture that the profile names, where the ENOSYS stub applies.
fn largest(profile: &LinuxSeccomp, archs: &[Architecture]) -> Vec<(Architecture, u32)> {
    if matches!(profile.default_action(), Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace) {
        return Vec::new();
    }
    let names = || profile.syscalls().iter().flatten().flat_map(|call| call.names());
    let number = |name: &String, arch| match names::resolve(names::c_name(name, &mut [0; 64]).unwrap(), arch) {
        Number::Direct(number) => Some(number),
        // Unlike runc we count the direct numbers too: a call that has a rule is not unknown.
        Number::Multiplexed { call, direct, .. } => direct.max(Some(call)),
        _ => None,
    };
    let largest = |arch: &Architecture| Some((*arch, names().filter_map(|name| number(name, *arch)).max().filter(|n| *n != 0)?));
    archs.iter().filter_map(largest).collect()
}

/// Names that libseccomp knows, native or not.
pub(super) fn known_names() -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for arch in generate::ARCHS {
        for base in [0, X32_BIT as i32, 4000, 5000, 6000, 0x0f_0000] {
            names.extend((base..base + 600).filter_map(|n| ScmpSyscall::from(n).get_name_by_arch(scmp_arch(arch)).ok()));
        }
    }
    names.extend(["accept", "send", "recv", "semop", "semtimedop", "no_such_call"].map(String::from));
    names.sort();
    names.dedup();
    // libseccomp goes from the name over the native number to the other architectures' numbers; some names it loses on the way.
    names.retain(|name| ScmpSyscall::from_name(name).map_or(true, |number| number.get_name().is_ok_and(|back| back == *name)));
    names
}

#[derive(Debug)]
pub(super) struct Difference {
    pub(super) call: Call,
    pub(super) expected: u32,
    pub(super) decided: u32,
}

/// Every number, with arguments around the profile's constants where arguments matter; the first
/// calls for which the decisions differ.
pub(super) fn differences(
    profile: &LinuxSeccomp,
    ours: &[sock_filter],
    oracle: &Oracle,
    random: &mut Random,
    tries: usize,
) -> Vec<Difference> {
    let mut audits: Vec<u32> = generate::ARCHS.iter().map(|arch| Architecture(*arch as u32).audit()).collect();
    audits.push(0x1234_5678);
    audits.sort_unstable();
    audits.dedup();
    let edges = generate::edges(profile);
    let mut found = Vec::new();
    for arch in audits {
        let bases = match arch {
            0xc000_003e => &[0, X32_BIT][..],
            0x4000_0008 => &[0, 4000],
            0xc000_0008 => &[0, 5000],
            0xe000_0008 => &[0, 6000],
            0x4000_0028 => &[0, 0x0f_0000],
            _ => &[0],
        };
        let odd = [0x3fff_ffff, 0x7fff_ffff, 0x8000_0000, 0x8000_0005, 0xbfff_ffff, 0xc000_0000, 0xc000_0005, u32::MAX - 1, u32::MAX];
        let checked = checked_numbers(profile, arch);
        for nr in bases.iter().flat_map(|base| *base..=base + 600).chain(odd) {
            let tries = if checked.contains(&nr) { tries } else { 1 };
            for _ in 0..tries {
                let mut args = [0; 6];
                args.iter_mut().for_each(|arg| *arg = random.pick(&edges));
                let call = Call { nr, arch, args };
                let (expected, (decided, _)) = (oracle.decide(&call), run(ours, &call));
                if expected != decided {
                    found.push(Difference { call, expected, decided });
                    break;
                }
            }
        }
    }
    found
}

fn checked_numbers(profile: &LinuxSeccomp, audit: u32) -> Vec<u32> {
    let mut numbers = vec![102, 117, 4102, 4117];
    for call in profile.syscalls().iter().flatten().filter(|call| call.args().is_some()) {
        for arch in generate::ARCHS.iter().map(|arch| Architecture(*arch as u32)).filter(|arch| arch.audit() == audit) {
            for name in call.names() {
                match names::resolve(names::c_name(name, &mut [0; 64]).unwrap(), arch) {
                    Number::Direct(number) => numbers.push(number),
                    Number::Multiplexed { direct, .. } => numbers.extend(direct),
                    _ => {}
                }
            }
        }
    }
    numbers
}

/// What a profile says about a call, as JSON.
fn about(profile: &LinuxSeccomp, call: &Call) -> String {
    let archs: Vec<_> = generate::ARCHS.iter().map(|arch| Architecture(*arch as u32)).filter(|arch| arch.audit() == call.arch).collect();
    let is_it = |name: &String, arch| match names::resolve(names::c_name(name, &mut [0; 64]).unwrap(), arch) {
        Number::Direct(number) => number == call.nr,
        Number::Multiplexed { call: number, direct, .. } => number == call.nr || direct == Some(call.nr),
        _ => false,
    };
    let mut calls = profile.syscalls().clone().unwrap_or_default();
    for rule in &mut calls {
        let names = rule.names().iter().filter(|name| archs.iter().any(|arch| is_it(name, *arch))).cloned().collect();
        rule.set_names(names);
    }
    calls.retain(|rule| !rule.names().is_empty());
    let mut profile = profile.clone();
    profile.set_syscalls(Some(calls));
    serde_json::to_string(&profile).unwrap()
}

/// What the rules that match a call ask for, in the words of the specification: conditions of one
/// rule are and-ed unless two are about the same argument; a call without a rule gets the default.
fn asked_for(profile: &LinuxSeccomp, call: &Call) -> Vec<u32> {
    let default = action(profile.default_action(), profile.default_errno_ret()).unwrap();
    let archs = profile.architectures().iter().flatten().map(|arch| Architecture(*arch as u32)).chain([Architecture::native()]);
    let arch =
        archs.into_iter().find(|arch| arch.audit() == call.arch && (call.arch != 0xc000_003e || arch.is_x32() == (call.nr & X32_BIT != 0)));
    let Some(arch) = arch else { return Vec::new() };
    let bits = if arch.is_wide() { u64::MAX } else { u64::from(u32::MAX) };
    let mut asked = Vec::new();
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret()).unwrap();
        for name in rule.names().iter().filter(|_| action != default) {
            let skip = match names::resolve(names::c_name(name, &mut [0; 64]).unwrap(), arch) {
                Number::Direct(number) | Number::Multiplexed { direct: Some(number), .. } if number == call.nr => false,
                Number::Multiplexed { call: number, selector, .. } if number == call.nr && call.args[0] & bits == selector => true,
                _ => continue,
            };
            let args: Vec<_> = rule.args().iter().flatten().collect();
            let holds = |arg: &&LinuxSeccompArg| {
                let (given, value) = (call.args[arg.index()] & bits, arg.value() & bits);
                (skip && arg.index() == 0)
                    || match arg.op() {
                        Operator::ScmpCmpNe => given != value,
                        Operator::ScmpCmpLt => given < value,
                        Operator::ScmpCmpLe => given <= value,
                        Operator::ScmpCmpEq => given == value,
                        Operator::ScmpCmpGe => given >= value,
                        Operator::ScmpCmpGt => given > value,
                        Operator::ScmpCmpMaskedEq => given & value == arg.value_two().unwrap_or(0) & value,
                    }
            };
            let repeated = (0..6).any(|i| args.iter().filter(|arg| arg.index() == i).count() > 1);
            if if repeated { args.iter().any(holds) } else { args.iter().all(holds) } {
                asked.push(action);
            }
        }
    }
    if asked.is_empty() { vec![default] } else { asked }
}

/// Compares generated profiles with libseccomp. With several rules about one call libseccomp 2.5
/// has faults: it may give the default to a call that a rule matches, and compare the half of a
/// 64-bit argument that it loaded last instead of the one that the rule is about. There the
/// specification decides whether we are right.
fn compare(shape: Shape, seed: u64, profiles: usize) {
    let names = known_names();
    let mut random = Random(seed);
    let (mut compared, mut faulty) = (0, 0);
    for i in 0..profiles {
        let profile = generate::profile(&mut random, &names, shape);
        let json = || serde_json::to_string(&profile).unwrap();
        let (ours, oracle) = match (compile(&profile), Oracle::new(&profile, 1)) {
            (Ok(ours), Ok(oracle)) => (ours, oracle),
            (Err(ours), Ok(_)) => panic!("{shape:?} {i}: we refuse it: {ours:#}\n{}", json()),
            // It refuses contradictions even where an unconditional rule outweighs them.
            (_, Err(_)) => continue,
        };
        let differences = differences(&profile, &ours.program, &oracle, &mut random, 60);
        for Difference { call, expected, decided } in &differences {
            let asked = asked_for(&profile, call);
            let is_wide = call.arch & 0x8000_0000 != 0 && call.arch & 0x2000_0000 == 0 && call.nr & X32_BIT == 0;
            let is_fault = shape != Shape::Names && (is_wide || !asked.contains(expected));
            assert!(
                is_fault && asked.contains(decided),
                "{shape:?} {i}: {call:x?}: expected {expected:#x}, got {decided:#x}\n{}",
                about(&profile, call)
            );
        }
        compared += 1;
        faulty += usize::from(!differences.is_empty());
    }
    eprintln!("{shape:?}: {compared} of {profiles} profiles compared, {faulty} with faults of libseccomp");
    assert!(compared > profiles / 2 && faulty < compared / 4, "{compared} of {profiles} profiles compared, {faulty} with faults");
}

#[test]
fn decides_like_libseccomp_by_number() {
    compare(Shape::Names, 1, 150);
}

#[test]
fn decides_like_libseccomp_with_one_condition_for_each_rule() {
    compare(Shape::OneCondition, 2, 150);
}

#[test]
fn decides_like_libseccomp_with_one_action_for_each_call() {
    compare(Shape::OneAction, 3, 150);
}

#[test]
fn decides_what_some_rule_asks_for() {
    let names = known_names();
    let mut random = Random(4);
    for i in 0..400 {
        let profile = generate::profile(&mut random, &names, Shape::Anything);
        let Ok(filter) = compile(&profile) else { continue };
        let edges = generate::edges(&profile);
        for audit in generate::ARCHS.iter().map(|arch| Architecture(*arch as u32).audit()) {
            for nr in checked_numbers(&profile, audit) {
                for _ in 0..40 {
                    let mut args = [0; 6];
                    args.iter_mut().for_each(|arg| *arg = random.pick(&edges));
                    let call = Call { nr, arch: audit, args };
                    let (decided, _) = run(&filter.program, &call);
                    let asked = asked_for(&profile, &call);
                    let is_refused = asked.is_empty() && decided == libc::SECCOMP_RET_KILL_THREAD;
                    assert!(
                        is_refused || decided == ENOSYS || asked.contains(&decided),
                        "{i}: {call:x?}: got {decided:#x}\n{}",
                        about(&profile, &call)
                    );
                }
            }
        }
    }
}
