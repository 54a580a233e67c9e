//! Tar archives: a reader for every format that images come in, and a writer.
//!
//! Called by `images::unpack`, `images::layout` and `images::export`. Nothing here
//! touches a file system.
mod header;
mod pax;
mod reader;
mod writer;

pub use reader::{Archive, Entry, Kind, Limits};
pub use writer::Writer;
pub(super) use writer::of_one_file;

/// The most pieces a sparse file may have.
const MAX_SPARSE: usize = 1 << 20;
