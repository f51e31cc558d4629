//! The way of a message: check its claims, decode, filter, guard, resolve, route, fan out, offline, settle.
//!
//! # How it runs
//! Each assigned partition has one [`worker`](self) task. It takes what is ready as a batch
//! (cut by backlog, never by a timer), brings the whole batch through the stages that need
//! round trips, hands each message's calls to the comets' lanes in order, and goes on with the
//! next batch. What then happens to one message (its calls' outcomes, its absent recipients,
//! its dead letter, its settlement) is the message's own *journey*, a task of the worker's.
//!
//! # Promises
//! - A batch carries one policy set from beginning to end. A stalled policy
//!   (`on_error = "stall"`) is asked again; plugins before it are not, unless another set is
//!   active by then, which begins the stage again.
//! - A record is settled once every recipient has an outcome. A journey that is cut short
//!   drops its ticket, and the record is delivered again.
//! - Redis or the dead-letter topic being away stops the partition, not the message: stages
//!   are tried until they work or the partition is given up.
//!
//! It never sees a Kafka, Redis, gRPC or WebAssembly type.

mod absent;
mod age;
mod batch;
mod call;
mod chain;
mod claims;
mod dispatch;
mod explain;
mod journey;
mod key_order;
mod metrics;
mod not_taken;
mod persist;
mod resolve;
mod story;

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::comets::{Dialect, Fleet};
use crate::consumer::Feed;
use crate::dead_letter::DeadLetters;
use crate::decision::Identity;
use crate::directory::CacheConfig;
use crate::guard::Guards;
use crate::memory_guard::MemoryLimit;
use crate::message::RecordLimits;
use crate::offline::{self, InboxQueue, Notifier};
use crate::policy::Policies;
use crate::redrive_key::KnownKey;
use crate::shared_state::SharedState;
use crate::stalls::Stalls;

pub use absent::Waiting;
pub use explain::{Explanation, explain};
pub use metrics::Metrics;
pub use resolve::Resolver;

use batch::Worker;

/// Where a room's connections are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rooms {
    /// In the directory, so that only comets which hold the room are called.
    #[default]
    Directory,
    /// Nowhere: every known comet is told, as goim's own job does.
    EveryComet,
}

/// `[routing]`: how recipients are found.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingConfig {
    /// `directory`, or `every-comet` for installations whose Redis has no room sets.
    pub rooms: Rooms,
    /// What a key of a PUSH message is that the directory does not know; only users have inboxes.
    /// By default what the comets' dialect has there: `connections` for goim, else `users`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_keys: Option<PushKeys>,
    /// Whether a user without `user:online` counts as offline. Needs comets that renew it.
    pub check_online: bool,
    /// The most members of a room. A message for a larger one becomes a dead letter: reading it
    /// would hold up its partition for long, and take about 300 bytes of memory a member.
    pub max_room: usize,
    /// For how long, and for how many rooms, what was resolved is used again.
    pub cache: CacheConfig,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        Self {
            rooms: Rooms::Directory,
            push_keys: None,
            check_online: true,
            max_room: 2_000_000,
            cache: CacheConfig::default(),
        }
    }
}

impl RoutingConfig {
    /// Whether nobody can be found who is away: keys that nobody knows are connections, and rooms are not
    /// looked up.
    pub fn knows_no_users(&self, dialect: Dialect) -> bool {
        self.rooms == Rooms::EveryComet && self.push_keys(dialect) == PushKeys::Connections
    }

    /// What keys are for comets of this dialect.
    fn push_keys(&self, dialect: Dialect) -> PushKeys {
        self.push_keys.unwrap_or(match dialect {
            Dialect::Goim => PushKeys::Connections,
            Dialect::Chatroom => PushKeys::Users,
        })
    }
}

/// What a key of a PUSH message is when the directory knows neither a connection nor a user of
/// that name. However it is set, a key is looked up as a connection, and then as a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushKeys {
    /// A user who is away.
    Users,
    /// A connection that is gone: nothing is kept for it.
    Connections,
    /// Either: it is kept where a policy says so, and not by default.
    Both,
}

impl PushKeys {
    fn identity(self) -> Identity {
        match self {
            Self::Users => Identity::User,
            Self::Connections => Identity::Connection,
            Self::Both => Identity::Unsure,
        }
    }
}

