//! What a profile asks of a system call's arguments, and in which order its rules are tried.
//!
//! A rule matches when all of its conditions hold. The rules of one call are tried in the order of
//! libseccomp, which is not the profile's: what is compared for equality first, and so on
//! ([`order`]). Called by `compile`; `assemble` makes instructions of the result.

use super::assemble::{Assembler, Run, Target};
use anyhow::{Result, bail};
use oci_spec::runtime::LinuxSeccompOperator as Operator;

/// A condition on one argument: `argument & mask` compared with `value`; `mask` is all ones but
/// for `SCMP_CMP_MASKED_EQ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) operator: Operator,
    pub(super) value: u64,
    pub(super) mask: u64,
}

/// What to do when all conditions (at most one for each argument, by rising argument) hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) action: u32,
    pub(super) conditions: Vec<Condition>,
}

impl Condition {
    pub(super) fn equals(argument: u8, value: u64) -> Self {
        Self { argument, operator: Operator::ScmpCmpEq, value, mask: u64::MAX }
    }

    /// As it is compared on an architecture whose arguments have 64 (`wide`) or 32 bits.
    fn on(self, wide: bool) -> Self {
        let mask = if wide { self.mask } else { self.mask & u64::from(u32::MAX) };
        Self { value: self.value & mask, mask, ..self }
    }

    pub(super) fn holds(&self, argument: u64) -> bool {
        let argument = argument & self.mask;
        match self.operator {
            Operator::ScmpCmpNe => argument != self.value,
            Operator::ScmpCmpLt => argument < self.value,
            Operator::ScmpCmpLe => argument <= self.value,
            Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => argument == self.value,
            Operator::ScmpCmpGe => argument >= self.value,
            Operator::ScmpCmpGt => argument > self.value,
        }
    }

    /// Larger: tried earlier.
    fn rank(&self) -> u8 {
        match self.operator {
            Operator::ScmpCmpEq | Operator::ScmpCmpNe | Operator::ScmpCmpMaskedEq => 3,
            Operator::ScmpCmpLt | Operator::ScmpCmpLe => 2,
            Operator::ScmpCmpGt | Operator::ScmpCmpGe => 1,
        }
    }
}

/// One comparison of 32 bits, as libseccomp makes of a condition on an argument of 32 bits one and
/// of 64 bits two (first the upper half). Rules whose first comparisons are the same are kept together.
#[derive(Clone, Copy)]
struct Comparison {
    condition: Condition,
    shift: u32,
}

impl Comparison {
    fn value(&self) -> u32 {
        (self.condition.value >> self.shift) as u32
    }

    /// Whether libseccomp makes one of both.
    fn is_same(&self, other: &Self) -> bool {
        use Operator::{ScmpCmpGe, ScmpCmpGt, ScmpCmpLe, ScmpCmpLt, ScmpCmpMaskedEq};
        let kind = |c: &Self| match c.condition.operator {
            Operator::ScmpCmpEq | Operator::ScmpCmpNe => 0,
            ScmpCmpMaskedEq => 1,
            _ if c.shift != 0 => 2,
            ScmpCmpGt | ScmpCmpLe => 2,
            ScmpCmpGe | ScmpCmpLt => 3,
        };
        let mask = |c: &Self| (c.condition.mask >> c.shift) as u32;
        self.condition.argument == other.condition.argument
            && self.shift == other.shift
            && kind(self) == kind(other)
            && mask(self) == mask(other)
            && self.value() == other.value()
    }

    /// Whether it comes before another one: the later argument first; of the same argument
    /// equality, then upper, then lower bounds, the narrower bound first.
    fn precedes(&self, other: &Self) -> bool {
        let bound = if self.condition.rank() == 2 { !self.value() } else { self.value() };
        let other_bound = if other.condition.rank() == 2 { !other.value() } else { other.value() };
        let place = |c: &Self, bound| (c.condition.argument, c.shift, c.condition.rank(), bound);
        place(self, bound) > place(other, other_bound)
    }
}

