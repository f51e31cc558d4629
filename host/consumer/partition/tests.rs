//! Tests of one partition: limits, order, pauses, and how it closes.

use proptest::prelude::*;

use super::*;
use crate::message::Origin;

const LIMIT: InFlightLimit = InFlightLimit { records: 4, bytes: 8000 };

fn record(offset: i64, size: usize) -> Record {
    Record {
        origin: Origin { topic: "push".into(), partition: 0, offset },
        timestamp_ms: None,
        key: None,
        value: Some(vec![0; size].into()),
        headers: Vec::new(),
        trusted: false,
    }
}

const METADATA: CommitMetadata = CommitMetadata { topic: None, initial_partitions: 1 };

/// An assigned partition that starts at its first record.
fn assigned() -> (Partition, PartitionStream) {
    let (mut partition, stream) = Partition::assign("push".into(), 0, 4);
    partition.begin(None, METADATA);
    (partition, stream)
}

/// Accepts the next record.
fn accept(partition: &mut Partition, offset: i64, size: usize) -> Fill {
    assert_eq!(arrive(partition, offset, size), AcceptOutcome::Accepted);
    partition.fill(LIMIT)
}

fn arrive(partition: &mut Partition, offset: i64, size: usize) -> AcceptOutcome {
    partition.accept(record(offset, size), LIMIT, Instant::now())
}

fn refill(partition: &mut Partition) -> bool {
    partition.refill(LIMIT, Instant::now())
}

fn taken(stream: &mut PartitionStream) -> Vec<InFlightRecord> {
    std::iter::from_fn(|| stream.records.try_recv().ok()).collect()
}

#[test]
fn what_a_full_partition_brings_waits_and_a_pause_ends_when_half_of_it_is_admitted() {
    let (mut partition, mut stream) = assigned();
    let fills: Vec<_> = (0..12).map(|offset| accept(&mut partition, offset, 100)).collect();
    let fill = |fill, times| std::iter::repeat_n(fill, times);
    let expected = fill(Fill::Nothing, 4).chain(fill(Fill::Something, 7)).chain(fill(Fill::AtLimit, 1));
    assert!(fills.iter().copied().eq(expected), "8 of about 1,100 bytes are more than may wait: {fills:?}");
    partition.pause();
    assert_eq!(accept(&mut partition, 12, 100), Fill::Something, "it was on its way");

    let mut resumed_with = None;
    for settled in 1..=13 {
        taken_one(&mut stream).ack.settle();
        if refill(&mut partition) {
            resumed_with = resumed_with.or(Some(13 - 4 - settled));
        }
    }
    assert_eq!(resumed_with, Some(3), "still waiting");
    assert_eq!(partition.to_store(), Some(13));
}

fn taken_one(stream: &mut PartitionStream) -> InFlightRecord {
    stream.records.try_recv().expect("a record")
}

#[test]
fn how_long_a_partition_is_full_and_stuck_is_known() {
    let (mut partition, mut stream) = assigned();
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    for offset in 0..6 {
        partition.accept(record(offset, 1), LIMIT, at(1));
    }
    assert_eq!(partition.has_waited(at(4)), (Duration::from_secs(3), Duration::from_secs(3)));
    taken(&mut stream).remove(0).ack.settle();
    partition.refill(LIMIT, at(5));
    assert_eq!(partition.has_waited(at(7)), (Duration::from_secs(6), Duration::from_secs(2)));
}

#[test]
fn a_record_larger_than_the_limit_is_admitted() {
    let (mut partition, mut stream) = assigned();
    assert_eq!(accept(&mut partition, 0, 50_000), Fill::Nothing);
    assert_eq!(accept(&mut partition, 1, 1), Fill::Something);
    taken(&mut stream).remove(0).ack.settle();
    refill(&mut partition);
    assert_eq!(taken(&mut stream).len(), 1);
}

