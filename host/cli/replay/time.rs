//! Times as people write them, and the range between two of them.

use std::time::{Duration, SystemTime};

use humantime_serde::re::humantime;

/// How late a record may come into its topic and still be found: reading ends at the first
/// record that is so much younger than the end of the range.
const LATE: Duration = Duration::from_secs(3600);

/// From a time, to before another one; in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) from_ms: i64,
    pub(super) to_ms: i64,
    /// Where reading a topic in order of time may end.
    pub(super) stop_ms: i64,
}

impl Range {
    /// # Errors
    /// When there can be nothing between the times.
    pub(super) fn of(from: SystemTime, to: SystemTime) -> anyhow::Result<Self> {
        let now = SystemTime::now();
        for (time, flag) in [(from, "--from"), (to, "--to")] {
            let written = humantime::format_rfc3339_seconds(time);
            anyhow::ensure!(time <= now, "{flag} ({written}) lies in the future; nothing is recorded yet");
        }
        anyhow::ensure!(
            from < to,
            "--from ({}) does not lie before --to ({})",
            humantime::format_rfc3339_seconds(from),
            humantime::format_rfc3339_seconds(to)
        );
        let (from_ms, to_ms) = (milliseconds(from), milliseconds(to));
        Ok(Self { from_ms, to_ms, stop_ms: to_ms.saturating_add(LATE.as_millis() as i64) })
    }

    /// Whether a record of this time belongs to it; one without a time does.
    pub(super) fn contains(&self, at_ms: Option<i64>) -> bool {
        at_ms.is_none_or(|at| (self.from_ms..self.to_ms).contains(&at))
    }
}

/// A time as it may stand on the command line.
pub(super) fn time(text: &str) -> Result<SystemTime, String> {
    let now = SystemTime::now();
    if text == "now" {
        return Ok(now);
    }
    if let Some(age) = text.strip_prefix('-') {
        let age = humantime::parse_duration(age).map_err(|error| format!("no length of time: {error}"))?;
        return now.checked_sub(age).ok_or_else(|| "too long ago".to_owned());
    }
    let midnight = format!("{text}T00:00:00Z");
    humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339_weak(&midnight)).map_err(|_| {
        "neither a UTC time (2026-01-31T12:00:00Z, 2026-01-31), nor `now`, nor so long ago (-90m, -2days)"
            .to_owned()
    })
}

pub(super) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let at = |text| time(text).map(milliseconds);
        assert_eq!(at("1970-01-01T00:00:01Z"), Ok(1_000));
        assert_eq!(at("1970-01-02"), Ok(86_400_000));
        let now = milliseconds(SystemTime::now());
        let about = |at: i64| (at - 60_000)..(at + 60_000);
        assert!(at("now").is_ok_and(|at| about(now).contains(&at)));
        assert!(at("-2h").is_ok_and(|at| about(now - 7_200_000).contains(&at)));
        for wrong in ["yesterday", "2h", "-moon", ""] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_range_that_cannot_hold_anything_is_explained() {
        let said = |from, to| Range::of(time(from).unwrap(), time(to).unwrap()).unwrap_err().to_string();
        assert!(said("-1h", "-2h").contains("does not lie before"));
        assert!(said("-1h", "2999-01-01").contains("--to (2999-01-01T00:00:00Z) lies in the future"));
        let range =
            Range::of(time("1970-01-01T00:00:01Z").unwrap(), time("1970-01-01T00:00:02Z").unwrap()).unwrap();
        assert!(range.contains(Some(1_000)) && !range.contains(Some(2_000)) && range.contains(None));
    }
}
