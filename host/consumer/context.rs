//! What librdkafka calls back: assignments, revocations, errors and statistics.
//!
//! All callbacks run on the polling thread. None of them may panic: the frames below are C.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Statistics, TopicPartitionList};
use tracing::{debug, error, info, warn};

use crate::consumer::health::Health;
use crate::consumer::limit::Limit;
use crate::consumer::metrics::Metrics;
use crate::consumer::open_transactions::{Changes, OpenTransactions};
use crate::consumer::partition::{Flow, Partition};
use crate::consumer::partitions::{Key, Partitions};
use crate::consumer::patience::Patience;
use crate::consumer::refusal;
use crate::consumer::unreadable::{Fetched, Stuck, Unreadable};
use crate::consumer::{OnAssigned, add_offset, drain_deadline};
use crate::kafka::{self, Start, Voice};
use crate::memory_guard::MemoryGuard;
use crate::stalls::Stalls;
use crate::telemetry::LogThrottle;

/// How often is told of what Kafka refuses.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// How often a drain looks after the partitions that stay.
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// The consumer's side of librdkafka's callbacks.
pub(super) struct Context {
    partitions: Arc<Mutex<Partitions>>,
    drain_deadline: Duration,
    pub(super) start: Start,
    pub(super) metrics: Metrics,
    pub(super) stalls: Stalls,
    pub(super) health: Health,
    /// It is not known of every partition where it is.
    pub(super) unplaced: AtomicBool,
    /// How often that could not be found out, in a row.
    pub(super) attempts: AtomicUsize,
    config: kafka::Config,
    unreadable: Mutex<Unreadable>,
    open_transactions: Mutex<OpenTransactions>,
    /// librdkafka has gone to another offset by itself.
    offset_reset: AtomicBool,
    on_assigned: OnAssigned,
    voice: Voice,
    refusal_warning: LogThrottle,
    commit_warning: LogThrottle,
}

impl Context {
    pub(super) fn new(
        config: &kafka::Config,
        total: Limit,
        memory: MemoryGuard,
        metrics: Metrics,
        stalls: Stalls,
        health: Health,
        on_assigned: OnAssigned,
    ) -> Self {
        let partitions = Arc::new(Mutex::new(Partitions::new(total, memory, metrics.clone())));
        metrics.watch(&partitions);
        Self {
            partitions,
            drain_deadline: drain_deadline(config),
            start: config.start,
            metrics,
            stalls,
            health,
            unplaced: AtomicBool::default(),
            attempts: AtomicUsize::default(),
            config: config.clone(),
            unreadable: Mutex::default(),
            open_transactions: Mutex::default(),
            offset_reset: AtomicBool::default(),
            on_assigned,
            voice: Voice::new("consumer"),
            refusal_warning: LogThrottle::new(1, REPEAT_AFTER),
            commit_warning: LogThrottle::new(1, REPEAT_AFTER),
        }
    }

    pub(super) fn partitions(&self) -> parking_lot::MutexGuard<'_, Partitions> {
        self.partitions.lock()
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

    /// What keeps partitions from being read, as far as librdkafka says.
    fn look_for_stalls(&self, fetched: &[Fetched]) {
        let stuck = self.unreadable.lock().stuck(Instant::now(), fetched);
        for Stuck { key, offset, reason } in stuck {
            let (topic, partition) = &key;
            let cause = format!(
                "cannot be read: {reason}; raise `receive.message.max.bytes` of [kafka.properties], or pass over it: stop the gateways of the group, then `halley offsets skip --topic {topic} --partition {partition}`"
            );
            self.partitions().hold(&self.stalls, &key, Some(offset), &cause);
        }
        let Changes { held, released } = self.open_transactions.lock().look(Instant::now(), fetched);
        for key in released {
            self.partitions().release(&key);
        }
        for (key, offset) in held {
            let cause = "a producer's transaction is open from here on, and what comes after it cannot be read before it ends; `kafka-transactions.sh find-hanging` names it, and `abort` ends it";
            self.partitions().hold(&self.stalls, &key, Some(offset), &cause);
        }
    }

    /// Whether it is not known of every partition where it is.
    pub(super) fn has_unplaced(&self) -> bool {
        self.unplaced.load(Ordering::Relaxed)
    }

    /// Whether librdkafka has gone to another offset by itself since this was asked last.
    pub(super) fn take_offset_reset(&self) -> bool {
        self.offset_reset.swap(false, Ordering::Relaxed)
    }

    /// Takes partitions over: finds out where they begin, has them fetched from there, and starts
    /// their workers.
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let feeds: Vec<_> =
            keys(list).into_iter().map(|(topic, number)| self.partitions().assign(topic, number)).collect();
        let placed = self.place_assigned(consumer, list);
        let assigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&placed),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(&placed),
        };
        if let Err(error) = assigned {
            error!(%error, partitions = %names(list), "librdkafka does not take partitions that were assigned");
        }
        // librdkafka keeps a partition's pause over unassign and assign (rdkafka_assignment.c
        // clears only its own): one that comes back would never flow again.
        if let Err(error) = consumer.resume(list) {
            warn!(%error, "cannot resume partitions that were assigned");
        }
        feeds.into_iter().for_each(&self.on_assigned);
        self.health.joined();
        info!(partitions = %names(list), "partitions assigned");
    }

    /// Gives partitions back.
    fn unassign(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        self.revoke(consumer, list);
        let unassigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
        };
        if let Err(error) = unassigned {
            error!(%error, partitions = %names(list), "librdkafka does not give partitions back");
        }
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
                add_offset(&mut settled, topic, *number, offset, partition.mark());
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
        if facility == "OFFSET" {
            self.offset_reset.store(true, Ordering::Relaxed);
        }
        kafka::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        if let Some(why) = refusal::of_group(code, &self.config) {
            debug!(%error, reason, "kafka client event");
            if let Some(held_back) = self.refusal_warning.admit() {
                warn!(reason, held_back, "kafka: {why}");
            }
            return self.health.refused(why);
        }
        self.unreadable.lock().note(Instant::now(), code, reason);
        let all_down = self.voice.event(&error, reason);
        self.health.connection_failed(all_down, self.voice.last_failure());
    }

    fn stats(&self, statistics: Statistics) {
        // Logical connections (the coordinator's) have no node id.
        let up = statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP");
        if up && self.health.a_broker_is_up() {
            info!("kafka is there");
        }
        let fetched = self.partitions().observe(&statistics);
        self.look_for_stalls(&fetched);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.metrics.rebalances.inc();
        match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, list),
            // rdkafka calls with no other than these two.
            _ => self.unassign(consumer, list),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        // The whole may have succeeded and single partitions not.
        let refused = offsets.elements().iter().find_map(|element| element.error().err());
        if let Some(error) = result.err().or(refused)
            && let Some(held_back) = self.commit_warning.admit()
        {
            warn!(%error, held_back, "kafka refused a commit; librdkafka tries again with the next one");
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

pub(super) fn keys(list: &TopicPartitionList) -> Vec<Key> {
    list.elements().iter().map(|e| (Arc::from(e.topic()), e.partition())).collect()
}

fn names(list: &TopicPartitionList) -> String {
    let names: Vec<_> = list.elements().iter().map(|e| format!("{}/{}", e.topic(), e.partition())).collect();
    names.join(" ")
}
