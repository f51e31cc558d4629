//! Order queues: examples, and a property over random steps.

use std::time::Duration;

use super::*;
use proptest::prelude::*;

/// Of one item of this size.
fn weight(bytes: usize) -> Option<Weight> {
    Some(Weight { items: 1, bytes })
}

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
    merged.iter().for_each(|(key, item)| queues.push(one(*key), weight(10), *item, now));
    queues.push(Keys::Many(vec![1, 9]), None, 6, now);
    queues.push(one(1), weight(10), 7, now);
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
    queues.push(one(1), weight(1), 1, start);
    let (first, _) = queues.next_ready(start).expect("at once");
    queues.finish(first, later);
    queues.push(one(1), weight(1), 2, later);
    queues.push(one(1), weight(1), 3, later);
    queues.push(one(2), weight(1), 4, later);
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
        queues.push(one(1), weight(size), 0, now);
        let (first, _) = queues.next_ready(now).expect("at once");
        queues.finish(first, now);
        for number in 1..=enough {
            assert_eq!(queues.next_ready(now), None);
            queues.push(one(1), weight(size), number, now);
        }
        assert_eq!(queues.next_ready(now).map(|(_, item)| item), Some(1));
    }
}

#[test]
fn a_barrier_waits_for_all_before_it_and_holds_all_behind_it() {
    let now = Instant::now();
    let mut queues = OrderQueues::new(WINDOW);
    queues.push(one(1), weight(1), 1, now);
    let (first, _) = queues.next_ready(now).expect("ready");
    queues.finish(first, now);
    queues.push(one(1), weight(1), 2, now);
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
        self.queues.push(keys, merges.and_then(weight), (all, self.pushed), self.now);
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
