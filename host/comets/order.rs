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

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

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

/// How items that merge gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// How long to wait after the start of the previous item.
    pub(super) time: Duration,
    /// Windows end at multiples of this, so that those of many keys end together; zero for their exact
    /// ends.
    pub(super) grid: Duration,
    /// The maximum number of items, and their maximum size, that are sent together. A full batch does
    /// not wait.
    pub(super) items: usize,
    pub(super) bytes: usize,
}

impl Window {
    /// When a window that begins now ends.
    fn ends_after(&self, now: Instant, began: Instant) -> Instant {
        let end = now + self.time;
        let grid = self.grid.as_nanos();
        let past = (end - began).as_nanos().checked_rem(grid).unwrap_or(0);
        let rest = if past == 0 { 0 } else { grid - past };
        end + Duration::from_nanos(u64::try_from(rest).unwrap_or(0))
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
    windows: BinaryHeap<Reverse<Ending<K>>>,
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
    /// Bytes of the waiting items that merge.
    bytes: usize,
}

#[derive(Debug)]
struct Slot<K, T> {
    keys: Keys<K>,
    /// In how many of its queues the item is first.
    heads: usize,
    /// Its size, if it merges.
    merges: Option<usize>,
    /// Whether it is a part of one that was divided.
    is_part: bool,
    /// `None` once it has started.
    item: Option<T>,
}

#[derive(Debug)]
struct Ending<K> {
    at: Instant,
    key: K,
}

impl<K> PartialEq for Ending<K> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<K> Eq for Ending<K> {}

impl<K> PartialOrd for Ending<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Ending<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl<K: Eq + Hash + Clone, T> OrderQueues<K, T> {
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

