//! Consumes from Kafka: one thread polls, hands each partition's records to that partition's
//! worker, and commits what is settled.
//!
//! # Promises
//! - An offset is stored, and then committed, only when every record before it is settled
//!   ([`crate::offsets`]).
//! - Records of a partition whose worker is at its limit wait in a bounded buffer, while other
//!   partitions flow. When the buffer is full as well, reading stops for a moment, or the partition
//!   is paused ([`partitions::Partitions::relieve`]). Polling continues, so that the group keeps
//!   this member.
//! - When partitions are revoked, the work in progress on them is finished within a deadline below
//!   half of the session timeout, and committed before the next owner starts. Work of an older
//!   assignment holds ack handles of an older tracker, and so cannot commit anything. The remaining
//!   partitions continue with the records that they have. librdkafka fetches nothing new for them
//!   meanwhile, so stalled work is not waited for (`drain_timeout`).
//! - A stop that reports [`StopOutcome::Drained`] has every settled offset confirmed by Kafka: a commit
//!   that a rebalance refuses is retried until the rebalance is over or the grace period ends.
//! - Offsets belong to one log: they are committed with the topic's id, and a topic that was deleted
//!   and created again is read from its start (`positioning`, `metadata`).
//! - Records that were removed before they were read are logged and counted.
//! - A consumer that Kafka has fenced ends and reports it ([`Health::until_fenced`]).
//!
//! There is one polling thread. librdkafka's split partition queues have lost wake-ups and orphan
//! partitions (rust-rdkafka #840, #665, #535).
//!
//! The consumer does not know what happens to a record: that is up to the worker behind [`PartitionStream`].

mod client;
mod commit;
mod context;
mod drain_timeout;
mod group_error;
mod health;
mod in_flight_limit;
mod locate;
mod metadata;
mod metrics;
mod open_transactions;
mod partition;
mod partition_key;
mod partitions;
mod positioning;
mod start_position;
mod stop_outcome;
mod stream;
mod stuck_detector;
mod unassigned;
mod until_committed;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::thread::Scope;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::kafka;
use crate::memory_guard::{self, MemoryGuard};
use crate::message::{Origin, Record, RecordLimits};
use crate::mistake::{Mistake, mistake};
use crate::panics;
use crate::stalls::Stalls;

pub use health::Health;
pub use metrics::Metrics;
pub use stop_outcome::{Leftover, StopOutcome};
pub use stream::{InFlightRecord, OnAssigned, PartitionStream};
pub use until_committed::UntilCommitted;

use client::client_config;
use commit::{Hope, commit_stored};
use context::Context;
use in_flight_limit::InFlightLimit;
use partition::{AcceptOutcome, Fill};
use partition_key::offsets_of;
use partitions::Partitions;
use watch::TopicWatch;

/// The consumer's limits.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerLimits {
    /// Records in flight over all partitions.
    pub records: usize,
    /// Bytes in flight over all partitions.
    pub bytes: usize,
    /// How much of one record is read.
    pub record: RecordLimits,
    /// Near this memory usage of the process no further records are admitted.
    pub memory: Option<u64>,
}

/// The running consumer. Stop it with [`Consumer::stop`].
pub struct Consumer {
    context: Arc<StopSignal>,
    thread: Option<JoinHandle<()>>,
    finished: oneshot::Receiver<StopOutcome>,
    health: Health,
    memory: memory_guard::MemoryReport,
}

/// How the owner tells the thread to stop.
#[derive(Default)]
struct StopSignal {
    stopping: AtomicBool,
    grace: parking_lot::Mutex<Duration>,
}

impl Consumer {
    /// Joins the group and starts the polling thread. Topics named in `excluded_topics` are never
    /// consumed, even if a pattern matches them.
    ///
    /// # Errors
    /// When librdkafka refuses a property. An unreachable cluster is not an error: the consumer
    /// waits for it, and [`Health`] reports it.
    pub fn start(
        config: &kafka::Config,
        excluded_topics: &[&str],
        limits: ConsumerLimits,
        metrics: Metrics,
        stalls: Stalls,
        on_assigned: OnAssigned,
    ) -> anyhow::Result<Self> {
        let health = Health::default();
        let guard = MemoryGuard::new(limits.memory, metrics.memory.clone());
        let memory = guard.report();
        let limit = InFlightLimit { records: limits.records, bytes: in_flight_bytes(&limits) };
        info!(max_in_flight_bytes = limit.bytes, memory_limit = limits.memory, "limits on records in flight");
        let context = Context::new(config, limit, guard, metrics, stalls, health.clone(), on_assigned);
        let consumer: BaseConsumer<Context> = client_config(config, limits.memory, excluded_topics)
            .create_with_context(context)
            .map_err(kafka::refused)?;
        let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        info!(brokers = config.brokers, topics = ?topics, group = config.group, "joining the consumer group");

        let shared = Arc::new(StopSignal::default());
        let (report, finished) = oneshot::channel();
        let poller = Poller {
            consumer,
            shared: Arc::clone(&shared),
            limits: limits.record,
            store_every: config.commit_interval / 2,
        };
        let run = move || {
            let _nobody_waits = report.send(panics::call_or_abort("the Kafka thread", || poller.run()));
        };
        let thread = std::thread::Builder::new().name("kafka-poll".into()).spawn(run)?;
        Ok(Self { context: shared, thread: Some(thread), finished, health, memory })
    }

