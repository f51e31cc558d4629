//! The range between two times.

use std::time::{Duration, SystemTime};

use crate::time::to_record_ms;

/// How much later than its timestamp a record may have been written and still be found: reading ends
/// at the first record that is this much newer than the end of the range.
const LATE: Duration = Duration::from_secs(3600);

/// A range of times, in milliseconds since 1970; its end is exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TimeRange {
    pub(super) from_ms: i64,
    pub(super) to_ms: i64,
    /// Where reading an ordered topic may end.
    pub(super) stop_ms: i64,
}

impl TimeRange {
    /// # Errors
    /// When the range is empty or in the future.
    pub(super) fn of(from: SystemTime, to: SystemTime) -> anyhow::Result<Self> {
        let now = SystemTime::now();
        for (time, flag) in [(from, "--from"), (to, "--to")] {
            let written = humantime::format_rfc3339_seconds(time);
            anyhow::ensure!(time <= now, "{flag} ({written}) is in the future; nothing is recorded yet");
        }
        anyhow::ensure!(
            from < to,
            "--from ({}) is not before --to ({})",
            humantime::format_rfc3339_seconds(from),
            humantime::format_rfc3339_seconds(to)
        );
        let (from_ms, to_ms) = (to_record_ms(from), to_record_ms(to));
        Ok(Self { from_ms, to_ms, stop_ms: to_ms.saturating_add(LATE.as_millis() as i64) })
    }

    /// Whether a record with this timestamp is in the range; one without a timestamp is.
    pub(super) fn contains(&self, at_ms: Option<i64>) -> bool {
        at_ms.is_none_or(|at| (self.from_ms..self.to_ms).contains(&at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::parse as time;

    #[test]
    fn a_range_that_cannot_hold_anything_is_explained() {
        let said = |from, to| TimeRange::of(time(from).unwrap(), time(to).unwrap()).unwrap_err().to_string();
        assert!(said("-1h", "-2h").contains("is not before"));
        assert!(said("-1h", "2999-01-01").contains("--to (2999-01-01T00:00:00Z) is in the future"));
        let range =
            TimeRange::of(time("1970-01-01T00:00:01Z").unwrap(), time("1970-01-01T00:00:02Z").unwrap())
                .unwrap();
        assert!(range.contains(Some(1_000)) && !range.contains(Some(2_000)) && range.contains(None));
    }
}
