//! `[routing]` and `[delivery]`: how recipients are found, and the timeouts and limits of delivery.

use std::time::Duration;

use bytesize::ByteSize;
use smart_default::SmartDefault;

use crate::comets::Dialect;
use crate::decision::IdKind;
use crate::directory::CacheConfig;
use crate::memory_guard::MemoryLimit;
use crate::message::RecordLimits;
use crate::mistake::{Mistake, mistake};
use crate::schema;

/// Where a room's connections are looked up.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum RoomSource {
    /// In the directory: only comets that hold the room are called.
    #[default]
    Directory,
    /// Nowhere: every known comet is called, as goim's job service does.
    EveryComet,
}

/// `[routing]`: how recipients are found.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingConfig {
    /// `directory`, or `every-comet` for installations whose Redis has no room sets.
    #[default(RoomSource::Directory)]
    pub rooms: RoomSource,
    /// What a PUSH key is if the directory does not know it; only users have inboxes. The default
    /// follows the comets' dialect: `connections` for goim, `users` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_keys: Option<PushKeys>,
    /// Whether a user without `user:online` counts as offline. Requires comets that renew it.
    #[default(true)]
    pub check_online: bool,
    /// The maximum number of members of a room. A message for a larger room becomes a dead letter:
    /// reading it would stall the partition and take about 300 bytes of memory per member.
    #[default(2_000_000)]
    pub max_room_size: usize,
    /// How long, and for how many rooms, resolved routes are cached.
    pub cache: CacheConfig,
}

impl RoutingConfig {
    /// Whether absent users can never be identified: unknown keys are connections, and rooms are
    /// not looked up.
    pub fn knows_no_users(&self, dialect: Dialect) -> bool {
        self.rooms == RoomSource::EveryComet && self.push_keys(dialect) == PushKeys::Connections
    }

    /// What unknown keys are for comets of this dialect.
    pub(super) fn push_keys(&self, dialect: Dialect) -> PushKeys {
        self.push_keys.unwrap_or(match dialect {
            Dialect::Goim => PushKeys::Connections,
            Dialect::Chatroom => PushKeys::Users,
        })
    }
}

/// What a PUSH key is if the directory has neither a connection nor a user of that name. A key is
/// always looked up as a connection first, and then as a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
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
    pub(super) fn identity(self) -> IdKind {
        match self {
            Self::Users => IdKind::User,
            Self::Connections => IdKind::Connection,
            Self::Both => IdKind::Ambiguous,
        }
    }
}

/// `[delivery]`: timeouts and limits.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryConfig {
    /// The deadline of one call to a comet.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(2))]
    pub request_timeout: Duration,
    /// A comet that has not accepted a message within this time after it was queued is unreachable
    /// for that message. At least `request_timeout`.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(10))]
    pub delivery_timeout: Duration,
    /// Records in flight over all partitions, in equal shares. A partition that reaches its share
    /// is paused.
    #[default(20_000)]
    pub max_in_flight: usize,
    /// Bytes in flight over all partitions, in equal shares: the content of records, and what their
    /// keys and headers take in memory.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::mib(256))]
    pub max_in_flight_bytes: ByteSize,
    /// The maximum size of a record's key and value. A larger record is not read: it becomes a dead
    /// letter without its value.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::mib(16))]
    pub max_record: ByteSize,
    /// The maximum number of keys of a PUSH. One with more becomes a dead letter.
    #[default(10_000)]
    pub max_keys: usize,
    /// The maximum number of headers of a record. One with more becomes a dead letter without them.
    #[default(1_000)]
    pub max_headers: usize,
    /// The maximum size of a record's headers, names and values. A record with more becomes a dead
    /// letter without them.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::kib(256))]
    pub max_header_bytes: ByteSize,
    /// Near this memory usage of the process no further records are admitted: `auto` is 90 % of
    /// the limit of its control group, `off` is no limit.
    #[schemars(with = "schema::SizeOrWord")]
    #[default(MemoryLimit::Auto)]
    pub memory_limit: MemoryLimit,
    /// The maximum number of records in a batch.
    #[default(256)]
    pub max_batch: usize,
    /// Messages whose record is older than this are dropped before any policy sees them; zero
    /// disables the limit. Redriven dead letters are exempt.
    #[serde(with = "schema::Duration")]
    pub max_age: Duration,
    /// How long a stop waits for records in flight; leaving Kafka may take up to 10 s more. Records
    /// that are not finished by then are delivered again.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(20))]
    pub shutdown_grace: Duration,
}

/// The smallest usable memory limit.
const LEAST_MEMORY: u64 = 64 * 1024 * 1024;

impl DeliveryConfig {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        if self.request_timeout.is_zero() {
            problems.push(mistake!("delivery.request_timeout", "is zero; every call would fail"));
        }
        if self.delivery_timeout < self.request_timeout {
            problems.push(
                mistake!("delivery.delivery_timeout", "is shorter than `delivery.request_timeout`")
                    .and("delivery.request_timeout"),
            );
        }
        let positive = [
            ("max_in_flight", self.max_in_flight as u64),
            ("max_in_flight_bytes", self.max_in_flight_bytes.as_u64()),
            ("max_record", self.max_record.as_u64()),
            ("max_keys", self.max_keys as u64),
            ("max_batch", self.max_batch as u64),
        ];
        if matches!(self.memory_limit, MemoryLimit::Bytes(limit) if limit.as_u64() < LEAST_MEMORY) {
            problems.push(mistake!(
                "delivery.memory_limit",
                "is {}, less than the idle gateway needs; it must be at least 64MiB, \"auto\" or \"off\"",
                self.memory_limit
            ));
        }
        for (key, _) in positive.into_iter().filter(|(_, value)| *value == 0) {
            problems.push(mistake!("delivery.{key}", "is 0; it must be at least 1"));
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
    pub fn warnings(&self) -> Vec<Mistake> {
        // The maximum size of one record with the defaults of Kafka's brokers and producers.
        const ONE_RECORD: u64 = 1 << 20;
        let bytes = self.max_in_flight_bytes;
        if bytes.as_u64() >= ONE_RECORD {
            return Vec::new();
        }
        vec![mistake!(
            "delivery.max_in_flight_bytes",
            "is {} bytes for all partitions together, less than the maximum size of one record; large records are processed one at a time",
            bytes.as_u64()
        )]
    }
}
