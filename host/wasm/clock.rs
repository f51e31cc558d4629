//! The clock that plugins see.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::now_ms;

/// The system's clock, or a fixed one for commands that show what a plugin would decide at another
/// time. It only affects the host function `now`; deadlines of calls and times to live of state use
/// the system's clock.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// A fixed clock, set to the system's time.
    pub fn fixed() -> Self {
        Self(Some(Arc::new(AtomicU64::new(system_ms()))))
    }

    /// Sets a fixed clock, in milliseconds since 1970. Has no effect on the system's clock.
    pub fn set(&self, ms: u64) {
        if let Some(fixed_ms) = &self.0 {
            fixed_ms.store(ms, Ordering::Relaxed);
        }
    }

    /// Milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        self.0.as_ref().map_or_else(system_ms, |fixed_ms| fixed_ms.load(Ordering::Relaxed))
    }
}

fn system_ms() -> u64 {
    now_ms()
}
