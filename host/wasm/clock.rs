//! What plugins take for the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The system's clock, or one that stands still until it is set: for commands that ask a plugin
/// what it would decide at another time. Only what plugins ask for with `now` goes by it; their
/// deadlines, and the times to live of their state, do not.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// One that stands at the system's time.
    pub fn standing() -> Self {
        Self(Some(Arc::new(AtomicU64::new(system_ms()))))
    }

    /// Sets one that stands, in milliseconds since 1970. The system's clock stays what it is.
    pub fn set(&self, ms: u64) {
        if let Some(stands) = &self.0 {
            stands.store(ms, Ordering::Relaxed);
        }
    }

    /// Milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        self.0.as_ref().map_or_else(system_ms, |stands| stands.load(Ordering::Relaxed))
    }
}

fn system_ms() -> u64 {
    crate::time::to_ms(SystemTime::now())
}
