//! All assigned partitions, and what is counted of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rdkafka::{Statistics, TopicPartitionList};

use crate::consumer::add_offset;
use crate::consumer::partition::{Feed, Flow, Limit, Partition};
use crate::memory_guard::{self, MemoryGuard};
use crate::message::Record;

/// What the consumer counts.
#[derive(Clone)]
pub struct Metrics {
    records: Family<TopicLabel, Counter>,
    lag: Family<PartitionLabels, Gauge>,
    unsettled: Family<PartitionLabels, Gauge>,
    assigned: Gauge,
    paused: Gauge,
    pub(super) rebalances: Counter,
    pub(super) memory: memory_guard::Metrics,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabel {
    topic: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabels {
    topic: String,
    partition: i32,
}

impl Metrics {
    /// Registers the consumer's metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            records: Family::default(),
            lag: Family::default(),
            unsettled: Family::default(),
            assigned: Gauge::default(),
            paused: Gauge::default(),
            rebalances: Counter::default(),
            memory: memory_guard::Metrics::register(registry),
        };
        registry.register("halley_records_consumed", "Records read from Kafka", metrics.records.clone());
        registry.register(
            "halley_consumer_lag",
            "Records behind the end of a partition",
            metrics.lag.clone(),
        );
        registry.register("halley_unsettled_records", "Records in flight", metrics.unsettled.clone());
        registry.register(
            "halley_partitions_assigned",
            "Partitions of this process",
            metrics.assigned.clone(),
        );
        registry.register(
            "halley_partitions_paused",
            "Partitions whose pipeline is full",
            metrics.paused.clone(),
        );
        registry.register("halley_rebalances", "Assignments and revocations", metrics.rebalances.clone());
        metrics
    }
}

/// A topic and the number of its partition.
pub(super) type Key = (Arc<str>, i32);

/// All assigned partitions.
pub(super) struct Partitions {
    assigned: HashMap<Key, Partition>,
    total: Limit,
    /// Nothing new is begun any more, on newly assigned partitions either.
    closing: bool,
    /// Records that partitions which went elsewhere left without an outcome while closing.
    abandoned: usize,
    memory: MemoryGuard,
    /// Whose turn it is while memory is short.
    turn: usize,
    metrics: Metrics,
}

impl Partitions {
    pub(super) fn new(total: Limit, memory: MemoryGuard, metrics: Metrics) -> Self {
        Self { assigned: HashMap::new(), total, closing: false, abandoned: 0, memory, turn: 0, metrics }
    }

    /// A newly assigned partition; the feed is for its worker.
    pub(super) fn assign(&mut self, topic: Arc<str>, number: i32) -> Feed {
        let (mut partition, feed) = Partition::assign(Arc::clone(&topic), number, self.total.records);
        if self.closing {
            partition.close();
        }
        self.assigned.insert((topic, number), partition);
        feed
    }

