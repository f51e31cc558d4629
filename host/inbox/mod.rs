//! Absent recipients: the inbox, and the configured default.
//!
//! [`RedisInbox`] keeps a bounded stream per user under Halley's prefix. [`MemoryInbox`] replaces it
//! in the demo and in tests and behaves the same. See [`RedisInbox`] for the layout, which other software
//! may read.
//!
//! [`InboxReader`] reads them in [pages](Page), keeps what each [device](DeviceId) has acknowledged, and
//! erases them. A [`Cursor`] is a place in an inbox as clients keep it.
//!
//! [`InboxQueue`] connects messages to the inbox through one writer per process, which stores the
//! entries of many messages in full pipelines, one at a time. Whatever the load, the queue is
//! bounded, each entry is written once, and other uses of Redis are not held up.
//!
//! Promises: entries that `store` reports as stored are in the inbox. A redelivered record may be
//! stored twice under the same message id; readers drop repeats. The module does not know how a
//! policy decides.

mod cursor;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod memory;
mod notifier;
mod older;
mod page;
mod paging;
mod queue;
mod reader;
mod redis;
mod redis_reader;
mod returns;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use prometheus_client::metrics::counter::Counter;

use crate::decision::{AbsenceCause, AbsentRecipient, Disposition, IdKind, Retention};
use crate::kafka::topic_problem;
use crate::message::{ConnectionId, Message, MessageId, RoomId, UserId};
pub use crate::redis_client::{KeyEvents, Unavailable};
use crate::schema;
use crate::telemetry::metrics;
pub use cursor::{Cursor, CursorError, Owner, Position};
pub use memory::{MemoryInbox, OnlineUsers};
pub use notifier::Notifier;
pub use older::{OlderMessages, OlderRange, OlderUnavailable};
pub use page::{DeviceId, InvalidDevice, Page, PageEntry, PageQuery, Standing};
pub use queue::{InboxProblem, InboxQueue, InboxWriter, StoreResult};
pub use reader::InboxReader;
pub use redis::RedisInbox;
pub use redis_reader::RedisInboxReader;
pub use returns::{Registered, ReturnedUsers};

/// The `[offline]` section.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What happens to a message for an absent user if no policy decides: `store`, `drop` or
    /// `notify`.
    pub default: DefaultDisposition,
    /// How long stored messages are kept. Policies can shorten it, not extend it.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "schema::Duration")]
    pub retention: Duration,
    /// Maximum number of messages per user; the oldest are dropped.
    pub max_per_user: usize,
    /// Maximum size of a stored body. A message with a larger one becomes a dead letter if it has to
    /// be stored; online users receive it nevertheless.
    #[schemars(with = "schema::Size")]
    pub max_body: ByteSize,
    /// Maximum size of one message in all inboxes together: for each user its body, the names of
    /// room and user, and about 256 bytes. Above it, the message becomes a dead letter as well.
    #[schemars(with = "schema::Size")]
    pub max_fan_out_bytes: ByteSize,
    /// Maximum number of absent recipients, over all messages, that wait to be stored; above it,
    /// partitions with more of them are paused.
    pub max_in_flight: usize,
    /// How long Redis may answer but refuse to store (it is at `maxmemory`, cannot save, has too few
    /// replicas, or denies the user) before messages for absent users become dead letters, so that
    /// online users keep receiving. While Redis does not answer, records are held without limit.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "schema::Duration")]
    pub store_timeout: Duration,
    /// Operations whose messages are stored for users who are reached as well, before the record is
    /// settled: each device replays them until it has acknowledged them. For calls, payments, notices.
    pub always_store: Vec<i32>,
    /// Whether the gateway replays a user's inbox by itself when the user returns, for comets that do not:
    /// `off`, or `keyspace-events`.
    pub replay: ReplayTrigger,
    /// How long after a user was registered a replay begins: by then the comet has to be able to push to the
    /// connection.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "schema::Duration")]
    pub replay_delay: Duration,
    /// How often one of the gateways looks at all inboxes for users who have returned: Redis publishes
    /// events at most once, and in a cluster not at all.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "schema::Duration")]
    pub replay_sweep_interval: Duration,
    /// What acknowledging does: `log` keeps the messages, so that every device reads them, and they go
    /// with their retention; `queue` drops what all known devices have acknowledged.
    pub mode: Mode,
    /// The topic for `notify`, on the brokers of `[kafka]`.
    pub notify_topic: String,
}

