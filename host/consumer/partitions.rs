//! All assigned partitions, and what is counted of them.

use std::collections::HashMap;
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rdkafka::{Statistics, TopicPartitionList};

use crate::consumer::add_offset;
use crate::consumer::partition::{Feed, Flow, Limit, Partition};
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
    metrics: Metrics,
}

impl Partitions {
    pub(super) fn new(total: Limit, metrics: Metrics) -> Self {
        Self { assigned: HashMap::new(), total, closing: false, abandoned: 0, metrics }
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

    fn limit(&self) -> Limit {
        self.total.share(self.assigned.len())
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
        let limit = self.limit();
        let mut resumed = Vec::new();
        for (key, partition) in &mut self.assigned {
            if partition.refill(limit) == Flow::Resume {
                resumed.push(key.clone());
            }
        }
        resumed
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
