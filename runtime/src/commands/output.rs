//! What commands print: JSON as Go's encoder writes it (callers compare it byte by byte), tables
//! as its tabwriter aligns them, written to standard output in one piece.

use crate::sys;
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
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

/// JSON on one line, without a final newline.
pub fn json(value: &impl Serialize) -> Result<String> {
    Ok(escape(serde_json::to_string(value)?))
}

/// JSON indented by `indent` per level, without a final newline.
pub fn json_indented(value: &impl Serialize, indent: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(1024);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(indent.as_bytes())))?;
    Ok(escape(String::from_utf8(bytes)?))
}

/// One JSON string.
pub(crate) fn json_text(text: &str) -> String {
    escape(serde_json::Value::from(text).to_string())
}

/// Go escapes what could end a script in HTML. None of these characters has a meaning in JSON
/// itself, so each is inside a string.
fn escape(json: String) -> String {
    let special = |c| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
    if !json.contains(special) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        if special(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
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
    fn go_json() {
        assert_eq!(json(&["<a&b>", "\u{2028}", "é\t\u{1}"]).unwrap(), r#"["\u003ca\u0026b\u003e","\u2028","é\t\u0001"]"#);
        assert_eq!(json(&None::<Vec<u8>>).unwrap(), "null");
        assert_eq!(
            json_indented(&serde_json::json!({"a": [1], "b": {}}), "    ").unwrap(),
            "{\n    \"a\": [\n        1\n    ],\n    \"b\": {}\n}"
        );
    }

    #[test]
    fn columns() {
        let line = |cells: &[&str]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        let text = table(&[line(&["ID", "PID", "OWNER"]), line(&["a-rather-long-id", "1", "root"])]);
        assert_eq!(text, "ID                 PID         OWNER\na-rather-long-id   1           root\n");
        assert_eq!(table(&[line(&["ID", "OWNER"])]), "ID          OWNER\n");
    }
}
