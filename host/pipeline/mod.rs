//! Processes messages: check claims, decode, filter, guard, resolve, route, fan out, handle absent
//! recipients, settle.
//!
//! # How it runs
//! Each assigned partition has one worker task. It takes the records that are ready as a batch
//! (sized by the backlog, never by a timer), runs the whole batch through the stages that need
//! round trips, queues each message's calls at their comets in order, and continues with the next
//! batch. When the last call of a message ends, the partition's settler settles it. Only a message
//! with another outcome than "acknowledged by every comet" gets a *delivery task* for the rest:
//! absent recipients, dead letter, settlement.
//!
//! # Promises
//! - A batch uses one policy set from beginning to end. A stalled policy (`on_error = "stall"`) is
//!   called again; plugins before it are not, unless another set is active by then, which restarts
//!   the stage.
//! - A record is settled once every recipient has an outcome. A delivery task that is cancelled
//!   drops its handle, and the record is delivered again.
//! - An unreachable Redis or dead-letter topic stalls the partition; no message is dropped. Stages
//!   are retried until they succeed or the partition is revoked.
//!
//! It never sees a Kafka, Redis, gRPC or WebAssembly type.

mod absent;
mod age;
mod batch;
mod call;
mod chain;
mod claims;
mod delivery_task;
mod dispatch;
mod explain;
mod failed_comets;
mod in_flight;
mod key_order;
mod metrics;
mod resolve;
mod retry;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::comets::{Dialect, Fleet};
use crate::consumer::PartitionStream;
use crate::dead_letter::DeadLetters;
use crate::decision::IdKind;
use crate::directory::CacheConfig;
use crate::guard::Guards;
use crate::inbox::{self, InboxQueue, Notifier};
use crate::memory_guard::MemoryLimit;
use crate::message::RecordLimits;
use crate::panics;
use crate::policy::Policies;
use crate::redrive_key::CachedRedriveKey;
use crate::shared_state::SharedState;
use crate::stalls::Stalls;

pub use absent::AbsentBudget;
pub use explain::{Explanation, explain};
pub use metrics::Metrics;
pub use resolve::Resolver;

use batch::PartitionWorker;
use in_flight::Settler;

/// Where a room's connections are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoomSource {
    /// In the directory: only comets that hold the room are called.
    #[default]
    Directory,
    /// Nowhere: every known comet is called, as goim's job service does.
    EveryComet,
}

/// `[routing]`: how recipients are found.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingConfig {
    /// `directory`, or `every-comet` for installations whose Redis has no room sets.
    pub rooms: RoomSource,
    /// What a PUSH key is if the directory does not know it; only users have inboxes. The default
    /// follows the comets' dialect: `connections` for goim, `users` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_keys: Option<PushKeys>,
    /// Whether a user without `user:online` counts as offline. Requires comets that renew it.
    pub check_online: bool,
    /// The maximum number of members of a room. A message for a larger room becomes a dead letter:
    /// reading it would stall the partition and take about 300 bytes of memory per member.
    pub max_room_size: usize,
    /// How long, and for how many rooms, resolved routes are cached.
    pub cache: CacheConfig,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        Self {
            rooms: RoomSource::Directory,
            push_keys: None,
            check_online: true,
            max_room_size: 2_000_000,
            cache: CacheConfig::default(),
        }
    }
}

impl RoutingConfig {
    /// Whether absent users can never be identified: unknown keys are connections, and rooms are
    /// not looked up.
    pub fn knows_no_users(&self, dialect: Dialect) -> bool {
        self.rooms == RoomSource::EveryComet && self.push_keys(dialect) == PushKeys::Connections
    }

    /// What unknown keys are for comets of this dialect.
    fn push_keys(&self, dialect: Dialect) -> PushKeys {
        self.push_keys.unwrap_or(match dialect {
            Dialect::Goim => PushKeys::Connections,
            Dialect::Chatroom => PushKeys::Users,
        })
    }
}

