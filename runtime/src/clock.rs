//! Times as text: RFC 3339 in UTC, the form of records and log lines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time now, as [`rfc3339_nano`].
pub fn now() -> String {
    rfc3339_nano(SystemTime::now())
}

/// `2026-11-21T03:10:50Z`.
pub fn rfc3339(time: SystemTime) -> String {
    text(time.duration_since(UNIX_EPOCH).unwrap_or_default(), false)
}

/// `2026-11-21T03:10:50.25Z`: nanoseconds without trailing zeros, as Go's RFC3339Nano.
pub fn rfc3339_nano(time: SystemTime) -> String {
    text(time.duration_since(UNIX_EPOCH).unwrap_or_default(), true)
}

fn text(since_epoch: Duration, nano: bool) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nano && since_epoch.subsec_nanos() > 0 {
        let fraction = format!(".{:09}", since_epoch.subsec_nanos());
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// Year, month, day of a day counted from 1970-01-01, by eras of 400 years that begin in March,
/// so that a leap day is the last of its year.
fn date(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let first = (153 * month + 2) / 5;
    let (january_on, month) = if month < 10 { (0, month + 3) } else { (1, month - 9) };
    (era * 400 + year + january_on, month, day - first + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(58), (1970, 2, 28));
        assert_eq!(date(59), (1970, 3, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(19_722), (2023, 12, 31));
        assert_eq!(date(19_723), (2024, 1, 1));
        assert_eq!(date(47_540), (2100, 2, 28));
        assert_eq!(date(47_541), (2100, 3, 1));
    }

    #[test]
    fn fractions() {
        let at = |nanos| UNIX_EPOCH + Duration::new(1_795_230_650, nanos);
        assert_eq!(rfc3339(at(5)), "2026-11-21T03:10:50Z");
        assert_eq!(rfc3339_nano(at(0)), "2026-11-21T03:10:50Z");
        assert_eq!(rfc3339_nano(at(250_000_000)), "2026-11-21T03:10:50.25Z");
        assert_eq!(rfc3339_nano(at(1)), "2026-11-21T03:10:50.000000001Z");
    }
}
