//! Limits how much of a worker's time one plugin may waste in calls past their deadline.
//!
//! A plugin that no other version can replace stays active however often it loops, and each
//! interrupted call costs its deadline. So that time has a budget: a token bucket that fills with a
//! share of the elapsed time (10% by default) and holds twenty such calls, which is enough to isolate
//! two messages in a batch of 256. A plugin that has exhausted it is not called for a while; its
//! `on_error` decides at once. Then it gets one call: if that ends in time, the plugin decides again;
//! if not, the next pause is twice as long.
//!
//! Each worker has its own budget, so that a problem with one partition's messages costs only that
//! partition.
//!
//! Pure; the time is an argument. Calls that end in time cost nothing here.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// How many deadlines the full budget holds.
const DEADLINES: u32 = 20;
/// The divisor of the full budget that a plugin gets after a successful trial call.
const AFTER_TRIAL: u32 = 4;
/// How long it is not called: at first, and at most.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// Each worker has a budget of its own, so there are no other callers to spread out from.
const NO_JITTER: f64 = 1.0;

/// One worker's budget for one plugin.
#[derive(Clone, Debug)]
pub(super) struct TimeBudget {
    /// The share of elapsed time that may be wasted; 1 is unlimited.
    share: f64,
    full: Duration,
    left: Duration,
    /// The time of the last refill.
    at: Instant,
    pauses: Backoff,
    state: BudgetState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BudgetState {
    Within,
    /// Not called before this time.
    Over(Instant),
    /// The next call decides.
    HalfOpen,
}

impl TimeBudget {
    /// A full budget for calls with this deadline, which fills with this share of the time.
    pub(super) fn new(deadline: Duration, share: f64, now: Instant) -> Self {
        let full = deadline.saturating_mul(DEADLINES);
        Self { share, full, left: full, at: now, pauses: PAUSES, state: BudgetState::Within }
    }

    /// Whether it is exhausted, and no trial call has succeeded since.
    pub(super) fn is_over(&self) -> bool {
        self.state != BudgetState::Within
    }

    /// How much longer the plugin must not be called; `None` if it may be called.
    pub(super) fn remaining_pause(&mut self, now: Instant) -> Option<Duration> {
        let BudgetState::Over(until) = self.state else { return None };
        let rest = until.saturating_duration_since(now);
        if rest.is_zero() {
            self.state = BudgetState::HalfOpen;
            return None;
        }
        Some(rest)
    }

    /// Records a call that was interrupted after this time. True if this exhausts the budget.
    pub(super) fn record_overrun(&mut self, took: Duration, now: Instant) -> bool {
        if self.share >= 1.0 {
            return false;
        }
        self.refill(now);
        self.left = self.left.saturating_sub(took);
        match self.state {
            BudgetState::Over(_) => false,
            BudgetState::Within if !self.left.is_zero() => false,
            BudgetState::Within | BudgetState::HalfOpen => {
                let news = self.state == BudgetState::Within;
                self.state = BudgetState::Over(now + self.pauses.next_wait(NO_JITTER));
                news
            }
        }
    }

    /// Records a call that ended in time. True if this ends a pause.
    pub(super) fn record_success(&mut self, now: Instant) -> bool {
        if self.state != BudgetState::HalfOpen {
            return false;
        }
        self.refill(now);
        self.left = self.full / AFTER_TRIAL;
        self.state = BudgetState::Within;
        true
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        self.left = self.left.saturating_add(passed.mul_f64(self.share)).min(self.full);
        // After a long time without overruns, pauses start short again.
        if self.left == self.full && self.state == BudgetState::Within {
            self.pauses.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST_PAUSE: Duration = Duration::from_secs(1);

    const DEADLINE: Duration = Duration::from_millis(50);
    const SHARE: f64 = 0.1;

    /// A plugin that is called all the time, and loops on some calls.
    struct Worker {
        budget: TimeBudget,
        now: Instant,
        began: Instant,
        wasted: Duration,
        calls: u32,
    }

    impl Worker {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                budget: TimeBudget::new(DEADLINE, SHARE, now),
                now,
                began: now,
                wasted: Duration::ZERO,
                calls: 0,
            }
        }

        fn ask(&mut self, loops: bool) {
            if self.budget.remaining_pause(self.now).is_some() {
                self.now += Duration::from_millis(1);
                return;
            }
            self.calls += 1;
            if loops {
                self.now += DEADLINE;
                self.wasted += DEADLINE;
                self.budget.record_overrun(DEADLINE, self.now);
            } else {
                self.now += Duration::from_millis(1);
                self.budget.record_success(self.now);
            }
        }

        fn passed(&self) -> Duration {
            self.now - self.began
        }
    }

    #[test]
    fn a_plugin_that_always_loops_is_called_less_and_less() {
        let mut worker = Worker::new();
        while worker.passed() < Duration::from_secs(60) {
            worker.ask(true);
        }
        // The budget, the refill of a second, and a trial call after 1, 2, 4, 8, 16 and 30 seconds.
        assert!((20..=30).contains(&worker.calls), "{}", worker.calls);
    }

    #[test]
    fn a_full_budget_is_unlimited() {
        let (now, mut budget) = (Instant::now(), TimeBudget::new(DEADLINE, 1.0, Instant::now()));
        (0..1000).for_each(|_| assert!(!budget.record_overrun(DEADLINE, now)));
        assert!(!budget.is_over());
    }

    #[test]
    fn one_poison_message_does_not_exhaust_the_budget() {
        let mut worker = Worker::new();
        (0..10).for_each(|_| worker.ask(true));
        assert!(!worker.budget.is_over());
        while worker.passed() < Duration::from_secs(10) {
            worker.ask(false);
        }
        (0..19).for_each(|_| worker.ask(true));
        assert!(!worker.budget.is_over(), "what was spent comes back");
    }

    #[test]
    fn a_successful_probe_restores_the_plugin() {
        let mut worker = Worker::new();
        while !worker.budget.is_over() {
            worker.ask(true);
        }
        assert_eq!(worker.budget.remaining_pause(worker.now), Some(FIRST_PAUSE));
        worker.now += FIRST_PAUSE;
        worker.ask(false);
        assert!(!worker.budget.is_over());
        let calls = worker.calls;
        while !worker.budget.is_over() {
            worker.ask(true);
        }
        assert!(worker.calls - calls < 8, "less is left to it: {}", worker.calls - calls);
        assert_eq!(worker.budget.remaining_pause(worker.now), Some(FIRST_PAUSE * 2));
        worker.now += FIRST_PAUSE * 2;
        worker.ask(false);
        worker.now += Duration::from_secs(60);
        (0..20).for_each(|_| worker.ask(true));
        worker.ask(true);
        assert!(
            worker.budget.remaining_pause(worker.now) <= Some(FIRST_PAUSE),
            "what was long ago is forgotten"
        );
    }

    proptest! {
        #[test]
        fn wasted_time_is_bounded(pattern in proptest::collection::vec(any::<bool>(), 1..60)) {
            let mut worker = Worker::new();
            let mut asked = pattern.iter().cycle();
            while worker.passed() < Duration::from_secs(30) {
                worker.ask(*asked.next().expect("it goes round"));
            }
            // The full budget, its share, and what successful trial calls after 1, 2, 4, 8 and 16
            // seconds add, with one call each that overruns the remainder.
            let most = DEADLINE * DEADLINES * 3 + worker.passed().mul_f64(SHARE);
            prop_assert!(worker.wasted <= most, "{:?} of {:?}", worker.wasted, worker.passed());
        }
    }
}
