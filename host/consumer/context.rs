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
use tracing::{debug, info, warn};

use crate::consumer::health::Health;
use crate::consumer::partition::{Flow, Limit, Partition};
use crate::consumer::partitions::{Key, Metrics, Partitions};
use crate::consumer::patience::Patience;
use crate::consumer::{OnAssigned, add_offset};
use crate::kafka::{self, Voice};
use crate::memory_guard::MemoryGuard;
use crate::stalls::Stalls;
use crate::telemetry::Seldom;

/// How often is told of a topic that is missing, and of commits that are refused.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// How often a drain looks after the partitions that stay.
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// The consumer's side of librdkafka's callbacks.
pub(super) struct Context {
    partitions: Mutex<Partitions>,
    drain_deadline: Duration,
    metrics: Metrics,
    #[expect(dead_code, reason = "for partitions that cannot be read, which comes next")]
    stalls: Stalls,
    health: Health,
    on_assigned: OnAssigned,
    voice: Voice,
    no_topic_warning: Seldom,
    commit_warning: Seldom,
}

impl Context {
    pub(super) fn new(
        total: Limit,
        memory: MemoryGuard,
        drain_deadline: Duration,
        metrics: Metrics,
        stalls: Stalls,
        health: Health,
        on_assigned: OnAssigned,
    ) -> Self {
        let partitions = Partitions::new(total, memory, metrics.clone());
        Self {
            partitions: Mutex::new(partitions),
            drain_deadline,
            metrics,
            stalls,
            health,
            on_assigned,
            voice: Voice::new("consumer"),
            no_topic_warning: Seldom::every(REPEAT_AFTER),
            commit_warning: Seldom::every(REPEAT_AFTER),
        }
    }

    pub(super) fn partitions(&self) -> MutexGuard<'_, Partitions> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether Kafka will not have this consumer any more.
    pub(super) fn is_shut_out(&self) -> bool {
        self.health.is_shut_out()
    }

    /// Finds out whether Kafka will not have this consumer any more. The events of fatal errors
    /// bear the codes of their causes, so that the client is asked.
    pub(super) fn look_for_fatal_error(&self, consumer: &BaseConsumer<Self>) {
        if let Some((_, reason)) = consumer.client().fatal_error() {
            self.health.shut_out(&reason);
        }
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

    /// Finishes what was begun on these partitions, as long as that is worth waiting for, and
    /// commits.
    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let lost = consumer.assignment_lost();
        let mut leaving = self.partitions().take(keys(list), lost);
        if lost {
            self.health.left();
            warn!(partitions = %names(list), "partitions lost: this member was silent for longer than the session timeout; what was in flight is delivered again");
            return;
        }
        let unfinished = self.drain(consumer, &mut leaving);
        let mut settled = TopicPartitionList::new();
        for ((topic, number), partition) in &leaving {
            if let Some(offset) = partition.to_store() {
                add_offset(&mut settled, topic, *number, offset);
            }
        }
        if let Err(error) = consumer.store_offsets(&settled) {
            warn!(%error, "cannot store offsets; what was settled last is delivered again");
        }
        commit_now(consumer);
        info!(partitions = %names(list), unfinished, "partitions revoked");
    }

    /// Waits for the workers of partitions that go elsewhere; those that stay go on with what
    /// they have meanwhile. Returns how many records are left without an outcome.
    fn drain(&self, consumer: &BaseConsumer<Self>, leaving: &mut [(Key, Partition)]) -> usize {
        let unsettled =
            |leaving: &[(Key, Partition)]| leaving.iter().map(|(_, p)| p.unsettled().records).sum();
        let mut patience = Patience::new(Instant::now(), self.drain_deadline, unsettled(leaving));
        while let Some(left) = patience.left(Instant::now(), unsettled(leaving)) {
            let Some((_, busy)) = leaving.iter().find(|(_, partition)| !partition.is_done()) else { break };
            busy.wait(left.min(DRAIN_STEP));
            self.refill(consumer);
        }
        let unfinished = leaving.iter_mut().map(|(_, partition)| partition.give_up()).sum();
        self.partitions().note_abandoned(unfinished);
        unfinished
    }

    /// Admits what waits, and lets the partitions flow again that have room.
    pub(super) fn refill(&self, consumer: &BaseConsumer<Self>) {
        let resumed = self.partitions().refill();
        for (topic, number) in resumed {
            apply(consumer, &topic, number, Flow::Resume);
        }
    }
}

/// Tells Kafka to pause or to resume a partition.
pub(super) fn apply(consumer: &BaseConsumer<Context>, topic: &str, number: i32, flow: Flow) {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, number);
    let applied = match flow {
        Flow::Pause => consumer.pause(&list),
        Flow::Resume => consumer.resume(&list),
        Flow::Unchanged => Ok(()),
    };
    debug!(topic, partition = number, ?flow, "the flow of a partition changed");
    if let Err(error) = applied {
        // Pausing only saves memory and resuming is tried with the next assignment, but
        // neither should ever fail for a partition that is ours.
        warn!(topic, partition = number, ?flow, %error, "cannot change the flow of a partition");
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        kafka::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
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
        if let Some(error) = result.err().or(refused)
            && self.commit_warning.now()
        {
            warn!(%error, "kafka refused a commit; librdkafka tries again with the next one");
        }
    }
}

/// Commits what is stored, and waits for it.
pub(super) fn commit_now(consumer: &BaseConsumer<Context>) {
    match consumer.commit_consumer_state(CommitMode::Sync) {
        Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
        Err(error) => warn!(%error, "cannot commit offsets; what was settled last is delivered again"),
    }
}

fn keys(list: &TopicPartitionList) -> Vec<Key> {
    list.elements().iter().map(|e| (Arc::from(e.topic()), e.partition())).collect()
}

fn names(list: &TopicPartitionList) -> String {
    let names: Vec<_> = list.elements().iter().map(|e| format!("{}/{}", e.topic(), e.partition())).collect();
    names.join(" ")
}
