//! Decides whether a canary continues, is promoted, or is rolled back, by comparing its statistics
//! with the active version's over the same period. Pure.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::policy::rollout::config::{Fraction, Thresholds};

/// Fewer messages than this decide nothing.
const LEAST: u64 = 100;

/// The statistics of one version, updated while it runs.
#[derive(Debug, Default)]
pub(in crate::policy) struct StatsRecorder {
    messages: AtomicU64,
    errors: AtomicU64,
    stopped: AtomicU64,
    nanoseconds: AtomicU64,
}

/// A snapshot of the statistics of one version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::policy) struct Stats {
    /// Messages that it was asked about.
    pub(in crate::policy) messages: u64,
    /// Those that it failed on.
    pub(in crate::policy) errors: u64,
    /// Those that it dropped or dead-lettered.
    pub(in crate::policy) stopped: u64,
    /// The total time of its calls.
    pub(in crate::policy) time: Duration,
}

impl StatsRecorder {
    pub(in crate::policy) fn record_messages(&self, messages: usize, time: Duration) {
        self.messages.fetch_add(messages as u64, Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(in crate::policy) fn record_errors(&self, messages: usize) {
        self.errors.fetch_add(messages as u64, Relaxed);
    }

    pub(in crate::policy) fn record_stopped(&self) {
        self.stopped.fetch_add(1, Relaxed);
    }

    pub(in crate::policy) fn snapshot(&self) -> Stats {
        Stats {
            messages: self.messages.load(Relaxed),
            errors: self.errors.load(Relaxed),
            stopped: self.stopped.load(Relaxed),
            time: Duration::from_nanos(self.nanoseconds.load(Relaxed)),
        }
    }
}

impl Stats {
    /// The share of messages that it failed on.
    pub(in crate::policy) fn errors(&self) -> Fraction {
        weight(self.errors, self.messages)
    }

    /// The share of messages that it dropped or dead-lettered.
    pub(in crate::policy) fn drops(&self) -> Fraction {
        weight(self.stopped, self.messages)
    }

    /// The mean time per message.
    pub(in crate::policy) fn latency(&self) -> Duration {
        Duration::from_secs_f64(self.time.as_secs_f64() / self.messages.max(1) as f64)
    }
}

/// What happens to a canary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Analysis {
    /// It is too early to tell, or automatic promotion is off.
    Continue,
    Promote,
    /// It exceeded its budget.
    RollBack(String),
}

/// Decides about a canary that has been running for this time.
pub(in crate::policy) fn analyze(
    active: Stats,
    canary: Stats,
    rollout_result: Duration,
    promote_after: Option<Duration>,
    thresholds: &Thresholds,
) -> Analysis {
    if canary.messages < LEAST {
        return Analysis::Continue;
    }
    if let Some(why) = breach(active, canary, thresholds) {
        return Analysis::RollBack(why);
    }
    match promote_after {
        Some(time) if rollout_result >= time => Analysis::Promote,
        _ => Analysis::Continue,
    }
}

fn breach(active: Stats, canary: Stats, thresholds: &Thresholds) -> Option<String> {
    let errors = canary.errors();
    if errors > thresholds.errors {
        return Some(format!("it failed on {errors} of its messages; the budget is {}", thresholds.errors));
    }
    // The other limits are relative to the active version.
    if active.messages < LEAST {
        return None;
    }
    let more = Fraction(canary.drops().0 - active.drops().0);
    if more > thresholds.drops {
        let drops = (canary.drops(), active.drops());
        let thresholds = thresholds.drops;
        return Some(format!(
            "it stops {} of its messages, the active version {}; the budget is {thresholds} more",
            drops.0, drops.1
        ));
    }
    let (own, other) = (canary.latency(), active.latency());
    if own.as_secs_f64() > other.as_secs_f64() * thresholds.latency {
        let times = thresholds.latency;
        return Some(format!(
            "it takes {own:?} per message, the active version {other:?}; the budget is {times} times that"
        ));
    }
    None
}

fn weight(part: u64, whole: u64) -> Fraction {
    Fraction(part as f64 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn stats(messages: u64, errors: u64, stopped: u64, each: Duration) -> Stats {
        Stats { messages, errors, stopped, time: each * u32::try_from(messages).unwrap() }
    }

    fn usual(messages: u64) -> Stats {
        stats(messages, 0, messages / 10, Duration::from_micros(1))
    }

    fn judged(canary: Stats) -> Analysis {
        analyze(usual(1000), canary, LONG, Some(LONG), &Thresholds::default())
    }

    #[test]
    fn each_breach_is_named() {
        let why = |canary: Stats| match judged(canary) {
            Analysis::RollBack(why) => why,
            other => panic!("{other:?}"),
        };
        let micro = Duration::from_micros(1);
        assert!(why(stats(100, 2, 10, micro)).contains("failed on 2%"));
        assert!(why(stats(100, 0, 16, micro)).contains("stops 16% of its messages, the active version 10%"));
        assert!(why(stats(100, 0, 10, micro * 4)).contains("takes 4µs"));
        assert_eq!(judged(stats(100, 1, 15, micro * 3)), Analysis::Promote);
    }

    #[test]
    fn too_few_messages_decide_nothing() {
        assert_eq!(judged(stats(99, 99, 0, LONG)), Analysis::Continue);
        let nothing = Stats::default();
        let slow = stats(100, 0, 100, Duration::from_secs(1));
        assert_eq!(analyze(nothing, slow, LONG, None, &Thresholds::default()), Analysis::Continue);
    }

    proptest! {
        #[test]
        fn an_equal_canary_is_never_rolled_back(messages in 100_u64..1_000_000, rollout_result in 0_u64..10_000) {
            let judgement = analyze(usual(messages), usual(messages), Duration::from_secs(rollout_result), Some(LONG), &Thresholds::default());
            let expected = if rollout_result >= 3600 { Analysis::Promote } else { Analysis::Continue };
            prop_assert_eq!(judgement, expected);
        }

        #[test]
        fn more_errors_never_improve_the_analysis(errors in 0_u64..100, more in 0_u64..100) {
            let abandoned = |errors: u64| matches!(judged(stats(1000, errors, 100, Duration::from_micros(1))), Analysis::RollBack(_));
            prop_assert!(!abandoned(errors) || abandoned(errors + more));
        }
    }
}
