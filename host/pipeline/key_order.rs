//! Keeps the order of messages of the same key in one partition, for output that has to be written
//! in order: inbox entries and notifications, and dead letters.
//!
//! Messages finish in any order: one waits for a slow comet, the next one is rejected at once. The
//! output of a message waits for its [turn](KeyPosition::wait_turn): until no earlier message of its key can
//! write output of that kind. This costs no progress, since no offset is committed past an earlier
//! record anyway. Records without a key count as one key.
//!
//! Cost: one lock per batch of records, one per batch of settled messages, and no allocation per
//! message. A message that waits also scans the messages before it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64;

use crate::message::Record;

/// The messages of one partition, from the first unfinished one on. Clones share the state.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyOrder(Arc<Mutex<KeyOrderState>>);

#[derive(Debug, Default)]
struct KeyOrderState {
    /// The number of the first slot.
    first: u64,
    slots: VecDeque<OrderEntry>,
}

/// The kinds of output of a message, in the order in which it writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Inbox entries and notifications.
    Offline,
    /// A dead letter.
    Letter,
}

/// The number of kinds.
const OUTPUTS: usize = 2;

#[derive(Debug)]
struct OrderEntry {
    /// A hash of the record's key. Two keys with the same hash wait for each other needlessly, but
    /// no longer than messages of one key do.
    key: u64,
    /// How many kinds of output, in order, are queued or will not follow.
    done: usize,
    /// The next message that waits for each kind of output.
    waiters: [Option<oneshot::Sender<()>>; OUTPUTS],
}

/// One message's position. Dropping it releases all its outputs: they are queued or will not follow.
#[derive(Debug)]
pub(super) struct KeyPosition {
    order: KeyOrder,
    number: u64,
    /// Whether all its outputs are released.
    is_released: bool,
}

impl KeyOrder {
    /// Positions after all earlier ones, for records in their order.
    pub(super) fn positions<'a>(&self, records: impl Iterator<Item = &'a Record>) -> Vec<KeyPosition> {
        let keys: Vec<u64> = records.map(|record| record.key.as_deref().map_or(0, xxh3_64)).collect();
        let mut state = self.0.lock();
        let first = state.first + state.slots.len() as u64;
        let entry = |key: &u64| OrderEntry { key: *key, done: 0, waiters: Default::default() };
        state.slots.extend(keys.iter().map(entry));
        drop(state);
        let position = |number| KeyPosition { order: self.clone(), number, is_released: false };
        (first..first + keys.len() as u64).map(position).collect()
    }
}

#[cfg(test)]
impl KeyOrder {
    fn position(&self, record: &Record) -> KeyPosition {
        self.positions(std::iter::once(record)).pop().expect("one for each record")
    }
}

impl KeyOrderState {
    /// Out of range for a message that has finished.
    fn index(&self, number: u64) -> usize {
        number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX)
    }

    /// Registers with the last earlier message of the same key that may still write this output;
    /// `None` if there is no such message.
    fn wait(&mut self, number: u64, output: Output) -> Option<oneshot::Receiver<()>> {
        let index = self.index(number);
        let key = self.slots.get(index)?.key;
        let mut before = self.slots.iter_mut().take(index).rev();
        let before = before.find(|slot| slot.key == key && slot.done <= output as usize)?;
        let (sender, receiver) = oneshot::channel();
        before.waiters[output as usize] = Some(sender);
        Some(receiver)
    }

    fn release(&mut self, number: u64, output: Output) {
        let index = self.index(number);
        if let Some(slot) = self.slots.get_mut(index) {
            let done = output as usize + 1;
            slot.done = slot.done.max(done);
            // Dropping the sender wakes the waiter.
            slot.waiters.iter_mut().take(done).for_each(|waiter| *waiter = None);
        }
        while self.slots.pop_front_if(|slot| slot.done == OUTPUTS).is_some() {
            self.first += 1;
        }
    }
}

impl KeyPosition {
    /// Waits until no earlier message of the same key can write this output. Safe to cancel.
    pub(super) async fn wait_turn(&self, output: Output) {
        loop {
            let Some(ended) = self.order.0.lock().wait(self.number, output) else { return };
            // The sender is dropped, never used.
            let _ = ended.await;
        }
    }

    /// This output, and those before it, are queued or will not follow.
    pub(super) fn release(&self, output: Output) {
        self.order.0.lock().release(self.number, output);
    }

