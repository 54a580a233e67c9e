//! What commands print: tables as Go's tabwriter aligns them, all of it written to standard output in
//! one piece.

use crate::sys;
use anyhow::{Context, Result};
use std::os::fd::AsFd;

/// Writes to standard output.
pub fn print(text: &str) -> Result<()> {
    let stdout = std::io::stdout();
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        // Not through std's buffer: nobody would empty it, since our `main` is the C library's.
        let n = sys::write(stdout.as_fd(), rest).context("write to standard output")?;
        rest = &rest[n..];
    }
    Ok(())
}

/// Lines of cells in columns: each at least 12 wide, 3 blanks after the widest; the last is free.
pub fn table(lines: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        for (i, cell) in line.iter().enumerate() {
            let width = (cell.chars().count() + 3).max(12);
            match widths.get_mut(i) {
                Some(w) => *w = width.max(*w),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for line in lines {
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            text.push_str(cell);
            if i + 1 < line.len() {
                text.extend(std::iter::repeat_n(' ', width - cell.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let line = |cells: &[&str]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        let text = table(&[line(&["ID", "PID", "OWNER"]), line(&["a-rather-long-id", "1", "root"])]);
        assert_eq!(text, "ID                 PID         OWNER\na-rather-long-id   1           root\n");
        assert_eq!(table(&[line(&["ID", "OWNER"])]), "ID          OWNER\n");
    }
}
