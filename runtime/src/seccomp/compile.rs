//! From a profile to a program.
//!
//! The program asks for the architecture, then searches one balanced tree over the runs of
//! system call numbers with the same answer; the checks of arguments hang below as leaves. That
//! layout, not the number of rules, decides how long the kernel takes to load it. Called by
//! [`super::compile()`] once the profile's actions are known to be sound.

use super::assemble::{Assembler, Run, Target};
use super::names::{self, AUDIT_ARCH_X86_64, Architecture, Number, X32_BIT};
use super::rules::{self, Condition, Rule};
use crate::log;
use anyhow::{Context, Result, ensure};
use libc::{ENOSYS, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_THREAD, sock_filter};
use oci_spec::runtime::{LinuxSeccomp, LinuxSyscall};

/// Offsets in `seccomp_data` (linux/seccomp.h).
const NR: u32 = 0;
const ARCH: u32 = 4;
/// The kernel's limit (linux/bpf_common.h).
const BPF_MAXINSNS: usize = 4096;
const UNKNOWN_CALL: u32 = SECCOMP_RET_ERRNO | ENOSYS as u32;

/// One architecture of the profile.
struct Table {
    arch: Architecture,
    /// A rule for a number: the number above, an index into the rules below.
    entries: Vec<u64>,
    /// The largest number that the profile names; `None` when it names none.
    largest: Option<u32>,
}

/// `default` is what happens to a call without a rule; with `unknown_tail` calls beyond the largest
/// number that the profile names get ENOSYS instead.
pub(super) fn program(profile: &LinuxSeccomp, default: u32, unknown_tail: bool) -> Result<Vec<sock_filter>> {
    let mut tables = architectures(profile);
    let mut rules = Vec::new();
    for (i, call) in profile.syscalls().iter().flatten().enumerate() {
        add(call, default, &mut tables, &mut rules).with_context(|| format!("linux.seccomp.syscalls[{i}]"))?;
    }
    let mut program = Assembler::default();
    let mut leaves = Leaves { profile, rules: &rules, default, known: Vec::new() };
    let mut next = Target::Return(SECCOMP_RET_KILL_THREAD);
    let mut sections: Vec<(Table, Option<Table>)> = Vec::with_capacity(tables.len());
    for table in tables {
        // x32 calls are x86_64 calls with a bit set: one tree for both.
        match sections.iter_mut().find(|(other, _)| other.arch.audit() == table.arch.audit()) {
            Some((_, partner)) => *partner = Some(table),
            None => sections.push((table, None)),
        }
    }
    // Backwards: the native architecture is asked for first.
    for (table, partner) in sections.into_iter().rev() {
        let audit = table.arch.audit();
        let tree = section(&mut program, &mut leaves, table, partner, unknown_tail)?;
        next = program.if_equal(audit, tree, next);
    }
    if let Target::At(_) = next {
        program.load(ARCH);
    }
    let program = program.finish(next);
    ensure!(
        program.len() <= BPF_MAXINSNS,
        "linux.seccomp: the filter needs {} instructions, the kernel takes {BPF_MAXINSNS}; use fewer rules with args",
        program.len()
    );
    Ok(program)
}

/// The native architecture and those that the profile adds, as far as calls of them can be.
fn architectures(profile: &LinuxSeccomp) -> Vec<Table> {
    let native = Architecture::native();
    let mut tables = vec![Table { arch: native, entries: Vec::new(), largest: None }];
    for named in profile.architectures().iter().flatten() {
        let arch = if *named as u32 == 0 { native } else { Architecture(*named as u32) };
        // Of another byte order, or of none that libseccomp has a table for: no kernel that we run on takes calls of it.
        if !arch.is_known() || arch.is_little_endian() != native.is_little_endian() {
            continue;
        }
        if tables.iter().all(|table| table.arch != arch) {
            tables.push(Table { arch, entries: Vec::new(), largest: None });
        }
    }
    tables
}

