//! Kafka in: one thread that polls, hands each partition's records to a worker of its own,
//! and commits what is settled.
//!
//! # Promises
//! - An offset is stored, and then committed, only when every record before it is settled
//!   ([`crate::offsets`]).
//! - A partition whose worker is full pauses by itself; polling goes on, so that the group
//!   keeps this member and the other partitions keep flowing.
//! - When partitions are taken away, what was begun on them is finished within a deadline
//!   below half of the session timeout, and committed before the next owner starts. Work of an
//!   older assignment holds tickets of an older ledger, and so can commit nothing. The
//!   partitions that stay go on with what they have. librdkafka fetches nothing new for them
//!   meanwhile, which is why work that stands still is not waited for (`patience`).
//! - Offsets count for one log: what is committed bears the topic's id, and a topic that was
//!   deleted and created again is read from its start (`placing`, `mark`).
//! - Records that are removed before they were read are told of, and counted.
//! - A consumer that Kafka shuts out for good ends, and says so ([`Health::until_shut_out`]).
//!
//! One polling thread instead of librdkafka's split partition queues: those have lost
//! wake-ups and orphan partitions (rust-rdkafka #840, #665, #535).
//!
//! It does not know what becomes of a record: that is the worker's, behind [`Feed`].

mod begin;
mod client;
mod context;
mod feed;
mod health;
mod limit;
mod locate;
mod mark;
mod metrics;
mod open_transactions;
mod partition;
mod partitions;
mod patience;
mod placing;
mod refusal;
mod unreadable;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use crate::kafka;
use crate::memory_guard::{self, MemoryGuard};
use crate::message::{Origin, Record, RecordLimits};
use crate::panics;
use crate::stalls::Stalls;

pub use feed::{Admitted, Feed};
pub use health::Health;
pub use metrics::Metrics;

use client::client_config;
use context::{Context, apply, commit_now};
use limit::Limit;
use mark::Mark;
use partition::{Arrival, Flow};
use partitions::Partitions;
use watch::TopicWatch;

/// What the consumer needs beside Kafka's own configuration.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records in flight over all partitions.
    pub records: usize,
    /// Bytes in flight over all partitions.
    pub bytes: usize,
    /// How much of one record is read.
    pub record: RecordLimits,
    /// Near this much memory of the process nothing further is admitted.
    pub memory: Option<u64>,
}

/// Receives the feed of each newly assigned partition, on the polling thread: it spawns the
/// partition's worker and returns.
pub type OnAssigned = Box<dyn Fn(Feed) + Send + Sync>;

/// The running consumer. Stop it with [`Consumer::stop`].
pub struct Consumer {
    context: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    finished: oneshot::Receiver<Stopped>,
    health: Health,
    memory: memory_guard::Report,
}

/// What the thread and its owner share.
#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    grace: parking_lot::Mutex<Duration>,
}

/// How the consumer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Everything that was begun is settled and committed.
    Drained,
    /// The grace period ended first: this many records will be delivered again.
    Abandoned(usize),
    /// Kafka had shut this consumer out for good, for example because another process took its
    /// `[kafka] instance`. What was in flight is delivered again.
    ShutOut,
    /// Kafka did not let go in time; what was settled may not be committed.
    Hung,
}

impl Consumer {
    /// Joins the group and starts to poll on a thread of its own. Topics of the names `not_these`
    /// are never read, whatever pattern they match.
    ///
    /// # Errors
    /// When librdkafka refuses a property. A cluster that is away is no error: the consumer
    /// waits for it, and [`Health`] says so.
    pub fn start(
        config: &kafka::Config,
        not_these: &[&str],
        limits: Limits,
        metrics: Metrics,
        stalls: Stalls,
        on_assigned: OnAssigned,
    ) -> anyhow::Result<Self> {
        let health = Health::default();
        let guard = MemoryGuard::new(limits.memory, metrics.memory.clone());
        let memory = guard.report();
        let limit = Limit { records: limits.records, bytes: in_flight_bytes(&limits) };
        info!(max_in_flight_bytes = limit.bytes, memory_limit = limits.memory, "limits of what is in flight");
        let context = Context::new(config, limit, guard, metrics, stalls, health.clone(), on_assigned);
        let consumer: BaseConsumer<Context> = client_config(config, limits.memory, not_these)
            .create_with_context(context)
            .map_err(kafka::refused)?;
        let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics)?;
        info!(brokers = config.brokers, topics = ?topics, group = config.group, "joining the consumer group");

