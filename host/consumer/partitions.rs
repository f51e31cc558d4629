//! All assigned partitions.

mod statistics;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use prometheus_client::metrics::counter::Counter;
use rdkafka::{Offset, TopicPartitionList};

use crate::consumer::in_flight_limit::InFlightLimit;
use crate::consumer::metadata::CommitMetadata;
use crate::consumer::metrics::Metrics;
use crate::consumer::partition::{AcceptOutcome, Fill, LogPosition, Partition};
use crate::consumer::partition_key::{PartitionKey, add_offset};
use crate::consumer::stream::PartitionStream;
use crate::kafka::TopicId;
use crate::memory_guard::MemoryGuard;
use crate::message::Record;
use crate::stalls::{HeldRecord, StallStage, Stalls};

/// How long a partition that was paused takes to deliver records again.
const PAUSE_COSTS: Duration = Duration::from_secs(1);

/// How long reading stops when the buffers are full: for longer if so much may be in flight that nothing
/// runs dry meanwhile.
const SHORT_REST: Duration = Duration::from_millis(1);
const LONG_REST: Duration = Duration::from_millis(4);
const MUCH_IN_FLIGHT: usize = 1024;

/// What to do about partitions whose buffer is full.
pub(super) struct Relief {
    /// Partitions to pause.
    pub(super) pause: Vec<PartitionKey>,
    /// For how long to stop reading, if at all.
    pub(super) rest: Option<Duration>,
}

/// All assigned partitions.
pub(super) struct Partitions {
    assigned: HashMap<PartitionKey, Partition, RandomState>,
    /// The topic of the last record, and how many of its records were read.
    last_topic: Option<(Arc<str>, Counter)>,
    /// Topics that this process has consumed.
    known: BTreeSet<Arc<str>>,
    total: InFlightLimit,
    /// No more work is started, not on newly assigned partitions either.
    closing: bool,
    /// Records without an outcome on partitions that were revoked while closing.
    unfinished: usize,
    /// How many partitions were revoked while closing with offsets that are not committed.
    uncommitted: usize,
    memory: MemoryGuard,
    /// The next partition to refill while memory is short.
    next_refill: usize,
    metrics: Metrics,
}

impl Partitions {
    pub(super) fn new(total: InFlightLimit, memory: MemoryGuard, metrics: Metrics) -> Self {
        Self {
            assigned: HashMap::default(),
            last_topic: None,
            known: BTreeSet::new(),
            total,
            closing: false,
            unfinished: 0,
            uncommitted: 0,
            memory,
            next_refill: 0,
            metrics,
        }
    }

    /// A newly assigned partition; the stream is for its worker.
    pub(super) fn assign(&mut self, topic: Arc<str>, number: i32) -> PartitionStream {
        let (mut partition, stream) = Partition::assign(Arc::clone(&topic), number, self.total.records);
        if self.closing {
            partition.close();
        }
        self.metrics.topic(&topic);
        self.assigned.insert((topic, number), partition);
        stream
    }

    /// Starts this partition: see [`Partition::begin`].
    pub(super) fn begin(&mut self, key: &PartitionKey, next: Option<i64>, metadata: CommitMetadata) {
        self.known.insert(Arc::clone(&key.0));
        if let Some(partition) = self.assigned.get_mut(key) {
            partition.begin(next, metadata);
        }
    }

    /// Topics that this process has consumed.
    pub(super) fn known(&self) -> BTreeSet<Arc<str>> {
        self.known.clone()
    }

    /// The partitions without a known position.
    pub(super) fn unpositioned(&self) -> Vec<(PartitionKey, LogPosition)> {
        let all = self.assigned.iter().map(|(key, partition)| (key.clone(), partition.log_position()));
        all.filter(|(_, log_position)| *log_position != LogPosition::Known).collect()
    }

    /// The partitions with their next offset, where it is known.
    pub(super) fn expected(&self) -> Vec<(PartitionKey, i64)> {
        let expected =
            |(key, partition): (&PartitionKey, &Partition)| Some((key.clone(), partition.expected()?));
        self.assigned.iter().filter_map(expected).collect()
    }

    /// The topic has this id now. Partitions without a known id commit it from now on. Drops the
    /// trackers of partitions that read another incarnation, and returns these partitions with the
    /// number of records that were in flight.
    pub(super) fn update_topic_id(&mut self, topic: &str, id: Option<TopicId>) -> Vec<(PartitionKey, usize)> {
        let mut others = Vec::new();
        for (key, partition) in self.assigned.iter_mut().filter(|(key, _)| &*key.0 == topic) {
            let placed = partition.log_position() == LogPosition::Known;
            partition.set_topic_id(id);
            if placed && partition.metadata().is_some_and(|metadata| metadata.is_of_other_topic(id)) {
                others.push((key.clone(), partition.reset_log(false)));
            }
        }
        others
    }

