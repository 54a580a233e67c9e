//! From x86_64 numbers to i386 numbers.
//!
//! libseccomp compares an i386 name with the 32 multiplexed calls first, one by one, which takes
//! ten times as long as on other architectures and was most of the time of compiling Docker's
//! profile, which names i386 on every x86_64 host. Called by `names`; a test holds the table against
//! libseccomp.

use super::names::Number;

/// From this number on all architectures number alike.
const UNIFIED: u32 = 424;
const NONE: u16 = u16::MAX;

/// What the call with this x86_64 number is on i386; `None` where libseccomp has to be asked.
pub(super) fn number(x86_64: u32) -> Option<Number> {
    if x86_64 >= UNIFIED {
        return Some(Number::Direct(x86_64));
    }
    match *NUMBERS.get(x86_64 as usize)? {
        0 => None,
        NONE => Some(Number::Absent),
        number => Some(Number::Direct(u32::from(number))),
    }
}

/// The i386 number of each x86_64 call (the kernel's syscall_64.tbl and syscall_32.tbl); 0 for the
/// multiplexed ones and for number 0.
#[rustfmt::skip]
const NUMBERS: [u16; 335] = [
    3, 4, 5, 6, 106, 108, 107, 168, 19, 90, 125, 91, 45, 174, 175, 173,
    54, 180, 181, 145, 146, 33, 42, 82, 158, 163, 144, 218, 219, 0, 0, 0,
    41, 63, 29, 162, 105, 27, 104, 20, 187, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 120, 2, 190, 11, 1, 114, 37, 122,
    0, 0, 0, 0, 0, 0, 0, 0, 55, 143, 118, 148, 92, 93, 141, 183,
    12, 133, 38, 39, 40, 8, 9, 10, 83, 85, 15, 94, 182, 95, 16, 60,
    78, 76, 77, 116, 43, 26, 24, 103, 47, 23, 46, 49, 50, 57, 64, 65,
    66, 70, 71, 80, 81, 164, 165, 170, 171, 132, 138, 139, 147, 184, 185, 176,
    177, 178, 179, 186, 30, 14, 86, 136, 62, 99, 100, 135, 96, 97, 154, 155,
    156, 157, 159, 160, 161, 150, 151, 152, 153, 111, 123, 217, 149, 172, 384, 124,
    75, 61, 36, 51, 79, 21, 52, 87, 115, 88, 74, 121, 110, 101, 127, 128,
    129, 130, 167, 131, 169, 188, 189, 137, NONE, NONE, 224, 225, 226, 227, 228, 229,
    230, 231, 232, 233, 234, 235, 236, 237, 238, 13, 240, 241, 242, 243, 245, 246,
    247, 248, 249, 244, 253, 254, NONE, NONE, 257, 220, 258, 0, 0, 250, 259, 260,
    261, 262, 263, 264, 265, 266, 267, 252, 256, 255, 270, 271, 273, 274, 276, 275,
    277, 278, 279, 280, 281, 282, 283, 284, 286, 287, 288, 289, 290, 291, 292, 293,
    294, 295, 296, 297, 298, 299, NONE, 301, 302, 303, 304, 305, 306, 307, 308, 309,
    310, 311, 312, 313, 315, 314, 316, 317, 320, 319, 321, 322, 323, 324, 325, 326,
    0, 327, 328, 329, 330, 331, 332, 333, 334, 335, 336, 0, 338, 339, 340, 341,
    342, 343, 344, 0, 346, 318, 347, 348, 349, 350, 351, 352, 353, 354, 355, 356,
    NONE, 357, 358, 374, 375, 376, 377, 378, 379, 380, 381, 382, 383, 385, 386,
];
