//! Decides whether a canary continues, is promoted, or is rolled back, by comparing its statistics
//! with the active version's over the same period. Pure.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::policy::rollout::config::{Budget, Share};

/// Fewer messages than this decide nothing.
const LEAST: u64 = 100;

/// The statistics of one version, updated while it runs.
#[derive(Debug, Default)]
pub(in crate::policy) struct Tally {
    messages: AtomicU64,
    errors: AtomicU64,
    stopped: AtomicU64,
    nanoseconds: AtomicU64,
}

/// A snapshot of the statistics of one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Deeds {
    /// Messages that it was asked about.
    pub(in crate::policy) messages: u64,
    /// Those that it failed on.
    pub(in crate::policy) errors: u64,
    /// Those that it dropped or dead-lettered.
    pub(in crate::policy) stopped: u64,
    /// The total time of its calls.
    pub(in crate::policy) time: Duration,
}

impl Tally {
    pub(in crate::policy) fn asked(&self, messages: usize, time: Duration) {
        self.messages.fetch_add(messages as u64, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(in crate::policy) fn failed(&self, messages: usize) {
        self.errors.fetch_add(messages as u64, Relaxed);
    }

    pub(in crate::policy) fn stopped(&self) {
        self.stopped.fetch_add(1, Relaxed);
    }

    pub(in crate::policy) fn read(&self) -> Deeds {
        Deeds {
            messages: self.messages.load(Relaxed),
            errors: self.errors.load(Relaxed),
            stopped: self.stopped.load(Relaxed),
            time: Duration::from_nanos(self.nanoseconds.load(Relaxed)),
        }
    }
}

impl Deeds {
    /// The share of messages that it failed on.
    pub(in crate::policy) fn errors(&self) -> Share {
        share(self.errors, self.messages)
    }

    /// The share of messages that it dropped or dead-lettered.
    pub(in crate::policy) fn drops(&self) -> Share {
        share(self.stopped, self.messages)
    }

    /// The mean time per message.
    pub(in crate::policy) fn latency(&self) -> Duration {
        Duration::from_secs_f64(self.time.as_secs_f64() / self.messages.max(1) as f64)
    }
}

/// What happens to a canary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Judgement {
    /// It is too early to tell, or automatic promotion is off.
    GoOn,
    Promote,
    /// It exceeded its budget.
    Abandon(String),
}

/// Decides about a canary that has been running for this time.
pub(in crate::policy) fn judge(
    active: Deeds,
    canary: Deeds,
    tried: Duration,
    promote_after: Option<Duration>,
    budget: &Budget,
) -> Judgement {
    if canary.messages < LEAST {
        return Judgement::GoOn;
    }
    if let Some(why) = breach(active, canary, budget) {
        return Judgement::Abandon(why);
    }
    match promote_after {
        Some(time) if tried >= time => Judgement::Promote,
        _ => Judgement::GoOn,
    }
}

fn breach(active: Deeds, canary: Deeds, budget: &Budget) -> Option<String> {
    let errors = canary.errors();
    if errors > budget.errors {
        return Some(format!("it failed on {errors} of its messages; the budget is {}", budget.errors));
    }
    // The other limits are relative to the active version.
    if active.messages < LEAST {
        return None;
    }
    let more = Share(canary.drops().0 - active.drops().0);
    if more > budget.drops {
        let drops = (canary.drops(), active.drops());
        let budget = budget.drops;
        return Some(format!(
            "it stops {} of its messages, the active version {}; the budget is {budget} more",
            drops.0, drops.1
        ));
    }
    let (own, other) = (canary.latency(), active.latency());
    if own.as_secs_f64() > other.as_secs_f64() * budget.latency {
        let times = budget.latency;
        return Some(format!(
            "it takes {own:?} per message, the active version {other:?}; the budget is {times} times that"
        ));
    }
    None
}

fn share(part: u64, whole: u64) -> Share {
    Share(part as f64 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn deeds(messages: u64, errors: u64, stopped: u64, each: Duration) -> Deeds {
        Deeds { messages, errors, stopped, time: each * u32::try_from(messages).unwrap() }
    }

    fn usual(messages: u64) -> Deeds {
        deeds(messages, 0, messages / 10, Duration::from_micros(1))
    }

    fn judged(canary: Deeds) -> Judgement {
        judge(usual(1000), canary, LONG, Some(LONG), &Budget::default())
    }

    #[test]
    fn each_breach_is_named() {
        let why = |canary: Deeds| match judged(canary) {
            Judgement::Abandon(why) => why,
            other => panic!("{other:?}"),
        };
        let micro = Duration::from_micros(1);
        assert!(why(deeds(100, 2, 10, micro)).contains("failed on 2%"));
        assert!(why(deeds(100, 0, 16, micro)).contains("stops 16% of its messages, the active version 10%"));
        assert!(why(deeds(100, 0, 10, micro * 4)).contains("takes 4µs"));
        assert_eq!(judged(deeds(100, 1, 15, micro * 3)), Judgement::Promote);
    }

    #[test]
    fn without_measure_there_is_no_judgement() {
        assert_eq!(judged(deeds(99, 99, 0, LONG)), Judgement::GoOn);
        let nothing = Deeds::default();
        let slow = deeds(100, 0, 100, Duration::from_secs(1));
        assert_eq!(judge(nothing, slow, LONG, None, &Budget::default()), Judgement::GoOn);
    }

    proptest! {
        #[test]
        fn what_does_as_the_active_version_does_is_never_abandoned(messages in 100_u64..1_000_000, tried in 0_u64..10_000) {
            let judgement = judge(usual(messages), usual(messages), Duration::from_secs(tried), Some(LONG), &Budget::default());
            let expected = if tried >= 3600 { Judgement::Promote } else { Judgement::GoOn };
            prop_assert_eq!(judgement, expected);
        }

        #[test]
        fn worse_is_never_judged_better(errors in 0_u64..100, more in 0_u64..100) {
            let abandoned = |errors: u64| matches!(judged(deeds(1000, errors, 100, Duration::from_micros(1))), Judgement::Abandon(_));
            prop_assert!(!abandoned(errors) || abandoned(errors + more));
        }
    }
}
