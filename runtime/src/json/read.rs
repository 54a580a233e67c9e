//! A reader of JSON (RFC 8259) that goes through the text once and builds no tree: who wants a value
//! says what it must be, and gets it or an error that names the place.
//!
//! [`parse`] is the entrance; types that can be read implement [`Read`] (see `values`, `fields`). The
//! reader is strict about syntax and lenient the way Go's is about content: unknown fields are
//! skipped, `null` is as good as absent, of equal keys the last wins, and a name that no field has stands for the one that
//! differs from it in capitals alone.

use std::borrow::Cow;
use std::fmt;

/// Deeper nesting than any configuration has; it bounds the recursion.
const MAX_DEPTH: u32 = 128;

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// What can be read from JSON.
pub trait Read: Sized {
    /// Takes the value at which the reader stands.
    fn read(reader: &mut Reader<'_>) -> Result<Self>;
}

/// What takes the fields of an object. (No closure: the compiler makes two copies of each.)
pub(crate) trait Fields {
    /// Takes the value of the field `key`; false: there is none of that name, and nothing was taken.
    fn field(&mut self, key: &str, reader: &mut Reader<'_>) -> Result<bool>;

    /// The names of fields that may be written in other capitals.
    fn names(&self) -> &'static [&'static str] {
        &[]
    }
}

/// What takes the elements of a list.
pub(crate) trait Elements {
    /// Takes one.
    fn element(&mut self, reader: &mut Reader<'_>) -> Result<()>;
}

/// Takes anything and keeps nothing.
struct Nothing;

impl Fields for Nothing {
    fn field(&mut self, _key: &str, _reader: &mut Reader<'_>) -> Result<bool> {
        Ok(false)
    }
}

impl Elements for Nothing {
    fn element(&mut self, reader: &mut Reader<'_>) -> Result<()> {
        reader.skip()
    }
}

/// Reads a whole text, and the warnings that it gives rise to.
pub(crate) fn parse<T: Read>(json: &[u8]) -> Result<(T, Vec<String>)> {
    let text = std::str::from_utf8(json).map_err(|e| {
        let before = String::from_utf8_lossy(&json[..e.valid_up_to()]);
        Error::syntax(&before, before.len(), "not UTF-8")
    })?;
    let mut reader = Reader { text, at: 0, depth: 0, unknown_capabilities: Vec::new() };
    let value = T::read(&mut reader)?;
    match reader.peek() {
        None => Ok((value, reader.unknown_capabilities)),
        Some(_) => Err(reader.syntax("expected nothing more")),
    }
}

/// Why a text was refused, in a box: it travels through every function here.
#[derive(Debug)]
pub struct Error(Box<Fault>);

#[derive(Debug)]
enum Fault {
    /// No JSON; the text says where.
    Syntax(String),
    /// Not what the field must be: its path (`.linux.namespaces[2].type`) and what is wrong.
    Value(String, String),
}

impl Error {
    #[cold]
    pub(crate) fn value(what: String) -> Error {
        Error(Box::new(Fault::Value(String::new(), what)))
    }

    #[cold]
    fn syntax(text: &str, at: usize, what: &str) -> Error {
        let before = &text.as_bytes()[..at.min(text.len())];
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        let column = 1 + before.iter().rev().take_while(|&&b| b != b'\n').count();
        Error(Box::new(Fault::Syntax(format!("line {line}, column {column}: {what}"))))
    }

