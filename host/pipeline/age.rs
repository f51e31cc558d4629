//! Decides which records are too old to be delivered. Pure.

use std::time::{Duration, SystemTime};

use crate::message::Record;
use crate::time::to_record_ms;

/// The age limit at one point in time: one clock reading per batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct AgeLimit(Option<i64>);

impl AgeLimit {
    /// Records older than `max_age` are too old; zero disables the limit.
    pub(super) fn of(max_age: Duration, now: SystemTime) -> Self {
        let limit = || {
            let oldest = now.checked_sub(max_age)?;
            (oldest >= SystemTime::UNIX_EPOCH).then(|| to_record_ms(oldest))
        };
        Self(if max_age.is_zero() { None } else { limit() })
    }

    /// Whether a record is too old. Records without a timestamp are not, and neither are redriven
    /// ones: these carry a proven message id.
    pub(super) fn excludes(self, record: &Record) -> bool {
        let old = matches!((self.0, record.timestamp_ms), (Some(limit), Some(at)) if at < limit);
        old && record.trusted_id().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Header, MESSAGE_ID, Origin};

    #[test]
    fn only_records_with_a_timestamp_can_be_too_old() {
        let record = |timestamp_ms| Record {
            origin: Origin { topic: "push".into(), partition: 0, offset: 0 },
            timestamp_ms,
            key: None,
            value: None,
            headers: Vec::new(),
            trusted: false,
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let minute = AgeLimit::of(Duration::from_secs(60), now);
        assert!(minute.excludes(&record(Some(39_999))));
        assert!(!minute.excludes(&record(Some(40_000))));
        assert!(!minute.excludes(&record(Some(200_000))), "a producer's clock may be ahead");
        assert!(!minute.excludes(&record(None)));
        let redriven = Header { name: MESSAGE_ID.into(), value: Some("push/0/7".into()) };
        let claimed = Record { headers: vec![redriven], ..record(Some(0)) };
        assert!(minute.excludes(&claimed), "without a proof, any producer may have written that");
        assert!(!minute.excludes(&Record { trusted: true, ..claimed }));
        for any in [Duration::ZERO, Duration::from_secs(200)] {
            assert!(!AgeLimit::of(any, now).excludes(&record(Some(0))), "{any:?}");
        }
    }
}
