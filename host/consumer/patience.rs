//! How long partitions that go elsewhere may take to finish what was begun on them. Pure.
//!
//! librdkafka fetches nothing for any partition while one is being taken away
//! (`rd_kafka_rebalance_op_incr` pauses them all until the application lets go), so the
//! partitions that stay pay for a long drain. Work that moves is waited for until the deadline;
//! work that stands still, at a comet that does not answer or a Redis that is away, is not: it
//! is delivered again by the partition's next owner.

use std::time::{Duration, Instant};

/// For how long nothing may have been settled until a drain is given up.
const STANDSTILL: Duration = Duration::from_secs(1);

/// The patience of one drain.
#[derive(Debug)]
pub(super) struct Patience {
    deadline: Instant,
    unsettled: usize,
    moved: Instant,
}

impl Patience {
    /// For a drain that begins now with so many unsettled records.
    pub(super) fn new(now: Instant, at_most: Duration, unsettled: usize) -> Self {
        Self { deadline: now + at_most, unsettled, moved: now }
    }

    /// For how much longer to wait with this many records unsettled; `None` when it is over.
    pub(super) fn left(&mut self, now: Instant, unsettled: usize) -> Option<Duration> {
        if unsettled != self.unsettled {
            self.unsettled = unsettled;
            self.moved = now;
        }
        let until = self.deadline.min(self.moved + STANDSTILL);
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn work_that_moves_is_waited_for_until_the_deadline() {
        let start = Instant::now();
        let mut patience = Patience::new(start, STANDSTILL * 3, 10);
        for step in 1..10 {
            let now = start + STANDSTILL * step / 2;
            let left = patience.left(now, 10 - step as usize);
            assert_eq!(left.is_some(), step < 6, "step {step}: {left:?}");
        }
    }

    #[test]
    fn work_that_stands_still_is_given_up_early() {
        let start = Instant::now();
        let mut patience = Patience::new(start, STANDSTILL * 10, 10);
        assert_eq!(patience.left(start + STANDSTILL - MILLI, 10), Some(MILLI));
        assert_eq!(patience.left(start + STANDSTILL - MILLI, 9), Some(STANDSTILL));
        assert_eq!(patience.left(start + STANDSTILL * 2, 9), None);
    }
}