    /// Whether Kafka is reachable and the group has accepted this member.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Whether memory is short.
    pub fn memory(&self) -> memory_guard::MemoryReport {
        self.memory.clone()
    }

    /// Stops fetching, lets the workers finish within `grace`, commits and leaves the group.
    pub async fn stop(mut self, grace: Duration) -> StopOutcome {
        *self.context.grace.lock() = grace;
        self.context.stopping.store(true, Ordering::Release);
        // Closing a consumer can hang while the brokers are unreachable. It gets a little longer
        // than the workers; then the process exits without it.
        let drain_timeout = grace + Duration::from_secs(5);
        let Ok(Ok(stopped)) = tokio::time::timeout(drain_timeout, &mut self.finished).await else {
            return StopOutcome::TimedOut;
        };
        // The thread closes its consumer before it reports, and has nothing left to do. Joining it
        // would need a blocking thread, and all of them may be busy.
        drop(self.thread.take());
        stopped
    }
}

impl Drop for Consumer {
    /// A consumer that is dropped without a stop leaves the group and does not wait for its workers.
    fn drop(&mut self) {
        self.context.stopping.store(true, Ordering::Release);
    }
}

/// Records in flight get at most half of the memory. The rest is for the process itself, for what
/// librdkafka prefetches, and for what the size estimate of a record misses.
fn in_flight_bytes(limits: &ConsumerLimits) -> usize {
    let half = limits.memory.map_or(usize::MAX, |limit| usize::try_from(limit / 2).unwrap_or(usize::MAX));
    limits.bytes.min(half)
}

/// Checks that a consumer can be created and subscribed with this configuration. Needs no network.
///
/// # Errors
/// What librdkafka refuses.
pub fn verify(config: &kafka::Config) -> Result<(), Mistake> {
    let mut client = client_config(config, None, &[]);
    // With a broker it would join the group; without one it only parses names and patterns.
    client.remove("bootstrap.servers");
    client.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    let consumer = client.create::<BaseConsumer>().map_err(|why| kafka::mistake_of(&why))?;
    let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).map_err(|why| mistake!("kafka.topics", "{topics:?}: {why}").and("kafka"))
}

/// The polling thread.
struct Poller {
    consumer: BaseConsumer<Context>,
    shared: Arc<StopSignal>,
    limits: RecordLimits,
    store_every: Duration,
}

/// How long one poll waits. Short while a partition is paused, since nothing else wakes the thread
/// when there is room again.
const IDLE_POLL: Duration = Duration::from_millis(100);
const FULL_POLL: Duration = Duration::from_millis(5);
/// After how many records that were there at once the time is read again.
const BURST: u32 = 16;
/// How long a stop waits before it retries a commit, and for how long it retries after the grace
/// period.
const COMMIT_AGAIN: Duration = Duration::from_millis(50);
const LAST_COMMITS: Duration = Duration::from_secs(1);
/// How long to wait before Kafka is asked again for the start positions of partitions.
const POSITION_RETRY: Duration = Duration::from_secs(1);

impl Poller {
    /// Polls until it is stopped or fenced.
    fn run(self) -> StopOutcome {
        std::thread::scope(|scope| {
            self.poll_until_stopped(scope);
            self.drain()
        })
    }

    fn poll_until_stopped<'scope, 'a>(&'a self, scope: &'scope Scope<'scope, 'a>) {
        let context = self.consumer.context();
        let mut topics = TopicWatch::new(scope, &self.consumer);
        let mut now = Instant::now();
        let (mut next_store, mut next_refill, mut next_positioning) = (now + self.store_every, now, now);
        let (mut fill, mut any_full) = (Fill::Nothing, false);
        let (mut burst, mut topic) = (0, None);
        while !self.shared.stopping.load(Ordering::Acquire) && !context.is_fenced() {
            let rest = if fill == Fill::AtLimit { context.relieve(&self.consumer) } else { None };
            if let Some(rest) = rest {
                #[allow(clippy::disallowed_methods, reason = "no event says when there is room again")]
                std::thread::sleep(rest);
                next_refill = now;
            } else {
                let was_waited_for;
                (fill, was_waited_for) = self.read(any_full, &mut topic, now);
                burst = if was_waited_for { 0 } else { burst + 1 };
                any_full |= fill != Fill::Nothing;
                if fill == Fill::Nothing && burst % BURST != 0 {
                    continue;
                }
            }
            now = Instant::now();
            if now >= next_refill {
                context.health.polled();
                context.refill(&self.consumer);
                any_full = self.partitions().any_full();
                topics.update(now);
                if context.take_offset_reset() {
                    context.report_lost_records(&self.consumer);
                }
                next_refill = now + FULL_POLL;
                if self.partitions().any_worker_ended() && !self.shared.stopping.load(Ordering::Acquire) {
                    // Its records would wait forever, unnoticed.
                    panics::abort("a partition's worker");
                }
            }
            if now >= next_positioning && context.has_unpositioned() {
                context.retry_positions(&self.consumer);
                next_positioning = Instant::now() + POSITION_RETRY;
            }
            if now >= next_store {
                self.skip_empty_tails();
                self.store();
                self.partitions().expire_kept(now);
                context.check_fatal_error(&self.consumer);
                next_store = now + self.store_every;
            }
        }
    }

