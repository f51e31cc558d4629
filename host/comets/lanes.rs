//! Lanes: which waiting item may start, so that order is kept within each lane.
//!
//! Pure. An item occupies a set of lanes. It may start when it is the first in all of them,
//! and stays there until it is finished: a lane never has two items in flight.

use std::collections::VecDeque;

/// The most lanes there can be.
pub(super) const MAX_LANES: usize = 64;

/// The lanes that an item occupies; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneSet(u64);

impl LaneSet {
    /// The lane of a name, when there are `lanes` of them.
    pub(super) fn of(name: &str, lanes: usize) -> Self {
        Self::one(Self::index_of(name, lanes))
    }

    /// The number of a name's lane, when there are `lanes` of them.
    pub(super) fn index_of(name: &str, lanes: usize) -> usize {
        (xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % lanes as u64) as usize
    }

    /// The lane with this number.
    pub(super) fn one(lane: usize) -> Self {
        Self(1 << lane)
    }

    /// All of `lanes` lanes.
    pub(super) fn all(lanes: usize) -> Self {
        Self(u64::MAX >> (MAX_LANES - lanes))
    }

    /// The lanes of both.
    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The number of the lane, when there is only one.
    pub(super) fn single(self) -> Option<usize> {
        (self.len() == 1).then(|| self.0.trailing_zeros() as usize)
    }

    fn len(self) -> u32 {
        self.0.count_ones()
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let lane = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            (lane < MAX_LANES).then_some(lane)
        })
    }
}

/// An item that was handed out and has to be finished.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token(usize);

/// Waiting items and those in flight. Every operation takes time in the number of lanes of
/// its item, however many wait.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    /// The items of each lane in order, by index into `slots`; the first may be in flight.
    queues: Vec<VecDeque<usize>>,
    slots: Vec<Option<Slot<T>>>,
    free: Vec<usize>,
    /// Items that are first in all of their lanes and have not been handed out.
    ready: VecDeque<usize>,
}

#[derive(Debug)]
struct Slot<T> {
    set: LaneSet,
    /// In how many of its lanes the item is first.
    heads: u32,
    /// `None` once it is handed out.
    item: Option<T>,
}

