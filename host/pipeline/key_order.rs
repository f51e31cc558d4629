//! Which messages of one partition come before others of the same key, for what has to be
//! written in order: dead letters.
//!
//! Messages end in any order: one waits for a slow comet, the next one is refused at once. A
//! dead letter waits for its [turn](Place::turn): until no earlier message of its key can become
//! one any more. That costs no progress, since no offset is committed past an earlier record
//! anyway. Records without a key count as one key.
//!
//! A message costs two short locks here and no memory of its own; a letter that waits also looks
//! through the messages before it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use crate::message::Record;

/// The messages of one partition, from the first on that has not ended. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyOrder(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The number of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
}

#[derive(Debug)]
struct Slot {
    /// A hash of the record's key. Two keys that share one wait for each other in vain, and no
    /// longer than messages of one key do.
    key: u64,
    /// Whether it may still become a letter.
    open: bool,
    /// The letter that comes next.
    waiter: Option<oneshot::Sender<()>>,
}

/// One message's place. Dropping it says that no letter comes of it any more, or that the letter
/// is queued.
#[derive(Debug)]
pub(super) struct Place {
    order: KeyOrder,
    number: u64,
}

impl KeyOrder {
    /// The place behind all that were taken before.
    pub(super) fn place(&self, record: &Record) -> Place {
        let key = record.key.as_deref().map_or(0, xxh3_64);
        let mut state = self.lock();
        state.slots.push_back(Slot { key, open: true, waiter: None });
        let number = state.first + state.slots.len() as u64 - 1;
        drop(state);
        Place { order: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Beyond the slots for one that has ended.
    fn index(&self, number: u64) -> usize {
        number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX)
    }

    /// Waits for the last open slot of the same key before this one; `None` when there is none.
    fn wait(&mut self, number: u64) -> Option<oneshot::Receiver<()>> {
        let index = self.index(number);
        let key = self.slots.get(index)?.key;
        let before = self.slots.iter_mut().take(index).rev().find(|slot| slot.open && slot.key == key)?;
        let (sender, receiver) = oneshot::channel();
        before.waiter = Some(sender);
        Some(receiver)
    }

    fn end(&mut self, number: u64) {
        let index = self.index(number);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.open = false;
            // Dropping the sender wakes who waits.
            slot.waiter = None;
        }
        while self.slots.pop_front_if(|slot| !slot.open).is_some() {
            self.first += 1;
        }
    }
}

impl Place {
    /// Waits until nothing earlier of the same key can become a letter. May be cancelled.
    pub(super) async fn turn(&self) {
        loop {
            let Some(ended) = self.order.lock().wait(self.number) else { return };
            // It ends by being dropped.
            let _ = ended.await;
        }
    }
}

impl Place {
    /// No letter comes of it any more, or it is queued.
    pub(super) fn end(&self) {
        self.order.lock().end(self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::FutureExt as _;
    use futures_util::future::poll_immediate;
    use proptest::prelude::*;

    use super::*;
    use crate::message::Origin;

    fn record(key: Option<&str>) -> Record {
        Record {
            origin: Origin { topic: "push".into(), partition: 0, offset: 0 },
            timestamp_ms: None,
            key: key.map(|key| key.to_owned().into()),
            value: None,
            headers: Vec::new(),
            trusted: false,
        }
    }

    #[tokio::test]
    async fn a_letter_waits_for_what_is_before_it_and_has_its_key() {
        let order = KeyOrder::default();
        let [a, b, again, last] =
            [Some("a"), Some("b"), Some("a"), Some("a")].map(|key| order.place(&record(key)));
        a.turn().await;
        b.turn().await;
        let mut turn = Box::pin(last.turn());
        assert_eq!(poll_immediate(&mut turn).await, None);
        drop(again);
        assert_eq!(poll_immediate(&mut turn).await, None, "the first is still before it");
        drop(a);
        turn.await;
        drop((b, last));
        assert!(order.lock().slots.is_empty());
    }

    proptest! {
        #[test]
        fn letters_of_a_key_come_in_order_whatever_ends_when(
            keys in proptest::collection::vec(0..3u8, 1..24), dice in any::<u64>(), letters in any::<u32>(),
        ) {
            let order = KeyOrder::default();
            let mut dice = fastrand::Rng::with_seed(dice);
            let place = |key: &u8| order.place(&record(Some(&key.to_string())));
            let mut open: Vec<_> = keys.iter().map(place).enumerate().collect();
            let (mut waiting, mut written) = (Vec::new(), Vec::new());
            while !open.is_empty() || !waiting.is_empty() {
                if !open.is_empty() {
                    let (number, place) = open.swap_remove(dice.usize(..open.len()));
                    if letters >> number & 1 == 1 {
                        waiting.push((number, async move { place.turn().await; place }.boxed()));
                    }
                }
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                waiting.retain_mut(|(number, turn)| {
                    let ready = turn.poll_unpin(&mut context);
                    written.extend(ready.is_ready().then_some(*number));
                    matches!(ready, Poll::Pending)
                });
            }
            for key in 0..3 {
                let of_key: Vec<_> = written.iter().filter(|number| keys[**number] == key).collect();
                prop_assert!(of_key.is_sorted(), "{written:?}");
            }
            prop_assert!(order.lock().slots.is_empty());
        }
    }
}