    /// Reads a record, if one comes in time; `topic` is that of the last one. Returns how full its
    /// partition's buffer is, and whether it was not there at once.
    fn read(&self, any_full: bool, topic: &mut Option<Arc<str>>, now: Instant) -> (Fill, bool) {
        let at_once = self.consumer.poll(Duration::ZERO);
        let was_waited_for = at_once.is_none();
        let wait = || self.consumer.poll(if any_full { FULL_POLL } else { IDLE_POLL });
        // The context receives errors as events, with their reasons.
        let fill = match at_once.or_else(wait) {
            Some(Ok(message)) => self.accept(kafka::copy_record(&message, &self.limits, topic), now),
            _ => Fill::Nothing,
        };
        (fill, was_waited_for)
    }

    fn partitions(&self) -> parking_lot::MutexGuard<'_, Partitions> {
        self.consumer.context().partitions()
    }

    /// Takes a record. Returns how full its partition's buffer is.
    fn accept(&self, record: Record, now: Instant) -> Fill {
        let Origin { partition, offset, .. } = record.origin;
        let key = (Arc::clone(&record.origin.topic), partition);
        let (outcome, fill) = self.partitions().accept(&key, record, now);
        match outcome {
            AcceptOutcome::Accepted | AcceptOutcome::Dropped => {}
            AcceptOutcome::AcceptedAfterGap { expected } => {
                self.consumer.context().report_gap(&self.consumer, &key, expected, offset);
            }
            AcceptOutcome::OffsetRegression => self.consumer.context().note_regression(&key, offset),
        }
        fill
    }

    /// The end of a partition may hold no records (transaction markers, aborted transactions).
    /// librdkafka reads past the last record there; that tail is not lag and need not be read again.
    fn skip_empty_tails(&self) {
        if !self.partitions().any_idle() {
            return;
        }
        match self.consumer.position() {
            Ok(positions) => self.partitions().skip_to(&positions),
            Err(error) => debug!(%error, "librdkafka did not return its position"),
        }
    }

    /// Stores the settled offsets in librdkafka, which commits them every `commit_interval`.
    fn store(&self) {
        let list = self.partitions().take_settled();
        if list.count() == 0 {
            return;
        }
        if let Err(error) = self.consumer.store_offsets(&list) {
            // Does not happen for assigned partitions; retried next time.
            warn!(%error, "cannot store offsets; they are stored later");
            self.partitions().reset_stored(&list);
        }
    }

    /// Drains, commits and leaves the group.
    fn drain(&self) -> StopOutcome {
        if self.consumer.context().is_fenced() {
            // Another member owns the partitions and their unsettled records.
            self.partitions().cancel_all();
            return StopOutcome::Fenced;
        }
        let grace = *self.shared.grace.lock();
        let deadline = Instant::now() + grace;
        self.partitions().close_all();
        if let Ok(assignment) = self.consumer.assignment() {
            drop(self.consumer.pause(&assignment));
        }
        // Polling continues, so that the group keeps this member until it is done. So does storing
        // offsets, in case the process is killed first.
        while Instant::now() < deadline && !self.partitions().all_done() {
            drop(self.consumer.poll(FULL_POLL));
            self.consumer.context().health.polled();
            self.store();
        }
        let unfinished = self.partitions().cancel_all_unfinished();
        self.commit_until(deadline.max(Instant::now() + LAST_COMMITS));
        let open = self.partitions().uncommitted();
        if !open.is_empty() {
            error!(partitions = %offsets_of(&open), "offsets are not committed: what was settled since the last commit is delivered again");
        }
        let (revoked, lost) = self.partitions().left_by_revocations();
        self.partitions().clear();
        self.consumer.unsubscribe();
        let leftover = Leftover { unfinished, revoked, uncommitted: lost + open.len() };
        if leftover == Leftover::default() { StopOutcome::Drained } else { StopOutcome::Incomplete(leftover) }
    }

    /// Commits the settled offsets. Retries until the deadline while a retry may help. A commit that a
    /// rebalance refuses succeeds once this member has rejoined, so polling continues.
    fn commit_until(&self, deadline: Instant) {
        loop {
            self.store();
            let Err(error) = commit_stored(&self.consumer) else {
                return self.partitions().note_all_committed();
            };
            self.consumer.context().check_fatal_error(&self.consumer);
            let is_over = Instant::now() >= deadline || self.consumer.context().is_fenced();
            if is_over || Hope::of(&error) == Hope::None {
                return warn!(%error, "cannot commit offsets");
            }
            debug!(%error, "kafka refused a commit; retrying");
            let next = Instant::now() + COMMIT_AGAIN;
            while Instant::now() < next {
                drop(self.consumer.poll(FULL_POLL));
            }
        }
    }
}
