//! The switch from one policy set to the next: one atomic store between batches.
//!
//! Promises: whoever looks after [`Switch::put`] has returned sees the new value or a later
//! one; nobody who looks twice goes back; a value is freed when the last who looked at it is
//! done. One caller at a time puts; anybody looks, at any time, without waiting.
//!
//! Its cell is the parent module's: `arc_swap`'s, or in `model` one that is made of shuttle's
//! locks.

use std::sync::Arc;

use super::cell::ArcSwap;

/// A value in force that is replaced as a whole.
pub(super) struct Switch<T>(ArcSwap<T>);

impl<T> Switch<T> {
    /// Begins with this value.
    pub(super) fn new(first: T) -> Self {
        Self(ArcSwap::from_pointee(first))
    }

    /// The value in force: the caller's for as long as it is kept.
    pub(super) fn get(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// Puts another value in force.
    pub(super) fn put(&self, next: T) {
        self.0.store(Arc::new(next));
    }
}