#[test]
fn a_record_that_never_settles_pauses_the_partition() {
    let (mut partition, mut stream) = assigned();
    let mut stuck = None;
    let mut offset = 0;
    let full_at = loop {
        let fill = accept(&mut partition, offset, 1);
        for admitted in taken(&mut stream) {
            match stuck {
                None => stuck = Some(admitted),
                Some(_) => admitted.ack.settle(),
            }
        }
        if fill == Fill::Something {
            break offset;
        }
        offset += 1;
    };
    assert_eq!(full_at, 64, "16 times the limit");
    stuck.expect("admitted").ack.settle();
    refill(&mut partition);
    assert_eq!(partition.fill(LIMIT), Fill::Nothing);
}

#[test]
fn closing_drops_records_not_started() {
    let (mut partition, mut stream) = assigned();
    for offset in 0..6 {
        accept(&mut partition, offset, 1);
    }
    let begun = stream.records.try_recv().expect("admitted");
    partition.close();
    assert!(stream.closing.is_cancelled() && !stream.cancel.is_cancelled());
    begun.ack.settle();
    drop(stream);
    assert!(partition.is_done());
    partition.cancel_unfinished();
    assert_eq!(partition.to_store(), Some(1));
}

#[test]
fn a_worker_that_does_not_finish_is_cancelled() {
    let (mut partition, mut stream) = assigned();
    accept(&mut partition, 0, 1);
    let begun = stream.records.try_recv().expect("admitted");
    partition.close();
    assert_eq!(partition.cancel_unfinished(), 1);
    assert!(stream.cancel.is_cancelled());
    assert_eq!(partition.to_store(), None);
    drop(begun);
}

#[test]
fn records_are_dropped_until_the_start_is_known() {
    let (mut partition, mut stream) = Partition::assign("push".into(), 0, 4);
    assert_eq!(arrive(&mut partition, 7, 1), AcceptOutcome::Dropped);
    partition.begin(Some(3), METADATA);
    partition.set_log_range(0, 10, Instant::now());
    assert_eq!(partition.lag(), Some(7), "also before the first record is settled");
    assert_eq!(accept(&mut partition, 3, 1), Fill::Nothing);
    assert_eq!(taken(&mut stream)[0].record.origin.offset, 3);
}

#[test]
fn the_lag_in_time_is_the_age_of_the_first_unsettled_record() {
    let (mut partition, mut stream) = assigned();
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    assert_eq!(partition.lag_duration(start, 10_000), None, "Kafka has not reported the log's range");
    let mut arrive = |offset, timestamp_ms| {
        let record = Record { timestamp_ms, ..record(offset, 1) };
        assert_eq!(partition.accept(record, LIMIT, start), AcceptOutcome::Accepted);
    };
    arrive(0, Some(7_000));
    arrive(1, Some(99_000));
    arrive(2, None);
    assert_eq!(partition.lag_duration(start, 10_000), Some(3 * second));
    let mut settle = || taken_one(&mut stream).ack.settle();
    settle();
    assert_eq!(partition.lag_duration(start, 10_000), Some(Duration::ZERO), "its clock is ahead");
    partition.set_log_range(0, 3, start);
    assert_eq!(partition.lag_duration(start + second, 11_000), Some(second), "as long as it stands still");
    settle();
    partition.set_log_range(0, 3, start + 2 * second);
    assert_eq!(partition.lag_duration(start + 5 * second, 15_000), Some(3 * second), "it has moved since");
    settle();
    partition.set_log_range(0, 3, start + 6 * second);
    assert_eq!(partition.lag_duration(start + 60 * second, 70_000), Some(Duration::ZERO), "all is settled");

    partition.set_log_range(0, 4, start + 60 * second);
    partition.set_log_range(0, 9, start + 70 * second);
    let lag = partition.lag_duration(start + 80 * second, 90_000);
    assert_eq!(lag, Some(20 * second), "a record that never arrives ages as well");
}

