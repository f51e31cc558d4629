//! Order queues: decide which waiting item may start, so that the order of each key is kept.
//!
//! Pure: the clock is an argument. An item has one or several keys (a room, connections) and is in
//! the queue of each. It may start when it is first in all of them, and stays there until it is
//! finished, so a key never has two items in flight. The number of items in flight is not limited
//! otherwise. A *barrier* starts when everything before it has finished, and everything behind it
//! starts after it.
//!
//! Items that *merge* may be sent together: the items right behind one that starts join it
//! ([`OrderQueues::join_next`]). To let more of them gather, a key may have a window: after an
//! item that merges has started, the next one waits until the window is over, or until a full
//! batch waits.
//!
//! An operation costs one hash look-up per key of its item, however many items wait.

#[cfg(test)]
mod tests;
mod window;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Instant;

use foldhash::fast::RandomState;

pub(super) use window::{Weight, Window};

/// How many parts of divided items are in flight at a time.
const PARTS_AT_ONCE: usize = 8;

/// The keys whose order an item keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Keys<K> {
    /// One key.
    One(K),
    /// Several distinct keys; never empty.
    Many(Vec<K>),
    /// All keys.
    Barrier,
}

impl<K: Eq + Hash + Clone> Keys<K> {
    /// From keys that may repeat; `None` without any.
    pub(super) fn of(keys: impl Iterator<Item = K>) -> Option<Self> {
        let mut seen = std::collections::HashSet::new();
        let mut keys: Vec<K> = keys.filter(|key| seen.insert(key.clone())).collect();
        match keys.len() {
            0 => None,
            1 => keys.pop().map(Self::One),
            _ => Some(Self::Many(keys)),
        }
    }

    fn as_slice(&self) -> &[K] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
            Self::Barrier => &[],
        }
    }
}

/// The handle of an item in flight, which has to be finished.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OrderToken(usize);

/// Waiting items and those in flight.
#[derive(Debug)]
pub(super) struct OrderQueues<K, T> {
    queues: HashMap<K, Queue, RandomState>,
    slots: Vec<Option<Slot<K, T>>>,
    free: Vec<usize>,
    /// Items that may start and have not been handed out.
    ready: VecDeque<usize>,
    /// Ready parts of divided items, and how many parts are in flight.
    ready_parts: VecDeque<usize>,
    parts_in_flight: usize,
    window: Window,
    /// Where the grid begins.
    began: Instant,
    /// When windows end.
    windows: BinaryHeap<Reverse<(Instant, K)>>,
    /// Items in the queues, including the barrier.
    entered: usize,
    /// A barrier that waits or is in flight.
    barrier: Option<usize>,
    /// Items that were pushed after the barrier.
    behind: VecDeque<usize>,
}

#[derive(Debug, Default)]
struct Queue {
    /// By index into `slots`; the first may be in flight.
    items: VecDeque<usize>,
    /// When its window ends.
    window_ends: Option<Instant>,
    /// Whether the first item waits for the window to end.
    is_held: bool,
    /// Of the waiting items that merge.
    count: usize,
    bytes: usize,
}

impl Queue {
    fn add(&mut self, weight: Weight) {
        (self.count, self.bytes) = (self.count + weight.items, self.bytes + weight.bytes);
    }

    fn remove(&mut self, weight: Weight) {
        (self.count, self.bytes) = (self.count - weight.items, self.bytes - weight.bytes);
    }
}

#[derive(Debug)]
struct Slot<K, T> {
    keys: Keys<K>,
    /// In how many of its queues the item is first.
    heads: usize,
    /// Its weight, if it merges.
    merges: Option<Weight>,
    /// Whether it is a part of one that was divided.
    is_part: bool,
    /// `None` once it has started.
    item: Option<T>,
}

impl<K: Ord + Hash + Clone, T> OrderQueues<K, T> {
    /// No items yet.
    pub(super) fn new(window: Window) -> Self {
        Self {
            queues: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            ready_parts: VecDeque::new(),
            parts_in_flight: 0,
            window,
            began: Instant::now(),
            windows: BinaryHeap::new(),
            entered: 0,
            barrier: None,
            behind: VecDeque::new(),
        }
    }

