//! How many messages may wait for one comet: `[comets] queue`, or more for a comet that is quick.
//!
//! Pure: times come as arguments. A comet that accepted more than `queue` messages in the last
//! [`HORIZON`]th part of `delivery_timeout` may have that many waiting: so what waits is worth a tenth of
//! the time that it may wait, whatever the comet's speed, and messages of a room gather into full
//! calls. A comet that becomes slow has the configured queue again.

use std::time::{Duration, Instant};

/// The part of `delivery_timeout` whose work may wait.
const HORIZON: u32 = 10;
/// How often the comet's speed is measured.
const MEASURED_FOR: Duration = Duration::from_millis(50);

/// The limit of one comet.
#[derive(Debug)]
pub(super) struct QueueLimit {
    horizon: Duration,
    /// When the measurement began, and how many messages the comet had accepted then.
    since: Instant,
    accepted: u64,
}

impl QueueLimit {
    /// The comet has accepted this many messages before.
    pub(super) fn new(delivery_timeout: Duration, accepted: u64, now: Instant) -> Self {
        Self { horizon: delivery_timeout / HORIZON, since: now, accepted }
    }

    /// The comet has accepted this many messages so far. Returns how many may wait from now on, once
    /// in a while.
    pub(super) fn update(&mut self, accepted: u64, now: Instant) -> Option<usize> {
        let time = now.saturating_duration_since(self.since);
        if time < MEASURED_FOR {
            return None;
        }
        let count = accepted.saturating_sub(self.accepted) as f64;
        (self.since, self.accepted) = (now, accepted);
        Some((count * self.horizon.as_secs_f64() / time.as_secs_f64()) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_time_limit_s_work_may_wait() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut limit = QueueLimit::new(Duration::from_secs(10), 0, start);
        assert_eq!(limit.update(500, at(10)), None, "too soon to tell");
        assert_eq!(limit.update(2_000, at(100)), Some(20_000));
        assert_eq!(limit.update(2_010, at(200)), Some(100), "it has become slow");
        assert_eq!(limit.update(2_010, at(1_200)), Some(0), "or has stopped");
    }
}