    /// The error as seen from the value around: its path begins with `step`.
    #[cold]
    fn within(mut self, step: fmt::Arguments<'_>) -> Error {
        if let Fault::Value(path, _) = &mut *self.0 {
            path.insert_str(0, &step.to_string());
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Fault::Syntax(what) => f.write_str(what),
            Fault::Value(path, what) if path.is_empty() => f.write_str(what),
            Fault::Value(path, what) => write!(f, "{}: {what}", path.trim_start_matches('.')),
        }
    }
}

impl std::error::Error for Error {}

/// A place in a text.
#[derive(Debug)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
    /// Names of capabilities that nobody knows; they are left out.
    pub(crate) unknown_capabilities: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Reads an object into `fields`, but for what is null. The field `needs` must be there, where it
    /// is not empty.
    pub(crate) fn object(&mut self, needs: &str, fields: &mut dyn Fields) -> Result<()> {
        self.open(b'{', "an object")?;
        // After a blank what an error says of its absence.
        let (needs, otherwise) = needs.split_at(needs.find(' ').unwrap_or(needs.len()));
        let mut seen = needs.is_empty();
        let mut more = !self.take(b'}');
        while more {
            if self.peek() != Some(b'"') {
                return Err(self.syntax("expected the name of a field, in double quotes"));
            }
            let key = self.text()?;
            if !self.take(b':') {
                return Err(self.syntax("expected ':' after the name of a field"));
            }
            if self.peek() == Some(b'n') {
                self.word("null")?;
            } else {
                self.field(&key, fields).map_err(|e| e.within(format_args!(".{key}")))?;
                seen |= key.eq_ignore_ascii_case(needs);
            }
            more = self.goes_on(b'}', "expected ',' or '}'")?;
        }
        match seen {
            true => Ok(()),
            false => Err(Error::value(format!("missing{otherwise}")).within(format_args!(".{needs}"))),
        }
    }

    /// Reads the value of the field `key` into `fields`.
    fn field(&mut self, key: &str, fields: &mut dyn Fields) -> Result<()> {
        if fields.field(key, self)? {
            return Ok(());
        }
        match fields.names().iter().find(|name| name.eq_ignore_ascii_case(key)) {
            Some(name) => fields.field(name, self).map(drop),
            None => self.skip(),
        }
    }

    /// Reads a list into `elements`.
    pub(crate) fn list(&mut self, elements: &mut dyn Elements) -> Result<()> {
        self.open(b'[', "a list")?;
        let mut index = 0;
        let mut more = !self.take(b']');
        while more {
            elements.element(self).map_err(|e| e.within(format_args!("[{index}]")))?;
            index += 1;
            more = self.goes_on(b']', "expected ',' or ']'")?;
        }
        Ok(())
    }

