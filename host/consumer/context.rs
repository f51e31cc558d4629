//! librdkafka's callbacks: assignments, revocations, errors and statistics.
//!
//! All callbacks run on the polling thread. None of them may panic: the frames below are C code.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Statistics, TopicPartitionList};
use tracing::{debug, error, info, warn};

use crate::consumer::client::{METADATA_REFRESH, METADATA_REFRESH_KEY};
use crate::consumer::commit::{Hope, commit_stored};
use crate::consumer::drain_timeout::{DrainTimeout, drain_deadline};
use crate::consumer::group_error;
use crate::consumer::health::Health;
use crate::consumer::in_flight_limit::InFlightLimit;
use crate::consumer::locate;
use crate::consumer::metrics::Metrics;
use crate::consumer::open_transactions::{OpenTransactions, TransactionChanges};
use crate::consumer::partition::Partition;
use crate::consumer::partition_key::{PartitionKey, add_offset, keys, list_of, names, names_of, offsets_of};
use crate::consumer::partitions::{Partitions, Relief, uncommitted};
use crate::consumer::stream::OnAssigned;
use crate::consumer::stuck_detector::{FetchPosition, StuckDetector, StuckPartition};
use crate::kafka::{self, ClientEvents, StartFrom};
use crate::memory_guard::MemoryGuard;
use crate::stalls::Stalls;
use crate::telemetry::LogThrottle;

/// How often a refusal by Kafka is logged.
const REPEAT_AFTER: Duration = Duration::from_secs(30);

/// How often a drain refills the partitions that stay.
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// How long to wait before a commit is retried.
const COMMIT_AGAIN: Duration = Duration::from_millis(50);

/// The consumer's side of librdkafka's callbacks.
pub(super) struct Context {
    partitions: Arc<Mutex<Partitions>>,
    drain_deadline: Duration,
    pub(super) start: StartFrom,
    pub(super) metrics: Metrics,
    pub(super) stalls: Stalls,
    pub(super) health: Health,
    /// Some partition has no known position.
    pub(super) unpositioned: AtomicBool,
    /// Consecutive failed attempts to find the positions.
    pub(super) attempts: AtomicUsize,
    config: kafka::Config,
    stuck_detector: Mutex<StuckDetector>,
    open_transactions: Mutex<OpenTransactions>,
    /// librdkafka has reset an offset.
    offset_reset: AtomicBool,
    on_assigned: OnAssigned,
    client_events: ClientEvents,
    refusal_warning: LogThrottle,
    commit_warning: LogThrottle,
}

impl Context {
    pub(super) fn new(
        config: &kafka::Config,
        total: InFlightLimit,
        memory: MemoryGuard,
        metrics: Metrics,
        stalls: Stalls,
        health: Health,
        on_assigned: OnAssigned,
    ) -> Self {
        let partitions = Arc::new(Mutex::new(Partitions::new(total, memory, metrics.clone())));
        let watched = Arc::downgrade(&partitions);
        metrics.watch(move || {
            watched.upgrade().map_or_else(Vec::new, |partitions| partitions.lock().snapshots())
        });
        Self {
            partitions,
            drain_deadline: drain_deadline(config.session_timeout),
            start: config.start,
            metrics,
            stalls,
            health,
            unpositioned: AtomicBool::default(),
            attempts: AtomicUsize::default(),
            config: config.clone(),
            stuck_detector: Mutex::default(),
            open_transactions: Mutex::default(),
            offset_reset: AtomicBool::default(),
            on_assigned,
            client_events: ClientEvents::new("consumer"),
            refusal_warning: LogThrottle::new(1, REPEAT_AFTER),
            commit_warning: LogThrottle::new(1, REPEAT_AFTER),
        }
    }

