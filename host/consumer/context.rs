//! What librdkafka calls back: assignments, revocations, errors and statistics.
//!
//! All callbacks run on the polling thread. None of them may panic: the frames below are C.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Statistics, TopicPartitionList};
use tracing::{debug, error, info, warn};

use crate::consumer::partition::{Flow, Limit, Partition};
use crate::consumer::{OnAssigned, add_offset};
use crate::message::Record;

/// Whether Kafka is there, for readiness.
#[derive(Clone, Default)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    brokers_up: bool,
    in_group: bool,
    last_error: Option<String>,
}

impl Health {
    /// Why records are not flowing; `None` when they are.
    pub fn problem(&self) -> Option<String> {
        let state = lock(&self.state);
        if !state.brokers_up {
            let last = state.last_error.as_deref().unwrap_or("no connection yet");
            return Some(format!("kafka: no broker answers ({last}); check `[kafka] brokers`"));
        }
        if !state.in_group {
            return Some("kafka: waiting for the consumer group to assign partitions".into());
        }
        None
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
    }
}

/// What the consumer counts.
#[derive(Clone)]
pub struct Metrics {
    records: Family<TopicLabel, Counter>,
    lag: Family<PartitionLabels, Gauge>,
    unsettled: Family<PartitionLabels, Gauge>,
    assigned: Gauge,
    paused: Gauge,
    rebalances: Counter,
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

type Key = (Arc<str>, i32);

/// All assigned partitions.
pub(super) struct Partitions {
    assigned: HashMap<Key, Partition>,
    total: Limit,
    metrics: Metrics,
}

impl Partitions {
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

    pub(super) fn take_commits(&mut self) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for ((topic, number), partition) in &mut self.assigned {
            if let Some(offset) = partition.to_commit() {
                add_offset(&mut list, topic, *number, offset);
                partition.committed(offset);
            }
        }
        list
    }

    /// The commit of these failed: they are committed again.
    pub(super) fn uncommitted(&mut self, list: &TopicPartitionList) {
        for element in list.elements() {
            let key = (Arc::from(element.topic()), element.partition());
            if let Some(partition) = self.assigned.get_mut(&key) {
                partition.committed(-1);
            }
        }
    }

    pub(super) fn close_all(&mut self) {
        self.assigned.values_mut().for_each(Partition::close);
    }

    pub(super) fn all_done(&self) -> bool {
        self.assigned.values().all(Partition::is_done)
    }

    pub(super) fn finish_all(&mut self, deadline: Instant) -> usize {
        self.assigned.values_mut().map(|partition| partition.finish(deadline)).sum()
    }

    pub(super) fn clear(&mut self) {
        self.assigned.clear();
    }

    fn observe(&self) {
        self.metrics.assigned.set(self.assigned.len() as i64);
        self.metrics.paused.set(self.assigned.values().filter(|p| p.is_paused()).count() as i64);
        for ((topic, number), partition) in &self.assigned {
            let labels = PartitionLabels { topic: topic.to_string(), partition: *number };
            let records = partition.unsettled().records as i64;
            self.metrics.unsettled.get_or_create(&labels).set(records);
        }
    }

    fn forget(&self, (topic, number): &Key) {
        let labels = PartitionLabels { topic: topic.to_string(), partition: *number };
        self.metrics.lag.remove(&labels);
        self.metrics.unsettled.remove(&labels);
    }
}

/// The consumer's side of librdkafka's callbacks.
pub(super) struct Context {
    partitions: Mutex<Partitions>,
    drain_deadline: Duration,
    metrics: Metrics,
    health: Health,
    on_assigned: OnAssigned,
}

impl Context {
    pub(super) fn new(
        total: Limit,
        drain_deadline: Duration,
        metrics: Metrics,
        health: Health,
        on_assigned: OnAssigned,
    ) -> Self {
        let partitions = Partitions { assigned: HashMap::new(), total, metrics: metrics.clone() };
        Self { partitions: Mutex::new(partitions), drain_deadline, metrics, health, on_assigned }
    }

