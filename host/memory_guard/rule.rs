//! When admission stops and when it goes on. Pure.

/// Admission stops at this part of the limit: what is admitted already may still grow.
const STOP: u64 = 90;
/// It goes on below this part: each stop throws away what Kafka's client has fetched ahead.
const RESUME: u64 = 80;

/// What a measurement changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Stopped,
    Resumed,
}

/// Stops near the limit, and goes on only well below it.
#[derive(Debug)]
pub(super) struct Rule {
    limit: u64,
    stopped: bool,
}

impl Rule {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, stopped: false }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes a measurement.
    pub(super) fn update(&mut self, resident: u64) -> Change {
        let above = |percent: u64| u128::from(resident) * 100 >= u128::from(self.limit) * u128::from(percent);
        let was = self.stopped;
        self.stopped = if was { above(RESUME) } else { above(STOP) };
        match (was, self.stopped) {
            (false, true) => Change::Stopped,
            (true, false) => Change::Resumed,
            _ => Change::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_stops_near_the_limit_and_goes_on_well_below() {
        let mut rule = Rule::new(1000);
        let changes = [899, 900, 850, 800, 799, 899, 2000].map(|resident| rule.update(resident));
        use Change::{None, Resumed, Stopped};
        assert_eq!(changes, [None, Stopped, None, None, Resumed, None, Stopped]);
    }

    proptest! {
        #[test]
        fn above_the_stop_it_never_admits_and_below_the_other_it_always_does(
            limit: u64, residents in proptest::collection::vec(any::<u64>(), 1..20)
        ) {
            let mut rule = Rule::new(limit);
            for resident in residents {
                rule.update(resident);
                let part = u128::from(resident) * 100;
                if part >= u128::from(limit) * u128::from(STOP) {
                    prop_assert!(rule.is_stopped());
                }
                if part < u128::from(limit) * u128::from(RESUME) {
                    prop_assert!(!rule.is_stopped());
                }
            }
        }
    }
}
