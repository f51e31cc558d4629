//! The history of rooms: each message once, for rooms that ask for it by configuration or by a policy.
//!
//! [`RedisRoomHistory`] appends messages after filtering and before their recipients are looked up: who
//! registers later and reads the history then, misses nothing. [`RoomHistoryReader`] reads pages, like those
//! of inboxes.
//!
//! Promises: a message is delivered only after the history has it. A record that is delivered again is not
//! stored again: see `lookback`. The module does not know how a policy decides.

mod byte_limit;
mod lookback;
mod reader;
mod redis;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytesize::ByteSize;

use crate::decision::Retention;
use crate::message::{Message, RoomId};
use crate::mistake::{Mistake, mistake};
pub use crate::redis_client::Unavailable;
use crate::schema;
use crate::telemetry::{Counter, metrics};
pub use reader::RoomHistoryReader;
pub use redis::{HistoryProgress, RedisRoomHistory};

use smart_default::SmartDefault;

/// The `[history]` section.
#[derive(
    Debug, Clone, PartialEq, SmartDefault, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Rooms whose messages are kept: their ids, or how these begin, with a `*` at the end. Policies may
    /// keep messages of other rooms.
    pub rooms: Vec<String>,
    /// How long messages are kept.
    #[serde(with = "schema::Duration")]
    #[default(Duration::from_secs(7 * 24 * 3600))]
    pub retention: Duration,
    /// Maximum number of messages per room; the oldest are dropped.
    #[default(1000)]
    pub max_per_room: usize,
    /// Maximum size of a room's history in Redis, approximately; the oldest messages are dropped, not the
    /// newest.
    #[schemars(with = "schema::Size")]
    #[default(ByteSize::mib(16))]
    pub max_bytes_per_room: ByteSize,
    /// What the inboxes of absent users get of a message that is in the history: a `reference`, a `copy`, or
    /// `none`.
    #[default(InboxEntries::Reference)]
    pub inbox: InboxEntries,
}

/// What the inboxes of absent users get of a message that is in the history.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum InboxEntries {
    /// A small entry that refers to the history. Readers of the inbox get the message from there.
    #[default]
    Reference,
    /// The message, as of other rooms.
    Copy,
    /// Nothing: users read the history of their rooms when they return.
    None,
}

/// The smallest `max_bytes_per_room`: Redis drops entries in blocks of some kilobytes.
const SMALLEST_ROOM: ByteSize = ByteSize::kib(64);

impl Config {
    /// Mistakes in the values, one sentence each.
    pub fn validate(&self) -> Vec<Mistake> {
        let mut problems = Vec::new();
        for room in &self.rooms {
            let begin = room.strip_suffix('*').unwrap_or(room);
            if room.is_empty() || begin.contains('*') {
                problems.push(mistake!(
                    "history.rooms",
                    "contains `{room}`; expected a room's id, or how ids begin and a `*` at the end"
                ));
            }
        }
        if self.retention.is_zero() {
            problems.push(mistake!("history.retention", "is zero; leave `rooms` empty to keep nothing"));
        }
        if self.max_per_room == 0 {
            problems.push(mistake!("history.max_per_room", "is 0; leave `rooms` empty to keep nothing"));
        }
        if self.max_bytes_per_room < SMALLEST_ROOM {
            problems.push(mistake!("history.max_bytes_per_room", "must be at least 64KiB"));
        }
        problems
    }

    /// Where a message is kept by configuration.
    pub fn retention_of(&self, message: &Message) -> Retention {
        let history = message.room().is_some_and(|room| self.covers(room));
        Retention { history, ..Retention::default() }
    }

    /// Whether `rooms` names this room.
    pub fn covers(&self, room: &RoomId) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(begin) => room.as_str().starts_with(begin),
            None => room.as_str() == pattern,
        };
        self.rooms.iter().any(matches)
    }
}

metrics! {
    /// Metrics of the histories.
    #[derive(Clone, Debug)]
    pub struct Metrics {
        /// Messages stored in the history of their room.
        stored: Counter = "halley_history_stored";
        /// Messages that the history had already: their records were delivered again.
        repeated: Counter = "halley_history_repeated";
        /// Messages that the history can never take, because its key in Redis is not a stream.
        not_stored: Counter = "halley_history_not_stored";
    }
}