/// Enters one element of `linux.seccomp.syscalls` into the tables. A rule that asks for the
/// default is not entered; its names still count as known.
fn add(call: &LinuxSyscall, default: u32, tables: &mut [Table], rules: &mut Vec<Rule>) -> Result<()> {
    let action = super::action(call.action(), call.errno_ret())?;
    let first = rules.len();
    if action != default {
        rules.extend(conditions(call)?.into_iter().map(|conditions| Rule { action, conditions }));
    }
    let last = rules.len();
    for name in call.names() {
        ensure!(!name.is_empty(), "an empty string is not a valid syscall");
        let mut buffer = [0; 64];
        let Some(name) = names::c_name(name, &mut buffer) else { continue };
        let mut name = names::Name::new(name);
        let mut is_known = false;
        for table in tables.iter_mut() {
            let number = name.on(table.arch);
            is_known |= number != Number::Unknown;
            match number {
                // As runc: a profile may name calls of other architectures and other kernels.
                Number::Unknown | Number::Absent => {}
                Number::Direct(number) => table.enter(number, first..last),
                Number::Multiplexed { call, selector, direct } => {
                    if let Some(number) = direct {
                        table.enter(number, first..last);
                    }
                    for i in first..last {
                        // The arguments are behind a pointer: a condition on the first one cannot be kept.
                        let others = rules[i].conditions.iter().filter(|c| c.argument != 0);
                        let conditions = std::iter::once(Condition::equals(0, selector)).chain(others.copied()).collect();
                        table.enter(call, rules.len()..rules.len() + 1);
                        rules.push(Rule { action, conditions });
                    }
                }
            }
        }
        if !is_known {
            log::debug(|| format!("unknown seccomp syscall {:?} ignored", name.name()));
        }
    }
    Ok(())
}

impl Table {
    fn enter(&mut self, number: u32, rules: std::ops::Range<usize>) {
        self.entries.extend(rules.map(|rule| u64::from(number) << 32 | rule as u64));
        self.largest = self.largest.max((number != 0).then_some(number));
    }
}

/// The alternatives of a rule: one with all conditions or, as runc has it, one for each condition
/// when two of them are about the same argument.
fn conditions(call: &LinuxSyscall) -> Result<Vec<Vec<Condition>>> {
    use oci_spec::runtime::LinuxSeccompOperator::ScmpCmpMaskedEq;
    let mut conditions = Vec::new();
    let mut repeated = false;
    for arg in call.args().iter().flatten() {
        ensure!(arg.index() < 6, "args: index {} is too large, a system call has 6 arguments", arg.index());
        let argument = arg.index() as u8;
        let (mask, value) = match arg.op() {
            ScmpCmpMaskedEq => (arg.value(), arg.value_two().unwrap_or(0)),
            _ => (u64::MAX, arg.value()),
        };
        repeated |= conditions.iter().any(|c: &Condition| c.argument == argument);
        conditions.push(Condition { argument, operator: arg.op(), value, mask });
    }
    if repeated {
        return Ok(conditions.into_iter().map(|c| vec![c]).collect());
    }
    conditions.sort_unstable_by_key(|c| c.argument);
    Ok(vec![conditions])
}

/// The tree of one architecture, or of x86_64 with x32.
fn section(
    program: &mut Assembler,
    leaves: &mut Leaves<'_>,
    mut table: Table,
    partner: Option<Table>,
    unknown_tail: bool,
) -> Result<Target> {
    let background = background(&table, partner.as_ref(), leaves.default, unknown_tail);
    let is_x86_64 = table.arch.audit() == AUDIT_ARCH_X86_64;
    table.entries.extend(partner.into_iter().flat_map(|partner| partner.entries));
    table.entries.sort_unstable();

    let mut runs = Runs { background, runs: Vec::with_capacity(table.entries.len()) };
    let mut free = 0; // the first number that no run covers
    for entries in table.entries.chunk_by(|a, b| a >> 32 == b >> 32) {
        let number = (entries[0] >> 32) as u32;
        if free < number {
            runs.fill(free, number - 1);
        }
        let wide = if is_x86_64 { number & X32_BIT == 0 } else { table.arch.is_wide() };
        let target = leaves.target(program, entries, wide).with_context(|| leaves.describe(number, table.arch))?;
        runs.push(number, target);
        free = number + 1;
    }
    runs.fill(free, u32::MAX);
    let tree = program.tree(&runs.runs, u32::MAX);
    Ok(if runs.runs.len() > 1 { program.load(NR) } else { tree })
}

