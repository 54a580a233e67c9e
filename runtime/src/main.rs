//! The binary's C `main`: std's own start would read `/proc/self/maps`, set signal stacks and poll
//! descriptors 0 to 2, which costs a tenth of a millisecond per command (docs/performance.md).
#![no_main]

/// Called by the C library's start code; std finds the arguments by itself.
#[allow(unsafe_code)]
// SAFETY: the one symbol of this name in the program, with the C library's signature for it.
#[unsafe(no_mangle)]
pub extern "C" fn main(_argc: i32, _argv: *const *const std::ffi::c_char) -> i32 {
    rrun::main()
}
