//! Which messages of one partition come before others of the same key, for what has to be
//! written in order: inbox entries and notifications, and dead letters.
//!
//! Messages end in any order: one waits for a slow comet, the next one is refused at once. What a
//! message writes waits for its [turn](Place::turn): until no earlier message of its key can
//! write anything of the kind any more. That costs no progress, since no offset is committed past an
//! earlier record anyway. Records without a key count as one key.
//!
//! A message costs two short locks here and no memory of its own; one that waits also looks
//! through the messages before it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
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

/// What a message may write, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Inbox entries and notifications.
    Offline,
    /// A dead letter.
    Letter,
}

/// How many kinds there are.
const OUTPUTS: usize = 2;

#[derive(Debug)]
struct Slot {
    /// A hash of the record's key. Two keys that share one wait for each other in vain, and no
    /// longer than messages of one key do.
    key: u64,
    /// How many of the outputs, the first ones, are queued or will never come.
    done: usize,
    /// Who comes next with each output.
    waiters: [Option<oneshot::Sender<()>>; OUTPUTS],
}

/// One message's place. Dropping it says that it writes nothing any more, or that all is queued.
#[derive(Debug)]
pub(super) struct Place {
    order: KeyOrder,
    number: u64,
}

impl KeyOrder {
    /// The place behind all that were taken before.
    pub(super) fn place(&self, record: &Record) -> Place {
        let key = record.key.as_deref().map_or(0, xxh3_64);
        let mut state = self.0.lock();
        state.slots.push_back(Slot { key, done: 0, waiters: Default::default() });
        let number = state.first + state.slots.len() as u64 - 1;
        drop(state);
        Place { order: self.clone(), number }
    }
}

impl State {
    /// Beyond the slots for one that has ended.
    fn index(&self, number: u64) -> usize {
        number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX)
    }

    /// Waits for the last slot of the same key before this one that may write such an output;
    /// `None` when there is none.
    fn wait(&mut self, number: u64, output: Output) -> Option<oneshot::Receiver<()>> {
        let index = self.index(number);
        let key = self.slots.get(index)?.key;
        let mut before = self.slots.iter_mut().take(index).rev();
        let before = before.find(|slot| slot.key == key && slot.done <= output as usize)?;
        let (sender, receiver) = oneshot::channel();
        before.waiters[output as usize] = Some(sender);
        Some(receiver)
    }

    fn pass(&mut self, number: u64, output: Output) {
        let index = self.index(number);
        if let Some(slot) = self.slots.get_mut(index) {
            let done = output as usize + 1;
            slot.done = slot.done.max(done);
            // Dropping the sender wakes who waits.
            slot.waiters.iter_mut().take(done).for_each(|waiter| *waiter = None);
        }
        while self.slots.pop_front_if(|slot| slot.done == OUTPUTS).is_some() {
            self.first += 1;
        }
    }
}

impl Place {
    /// Waits until nothing earlier of the same key can write such an output. May be cancelled.
    pub(super) async fn turn(&self, output: Output) {
        loop {
            let Some(ended) = self.order.0.lock().wait(self.number, output) else { return };
            // It ends by being dropped.
            let _ = ended.await;
        }
    }

    /// This output, and those before it, will not come any more, or are queued.
    pub(super) fn pass(&self, output: Output) {
        self.order.0.lock().pass(self.number, output);
    }

    /// Says so from elsewhere; without an effect when the place is given up by then.
    pub(super) fn passer(&self, output: Output) -> Passer {
        Passer { order: self.order.clone(), number: self.number, output }
    }
}

/// Passes one output of a [`Place`].
#[derive(Debug)]
pub(super) struct Passer {
    order: KeyOrder,
    number: u64,
    output: Output,
}

impl Passer {
    pub(super) fn pass(&self) {
        self.order.0.lock().pass(self.number, self.output);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pass(Output::Letter);
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
        a.turn(Output::Letter).await;
        b.turn(Output::Letter).await;
        let mut turn = Box::pin(last.turn(Output::Letter));
        assert_eq!(poll_immediate(&mut turn).await, None);
        drop(again);
        assert_eq!(poll_immediate(&mut turn).await, None, "the first is still before it");
        drop(a);
        turn.await;
        drop((b, last));
        assert!(order.0.lock().slots.is_empty());
    }

    #[tokio::test]
    async fn an_inbox_does_not_wait_for_letters() {
        let order = KeyOrder::default();
        let [first, second] = [Some("a"), Some("a")].map(|key| order.place(&record(key)));
        assert_eq!(poll_immediate(Box::pin(second.turn(Output::Offline))).await, None);
        first.pass(Output::Offline);
        second.turn(Output::Offline).await;
        second.pass(Output::Offline);
        assert_eq!(poll_immediate(Box::pin(second.turn(Output::Letter))).await, None);
        first.pass(Output::Letter);
        second.turn(Output::Letter).await;
    }

    /// Does what a message does: writes entries, a letter, both or nothing.
    async fn run(place: Place, does: u8, number: usize, written: &std::cell::RefCell<[Vec<usize>; OUTPUTS]>) {
        for output in [Output::Offline, Output::Letter] {
            if does >> output as u8 & 1 == 1 {
                place.turn(output).await;
                written.borrow_mut()[output as usize].push(number);
            }
            place.pass(output);
        }
    }

    proptest! {
        #[test]
        fn outputs_of_a_key_come_in_order_whatever_ends_when(
            messages in proptest::collection::vec((0..3u8, 0..4u8), 1..24), dice in any::<u64>(),
        ) {
            let order = KeyOrder::default();
            let written = std::cell::RefCell::default();
            let mut dice = fastrand::Rng::with_seed(dice);
            let mut waiting: Vec<_> = messages.iter().enumerate().map(|(number, (key, does))| {
                run(order.place(&record(Some(&key.to_string()))), *does, number, &written).boxed_local()
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
                prop_assert!(!waiting.is_empty() || begun.is_empty() || begun.len() < before, "nobody waits for ever");
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
