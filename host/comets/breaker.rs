//! The circuit breaker of one comet: after several consecutive failures it opens, and calls fail
//! fast; later one call probes whether the comet has recovered.
//!
//! Pure: clock and random numbers are arguments.
//!
//! ```text
//!            failures in a row, and for long enough
//!   Closed ------------------------------------------> Open
//!      ^                                              |    ^
//!      | the probe succeeds          its time is over |    | the probe fails:
//!      |                                              v    | open for twice as long
//!      +------------------------------------------ HalfOpen
//! ```
//!
//! The doubling is for comets that accept connections but do not answer calls. A comet that was
//! unreachable and is reachable again closes the breaker at once: [`Breaker::force_close`].

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct BreakerSettings {
    /// How many consecutive attempts have to fail.
    pub(super) failures: u32,
    /// The minimum time between the first and the last of these failures.
    pub(super) window: Duration,
    /// How long it stays open at first.
    pub(super) open: Duration,
    /// How long it stays open at most.
    pub(super) open_max: Duration,
}

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerState {
    /// Calls are made.
    Closed,
    /// No call is made.
    Open,
    /// One probing call is in flight; no other is made.
    HalfOpen,
}

/// A permit for one attempt; the outcome is reported with it. A probe's permit that is dropped
/// without a report (its attempt was cancelled) lets another call probe.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AttemptPermit {
    epoch: u64,
    /// Alive as long as the probe; `None` for other attempts.
    probe: Option<Arc<()>>,
}

#[cfg(all(test, feature = "models"))]
impl AttemptPermit {
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

/// What a report changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakerChange {
    /// Nothing visible from outside.
    Nothing,
    /// It was closed and is open now, for this long.
    Opened(Duration),
    /// The probe failed: it is open again, for this long.
    StillOpen(Duration),
    /// It is closed again.
    Closed,
}

#[derive(Debug)]
pub(super) struct Breaker {
    settings: BreakerSettings,
    condition: BreakerCondition,
    /// Counts state changes: reports of attempts from before the last change are ignored.
    epoch: u64,
    /// How long it is open, the more often since it was last closed.
    backoff: Backoff,
}

#[derive(Debug)]
enum BreakerCondition {
    Closed { failures: u32, first: Option<Instant> },
    Open { until: Instant },
    HalfOpen { probe: Weak<()> },
}