    pub(super) fn partitions(&self) -> parking_lot::MutexGuard<'_, Partitions> {
        self.partitions.lock()
    }

    /// The consumer group.
    pub(super) fn group(&self) -> &str {
        &self.config.group
    }

    /// Whether partitions that are added while no gateway runs may stay unassigned: see `unassigned`.
    pub(super) fn is_static_member(&self) -> bool {
        !self.config.instance_id.is_empty() && !self.config.uses_consumer_protocol()
    }

    /// How often librdkafka refreshes its metadata.
    pub(super) fn metadata_refresh(&self) -> Duration {
        let set = self.config.properties.get(METADATA_REFRESH_KEY).and_then(|value| value.parse().ok());
        set.map_or(METADATA_REFRESH, Duration::from_millis)
    }

    /// The topics of which partitions are assigned here, and those that the configuration names.
    pub(super) fn watched_topics(&self) -> BTreeSet<Arc<str>> {
        let named = self.config.topics.iter().filter(|topic| !kafka::is_pattern(topic));
        let named = named.map(|topic| Arc::from(topic.as_str()));
        self.partitions().topics().into_iter().chain(named).collect()
    }

    /// Takes the partitions that no member of the group has.
    pub(super) fn set_unassigned(&self, partitions: Vec<PartitionKey>) {
        self.metrics.counted.unassigned.set(i64::try_from(partitions.len()).unwrap_or(i64::MAX));
        let names = (!partitions.is_empty()).then(|| names_of(&partitions.iter().collect::<Vec<_>>()));
        let Some(changed) = self.health.set_unassigned(names) else { return };
        match changed {
            Some(problem) => warn!("{problem}"),
            None => info!("all partitions are assigned again"),
        }
    }

    /// Whether Kafka has fenced this consumer.
    pub(super) fn is_fenced(&self) -> bool {
        self.health.is_fenced()
    }

    /// Checks whether Kafka has fenced this consumer. The event of a fatal error carries the code
    /// of its cause, so this asks the client.
    pub(super) fn check_fatal_error(&self, consumer: &BaseConsumer<Self>) {
        if let Some((_, reason)) = consumer.client().fatal_error() {
            self.health.set_fenced(&reason);
        }
    }

    /// Reports partitions that librdkafka cannot read.
    fn report_stalls(&self, fetched: &[FetchPosition]) {
        let stuck = self.stuck_detector.lock().stuck(Instant::now(), fetched);
        for StuckPartition { key, offset, reason } in stuck {
            let (topic, partition) = &key;
            let cause = format!(
                "cannot be read: {reason}; raise `receive.message.max.bytes` in [kafka.properties], or skip the batch: stop the gateways of the group, then run `halley offsets skip --topic {topic} --partition {partition}`"
            );
            self.partitions().hold(&self.stalls, &key, Some(offset), &cause);
        }
        let TransactionChanges { held, released } =
            self.open_transactions.lock().update(Instant::now(), fetched);
        for key in released {
            self.partitions().release(&key);
        }
        for (key, offset) in held {
            let cause = "a producer's transaction is open from this offset on, and later records cannot be read until it ends; `kafka-transactions.sh find-hanging` names it, and `abort` ends it";
            self.partitions().hold(&self.stalls, &key, Some(offset), &cause);
        }
    }

    /// Whether some partition has no known position.
    pub(super) fn has_unpositioned(&self) -> bool {
        self.unpositioned.load(Ordering::Relaxed)
    }

    /// Whether librdkafka has reset an offset since the last call.
    pub(super) fn take_offset_reset(&self) -> bool {
        self.offset_reset.swap(false, Ordering::Relaxed)
    }

    /// Takes over partitions: finds out where they start, assigns them there, and starts their
    /// workers.
    fn assign(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let streams: Vec<_> =
            keys(list).into_iter().map(|(topic, number)| self.partitions().assign(topic, number)).collect();
        let placed = self.position_assigned(consumer, list);
        let assigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&placed),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(&placed),
        };
        if let Err(error) = assigned {
            error!(%error, partitions = %names(list), "librdkafka refused assigned partitions");
        }
        // librdkafka keeps a partition paused across unassign and assign (rdkafka_assignment.c
        // clears only its own pauses): a partition that comes back would never flow again.
        if let Err(error) = consumer.resume(list) {
            warn!(%error, "cannot resume partitions that were assigned");
        }
        streams.into_iter().for_each(&self.on_assigned);
        self.health.joined();
        info!(partitions = %names(list), "partitions assigned");
    }

    /// Releases partitions.
    fn unassign(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        self.revoke(consumer, list);
        let unassigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
        };
        if let Err(error) = unassigned {
            error!(%error, partitions = %names(list), "librdkafka cannot release partitions");
        }
    }

    /// Drains these partitions within the drain timeout, then commits.
    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let lost = consumer.assignment_lost();
        let mut leaving = self.partitions().take(keys(list), lost);
        if lost {
            return self.lost_partitions(consumer, &leaving);
        }
        let deadline = Instant::now() + self.drain_deadline;
        let unfinished = self.drain(consumer, &mut leaving);
        let mut settled = TopicPartitionList::new();
        for ((topic, number), partition) in &leaving {
            if let Some(offset) = partition.to_store() {
                add_offset(&mut settled, topic, *number, offset, partition.metadata());
            }
        }
        if let Err(error) = consumer.store_offsets(&settled) {
            warn!(%error, "cannot store offsets; the records settled last are delivered again");
        }
        let open = uncommitted(leaving.iter().map(|(key, partition)| (key, partition)));
        // Without any partition this is the end of a stop, which has retried its commit already.
        let deadline = if leaving.is_empty() { Instant::now() } else { deadline };
        let committed = self.commit_until(consumer, deadline);
        if let Err(error) = &committed {
            warn!(%error, partitions = %offsets_of(&open), "cannot commit offsets of revoked partitions: what was settled since the last commit is delivered again");
        }
        self.partitions().note_revoked(unfinished, if committed.is_ok() { 0 } else { open.len() });
        info!(partitions = %names(list), unfinished, "partitions revoked");
    }

    /// Reports partitions that other members own already, or whose topic was deleted.
    fn lost_partitions(&self, consumer: &BaseConsumer<Self>, lost: &[(PartitionKey, Partition)]) {
        self.health.left();
        let unsettled = lost.iter().map(|(_, partition)| partition.unsettled().records).sum();
        let open = uncommitted(lost.iter().map(|(key, partition)| (key, partition)));
        self.partitions().note_revoked(unsettled, open.len());
        let all: Vec<&PartitionKey> = lost.iter().map(|(key, _)| key).collect();
        let deleted = locate::deleted(consumer, all.iter().map(|key| &*key.0));
        let (gone, rest): (Vec<&PartitionKey>, Vec<&PartitionKey>) =
            all.into_iter().partition(|key| deleted.contains(&key.0));
        if !gone.is_empty() {
            warn!(partitions = %names_of(&gone), "partitions lost: their topic was deleted; what was read of it is finished as far as it had begun");
        }
        if !rest.is_empty() {
            warn!(partitions = %names_of(&rest), "partitions lost: the session has expired without an answer between this member and the group, or the topics have changed; others may have them now, and what was in flight is delivered again");
        }
    }

    /// Commits the stored offsets. Retries until the deadline while a retry may help without polling.
    fn commit_until(&self, consumer: &BaseConsumer<Self>, deadline: Instant) -> KafkaResult<()> {
        loop {
            let Err(error) = commit_stored(consumer) else { return Ok(()) };
            if Hope::of(&error) != Hope::Later || Instant::now() + COMMIT_AGAIN > deadline {
                return Err(error);
            }
            debug!(%error, "kafka refused a commit; retrying");
            #[allow(clippy::disallowed_methods, reason = "no event says when the group takes offsets again")]
            std::thread::sleep(COMMIT_AGAIN);
            self.refill(consumer);
        }
    }

    /// Waits for the workers of revoked partitions. The remaining partitions continue with their
    /// buffered records meanwhile. Returns how many records are left without an outcome.
    fn drain(&self, consumer: &BaseConsumer<Self>, leaving: &mut [(PartitionKey, Partition)]) -> usize {
        let unsettled =
            |leaving: &[(PartitionKey, Partition)]| leaving.iter().map(|(_, p)| p.unsettled().records).sum();
        let mut drain_timeout = DrainTimeout::new(Instant::now(), self.drain_deadline, unsettled(leaving));
        while let Some(left) = drain_timeout.left(Instant::now(), unsettled(leaving)) {
            let Some((_, busy)) = leaving.iter().find(|(_, partition)| !partition.is_done()) else { break };
            busy.wait(left.min(DRAIN_STEP));
            self.refill(consumer);
        }
        leaving.iter_mut().map(|(_, partition)| partition.cancel_unfinished()).sum()
    }

    /// Admits waiting records and resumes the partitions that have room.
    pub(super) fn refill(&self, consumer: &BaseConsumer<Self>) {
        let resumed = self.partitions().refill(Instant::now());
        if let Some(list) = list_of(&resumed) {
            debug!(partitions = ?resumed, "partitions resume");
            warn_of(consumer.resume(&list), &resumed, "cannot resume partitions");
        }
    }

    /// Pauses partitions whose buffer is full, where that helps. Returns for how long to stop reading
    /// instead, if that is better.
    pub(super) fn relieve(&self, consumer: &BaseConsumer<Self>) -> Option<Duration> {
        let Relief { pause, rest } = self.partitions().relieve(Instant::now());
        if let Some(list) = list_of(&pause) {
            debug!(partitions = ?pause, "partitions pause");
            warn_of(consumer.pause(&list), &pause, "cannot pause partitions");
        }
        rest
    }
}

