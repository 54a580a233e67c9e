//! The eBPF program that filters devices on cgroup v2 (`BPF_PROG_TYPE_CGROUP_DEVICE`), and how it
//! gets onto a cgroup.
//!
//! Its context is three words: access in the upper and type in the lower half of the first, major,
//! minor. The program goes through the rules from the last to the first. r6 holds the type, r3 the
//! accesses not yet decided, r4 and r5 the numbers: a rule that allows takes its bits away, and none
//! left means yes; a rule that denies one of those left means no. Neighbours of the same type, and
//! of the same major number, share the question for it. Loading takes longer than running, so short
//! it is.

use super::devices::{ALL, Rule, Rules};
use crate::sys;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd};

/// `BPF_DEVCG_DEV_*`.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// One instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug)]
struct Insn {
    code: u8,
    dst: u8,
    src: u8,
    offset: i16,
    imm: i32,
}

// Opcodes of linux/bpf.h.
const LDX_W: u8 = 0x61;
const MOV: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const AND: u8 = 0x57;
const RSH: u8 = 0x77;
const JEQ: u8 = 0x15;
const JNE: u8 = 0x55;
const JSET: u8 = 0x45;
const EXIT: u8 = 0x95;

/// Offsets that stand for the two ends until it is known where these are.
const YES: i16 = i16::MAX;
const NO: i16 = i16::MIN;