#[test]
fn a_recreated_log_has_a_new_tracker() {
    let (mut partition, mut stream) = assigned();
    (50..53).for_each(|offset| assert_eq!(accept(&mut partition, offset, 1), Fill::Nothing));
    let mut old = taken(&mut stream);
    old.remove(0).ack.settle();
    assert_eq!(partition.to_store(), Some(51));
    assert_eq!(arrive(&mut partition, 0, 1), AcceptOutcome::OffsetRegression);
    assert_eq!(partition.log_position(), LogPosition::Suspect { offset: 0 });
    assert_eq!(partition.to_store(), None, "nothing of the old log goes into one that may be new");
    assert_eq!(arrive(&mut partition, 1, 1), AcceptOutcome::Dropped);

    assert_eq!(partition.reset_log(true), 2, "in flight");
    let metadata = CommitMetadata { initial_partitions: 0, ..METADATA };
    partition.begin(Some(0), metadata);
    (0..2).for_each(|offset| assert_eq!(accept(&mut partition, offset, 1), Fill::Nothing));
    old.into_iter().for_each(|admitted| admitted.ack.settle());
    assert_eq!(partition.to_store(), None, "ack handles of the old log have no effect");
    taken(&mut stream).remove(0).ack.settle();
    assert_eq!((partition.to_store(), partition.metadata()), (Some(1), Some(metadata)));
}

#[test]
fn a_duplicate_record_changes_nothing() {
    let (mut partition, mut stream) = assigned();
    (0..3).for_each(|offset| assert_eq!(accept(&mut partition, offset, 1), Fill::Nothing));
    assert_eq!(arrive(&mut partition, 1, 1), AcceptOutcome::OffsetRegression);
    assert_eq!(partition.resume_log(), Some(3), "where Kafka is to go on");
    assert_eq!(accept(&mut partition, 3, 1), Fill::Nothing);
    taken(&mut stream).into_iter().for_each(|admitted| admitted.ack.settle());
    assert_eq!(partition.to_store(), Some(4));
}

#[test]
fn gaps_are_reported_and_empty_tails_skipped() {
    let (mut partition, mut stream) = assigned();
    partition.begin(Some(5), METADATA);
    let after = AcceptOutcome::AcceptedAfterGap { expected: 5 };
    assert_eq!(arrive(&mut partition, 8, 1), after);
    partition.skip_to(12);
    assert_eq!(partition.to_store(), None, "a record is in flight");
    taken(&mut stream).remove(0).ack.settle();
    partition.skip_to(12);
    assert_eq!(partition.to_store(), Some(12));
    assert_eq!(accept(&mut partition, 12, 1), Fill::Nothing);
}

#[test]
fn records_removed_unread_are_reported_once() {
    let (mut partition, _feed) = assigned();
    partition.begin(Some(5), METADATA);
    assert_eq!(partition.lost_before(4), None);
    assert_eq!(partition.lost_before(9), Some(5));
    assert_eq!(partition.lost_before(9), None);
    assert_eq!(accept(&mut partition, 9, 1), Fill::Nothing);
}

#[test]
fn shares_are_equal_and_never_zero() {
    let total = InFlightLimit { records: 10, bytes: 100 };
    assert_eq!(total.share(4), InFlightLimit { records: 2, bytes: 25 });
    assert_eq!(total.share(1000), InFlightLimit { records: 1, bytes: 1 });
    assert_eq!(total.share(0), total);
}

/// What happens to a partition, by Kafka, the worker and the polling thread.
#[derive(Clone, Debug)]
enum PartitionStep {
    /// The next record arrives, of this size. librdkafka may have fetched records before a pause, so
    /// they arrive while the partition is paused, too.
    Arrive(usize),
    /// The worker takes a record.
    Take,
    /// One of the records that the worker has is settled.
    Settle(usize),
    /// The polling thread refills the partition.
    Refill,
    Commit,
}

