//! The time of log lines and records.

// Not rustix's: it takes for granted what some kernels' vDSO lacks (User-Mode Linux), and panics.
use nix::time::{ClockId, clock_gettime};
use std::time::{SystemTime, UNIX_EPOCH};

/// The length of [`rfc3339`].
pub const RFC3339: usize = 30;

/// Nanoseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Milliseconds that never go back: for deadlines, which an upgrade carries over.
pub fn monotonic_ms() -> u64 {
    // It fails only for a clock that there is not.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| now.tv_sec() as u64 * 1000 + now.tv_nsec() as u64 / 1_000_000)
}

/// `2006-01-02T15:04:05.000000000Z`.
pub fn rfc3339(nanoseconds: u64) -> [u8; RFC3339] {
    let (seconds, nanos) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let (year, month, day) = date(seconds / 86_400);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let mut put = |at: usize, digits: usize, mut value: u64| {
        for i in (at..at + digits).rev() {
            text[i] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, seconds / 3600 % 24);
    put(14, 2, seconds / 60 % 60);
    put(17, 2, seconds % 60);
    put(20, 9, nanos);
    text
}

/// [`rfc3339`] as a string.
pub fn text(nanoseconds: u64) -> String {
    rfc3339(nanoseconds).iter().map(|byte| char::from(*byte)).collect()
}

/// The day of the Gregorian calendar, counted in years that begin in March: the leap day is their last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (m, d) = (if month < 10 { month + 3 } else { month - 9 }, day - (153 * month + 2) / 5 + 1);
    (era * 400 + year + u64::from(m <= 2), m, d)
}

#[cfg(test)]
mod tests {
    #[test]
    fn moments() {
        let text = |seconds: u64, nanos: u64| super::text(seconds * 1_000_000_000 + nanos);
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(1_735_689_599, 999_999_999), "2024-12-31T23:59:59.999999999Z");
        assert_eq!(text(4_107_542_400, 120_000_000), "2100-03-01T00:00:00.120000000Z");
    }
}
