//! How long revoked partitions may take to drain. Pure.
//!
//! librdkafka fetches nothing for any partition while one is being revoked
//! (`rd_kafka_rebalance_op_incr` pauses them all until the application releases it), so a long
//! drain stalls the remaining partitions. A drain that makes progress may last until the deadline.
//! One that is stalled, by a comet that does not answer or an unreachable Redis, is cut short; the
//! partition's next owner delivers those records again.

use std::time::{Duration, Instant};

/// A drain is cut short when no record has been settled for this long.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The timeout of one drain.
#[derive(Debug)]
pub(super) struct DrainTimeout {
    deadline: Instant,
    unsettled: usize,
    moved: Instant,
}

impl DrainTimeout {
    /// For a drain that starts now with this many unsettled records.
    pub(super) fn new(now: Instant, at_most: Duration, unsettled: usize) -> Self {
        Self { deadline: now + at_most, unsettled, moved: now }
    }

    /// How much longer to wait with this many unsettled records; `None` when the drain has timed out.
    pub(super) fn left(&mut self, now: Instant, unsettled: usize) -> Option<Duration> {
        if unsettled != self.unsettled {
            self.unsettled = unsettled;
            self.moved = now;
        }
        let until = self.deadline.min(self.moved + STALL_TIMEOUT);
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

/// The group waits while revoked partitions are drained. The deadline is less than half of the
/// session timeout, so a slow drain does not look like a dead member.
pub(super) fn drain_deadline(session_timeout: Duration) -> Duration {
    session_timeout.mul_f64(0.4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn a_drain_with_progress_lasts_until_the_deadline() {
        let start = Instant::now();
        let mut drain_timeout = DrainTimeout::new(start, STALL_TIMEOUT * 3, 10);
        for step in 1..10 {
            let now = start + STALL_TIMEOUT * step / 2;
            let left = drain_timeout.left(now, 10 - step as usize);
            assert_eq!(left.is_some(), step < 6, "step {step}: {left:?}");
        }
    }

    #[test]
    fn a_stalled_drain_is_cut_short() {
        let start = Instant::now();
        let mut drain_timeout = DrainTimeout::new(start, STALL_TIMEOUT * 10, 10);
        assert_eq!(drain_timeout.left(start + STALL_TIMEOUT - MILLI, 10), Some(MILLI));
        assert_eq!(drain_timeout.left(start + STALL_TIMEOUT - MILLI, 9), Some(STALL_TIMEOUT));
        assert_eq!(drain_timeout.left(start + STALL_TIMEOUT * 2, 9), None);
    }
}
