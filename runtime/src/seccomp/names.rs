//! From the name of a system call to its number on an architecture.
//!
//! libseccomp holds the tables; it is asked once per name and architecture. Two small tables are
//! ours: calls newer than the libseccomp we link, and the direct numbers of the socket and System
//! V IPC calls on the architectures that also multiplex them, which libseccomp does not give out.

use super::i386;
use crate::sys;
use oci_spec::runtime::Arch;
use std::ffi::CStr;

/// What is or-ed into every x32 number (`asm/unistd.h`); the kernel reports x32 calls as x86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;
pub(super) const AUDIT_ARCH_X86_64: u32 = Arch::ScmpArchX86_64 as u32;
const X32: u32 = Arch::ScmpArchX32 as u32;

// The bits of an AUDIT_ARCH_* value (linux/audit.h).
const BITS_64: u32 = 0x8000_0000;
const LITTLE_ENDIAN: u32 = 0x4000_0000;
const MIPS64_N32: u32 = 0x2000_0000;

/// An architecture by libseccomp's token: the kernel's AUDIT_ARCH_* value, but for x32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Architecture(pub(super) u32);

impl Architecture {
    pub(super) fn native() -> Self {
        Self(sys::seccomp_native_arch())
    }

    /// The value of `seccomp_data.arch` for its calls.
    pub(super) fn audit(self) -> u32 {
        if self.is_x32() { AUDIT_ARCH_X86_64 } else { self.0 }
    }

    pub(super) fn is_x32(self) -> bool {
        self.0 == X32
    }

    pub(super) fn is_s390(self) -> bool {
        self.0 == Arch::ScmpArchS390 as u32 || self.0 == Arch::ScmpArchS390x as u32
    }

    /// Whether arguments are compared with all of their 64 bits.
    pub(super) fn is_wide(self) -> bool {
        self.0 & BITS_64 != 0 && self.0 & MIPS64_N32 == 0
    }

    pub(super) fn is_little_endian(self) -> bool {
        self.0 & LITTLE_ENDIAN != 0
    }

    /// Whether the libseccomp we link has tables for it.
    pub(super) fn is_known(self) -> bool {
        sys::seccomp_resolve(self.0, c"read").is_some()
    }
}

/// What a name means on one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// In no table.
    Unknown,
    /// A system call, but not of this architecture.
    Absent,
    /// This one.
    Direct(u32),
    /// `call` with `selector` as its first argument and, where the kernel has it too, `direct`.
    Multiplexed { call: u32, selector: u64, direct: Option<u32> },
}

/// The name as a C string, kept in `buffer`; `None` for what cannot be the name of a system call.
pub(super) fn c_name<'a>(name: &str, buffer: &'a mut [u8; 64]) -> Option<&'a CStr> {
    let bytes = name.as_bytes();
    buffer.get_mut(..bytes.len())?.copy_from_slice(bytes);
    *buffer.get_mut(bytes.len())? = 0;
    CStr::from_bytes_with_nul(&buffer[..=bytes.len()]).ok()
}

/// A name that is looked up on one architecture after the other.
pub(super) struct Name<'a> {
    name: &'a CStr,
    x86_64: Option<u32>,
}

impl<'a> Name<'a> {
    pub(super) fn new(name: &'a CStr) -> Self {
        Self { name, x86_64: None }
    }

    pub(super) fn name(&self) -> &'a CStr {
        self.name
    }

    pub(super) fn on(&mut self, arch: Architecture) -> Number {
        let known = self.x86_64.filter(|_| arch.0 == Arch::ScmpArchX86 as u32).and_then(i386::number);
        let number = known.unwrap_or_else(|| resolve(self.name, arch));
        if let (AUDIT_ARCH_X86_64, Number::Direct(number)) = (arch.0, number) {
            self.x86_64 = Some(number);
        }
        number
    }
}

pub(super) fn resolve(name: &CStr, arch: Architecture) -> Number {
    match sys::seccomp_resolve(arch.0, name) {
        Some(number) if number >= 0 => Number::Direct(number as u32),
        // libseccomp's pseudo numbers: -100 and -200 less the selector (linux/net.h, linux/ipc.h).
        Some(pseudo) => match (pseudo, multiplexers(arch)) {
            (-120..=-101, Some((socketcall, _))) => multiplexed(arch, socketcall, pseudo, 100),
            (-224..=-201, Some((_, ipc))) => multiplexed(arch, ipc, pseudo, 200),
            _ => Number::Absent,
        },
        None => newer(name.to_bytes(), arch).map_or(Number::Unknown, Number::Direct),
    }
}