    /// Takes partitions out that go elsewhere; their workers begin nothing new. Those of
    /// `lost` ones drop everything at once: somebody else has them already.
    pub(super) fn take(&mut self, keys: Vec<Key>, lost: bool) -> Vec<(Key, Partition)> {
        let mut taken = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(mut partition) = self.assigned.remove(&key) else { continue };
            if lost {
                partition.abandon();
            } else {
                partition.close();
            }
            self.forget(&key);
            taken.push((key, partition));
        }
        taken
    }

    pub(super) fn abandon_all(&mut self) {
        self.assigned.values_mut().for_each(Partition::abandon);
        self.clear();
    }

    /// What one partition may have in flight now. While memory is short, one partition at a time
    /// may have a little, and only once nothing else is in flight.
    fn limit(&self) -> Limit {
        if !self.memory.is_stopped() {
            return self.total.share(self.assigned.len());
        }
        let idle = self.assigned.values().all(|partition| partition.unsettled().records == 0);
        if idle { Limit::LITTLE } else { Limit::NOTHING }
    }

    pub(super) fn accept(&mut self, record: Record) -> Flow {
        let limit = self.limit();
        let origin = &record.origin;
        self.metrics.records.get_or_create(&TopicLabel { topic: origin.topic.to_string() }).inc();
        let key = (Arc::clone(&origin.topic), origin.partition);
        match self.assigned.get_mut(&key) {
            Some(partition) => partition.accept(record, limit),
            // Fetched before the partition was taken away: its next owner reads it.
            None => Flow::Unchanged,
        }
    }

    /// Admits what waits; returns the partitions that may flow again.
    pub(super) fn refill(&mut self) -> Vec<Key> {
        self.memory.look(Instant::now());
        if self.memory.is_stopped() {
            return self.refill_one();
        }
        let limit = self.limit();
        let mut resumed = Vec::new();
        for (key, partition) in &mut self.assigned {
            if partition.refill(limit) == Flow::Resume {
                resumed.push(key.clone());
            }
        }
        resumed
    }

    /// The next partition that has something waiting, in turns.
    fn refill_one(&mut self) -> Vec<Key> {
        let limit = self.limit();
        let mut paused: Vec<_> = self.assigned.iter_mut().filter(|(_, p)| p.is_paused()).collect();
        if limit == Limit::NOTHING || paused.is_empty() {
            return Vec::new();
        }
        self.turn = self.turn.wrapping_add(1);
        let turn = self.turn % paused.len();
        let (key, partition) = &mut paused[turn];
        let resumes = partition.refill(limit) == Flow::Resume;
        resumes.then(|| key.clone()).into_iter().collect()
    }

    /// Whether the worker of a partition has ended by itself.
    pub(super) fn worker_is_gone(&self) -> bool {
        self.assigned.values().any(Partition::is_gone)
    }

    pub(super) fn any_paused(&self) -> bool {
        self.assigned.values().any(Partition::is_paused)
    }

    /// How far partitions are settled, where that has moved since the last time.
    pub(super) fn take_settled(&mut self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for ((topic, number), partition) in &mut self.assigned {
            if let Some(offset) = partition.to_store() {
                add_offset(&mut list, topic, *number, offset);
                partition.stored(Some(offset));
            }
        }
        list
    }

    /// These could not be stored: they are given out again.
    pub(super) fn not_stored(&mut self, list: &TopicPartitionList) {
        for element in list.elements() {
            let key = (Arc::from(element.topic()), element.partition());
            if let Some(partition) = self.assigned.get_mut(&key) {
                partition.stored(None);
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
    /// left without an outcome since [`Partitions::close_all`].
    pub(super) fn give_up_all(&mut self) -> usize {
        self.abandoned + self.assigned.values_mut().map(Partition::give_up).sum::<usize>()
    }

    /// A revocation left this many records without an outcome.
    pub(super) fn note_abandoned(&mut self, records: usize) {
        if self.closing {
            self.abandoned += records;
        }
    }

    pub(super) fn clear(&mut self) {
        let keys: Vec<_> = self.assigned.drain().map(|(key, _)| key).collect();
        keys.iter().for_each(|key| self.forget(key));
    }

    pub(super) fn observe(&self, statistics: &Statistics) {
        self.metrics.assigned.set(self.assigned.len() as i64);
        self.metrics.paused.set(self.assigned.values().filter(|p| p.is_paused()).count() as i64);
        for ((topic, number), partition) in &self.assigned {
            let labels = PartitionLabels { topic: topic.to_string(), partition: *number };
            let records = partition.unsettled().records as i64;
            self.metrics.unsettled.get_or_create(&labels).set(records);
            let found = statistics.topics.get(&**topic).and_then(|topic| topic.partitions.get(number));
            if let Some(lag) = found.map(|found| found.consumer_lag).filter(|lag| *lag >= 0) {
                self.metrics.lag.get_or_create(&labels).set(lag);
            }
        }
    }

    fn forget(&self, (topic, number): &Key) {
        let labels = PartitionLabels { topic: topic.to_string(), partition: *number };
        self.metrics.lag.remove(&labels);
        self.metrics.unsettled.remove(&labels);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::consumer::partition::Admitted;
    use crate::message::Origin;

    fn record(partition: i32, offset: i64) -> Record {
        Record {
            origin: Origin { topic: "push".into(), partition, offset },
            timestamp_ms: None,
            key: None,
            value: None,
            headers: Vec::new(),
        }
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
        let mut feeds: Vec<_> = (0..3).map(|number| partitions.assign("push".into(), number)).collect();
        assert!(partitions.refill().is_empty(), "it is measured");

        let flows: Vec<_> = (0..3).map(|number| partitions.accept(record(number, 0))).collect();
        assert_eq!(flows, [Flow::Unchanged, Flow::Pause, Flow::Pause], "the first finds nothing in flight");
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
        assert!((0..3).all(|number| partitions.accept(record(number, 1)) == Flow::Unchanged));
        assert_eq!(taken(&mut feeds).len(), 3);
    }

    #[test]
    fn a_worker_that_ends_by_itself_is_noticed_and_a_full_one_is_not() {
        let metrics = Metrics::register(&mut Registry::default());
        let guard = MemoryGuard::new(None, metrics.memory.clone());
        let mut partitions = Partitions::new(Limit { records: 1, bytes: 1 << 20 }, guard, metrics);
        let feed = partitions.assign("push".into(), 0);
        assert_eq!(partitions.accept(record(0, 0)), Flow::Unchanged);
        assert_eq!(partitions.accept(record(0, 1)), Flow::Pause);
        assert!(!partitions.worker_is_gone());
        drop(feed);
        let _feed = partitions.assign("push".into(), 1);
        assert!(!partitions.worker_is_gone(), "nobody has asked it for anything");
        drop(partitions.assign("push".into(), 2));
        partitions.accept(record(2, 0));
        assert!(partitions.worker_is_gone());
    }
}