        let shared = Arc::new(Shared::default());
        let (report, finished) = oneshot::channel();
        let poller = Poller {
            consumer,
            shared: Arc::clone(&shared),
            limits: limits.record,
            store_every: config.commit_every / 2,
        };
        let run = move || {
            let _nobody_waits = report.send(panics::fatal_call("the Kafka thread", || poller.run()));
        };
        let thread = std::thread::Builder::new().name("kafka-poll".into()).spawn(run)?;
        Ok(Self { context: shared, thread: Some(thread), finished, health, memory })
    }

    /// Whether Kafka is there and the group has taken this member.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Whether memory is short.
    pub fn memory(&self) -> memory_guard::Report {
        self.memory.clone()
    }

    /// Stops fetching, lets the workers finish within `grace`, commits and leaves the group.
    pub async fn stop(mut self, grace: Duration) -> Stopped {
        *self.context.grace.lock() = grace;
        self.context.stopping.store(true, Ordering::Release);
        // Closing a consumer can hang while the broker is away; it gets a little longer than
        // the workers, then the process goes without it.
        let patience = grace + Duration::from_secs(5);
        let Ok(Ok(stopped)) = tokio::time::timeout(patience, &mut self.finished).await else {
            return Stopped::Hung;
        };
        // The thread has closed its consumer before it reports, and has nothing left to do. Waiting for
        // it would take a thread for blocking work, all of which may be busy.
        drop(self.thread.take());
        stopped
    }
}

impl Drop for Consumer {
    /// A consumer that nobody stopped leaves the group without waiting for its workers.
    fn drop(&mut self) {
        self.context.stopping.store(true, Ordering::Release);
    }
}

/// What is in flight gets half of the memory at most: the rest is the process itself, what Kafka's
/// client has fetched ahead, and what the estimate of a record leaves out.
fn in_flight_bytes(limits: &Limits) -> usize {
    let half = limits.memory.map_or(usize::MAX, |limit| usize::try_from(limit / 2).unwrap_or(usize::MAX));
    limits.bytes.min(half)
}

/// Revoked partitions are drained while the group waits: less than half of the session
/// timeout, so that a slow drain does not look like a dead member.
fn drain_deadline(config: &kafka::Config) -> Duration {
    config.session_timeout.mul_f64(0.4)
}

/// Whether a consumer can be made and subscribed with this configuration; needs no network.
///
/// # Errors
/// What librdkafka refuses.
pub fn verify(config: &kafka::Config) -> anyhow::Result<()> {
    let mut client = client_config(config, None, &[]);
    // It would begin to join the group: without a broker it only reads the names and patterns.
    client.remove("bootstrap.servers");
    client.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    let consumer = client.create::<BaseConsumer>().map_err(kafka::refused)?;
    let topics: Vec<&str> = config.topics.iter().map(String::as_str).collect();
    consumer.subscribe(&topics).with_context(|| format!("`kafka.topics` {topics:?}"))
}

/// The polling thread.
struct Poller {
    consumer: BaseConsumer<Context>,
    shared: Arc<Shared>,
    limits: RecordLimits,
    store_every: Duration,
}

/// How long one poll waits. Short while a partition waits for its pipeline, since nothing
/// else wakes the thread when there is room again.
const IDLE_POLL: Duration = Duration::from_millis(100);
const PAUSED_POLL: Duration = Duration::from_millis(5);
/// How long to wait before Kafka is asked again where partitions are.
const PLACE_AGAIN: Duration = Duration::from_secs(1);

impl Poller {
    /// Polls until told to stop, or until Kafka will not have this consumer any more.
    fn run(self) -> Stopped {
        self.poll_until_stopped();
        self.drain()
    }

