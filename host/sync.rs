//! Locks and atomics for code that models check. They are parking_lot's and the standard library's, or
//! shuttle's in tests with the feature `models`, which run the same source under many interleavings.
//!
//! Only files that a `model` runs use this module, since shuttle's types work only inside a model. All
//! other code uses [`parking_lot`] and [`std::sync`] directly.

#[cfg(not(all(test, feature = "models")))]
pub(crate) use {
    parking_lot::Mutex,
    std::sync::{Arc, atomic},
};

#[cfg(all(test, feature = "models"))]
pub(crate) use {
    modelled::Mutex,
    shuttle::sync::{Arc, atomic},
};

#[cfg(all(test, feature = "models"))]
mod modelled {
    use shuttle::sync::MutexGuard;

    /// Shuttle's mutex, with the interface of `parking_lot`'s.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a thread that panics ends the model")
        }
    }
}
