//! What becomes of recipients who are away: the inbox, and the configured default.
//!
//! [`RedisInbox`] keeps a bounded stream per user under Halley's prefix; [`MemoryInbox`] stands
//! in for it in the demo and in tests and behaves the same. Who reads inboxes is somebody
//! else's software; the layout is described at [`RedisInbox`].
//!
//! Promises: what `store` reports as stored is in the inbox. A redelivered record may be stored
//! twice under the same message id; readers drop repeats. It does not know how a policy
//! decides.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod memory;
mod notifier;
mod redis;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use crate::decision::Disposition;
use crate::message::{Message, MessageId, RoomId, UserId};
pub use crate::redis_client::Unavailable;
pub use memory::MemoryInbox;
pub use notifier::Notifier;
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
    /// How many messages are kept for one user; the oldest give way. Redis may keep up to a
    /// hundred more, since it trims in whole blocks.
    pub max_per_user: usize,
    /// The topic that `notify` produces to, on the brokers of `[kafka]`.
    pub notify_topic: String,
}

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
            notify_topic: "push.offline".to_owned(),
        }
    }
}

impl Config {
    /// What is wrong with the values, one sentence for each mistake.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.retention.is_zero() {
            problems.push("`offline.retention` is zero; use `default = \"drop\"` to keep nothing".to_owned());
        }
        if self.max_per_user == 0 {
            problems.push("`offline.max_per_user` is 0; use `default = \"drop\"` to keep nothing".to_owned());
        }
        if self.notify_topic.is_empty() {
            problems
                .push("`offline.notify_topic` is empty; a policy may want to notify at any time".to_owned());
        }
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

    /// How long a message is kept for which a policy asked for this.
    fn retention(&self, asked: Option<Duration>) -> Duration {
        asked.map_or(self.retention, |asked| asked.min(self.retention))
    }
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
    /// When the inbox cannot be used now. Some entries may have been stored; storing them again
    /// repeats them under the same message id.
    async fn store(&self, entries: &[InboxEntry]) -> Result<Vec<NotStored>, Unavailable>;

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
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