fn step() -> impl Strategy<Value = PartitionStep> {
    prop_oneof![
        3 => (0usize..5000).prop_map(PartitionStep::Arrive),
        2 => Just(PartitionStep::Take),
        2 => any::<usize>().prop_map(PartitionStep::Settle),
        1 => Just(PartitionStep::Refill),
        1 => Just(PartitionStep::Commit),
    ]
}

/// A partition and what was observed of it.
struct PartitionTracker {
    partition: Partition,
    stream: PartitionStream,
    arrived: Vec<usize>,
    /// What the largest of them counts as.
    largest: usize,
    begun: Vec<InFlightRecord>,
    taken: i64,
    settled: std::collections::BTreeSet<i64>,
}

impl PartitionTracker {
    fn new() -> Self {
        let (partition, stream) = assigned();
        let (arrived, begun, settled) = (Vec::new(), Vec::new(), Default::default());
        Self { partition, stream, arrived, largest: 0, begun, taken: 0, settled }
    }

    fn step(&mut self, step: PartitionStep) {
        match step {
            PartitionStep::Arrive(size) => {
                let fill = accept(&mut self.partition, self.arrived.len() as i64, size);
                self.arrived.push(size);
                self.largest = self.largest.max(record(0, size).size());
                if fill == Fill::AtLimit {
                    self.partition.pause();
                }
            }
            PartitionStep::Take => {
                let Ok(admitted) = self.stream.records.try_recv() else { return };
                assert_eq!(admitted.record.origin.offset, self.taken, "lost or out of order");
                self.taken += 1;
                self.begun.push(admitted);
            }
            PartitionStep::Settle(at) if !self.begun.is_empty() => {
                let admitted = self.begun.swap_remove(at % self.begun.len());
                self.settled.insert(admitted.record.origin.offset);
                admitted.ack.settle();
            }
            PartitionStep::Settle(_) => {}
            PartitionStep::Refill => {
                let paused = self.partition.is_paused();
                let resumes = refill(&mut self.partition);
                assert!(!resumes || paused && self.partition.waiting_bytes <= LIMIT.held() / 2);
            }
            PartitionStep::Commit => {
                let Some(offset) = self.partition.to_store() else { return };
                assert!(self.partition.stored < Some(offset), "back to {offset}");
                let stored = self.partition.stored.unwrap_or(0);
                assert!((stored..offset).all(|offset| self.settled.contains(&offset)), "{offset} is too far");
                self.partition.set_stored(Some(offset));
                assert_eq!(self.partition.to_store(), None);
            }
        }
        self.check_limits();
    }

    /// The limits hold, up to the one record that crosses the one on bytes.
    fn check_limits(&self) {
        let UnsettledCount { records, bytes } = self.partition.unsettled();
        assert!(records <= LIMIT.records, "{records} records");
        assert!(bytes < LIMIT.bytes + self.largest, "{bytes} bytes");
        assert!(self.partition.offsets.window() <= LIMIT.window());
    }
}

proptest! {
    #[test]
    fn limits_hold_and_every_record_comes_once_in_order(
        steps in proptest::collection::vec(step(), 0..300)
    ) {
        let mut watched = PartitionTracker::new();
        for step in steps {
            watched.step(step);
        }
        // A worker that goes on settles everything, however full it was.
        while watched.settled.len() < watched.arrived.len() {
            let before = watched.settled.len();
            watched.step(PartitionStep::Refill);
            (0..LIMIT.records).for_each(|_| watched.step(PartitionStep::Take));
            (0..LIMIT.records).for_each(|_| watched.step(PartitionStep::Settle(0)));
            prop_assert!(watched.settled.len() > before, "stuck");
        }
        watched.step(PartitionStep::Refill);
        prop_assert!(!watched.partition.is_paused());
        watched.step(PartitionStep::Commit);
        let end = watched.arrived.len() as i64;
        prop_assert_eq!(watched.partition.offsets.watermark(), (end > 0).then_some(end));
    }
}
