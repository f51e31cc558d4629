//! Tests of all partitions together: shares of memory, and workers that end.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::registry::Registry;

use super::*;
use crate::consumer::stream::InFlightRecord;
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

fn accept(partitions: &mut Partitions, partition: i32, offset: i64) -> Fill {
    let record = record(partition, offset);
    let key = (Arc::clone(&record.origin.topic), partition);
    let (outcome, fill) = partitions.accept(&key, record, Instant::now());
    assert_eq!(outcome, AcceptOutcome::Accepted);
    fill
}

fn refill(partitions: &mut Partitions) -> Vec<PartitionKey> {
    partitions.refill(Instant::now())
}

/// A partition that starts at its first record.
fn assign(partitions: &mut Partitions, number: i32) -> PartitionStream {
    let stream = partitions.assign("push".into(), number);
    partitions.begin(&("push".into(), number), None, CommitMetadata { topic: None, initial_partitions: 1 });
    stream
}

fn taken(streams: &mut [PartitionStream]) -> Vec<InFlightRecord> {
    streams.iter_mut().filter_map(|stream| stream.records.try_recv().ok()).collect()
}

#[test]
fn partitions_take_turns_while_memory_is_short() {
    let metrics = Metrics::register(&mut Registry::default());
    let memory = Arc::new(AtomicU64::new(100));
    let measured = Arc::clone(&memory);
    let measure = Box::new(move || Some(measured.load(Ordering::Relaxed)));
    let guard = MemoryGuard::measuring(Some(100), metrics.memory.clone(), measure);
    let mut partitions = Partitions::new(InFlightLimit { records: 100, bytes: 1 << 20 }, guard, metrics);
    let mut streams: Vec<_> = (0..3).map(|number| assign(&mut partitions, number)).collect();
    assert!(refill(&mut partitions).is_empty(), "it is measured");

    let fills: Vec<_> = (0..3).map(|number| accept(&mut partitions, number, 0)).collect();
    assert_eq!(fills, [Fill::Nothing, Fill::AtLimit, Fill::AtLimit], "the first finds nothing in flight");
    let Relief { pause, rest } = partitions.relieve(Instant::now());
    assert_eq!((pause.len(), rest), (2, None), "what is fetched ahead takes memory, too");
    let mut seen = Vec::new();
    for _ in 0..3 {
        refill(&mut partitions);
        refill(&mut partitions);
        let mut admitted = taken(&mut streams);
        assert_eq!(admitted.len(), 1, "one at a time: {seen:?}");
        let InFlightRecord { record, ack } = admitted.remove(0);
        seen.push(record.origin.partition);
        ack.settle();
    }
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2]);

    memory.store(10, Ordering::Relaxed);
    partitions.memory.update(Instant::now() + std::time::Duration::from_secs(1));
    assert!((0..3).all(|number| accept(&mut partitions, number, 1) == Fill::Nothing));
    assert_eq!(taken(&mut streams).len(), 3);
}

#[test]
fn a_worker_that_ends_is_noticed_and_a_full_one_is_not() {
    let metrics = Metrics::register(&mut Registry::default());
    let guard = MemoryGuard::new(None, metrics.memory.clone());
    let mut partitions = Partitions::new(InFlightLimit { records: 1, bytes: 1 << 20 }, guard, metrics);
    let stream = assign(&mut partitions, 0);
    assert_eq!(accept(&mut partitions, 0, 0), Fill::Nothing);
    assert_eq!(accept(&mut partitions, 0, 1), Fill::Something);
    assert!(!partitions.any_worker_ended());
    drop(stream);
    let _feed = assign(&mut partitions, 1);
    assert!(!partitions.any_worker_ended(), "nobody has asked it for anything");
    drop(assign(&mut partitions, 2));
    accept(&mut partitions, 2, 0);
    assert!(partitions.any_worker_ended());
}

/// Two partitions with a little room each, and how many records fill the first one.
fn full(streams: &mut Vec<PartitionStream>) -> (Partitions, i64) {
    let metrics = Metrics::register(&mut Registry::default());
    let guard = MemoryGuard::new(None, metrics.memory.clone());
    let mut partitions = Partitions::new(InFlightLimit { records: 4, bytes: 32 << 10 }, guard, metrics);
    streams.extend((0..2).map(|number| assign(&mut partitions, number)));
    let mut offset = 0;
    while accept(&mut partitions, 0, offset) != Fill::AtLimit {
        offset += 1;
    }
    (partitions, offset)
}

#[test]
fn a_full_partition_that_moves_on_is_waited_for_while_others_have_something_to_do() {
    let mut streams = Vec::new();
    let (mut partitions, _) = full(&mut streams);
    for offset in 0..4 {
        accept(&mut partitions, 1, offset);
    }
    let later = Instant::now() + PAUSE_COSTS * 2;
    streams[0].records.try_recv().expect("admitted").ack.settle();
    partitions.refill(later);
    // The refill made room in the buffer.
    let relief = partitions.relieve(later);
    assert!(relief.pause.is_empty());
}

#[test]
fn a_full_partition_is_paused_when_it_is_stuck_or_when_others_have_nothing_to_do() {
    let mut streams = Vec::new();
    let (mut partitions, _) = full(&mut streams);
    let Relief { pause, rest } = partitions.relieve(Instant::now());
    assert!(pause.is_empty() && rest == Some(SHORT_REST), "not at once");
    let Relief { pause, rest } = partitions.relieve(Instant::now() + PAUSE_COSTS * 2);
    assert!(pause == [("push".into(), 0)] && rest.is_none(), "it is stuck");
    let Relief { pause, rest } = partitions.relieve(Instant::now() + PAUSE_COSTS * 2);
    assert!(pause.is_empty() && rest.is_none(), "once");
}
