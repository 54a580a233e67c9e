//! Profiles out of a seeded generator, and values worth trying.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator as Operator, LinuxSyscall, LinuxSyscallBuilder,
};

/// xorshift64*.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Little-endian architectures that libseccomp knows.
pub(super) const ARCHS: [Arch; 10] = [
    Arch::ScmpArchX86_64,
    Arch::ScmpArchX86,
    Arch::ScmpArchX32,
    Arch::ScmpArchAarch64,
    Arch::ScmpArchArm,
    Arch::ScmpArchMipsel,
    Arch::ScmpArchMipsel64,
    Arch::ScmpArchMipsel64n32,
    Arch::ScmpArchPpc64le,
    Arch::ScmpArchRiscv64,
];

const ACTIONS: [(Action, Option<u32>); 9] = [
    (Action::ScmpActAllow, None),
    (Action::ScmpActErrno, None),
    (Action::ScmpActErrno, Some(38)),
    (Action::ScmpActKillProcess, None),
    (Action::ScmpActKill, None),
    (Action::ScmpActLog, None),
    (Action::ScmpActTrace, Some(7)),
    (Action::ScmpActTrap, None),
    (Action::ScmpActErrno, Some(13)),
];

const VALUES: [u64; 12] = [
    0,
    1,
    5,
    7,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0005,
    0x7e02_0000,
    0x7e02_0000_0000_0001,
    0x8000_0000_0000_0000,
    u64::MAX,
];

const OPERATORS: [Operator; 7] = [
    Operator::ScmpCmpNe,
    Operator::ScmpCmpLt,
    Operator::ScmpCmpLe,
    Operator::ScmpCmpEq,
    Operator::ScmpCmpGe,
    Operator::ScmpCmpGt,
    Operator::ScmpCmpMaskedEq,
];

/// What the rules of a generated profile look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    /// No arguments.
    Names,
    /// One condition for each rule; the rules of one call differ in their action.
    OneCondition,
    /// Up to six conditions; the rules of one call have the same action.
    OneAction,
    /// Anything.
    Anything,
}

pub(super) fn profile(random: &mut Random, names: &[String], shape: Shape) -> LinuxSeccomp {
    let (default, errno) = random.pick(&ACTIONS);
    let mut archs = ARCHS.to_vec();
    archs.retain(|_| random.below(3) == 0);
    let mut calls = Vec::new();
    for _ in 0..random.below(12) {
        calls.extend(rules(random, names, shape));
    }
    let mut builder = LinuxSeccompBuilder::default().default_action(default).architectures(archs).syscalls(calls);
    if let Some(errno) = errno {
        builder = builder.default_errno_ret(errno);
    }
    builder.build().unwrap()
}

fn rules(random: &mut Random, names: &[String], shape: Shape) -> Vec<LinuxSyscall> {
    if shape == Shape::Names || random.below(3) == 0 {
        let names = (0..1 + random.below(80)).map(|_| names[random.below(names.len())].clone()).collect();
        let action = random.pick(&ACTIONS);
        return vec![syscall(names, action, Vec::new())];
    }
    let name = names[random.below(names.len())].clone();
    let mut action = random.pick(&ACTIONS);
    let mut rules: Vec<LinuxSyscall> = Vec::new();
    for _ in 0..1 + random.below(6) {
        if shape != Shape::OneAction {
            action = random.pick(&ACTIONS);
        }
        let many = if shape == Shape::OneCondition || random.below(2) == 0 { 1 } else { 2 + random.below(2) };
        let args: Vec<_> = (0..many).map(|i| shaped_arg(random, shape, &rules, i, i + 1 == many)).collect();
        rules.push(syscall(vec![name.clone()], action, args));
    }
    rules
}

/// A condition that libseccomp can cope with, beside the rules that are there.
fn shaped_arg(random: &mut Random, shape: Shape, rules: &[LinuxSyscall], i: usize, is_last: bool) -> LinuxSeccompArg {
    let any = random.below(3);
    match shape {
        // It joins what follows a comparison that is reached on two ways, and may then not end.
        Shape::OneAction if !is_last => arg(random, i, &[Operator::ScmpCmpEq, Operator::ScmpCmpMaskedEq]),
        Shape::OneAction => arg(random, i, &OPERATORS),
        // Of several upper bounds or inequalities of one argument it may keep one action for all.
        Shape::OneCondition if rules.iter().flat_map(|rule| rule.args().iter().flatten()).any(|old| old.index() == any && is_open(old)) => {
            arg(random, any, &[Operator::ScmpCmpEq, Operator::ScmpCmpMaskedEq, Operator::ScmpCmpGe, Operator::ScmpCmpGt])
        }
        _ => arg(random, any, &OPERATORS),
    }
}

fn is_open(arg: &LinuxSeccompArg) -> bool {
    matches!(arg.op(), Operator::ScmpCmpNe | Operator::ScmpCmpLt | Operator::ScmpCmpLe)
}

fn arg(random: &mut Random, index: usize, operators: &[Operator]) -> LinuxSeccompArg {
    let operator = random.pick(operators);
    let argument = LinuxSeccompArgBuilder::default().index(index).value(random.pick(&VALUES)).op(operator);
    argument.value_two(random.pick(&VALUES)).build().unwrap()
}

pub(super) fn syscall(names: Vec<String>, (action, errno): (Action, Option<u32>), args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if !args.is_empty() {
        builder = builder.args(args);
    }
    builder.build().unwrap()
}

/// Values on both sides of every constant that a profile compares with.
pub(super) fn edges(profile: &LinuxSeccomp) -> Vec<u64> {
    let args = profile.syscalls().iter().flatten().flat_map(|call| call.args().iter().flatten());
    let constants = args.flat_map(|arg| [arg.value(), arg.value_two().unwrap_or(0), arg.value() & arg.value_two().unwrap_or(0)]);
    let mut values: Vec<u64> = (0..22).collect(); // socketcall's and ipc's selectors
    for value in constants.chain([0, 1, 22, 23, 24, u64::MAX]) {
        let other_half = value ^ 0x1_0000_0000;
        values.extend([value, value.wrapping_sub(1), value.wrapping_add(1), other_half, value as u32 as u64, value << 32 | 1, !value]);
    }
    values.sort_unstable();
    values.dedup();
    values
}
