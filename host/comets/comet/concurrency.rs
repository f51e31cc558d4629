//! How many calls, or streamed messages, to one comet may be in flight.
//!
//! Pure: times come as arguments. More calls than a comet works on at a time only wait at the comet,
//! until their deadlines pass although it works as fast as it can. So the limit follows what the comet
//! shows: it grows by a quarter with each round of calls that are answered soon, and is halved when
//! calls miss their deadlines. A comet behind a network with latency gets as many calls as its queue
//! holds within a few round trips; one that is short of CPU keeps a few.

use std::time::{Duration, Instant};

/// How many calls are always allowed.
const MIN: f64 = 8.0;
/// How many are allowed at first.
const START: f64 = 32.0;
/// The HTTP/2 stream limit of most servers is lower.
const MAX: f64 = 1024.0;
/// How much of the limit is added with each round of calls.
const GROWTH: f64 = 0.25;
/// The same for messages of a stream: an acknowledgement costs less than an answer, and the comet's
/// credit is a limit as well. A comet that takes 100 messages per second, which is the least that is
/// wanted of it, acknowledges the first ones in time.
const MIN_MESSAGES: f64 = 8.0;
const START_MESSAGES: f64 = 128.0;
const MAX_MESSAGES: f64 = 1_000_000.0;
const MESSAGE_GROWTH: f64 = 1.0;
/// An answer is soon within this part of the deadline, and late beyond twice that.
const SOON: u32 = 8;

/// The limit of one comet.
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    limit: f64,
    least: f64,
    most: f64,
    growth: f64,
    soon: Duration,
    /// When it was last lowered; once in a round of calls is enough.
    lowered: Option<Instant>,
}

impl ConcurrencyLimit {
    /// For calls with this deadline.
    pub(super) fn new(request_timeout: Duration) -> Self {
        let soon = request_timeout / SOON;
        Self { limit: START, least: MIN, most: MAX, growth: GROWTH, soon, lowered: None }
    }

    /// For the messages of a stream, with this deadline for their acknowledgements.
    pub(super) fn of_messages(request_timeout: Duration) -> Self {
        let (least, most, growth) = (MIN_MESSAGES, MAX_MESSAGES, MESSAGE_GROWTH);
        Self { limit: START_MESSAGES, least, most, growth, ..Self::new(request_timeout) }
    }

    /// Whether another call may start.
    pub(super) fn allows(&self, in_flight: usize) -> bool {
        in_flight < self.limit as usize
    }

    /// The comet answered a call after this time.
    pub(super) fn answered(&mut self, took: Duration, now: Instant) {
        self.answered_many(1, took, now);
    }

    /// The comet acknowledged this many messages; the oldest after this time.
    pub(super) fn answered_many(&mut self, count: usize, took: Duration, now: Instant) {
        if took <= self.soon {
            self.limit = (self.limit + self.growth * count as f64).min(self.most);
        } else if took > self.soon * 2 {
            self.lower(0.9, took, now);
        }
    }

    /// A call missed its deadline.
    pub(super) fn timed_out(&mut self, took: Duration, now: Instant) {
        self.lower(0.5, took, now);
    }

    fn lower(&mut self, factor: f64, took: Duration, now: Instant) {
        // What started before the last change says nothing about it.
        if self.lowered.is_none_or(|lowered| now.saturating_duration_since(lowered) >= took) {
            self.limit = (self.limit * factor).max(self.least);
            self.lowered = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEADLINE: Duration = Duration::from_secs(2);

    /// The limit after rounds with a comet that works on `at_once` calls at a time, `each` for this long.
    fn after(rounds: usize, at_once: usize, each: Duration) -> usize {
        let (mut limit, mut now) = (ConcurrencyLimit::new(DEADLINE), Instant::now());
        for _ in 0..rounds {
            let calls = limit.limit as usize;
            let round = each * u32::try_from(calls.div_ceil(at_once)).expect("few");
            now += round;
            for _ in 0..calls {
                if round > DEADLINE {
                    limit.timed_out(DEADLINE, now);
                } else {
                    limit.answered(round, now);
                }
            }
        }
        limit.limit as usize
    }

    #[test]
    fn latency_limits_nothing_and_a_lack_of_cpu_does() {
        assert_eq!(after(30, usize::MAX, Duration::from_millis(2)), MAX as usize);
        let busy = after(200, 1, Duration::from_millis(10));
        assert!((8..=60).contains(&busy), "half a second of work at most: {busy}");
        assert_eq!(after(200, 1, DEADLINE * 2), MIN as usize);
    }

    proptest! {
        #[test]
        fn it_stays_between_its_bounds(answers in proptest::collection::vec((any::<bool>(), 0u64..3000), 0..300)) {
            let (mut limit, mut now) = (ConcurrencyLimit::new(DEADLINE), Instant::now());
            for (timed_out, took) in answers {
                let took = Duration::from_millis(took);
                now += took / 2;
                if timed_out { limit.timed_out(took, now) } else { limit.answered(took, now) }
                prop_assert!((MIN..=MAX).contains(&limit.limit) && limit.allows(7) && !limit.allows(1024));
            }
        }
    }
}
