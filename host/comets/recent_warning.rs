//! What readiness warns of for a while after it last happened.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The last warning.
#[derive(Debug, Default)]
pub(super) struct RecentWarning(Mutex<Option<(Instant, String)>>);

impl RecentWarning {
    /// How long it lasts.
    pub(super) const LASTS: Duration = Duration::from_secs(30);

    pub(super) fn note(&self, text: String, now: Instant) {
        *self.0.lock() = Some((now, text));
    }

    /// The warning, if it is recent.
    pub(super) fn get(&self, now: Instant) -> Option<String> {
        let last = self.0.lock();
        last.as_ref().filter(|(at, _)| now.duration_since(*at) < Self::LASTS).map(|(_, text)| text.clone())
    }
}
