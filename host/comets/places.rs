//! The places in one comet's queue: whoever sends takes one without waiting, from any thread,
//! and the parcel's outcome gives it back.
//!
//! Its atomic is the parent module's: std's, or in `model` that of a scheduler that tries many
//! interleavings of this very file.

use super::sync::atomic::{AtomicUsize, Ordering};

/// How many places of a queue are taken.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: AtomicUsize,
}

impl Places {
    /// Takes a place unless `limit` are taken.
    pub(super) fn take(&self, limit: usize) -> bool {
        // In one step: adding first and looking afterwards would make one sender's refusal
        // another's, although a place has become free between them.
        let more = |taken| (taken < limit).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Gives a place back.
    pub(super) fn give_back(&self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }
}
