//! Exponential back-off with jitter: the bound doubles with every consecutive failure, and the wait is
//! between half of the bound and the whole of it, so that many callers do not retry at the same time.
//!
//! Pure: the random number is an argument, and the caller sleeps.

use std::time::Duration;

/// More doublings than between any two bounds.
const DOUBLINGS: u32 = 20;

/// Waits that grow with each failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// The bound is `first` after one failure, and at most `longest`.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The wait after one more failure. `dice` is from 0 to 1.
    pub(crate) fn next_wait(&mut self, dice: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.wait_after(self.failures, dice)
    }

    /// The wait after this many consecutive failures (1 or more), for callers that count them.
    pub(crate) fn wait_after(&self, failures: u32, dice: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(DOUBLINGS));
        doubled.min(self.longest).mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0)
    }

    /// Records a success: the next failure counts as the first.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);

    #[test]
    fn waits_double_up_to_the_longest_and_begin_again() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        let waits: Vec<_> = (0..7).map(|_| backoff.next_wait(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(backoff.next_wait(0.0), LONGEST / 2);
        backoff.reset();
        assert_eq!(backoff.next_wait(1.0), FIRST);
        let odd = Backoff::new(LONGEST, FIRST);
        assert_eq!(odd.wait_after(1, 1.0), FIRST, "never more than the longest");
    }

    proptest! {
        #[test]
        fn waits_grow_and_are_bounded(failures in 1u32.., dice in 0.0..=1.0f64) {
            let backoff = Backoff::new(FIRST, LONGEST);
            let bound = backoff.wait_after(failures, 1.0);
            prop_assert!((bound / 2..=bound).contains(&backoff.wait_after(failures, dice)));
            prop_assert!(bound <= backoff.wait_after(failures.saturating_add(1), 1.0));
            prop_assert!(bound <= LONGEST);
        }
    }
}