fn multiplexed(arch: Architecture, call: u32, pseudo: i32, base: i32) -> Number {
    let column = match arch.0 {
        a if a == Arch::ScmpArchX86 as u32 => 0,
        _ if arch.is_s390() => 1,
        a if is_mips32(a) => 3,
        _ => 2,
    };
    let direct = DIRECT.iter().find(|(n, _)| *n == pseudo).map(|(_, numbers)| numbers[column]).filter(|n| *n != 0);
    // The table has one column for each family; 64-bit PowerPC and s390x have semtimedop, their 32-bit kin do not.
    let direct = direct.filter(|_| pseudo != SEMTIMEDOP || arch.is_wide());
    Number::Multiplexed { call, selector: (-pseudo - base) as u64, direct: direct.map(u32::from) }
}

/// The numbers of `socketcall` and `ipc`, where the architecture has them.
fn multiplexers(arch: Architecture) -> Option<(u32, u32)> {
    const MIPS32_BASE: u32 = 4000;
    match arch.0 {
        a if a == Arch::ScmpArchX86 as u32
            || arch.is_s390()
            || a == Arch::ScmpArchPpc as u32
            || a == Arch::ScmpArchPpc64 as u32
            || a == Arch::ScmpArchPpc64le as u32 =>
        {
            Some((102, 117))
        }
        a if is_mips32(a) => Some((MIPS32_BASE + 102, MIPS32_BASE + 117)),
        _ => None,
    }
}

fn is_mips32(token: u32) -> bool {
    token == Arch::ScmpArchMips as u32 || token == Arch::ScmpArchMipsel as u32
}

const SEMTIMEDOP: i32 = -204;

/// libseccomp's pseudo number; the direct numbers on x86, s390, PowerPC and 32-bit MIPS (the
/// kernel's syscall.tbl files), 0 for none.
#[rustfmt::skip]
const DIRECT: [(i32, [u16; 4]); 32] = [
    (-101, [359, 359, 326, 4183]), // socket
    (-102, [361, 361, 327, 4169]), // bind
    (-103, [362, 362, 328, 4170]), // connect
    (-104, [363, 363, 329, 4174]), // listen
    (-105, [  0,   0, 330, 4168]), // accept
    (-106, [367, 367, 331, 4172]), // getsockname
    (-107, [368, 368, 332, 4171]), // getpeername
    (-108, [360, 360, 333, 4184]), // socketpair
    (-109, [  0,   0, 334, 4178]), // send
    (-110, [  0,   0, 336, 4175]), // recv
    (-111, [369, 369, 335, 4180]), // sendto
    (-112, [371, 371, 337, 4176]), // recvfrom
    (-113, [373, 373, 338, 4182]), // shutdown
    (-114, [366, 366, 339, 4181]), // setsockopt
    (-115, [365, 365, 340, 4173]), // getsockopt
    (-116, [370, 370, 341, 4179]), // sendmsg
    (-117, [372, 372, 342, 4177]), // recvmsg
    (-118, [364, 364, 344, 4334]), // accept4
    (-119, [337, 357, 343, 4335]), // recvmmsg
    (-120, [345, 358, 349, 4343]), // sendmmsg
    (-201, [  0,   0,   0,    0]), // semop
    (-202, [393, 393, 393, 4393]), // semget
    (-203, [394, 394, 394, 4394]), // semctl
    (SEMTIMEDOP, [0, 392, 392, 0]),
    (-211, [400, 400, 400, 4400]), // msgsnd
    (-212, [401, 401, 401, 4401]), // msgrcv
    (-213, [399, 399, 399, 4399]), // msgget
    (-214, [402, 402, 402, 4402]), // msgctl
    (-221, [397, 397, 397, 4397]), // shmat
    (-222, [398, 398, 398, 4398]), // shmdt
    (-223, [395, 395, 395, 4395]), // shmget
    (-224, [396, 396, 396, 4396]), // shmctl
];

/// The number of a call that came after the libseccomp we link. From 424 on all architectures
/// number alike, some of them above a base of their own.
fn newer(name: &[u8], arch: Architecture) -> Option<u32> {
    let (_, number) = NEWER.iter().find(|(known, _)| known.as_bytes() == name)?;
    let base = match arch.0 {
        X32 => X32_BIT,
        a if is_mips32(a) => 4000,
        a if a == Arch::ScmpArchMips64 as u32 || a == Arch::ScmpArchMipsel64 as u32 => 5000,
        a if a == Arch::ScmpArchMips64n32 as u32 || a == Arch::ScmpArchMipsel64n32 as u32 => 6000,
        _ => 0,
    };
    match *number {
        335 | 336 => (arch.audit() == AUDIT_ARCH_X86_64).then_some(base + number),
        258 => (arch.0 == Arch::ScmpArchRiscv64 as u32).then_some(*number),
        _ => Some(base + number),
    }
}

/// The kernel's syscall.tbl files, up to Linux 7.0, from where the libseccomp of older
/// distributions ends.
pub(super) const NEWER: [(&str, u32); 27] = [
    ("riscv_hwprobe", 258),
    ("uretprobe", 335),
    ("uprobe", 336),
    ("process_mrelease", 448),
    ("futex_waitv", 449),
    ("set_mempolicy_home_node", 450),
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
    ("listns", 470),
    ("rseq_slice_yield", 471),
];