fn insn(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Insn {
    Insn { code, dst, src, offset, imm }
}

impl Insn {
    fn word(self) -> u64 {
        let registers = if cfg!(target_endian = "little") { self.src << 4 | self.dst } else { self.dst << 4 | self.src };
        let mut bytes = [self.code, registers, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.imm.to_ne_bytes());
        u64::from_ne_bytes(bytes)
    }
}

/// The program for `rules`, an instruction in each word.
pub(super) fn assemble(rules: &Rules) -> Vec<u64> {
    let mut code = vec![
        insn(LDX_W, 6, 1, 0, 0),
        insn(MOV_REG, 3, 6, 0, 0),
        insn(RSH, 3, 0, 0, 16),
        insn(AND, 6, 0, 0, 0xffff),
        insn(LDX_W, 4, 1, 4, 0),
        insn(LDX_W, 5, 1, 8, 0),
    ];
    let backwards: Vec<Rule> = rules.rules.iter().rev().copied().collect();
    for same_type in backwards.chunk_by(|a, b| a.block == b.block) {
        let mut body = Vec::new();
        for same_major in same_type.chunk_by(|a, b| a.major == b.major) {
            let mut inner = Vec::new();
            same_major.iter().for_each(|rule| decide(rule, &mut inner));
            guard(4, same_major[0].major, &mut inner);
            body.append(&mut inner);
        }
        guard(6, Some(if same_type[0].block { BLOCK } else { CHAR } as u32), &mut body);
        code.append(&mut body);
    }
    // What no rule decides falls through to the default; the other end follows where one leads there.
    let fallen = code.len();
    let other = if rules.allow_all { NO } else { YES };
    code.extend([insn(MOV, 0, 0, 0, i32::from(rules.allow_all)), insn(EXIT, 0, 0, 0, 0)]);
    if code.iter().any(|i| i.offset == other) {
        code.extend([insn(MOV, 0, 0, 0, i32::from(!rules.allow_all)), insn(EXIT, 0, 0, 0, 0)]);
    }
    for (at, i) in code.iter_mut().enumerate().take(fallen) {
        let end = match i.offset {
            offset if offset == other => fallen + 2,
            YES | NO => fallen,
            _ => continue,
        };
        i.offset = (end - at - 1) as i16;
    }
    code.into_iter().map(Insn::word).collect()
}

/// What `rule` says of a device whose type and major number fit. Every jump has a condition, so
/// that nothing behind it is unreachable, which the kernel would refuse.
fn decide(rule: &Rule, code: &mut Vec<Insn>) {
    let mut own = if rule.allow {
        vec![insn(AND, 3, 0, 0, (!rule.access & ALL) as i32), insn(JEQ, 3, 0, YES, 0)]
    } else {
        vec![insn(JSET, 3, 0, NO, rule.access as i32)]
    };
    match rule.minor {
        Some(minor) if rule.allow && rule.access == ALL => own = vec![insn(JEQ, 5, 0, YES, minor as i32)],
        minor => guard(5, minor, &mut own),
    }
    code.append(&mut own);
}

/// Puts before `code` the question whether `register` holds `number`; else it is jumped over.
fn guard(register: u8, number: Option<u32>, code: &mut Vec<Insn>) {
    if let Some(number) = number {
        code.insert(0, insn(JNE, register, 0, code.len() as i16, number as i32));
    }
}

/// Loads the program of `rules` and attaches it to the v2 cgroup `cgroup`. With `replace` the
/// programs that are there already are taken off after.
pub(super) fn attach(cgroup: BorrowedFd<'_>, rules: &Rules, replace: bool) -> nix::Result<()> {
    let old = if replace { sys::attached_device_programs(cgroup)? } else { Vec::new() };
    if !rules.is_allow_all() {
        let code = assemble(rules);
        let program = match sys::load_device_program(&code) {
            // Before Linux 5.11 a program counts as locked memory, of which little is allowed.
            Err(Errno::EPERM) => {
                use nix::sys::resource::{Resource, getrlimit, setrlimit};
                let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
                setrlimit(Resource::RLIMIT_MEMLOCK, nix::libc::RLIM_INFINITY, nix::libc::RLIM_INFINITY)?;
                let again = sys::load_device_program(&code);
                setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
                again?
            }
            other => other?,
        };
        sys::attach_device_program(cgroup, program.as_fd())?;
    }
    for id in old {
        match sys::device_program(id) {
            Ok(program) => sys::detach_device_program(cgroup, program.as_fd())?,
            Err(Errno::ENOENT) => (),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::devices::tests::{CASES, HOLE, accesses, reference, rules};
    use super::super::devices::{READ, WRITE};
    use super::*;

    /// Runs a program as the kernel would.
    fn run(code: &[u64], block: bool, major: u32, minor: u32, access: u32) -> bool {
        let context = [access << 16 | (if block { BLOCK } else { CHAR }) as u32, major, minor];
        let mut r = [0u64; 11];
        let mut at = 0usize;
        loop {
            let bytes = code[at].to_ne_bytes();
            let (dst, src) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
            let offset = i16::from_ne_bytes([bytes[2], bytes[3]]);
            let imm = i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let wide = i64::from(imm) as u64;
            at += 1;
            let mut jump = |take: bool| {
                if take {
                    at = at.checked_add_signed(isize::from(offset)).unwrap();
                }
            };
            match bytes[0] {
                LDX_W => r[dst] = u64::from(context[offset as usize / 4]),
                MOV => r[dst] = wide,
                MOV_REG => r[dst] = r[src],
                AND => r[dst] &= wide,
                RSH => r[dst] >>= wide,
                JEQ => jump(r[dst] == wide),
                JNE => jump(r[dst] != wide),
                JSET => jump(r[dst] & wide != 0),
                EXIT => return r[0] != 0,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_do() {
        for case in CASES.into_iter().chain([HOLE]) {
            let rules = rules(case);
            let code = assemble(&rules);
            for (block, major, minor, access) in accesses() {
                let want = reference(&rules, block, major, minor, access);
                assert_eq!(run(&code, block, major, minor, access), want, "{case}: block {block} {major}:{minor} {access}");
            }
        }
        let code = assemble(&rules(HOLE));
        assert!(!run(&code, false, 1, 11, READ) && !run(&code, false, 1, 11, READ | WRITE) && run(&code, false, 1, 11, WRITE));
    }

    /// Many rules over few numbers, so that they meet.
    #[test]
    fn rules_at_random_too() {
        let mut seed = 1u64;
        let mut next = move |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for _ in 0..2000 {
            let mut number = |n: u64| [None, Some(1), Some(5), Some(136), Some(8)][next(n) as usize];
            let list: Vec<(Option<u32>, Option<u32>)> = (0..6).map(|_| (number(5), number(4))).collect();
            let rule = |(major, minor)| Rule { allow: next(2) == 0, block: next(2) == 0, major, minor, access: 1 + next(7) as u32 };
            let rules = Rules { allow_all: list[0].0.is_none(), rules: list.into_iter().map(rule).collect() };
            let code = assemble(&rules);
            for (block, major, minor, access) in accesses() {
                let want = reference(&rules, block, major, minor, access);
                assert_eq!(run(&code, block, major, minor, access), want, "{rules:?}: block {block} {major}:{minor} {access}");
            }
            if nix::unistd::geteuid().is_root() && next(20) == 0 {
                // The kernel's verifier is stricter than the interpreter above.
                match sys::load_device_program(&code) {
                    Ok(_) | Err(Errno::EPERM | Errno::ENOSYS) => (),
                    Err(e) => panic!("{e}: {rules:?}"),
                }
            }
        }
    }

    #[test]
    fn a_plain_container_has_a_short_program() {
        let code = assemble(&rules(r#"[{"allow":false,"access":"rwm"}]"#));
        assert!(code.len() <= 28, "{}", code.len());
    }
}