impl Rule {
    /// The rule with its conditions as they are on an architecture, without those that always hold.
    pub(super) fn on(&self, wide: bool) -> Self {
        let conditions = self.conditions.iter().map(|c| c.on(wide)).filter(|c| c.mask != 0).collect();
        Self { action: self.action, conditions }
    }

    /// Whether it matches whatever the arguments are: such a rule decides alone, the first of them
    /// when there are several.
    pub(super) fn is_unconditional(&self, wide: bool) -> bool {
        self.conditions.iter().all(|c| c.on(wide).mask == 0)
    }

    fn comparisons(&self, wide: bool) -> impl Iterator<Item = Comparison> + '_ {
        let shifts: &[u32] = if wide { &[32, 0] } else { &[0] };
        self.conditions.iter().flat_map(|condition| shifts.iter().map(|shift| Comparison { condition: *condition, shift: *shift }))
    }

    /// The rule's only condition, when that is a range of one argument.
    fn range(&self) -> Option<Condition> {
        match self.conditions[..] {
            [only] if only.operator != Operator::ScmpCmpMaskedEq => Some(only),
            _ => None,
        }
    }
}

/// The rules of one call, each with a condition, in the order in which they are tried; the first that matches decides.
/// The error says which rules contradict each other.
pub(super) fn order(rules: impl Iterator<Item = Rule>, wide: bool) -> Result<Vec<Rule>> {
    let mut ordered: Vec<(usize, Rule)> = Vec::new();
    for (i, rule) in rules.enumerate() {
        let mut narrower = ordered.iter().filter(|(_, other)| other.conditions.starts_with(&rule.conditions));
        if narrower.any(|(_, other)| other.action != rule.action) {
            bail!("two rules ask for different actions under the same condition");
        }
        let at = place(&ordered, &rule, wide);
        ordered.insert(at, (i, rule));
    }
    Ok(ordered.into_iter().map(|(_, rule)| rule).collect())
}

/// Where a new rule goes: among those that begin with the same comparisons, before the first whose
/// next comparison comes after its own. Of rules with the same comparison the oldest stands for all.
fn place(ordered: &[(usize, Rule)], new: &Rule, wide: bool) -> usize {
    let (mut first, mut end) = (0, ordered.len());
    for (depth, comparison) in new.comparisons(wide).enumerate() {
        let mut at = first;
        loop {
            if at == end {
                return end;
            }
            let Some(leader) = ordered[at].1.comparisons(wide).nth(depth) else {
                at += 1;
                continue;
            };
            let same = |(_, rule): &&(usize, Rule)| rule.comparisons(wide).nth(depth).is_some_and(|c| c.is_same(&leader));
            let group = &ordered[at..at + ordered[at..end].iter().take_while(same).count()];
            let oldest = group.iter().min_by_key(|(age, _)| *age).and_then(|(_, rule)| rule.comparisons(wide).nth(depth));
            if leader.is_same(&comparison) {
                (first, end) = (at, at + group.len());
                break;
            }
            if oldest.is_some_and(|oldest| comparison.precedes(&oldest)) {
                return at;
            }
            at += group.len();
        }
    }
    first
}

/// Assembles the ordered rules of a call; what none of them matches goes to `otherwise`.
pub(super) fn assemble(program: &mut Assembler, rules: &[Rule], wide: bool, otherwise: Target) -> Target {
    let mut next = otherwise;
    let mut rest = rules;
    while let Some((last, before)) = rest.split_last() {
        if let Some(condition) = last.range() {
            let same = |r: &&Rule| r.range().is_some_and(|c| c.argument == condition.argument);
            let (front, ranges) = rest.split_at(rest.len() - rest.iter().rev().take_while(same).count());
            let ranges: Vec<_> = ranges.iter().filter_map(|r| Some((r.range()?, Target::Return(r.action)))).collect();
            next = argument(program, &ranges, wide, next);
            rest = front;
        } else {
            let yes = Target::Return(last.action);
            next = last.conditions.iter().rev().fold(yes, |yes, c| match c.operator {
                Operator::ScmpCmpMaskedEq => masked(program, c, wide, yes, next),
                _ => argument(program, &[(*c, yes)], wide, next),
            });
            rest = before;
        }
    }
    next
}

