//! Log lines in the two forms that runc's callers read, and the one line of an error.
//!
//! [`open`] is called once, by the command line's `main`; [`warn`] and [`debug`] by everybody;
//! [`error`] by `main` alone, as the last thing a failed command does. Before `open` (and in unit
//! tests) lines go to standard error as text; a terminal gets them plain, for a person.

use crate::cli::LogFormat;
use crate::clock;
use anyhow::{Context, Result};
use nix::errno::Errno;
use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::{IsTerminal, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::SystemTime;

#[derive(Debug, Default)]
struct Log {
    file: Option<File>,
    format: LogFormat,
    debug: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();
static WARNINGS: Mutex<String> = Mutex::new(String::new());

/// Sets where lines go. The file is appended to, so that several commands may share it.
pub fn open(path: Option<&Path>, format: LogFormat, debug: bool) -> Result<()> {
    let file = path.map(|path| {
        let mut options = File::options();
        options.append(true).create(true).mode(0o644).custom_flags(nix::libc::O_SYNC);
        options.open(path).with_context(|| format!("--log {}", path.display()))
    });
    let _ = LOG.set(Log { file: file.transpose()?, format, debug });
    Ok(())
}

/// The log file's descriptor.
pub fn descriptor() -> Option<u32> {
    log().file.as_ref().map(|file| file.as_raw_fd() as u32)
}

/// What the caller should know although the command goes on. A log file gets it when the command has
/// succeeded ([`flush`]): the file of a failed one holds its error and nothing else, which Podman reads
/// as one JSON object.
pub fn warn(message: impl Display) {
    let log = log();
    let line = line(log.format, "warning", &message.to_string(), &clock::rfc3339(SystemTime::now()));
    match (&log.file, WARNINGS.lock()) {
        (Some(_), Ok(mut kept)) => kept.push_str(&line),
        _ => print(&line),
    }
}

/// Writes the warnings of a command that has succeeded to the log file.
pub fn flush() {
    if let (Some(mut file), Ok(kept)) = (log().file.as_ref(), WARNINGS.lock()) {
        let _ = file.write_all(kept.as_bytes());
    }
}

/// Only with `--debug`; `message` is called only then.
pub fn debug<T: Display>(message: impl FnOnce() -> T) {
    let log = log();
    if log.debug {
        write(log, "debug", &message().to_string());
    }
}

/// The one line of the command's failure. With a log file it goes there in the log's form, and as
/// plain text to standard error.
pub fn error(message: &str) {
    let log = log();
    write(log, "error", message);
    if log.file.is_some() {
        print(&format!("{}\n", one_line(message)));
    }
}

/// The same where standard error gets other words than the log file, and no form around them.
pub fn error_as(message: &str, shown: &str) {
    let log = log();
    if log.file.is_some() {
        write(log, "error", message);
    }
    print(&format!("{}\n", one_line(shown)));
}

/// An error and its causes on one line, the kernel's in the words that callers look for:
/// `open /x: no such file or directory`.
pub fn message(error: &anyhow::Error) -> String {
    let text = |cause: &(dyn std::error::Error + 'static)| {
        let errno = match cause.downcast_ref::<std::io::Error>() {
            Some(e) => e.raw_os_error().map(Errno::from_raw),
            None => cause.downcast_ref::<Errno>().copied(),
        };
        errno.map_or_else(|| cause.to_string(), |errno| errno.desc().to_ascii_lowercase())
    };
    error.chain().map(text).collect::<Vec<_>>().join(": ")
}

fn log() -> &'static Log {
    static BEFORE: Log = Log { file: None, format: LogFormat::Text, debug: false };
    LOG.get().unwrap_or(&BEFORE)
}

fn write(log: &Log, level: &str, message: &str) {
    let now = || clock::rfc3339(SystemTime::now());
    match &log.file {
        // A full disk must not turn a command that works into one that fails.
        Some(file) => drop((&*file).write_all(line(log.format, level, message, &now()).as_bytes())),
        None if log.format == LogFormat::Text && std::io::stderr().is_terminal() => {
            let level = if level == "error" { String::new() } else { format!("{level}: ") };
            print(&format!("rrun: {level}{}\n", one_line(message)));
        }
        None => print(&line(log.format, level, message, &now())),
    }
}

fn print(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn one_line(message: &str) -> String {
    message.trim_end().replace('\n', " ")
}

/// logrus's two forms: `time="…" level=… msg="…"`, and a JSON object with sorted keys.
fn line(format: LogFormat, level: &str, message: &str, time: &str) -> String {
    let mut line = String::with_capacity(message.len() + 64);
    let _ = match format {
        LogFormat::Text => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
            if message.chars().all(plain) {
                writeln!(line, "time=\"{time}\" level={level} msg={message}")
            } else {
                writeln!(line, "time=\"{time}\" level={level} msg={message:?}")
            }
        }
        LogFormat::Json => {
            let message = crate::json::quoted(message);
            writeln!(line, "{{\"level\":\"{level}\",\"msg\":{message},\"time\":\"{time}\"}}")
        }
    };
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text() {
        let text = |message| line(LogFormat::Text, "error", message, "T");
        assert_eq!(text("container does not exist"), "time=\"T\" level=error msg=\"container does not exist\"\n");
        assert_eq!(text("done"), "time=\"T\" level=error msg=done\n");
        assert_eq!(text("exec: \"x\"\n"), "time=\"T\" level=error msg=\"exec: \\\"x\\\"\\n\"\n");
    }

    #[test]
    fn messages() {
        let io = Err::<(), _>(std::io::Error::from_raw_os_error(2)).context("open /X").context("Config").unwrap_err();
        assert_eq!(message(&io), "Config: open /X: no such file or directory");
        let errno = Err::<(), _>(Errno::EACCES).context("mount").unwrap_err();
        assert_eq!(message(&errno), "mount: permission denied");
        assert_eq!(message(&anyhow::anyhow!("Plain")), "Plain");
    }

    #[test]
    fn json() {
        let json = line(LogFormat::Json, "error", "a \"b\" <c>\nd", "T");
        assert_eq!(json, "{\"level\":\"error\",\"msg\":\"a \\\"b\\\" \\u003cc\\u003e\\nd\",\"time\":\"T\"}\n");
    }
}
