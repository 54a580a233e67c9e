//! GVariant's text format, as annotations `org.systemd.property.*` write values: `'text'`, `true`,
//! `uint64 5`, `['a', 'b']`, `@as []`, `('a', 5)`.

use super::wire::Value;
use anyhow::{Context, Result, bail};

/// Parses one value.
pub(super) fn parse(text: &str) -> Result<Value> {
    if text.len() > 4096 {
        bail!("longer than 4096 bytes");
    }
    let mut rest = text;
    let value = value(&mut rest, None)?;
    if !rest.trim_start().is_empty() {
        bail!("unexpected {:?} at the end", rest.trim_start());
    }
    Ok(value)
}

/// Parses a value off the front of `rest`; `want` is the signature it must have, where known.
fn value(rest: &mut &str, want: Option<&str>) -> Result<Value> {
    *rest = rest.trim_start();
    match rest.chars().next().context("a value is missing")? {
        '\'' | '"' => {
            let text = quoted(rest)?;
            match want {
                None | Some("s" | "o") => Ok(Value::Str(text)),
                Some(other) => bail!("text where {other:?} is expected"),
            }
        }
        '@' => {
            let end = rest.find(char::is_whitespace).context("a value is missing after its type")?;
            let signature = rest[1..end].to_owned();
            *rest = &rest[end..];
            value(rest, Some(&signature))
        }
        '[' => array(rest, want),
        '(' => tuple(rest),
        _ => word(rest, want),
    }
}

fn quoted(rest: &mut &str) -> Result<String> {
    let quote = rest.chars().next();
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if Some(c) == quote {
            *rest = &rest[at + 1..];
            return Ok(text);
        }
        text.push(match c {
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(c) if !c.is_ascii_alphanumeric() => c,
                _ => bail!("an escape that is not understood"),
            },
            c => c,
        });
    }
    bail!("the closing quote is missing")
}

fn array(rest: &mut &str, want: Option<&str>) -> Result<Value> {
    let element = match want {
        None => None,
        Some(signature) => Some(signature.strip_prefix('a').with_context(|| format!("an array where {signature:?} is expected"))?),
    };
    let items = items(rest, ']', element)?;
    let signature = match (element, items.first()) {
        (Some(signature), _) => signature.to_owned(),
        (None, Some(first)) => first.signature(),
        (None, None) => bail!("an empty array needs its type: @as []"),
    };
    if items.iter().any(|i| i.signature() != signature) {
        bail!("an array of different types");
    }
    Ok(Value::Array(signature, items))
}

fn tuple(rest: &mut &str) -> Result<Value> {
    Ok(Value::Tuple(items(rest, ')', None)?))
}

fn items(rest: &mut &str, end: char, want: Option<&str>) -> Result<Vec<Value>> {
    *rest = &rest[1..];
    let mut items = Vec::new();
    loop {
        *rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(end) {
            *rest = after;
            return Ok(items);
        }
        items.push(value(rest, want)?);
        *rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => *rest = after,
            None if rest.starts_with(end) => (),
            None => bail!("{end:?} is missing"),
        }
    }
}

/// A number, a boolean, or a type's name with the value after it.
fn word(rest: &mut &str, want: Option<&str>) -> Result<Value> {
    let end = rest.find(|c: char| c.is_whitespace() || ",])".contains(c)).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    let named = match word {
        "true" => return Ok(Value::Bool(true)),
        "false" => return Ok(Value::Bool(false)),
        "byte" => "y",
        "int16" => "n",
        "uint16" => "q",
        "int32" => "i",
        "uint32" => "u",
        "int64" => "x",
        "uint64" => "t",
        "double" => "d",
        "string" | "objectpath" => "s",
        "boolean" => "b",
        _ => return number(word, want).with_context(|| format!("{word:?} is not understood")),
    };
    value(rest, Some(named))
}

fn number(word: &str, want: Option<&str>) -> Result<Value> {
    Ok(match want {
        Some("y") => Value::Byte(word.parse()?),
        Some("n") => Value::I16(word.parse()?),
        Some("q") => Value::U16(word.parse()?),
        Some("u") => Value::U32(word.parse()?),
        Some("x") => Value::I64(word.parse()?),
        Some("t") => Value::U64(word.parse()?),
        Some("d") => Value::F64(word.parse()?),
        None if word.contains('.') => Value::F64(word.parse()?),
        None | Some("i") => Value::I32(word.parse()?),
        Some(other) => bail!("a number where {other:?} is expected"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let strings = |list: &[&str]| Value::Array("s".into(), list.iter().map(|s| Value::from(*s)).collect());
        for (text, value) in [
            ("'a\\'b'", Value::from("a'b")),
            ("\"x\"", Value::from("x")),
            ("true", Value::Bool(true)),
            ("-5", Value::I32(-5)),
            ("uint64 5", Value::U64(5)),
            ("@t 5", Value::U64(5)),
            ("1.5", Value::F64(1.5)),
            ("['a', 'b']", strings(&["a", "b"])),
            ("@as []", strings(&[])),
            ("@as ['c']", strings(&["c"])),
            ("[byte 1, byte 2]", Value::Array("y".into(), vec![Value::Byte(1), Value::Byte(2)])),
            ("('a', uint32 5)", Value::Tuple(vec!["a".into(), Value::U32(5)])),
            ("[('a', 'b')]", Value::Array("(ss)".into(), vec![Value::Tuple(vec!["a".into(), "b".into()])])),
        ] {
            assert_eq!(parse(text).unwrap(), value, "{text}");
        }
        for bad in ["", "'a", "a", "[]", "[1, 'a']", "5 6", "uint32 -1", "@as 5", "('a'", "@t", "[1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
