//! A writer of JSON as Go's encoder writes it, which callers compare byte by byte: no blanks or a
//! line for each value, fields in the order of their table, `<`, `>` and `&` escaped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What can be written as JSON.
pub trait Write {
    /// Appends the value.
    fn write(&self, writer: &mut Writer);

    /// Whether an object leaves out a field of this value.
    fn is_absent(&self) -> bool {
        false
    }
}

/// JSON on one line, without a final newline.
pub fn text(value: &dyn Write) -> String {
    written(value, "")
}

/// JSON indented by `indent` per level, without a final newline.
pub fn indented(value: &dyn Write, indent: &'static str) -> String {
    written(value, indent)
}

/// One string.
pub fn quoted(value: &str) -> String {
    written(&value, "")
}

fn written(value: &dyn Write, indent: &'static str) -> String {
    let mut writer = Writer { text: String::with_capacity(1024), indent, depth: 0, empty: true };
    value.write(&mut writer);
    writer.text
}

/// A text that is being written.
#[derive(Debug)]
pub struct Writer {
    text: String,
    indent: &'static str,
    depth: usize,
    /// The object or list that is open has no member yet.
    empty: bool,
}

impl Writer {
    /// Writes an object; `fields` calls [`Writer::field`].
    pub fn object(&mut self, fields: impl FnOnce(&mut Writer)) {
        self.open('{');
        fields(self);
        self.close('}');
    }

    /// Writes a list; `elements` calls [`Writer::element`].
    pub fn list(&mut self, elements: impl FnOnce(&mut Writer)) {
        self.open('[');
        elements(self);
        self.close(']');
    }

    /// Writes a field of the open object, unless it is absent.
    pub fn field(&mut self, name: &str, value: &dyn Write) {
        if value.is_absent() {
            return;
        }
        self.next();
        self.string(name);
        self.text.push_str(if self.indent.is_empty() { ":" } else { ": " });
        value.write(self);
        self.empty = false;
    }

    /// Writes an element of the open list.
    pub fn element(&mut self, value: &dyn Write) {
        self.next();
        value.write(self);
        self.empty = false;
    }

    fn open(&mut self, bracket: char) {
        self.text.push(bracket);
        self.depth += 1;
        self.empty = true;
    }

    fn close(&mut self, bracket: char) {
        self.depth -= 1;
        if !self.empty {
            self.line();
        }
        self.text.push(bracket);
    }

    fn next(&mut self) {
        if !self.empty {
            self.text.push(',');
        }
        self.line();
    }

    fn line(&mut self) {
        if !self.indent.is_empty() {
            self.text.push('\n');
            for _ in 0..self.depth {
                self.text.push_str(self.indent);
            }
        }
    }

    fn string(&mut self, value: &str) {
        self.text.push('"');
        let mut rest = value;
        // Go escapes also what could end a script in HTML.
        let odd = |c: char| c < ' ' || matches!(c, '"' | '\\' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        while let Some(at) = rest.find(odd) {
            self.text.push_str(&rest[..at]);
            let mut chars = rest[at..].chars();
            match chars.next().unwrap_or_default() {
                c @ ('"' | '\\') => self.text.extend(['\\', c]),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                c => drop(write!(self.text, "\\u{:04x}", u32::from(c))),
            }
            rest = chars.as_str();
        }
        self.text.push_str(rest);
        self.text.push('"');
    }
}

impl Write for str {
    fn write(&self, writer: &mut Writer) {
        writer.string(self);
    }
}

impl Write for String {
    fn write(&self, writer: &mut Writer) {
        writer.string(self);
    }
}

impl Write for Path {
    fn write(&self, writer: &mut Writer) {
        writer.string(&self.to_string_lossy());
    }
}

impl Write for PathBuf {
    fn write(&self, writer: &mut Writer) {
        self.as_path().write(writer);
    }
}

impl Write for bool {
    fn write(&self, writer: &mut Writer) {
        writer.text.push_str(if *self { "true" } else { "false" });
    }
}

macro_rules! numbers {
    ($($type:ty)*) => { $(
        impl Write for $type {
            fn write(&self, writer: &mut Writer) {
                let _ = write!(writer.text, "{self}");
            }
        }
    )* };
}

numbers!(i32 u32 u64 i64 f64);

impl<T: Write + ?Sized> Write for &T {
    fn write(&self, writer: &mut Writer) {
        (**self).write(writer);
    }

    fn is_absent(&self) -> bool {
        (**self).is_absent()
    }
}

impl<T: Write> Write for Option<T> {
    fn write(&self, writer: &mut Writer) {
        match self {
            Some(value) => value.write(writer),
            None => writer.text.push_str("null"),
        }
    }

    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

impl<T: Write> Write for [T] {
    fn write(&self, writer: &mut Writer) {
        writer.list(|list| self.iter().for_each(|value| list.element(value)));
    }
}

impl<T: Write> Write for Vec<T> {
    fn write(&self, writer: &mut Writer) {
        self.as_slice().write(writer);
    }
}

impl<const N: usize, T: Write> Write for [T; N] {
    fn write(&self, writer: &mut Writer) {
        self.as_slice().write(writer);
    }
}

impl<K: AsRef<str>, T: Write> Write for BTreeMap<K, T> {
    fn write(&self, writer: &mut Writer) {
        writer.object(|map| self.iter().for_each(|(key, value)| map.field(key.as_ref(), value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_writes_it() {
        assert_eq!(text(&["<a&b>", "\u{2028}", "é\t\u{1}\"\\"]), r#"["\u003ca\u0026b\u003e","\u2028","é\t\u0001\"\\"]"#);
        assert_eq!(text(&None::<Vec<u32>>), "null");
        assert_eq!(text(&Vec::<u32>::new()), "[]");
    }

    #[test]
    fn indented_by_level() {
        struct Both;
        impl Write for Both {
            fn write(&self, writer: &mut Writer) {
                writer.object(|o| {
                    o.field("a", &[1, 2]);
                    o.field("absent", &None::<u32>);
                    o.field("b", &BTreeMap::<String, u32>::new());
                    o.field("c", &BTreeMap::from([("x", true)]));
                });
            }
        }
        assert_eq!(
            indented(&Both, "    "),
            "{\n    \"a\": [\n        1,\n        2\n    ],\n    \"b\": {},\n    \"c\": {\n        \"x\": true\n    }\n}"
        );
        assert_eq!(text(&Both), r#"{"a":[1,2],"b":{},"c":{"x":true}}"#);
    }
}
