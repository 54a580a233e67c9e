//! From arguments to the flags and operands of one table row.
//!
//! The rules are those of Go's flag packages, on which callers rely: one dash or two before a long
//! name, `--name=value` or `--name value`, switches also as `--name=false`, flags before and after
//! operands (except for commands whose operands may look like flags), `--` ends them, the last of
//! a repeated flag counts. Besides, letters may be joined (`-td`) as is usual elsewhere.

use super::table::{self, Command, Flag, GLOBAL_FLAGS};
use anyhow::{Context, Result, anyhow, bail};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

/// Flags by name with their values, in the order typed, and the operands.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    flags: Vec<(&'static str, OsString)>,
    pub(super) operands: Vec<OsString>,
}

/// What a command line asks for; `None` where it names no command.
pub(super) type Asked = Option<(&'static Command, Parsed)>;

/// A command that does not exist; it has an exit code of its own.
#[derive(Debug)]
pub(super) struct UnknownCommand(String);

impl std::fmt::Display for UnknownCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "No help topic for '{}'", self.0)
    }
}

impl std::error::Error for UnknownCommand {}

/// Parses everything after the program's name. The global flags are there even when the rest is
/// wrong, so that the error finds its way to the log.
pub(super) fn parse(args: impl Iterator<Item = OsString>) -> (Parsed, Result<Asked>) {
    let mut globals = Parsed::default();
    let asked = command(args, &mut globals);
    (globals, asked)
}

fn command(mut args: impl Iterator<Item = OsString>, globals: &mut Parsed) -> Result<Asked> {
    globals.take(&mut args, GLOBAL_FLAGS, true, &mut None)?;
    if globals.operands.is_empty() {
        return Ok(None);
    }
    let command = known(&globals.operands.remove(0))?;
    let mut parsed = Parsed::default();
    // What a `--` before the command has swept up.
    let mut args = std::mem::take(&mut globals.operands).into_iter().chain(args);
    parsed.take(&mut args, command.flags, command.stop, &mut Some(globals))?;
    parsed.operands.extend(args);
    Ok(Some((command, parsed)))
}

/// The row of a command's name.
pub(super) fn known(name: &OsStr) -> Result<&'static Command> {
    let name = name.to_string_lossy();
    Ok(table::find(&name).ok_or_else(|| UnknownCommand(name.into_owned()))?)
}

impl Parsed {
    /// Takes arguments, with `stop` up to and including the first operand. A flag that the table
    /// lacks may be one of the global flags, which go to `globals`.
    fn take(
        &mut self,
        args: &mut impl Iterator<Item = OsString>,
        table: &'static [Flag],
        stop: bool,
        globals: &mut Option<&mut Parsed>,
    ) -> Result<()> {
        while let Some(arg) = args.next() {
            let bytes = arg.as_bytes();
            if bytes == b"--" {
                self.operands.extend(args);
                return Ok(());
            }
            if bytes.len() < 2 || bytes[0] != b'-' {
                self.operands.push(arg);
                if stop {
                    return Ok(());
                }
                continue;
            }
            let typed = bytes.strip_prefix(b"--").unwrap_or(&bytes[1..]);
            let (name, inline) = match typed.iter().position(|&b| b == b'=') {
                Some(at) => (&typed[..at], Some(&typed[at + 1..])),
                None => (typed, None),
            };
            if let Some(flag) = named(table, name) {
                self.put(flag, inline, args)?;
            } else if let (Some(flag), Some(globals)) = (named(GLOBAL_FLAGS, name), globals.as_deref_mut()) {
                globals.put(flag, inline, args)?;
            } else if bytes[1] != b'-' && letters(table, typed) {
                self.put_letters(table, typed, args)?;
            } else {
                bail!("flag provided but not defined: -{}", String::from_utf8_lossy(name));
            }
        }
        Ok(())
    }

    fn put(&mut self, flag: &'static Flag, inline: Option<&[u8]>, args: &mut impl Iterator<Item = OsString>) -> Result<()> {
        let value = match (flag.value, inline) {
            (None, Some(value)) => {
                let text = String::from_utf8_lossy(value);
                go_bool(&text).ok_or_else(|| anyhow!("invalid boolean value {text:?} for -{}: parse error", flag.name))?;
                OsStr::from_bytes(value).to_owned()
            }
            (None, None) => OsString::from("true"),
            (Some(_), Some(value)) => OsStr::from_bytes(value).to_owned(),
            (Some(_), None) => args.next().ok_or_else(|| anyhow!("flag needs an argument: -{}", flag.name))?,
        };
        self.flags.push((flag.name, value));
        Ok(())
    }

    /// Joined letters: switches, of which the last may be a flag with its value behind it.
    fn put_letters(&mut self, table: &'static [Flag], typed: &[u8], args: &mut impl Iterator<Item = OsString>) -> Result<()> {
        for (i, letter) in typed.iter().enumerate() {
            let Some(flag) = named(table, &[*letter]) else { break };
            if flag.value.is_some() {
                let rest = &typed[i + 1..];
                return self.put(flag, (!rest.is_empty()).then_some(rest), args);
            }
            self.put(flag, None, args)?;
        }
        Ok(())
    }

    /// Whether a switch is on.
    pub(super) fn on(&self, name: &str) -> bool {
        self.switch(name).unwrap_or(false)
    }

    /// A switch, `None` where it was not given.
    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        go_bool(self.last(name)?.to_str()?)
    }

    /// A path; an empty one counts as not given.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.last(name).filter(|v| !v.is_empty()).map(PathBuf::from)
    }

    /// A text; an empty one counts as not given.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        self.last(name).filter(|v| !v.is_empty()).map(|v| utf8(name, v)).transpose()
    }

    /// All values of a flag that may be repeated.
    pub(super) fn texts(&self, name: &str) -> Result<Vec<String>> {
        self.flags.iter().filter(|f| f.0 == name).map(|f| utf8(name, &f.1)).collect()
    }

    /// A number.
    pub(super) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        self.text(name)?.map(|text| number(name, &text)).transpose()
    }

    /// All flags given, with their values.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, Result<String>)> {
        self.flags.iter().map(|(name, value)| (*name, utf8(name, value)))
    }

    fn last(&self, name: &str) -> Option<&OsString> {
        self.flags.iter().rev().find(|f| f.0 == name).map(|f| &f.1)
    }
}

/// A flag's value as a number.
pub(super) fn number<T: FromStr>(flag: &str, text: &str) -> Result<T> {
    text.parse().map_err(|_| anyhow!("invalid value {text:?} for flag -{flag}: parse error"))
}

/// Text that must be UTF-8 because JSON carries it on.
pub(super) fn utf8(what: &str, value: &OsStr) -> Result<String> {
    String::from_utf8(value.to_owned().into_vec()).with_context(|| format!("{what}: not UTF-8"))
}

fn named(table: &'static [Flag], name: &[u8]) -> Option<&'static Flag> {
    let letter = |l: char| name.len() == 1 && l as u32 == u32::from(name[0]);
    table.iter().find(|f| f.name.as_bytes() == name || f.letter.is_some_and(letter))
}

/// Whether an argument is a row of letters of the table, as far as a letter that takes a value.
fn letters(table: &'static [Flag], typed: &[u8]) -> bool {
    for letter in typed {
        match named(table, &[*letter]) {
            None => return false,
            Some(flag) if flag.value.is_some() => return true,
            Some(_) => (),
        }
    }
    true
}

/// What Go's `strconv.ParseBool` takes.
pub(super) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