impl<T> Lanes<T> {
    /// No items yet. Sets must come from as many lanes as these.
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            queues: (0..lanes).map(|_| VecDeque::new()).collect(),
            slots: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
        }
    }

    /// Puts an item behind all others of its lanes.
    pub(super) fn push(&mut self, set: LaneSet, item: T) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let mut heads = 0;
        for lane in set.iter() {
            heads += u32::from(self.queues[lane].is_empty());
            self.queues[lane].push_back(at);
        }
        self.slots[at] = Some(Slot { set, heads, item: Some(item) });
        if heads == set.len() {
            self.ready.push_back(at);
        }
    }

    /// Puts an item of one lane behind the first one there, however many wait: it is older than they
    /// are, and lets one go before it.
    pub(super) fn push_second(&mut self, lane: usize, item: T) {
        let has_others = self.queues[lane].len() > 1;
        self.push(LaneSet::one(lane), item);
        if has_others && let Some(last) = self.queues[lane].pop_back() {
            self.queues[lane].insert(1, last);
        }
    }

    /// An item that may start now. It blocks its lanes until [`Lanes::finish`].
    pub(super) fn next_ready(&mut self) -> Option<(Token, T)> {
        let at = self.ready.pop_front()?;
        let item = self.slots[at].as_mut()?.item.take()?;
        Some((Token(at), item))
    }

    /// The item right behind one in flight, when that has a single lane, the item behind it
    /// has just the same, and it is wanted. It is then part of the one in flight.
    pub(super) fn join_next(&mut self, token: &Token, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let set = self.slots[token.0].as_ref()?.set;
        if set.len() != 1 {
            return None;
        }
        let lane = set.iter().next()?;
        let at = *self.queues[lane].get(1)?;
        let slot = self.slots[at].as_mut()?;
        if slot.set != set || !slot.item.as_ref().is_some_and(wanted) {
            return None;
        }
        let item = slot.item.take();
        self.queues[lane].remove(1);
        self.slots[at] = None;
        self.free.push(at);
        item
    }

    /// An item has ended: those behind it may start.
    pub(super) fn finish(&mut self, token: Token) {
        let Some(done) = self.slots[token.0].take() else { return };
        self.free.push(token.0);
        for lane in done.set.iter() {
            self.queues[lane].pop_front();
            let Some(next) = self.queues[lane].front().copied() else { continue };
            let Some(slot) = self.slots[next].as_mut() else { continue };
            slot.heads += 1;
            if slot.heads == slot.set.len() {
                self.ready.push_back(next);
            }
        }
    }

    /// Whether nothing waits and nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_busy_lane_holds_up_only_itself() {
        let (a, b) = (LaneSet(0b01), LaneSet(0b10));
        let mut lanes = Lanes::new(2);
        for (set, item) in [(a, "a1"), (a, "a2"), (a.union(b), "both"), (b, "b1")] {
            lanes.push(set, item);
        }
        let (a1, item) = lanes.next_ready().expect("ready");
        assert_eq!((item, lanes.next_ready()), ("a1", None));
        lanes.finish(a1);
        let (a2, item) = lanes.next_ready().expect("ready");
        assert_eq!((item, lanes.next_ready()), ("a2", None));
        lanes.finish(a2);
        let (both, item) = lanes.next_ready().expect("ready");
        assert_eq!((item, lanes.next_ready()), ("both", None));
        lanes.finish(both);
        let (b1, item) = lanes.next_ready().expect("ready");
        assert_eq!(item, "b1");
        lanes.finish(b1);
        assert!(lanes.is_empty());
    }

    #[test]
    fn what_is_older_lets_one_go_before_it() {
        let (a, b) = (LaneSet(0b01), LaneSet(0b10));
        let mut lanes = Lanes::new(2);
        for (set, item) in [(a.union(b), "both"), (a, "a1"), (a, "a2"), (b, "b1")] {
            lanes.push(set, item);
        }
        lanes.push_second(0, "older");
        let mut started = Vec::new();
        while let Some((token, item)) = lanes.next_ready() {
            started.push(item);
            lanes.finish(token);
        }
        assert_eq!(started, ["both", "b1", "older", "a1", "a2"]);
        lanes.push_second(0, "alone");
        assert_eq!(lanes.next_ready().map(|(_, item)| item), Some("alone"));
    }

    #[test]
    fn what_is_behind_joins_only_in_the_same_lane() {
        let (a, b) = (LaneSet(0b01), LaneSet(0b10));
        let mut lanes = Lanes::new(2);
        for (set, item) in [(a, 1), (a, 2), (b, 3), (a, 4), (a.union(b), 5), (a, 6)] {
            lanes.push(set, item);
        }
        let (token, item) = lanes.next_ready().expect("ready");
        assert_eq!(item, 1);
        assert_eq!(lanes.join_next(&token, |item| *item == 9), None);
        assert_eq!(lanes.join_next(&token, |_| true), Some(2));
        assert_eq!(lanes.join_next(&token, |_| true), Some(4));
        assert_eq!(lanes.join_next(&token, |_| true), None, "5 has another lane, too");
    }

    #[test]
    fn sets_are_what_they_say() {
        assert_eq!(LaneSet::all(64).len(), 64);
        assert_eq!(LaneSet::all(3).iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(LaneSet::all(64).iter().count(), 64);
        assert_eq!(LaneSet::of("video_123", 8), LaneSet::of("video_123", 8));
        assert_eq!(LaneSet::of("video_123", 1), LaneSet::all(1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(u64),
        Start,
        Finish(usize),
        Join(usize),
    }

    fn steps(lanes: usize) -> impl Strategy<Value = Vec<Step>> {
        let any_set = 1..=(u64::MAX >> (64 - lanes));
        let one_lane = (0..lanes).prop_map(|lane| 1 << lane);
        let step = prop_oneof![
            3 => prop_oneof![any_set, one_lane].prop_map(Step::Push),
            3 => Just(Step::Start),
            2 => any::<usize>().prop_map(Step::Finish),
            1 => any::<usize>().prop_map(Step::Join),
        ];
        proptest::collection::vec(step, 0..200)
    }

    /// Lanes, and what was seen of them.
    struct Watched {
        lanes: Lanes<(LaneSet, u64)>,
        flying: Vec<(Token, LaneSet)>,
        pushed: u64,
        /// The number of the item that each lane saw last.
        last: [Option<u64>; 5],
        started: u64,
    }

    impl Watched {
        fn start(&mut self) -> bool {
            let Some((token, (set, number))) = self.lanes.next_ready() else { return false };
            let busy = self.flying.iter().any(|(_, other)| other.0 & set.0 != 0);
            assert!(!busy, "two in flight in one lane");
            self.saw(set, number);
            self.flying.push((token, set));
            true
        }

        fn saw(&mut self, set: LaneSet, number: u64) {
            for lane in set.iter() {
                assert!(self.last[lane].is_none_or(|last| last < number), "out of order");
                self.last[lane] = Some(number);
            }
            self.started += 1;
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::Push(set) => {
                    self.lanes.push(LaneSet(set), (LaneSet(set), self.pushed));
                    self.pushed += 1;
                }
                Step::Start => drop(self.start()),
                Step::Finish(at) if !self.flying.is_empty() => {
                    let (token, _) = self.flying.swap_remove(at % self.flying.len());
                    self.lanes.finish(token);
                }
                Step::Join(at) if !self.flying.is_empty() => {
                    let (token, _) = &self.flying[at % self.flying.len()];
                    if let Some((set, number)) = self.lanes.join_next(token, |_| true) {
                        self.saw(set, number);
                    }
                }
                Step::Finish(_) | Step::Join(_) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn order_is_kept_nothing_overlaps_and_nothing_is_stuck(steps in steps(5)) {
            let mut watched =
                Watched { lanes: Lanes::new(5), flying: Vec::new(), pushed: 0, last: [None; 5], started: 0 };
            for step in steps {
                watched.step(step);
            }
            while watched.start() || !watched.flying.is_empty() {
                watched.step(Step::Finish(0));
            }
            prop_assert_eq!(watched.started, watched.pushed);
            prop_assert!(watched.lanes.is_empty());
        }
    }
}