/// The offset in `seccomp_data` of an argument's half.
fn offset(argument: u8, high: bool) -> u32 {
    const ARGS: u32 = 16;
    ARGS + u32::from(argument) * 8 + if high == cfg!(target_endian = "little") { 4 } else { 0 }
}

fn masked(program: &mut Assembler, c: &Condition, wide: bool, yes: Target, no: Target) -> Target {
    if yes == no {
        return yes;
    }
    let mut next = yes;
    for high in if wide { &[false, true][..] } else { &[false] } {
        let shift = if *high { 32 } else { 0 };
        let (mask, value) = ((c.mask >> shift) as u32, (c.value >> shift) as u32);
        if mask == 0 {
            continue;
        }
        if value == 0 {
            program.if_any_bit(mask, no, next);
        } else {
            program.if_equal(value, next, no);
            if mask != u32::MAX {
                program.mask(mask);
            }
        }
        next = program.load(offset(c.argument, *high));
    }
    next
}

/// Decides by one argument: the first of `ranges` that holds.
fn argument(program: &mut Assembler, ranges: &[(Condition, Target)], wide: bool, otherwise: Target) -> Target {
    let Some((first, _)) = ranges.first() else { return otherwise };
    let number = first.argument;
    let runs = pieces(ranges, wide, otherwise);
    if !wide {
        let runs: Vec<_> = runs.iter().map(|(start, target)| Run { start: *start as u32, target: *target }).collect();
        return word(program, &runs, offset(number, false));
    }
    // One tree over the upper halves; below it one over the lower halves of each upper half in which the answer changes.
    let mut high: Vec<Run> = Vec::new();
    let mut before = otherwise;
    for group in runs.chunk_by(|a, b| a.0 >> 32 == b.0 >> 32) {
        let (start, after) = ((group[0].0 >> 32) as u32, group[group.len() - 1].1);
        let mut low: Vec<_> = group.iter().map(|(start, target)| Run { start: *start as u32, target: *target }).collect();
        if low[0].start != 0 {
            low.insert(0, Run { start: 0, target: before });
        }
        let target = word(program, &low, offset(number, false));
        high.push(Run { start, target });
        if low.len() > 1 && start != u32::MAX {
            high.push(Run { start: start + 1, target: after });
        }
        before = after;
    }
    high.dedup_by(|next, run| {
        let replaces = next.start == run.start;
        if replaces {
            run.target = next.target;
        }
        replaces
    });
    high.dedup_by_key(|run| run.target);
    word(program, &high, offset(number, true))
}

fn word(program: &mut Assembler, runs: &[Run], offset: u32) -> Target {
    if let [only] = runs {
        return only.target;
    }
    program.tree(runs, u32::MAX);
    program.load(offset)
}

/// The first values of the stretches of equal answer, from 0 on.
fn pieces(ranges: &[(Condition, Target)], wide: bool, otherwise: Target) -> Vec<(u64, Target)> {
    let largest = if wide { u64::MAX } else { u64::from(u32::MAX) };
    let mut starts: Vec<u64> = Vec::with_capacity(1 + 2 * ranges.len());
    starts.push(0);
    for (c, _) in ranges {
        starts.push(c.value);
        if c.value < largest {
            starts.push(c.value + 1);
        }
    }
    starts.sort_unstable();
    let answer = |value: u64| ranges.iter().find(|(c, _)| c.holds(value)).map_or(otherwise, |(_, target)| *target);
    let mut pieces: Vec<_> = starts.into_iter().map(|start| (start, answer(start))).collect();
    pieces.dedup_by_key(|(_, target)| *target);
    pieces
}
