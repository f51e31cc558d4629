//! When a version has failed too often: a number of failures within a window.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::digest::Digest;
use crate::policy::rollout::config::{QuarantineAction, QuarantineConfig};

/// One version's failures.
#[derive(Debug)]
pub(in crate::policy) struct FailureWindow {
    config: QuarantineConfig,
    recent: Mutex<RecentFailures>,
}

#[derive(Debug, Default)]
struct RecentFailures {
    /// The latest failures, at most as many as the limit.
    times: VecDeque<Instant>,
    is_tripped: bool,
}

impl FailureWindow {
    pub(in crate::policy) fn new(config: QuarantineConfig) -> Self {
        Self { config, recent: Mutex::default() }
    }

    /// Records more failures. True once: when the limit is reached.
    pub(in crate::policy) fn note(&self, more: usize, now: Instant) -> bool {
        if self.config.action == QuarantineAction::Never {
            return false;
        }
        let mut recent = self.recent.lock();
        if recent.is_tripped {
            return false;
        }
        for _ in 0..more.min(self.config.max_failures) {
            if recent.times.len() >= self.config.max_failures {
                recent.times.pop_front();
            }
            recent.times.push_back(now);
        }
        let enough = recent.times.len() >= self.config.max_failures;
        let oldest = recent.times.front().map_or(Duration::MAX, |first| now.duration_since(*first));
        recent.is_tripped = enough && oldest <= self.config.window;
        recent.is_tripped
    }

    /// Reports a failure that does not depend on their number. True once, like [`FailureWindow::note`].
    pub(in crate::policy) fn trip(&self) -> bool {
        if self.config.action == QuarantineAction::Never {
            return false;
        }
        let mut recent = self.recent.lock();
        !std::mem::replace(&mut recent.is_tripped, true)
    }

    /// Whether the limit was ever reached.
    pub(in crate::policy) fn is_tripped(&self) -> bool {
        self.recent.lock().is_tripped
    }

    /// Such as `100 failures within 1m`.
    pub(in crate::policy) fn limit(&self) -> String {
        format!(
            "{} failures within {}",
            self.config.max_failures,
            humantime::format_duration(self.config.window)
        )
    }

    pub(in crate::policy) fn then(&self) -> QuarantineAction {
        self.config.action
    }
}

/// An active version has failed too often.
#[derive(Clone, Debug)]
pub(in crate::policy) struct FailureAlarm {
    pub(in crate::policy) plugin: String,
    pub(in crate::policy) hash: Digest,
    /// The limit, such as `100 failures within 1m`.
    pub(in crate::policy) limit: String,
    /// Its last failure.
    pub(in crate::policy) last: String,
}

/// Alarms that have not been handled yet.
#[derive(Debug, Default)]
pub(in crate::policy) struct FailureAlarms {
    waiting: Mutex<VecDeque<FailureAlarm>>,
    arrived: Notify,
}

/// More versions than this do not fail at once.
const MOST_WAITING: usize = 1024;

impl FailureAlarms {
    pub(in crate::policy) fn raise(&self, alarm: FailureAlarm) {
        let mut waiting = self.waiting.lock();
        if waiting.len() < MOST_WAITING {
            waiting.push_back(alarm);
        }
        self.arrived.notify_one();
    }

    /// Waits for the next alarm.
    pub(in crate::policy) async fn next(&self) -> FailureAlarm {
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

    fn failures(after: usize, then: QuarantineAction) -> FailureWindow {
        FailureWindow::new(QuarantineConfig {
            max_failures: after,
            window: Duration::from_secs(10),
            action: then,
        })
    }

    #[test]
    fn the_failure_window_trips_once() {
        let (failures, start) = (failures(3, QuarantineAction::Without), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!failures.note(2, at(0)));
        assert!(!failures.note(1, at(11)), "the first two are too long ago");
        assert!(!failures.note(1, at(12)));
        assert!(failures.note(1, at(13)));
        assert!(failures.is_tripped() && !failures.note(100, at(14)), "it is said once");
        assert_eq!(failures.limit(), "3 failures within 10s");
    }

    #[test]
    fn failures_count_messages_and_never_is_respected() {
        let now = Instant::now();
        assert!(failures(100, QuarantineAction::LastGood).note(256, now));
        let never = failures(1, QuarantineAction::Never);
        assert!(!never.note(1000, now) && !never.is_tripped());
    }

    #[tokio::test]
    async fn alarms_are_queued() {
        let alarms = FailureAlarms::default();
        for plugin in ["a", "b"] {
            let (plugin, empty) = (plugin.into(), String::new);
            alarms.raise(FailureAlarm { plugin, hash: Digest::of(b""), limit: empty(), last: empty() });
        }
        assert_eq!((alarms.next().await.plugin, alarms.next().await.plugin), ("a".into(), "b".into()));
    }
}
