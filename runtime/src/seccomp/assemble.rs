//! Assembles a classic BPF program from its end to its start.
//!
//! A jump of classic BPF only goes forward and, if conditional, at most 255 instructions far. Written
//! backwards, every target stands before what jumps to it: its distance is known at once, a return
//! that is too far away is written again, anything else is reached over an unconditional jump.
//! Called by `compile`; invariant: control never falls off an instruction that was pushed, except
//! from a load or a mask into the instruction pushed right before it.

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter};

/// Where a decision goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The filter ends with this SECCOMP_RET_* value.
    Return(u32),
    /// The instruction with this index, counted from the program's end.
    At(usize),
}

/// A run of values with the same target, from `start` to before the next run's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u32,
    pub(super) target: Target,
}

#[derive(Default)]
pub(super) struct Assembler {
    backwards: Vec<sock_filter>,
    returns: Vec<(u32, usize)>,
}

/// A chain of this many equality checks is shorter than the tree in its place, and not deeper.
const CHAIN: usize = 3;

/// No run counts for more than this when a tree is balanced: a few very long runs must not push
/// all others down.
const WEIGHT: u32 = 64;

impl Assembler {
    /// The program, first instruction first; `start` was pushed last or is a return.
    pub(super) fn finish(mut self, start: Target) -> Vec<sock_filter> {
        if let Target::Return(action) = start {
            self.push_at(BPF_RET | BPF_K, action);
        }
        self.backwards.reverse();
        self.backwards
    }

    /// Loads the word at `offset` of `seccomp_data` before what was assembled for `target`.
    pub(super) fn load(&mut self, offset: u32) -> Target {
        self.push(BPF_LD | BPF_W | BPF_ABS, offset)
    }

    /// `word & mask` before what was pushed last.
    pub(super) fn mask(&mut self, mask: u32) -> Target {
        self.push(BPF_ALU | BPF_AND | BPF_K, mask)
    }

    pub(super) fn if_equal(&mut self, value: u32, yes: Target, no: Target) -> Target {
        self.branch(BPF_JEQ, value, yes, no)
    }

    pub(super) fn if_any_bit(&mut self, bits: u32, yes: Target, no: Target) -> Target {
        self.branch(BPF_JSET, bits, yes, no)
    }

    /// Decides by the loaded word. `runs` are in order and the first begins at the smallest value
    /// the word can have here; `end` is the largest. One run needs no code.
    pub(super) fn tree(&mut self, runs: &[Run], end: u32) -> Target {
        let (first, rest) = match runs {
            [] => return Target::Return(libc::SECCOMP_RET_KILL_THREAD),
            [only] => return only.target,
            [first, rest @ ..] => (first, rest),
        };
        for most in [first.target, rest[0].target] {
            if let Some(chain) = exceptions(runs, end, most) {
                return chain.iter().rev().flatten().fold(most, |no, run| self.if_equal(run.start, run.target, no));
            }
        }
        let middle = balance(runs, end);
        let high = self.tree(&runs[middle..], end);
        let low = self.tree(&runs[..middle], runs[middle].start - 1);
        self.branch(BPF_JGE, runs[middle].start, high, low)
    }

    fn branch(&mut self, condition: u32, value: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        let (yes, no) = (self.near(yes), self.near(no));
        let here = self.backwards.len();
        self.backwards.push(sock_filter {
            code: (BPF_JMP | condition | BPF_K) as u16,
            jt: (here - yes - 1) as u8,
            jf: (here - no - 1) as u8,
            k: value,
        });
        Target::At(here)
    }

    /// An instruction that leads to `target` and that the next branch can reach, even after
    /// another one was put between for its second target.
    fn near(&mut self, target: Target) -> usize {
        let len = self.backwards.len();
        let reaches = |at: usize| len - at < 255;
        match target {
            Target::At(at) if reaches(at) => at,
            Target::At(at) => self.push_at(BPF_JMP | BPF_JA, (len - at - 1) as u32),
            Target::Return(action) => match self.returns.iter().position(|(known, _)| *known == action) {
                Some(i) if reaches(self.returns[i].1) => self.returns[i].1,
                known => {
                    let at = self.push_at(BPF_RET | BPF_K, action);
                    match known {
                        Some(i) => self.returns[i].1 = at,
                        None => self.returns.push((action, at)),
                    }
                    at
                }
            },
        }
    }

    fn push(&mut self, code: u32, k: u32) -> Target {
        Target::At(self.push_at(code, k))
    }

    fn push_at(&mut self, code: u32, k: u32) -> usize {
        self.backwards.push(sock_filter { code: code as u16, jt: 0, jf: 0, k });
        self.backwards.len() - 1
    }
}

/// The runs that do not go to `most`, when they are few and one value long each.
fn exceptions(runs: &[Run], end: u32, most: Target) -> Option<[Option<Run>; CHAIN]> {
    let mut found = [None; CHAIN];
    let mut n = 0;
    for (i, run) in runs.iter().enumerate() {
        if run.target == most {
            continue;
        }
        if n == CHAIN || last(runs, i, end) != run.start {
            return None;
        }
        found[n] = Some(*run);
        n += 1;
    }
    Some(found)
}

fn last(runs: &[Run], i: usize, end: u32) -> u32 {
    runs.get(i + 1).map_or(end, |next| next.start - 1)
}

/// The run to split before, so that both sides weigh about the same. The kernel runs every
/// system call number through a new filter once (its allow bitmap), so that a run's weight is the
/// count of its values.
fn balance(runs: &[Run], end: u32) -> usize {
    let weight = |i: usize| (last(runs, i, end) - runs[i].start).saturating_add(1).min(WEIGHT);
    let total: u32 = (0..runs.len()).map(weight).sum();
    let mut left = 0;
    for i in 0..runs.len() - 1 {
        let before = left;
        left += weight(i);
        if left * 2 >= total {
            // Before this run or after it, whichever is nearer to the middle.
            return if i > 0 && total - before * 2 < left * 2 - total { i } else { i + 1 };
        }
    }
    runs.len() - 1
}
