//! When a version has failed too often: a number of failures within a window.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::policy::rollout::config::{QuarantineConfig, Then};

/// One version's failures.
#[derive(Debug)]
pub(in crate::policy) struct Failures {
    config: QuarantineConfig,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    /// The latest failures, at most as many as the limit.
    times: VecDeque<Instant>,
    too_many: bool,
}

impl Failures {
    pub(in crate::policy) fn new(config: QuarantineConfig) -> Self {
        Self { config, recent: Mutex::default() }
    }

    /// Records more failures. True once: when the limit is reached.
    pub(in crate::policy) fn note(&self, more: usize, now: Instant) -> bool {
        if self.config.then == Then::Never {
            return false;
        }
        let mut recent = self.recent.lock();
        if recent.too_many {
            return false;
        }
        for _ in 0..more.min(self.config.after) {
            if recent.times.len() >= self.config.after {
                recent.times.pop_front();
            }
            recent.times.push_back(now);
        }
        let enough = recent.times.len() >= self.config.after;
        let oldest = recent.times.front().map_or(Duration::MAX, |first| now.duration_since(*first));
        recent.too_many = enough && oldest <= self.config.within;
        recent.too_many
    }

    /// Reports a failure that does not depend on their number. True once, like [`Failures::note`].
    pub(in crate::policy) fn are_too_much(&self) -> bool {
        if self.config.then == Then::Never {
            return false;
        }
        let mut recent = self.recent.lock();
        !std::mem::replace(&mut recent.too_many, true)
    }

    /// Whether the limit was ever reached.
    pub(in crate::policy) fn too_many(&self) -> bool {
        self.recent.lock().too_many
    }

    /// Such as `100 failures within 1m`.
    pub(in crate::policy) fn limit(&self) -> String {
        format!("{} failures within {}", self.config.after, humantime::format_duration(self.config.within))
    }

    pub(in crate::policy) fn then(&self) -> Then {
        self.config.then
    }
}

/// An active version has failed too often.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Alarm {
    pub(in crate::policy) plugin: String,
    /// The SHA-256 of the version, in hex.
    pub(in crate::policy) hash: String,
    /// The limit, such as `100 failures within 1m`.
    pub(in crate::policy) limit: String,
    /// Its last failure.
    pub(in crate::policy) last: String,
}

/// Alarms that have not been handled yet.
#[derive(Debug, Default)]
pub(in crate::policy) struct Alarms {
    waiting: Mutex<VecDeque<Alarm>>,
    arrived: Notify,
}

/// More versions than this do not fail at once.
const MOST_WAITING: usize = 1024;

impl Alarms {
    pub(in crate::policy) fn raise(&self, alarm: Alarm) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < MOST_WAITING {
            waiting.push_back(alarm);
        }
        self.arrived.notify_one();
    }

    /// Waits for the next alarm.
    pub(in crate::policy) async fn next(&self) -> Alarm {
        loop {
            let next = self.waiting.lock().pop_front();
            match next {
                Some(alarm) => return alarm,
                None => self.arrived.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(after: usize, then: Then) -> Failures {
        Failures::new(QuarantineConfig { after, within: Duration::from_secs(10), then })
    }

    #[test]
    fn so_many_within_so_long_are_too_many_once() {
        let (failures, start) = (failures(3, Then::Without), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!failures.note(2, at(0)));
        assert!(!failures.note(1, at(11)), "the first two are too long ago");
        assert!(!failures.note(1, at(12)));
        assert!(failures.note(1, at(13)));
        assert!(failures.too_many() && !failures.note(100, at(14)), "it is said once");
        assert_eq!(failures.limit(), "3 failures within 10s");
    }

    #[test]
    fn a_batch_counts_with_all_of_its_messages_and_never_means_never() {
        let now = Instant::now();
        assert!(failures(100, Then::LastGood).note(256, now));
        let never = failures(1, Then::Never);
        assert!(!never.note(1000, now) && !never.too_many());
    }

    #[tokio::test]
    async fn alarms_wait_until_somebody_looks() {
        let alarms = Alarms::default();
        for plugin in ["a", "b"] {
            let (plugin, empty) = (plugin.into(), String::new);
            alarms.raise(Alarm { plugin, hash: empty(), limit: empty(), last: empty() });
        }
        assert_eq!((alarms.next().await.plugin, alarms.next().await.plugin), ("a".into(), "b".into()));
    }
}
