//! The switch of policy sets while workers take batches: under many interleavings, and with
//! real threads.
//!
//! `switch.rs` is compiled once more, over a cell that a lock of shuttle's guards: arc_swap's
//! own orderings cannot run there. They are what the second test is for, with real threads and
//! the real cell. The lock around replacements (tokio's) is a lock of shuttle's in the first.

#[path = "switch.rs"]
#[allow(clippy::duplicate_mod, reason = "the very file that the gateway has, for this model once more")]
mod switch;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use shuttle::thread;

/// A stand-in for `arc_swap`.
mod cell {
    use shuttle::sync::{Arc, Mutex};

    pub(super) struct ArcSwap<T>(Mutex<Arc<T>>);

    impl<T> ArcSwap<T> {
        pub(super) fn from_pointee(value: T) -> Self {
            Self(Mutex::new(Arc::new(value)))
        }

        pub(super) fn load_full(&self) -> Arc<T> {
            Arc::clone(&self.0.lock().unwrap())
        }

        pub(super) fn store(&self, value: Arc<T>) {
            // The old value is freed outside of the lock, as arc_swap does.
            let old = std::mem::replace(&mut *self.0.lock().unwrap(), value);
            drop(old);
        }
    }
}

/// How many interleavings are tried.
const RUNS: usize = 3_000;
/// What stands for the plugins of a set: all of one set are of its generation.
struct Set {
    generation: u64,
    plugins: [u64; 3],
    alive: Arc<AtomicUsize>,
}

impl Set {
    fn new(generation: u64, alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, SeqCst);
        Self { generation, plugins: [generation; 3], alive: Arc::clone(alive) }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, SeqCst);
    }
}

#[test]
fn one_set_decides_a_batch_and_no_worker_goes_back() {
    shuttle::check_random(
        || {
            let alive = Arc::default();
            let switch = Arc::new(switch::Switch::new(Set::new(1, &alive)));
            let (in_force, replacing) =
                (Arc::new(AtomicU64::new(1)), Arc::new(shuttle::sync::Mutex::new(())));
            let mut threads = Vec::new();
            for _ in 0..2 {
                let (switch, in_force) = (Arc::clone(&switch), Arc::clone(&in_force));
                threads.push(thread::spawn(move || work(3, || switch.get(), &in_force, thread::yield_now)));
            }
            for _ in 0..2 {
                let (switch, in_force) = (Arc::clone(&switch), Arc::clone(&in_force));
                let (replacing, alive) = (Arc::clone(&replacing), Arc::clone(&alive));
                threads.push(thread::spawn(move || {
                    let _one_at_a_time = replacing.lock().unwrap();
                    let next = switch.get().generation + 1;
                    switch.put(Set::new(next, &alive));
                    in_force.store(next, SeqCst);
                }));
            }
            threads.into_iter().for_each(|thread| thread.join().expect("ends"));
            assert_eq!(switch.get().generation, 3, "no replacement is lost");
            assert_eq!(alive.load(SeqCst), 1, "the old sets are freed");
        },
        RUNS,
    );
}

#[test]
fn the_real_switch_keeps_its_promises_among_real_threads() {
    const SWAPS: u64 = 2_000;
    let alive = Arc::default();
    let switch = super::switch::Switch::new(Set::new(1, &alive));
    let (in_force, ended) = (AtomicU64::new(1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !ended.load(SeqCst) {
                    work(10, || switch.get(), &in_force, std::hint::spin_loop);
                }
            });
        }
        for next in 2..=SWAPS {
            switch.put(Set::new(next, &alive));
            in_force.store(next, SeqCst);
        }
        ended.store(true, SeqCst);
    });
    assert_eq!(switch.get().generation, SWAPS);
    assert_eq!(alive.load(SeqCst), 1, "the old sets are freed");
}

#[test]
fn an_old_set_is_freed_with_the_last_of_its_batches() {
    let alive = Arc::default();
    let switch = super::switch::Switch::new(Set::new(1, &alive));
    let (first, second) = (switch.get(), switch.get());
    let watch: Weak<Set> = Arc::downgrade(&first);
    switch.put(Set::new(2, &alive));
    drop(first);
    assert!(watch.upgrade().is_some(), "a batch still has it");
    drop(second);
    assert!(watch.upgrade().is_none());
    assert_eq!(alive.load(SeqCst), 1);
}

/// A worker takes batches, each with the set in force when it begins.
fn work(batches: usize, current: impl Fn() -> Arc<Set>, in_force: &AtomicU64, pause: impl Fn()) {
    let mut before = 0;
    for _ in 0..batches {
        let certain = in_force.load(SeqCst);
        let set = current();
        assert!(set.generation >= certain, "{} although {certain} was in force", set.generation);
        assert!(set.generation >= before, "back from {before} to {}", set.generation);
        for plugin in set.plugins {
            pause();
            assert_eq!(plugin, set.generation, "two sets in one batch");
        }
        before = set.generation;
    }
}
