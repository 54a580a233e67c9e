//! Signal names and numbers, as `kill` and stop signals spell them.

use nix::sys::signal::Signal;

/// The C library keeps the first two real-time signals for itself.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number that `text` means: `15`, `TERM`, `term`, `SIGTERM`, `RTMIN+3`, `SIGRTMAX-1`.
/// `0` asks only whether the process is there. `None` where it is no signal.
pub fn parse(text: &str) -> Option<i32> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return text.parse().ok().filter(|n| (0..=RTMAX).contains(n));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(RTMIN, offset, '+');
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(RTMAX, offset, '-');
    }
    let signal = match name {
        "IOT" => Signal::SIGABRT,
        "CLD" => Signal::SIGCHLD,
        "POLL" => Signal::SIGIO,
        _ => format!("SIG{name}").parse().ok()?,
    };
    Some(signal as i32)
}

fn real_time(base: i32, offset: &str, sign: char) -> Option<i32> {
    if offset.is_empty() {
        return Some(base);
    }
    let n: u8 = offset.strip_prefix(sign)?.parse().ok()?;
    let n = i32::from(n);
    let number = if sign == '+' { base + n } else { base - n };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_and_numbers() {
        for text in ["15", "TERM", "term", "SIGTERM", "sigterm", "SigTerm"] {
            assert_eq!(parse(text), Some(15), "{text}");
        }
        assert_eq!(parse("0"), Some(0));
        assert_eq!(parse("KILL"), Some(9));
        assert_eq!(parse("IOT"), parse("ABRT"));
        assert_eq!(parse("CLD"), Some(17));
        assert_eq!(parse("STKFLT"), Some(16));
        assert_eq!(parse("SYS"), Some(31));
    }

    #[test]
    fn real_time_signals() {
        assert_eq!(parse("RTMIN"), Some(34));
        assert_eq!(parse("SIGRTMIN+3"), Some(37));
        assert_eq!(parse("rtmax-1"), Some(63));
        assert_eq!(parse("RTMAX"), Some(64));
        assert_eq!(parse("RTMIN+31"), None);
        assert_eq!(parse("RTMAX-31"), None);
        assert_eq!(parse("RTMIN-1"), None);
        assert_eq!(parse("RTMIN+-1"), None);
    }

    #[test]
    fn no_signals() {
        for text in ["", "SIG", "FOO", "-9", "65", "9x", "SIGSIGTERM", "99999999999999999999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