    /// Puts an item behind all others of its keys. `merges` is the size of an item that merges, which
    /// has one key.
    pub(super) fn push(&mut self, keys: Keys<K>, merges: Option<usize>, item: T, now: Instant) {
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
            queue.bytes += slot.merges.unwrap_or(0);
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
        let is_full = queue.items.len() >= self.window.items || queue.bytes >= self.window.bytes;
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
        if let (Some(bytes), Keys::One(key)) = (slot.merges, &slot.keys)
            && let Some(queue) = self.queues.get_mut(key)
        {
            queue.bytes -= bytes;
            if !self.window.time.is_zero() {
                let ends = self.window.ends_after(now, self.began);
                queue.window_ends = Some(ends);
                self.windows.push(Reverse(Ending { at: ends, key: key.clone() }));
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
        let bytes = next.merges?;
        if !next.item.as_ref().is_some_and(wanted) {
            return None;
        }
        queue.items.remove(1);
        queue.bytes -= bytes;
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
        self.windows.peek().map(|Reverse(ending)| ending.at)
    }

    /// Releases the items whose window is over.
    pub(super) fn wake(&mut self, now: Instant) {
        while self.wakes_at().is_some_and(|at| at <= now)
            && let Some(Reverse(Ending { at, key })) = self.windows.pop()
        {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            if queue.window_ends != Some(at) {
                // A later one has begun.
                continue;
            }
            queue.window_ends = None;
            if std::mem::take(&mut queue.is_held) {
                self.ready.extend(queue.items.front());
            } else if queue.items.is_empty() {
                self.queues.remove(&key);
            }
        }
    }

    /// A barrier does not wait for windows.
    fn end_all_windows(&mut self) {
        for Reverse(Ending { key, .. }) in std::mem::take(&mut self.windows) {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            queue.window_ends = None;
            if std::mem::take(&mut queue.is_held) {
                self.ready.extend(queue.items.front());
            } else if queue.items.is_empty() {
                self.queues.remove(&key);
            }
        }
    }

    /// Whether nothing is queued or in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NO_WINDOW: Window = Window { time: Duration::ZERO, grid: Duration::ZERO, items: 100, bytes: 1000 };
    const WINDOW: Window =
        Window { time: Duration::from_millis(50), grid: Duration::ZERO, items: 3, bytes: 1000 };

    #[test]
    fn windows_of_many_keys_end_together() {
        let began = Instant::now();
        let window = Window { grid: Duration::from_millis(5), ..WINDOW };
        let ends_after =
            |start: u64| (window.ends_after(began + Duration::from_millis(start), began) - began).as_millis();
        assert_eq!([0, 1, 4, 5, 6].map(ends_after), [50, 55, 55, 55, 60]);
    }

    fn one(key: u8) -> Keys<u8> {
        Keys::One(key)
    }

    #[test]
    fn a_busy_key_holds_up_only_itself() {
        let now = Instant::now();
        let mut queues = OrderQueues::new(NO_WINDOW);
        let both = Keys::of([1, 2, 1].into_iter()).expect("keys");
        for (keys, item) in [(one(1), "a1"), (one(1), "a2"), (both, "both"), (one(2), "b1"), (one(3), "c1")] {
            queues.push(keys, None, item, now);
        }
        let (a1, item) = queues.next_ready(now).expect("ready");
        assert_eq!(item, "a1");
        let (c1, item) = queues.next_ready(now).expect("ready");
        assert_eq!((item, queues.next_ready(now)), ("c1", None));
        queues.finish(c1, now);
        queues.finish(a1, now);
        let (a2, item) = queues.next_ready(now).expect("ready");
        assert_eq!((item, queues.next_ready(now)), ("a2", None));
        queues.finish(a2, now);
        let (both, item) = queues.next_ready(now).expect("ready");
        assert_eq!((item, queues.next_ready(now)), ("both", None));
        queues.finish(both, now);
        let (b1, item) = queues.next_ready(now).expect("ready");
        assert_eq!(item, "b1");
        queues.finish(b1, now);
        assert!(queues.is_empty() && queues.queues.is_empty());
    }

    #[test]
    fn what_is_behind_joins_whatever_other_keys_wait_between() {
        let now = Instant::now();
        let mut queues = OrderQueues::new(NO_WINDOW);
        let merged = [(1, 1), (2, 2), (1, 3), (3, 4), (1, 5)];
        merged.iter().for_each(|(key, item)| queues.push(one(*key), Some(10), *item, now));
        queues.push(Keys::Many(vec![1, 9]), None, 6, now);
        queues.push(one(1), Some(10), 7, now);
        let (token, item) = queues.next_ready(now).expect("ready");
        assert_eq!(item, 1);
        assert_eq!(queues.join_next(&token, |item| *item == 9), None);
        assert_eq!(queues.join_next(&token, |_| true), Some(3));
        assert_eq!(queues.join_next(&token, |_| true), Some(5));
        assert_eq!(queues.join_next(&token, |_| true), None, "6 does not merge");
    }

    #[test]
    fn the_first_goes_at_once_and_what_follows_gathers() {
        let start = Instant::now();
        let later = start + Duration::from_millis(20);
        let mut queues = OrderQueues::new(WINDOW);
        queues.push(one(1), Some(1), 1, start);
        let (first, _) = queues.next_ready(start).expect("at once");
        queues.finish(first, later);
        queues.push(one(1), Some(1), 2, later);
        queues.push(one(1), Some(1), 3, later);
        queues.push(one(2), Some(1), 4, later);
        let (other, item) = queues.next_ready(later).expect("another key has no window yet");
        assert_eq!((item, queues.next_ready(later)), (4, None));
        queues.finish(other, later);
        let over = queues.wakes_at().expect("a window");
        assert_eq!(over, start + WINDOW.time);
        queues.wake(over);
        let (second, item) = queues.next_ready(over).expect("the window is over");
        assert_eq!((item, queues.join_next(&second, |_| true)), (2, Some(3)));
        queues.finish(second, over);
        queues.wake(over + WINDOW.time);
        assert!(queues.is_empty() && queues.queues.is_empty());
    }

    #[test]
    fn as_much_as_travels_together_waits_for_nothing() {
        let now = Instant::now();
        for (size, enough) in [(1, 3), (600, 2)] {
            let mut queues = OrderQueues::new(WINDOW);
            queues.push(one(1), Some(size), 0, now);
            let (first, _) = queues.next_ready(now).expect("at once");
            queues.finish(first, now);
            for number in 1..=enough {
                assert_eq!(queues.next_ready(now), None);
                queues.push(one(1), Some(size), number, now);
            }
            assert_eq!(queues.next_ready(now).map(|(_, item)| item), Some(1));
        }
    }

    #[test]
    fn a_barrier_waits_for_all_before_it_and_holds_all_behind_it() {
        let now = Instant::now();
        let mut queues = OrderQueues::new(WINDOW);
        queues.push(one(1), Some(1), 1, now);
        let (first, _) = queues.next_ready(now).expect("ready");
        queues.finish(first, now);
        queues.push(one(1), Some(1), 2, now);
        queues.push(Keys::Barrier, None, 3, now);
        queues.push(one(2), None, 4, now);
        let (second, item) = queues.next_ready(now).expect("no window before a barrier");
        assert_eq!((item, queues.next_ready(now)), (2, None));
        queues.finish(second, now);
        let (barrier, item) = queues.next_ready(now).expect("ready");
        assert_eq!((item, queues.next_ready(now)), (3, None));
        queues.finish(barrier, now);
        let (last, item) = queues.next_ready(now).expect("ready");
        assert_eq!(item, 4);
        queues.finish(last, now);
        assert!(queues.is_empty());
    }

    #[test]
    fn parts_start_on_their_own_in_the_place_of_the_whole() {
        let now = Instant::now();
        let mut queues = OrderQueues::new(NO_WINDOW);
        queues.push(Keys::Many((0..40).collect()), None, 100, now);
        (0..41).for_each(|key| queues.push(one(key), None, usize::from(key), now));
        let (whole, item) = queues.next_ready(now).expect("ready");
        assert_eq!(item, 100);
        let (other, item) = queues.next_ready(now).expect("another key");
        assert_eq!((item, queues.next_ready(now)), (40, None));
        // 39 is in no part: what waits behind may start.
        queues.divide(whole, (0..39).map(|key| (one(key), 200 + usize::from(key))), false, now);
        let mut started = Vec::new();
        let mut in_flight: Vec<_> = std::iter::from_fn(|| queues.next_ready(now)).collect();
        let parts = in_flight.iter().filter(|(_, item)| *item >= 200).count();
        assert_eq!((parts, in_flight.len()), (PARTS_AT_ONCE, PARTS_AT_ONCE + 1), "and what is behind 39");
        while let Some((token, item)) = in_flight.pop() {
            started.push(item);
            queues.finish(token, now);
            in_flight.extend(std::iter::from_fn(|| queues.next_ready(now)));
        }
        queues.finish(other, now);
        assert!(queues.is_empty() && queues.queues.is_empty());
        let at = |wanted: usize| started.iter().position(|item| *item == wanted).expect("started");
        assert!((0..39).all(|key| at(200 + key) < at(key)), "{started:?}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(Vec<u8>, bool),
        Barrier,
        Start,
        Finish(usize),
        Join(usize),
        /// Divides one in flight into an item for each of its keys but the first.
        Divide(usize),
        Wait,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let keys = || proptest::collection::vec(0..5_u8, 1..4);
        let step = prop_oneof![
            4 => (keys(), any::<bool>()).prop_map(|(keys, merges)| Step::Push(keys, merges)),
            1 => Just(Step::Barrier),
            4 => Just(Step::Start),
            3 => any::<usize>().prop_map(Step::Finish),
            2 => any::<usize>().prop_map(Step::Join),
            1 => any::<usize>().prop_map(Step::Divide),
            1 => Just(Step::Wait),
        ];
        proptest::collection::vec(step, 0..80)
    }

    /// The number of parts: each has the place of the whole.
    const PART: usize = usize::MAX;

    /// Queues, and what was seen of them: each item is its keys and its number.
    struct Watched {
        queues: OrderQueues<u8, (Vec<u8>, usize)>,
        in_flight: Vec<(OrderToken, Vec<u8>)>,
        now: Instant,
        pushed: usize,
        last: [Option<usize>; 5],
        started: usize,
    }

    impl Watched {
        fn start(&mut self) -> bool {
            let Some((token, (keys, number))) = self.queues.next_ready(self.now) else { return false };
            let overlaps = |(_, other): &(OrderToken, Vec<u8>)| keys.iter().any(|key| other.contains(key));
            assert!(!self.in_flight.iter().any(overlaps), "two in flight of one key");
            self.saw(&keys, number);
            self.in_flight.push((token, keys));
            true
        }

        /// Whether an item cannot be divided: one for everything.
        fn is_whole(&self, keys: &[u8]) -> bool {
            keys.len() == 5
        }

        fn saw(&mut self, keys: &[u8], number: usize) {
            for key in keys.iter().filter(|_| number != PART) {
                let last = &mut self.last[usize::from(*key)];
                assert!(last.is_none_or(|last| last < number), "out of order");
                *last = Some(number);
            }
            self.started += 1;
        }

        fn push(&mut self, keys: Keys<u8>, merges: Option<usize>, all: Vec<u8>) {
            self.queues.push(keys, merges, (all, self.pushed), self.now);
            self.pushed += 1;
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::Push(mut keys, merges) => {
                    keys.sort_unstable();
                    keys.dedup();
                    let merges = (merges && keys.len() == 1).then_some(300);
                    self.push(Keys::of(keys.iter().copied()).expect("keys"), merges, keys);
                }
                Step::Barrier => self.push(Keys::Barrier, None, (0..5).collect()),
                Step::Start => drop(self.start()),
                Step::Finish(at) if !self.in_flight.is_empty() => {
                    let (token, _) = self.in_flight.swap_remove(at % self.in_flight.len());
                    self.queues.finish(token, self.now);
                }
                Step::Join(at) if !self.in_flight.is_empty() => {
                    let (token, _) = &self.in_flight[at % self.in_flight.len()];
                    if let Some((keys, number)) = self.queues.join_next(token, |_| true) {
                        self.saw(&keys, number);
                    }
                }
                Step::Divide(at) if !self.in_flight.is_empty() => {
                    let (token, keys) = self.in_flight.swap_remove(at % self.in_flight.len());
                    if self.is_whole(&keys) {
                        return self.in_flight.push((token, keys));
                    }
                    let parts = keys.iter().skip(1).map(|key| {
                        self.pushed += 1;
                        (one(*key), (vec![*key], PART))
                    });
                    self.queues.divide(token, parts, at % 2 == 0, self.now);
                }
                Step::Wait => {
                    self.now += WINDOW.time / 3;
                    self.queues.wake(self.now);
                }
                Step::Finish(_) | Step::Join(_) | Step::Divide(_) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn order_is_kept_nothing_overlaps_and_nothing_is_stuck(steps in steps()) {
            let mut watched = Watched {
                queues: OrderQueues::new(WINDOW),
                in_flight: Vec::new(),
                now: Instant::now(),
                pushed: 0,
                last: [None; 5],
                started: 0,
            };
            for step in steps {
                watched.step(step);
            }
            while watched.start() || !watched.in_flight.is_empty() || watched.queues.wakes_at().is_some() {
                watched.step(Step::Finish(0));
                watched.step(Step::Wait);
            }
            prop_assert_eq!(watched.started, watched.pushed);
            prop_assert!(watched.queues.is_empty() && watched.queues.queues.is_empty());
        }
    }
}