    /// Puts an item behind all others of its keys. `merges` is the weight of an item that merges, which
    /// has one key.
    pub(super) fn push(&mut self, keys: Keys<K>, merges: Option<Weight>, item: T, now: Instant) {
        let slot = Slot { keys, heads: 0, merges, is_part: false, item: Some(item) };
        let at = self.insert(slot);
        if self.barrier.is_some() {
            self.behind.push_back(at);
        } else {
            self.enter(at, now);
        }
    }

    fn insert(&mut self, slot: Slot<K, T>) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.slots[at] = Some(slot);
                at
            }
            None => {
                self.slots.push(Some(slot));
                self.slots.len() - 1
            }
        }
    }

    /// Divides an item in flight that has several keys; each key is in at most one part. The parts
    /// replace it in the queues of their keys and start independently, up to [`PARTS_AT_ONCE`] at a
    /// time, so that other items start between them. `first` puts them before the parts of other
    /// items.
    pub(super) fn divide(
        &mut self,
        token: OrderToken,
        parts: impl Iterator<Item = (Keys<K>, T)>,
        first: bool,
        now: Instant,
    ) {
        let mut placed = Vec::new();
        for (keys, item) in parts {
            let heads = keys.as_slice().len();
            let at = self.insert(Slot {
                keys: keys.clone(),
                heads,
                merges: None,
                is_part: true,
                item: Some(item),
            });
            for key in keys.as_slice() {
                if let Some(place) = self.queues.get_mut(key).and_then(|queue| queue.items.front_mut()) {
                    *place = at;
                }
            }
            self.entered += 1;
            placed.push(at);
        }
        let Some(whole) = self.slots[token.0].take() else { return };
        self.entered -= 1;
        self.parts_in_flight -= usize::from(whole.is_part);
        for key in whole.keys.as_slice() {
            let front = self.queues.get(key).and_then(|queue| queue.items.front());
            if front == Some(&token.0) {
                self.release(key, now);
            }
        }
        self.free.push(token.0);
        if first {
            placed.into_iter().rev().for_each(|at| self.ready_parts.push_front(at));
        } else {
            self.ready_parts.extend(placed);
        }
    }

    fn enter(&mut self, at: usize, now: Instant) {
        let Some(slot) = &mut self.slots[at] else { return };
        self.entered += 1;
        if slot.keys == Keys::Barrier {
            self.barrier = Some(at);
            return self.end_all_windows();
        }
        for key in slot.keys.as_slice() {
            let queue = match self.queues.get_mut(key) {
                Some(queue) => queue,
                None => self.queues.entry(key.clone()).or_default(),
            };
            slot.heads += usize::from(queue.items.is_empty());
            queue.items.push_back(at);
            slot.merges.into_iter().for_each(|weight| queue.add(weight));
        }
        if slot.heads == slot.keys.as_slice().len() {
            self.came_first(at, now);
        } else if let (Some(_), Keys::One(key)) = (slot.merges, &slot.keys) {
            let key = key.clone();
            self.start_if_full(&key);
        }
    }

    /// The item is the first in all of its queues.
    fn came_first(&mut self, at: usize, now: Instant) {
        if let Some(Slot { keys: Keys::One(key), merges: Some(_), .. }) = &self.slots[at]
            && let Some(queue) = self.queues.get_mut(key)
            && queue.window_ends.is_some_and(|ends| now < ends)
        {
            queue.is_held = true;
            let key = key.clone();
            return self.start_if_full(&key);
        }
        self.ready.push_back(at);
    }

    /// Ends the wait for a window if a full batch waits.
    fn start_if_full(&mut self, key: &K) {
        let Some(queue) = self.queues.get_mut(key).filter(|queue| queue.is_held) else { return };
        let is_full = queue.count >= self.window.items || queue.bytes >= self.window.bytes;
        if is_full || self.barrier.is_some() {
            queue.is_held = false;
            self.ready.extend(queue.items.front());
        }
    }

    /// An item that may start now. It blocks its keys until [`OrderQueues::finish`].
    pub(super) fn next_ready(&mut self, now: Instant) -> Option<(OrderToken, T)> {
        let at = self.next_part().or_else(|| self.ready.pop_front()).or_else(|| self.barrier_if_ready())?;
        let slot = self.slots[at].as_mut()?;
        self.parts_in_flight += usize::from(slot.is_part);
        let item = slot.item.take()?;
        if let (Some(weight), Keys::One(key)) = (slot.merges, &slot.keys)
            && let Some(queue) = self.queues.get_mut(key)
        {
            queue.remove(weight);
            if !self.window.time.is_zero() {
                let ends = self.window.ends_after(now, self.began);
                queue.window_ends = Some(ends);
                self.windows.push(Reverse((ends, key.clone())));
            }
        }
        Some((OrderToken(at), item))
    }

    fn next_part(&mut self) -> Option<usize> {
        if self.parts_in_flight < PARTS_AT_ONCE { self.ready_parts.pop_front() } else { None }
    }

    fn barrier_if_ready(&self) -> Option<usize> {
        let barrier = self.barrier.filter(|_| self.entered == 1)?;
        self.slots[barrier].as_ref()?.item.as_ref()?;
        Some(barrier)
    }

    /// The item right behind one in flight, if both merge and `wanted` accepts it. It becomes part of
    /// the one in flight.
    pub(super) fn join_next(&mut self, token: &OrderToken, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let first = self.slots[token.0].as_ref()?;
        let (Keys::One(key), Some(_)) = (&first.keys, first.merges) else { return None };
        let queue = self.queues.get_mut(key)?;
        let at = *queue.items.get(1)?;
        let next = self.slots[at].as_ref()?;
        let weight = next.merges?;
        if !next.item.as_ref().is_some_and(wanted) {
            return None;
        }
        queue.items.remove(1);
        queue.remove(weight);
        self.entered -= 1;
        self.free.push(at);
        self.slots[at].take()?.item
    }

    /// An item has finished: those behind it may start.
    pub(super) fn finish(&mut self, token: OrderToken, now: Instant) {
        let Some(done) = self.slots[token.0].take() else { return };
        self.free.push(token.0);
        self.entered -= 1;
        self.parts_in_flight -= usize::from(done.is_part);
        done.keys.as_slice().iter().for_each(|key| self.release(key, now));
        if done.keys == Keys::Barrier {
            self.barrier = None;
            while self.barrier.is_none()
                && let Some(at) = self.behind.pop_front()
            {
                self.enter(at, now);
            }
        }
    }

    /// Removes the first item of a key. The next one may start if it is first in all its queues.
    fn release(&mut self, key: &K, now: Instant) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        queue.items.pop_front();
        let Some(next) = queue.items.front().copied() else {
            if queue.window_ends.is_none_or(|ends| ends <= now) {
                self.queues.remove(key);
            }
            return;
        };
        let Some(slot) = self.slots[next].as_mut() else { return };
        slot.heads += 1;
        if slot.heads == slot.keys.as_slice().len() {
            self.came_first(next, now);
        }
    }

    /// When the next window ends.
    pub(super) fn wakes_at(&self) -> Option<Instant> {
        self.windows.peek().map(|Reverse((at, _))| *at)
    }

    /// Releases the items whose window is over.
    pub(super) fn wake(&mut self, now: Instant) {
        while self.wakes_at().is_some_and(|at| at <= now)
            && let Some(Reverse((at, key))) = self.windows.pop()
        {
            // Otherwise a later one has begun.
            if self.queues.get(&key).is_some_and(|queue| queue.window_ends == Some(at)) {
                self.end_window(&key);
            }
        }
    }

    /// A barrier does not wait for windows.
    fn end_all_windows(&mut self) {
        for Reverse((_, key)) in std::mem::take(&mut self.windows) {
            self.end_window(&key);
        }
    }

    fn end_window(&mut self, key: &K) {
        let Some(queue) = self.queues.get_mut(key) else { return };
        queue.window_ends = None;
        if std::mem::take(&mut queue.is_held) {
            self.ready.extend(queue.items.front());
        } else if queue.items.is_empty() {
            self.queues.remove(key);
        }
    }

    /// Whether nothing is queued or in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}