/// Pausing only saves memory and resuming is tried with the next assignment, but neither should ever
/// fail for partitions that are ours.
fn warn_of(result: KafkaResult<()>, partitions: &[PartitionKey], what: &str) {
    if let Err(error) = result {
        warn!(?partitions, %error, "{what}");
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
        if let Some(why) = group_error::describe(code, &self.config) {
            debug!(%error, reason, "kafka client event");
            if let Some(held_back) = self.refusal_warning.admit() {
                warn!(reason, held_back, "kafka: {why}");
            }
            return self.health.refused(why);
        }
        self.stuck_detector.lock().note(Instant::now(), code, reason);
        let all_down = self.client_events.event(&error, reason);
        self.health.connection_failed(all_down, self.client_events.last_failure());
    }

    fn stats(&self, statistics: Statistics) {
        // Logical connections (to the coordinator) have no node id.
        let up = statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP");
        if up && self.health.mark_broker_up() {
            info!("connected to kafka");
        }
        let fetched = self.partitions().observe(&statistics);
        self.report_stalls(&fetched);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.metrics.counted.rebalances.inc();
        match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, list),
            // rdkafka passes no other values.
            _ => self.unassign(consumer, list),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if result.is_ok() {
            self.partitions().note_committed(offsets);
        }
        // The commit may have succeeded as a whole and failed for single partitions.
        let refused = offsets.elements().iter().find_map(|element| element.error().err());
        if let Some(error) = result.err().or(refused)
            && let Some(held_back) = self.commit_warning.admit()
        {
            warn!(%error, held_back, "kafka refused a commit; librdkafka retries with the next one");
        }
    }
}
