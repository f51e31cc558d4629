//! What librdkafka calls back: assignments, revocations, errors and statistics.
//!
//! All callbacks run on the polling thread. None of them may panic: the frames below are C.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::{Statistics, TopicPartitionList};
use tracing::{info, warn};

use crate::consumer::health::Health;
use crate::consumer::partition::Limit;
use crate::consumer::partitions::{Key, Metrics, Partitions};
use crate::consumer::{OnAssigned, add_offset};
use crate::kafka::{self, Voice};
use crate::telemetry::Seldom;

/// How often a topic that is missing is told of.
const NO_TOPIC_EVERY: Duration = Duration::from_secs(30);

/// The consumer's side of librdkafka's callbacks.
pub(super) struct Context {
    partitions: Mutex<Partitions>,
    drain_deadline: Duration,
    metrics: Metrics,
    health: Health,
    on_assigned: OnAssigned,
    voice: Voice,
    no_topic_warning: Seldom,
}

impl Context {
    pub(super) fn new(
        total: Limit,
        drain_deadline: Duration,
        metrics: Metrics,
        health: Health,
        on_assigned: OnAssigned,
    ) -> Self {
        let partitions = Partitions::new(total, metrics.clone());
        Self {
            partitions: Mutex::new(partitions),
            drain_deadline,
            metrics,
            health,
            on_assigned,
            voice: Voice::new("consumer"),
            no_topic_warning: Seldom::every(NO_TOPIC_EVERY),
        }
    }

    pub(super) fn partitions(&self) -> MutexGuard<'_, Partitions> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error that came in a record's place. librdkafka goes on by itself.
    pub(super) fn kafka_error(&self, error: &KafkaError) {
        use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, Resolve, UnknownTopicOrPartition};
        match error.rdkafka_error_code() {
            // These come as events too, with a better reason.
            Some(AllBrokersDown | BrokerTransportFailure | Resolve) => {}
            Some(UnknownTopicOrPartition) => {
                self.health.failed(error.to_string());
                if self.no_topic_warning.now() {
                    warn!(%error, "a topic of `[kafka] topics` does not exist yet; create it, it is looked for again every few seconds");
                }
            }
            _ => {
                self.voice.event(error, "while polling");
            }
        }
    }

    fn assign(&self, list: &TopicPartitionList) {
        self.health.joined();
        for (topic, number) in keys(list) {
            let feed = self.partitions().assign(topic, number);
            (self.on_assigned)(feed);
        }
        info!(partitions = %names(list), "partitions assigned");
    }

    /// Finishes what was begun on these partitions, within the deadline, and commits.
    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let lost = consumer.assignment_lost();
        let mut revoked = self.partitions().take(keys(list), lost);
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
            self.health.left();
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
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.health.left();
        }
        if self.voice.event(&error, reason) {
            self.health.all_brokers_are_down(self.voice.last_failure());
        }
    }

    fn stats(&self, statistics: Statistics) {
        // Logical connections (the coordinator's) have no node id.
        let up = statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP");
        if up && self.health.a_broker_is_up() {
            info!("kafka is there");
        }
        self.partitions().observe(&statistics);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.metrics.rebalances.inc();
        match rebalance {
            Rebalance::Revoke(list) => self.revoke(consumer, list),
            Rebalance::Error(error) => {
                self.health.left();
                warn!(%error, "a rebalance failed; all partitions are given back");
                self.partitions().abandon_all();
            }
            Rebalance::Assign(_) => {}
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        // librdkafka keeps a partition's pause over unassign and assign (rdkafka_assignment.c
        // clears only its own): one that comes back would never flow again.
        if let Err(error) = consumer.resume(list) {
            warn!(%error, "cannot resume partitions that were assigned");
        }
        self.assign(list);
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        // The whole may have succeeded and single partitions not.
        let refused = offsets.elements().iter().find_map(|element| element.error().err());
        if let Some(error) = result.err().or(refused) {
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
