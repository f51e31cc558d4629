//! Absent recipients: the inbox, and the configured default.
//!
//! [`RedisInbox`] keeps a bounded stream per user under Halley's prefix. [`MemoryInbox`] replaces it
//! in the demo and in tests and behaves the same. See [`RedisInbox`] for the layout, which other software
//! may read.
//!
//! [`InboxReader`] reads them in [pages](Page), keeps what each [device](DeviceId) has acknowledged, and
//! erases them. A [`Cursor`] is a place in an inbox as clients keep it. An entry may refer to the history of
//! its room instead of having the message: readers get the message nevertheless.
//!
//! [`InboxQueue`] connects messages to the inbox through one writer per process, which stores the
//! entries of many messages in full pipelines, one at a time. Whatever the load, the queue is
//! bounded, each entry is written once, and other uses of Redis are not held up.
//!
//! Promises: entries that `store` reports as stored are in the inbox. A redelivered record may be
//! stored twice under the same message id; readers drop repeats. The module does not know how a
//! policy decides.

mod cursor;
mod entry;
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
mod references;
mod returns;
mod stream_reader;
#[cfg(test)]
mod tests;

use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;

use crate::decision::{AbsentRecipient, Disposition, IdKind, Retention};
use crate::kafka::topic_problem;
use crate::message::{Message, UserId};
use crate::mistake::{Mistake, mistake};
pub use crate::redis_client::{KeyEvents, Unavailable};
use crate::schema;
use crate::telemetry::{Counter, metrics};
pub use cursor::{Cursor, CursorError, Owner, Position};
pub use entry::{BodyReference, InboxEntry, NotStored, PartialStore, Returned, Stored, StoredMessage};
pub use memory::{MemoryInbox, OnlineUsers};
pub use notifier::Notifier;
pub use older::{OlderEntries, OlderMessages, OlderRange, OlderUnavailable};
pub use page::{DeviceId, InvalidDevice, Page, PageEntry, PageQuery, Standing};
pub use queue::{InboxProblem, InboxQueue, InboxWriter, StoreResult};
pub use reader::InboxReader;
pub use redis::RedisInbox;
pub use redis_reader::RedisInboxReader;
pub use references::Reference;
pub use returns::{Registered, ReturnedUsers};
pub use stream_reader::StreamReader;

use entry::names_size;
use smart_default::SmartDefault;

/// The `[offline]` section.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What happens to a message for an absent user if no policy decides: `store`, `drop` or
    /// `notify`.
    #[default(DefaultDisposition::Store)]
    pub default: DefaultDisposition,
    /// How long stored messages are kept. Policies can shorten it, not extend it.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(7 * 24 * 3600))]
    pub retention: Duration,
    /// Maximum number of messages per user; the oldest are dropped.
    #[default(1000)]
    pub max_per_user: usize,
    /// Maximum size of a stored body. A message with a larger one becomes a dead letter if it has to
    /// be stored; online users receive it nevertheless.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::kib(256))]
    pub max_body: ByteSize,
    /// Maximum size of one message in all inboxes together: for each user its body, the names of
    /// room and user, and about 256 bytes. Above it, the message becomes a dead letter as well.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::mib(256))]
    pub max_fan_out_bytes: ByteSize,
    /// Maximum number of absent recipients, over all messages, that wait to be stored; above it,
    /// partitions with more of them are paused.
    #[default(1_000_000)]
    pub max_in_flight: usize,
    /// How long Redis may answer but refuse to store (it is at `maxmemory`, cannot save, has too few
    /// replicas, or denies the user) before messages for absent users become dead letters, so that
    /// online users keep receiving. While Redis does not answer, records are held without limit.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(30))]
    pub store_timeout: Duration,
    /// Operations whose messages are stored for users who are reached as well, before the record is
    /// settled: each device replays them until it has acknowledged them. For calls, payments, notices.
    pub always_store: Vec<i32>,
    /// Whether the gateway replays a user's inbox by itself when the user returns, for comets that do not:
    /// `off`, or `keyspace-events`.
    #[default(ReplayTrigger::Off)]
    pub replay: ReplayTrigger,
    /// How long after a user was registered a replay begins: by then the comet has to be able to push to the
    /// connection.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_millis(500))]
    pub replay_delay: Duration,
    /// How often one of the gateways looks at all inboxes for users who have returned: Redis publishes
    /// events at most once, and in a cluster not at all.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(60))]
    pub replay_sweep_interval: Duration,
    /// What acknowledging does: `log` keeps the messages, so that every device reads them, and they go
    /// with their retention; `queue` drops what all known devices have acknowledged.
    #[default(Mode::Log)]
    pub mode: Mode,
    /// The topic for `notify`, on the brokers of `[kafka]`.
    #[default("push.offline")]
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

impl Config {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        if self.retention.is_zero() {
            problems.push(mistake!("offline.retention", "is zero; use `default = \"drop\"` to keep nothing"));
        }
        if self.max_per_user == 0 {
            problems.push(mistake!("offline.max_per_user", "is 0; use `default = \"drop\"` to keep nothing"));
        }
        for (key, value) in [("max_body", self.max_body), ("max_fan_out_bytes", self.max_fan_out_bytes)] {
            if value.as_u64() == 0 {
                problems.push(mistake!("offline.{key}", "is 0; use `default = \"drop\"` to keep nothing"));
            }
        }
        if self.max_in_flight == 0 {
            problems.push(mistake!("offline.max_in_flight", "is 0; it must be at least 1"));
        }
        if self.replay_sweep_interval < Duration::from_secs(1) {
            problems.push(mistake!("offline.replay_sweep_interval", "must be at least 1s"));
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

    /// Why this message cannot be stored for these users; `None` if it can, or there are none. A reference
    /// has no body.
    pub fn refuses<'a>(
        &self,
        message: &Message,
        is_reference: bool,
        users: impl Iterator<Item = &'a UserId>,
    ) -> Option<String> {
        let body = if is_reference { 0 } else { message.body.len() as u64 };
        let (mut recipients, mut together) = (0_usize, 0_u64);
        for user in users {
            recipients += 1;
            together = together.saturating_add(ENTRY_OVERHEAD + body + names_size(message, user) as u64);
        }
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
