//! What partitions do for each other: shares of memory, and workers that end.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::registry::Registry;

use super::*;
use crate::consumer::feed::Admitted;
use crate::message::Origin;

fn record(partition: i32, offset: i64) -> Record {
    Record {
        origin: Origin { topic: "push".into(), partition, offset },
        timestamp_ms: None,
        key: None,
        value: None,
        headers: Vec::new(),
        trusted: false,
    }
}

const NEXT: Arrival = Arrival::Next(Flow::Unchanged);
const PAUSE: Arrival = Arrival::Next(Flow::Pause);

/// A partition that begins with its first record.
fn assign(partitions: &mut Partitions, number: i32) -> Feed {
    let feed = partitions.assign("push".into(), number);
    partitions.begin(&("push".into(), number), None, Mark { topic: None, started: 1 });
    feed
}

fn taken(feeds: &mut [Feed]) -> Vec<Admitted> {
    feeds.iter_mut().filter_map(|feed| feed.records.try_recv().ok()).collect()
}

#[test]
fn while_memory_is_short_partitions_take_turns_and_none_stops_for_good() {
    let metrics = Metrics::register(&mut Registry::default());
    let memory = Arc::new(AtomicU64::new(100));
    let measured = Arc::clone(&memory);
    let measure = Box::new(move || Some(measured.load(Ordering::Relaxed)));
    let guard = MemoryGuard::measuring(Some(100), metrics.memory.clone(), measure);
    let mut partitions = Partitions::new(Limit { records: 100, bytes: 1 << 20 }, guard, metrics);
    let mut feeds: Vec<_> = (0..3).map(|number| assign(&mut partitions, number)).collect();
    assert!(partitions.refill().is_empty(), "it is measured");

    let flows: Vec<_> = (0..3).map(|number| partitions.accept(record(number, 0))).collect();
    assert_eq!(flows, [NEXT, PAUSE, PAUSE], "the first finds nothing in flight");
    let mut seen = Vec::new();
    for _ in 0..3 {
        partitions.refill();
        partitions.refill();
        let mut admitted = taken(&mut feeds);
        assert_eq!(admitted.len(), 1, "one at a time: {seen:?}");
        let Admitted { record, ticket } = admitted.remove(0);
        seen.push(record.origin.partition);
        ticket.settle();
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2]);

    memory.store(10, Ordering::Relaxed);
    partitions.memory.look(Instant::now() + std::time::Duration::from_secs(1));
    assert!((0..3).all(|number| partitions.accept(record(number, 1)) == NEXT));
    assert_eq!(taken(&mut feeds).len(), 3);
}

#[test]
fn a_worker_that_ends_by_itself_is_noticed_and_a_full_one_is_not() {
    let metrics = Metrics::register(&mut Registry::default());
    let guard = MemoryGuard::new(None, metrics.memory.clone());
    let mut partitions = Partitions::new(Limit { records: 1, bytes: 1 << 20 }, guard, metrics);
    let feed = assign(&mut partitions, 0);
    assert_eq!(partitions.accept(record(0, 0)), NEXT);
    assert_eq!(partitions.accept(record(0, 1)), PAUSE);
    assert!(!partitions.worker_is_gone());
    drop(feed);
    let _feed = assign(&mut partitions, 1);
    assert!(!partitions.worker_is_gone(), "nobody has asked it for anything");
    drop(assign(&mut partitions, 2));
    partitions.accept(record(2, 0));
    assert!(partitions.worker_is_gone());
}
