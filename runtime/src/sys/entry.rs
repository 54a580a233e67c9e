//! The program's first instructions on x86_64 (build.rs names `rrun_entry` as the entry point).
//!
//! `create`, `run` and `exec` go on from a read-only clone of the program's file (`sealed_exe`). What
//! that costs is one more `execve`, and half of it is the C library's start: it asks `cpuid`
//! twenty times and more, and a virtual machine's monitor answers each. So the clone is executed before the C
//! library starts. Where anything is not as expected nothing is done: `sealed_exe::ensure` decides.
//!
//! Nothing of the C library works here: no allocation, no thread-local variable, not even `memcpy`,
//! which it has not chosen yet. Reads are volatile so that the compiler does not call it either.

use core::arch::{asm, naked_asm};
use std::ffi::c_char;

unsafe extern "C" {
    fn _start() -> !;
}

/// Keeps the two registers that the kernel's calling convention gives a meaning at entry, the stack
/// pointer (argc, argv, envp, auxv) and rdx, for the C library's `_start`.
// SAFETY: the one symbol of this name, known to the linker alone.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn rrun_entry() -> ! {
    naked_asm!(
        "mov rdi, rsp",
        "push rdx",
        "sub rsp, 8",
        "call {seal}",
        "add rsp, 8",
        "pop rdx",
        "jmp {start}",
        seal = sym seal,
        start = sym _start,
    )
}

/// `stack` is what the kernel has put there (System V ABI, "Initial Stack"): argc, argv, null, envp,
/// null, auxv.
unsafe extern "C" fn seal(stack: *const usize) {
    const AT_NULL: usize = 0;
    const AT_EUID: usize = 12;
    const AT_EXECFN: usize = 31;
    // SAFETY: the kernel lays the words out so, each list ended as it says; strings end in a null byte.
    unsafe {
        let argc = stack.read_volatile();
        let argv = stack.add(1);
        let mut wanted = false;
        for i in 1..argc {
            let argument = argv.add(i).read_volatile() as *const u8;
            wanted |= equal(argument, b"create\0") || equal(argument, b"run\0") || equal(argument, b"exec\0");
        }
        if !wanted {
            return;
        }
        let envp = argv.add(argc + 1);
        let mut at = envp;
        while at.read_volatile() != 0 {
            at = at.add(1);
        }
        at = at.add(1);
        while at.read_volatile() != AT_NULL {
            let value = at.add(1).read_volatile();
            match at.read_volatile() {
                AT_EUID if value != 0 => return,
                // Executed by descriptor: this is the clone.
                AT_EXECFN if starts(value as *const u8, b"/dev/fd/") => return,
                _ => (),
            }
            at = at.add(2);
        }
        execute_clone(argv, envp);
    }
}

/// Executes a read-only clone of the program's file; returns when that is not possible, or not needed
/// because the file is on a read-only mount.
unsafe fn execute_clone(argv: *const usize, envp: *const usize) {
    const AT_FDCWD: usize = -100isize as usize;
    const AT_EMPTY_PATH: usize = 0x1000;
    const OPEN_TREE_CLONE_CLOEXEC: usize = 1 | 0o2_000_000;
    const ST_RDONLY: usize = 1;
    const FLAGS_WORD: usize = 10;
    let exe: *const c_char = c"/proc/self/exe".as_ptr();
    let empty: *const c_char = c"".as_ptr();
    let mut statfs = [0usize; 16];
    // struct mount_attr: set MOUNT_ATTR_RDONLY.
    let attributes = [1u64, 0, 0, 0];
    // SAFETY: every pointer is to a live object of the size that the call reads or writes.
    unsafe {
        if call(libc::SYS_statfs, [exe as usize, statfs.as_mut_ptr() as usize, 0, 0, 0]) != 0
            || statfs.as_ptr().add(FLAGS_WORD).read_volatile() & ST_RDONLY != 0
        {
            return;
        }
        let clone = call(libc::SYS_open_tree, [AT_FDCWD, exe as usize, OPEN_TREE_CLONE_CLOEXEC, 0, 0]);
        if clone < 0 {
            return;
        }
        let clone = clone as usize;
        if call(libc::SYS_mount_setattr, [clone, empty as usize, AT_EMPTY_PATH, attributes.as_ptr() as usize, 32]) == 0 {
            call(libc::SYS_execveat, [clone, empty as usize, argv as usize, envp as usize, AT_EMPTY_PATH]);
        }
        call(libc::SYS_close, [clone, 0, 0, 0, 0]);
    }
}

unsafe fn equal(text: *const u8, word: &[u8]) -> bool {
    // SAFETY: the first difference ends the comparison, at the text's null byte at the latest.
    unsafe { starts(text, word) }
}

unsafe fn starts(text: *const u8, with: &[u8]) -> bool {
    let mut i = 0;
    while i < with.len() {
        // SAFETY: all bytes before were equal and not null, so this one is still of the text.
        if unsafe { text.add(i).read_volatile() } != with[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// A raw system call: its result, or the negative errno.
unsafe fn call(number: libc::c_long, a: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the kernel's convention; it changes rcx and r11 beside the result.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}
