//! What becomes of recipients who are away: the inbox, and the configured default.
//!
//! [`RedisInbox`] keeps a bounded stream per user under Halley's prefix; [`MemoryInbox`] stands
//! in for it in the demo and in tests and behaves the same. Who reads inboxes is somebody
//! else's software; the layout is described at [`RedisInbox`].
//!
//! [`InboxQueue`] is between them and the messages: one writer for the whole process, which
//! stores what many messages have for absent users in full pipelines, one at a time. However much
//! is to be stored, what waits is bounded, each entry is written once, and Redis' other work is
//! not held up.
//!
//! Promises: what `store` reports as stored is in the inbox. A redelivered record may be stored
//! twice under the same message id; readers drop repeats. It does not know how a policy
//! decides.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod memory;
mod notifier;
mod queue;
mod redis;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytesize::ByteSize;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::decision::{Absent, Disposition, Identity};
use crate::kafka::topic_problem;
use crate::message::{Message, MessageId, RoomId, UserId};
pub use crate::redis_client::Unavailable;
pub use memory::MemoryInbox;
pub use notifier::Notifier;
pub use queue::{InboxQueue, InboxWriter, Problem, Stored};
pub use redis::RedisInbox;

/// The `[offline]` section.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What becomes of a message for someone who is away when no policy has an opinion:
    /// `store`, `drop` or `notify`.
    pub default: DefaultDisposition,
    /// How long stored messages are kept, unless a policy says shorter; it cannot say longer.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// How many messages are kept for one user; the oldest give way.
    pub max_per_user: usize,
    /// The largest body that is stored. A message with a larger one becomes a dead letter when
    /// it would have to be stored; whoever is online gets it all the same.
    pub max_body: ByteSize,
    /// The most that one message may take in all inboxes together: its body, the room's and the
    /// user's names and some 256 bytes, for each user it is stored for. Above it, likewise.
    pub max_fan_out_bytes: ByteSize,
    /// How many absent recipients, over all messages, may wait for their part before the
    /// partitions that bring more of them wait, too.
    pub max_in_flight: usize,
    /// For how long Redis may answer and refuse to store (it is at `maxmemory`, cannot save, has
    /// too few replicas, or the user may not write) until messages for absent users become dead
    /// letters, so that those who are online go on receiving. While Redis does not answer,
    /// records are held, however long that takes.
    #[serde(with = "humantime_serde")]
    pub give_up_after: Duration,
    /// The topic that `notify` produces to, on the brokers of `[kafka]`.
    pub notify_topic: String,
}

/// What an inbox entry takes beside what differs between messages, roughly.
const ENTRY_OVERHEAD: u64 = 256;

/// The configured default for the absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefaultDisposition {
    /// Into the inbox, with the configured retention.
    Store,
    /// Nothing is kept.
    Drop,
    /// To the notify topic, for the channel `default`.
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
            give_up_after: Duration::from_secs(30),
            notify_topic: "push.offline".to_owned(),
        }
    }
}

impl Config {
    /// What is wrong with the values, one sentence for each mistake.
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
        // A policy may want to notify at any time.
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

    /// What becomes of a message for this recipient, of whom policies decided this. Only users
    /// have inboxes, and the default is for users.
    pub fn disposition_of(&self, absent: &Absent, decided: Option<Disposition>) -> Disposition {
        match (absent.identity, decided) {
            (Identity::User, None) => self.disposition(),
            (Identity::Unsure | Identity::Connection, None)
            | (Identity::Connection, Some(Disposition::Store { .. })) => Disposition::Drop,
            (_, Some(decided)) => decided,
        }
    }

    /// Why this message cannot be stored for these; `None` when it can, or has to be for nobody.
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

    /// How long a message is kept for which a policy asked for this.
    fn retention(&self, asked: Option<Duration>) -> Duration {
        asked.map_or(self.retention, |asked| asked.min(self.retention))
    }
}

/// The bytes of a message and of its recipient that an entry or a notification carries: the body and
/// the names, any of which may be the large one.
fn size(message: &Message, user: &UserId) -> usize {
    let room = message.room().map_or(0, |room| room.as_str().len());
    message.body.len() + room + user.as_str().len()
}

/// What the inbox counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    stored: Counter,
    not_stored: Counter,
}

impl Metrics {
    /// Makes and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { stored: Counter::default(), not_stored: Counter::default() };
        registry.register(
            "halley_offline_stored",
            "Messages stored for users who are away, once per user",
            metrics.stored.clone(),
        );
        registry.register(
            "halley_offline_not_stored",
            "Messages for users who are away that their inbox can never take, once per user",
            metrics.not_stored.clone(),
        );
        metrics
    }
}

/// One message for one user.
#[derive(Debug, Clone)]
pub struct InboxEntry {
    /// Whose inbox.
    pub user: UserId,
    /// The message.
    pub message: Arc<Message>,
    /// How long it is kept; `None` is the configured retention, which is also the longest.
    pub retention: Option<Duration>,
}

/// An entry that can never be stored; trying again does not help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotStored {
    /// Its index among the entries.
    pub entry: usize,
    /// Why.
    pub reason: String,
}

/// Not every entry has an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The entries that can never be stored.
    pub not_stored: Vec<NotStored>,
    /// The indexes of those that have to be stored again; all others are.
    pub left: Vec<usize>,
    /// What was in the way.
    pub because: Unavailable,
}

/// A message as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The message's id.
    pub id: MessageId,
    /// The protocol operation.
    pub operation: i32,
    /// The room, when it was for one.
    pub room: Option<RoomId>,
    /// The body.
    pub body: Bytes,
    /// When it was sent: the record's timestamp, else when it was stored. Milliseconds since
    /// 1970-01-01 UTC.
    pub sent_ms: i64,
    /// From when on nobody should see it any more, likewise.
    pub expires_ms: i64,
}

/// Keeps messages for users who are away.
#[async_trait]
pub trait Inbox: Send + Sync + 'static {
    /// Stores all entries, in order. The answer names those that can never be stored; the
    /// others are.
    ///
    /// # Errors
    /// When the inbox cannot be used now, with the entries that are left. Of some of those it may
    /// be unknown whether they are stored; storing them again repeats them under the same message
    /// id.
    async fn store(&self, entries: &[InboxEntry]) -> Result<Vec<NotStored>, Unfinished>;

    /// The oldest messages of a user that have not expired, each id once, at most `limit`.
    ///
    /// # Errors
    /// When the inbox cannot be used now.
    async fn read(&self, user: &UserId, limit: usize) -> Result<Vec<Kept>, Unavailable>;
}

impl Kept {
    fn new(message: &Message, stored_ms: i64, retention: Duration) -> Self {
        let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        Self {
            id: message.id.clone(),
            operation: message.operation,
            room: message.room().cloned(),
            body: message.body.clone(),
            sent_ms: message.record.timestamp_ms.unwrap_or(stored_ms),
            expires_ms: stored_ms.saturating_add(retention_ms),
        }
    }
}

/// Milliseconds since 1970-01-01 UTC.
fn now_ms() -> i64 {
    crate::time::to_record_ms(std::time::SystemTime::now())
}