    pub(super) fn partitions(&self) -> MutexGuard<'_, Partitions> {
        lock(&self.partitions)
    }

    /// An error event. librdkafka goes on by itself; the operator is told.
    pub(super) fn kafka_error(&self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => {
                warn!(%error, "a topic of `[kafka] topics` does not exist yet; create it, it is looked for again every few seconds");
            }
            _ => warn!(%error, "kafka reports an error; going on"),
        }
        self.health.update(|state| state.last_error = Some(error.to_string()));
    }

    fn assign(&self, list: &TopicPartitionList) {
        self.health.update(|state| state.in_group = true);
        for (topic, number) in keys(list) {
            let (partition, feed) = {
                let total = self.partitions().total;
                Partition::assign(Arc::clone(&topic), number, total.records)
            };
            self.partitions().assigned.insert((topic, number), partition);
            (self.on_assigned)(feed);
        }
        info!(partitions = %names(list), "partitions assigned");
    }

    /// Finishes what was begun on these partitions, within the deadline, and commits.
    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let lost = consumer.assignment_lost();
        let mut revoked = self.take(list, lost);
        let deadline = Instant::now() + self.drain_deadline;
        let mut commits = TopicPartitionList::new();
        let mut abandoned = 0;
        for ((topic, number), partition) in &mut revoked {
            abandoned += if lost { partition.unsettled().records } else { partition.finish(deadline) };
            if let Some(offset) = partition.to_commit() {
                add_offset(&mut commits, topic, *number, offset);
            }
        }
        if lost {
            warn!(partitions = %names(list), "partitions lost: this member was silent for longer than the session timeout; what was in flight is delivered again");
            return;
        }
        if commits.count() > 0
            && let Err(error) = consumer.commit(&commits, CommitMode::Sync)
        {
            warn!(%error, "cannot commit revoked partitions; what was settled last is delivered again");
        }
        info!(partitions = %names(list), unfinished = abandoned, "partitions revoked");
    }

    fn take(&self, list: &TopicPartitionList, lost: bool) -> Vec<(Key, Partition)> {
        let mut partitions = self.partitions();
        let mut taken = Vec::new();
        for key in keys(list) {
            let Some(mut partition) = partitions.assigned.remove(&key) else { continue };
            if lost {
                partition.abandon()
            } else {
                partition.close()
            }
            partitions.forget(&key);
            taken.push((key, partition));
        }
        taken
    }

    fn abandon_all(&self) {
        let mut partitions = self.partitions();
        partitions.assigned.values_mut().for_each(Partition::abandon);
        partitions.assigned.clear();
    }
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            // One line a second while the cluster is away says nothing new.
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                let was_up = std::mem::take(&mut lock(&self.health.state).brokers_up);
                if was_up {
                    error!(
                        reason,
                        "no kafka broker answers; records wait there, and work goes on when one is back"
                    );
                }
            }
            _ => debug!(%error, reason, "kafka client event"),
        }
        self.health.update(|state| state.last_error = Some(reason.to_owned()));
    }

    fn stats(&self, statistics: Statistics) {
        // Logical connections (the coordinator's) have no node id.
        let up = statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP");
        self.health.update(|state| state.brokers_up = up);
        let partitions = self.partitions();
        partitions.observe();
        for (topic, number) in partitions.assigned.keys() {
            let found = statistics.topics.get(&**topic).and_then(|topic| topic.partitions.get(number));
            if let Some(lag) = found.map(|p| p.consumer_lag).filter(|lag| *lag >= 0) {
                let labels = PartitionLabels { topic: topic.to_string(), partition: *number };
                self.metrics.lag.get_or_create(&labels).set(lag);
            }
        }
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.metrics.rebalances.inc();
        match rebalance {
            Rebalance::Revoke(list) => self.revoke(consumer, list),
            Rebalance::Error(error) => {
                warn!(%error, "a rebalance failed; all partitions are given back");
                self.abandon_all();
            }
            Rebalance::Assign(_) => {}
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance {
            self.assign(list);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if let Err(error) = result {
            warn!(%error, "kafka refused a commit; it is tried again with the next one");
            self.partitions().uncommitted(offsets);
        }
    }
}

fn keys(list: &TopicPartitionList) -> Vec<Key> {
    list.elements().iter().map(|e| (Arc::from(e.topic()), e.partition())).collect()
}

fn names(list: &TopicPartitionList) -> String {
    let names: Vec<_> = list.elements().iter().map(|e| format!("{}/{}", e.topic(), e.partition())).collect();
    names.join(" ")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