impl Breaker {
    /// A closed breaker.
    pub(super) fn new(settings: BreakerSettings) -> Self {
        let condition = BreakerCondition::Closed { failures: 0, first: None };
        let backoff = Backoff::new(settings.open, settings.open_max);
        Self { settings, condition, epoch: 0, backoff }
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.condition {
            BreakerCondition::Closed { .. } => BreakerState::Closed,
            BreakerCondition::Open { .. } => BreakerState::Open,
            BreakerCondition::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// A permit for an attempt now; `None` while the breaker is open or a probe is in flight.
    pub(super) fn admit(&mut self, now: Instant) -> Option<AttemptPermit> {
        match &self.condition {
            BreakerCondition::Closed { .. } => Some(AttemptPermit { epoch: self.epoch, probe: None }),
            BreakerCondition::Open { until } if now >= *until => Some(self.probe()),
            BreakerCondition::HalfOpen { probe } if probe.strong_count() == 0 => Some(self.probe()),
            BreakerCondition::Open { .. } | BreakerCondition::HalfOpen { .. } => None,
        }
    }

    fn probe(&mut self) -> AttemptPermit {
        let probe = Arc::new(());
        self.set_condition(BreakerCondition::HalfOpen { probe: Arc::downgrade(&probe) });
        AttemptPermit { epoch: self.epoch, probe: Some(probe) }
    }

    /// The attempt was answered.
    pub(super) fn succeeded(&mut self, permit: AttemptPermit) -> BreakerChange {
        if permit.epoch != self.epoch {
            return BreakerChange::Nothing;
        }
        match &mut self.condition {
            BreakerCondition::Closed { failures, first } => {
                (*failures, *first) = (0, None);
                BreakerChange::Nothing
            }
            BreakerCondition::Open { .. } => BreakerChange::Nothing,
            BreakerCondition::HalfOpen { .. } => {
                self.backoff.reset();
                self.set_condition(BreakerCondition::Closed { failures: 0, first: None });
                BreakerChange::Closed
            }
        }
    }

    /// The attempt failed. `dice` is from 0 to 1: breakers that opened together probe at different times.
    pub(super) fn failed(&mut self, permit: AttemptPermit, now: Instant, dice: f64) -> BreakerChange {
        if permit.epoch != self.epoch {
            return BreakerChange::Nothing;
        }
        match &mut self.condition {
            BreakerCondition::Closed { failures, first } => {
                *failures = failures.saturating_add(1);
                let since = *first.get_or_insert(now);
                let long_enough = now.saturating_duration_since(since) >= self.settings.window;
                if *failures < self.settings.failures || !long_enough {
                    return BreakerChange::Nothing;
                }
                BreakerChange::Opened(self.open(now, dice))
            }
            BreakerCondition::Open { .. } => BreakerChange::Nothing,
            BreakerCondition::HalfOpen { .. } => BreakerChange::StillOpen(self.open(now, dice)),
        }
    }

    /// The comet was unreachable and is reachable again: closes at once.
    pub(super) fn force_close(&mut self) -> BreakerChange {
        if self.state() == BreakerState::Closed {
            return BreakerChange::Nothing;
        }
        self.backoff.reset();
        self.set_condition(BreakerCondition::Closed { failures: 0, first: None });
        BreakerChange::Closed
    }

    fn open(&mut self, now: Instant, dice: f64) -> Duration {
        let time = self.backoff.next_wait(dice);
        self.set_condition(BreakerCondition::Open { until: now + time });
        time
    }

    fn set_condition(&mut self, condition: BreakerCondition) {
        self.condition = condition;
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings() -> BreakerSettings {
        BreakerSettings { failures: 3, window: SECOND, open: SECOND, open_max: 8 * SECOND }
    }

    /// A breaker that opened at the returned moment, for one second.
    fn opened() -> (Breaker, Instant) {
        let (mut breaker, start) = (Breaker::new(settings()), Instant::now());
        let mut fail = |at: Instant| {
            let permit = breaker.admit(at).expect("closed");
            breaker.failed(permit, at, 1.0)
        };
        assert_eq!(fail(start), BreakerChange::Nothing);
        assert_eq!(fail(start + SECOND / 2), BreakerChange::Nothing);
        assert_eq!(fail(start + SECOND), BreakerChange::Opened(SECOND));
        (breaker, start + SECOND)
    }

    #[test]
    fn consecutive_failures_open_it_and_a_probe_closes_it() {
        let (mut breaker, now) = opened();
        assert_eq!(breaker.admit(now + SECOND / 2), None);
        let probe = breaker.admit(now + SECOND).expect("the probe");
        assert_eq!((breaker.admit(now + SECOND), breaker.state()), (None, BreakerState::HalfOpen));
        assert_eq!(breaker.succeeded(probe), BreakerChange::Closed);
        assert!(breaker.admit(now + SECOND).is_some());
    }

    #[test]
    fn failures_at_the_same_instant_do_not_open_it() {
        let (mut breaker, start) = (Breaker::new(settings()), Instant::now());
        for _ in 0..100 {
            let permit = breaker.admit(start).expect("closed");
            assert_eq!(breaker.failed(permit, start, 1.0), BreakerChange::Nothing);
        }
    }

    #[test]
    fn each_failed_probe_doubles_the_open_time() {
        let (mut breaker, mut now) = opened();
        for seconds in [2, 4, 8, 8] {
            now += 8 * SECOND;
            let probe = breaker.admit(now).expect("its time is over");
            assert_eq!(breaker.failed(probe, now, 1.0), BreakerChange::StillOpen(seconds * SECOND));
        }
    }

    #[test]
    fn reports_from_before_a_change_are_ignored() {
        let (mut breaker, now) = opened();
        let old = || AttemptPermit { epoch: 0, probe: None };
        assert_eq!(breaker.succeeded(old()), BreakerChange::Nothing);
        let probe = breaker.admit(now + SECOND).expect("the probe");
        assert_eq!(breaker.failed(old(), now + SECOND, 1.0), BreakerChange::Nothing);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.succeeded(probe), BreakerChange::Closed);
    }

    #[test]
    fn a_recovered_comet_closes_it_at_once() {
        let (mut breaker, now) = opened();
        assert_eq!(breaker.force_close(), BreakerChange::Closed);
        assert_eq!(breaker.force_close(), BreakerChange::Nothing);
        let (mut breaker, now) = (opened().0, now + 10 * SECOND);
        let probe = breaker.admit(now).expect("the probe");
        assert_eq!((breaker.force_close(), breaker.state()), (BreakerChange::Closed, BreakerState::Closed));
        assert_eq!(breaker.failed(probe, now, 1.0), BreakerChange::Nothing, "it began before");
        assert!(breaker.admit(now).is_some());
    }

    #[test]
    fn a_probe_that_was_cancelled_lets_another_call_probe() {
        let (mut breaker, now) = opened();
        let cancelled = breaker.admit(now + SECOND).expect("the probe");
        assert_eq!(breaker.admit(now + SECOND), None);
        drop(cancelled);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        let probe = breaker.admit(now + SECOND).expect("nobody probes any more");
        assert_eq!(breaker.admit(now + SECOND), None);
        assert_eq!(breaker.succeeded(probe), BreakerChange::Closed);
    }

    /// What callers do with a breaker.
    #[derive(Clone, Copy, Debug)]
    enum BreakerStep {
        Pass(u64),
        Admit,
        /// The outcome of one of the attempts that are under way.
        Succeed(usize),
        Fail(usize),
        Cancel(usize),
        /// The comet was unreachable and is reachable again.
        Back,
    }

    fn step() -> impl Strategy<Value = BreakerStep> {
        prop_oneof![
            (0u64..2000).prop_map(BreakerStep::Pass),
            Just(BreakerStep::Admit),
            any::<usize>().prop_map(BreakerStep::Succeed),
            any::<usize>().prop_map(BreakerStep::Fail),
            any::<usize>().prop_map(BreakerStep::Cancel),
            Just(BreakerStep::Back),
        ]
    }

    proptest! {
        /// Many attempts under way at once, whose reports come in any order or never: against
        /// the rules of the diagram above.
        #[test]
        fn one_probe_at_a_time_and_never_stuck(steps in proptest::collection::vec(step(), 0..300)) {
            let (mut breaker, mut now) = (Breaker::new(settings()), Instant::now());
            let mut flying: Vec<AttemptPermit> = Vec::new();
            let mut open_until = None::<Instant>;
            for step in steps {
                let before = breaker.state();
                let take = |flying: &mut Vec<AttemptPermit>, at: usize| {
                    (!flying.is_empty()).then(|| flying.swap_remove(at % flying.len()))
                };
                match step {
                    BreakerStep::Pass(millis) => now += Duration::from_millis(millis),
                    BreakerStep::Admit => {
                        let probing = flying.iter().any(|permit| permit.probe.is_some() && permit.epoch == breaker.epoch);
                        let permit = breaker.admit(now);
                        let due = open_until.is_some_and(|until| now >= until);
                        let expected = before == BreakerState::Closed || due && !probing;
                        prop_assert_eq!(permit.is_some(), expected, "{:?}", before);
                        flying.extend(permit);
                    }
                    BreakerStep::Cancel(at) => drop(take(&mut flying, at)),
                    BreakerStep::Back => {
                        let closed = breaker.force_close() == BreakerChange::Closed;
                        prop_assert_eq!(closed, before != BreakerState::Closed);
                        open_until = None;
                    }
                    BreakerStep::Succeed(at) => {
                        let Some(permit) = take(&mut flying, at) else { continue };
                        let is_probe = permit.probe.is_some() && permit.epoch == breaker.epoch;
                        let closed = breaker.succeeded(permit) == BreakerChange::Closed;
                        prop_assert_eq!(closed, is_probe, "only the probe closes it, and always");
                        if closed {
                            open_until = None;
                        }
                    }
                    BreakerStep::Fail(at) => {
                        let Some(permit) = take(&mut flying, at) else { continue };
                        if let BreakerChange::Opened(time) | BreakerChange::StillOpen(time) = breaker.failed(permit, now, 1.0) {
                            open_until = Some(now + time);
                        }
                    }
                }
                prop_assert_eq!(breaker.state() == BreakerState::Closed, open_until.is_none());
            }
            // Whatever happened, once no call is in flight the next one may probe and close it.
            flying.clear();
            let probe = breaker.admit(now + settings().open_max);
            prop_assert!(probe.is_some());
            breaker.succeeded(probe.expect("just seen"));
            prop_assert_eq!(breaker.state(), BreakerState::Closed);
        }

        /// Each step passes some time, makes an attempt if one is allowed, and reports it.
        #[test]
        fn it_opens_only_on_consecutive_failures_and_always_probes(
            steps in proptest::collection::vec((0u64..3000, any::<bool>(), 0.0..1.0f64), 1..200)
        ) {
            let (mut breaker, mut now) = (Breaker::new(settings()), Instant::now());
            let (mut in_a_row, mut open_until) = (0, None::<Instant>);
            for (millis, success, dice) in steps {
                now += Duration::from_millis(millis);
                let permit = breaker.admit(now);
                prop_assert_eq!(permit.is_some(), open_until.is_none_or(|until| now >= until));
                let Some(permit) = permit else { continue };
                prop_assert!(open_until.is_none() || breaker.admit(now).is_none(), "two probes");
                let change = if success { breaker.succeeded(permit) } else { breaker.failed(permit, now, dice) };
                in_a_row = if success { 0 } else { in_a_row + 1 };
                match change {
                    BreakerChange::Opened(time) | BreakerChange::StillOpen(time) => {
                        prop_assert!(in_a_row >= 3 && time >= SECOND / 2 && time <= 8 * SECOND);
                        open_until = Some(now + time);
                    }
                    BreakerChange::Closed => open_until = None,
                    BreakerChange::Nothing => prop_assert!(open_until.is_none()),
                }
            }
        }
    }
}
