//! Whether a call is expected to be short.
//!
//! A worker's thread also runs other tasks. Handing those to another thread for the duration of a call
//! costs more than most calls, so it is done only for calls that may take long: those that start an
//! instance, those of plugins with a long deadline, and those of plugins that were slow recently. What
//! this cannot foresee, a quick plugin that loops, costs the other tasks one deadline.
//!
//! Pure.

use std::time::Duration;

use crate::wasm::metrics::HookKind;

/// The longest call that other tasks wait for.
const SHORT: Duration = Duration::from_millis(1);
/// The longest deadline with which a call may turn out to be long.
const MAX_DEADLINE: Duration = Duration::from_millis(100);
/// A smaller call counts as one of this size: its time is mostly the cost of any call.
const LEAST_ITEMS: usize = 16;
/// How much slower than its last calls a plugin is taken for. It forgets one slow call in a few dozen.
const DECAY: f64 = 0.9;

/// The kind of a call and its number of messages, connections or recipients.
#[derive(Clone, Copy)]
pub(super) struct CallSize {
    hook: HookKind,
    items: usize,
}

/// How long one plugin takes, by hook. One worker's.
#[derive(Debug, Default)]
pub(super) struct CallPace {
    /// Seconds per item; zero before the first call.
    each: [f64; HookKind::ALL.len()],
}

impl CallSize {
    pub(super) fn of(hook: HookKind, items: usize) -> Self {
        Self { hook, items: items.max(LEAST_ITEMS) }
    }
}

impl CallPace {
    /// Whether a call is expected to be short, with this deadline.
    pub(super) fn is_short(&self, size: CallSize, deadline: Duration) -> bool {
        let each = self.each[size.hook as usize];
        each > 0.0 && deadline <= MAX_DEADLINE && each * size.items as f64 <= SHORT.as_secs_f64()
    }

    /// Records the duration of a call.
    pub(super) fn record(&mut self, size: CallSize, took: Duration) {
        let each = &mut self.each[size.hook as usize];
        *each = (took.as_secs_f64() / size.items as f64).max(*each * DECAY).max(f64::MIN_POSITIVE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_millis(50);
    const BATCH: CallSize = CallSize { hook: HookKind::Filter, items: 64 };

    fn filter(items: usize) -> CallSize {
        CallSize::of(HookKind::Filter, items)
    }

    #[test]
    fn calls_are_short_once_they_were() {
        let mut pace = CallPace::default();
        assert!(!pace.is_short(BATCH, DEADLINE), "nothing is known yet");
        pace.record(BATCH, Duration::from_micros(64));
        assert!(pace.is_short(BATCH, DEADLINE) && pace.is_short(filter(1000), DEADLINE));
        assert!(!pace.is_short(filter(1001), DEADLINE), "1.001 ms");
        assert!(!pace.is_short(BATCH, Duration::from_secs(1)), "its deadline is long");
        assert!(!pace.is_short(CallSize::of(HookKind::Grouping, 1), DEADLINE), "another hook");
    }

    #[test]
    fn a_slow_call_is_remembered_for_a_while() {
        let mut pace = CallPace::default();
        pace.record(BATCH, Duration::from_micros(64));
        pace.record(BATCH, DEADLINE);
        let mut calls = 0;
        while !pace.is_short(BATCH, DEADLINE) {
            pace.record(BATCH, Duration::from_micros(64));
            calls += 1;
        }
        assert!((20..60).contains(&calls), "{calls}");
    }

    #[test]
    fn the_cost_of_a_call_is_not_that_of_its_only_message() {
        let mut pace = CallPace::default();
        pace.record(filter(1), Duration::from_micros(15));
        assert!(pace.is_short(filter(1000), DEADLINE));
    }
}