    fn poll_until_stopped(&self) {
        let context = self.consumer.context();
        let mut topics = TopicWatch::new(&self.consumer);
        let now = Instant::now();
        let (mut next_store, mut next_refill, mut next_place) = (now + self.store_every, now, now);
        while !self.shared.stopping.load(Ordering::Acquire) && !context.is_shut_out() {
            let paused = self.partitions().any_paused();
            // The context has had an error as an event, with its reason.
            if let Some(Ok(message)) = self.consumer.poll(if paused { PAUSED_POLL } else { IDLE_POLL }) {
                self.accept(kafka::copy_record(&message, &self.limits));
            }
            let now = Instant::now();
            if now >= next_refill {
                context.refill(&self.consumer);
                topics.look(now);
                if context.take_offset_reset() {
                    context.look_for_losses(&self.consumer);
                }
                next_refill = now + PAUSED_POLL;
                if self.partitions().worker_is_gone() && !self.shared.stopping.load(Ordering::Acquire) {
                    // Its records would wait for ever, and nothing would show it.
                    panics::abort("a partition's worker");
                }
            }
            if now >= next_place && context.has_unplaced() {
                context.place_again(&self.consumer);
                next_place = Instant::now() + PLACE_AGAIN;
            }
            if now >= next_store {
                self.pass_over_ends();
                self.store();
                context.look_for_fatal_error(&self.consumer);
                next_store = now + self.store_every;
            }
        }
    }

    fn partitions(&self) -> parking_lot::MutexGuard<'_, Partitions> {
        self.consumer.context().partitions()
    }

    fn accept(&self, record: Record) {
        let Origin { partition, offset, .. } = record.origin;
        let key = (Arc::clone(&record.origin.topic), partition);
        let arrival = self.partitions().accept(record);
        let flow = match arrival {
            Arrival::Next(flow) => flow,
            Arrival::After { expected, flow } => {
                self.consumer.context().passed_over(&self.consumer, &key, expected, offset);
                flow
            }
            Arrival::WentBack => return self.consumer.context().went_back(&key, offset),
            Arrival::Dropped => return,
        };
        if flow == Flow::Pause {
            apply(&self.consumer, &key.0, partition, flow);
        }
    }

    /// Where a partition ends without records (a transaction's marker, an aborted one), librdkafka
    /// comes further than the last record. Nobody has to read that again, and it is no lag.
    fn pass_over_ends(&self) {
        if !self.partitions().any_idle() {
            return;
        }
        match self.consumer.position() {
            Ok(positions) => self.partitions().skip_to(&positions),
            Err(error) => debug!(%error, "librdkafka does not tell how far it is"),
        }
    }

    /// Tells librdkafka how far everything is settled; it commits that every `commit_every`.
    fn store(&self) {
        let list = self.partitions().take_settled();
        if list.count() == 0 {
            return;
        }
        if let Err(error) = self.consumer.store_offsets(&list) {
            // Not while these partitions are ours; if ever, the next time.
            warn!(%error, "cannot store offsets; they are stored later");
            self.partitions().not_stored(&list);
        }
    }

    /// Finishes what was begun, commits, leaves the group.
    fn drain(self) -> Stopped {
        if self.consumer.context().is_shut_out() {
            // Somebody else has the partitions: what is not settled yet is theirs.
            self.partitions().abandon_all();
            return Stopped::ShutOut;
        }
        let grace = *self.shared.grace.lock();
        let deadline = Instant::now() + grace;
        self.partitions().close_all();
        if let Ok(assignment) = self.consumer.assignment() {
            drop(self.consumer.pause(&assignment));
        }
        // Polling goes on, so that the group keeps us until we are done; so does committing,
        // in case somebody loses patience with us first.
        while Instant::now() < deadline && !self.partitions().all_done() {
            drop(self.consumer.poll(PAUSED_POLL));
            self.store();
        }
        let abandoned = self.partitions().give_up_all();
        self.store();
        commit_now(&self.consumer);
        self.partitions().clear();
        self.consumer.unsubscribe();
        if abandoned == 0 { Stopped::Drained } else { Stopped::Abandoned(abandoned) }
    }
}

/// One partition's offset, for committing.
fn add_offset(list: &mut TopicPartitionList, topic: &str, partition: i32, offset: i64, mark: Option<Mark>) {
    let mut element = list.add_partition(topic, partition);
    element.set_offset(Offset::Offset(offset)).expect("an offset of a record is a valid offset");
    if let Some(mark) = mark {
        element.set_metadata(mark.to_string());
    }
}
