//! Places that are taken without waiting, from any thread, and given back: messages in one
//! comet's queue, bytes of them, bytes that wait for all comets.
//!
//! `model` runs it under many interleavings: its atomic comes from [`crate::sync`].

use crate::sync::atomic::{AtomicUsize, Ordering};

/// How many places are taken.
#[derive(Debug, Default)]
pub(super) struct Places {
    taken: AtomicUsize,
}

impl Places {
    /// Takes so many places unless more than `limit` would be taken then. What needs more than
    /// there are gets them when nothing else has any.
    pub(super) fn take(&self, amount: usize, limit: usize) -> bool {
        // In one step: adding first and looking afterwards would make one sender's refusal
        // another's, although a place has become free between them.
        let more = |taken: usize| {
            let then = taken.saturating_add(amount);
            (then <= limit || taken == 0).then_some(then)
        };
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Gives places back; returns how many are taken now.
    pub(super) fn give_back(&self, amount: usize) -> usize {
        self.taken.fetch_sub(amount, Ordering::AcqRel).saturating_sub(amount)
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }
}