/// What happens to numbers without a rule, from 0 up. The order of the checks that this stands for
/// is runc's: first ENOSYS for what is beyond the largest number of its mode (x32 or not), then
/// libseccomp's refusal of the mode that the profile does not have.
fn background(table: &Table, partner: Option<&Table>, default: u32, unknown_tail: bool) -> Vec<Run> {
    let run = |start, action| Run { start, target: Target::Return(action) };
    let beyond = |table: Option<&Table>| table.and_then(|table| table.largest).filter(|_| unknown_tail);
    if table.arch.audit() != AUDIT_ARCH_X86_64 {
        let mut runs = vec![run(0, default)];
        if let Some(largest) = beyond(Some(table)) {
            if table.arch.is_s390() {
                // Calls that the kernel does not know arrive as number 0 there.
                runs = vec![run(0, UNKNOWN_CALL), run(1, default)];
            }
            runs.push(run(largest + 1, UNKNOWN_CALL));
        }
        return runs;
    }
    let (x32, x86_64) = [Some(table), partner].into_iter().flatten().partition::<Vec<_>, _>(|table| table.arch.is_x32());
    let (x32, x86_64) = (x32.first().copied(), x86_64.first().copied());
    let allowed = |table: Option<&Table>| if table.is_some() { default } else { SECCOMP_RET_KILL_THREAD };
    let (beyond_x86_64, beyond_x32) = (beyond(x86_64), beyond(x32));
    let tail = |beyond: Option<u32>| beyond.map_or(allowed(x32), |_| UNKNOWN_CALL);

    let mut runs = vec![run(0, allowed(x86_64))];
    runs.extend(beyond_x86_64.map(|largest| run(largest + 1, UNKNOWN_CALL)));
    runs.push(run(X32_BIT, allowed(x32)));
    runs.extend(beyond_x32.map(|largest| run(largest + 1, UNKNOWN_CALL)));
    runs.push(run(1 << 31, tail(beyond_x86_64)));
    runs.push(run(1 << 31 | X32_BIT, tail(beyond_x32)));
    if x32.is_none() {
        // -1 is what a tracer writes to skip a call.
        runs.push(run(u32::MAX, default));
    }
    runs
}

/// Runs over all numbers: those with a rule pushed, the gaps between them filled.
struct Runs {
    background: Vec<Run>,
    runs: Vec<Run>,
}

impl Runs {
    fn push(&mut self, start: u32, target: Target) {
        if self.runs.last().is_none_or(|last| last.target != target) {
            self.runs.push(Run { start, target });
        }
    }

    fn fill(&mut self, first: u32, last: u32) {
        let begin = self.background.partition_point(|run| run.start <= first) - 1;
        for i in begin..self.background.len() {
            let Run { start, target } = self.background[i];
            if start > last {
                break;
            }
            self.push(start.max(first), target);
        }
    }
}

/// Turns the rules of a number into a target; equal lists of rules share their code.
struct Leaves<'a> {
    profile: &'a LinuxSeccomp,
    rules: &'a [Rule],
    default: u32,
    known: Vec<(bool, Vec<usize>, Target)>,
}

impl Leaves<'_> {
    fn target(&mut self, program: &mut Assembler, entries: &[u64], wide: bool) -> Result<Target> {
        let indices = entries.iter().map(|entry| *entry as u32 as usize);
        if let Some(i) = indices.clone().find(|i| self.rules[*i].is_unconditional(wide)) {
            return Ok(Target::Return(self.rules[i].action));
        }
        if let Some((.., target)) = self.known.iter().find(|(w, list, _)| *w == wide && list.iter().copied().eq(indices.clone())) {
            return Ok(*target);
        }
        let ordered = rules::order(indices.clone().map(|i| self.rules[i].on(wide)), wide)?;
        let target = rules::assemble(program, &ordered, wide, Target::Return(self.default));
        self.known.push((wide, indices.collect(), target));
        Ok(target)
    }

    /// For an error message.
    fn describe(&self, number: u32, arch: Architecture) -> String {
        let mut names = self.profile.syscalls().iter().flatten().flat_map(|call| call.names());
        let is_it = |name: &&String| {
            let mut buffer = [0; 64];
            names::c_name(name, &mut buffer).is_some_and(|name| names::resolve(name, arch) == Number::Direct(number))
        };
        match names.find(is_it) {
            Some(name) => format!("linux.seccomp.syscalls: {name}"),
            None => format!("linux.seccomp.syscalls: system call {number}"),
        }
    }
}