/// What a PUSH key is if the directory has neither a connection nor a user of that name. A key is
/// always looked up as a connection first, and then as a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushKeys {
    /// An absent user.
    Users,
    /// A closed connection: nothing is kept for it.
    Connections,
    /// Either: a message is kept if a policy says so, and not by default.
    Both,
}

impl PushKeys {
    fn identity(self) -> IdKind {
        match self {
            Self::Users => IdKind::User,
            Self::Connections => IdKind::Connection,
            Self::Both => IdKind::Ambiguous,
        }
    }
}

/// `[delivery]`: timeouts and limits.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryConfig {
    /// The deadline of one call to a comet.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// A comet that has not accepted a message within this time after it was queued is unreachable
    /// for that message. At least `request_timeout`.
    #[serde(with = "humantime_serde")]
    pub delivery_timeout: Duration,
    /// Records in flight over all partitions, in equal shares. A partition that reaches its share
    /// is paused.
    pub max_in_flight: usize,
    /// Bytes in flight over all partitions, in equal shares: the content of records, and what their
    /// keys and headers take in memory.
    pub max_in_flight_bytes: ByteSize,
    /// The maximum size of a record's key and value. A larger record is not read: it becomes a dead
    /// letter without its value.
    pub max_record: ByteSize,
    /// The maximum number of keys of a PUSH. One with more becomes a dead letter.
    pub max_keys: usize,
    /// The maximum number of headers of a record. One with more becomes a dead letter without them.
    pub max_headers: usize,
    /// The maximum size of a record's headers, names and values. A record with more becomes a dead
    /// letter without them.
    pub max_header_bytes: ByteSize,
    /// Near this memory usage of the process no further records are admitted: `auto` is 90 % of
    /// the limit of its control group, `off` is no limit.
    pub memory_limit: MemoryLimit,
    /// The maximum number of records in a batch.
    pub max_batch: usize,
    /// Messages whose record is older than this are dropped before any policy sees them; zero
    /// disables the limit. Redriven dead letters are exempt.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// How long a stop waits for records in flight; leaving Kafka may take up to 10 s more. Records
    /// that are not finished by then are delivered again.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

/// The smallest usable memory limit.
const LEAST_MEMORY: u64 = 64 * 1024 * 1024;

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(2),
            delivery_timeout: Duration::from_secs(10),
            max_in_flight: 10_000,
            max_in_flight_bytes: ByteSize::mib(256),
            max_record: ByteSize::mib(16),
            max_keys: 10_000,
            max_headers: 1_000,
            max_header_bytes: ByteSize::kib(256),
            memory_limit: MemoryLimit::Auto,
            max_batch: 256,
            max_age: Duration::ZERO,
            shutdown_grace: Duration::from_secs(20),
        }
    }
}

impl DeliveryConfig {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.request_timeout.is_zero() {
            problems.push("`delivery.request_timeout` is zero; every call would fail".into());
        }
        if self.delivery_timeout < self.request_timeout {
            problems.push("`delivery.delivery_timeout` is shorter than `delivery.request_timeout`".into());
        }
        let positive = [
            ("max_in_flight", self.max_in_flight as u64),
            ("max_in_flight_bytes", self.max_in_flight_bytes.as_u64()),
            ("max_record", self.max_record.as_u64()),
            ("max_keys", self.max_keys as u64),
            ("max_batch", self.max_batch as u64),
        ];
        if matches!(self.memory_limit, MemoryLimit::Bytes(limit) if limit.as_u64() < LEAST_MEMORY) {
            problems.push(format!(
                "`delivery.memory_limit` is {}, less than the idle gateway needs; it must be at least 64MiB, \"auto\" or \"off\"",
                self.memory_limit
            ));
        }
        for (key, _) in positive.into_iter().filter(|(_, value)| *value == 0) {
            problems.push(format!("`delivery.{key}` is 0; it must be at least 1"));
        }
        problems
    }

    /// How much of one record is read.
    pub fn record_limits(&self) -> RecordLimits {
        let bytes = |size: ByteSize| usize::try_from(size.as_u64()).unwrap_or(usize::MAX);
        RecordLimits {
            bytes: bytes(self.max_record),
            headers: self.max_headers,
            header_bytes: bytes(self.max_header_bytes),
        }
    }

    /// Values that work but are probably a mistake.
    pub fn warnings(&self) -> Vec<String> {
        // The maximum size of one record with the defaults of Kafka's brokers and producers.
        const ONE_RECORD: u64 = 1 << 20;
        let bytes = self.max_in_flight_bytes;
        if bytes.as_u64() >= ONE_RECORD {
            return Vec::new();
        }
        vec![format!(
            "`delivery.max_in_flight_bytes` is {} bytes for all partitions together, less than the maximum size of one record; large records are processed one at a time",
            bytes.as_u64()
        )]
    }
}