/// `[delivery]`: how long and how much.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryConfig {
    /// The deadline of one call to a comet.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// A comet that has not taken a message within this time since it was queued is
    /// unreachable for it. At least `timeout`.
    #[serde(with = "humantime_serde")]
    pub give_up_after: Duration,
    /// Records in flight over all partitions, in equal shares. A partition that reaches its
    /// share pauses.
    pub max_in_flight: usize,
    /// Bytes in flight over all partitions, in equal shares: the records' content, and what is
    /// made of their keys and headers.
    pub max_in_flight_bytes: ByteSize,
    /// The most bytes of a record's key and value. A larger one is not read: it becomes a dead
    /// letter without its value.
    pub max_record: ByteSize,
    /// The most keys of a PUSH. One with more becomes a dead letter.
    pub max_keys: usize,
    /// The most headers of a record. One with more becomes a dead letter without them.
    pub max_headers: usize,
    /// The most bytes of a record's headers, names and values. One with more becomes a dead
    /// letter without them.
    pub max_header_bytes: ByteSize,
    /// Near this much memory of the process no further records are admitted: `auto` is 90 % of
    /// what its control group allows, `off` is no limit.
    pub memory_limit: MemoryLimit,
    /// The most records that go through the stages together.
    pub max_batch: usize,
    /// Messages whose record is older than this are dropped before any policy sees them; zero
    /// means that none is too old. Redriven dead letters never are.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
    /// How long finishing what is in flight may take on a stop; the process may need up to 10 s
    /// more to leave Kafka. What is not finished by then is delivered again.
    #[serde(with = "humantime_serde")]
    pub shutdown_grace: Duration,
}

/// Less is not worth a try.
const LEAST_MEMORY: u64 = 64 * 1024 * 1024;

impl Default for DeliveryConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(2),
            give_up_after: Duration::from_secs(10),
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
    /// What is wrong with the values, one sentence for each mistake.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.timeout.is_zero() {
            problems.push("`delivery.timeout` is zero; no call could ever succeed".into());
        }
        if self.give_up_after < self.timeout {
            problems.push("`delivery.give_up_after` is shorter than `delivery.timeout`".into());
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
                "`delivery.memory_limit` is {}, less than the gateway needs by itself; it must be at least 64MiB, \"auto\" or \"off\"",
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

    /// What works, and was probably not meant.
    pub fn warnings(&self) -> Vec<String> {
        // What one record may have where Kafka's brokers and producers keep their defaults.
        const ONE_RECORD: u64 = 1 << 20;
        let bytes = self.max_in_flight_bytes;
        if bytes.as_u64() >= ONE_RECORD {
            return Vec::new();
        }
        vec![format!(
            "`delivery.max_in_flight_bytes` is {} bytes for all partitions together, less than one record may have; with so little, records go one at a time",
            bytes.as_u64()
        )]
    }
}

/// The parts that a message meets on its way. One for all partitions.
pub struct Pipeline {
    /// The policies in force.
    pub policies: Arc<Policies>,
    /// Finds recipients.
    pub resolver: Resolver,
    /// Claims the policies' guards.
    pub guards: Arc<dyn Guards>,
    /// Keeps what policies share with other gateways.
    pub shared_state: Arc<dyn SharedState>,
    /// The comets.
    pub fleet: Arc<Fleet>,
    /// Keeps messages for the absent.
    pub inbox: InboxQueue,
    /// The room for the absent who wait.
    pub waiting: Waiting,
    /// Tells other channels of the absent.
    pub notifier: Notifier,
    /// What becomes of the absent when no policy decides.
    pub offline: offline::Config,
    /// Keeps what cannot be delivered.
    pub dead_letters: DeadLetters,
    /// The most records in a batch.
    pub max_batch: usize,
    /// What is being retried, and the records that it holds.
    pub stalls: Stalls,
    /// The most keys of a message.
    pub max_keys: usize,
    /// How old a message may be; zero means any age.
    pub max_age: Duration,
    /// Proves redriven records.
    pub redrive_key: KnownKey,
    /// What is counted and timed.
    pub metrics: Metrics,
}

impl Pipeline {
    /// Works on one partition until it is revoked, then finishes what was begun. The feed is
    /// dropped last: that is how the consumer knows that the worker is done.
    pub async fn run(self: Arc<Self>, mut feed: Feed) {
        let journeys = TaskTracker::new();
        let (closing, abandon) = (feed.closing.clone(), feed.abandon.clone());
        let mut worker = Worker::new(&self, &feed, journeys.clone());
        let mut admitted = Vec::new();
        loop {
            let taken = tokio::select! {
                biased;
                () = closing.cancelled() => 0,
                taken = feed.records.recv_many(&mut admitted, self.max_batch) => taken,
            };
            if taken == 0 || worker.batch(std::mem::take(&mut admitted)).await.is_err() {
                break;
            }
        }
        journeys.close();
        debug!(feed.partition, journeys = journeys.len(), "the partition ends; finishing what was begun");
        tokio::select! {
            () = journeys.wait() => {}
            // Journeys see the same token, drop their tickets and end.
            () = abandon.cancelled() => journeys.wait().await,
        }
    }
}
