//! The locks and atomics of what is checked by models: parking_lot's and the standard library's, or, in
//! tests with the feature `models`, shuttle's, which try many interleavings of the same source.
//!
//! For files that a `model` runs, and for their types alone: shuttle's work only inside of a model. All
//! others take [`parking_lot`] and [`std::sync`] directly.

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