/// The parts that process messages. Shared by all partitions.
pub struct Pipeline {
    /// The active policies.
    pub policies: Arc<Policies>,
    /// Finds recipients.
    pub resolver: Resolver,
    /// Claims the policies' guards.
    pub guards: Arc<dyn Guards>,
    /// The state that policies share with other gateways.
    pub shared_state: Arc<dyn SharedState>,
    /// The comets.
    pub fleet: Arc<Fleet>,
    /// Stores messages for absent users.
    pub inbox: InboxQueue,
    /// The budget of absent recipients over all messages.
    pub absent_budget: AbsentBudget,
    /// Notifies other channels about absent users.
    pub notifier: Notifier,
    /// What happens for absent recipients when no policy decides.
    pub offline: inbox::Config,
    /// Writes dead letters.
    pub dead_letters: DeadLetters,
    /// The maximum number of records in a batch.
    pub max_batch: usize,
    /// The work that is being retried, and the records it holds.
    pub stalls: Stalls,
    /// The maximum number of keys of a message.
    pub max_keys: usize,
    /// The maximum age of a message; zero means no limit.
    pub max_age: Duration,
    /// Proves redriven records.
    pub redrive_key: CachedRedriveKey,
    /// The pipeline's metrics.
    pub metrics: Metrics,
}

impl Pipeline {
    /// Processes one partition until it is revoked, then drains. The stream is dropped last, which
    /// tells the consumer that the worker is done.
    pub async fn run(self: Arc<Self>, mut stream: PartitionStream) {
        let delivery_tasks = TaskTracker::new();
        let (closing, cancel) = (stream.closing.clone(), stream.cancel.clone());
        let kept = stream.until_committed.clone();
        let settler = Settler::new(&self, delivery_tasks.clone(), kept, cancel.clone());
        let settling = panics::abort_on_panic("settling messages", Arc::clone(&settler).run());
        // Aborted when it is dropped.
        let mut settling_task = JoinSet::new();
        settling_task.spawn(settling);
        let mut worker = PartitionWorker::new(&self, &stream, &settler, delivery_tasks.clone());
        let mut admitted = Vec::new();
        loop {
            let taken = tokio::select! {
                biased;
                () = closing.cancelled() => 0,
                taken = stream.records.recv_many(&mut admitted, self.max_batch) => taken,
            };
            if taken == 0 || worker.batch(std::mem::take(&mut admitted)).await.is_err() {
                break;
            }
        }
        delivery_tasks.close();
        debug!(stream.partition, delivery_tasks = delivery_tasks.len(), "the partition is closing; draining");
        tokio::select! {
            () = async { settler.wait_until_idle().await; delivery_tasks.wait().await } => {}
            // Delivery tasks see the same token, drop their ack handles and end.
            () = cancel.cancelled() => delivery_tasks.wait().await,
        }
    }
}