    /// Releases the output from another owner; no effect once the position is dropped.
    pub(super) fn releaser(&self, output: Output) -> OutputReleaser {
        OutputReleaser { order: self.order.clone(), number: self.number, output }
    }
}

/// Releases one output of a [`KeyPosition`].
#[derive(Debug)]
pub(super) struct OutputReleaser {
    order: KeyOrder,
    number: u64,
    output: Output,
}

impl OutputReleaser {
    pub(super) fn release(&self) {
        self.order.0.lock().release(self.number, self.output);
    }
}

impl KeyPosition {
    /// Drops the positions of messages of one partition together.
    pub(super) fn drop_all(mut positions: Vec<Self>) {
        let Some(first) = positions.first() else { return };
        let order = first.order.clone();
        let mut state = order.0.lock();
        for position in &mut positions {
            state.release(position.number, Output::Letter);
            position.is_released = true;
        }
    }
}

impl Drop for KeyPosition {
    fn drop(&mut self) {
        if !self.is_released {
            self.release(Output::Letter);
        }
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
    async fn a_dead_letter_waits_for_earlier_ones_of_its_key() {
        let order = KeyOrder::default();
        let [a, b, again, last] =
            [Some("a"), Some("b"), Some("a"), Some("a")].map(|key| order.position(&record(key)));
        a.wait_turn(Output::Letter).await;
        b.wait_turn(Output::Letter).await;
        let mut wait_turn = Box::pin(last.wait_turn(Output::Letter));
        assert_eq!(poll_immediate(&mut wait_turn).await, None);
        drop(again);
        assert_eq!(poll_immediate(&mut wait_turn).await, None, "the first is still before it");
        drop(a);
        wait_turn.await;
        drop((b, last));
        assert!(order.0.lock().slots.is_empty());
    }

    #[tokio::test]
    async fn an_inbox_entry_does_not_wait_for_dead_letters() {
        let order = KeyOrder::default();
        let [first, second] = [Some("a"), Some("a")].map(|key| order.position(&record(key)));
        assert_eq!(poll_immediate(Box::pin(second.wait_turn(Output::Offline))).await, None);
        first.release(Output::Offline);
        second.wait_turn(Output::Offline).await;
        second.release(Output::Offline);
        assert_eq!(poll_immediate(Box::pin(second.wait_turn(Output::Letter))).await, None);
        first.release(Output::Letter);
        second.wait_turn(Output::Letter).await;
    }

    /// Acts as a message: writes entries, a dead letter, both or nothing.
    async fn run(
        position: KeyPosition,
        does: u8,
        number: usize,
        written: &std::cell::RefCell<[Vec<usize>; OUTPUTS]>,
    ) {
        for output in [Output::Offline, Output::Letter] {
            if does >> output as u8 & 1 == 1 {
                position.wait_turn(output).await;
                written.borrow_mut()[output as usize].push(number);
            }
            position.release(output);
        }
    }

    proptest! {
        #[test]
        fn outputs_of_a_key_are_ordered_whatever_finishes_first(
            messages in proptest::collection::vec((0..3u8, 0..4u8), 1..24), dice in any::<u64>(),
        ) {
            let order = KeyOrder::default();
            let written = std::cell::RefCell::default();
            let mut dice = fastrand::Rng::with_seed(dice);
            let mut waiting: Vec<_> = messages.iter().enumerate().map(|(number, (key, does))| {
                run(order.position(&record(Some(&key.to_string()))), *does, number, &written).boxed_local()
            }).collect();
            let mut begun = Vec::new();
            while !waiting.is_empty() || !begun.is_empty() {
                if !waiting.is_empty() {
                    begun.push(waiting.swap_remove(dice.usize(..waiting.len())));
                }
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                dice.shuffle(&mut begun);
                let before = begun.len();
                begun.retain_mut(|message| matches!(message.poll_unpin(&mut context), Poll::Pending));
                prop_assert!(!waiting.is_empty() || begun.is_empty() || begun.len() < before, "nobody waits forever");
            }
            for of_output in written.borrow().iter() {
                for key in 0..3 {
                    let of_key: Vec<_> = of_output.iter().filter(|number| messages[**number].0 == key).collect();
                    prop_assert!(of_key.is_sorted(), "{of_output:?}");
                }
            }
            prop_assert!(order.0.lock().slots.is_empty());
        }
    }
}