/// What makes the gateway replay an inbox by itself.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayTrigger {
    /// Nothing: comets and backends ask for it.
    #[default]
    Off,
    /// Redis publishes that a comet has written `user:online:{user}`.
    KeyspaceEvents,
}

/// What acknowledging does.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It moves the device's position.
    #[default]
    Log,
    /// It also drops what all known devices have acknowledged.
    Queue,
}

/// Approximate size of an inbox entry in addition to body and names.
const ENTRY_OVERHEAD: u64 = 256;

/// The default for absent users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DefaultDisposition {
    /// Store in the inbox, with the configured retention.
    Store,
    /// Drop.
    Drop,
    /// Write to the notify topic, for the channel `default`.
    Notify,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default: DefaultDisposition::Store,
            retention: Duration::from_secs(7 * 24 * 3600),
            max_per_user: 1000,
            max_body: ByteSize::kib(256),
            max_fan_out_bytes: ByteSize::mib(256),
            max_in_flight: 1_000_000,
            store_timeout: Duration::from_secs(30),
            always_store: Vec::new(),
            replay: ReplayTrigger::Off,
            replay_delay: Duration::from_millis(500),
            replay_sweep_interval: Duration::from_secs(60),
            mode: Mode::Log,
            notify_topic: "push.offline".to_owned(),
        }
    }
}

impl Config {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.retention.is_zero() {
            problems.push("`offline.retention` is zero; use `default = \"drop\"` to keep nothing".to_owned());
        }
        if self.max_per_user == 0 {
            problems.push("`offline.max_per_user` is 0; use `default = \"drop\"` to keep nothing".to_owned());
        }
        for (key, value) in [("max_body", self.max_body), ("max_fan_out_bytes", self.max_fan_out_bytes)] {
            if value.as_u64() == 0 {
                problems.push(format!("`offline.{key}` is 0; use `default = \"drop\"` to keep nothing"));
            }
        }
        if self.max_in_flight == 0 {
            problems.push("`offline.max_in_flight` is 0; it must be at least 1".to_owned());
        }
        if self.replay_sweep_interval < Duration::from_secs(1) {
            problems.push("`offline.replay_sweep_interval` must be at least 1s".to_owned());
        }
        // A policy may notify at any time.
        problems.extend(topic_problem("offline.notify_topic", &self.notify_topic));
        problems
    }

    /// The default as a disposition.
    pub fn disposition(&self) -> Disposition {
        match self.default {
            DefaultDisposition::Store => Disposition::Store { retention: None },
            DefaultDisposition::Drop => Disposition::Drop,
            DefaultDisposition::Notify => Disposition::Notify { channel: "default".to_owned() },
        }
    }

    /// Where a message is kept whatever policies say: in the inboxes of users who are reached as well, if
    /// its operation is one of `always_store`.
    pub fn retention_of(&self, message: &Message) -> Retention {
        let inbox = !self.always_store.is_empty() && self.always_store.contains(&message.operation);
        Retention { inbox, ..Retention::default() }
    }

    /// What happens to a message for this recipient, given the decision of policies. Only users have
    /// inboxes, and the default applies to users only.
    pub fn disposition_of(&self, absent: &AbsentRecipient, decided: Option<Disposition>) -> Disposition {
        match (absent.identity, decided) {
            (IdKind::User, None) => self.disposition(),
            (IdKind::Ambiguous | IdKind::Connection, None)
            | (IdKind::Connection, Some(Disposition::Store { .. })) => Disposition::Drop,
            (_, Some(decided)) => decided,
        }
    }

    /// Why this message cannot be stored for these users; `None` if it can, or there are none.
    pub fn refuses<'a>(&self, message: &Message, users: impl Iterator<Item = &'a UserId>) -> Option<String> {
        let (mut recipients, mut together) = (0_usize, 0_u64);
        for user in users {
            recipients += 1;
            together = together.saturating_add(ENTRY_OVERHEAD + size(message, user) as u64);
        }
        let body = message.body.len() as u64;
        if recipients == 0 {
            return None;
        }
        if body > self.max_body.as_u64() {
            return Some(format!(
                "its body of {} is larger than `[offline] max_body` ({})",
                ByteSize(body),
                self.max_body
            ));
        }
        (together > self.max_fan_out_bytes.as_u64()).then(|| {
            format!(
                "its {recipients} inbox entries would take {}, more than `[offline] max_fan_out_bytes` ({})",
                ByteSize(together),
                self.max_fan_out_bytes
            )
        })
    }

    /// How long a message is kept if a policy asked for this duration.
    fn retention(&self, asked: Option<Duration>) -> Duration {
        asked.map_or(self.retention, |asked| asked.min(self.retention))
    }
}

