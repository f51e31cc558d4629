//! So many lines in so much time: keeps a plugin from flooding the gateway's log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts lines, and the ones that were too many.
#[derive(Debug)]
pub(in crate::policy) struct LogBudget {
    lines: u32,
    per: Duration,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began: Option<Instant>,
    used: u32,
    missed: u64,
}

impl LogBudget {
    /// At most `lines` in each stretch of `per`.
    pub(in crate::policy) fn new(lines: u32, per: Duration) -> Self {
        Self { lines, per, window: Mutex::new(Window { began: None, used: 0, missed: 0 }) }
    }

    /// Whether a line may be written now; if so, how many before it were not.
    pub(in crate::policy) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now.duration_since(began) >= self.per) {
            window.began = Some(now);
            window.used = 0;
        }
        if window.used >= self.lines {
            window.missed += 1;
            return None;
        }
        window.used += 1;
        Some(std::mem::take(&mut window.missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_counted() {
        let budget = LogBudget::new(2, Duration::from_secs(1));
        let start = Instant::now();
        let admitted: Vec<_> = (0..4).map(|_| budget.admit_at(start)).collect();
        assert_eq!(admitted, [Some(0), Some(0), None, None]);
        let later = start + Duration::from_secs(1);
        assert_eq!((budget.admit_at(later), budget.admit_at(later)), (Some(2), Some(0)));
    }
}
