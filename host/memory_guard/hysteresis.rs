//! Decides when admission stops and resumes. Pure.

/// Admission stops at this percentage of the limit: admitted records may still grow.
const STOP: u64 = 90;
/// It resumes below this percentage: each stop discards what librdkafka has prefetched.
const RESUME: u64 = 80;

/// What a measurement changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AdmissionChange {
    None,
    Stopped,
    Resumed,
}

/// Stops admission near the limit, and resumes it only well below.
#[derive(Debug)]
pub(super) struct Hysteresis {
    limit: u64,
    stopped: bool,
}

impl Hysteresis {
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
    pub(super) fn update(&mut self, resident: u64) -> AdmissionChange {
        let above = |percent: u64| u128::from(resident) * 100 >= u128::from(self.limit) * u128::from(percent);
        let was = self.stopped;
        self.stopped = if was { above(RESUME) } else { above(STOP) };
        match (was, self.stopped) {
            (false, true) => AdmissionChange::Stopped,
            (true, false) => AdmissionChange::Resumed,
            _ => AdmissionChange::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_stops_near_the_limit_and_resumes_well_below() {
        let mut hysteresis = Hysteresis::new(1000);
        let changes = [899, 900, 850, 800, 799, 899, 2000].map(|resident| hysteresis.update(resident));
        use AdmissionChange::{None, Resumed, Stopped};
        assert_eq!(changes, [None, Stopped, None, None, Resumed, None, Stopped]);
    }

    proptest! {
        #[test]
        fn it_is_stopped_above_and_running_below_the_thresholds(
            limit: u64, residents in proptest::collection::vec(any::<u64>(), 1..20)
        ) {
            let mut hysteresis = Hysteresis::new(limit);
            for resident in residents {
                hysteresis.update(resident);
                let part = u128::from(resident) * 100;
                if part >= u128::from(limit) * u128::from(STOP) {
                    prop_assert!(hysteresis.is_stopped());
                }
                if part < u128::from(limit) * u128::from(RESUME) {
                    prop_assert!(!hysteresis.is_stopped());
                }
            }
        }
    }
}
