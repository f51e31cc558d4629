//! Keys whose order is held after a message was given up.
//!
//! A message that a comet did not accept in time goes to the offline policy or becomes a dead letter.
//! If the gateway dies before that is recorded for good, the message is delivered again, and must
//! not arrive after newer ones. So its keys are held at that comet: later calls for them wait until
//! the [`OrderHold`] is dropped. Earlier calls are not affected, so no two messages can wait for each
//! other.
//!
//! Costs nothing while nothing is held, except for one atomic read per call.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::order_key::OrderKey;

/// The held keys of one comet.
#[derive(Debug, Default)]
pub(super) struct HeldKeys {
    /// The numbers of the messages that hold each key, unordered.
    holders: Mutex<HashMap<OrderKey, Vec<u64>>>,
    /// The number of keys.
    count: AtomicUsize,
    /// Notified when a key is released.
    pub(super) released: Notify,
}

/// Holds keys at one comet until it is dropped.
#[derive(Debug)]
pub struct OrderHold {
    held: Arc<HeldKeys>,
    keys: Vec<OrderKey>,
    number: u64,
}

impl HeldKeys {
    /// Holds these keys for calls with a higher number.
    pub(super) fn hold(self: &Arc<Self>, keys: Vec<OrderKey>, number: u64) -> OrderHold {
        let mut holders = self.holders.lock();
        for key in &keys {
            holders.entry(key.clone()).or_default().push(number);
        }
        self.count.store(holders.len(), Ordering::Release);
        drop(holders);
        OrderHold { held: Arc::clone(self), keys, number }
    }

    /// Whether no key is held.
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Whether a call with this number has to wait for this key.
    pub(super) fn holds(&self, key: &OrderKey, number: u64) -> bool {
        !self.is_empty()
            && self.holders.lock().get(key).is_some_and(|numbers| numbers.iter().any(|held| *held < number))
    }
}

impl Drop for OrderHold {
    fn drop(&mut self) {
        let mut holders = self.held.holders.lock();
        for key in &self.keys {
            let Some(numbers) = holders.get_mut(key) else { continue };
            if let Some(at) = numbers.iter().position(|number| *number == self.number) {
                numbers.swap_remove(at);
            }
            if numbers.is_empty() {
                holders.remove(key);
            }
        }
        self.held.count.store(holders.len(), Ordering::Release);
        drop(holders);
        self.held.released.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_later_calls_of_the_same_keys_wait() {
        let held = Arc::new(HeldKeys::default());
        let (room, other) = (OrderKey::Room("r".into()), OrderKey::Room("s".into()));
        let five = held.hold(vec![room.clone()], 5);
        let seven = held.hold(vec![room.clone()], 7);
        assert!(!held.holds(&room, 4) && !held.holds(&room, 5), "earlier ones, and itself");
        assert!(held.holds(&room, 6) && !held.holds(&other, 6));
        drop(five);
        assert!(!held.holds(&room, 7) && held.holds(&room, 8));
        drop(seven);
        assert!(held.is_empty());
    }
}