    /// This partition is stalled for this reason until a record arrives.
    pub(super) fn hold(
        &mut self,
        stalls: &Stalls,
        key: &PartitionKey,
        offset: Option<i64>,
        cause: &dyn Display,
    ) {
        let Some(partition) = self.assigned.get_mut(key) else { return };
        let (topic, number) = (Arc::clone(&key.0), key.1);
        let held = HeldRecord { stage: StallStage::Consume, topic, partition: number, offset };
        partition.hold(|| stalls.begin(held), cause);
    }

    /// The reason for this partition's stall has ended.
    pub(super) fn release(&mut self, key: &PartitionKey) {
        if let Some(partition) = self.assigned.get_mut(key) {
            partition.release();
        }
    }

    /// One assigned partition.
    pub(super) fn get_mut(&mut self, key: &PartitionKey) -> Option<&mut Partition> {
        self.assigned.get_mut(key)
    }

    /// The topics of the assigned partitions.
    pub(super) fn topics(&self) -> BTreeSet<Arc<str>> {
        self.assigned.keys().map(|(topic, _)| Arc::clone(topic)).collect()
    }

    /// Removes revoked partitions; their workers start no more work. Workers of `lost` partitions
    /// are cancelled at once, since another member owns them already.
    pub(super) fn take(&mut self, keys: Vec<PartitionKey>, lost: bool) -> Vec<(PartitionKey, Partition)> {
        let mut taken = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(mut partition) = self.assigned.remove(&key) else { continue };
            if lost {
                partition.cancel();
            } else {
                partition.close();
            }
            taken.push((key, partition));
        }
        taken
    }

    pub(super) fn cancel_all(&mut self) {
        self.assigned.values_mut().for_each(Partition::cancel);
        self.clear();
    }

    /// What one partition may have in flight now. While memory is short, one partition at a time
    /// gets a small limit, and only once nothing else is in flight.
    fn limit(&self) -> InFlightLimit {
        if !self.memory.is_stopped() {
            return self.total.share(self.assigned.len());
        }
        let idle = self.assigned.values().all(|partition| partition.unsettled().records == 0);
        if idle { InFlightLimit::LITTLE } else { InFlightLimit::NOTHING }
    }

    /// Takes a record. Also returns how full its partition's buffer is now.
    pub(super) fn accept(
        &mut self,
        key: &PartitionKey,
        record: Record,
        now: Instant,
    ) -> (AcceptOutcome, Fill) {
        let limit = self.limit();
        self.count_read(&key.0);
        match self.assigned.get_mut(key) {
            Some(partition) => {
                let outcome = partition.accept(record, limit, now);
                (outcome, partition.fill(limit))
            }
            // Fetched before the partition was revoked: its next owner reads it.
            None => (AcceptOutcome::Dropped, Fill::Nothing),
        }
    }

    fn count_read(&mut self, topic: &Arc<str>) {
        match &self.last_topic {
            Some((last, read)) if last == topic => {
                read.inc();
            }
            _ => {
                let read = self.metrics.records_of(topic);
                read.inc();
                self.last_topic = Some((Arc::clone(topic), read));
            }
        }
    }

    /// Admits waiting records. Returns the paused partitions that should resume.
    pub(super) fn refill(&mut self, now: Instant) -> Vec<PartitionKey> {
        self.memory.update(now);
        if self.memory.is_stopped() {
            return self.refill_one(now);
        }
        let limit = self.limit();
        let mut resumed = Vec::new();
        for (key, partition) in &mut self.assigned {
            if partition.refill(limit, now) {
                resumed.push(key.clone());
            }
        }
        resumed
    }

    /// Refills one partition with waiting records, in rotation.
    fn refill_one(&mut self, now: Instant) -> Vec<PartitionKey> {
        let limit = self.limit();
        let mut full: Vec<_> =
            self.assigned.iter_mut().filter(|(_, partition)| partition.is_full()).collect();
        if limit == InFlightLimit::NOTHING || full.is_empty() {
            return Vec::new();
        }
        self.next_refill = self.next_refill.wrapping_add(1);
        let next_refill = self.next_refill % full.len();
        let (key, partition) = &mut full[next_refill];
        let resumes = partition.refill(limit, now);
        resumes.then(|| key.clone()).into_iter().collect()
    }

    /// What to do about partitions whose buffer is full.
    ///
    /// A pause costs a second: librdkafka discards what it has fetched, and after `resume` its broker
    /// thread may sleep for that long (2.12; `rd_kafka_toppar_pause_resume` does not wake it). So
    /// reading stops for a moment while such a partition makes progress, unless it has been full for
    /// as long as a pause costs and other partitions are idle. A partition without progress is
    /// paused.
    pub(super) fn relieve(&mut self, now: Instant) -> Relief {
        let limit = self.limit();
        let any_hungry = self.assigned.values().any(Partition::is_hungry);
        let mut relief = Relief { pause: Vec::new(), rest: None };
        let rest = if limit.records >= MUCH_IN_FLIGHT { LONG_REST } else { SHORT_REST };
        let at_limit = |partition: &Partition| partition.fill(limit) == Fill::AtLimit;
        for (key, partition) in self.assigned.iter_mut().filter(|(_, partition)| at_limit(partition)) {
            let (full, stuck) = partition.has_waited(now);
            if limit.held() == 0 || stuck >= PAUSE_COSTS || any_hungry && full >= PAUSE_COSTS {
                partition.pause();
                relief.pause.push(key.clone());
            } else {
                relief.rest = Some(rest);
            }
        }
        relief
    }

    /// Whether the worker of a partition has ended unexpectedly.
    pub(super) fn any_worker_ended(&self) -> bool {
        self.assigned.values().any(Partition::has_worker_ended)
    }

    pub(super) fn any_full(&self) -> bool {
        self.assigned.values().any(Partition::is_full)
    }

    pub(super) fn any_idle(&self) -> bool {
        self.assigned.values().any(Partition::is_idle)
    }

    /// librdkafka's position in each partition, past offsets that hold no records.
    pub(super) fn skip_to(&mut self, positions: &TopicPartitionList) {
        for element in positions.elements() {
            let key = (Arc::from(element.topic()), element.partition());
            if let (Some(partition), Offset::Offset(offset)) = (self.assigned.get_mut(&key), element.offset())
            {
                partition.skip_to(offset);
            }
        }
    }

    /// The watermarks that have moved since the last call.
    pub(super) fn take_settled(&mut self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for ((topic, number), partition) in &mut self.assigned {
            if let Some(offset) = partition.to_store() {
                add_offset(&mut list, topic, *number, offset, partition.metadata());
                partition.set_stored(Some(offset));
            }
        }
        list
    }

    /// These could not be stored: the next call returns them again.
    pub(super) fn reset_stored(&mut self, list: &TopicPartitionList) {
        for element in list.elements() {
            let key = (Arc::from(element.topic()), element.partition());
            if let Some(partition) = self.assigned.get_mut(&key) {
                partition.set_stored(None);
            }
        }
    }

    pub(super) fn close_all(&mut self) {
        self.closing = true;
        self.assigned.values_mut().for_each(Partition::close);
    }

    pub(super) fn all_done(&self) -> bool {
        self.assigned.values().all(Partition::is_done)
    }

    /// Tells the workers that are not done to drop everything. Returns how many records were
    /// left without an outcome.
    pub(super) fn cancel_all_unfinished(&mut self) -> usize {
        self.assigned.values_mut().map(Partition::cancel_unfinished).sum()
    }

    /// A revocation left `unfinished` records without an outcome, and the offsets of `uncommitted`
    /// partitions uncommitted.
    pub(super) fn note_revoked(&mut self, unfinished: usize, uncommitted: usize) {
        if self.closing {
            self.unfinished += unfinished;
            self.uncommitted += uncommitted;
        }
    }

    /// What revocations have left since [`Partitions::close_all`]: see [`Partitions::note_revoked`].
    pub(super) fn left_by_revocations(&self) -> (usize, usize) {
        (self.unfinished, self.uncommitted)
    }

    /// Kafka has confirmed these.
    pub(super) fn note_committed(&mut self, offsets: &TopicPartitionList) {
        for element in offsets.elements().iter().filter(|element| element.error().is_ok()) {
            let key = (Arc::from(element.topic()), element.partition());
            if let (Some(partition), Offset::Offset(offset)) = (self.assigned.get_mut(&key), element.offset())
            {
                partition.note_committed(Some(offset));
            }
        }
    }

    /// Drops what was kept for a commit for too long.
    pub(super) fn expire_kept(&self, now: Instant) {
        self.assigned.values().for_each(|partition| partition.expire_kept(now));
    }

    /// Kafka has confirmed everything that was stored.
    pub(super) fn note_all_committed(&mut self) {
        self.assigned.values_mut().for_each(|partition| partition.note_committed(None));
    }

    /// The partitions whose watermark Kafka has not confirmed, with the watermark.
    pub(super) fn uncommitted(&self) -> Vec<(PartitionKey, i64)> {
        uncommitted(&self.assigned)
    }

    pub(super) fn clear(&mut self) {
        self.assigned.clear();
    }
}

/// Those of these partitions whose watermark Kafka has not confirmed, with the watermark.
pub(super) fn uncommitted<'a>(
    partitions: impl IntoIterator<Item = (&'a PartitionKey, &'a Partition)>,
) -> Vec<(PartitionKey, i64)> {
    let open = |(key, partition): (&PartitionKey, &Partition)| Some((key.clone(), partition.uncommitted()?));
    partitions.into_iter().filter_map(open).collect()
}