    /// Reads a string: a piece of the text itself unless it has escapes.
    pub(crate) fn text(&mut self) -> Result<Cow<'a, str>> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong("a string"));
        }
        let start = self.at + 1;
        self.at = self.plain(start);
        match self.text.as_bytes().get(self.at) {
            Some(b'"') => {
                self.at += 1;
                Ok(Cow::Borrowed(&self.text[start..self.at - 1]))
            }
            _ => self.escaped(start).map(Cow::Owned),
        }
    }

    /// Reads a string that must be one of `known`; its index.
    pub(crate) fn choice(&mut self, known: &[&str], wrong: &str) -> Result<usize> {
        let name = self.text()?;
        known.iter().position(|k| *k == name).ok_or_else(|| {
            let what = if name.is_empty() { "empty".to_owned() } else { format!("{wrong} {name:?}") };
            Error::value(format!("{what} (known: {})", known.join(", ")))
        })
    }

    /// Reads a whole number within `min` and `max`.
    pub(crate) fn integer(&mut self, min: i128, max: i128) -> Result<i128> {
        let number = match self.peek() {
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => return Err(self.wrong("a number")),
        };
        if number.contains(['.', 'e', 'E']) {
            return Err(Error::value(format!("{number} is not a whole number")));
        }
        match number.parse() {
            Ok(n) if min <= n && n <= max => Ok(n),
            _ => Err(Error::value(format!("{number} is not within {min} and {max}"))),
        }
    }

    pub(crate) fn boolean(&mut self) -> Result<bool> {
        match self.peek() {
            Some(b't') => self.word("true").map(|()| true),
            Some(b'f') => self.word("false").map(|()| false),
            _ => Err(self.wrong("true or false")),
        }
    }

    /// Passes over a value of any kind.
    pub(crate) fn skip(&mut self) -> Result<()> {
        match self.peek() {
            Some(b'{') => self.object("", &mut Nothing),
            Some(b'[') => self.list(&mut Nothing),
            Some(b'"') => self.text().map(drop),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            Some(b'-' | b'0'..=b'9') => self.number().map(drop),
            _ => Err(self.wrong("")),
        }
    }

    /// The first byte of the next token; `None` at the end.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Passes over `token` if it comes next.
    fn take(&mut self, token: u8) -> bool {
        let there = self.peek() == Some(token);
        self.at += usize::from(there);
        there
    }

    fn open(&mut self, bracket: u8, what: &str) -> Result<()> {
        if !self.take(bracket) {
            return Err(self.wrong(what));
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.syntax("nested too deeply"));
        }
        Ok(())
    }

    /// After a member: whether another follows; else the bracket is closed.
    fn goes_on(&mut self, bracket: u8, expected: &str) -> Result<bool> {
        if self.take(b',') {
            return Ok(true);
        }
        if !self.take(bracket) {
            return Err(self.syntax(expected));
        }
        self.depth -= 1;
        Ok(false)
    }

    fn word(&mut self, word: &str) -> Result<()> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.syntax("expected a value"));
        }
        self.at += word.len();
        Ok(())
    }

    /// Passes over a number; its text.
    fn number(&mut self) -> Result<&'a str> {
        let start = self.at;
        self.at += usize::from(self.byte() == Some(b'-'));
        let zero = self.byte() == Some(b'0');
        let whole = self.digits();
        let mut valid = whole == 1 || (whole > 1 && !zero);
        if self.byte() == Some(b'.') {
            self.at += 1;
            valid &= self.digits() > 0;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.byte(), Some(b'+' | b'-')));
            valid &= self.digits() > 0;
        }
        match valid {
            true => Ok(&self.text[start..self.at]),
            false => Err(self.syntax("not a number as JSON writes it")),
        }
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.byte(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Where the plain bytes of a string end: at a quote, a backslash, a control character or the end.
    fn plain(&self, start: usize) -> usize {
        let rest = self.text.as_bytes().get(start..).unwrap_or_default();
        start + rest.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20).unwrap_or(rest.len())
    }

    /// The rest of [`Reader::text`] for a string that is not plain; the reader stands at the first odd byte.
    #[cold]
    fn escaped(&mut self, start: usize) -> Result<String> {
        let mut out = self.text[start..self.at].to_owned();
        loop {
            let odd = self.byte();
            match odd {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                Some(_) => return Err(self.syntax("control character in a string")),
                None => return Err(self.syntax("the text ends within a string")),
            }
            let end = self.plain(self.at);
            out.push_str(&self.text[self.at..end]);
            self.at = end;
        }
    }

    /// The character of an escape, after the backslash.
    fn escape(&mut self) -> Result<char> {
        let letter = self.byte();
        self.at += usize::from(letter.is_some());
        Ok(match letter {
            Some(plain @ (b'"' | b'\\' | b'/')) => char::from(plain),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.four_digits()?;
                let mut code = first;
                if (0xd800..0xdc00).contains(&first) && self.text.as_bytes()[self.at..].starts_with(b"\\u") {
                    self.at += 2;
                    let second = self.four_digits()?;
                    if (0xdc00..0xe000).contains(&second) {
                        code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                    }
                }
                // What is left in this range is half of a pair.
                char::from_u32(code).ok_or_else(|| self.syntax("half of a surrogate pair"))?
            }
            _ => return Err(self.syntax("unknown escape in a string")),
        })
    }

    fn four_digits(&mut self) -> Result<u32> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let Some(digits) = digits else { return Err(self.syntax("expected four hexadecimal digits after \\u")) };
        self.at += 4;
        Ok(digits.iter().fold(0, |n, &d| n << 4 | char::from(d).to_digit(16).unwrap_or(0)))
    }

    /// The next value is not what is wanted.
    #[cold]
    fn wrong(&mut self, wanted: &str) -> Error {
        let got = match self.peek() {
            Some(b'{') => "an object",
            Some(b'[') => "a list",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "true or false",
            Some(b'n') => "null",
            Some(b'-' | b'0'..=b'9') => "a number",
            Some(_) => return self.syntax("expected a value"),
            None => return self.syntax("the text ends where a value should be"),
        };
        Error::value(format!("must be {wanted}, not {got}"))
    }

    #[cold]
    fn syntax(&self, what: &str) -> Error {
        Error::syntax(self.text, self.at, what)
    }
}