/// The size of a message and its recipient in an entry or notification: body and names.
fn size(message: &Message, user: &UserId) -> usize {
    let room = message.room().map_or(0, |room| room.as_str().len());
    message.body.len() + room + user.as_str().len()
}

metrics! {
    /// Metrics of the inbox.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// Messages stored for absent users, once per user.
        stored: Counter = "halley_offline_stored";
        /// Messages for absent users that can never be stored, once per user.
        not_stored: Counter = "halley_offline_not_stored";
        /// Users who were registered again when a message for them had been stored.
        returned: Counter = "halley_offline_returned";
    }
}

/// One message for one user.
#[derive(Debug, Clone)]
pub struct InboxEntry {
    /// The owner of the inbox.
    pub user: UserId,
    /// Why the user was not reached; `None` if the message is stored for every user.
    pub cause: Option<AbsenceCause>,
    /// The connection over which the user was not reached although it is registered: the user is back
    /// once another one is.
    pub failed: Option<ConnectionId>,
    /// The message.
    pub message: Arc<Message>,
    /// How long it is kept; `None` is the configured retention, which is also the maximum.
    pub retention: Option<Duration>,
}

/// An entry that can never be stored: a retry does not help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotStored {
    /// Its index among the entries.
    pub entry: usize,
    /// The reason.
    pub reason: String,
}

/// The result of a store that is complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// The entries that can never be stored.
    pub not_stored: Vec<NotStored>,
    /// The users of stored entries who were registered again when their entry had been stored.
    pub returned: Vec<Returned>,
    /// The places of stored entries, each with the entry's index.
    pub positions: Vec<(usize, Position)>,
}

/// A user who was registered again when an entry had been stored. The connection may have read the
/// inbox before that, so the message has to be delivered over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Returned {
    /// The entry's index among the entries.
    pub entry: usize,
    /// The user's connection.
    pub connection: ConnectionId,
}

/// The result of a store that is incomplete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialStore {
    /// The result for the entries that are done.
    pub stored: Box<Stored>,
    /// The indexes of the entries to retry; all others are stored.
    pub left: Vec<usize>,
    /// The error.
    pub error: Unavailable,
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// The message's id.
    pub id: MessageId,
    /// The protocol operation.
    pub operation: i32,
    /// The room, if it was for one.
    pub room: Option<RoomId>,
    /// The body.
    pub body: Bytes,
    /// The record's timestamp, or else when it was stored, in milliseconds since 1970.
    pub sent_ms: i64,
    /// When it expires, in milliseconds since 1970.
    pub expires_ms: i64,
    /// Why the user was not reached; `None` if it is stored for every user, and for entries of versions that
    /// did not store it.
    pub cause: Option<AbsenceCause>,
}

/// Stores messages for absent users.
#[async_trait]
pub trait Inbox: Send + Sync + 'static {
    /// Stores all entries, in order, and then looks which of their users are registered as online:
    /// a client that registers first and reads the inbox afterwards misses nothing.
    ///
    /// # Errors
    /// If the inbox cannot be used now, with the entries to retry. Some of those may have been
    /// stored; storing them again repeats them under the same message id.
    async fn store(&self, entries: &[InboxEntry]) -> Result<Stored, PartialStore>;
}

impl StoredMessage {
    fn new(entry: &InboxEntry, stored_ms: i64, retention: Duration) -> Self {
        let message = &entry.message;
        let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        Self {
            id: message.id.clone(),
            operation: message.operation,
            room: message.room().cloned(),
            body: message.body.clone(),
            sent_ms: message.record.timestamp_ms.unwrap_or(stored_ms),
            expires_ms: stored_ms.saturating_add(retention_ms),
            cause: entry.cause,
        }
    }
}

/// Which entries' users are back, given the connection with which each is registered now.
fn returned(
    entries: &[InboxEntry],
    online: impl Fn(usize, &InboxEntry) -> Option<ConnectionId>,
) -> Vec<Returned> {
    let of_entry = |(index, entry): (usize, &InboxEntry)| {
        let connection = online(index, entry).filter(|online| entry.failed.as_ref() != Some(online))?;
        Some(Returned { entry: index, connection })
    };
    entries.iter().enumerate().filter_map(of_entry).collect()
}

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_ms() -> i64 {
    crate::time::to_record_ms(std::time::SystemTime::now())
}
