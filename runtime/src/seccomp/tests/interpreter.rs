//! A classic BPF machine as seccomp runs it.

use libc::sock_filter;

/// `struct seccomp_data` without the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) nr: u32,
    pub(super) arch: u32,
    pub(super) args: [u64; 6],
}

/// What a program answers to a call, and in how many instructions.
pub(super) fn run(program: &[sock_filter], call: &Call) -> (u32, usize) {
    let (mut at, mut word, mut steps) = (0, 0u32, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        steps += 1;
        let jump = |yes: bool| 1 + usize::from(if yes { jt } else { jf });
        at += match code {
            0x20 => {
                word = call.word(k);
                1
            }
            0x54 => {
                word &= k;
                1
            }
            0x05 => 1 + k as usize,
            0x15 => jump(word == k),
            0x25 => jump(word > k),
            0x35 => jump(word >= k),
            0x45 => jump(word & k != 0),
            0x06 => return (k, steps),
            _ => panic!("instruction {at}: {code:#x} is not one of seccomp's"),
        };
    }
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&self.nr.to_ne_bytes());
        data[4..8].copy_from_slice(&self.arch.to_ne_bytes());
        for (i, arg) in self.args.iter().enumerate() {
            data[16 + 8 * i..24 + 8 * i].copy_from_slice(&arg.to_ne_bytes());
        }
        let at = offset as usize;
        u32::from_ne_bytes(data[at..at + 4].try_into().unwrap())
    }
}
