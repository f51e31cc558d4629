//! Limits log lines over time, for events that others can trigger at will. Suppressed lines are
//! counted, and the count is logged with the next line.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How often the same problem with records is logged.
const REPEAT_AFTER: Duration = Duration::from_secs(10);

/// Admits a limited number of lines per period, and counts the suppressed ones.
#[derive(Debug)]
pub struct LogThrottle {
    lines: u32,
    per: Duration,
    window: Mutex<ThrottleWindow>,
}

#[derive(Debug)]
struct ThrottleWindow {
    began: Option<Instant>,
    used: u32,
    held_back: u64,
}

impl LogThrottle {
    /// At most `lines` per `per`.
    pub const fn new(lines: u32, per: Duration) -> Self {
        Self { lines, per, window: Mutex::new(ThrottleWindow { began: None, used: 0, held_back: 0 }) }
    }

    /// For problems that may affect every record: one line in ten seconds.
    pub const fn per_record() -> Self {
        Self::new(1, REPEAT_AFTER)
    }

    /// Whether a line may be logged now; if so, returns the number of lines suppressed before it.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock();
        if window.began.is_none_or(|began| now.duration_since(began) >= self.per) {
            window.began = Some(now);
            window.used = 0;
        }
        if window.used >= self.lines {
            window.held_back += 1;
            return None;
        }
        window.used += 1;
        Some(std::mem::take(&mut window.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suppressed_lines_are_counted() {
        let throttle = LogThrottle::new(2, Duration::from_secs(1));
        let start = Instant::now();
        let admitted: Vec<_> = (0..4).map(|_| throttle.admit_at(start)).collect();
        assert_eq!(admitted, [Some(0), Some(0), None, None]);
        let later = start + Duration::from_secs(1);
        assert_eq!((throttle.admit_at(later), throttle.admit_at(later)), (Some(2), Some(0)));
    }
}
