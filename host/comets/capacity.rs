//! A capacity that any thread takes without waiting, and releases: messages in one comet's queue,
//! their bytes, and pending bytes over all comets.
//!
//! `model` runs it under many interleavings: its atomic comes from [`crate::sync`].

use crate::sync::atomic::{AtomicUsize, Ordering};

/// How much of a capacity is taken.
#[derive(Debug, Default)]
pub(super) struct Capacity {
    taken: AtomicUsize,
}

impl Capacity {
    /// Takes `amount`, unless more than `limit` would be taken then. A request above the limit
    /// succeeds when nothing else is taken.
    pub(super) fn take(&self, amount: usize, limit: usize) -> bool {
        // In one atomic step: adding first and checking afterwards would let a refused request make
        // another one fail although there is room.
        let more = |taken: usize| {
            let then = taken.saturating_add(amount);
            (then <= limit || taken == 0).then_some(then)
        };
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Releases `amount`; returns how much is taken now.
    pub(super) fn release(&self, amount: usize) -> usize {
        self.taken.fetch_sub(amount, Ordering::AcqRel).saturating_sub(amount)
    }

    /// How much is taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }
}
