//! Parses and formats times for people, and converts them to the milliseconds since 1970-01-01 UTC of
//! records.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The first millisecond of the year 10000, which RFC 3339 cannot express.
const FIRST_UNWRITTEN_MS: u64 = 253_402_300_800_000;

/// A time that was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidTime {
    #[error("too long ago")]
    TooLongAgo,
    #[error("neither a UTC time (2026-01-31T12:00:00Z, 2026-01-31), nor `now`, nor an age (90m, -2days)")]
    Malformed,
}

/// A UTC time or date: `2026-01-31T12:00:00Z`, `2026-01-31`.
pub(crate) fn parse_date(text: &str) -> Option<SystemTime> {
    let midnight = format!("{text}T00:00:00Z");
    humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339_weak(&midnight)).ok()
}

/// Parses a time from the command line: a date as for [`parse_date`], `now`, or an age (`90m`,
/// `-90m`).
///
/// # Errors
/// Lists the accepted forms.
pub(crate) fn parse(text: &str) -> Result<SystemTime, InvalidTime> {
    let now = SystemTime::now();
    if text == "now" {
        return Ok(now);
    }
    if let Ok(age) = humantime::parse_duration(text.strip_prefix('-').unwrap_or(text)) {
        return now.checked_sub(age).ok_or(InvalidTime::TooLongAgo);
    }
    parse_date(text).ok_or(InvalidTime::Malformed)
}

/// Milliseconds since 1970; 0 for earlier times.
pub(crate) fn to_ms(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// The same in the type of a record's timestamp.
pub(crate) fn to_record_ms(time: SystemTime) -> i64 {
    i64::try_from(to_ms(time)).unwrap_or(i64::MAX)
}

/// The present time, as [`to_ms`] gives it.
pub(crate) fn now_ms() -> u64 {
    to_ms(SystemTime::now())
}

/// The present time, as [`to_record_ms`] gives it.
pub(crate) fn now_record_ms() -> i64 {
    to_record_ms(SystemTime::now())
}

/// A duration in milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The same in the type of a record's timestamp.
pub(crate) fn record_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Formats a time for people; `None` before 1970 and after the year 9999.
pub(crate) fn format_ms(ms: i64) -> Option<String> {
    let ms = u64::try_from(ms).ok().filter(|ms| *ms < FIRST_UNWRITTEN_MS)?;
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(ms))?;
    Some(humantime::format_rfc3339_millis(time).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_as_people_write_them() {
        let at = |text| parse(text).map(to_record_ms);
        assert_eq!(at("1970-01-01T00:00:01Z"), Ok(1_000));
        assert_eq!(at("1970-01-01 00:00:01"), Ok(1_000));
        assert_eq!(at("1970-01-02"), Ok(86_400_000));
        let now = to_record_ms(SystemTime::now());
        let about = |at: i64| (at - 60_000)..(at + 60_000);
        assert!(at("now").is_ok_and(|at| about(now).contains(&at)));
        for age in ["2h", "-2h"] {
            assert!(at(age).is_ok_and(|at| about(now - 7_200_000).contains(&at)), "{age}");
        }
        for wrong in ["yesterday", "-moon", "", "-now", "--2h"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_no_calendar_has_is_not_written() {
        assert_eq!(format_ms(1).as_deref(), Some("1970-01-01T00:00:00.001Z"));
        assert_eq!(format_ms(253_402_300_799_999).as_deref(), Some("9999-12-31T23:59:59.999Z"));
        assert_eq!((format_ms(-1), format_ms(253_402_300_800_000), format_ms(i64::MAX)), (None, None, None));
        assert_eq!(to_ms(UNIX_EPOCH - Duration::from_secs(1)), 0);
    }
}
