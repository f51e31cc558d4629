//! What is stored in inboxes, and what came of storing it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::cursor::Position;
use crate::decision::AbsenceCause;
use crate::message::{ConnectionId, Message, MessageId, RoomId, UserId};
use crate::redis_client::Unavailable;
use crate::time::record_millis;

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
    /// The place in the history of the room that has the message: then this is stored instead of the body.
    pub in_history: Option<Position>,
}

impl InboxEntry {
    /// The size of body and names in the inbox.
    pub(super) fn size(&self) -> usize {
        match self.in_history {
            Some(_) => names_size(&self.message, &self.user),
            None => size(&self.message, &self.user),
        }
    }
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
    /// Where the body is, if it is not here.
    pub reference: Option<BodyReference>,
}

/// Where the body of a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyReference {
    /// Its place in the history of its room.
    pub place: Position,
    /// Its size in bytes.
    pub size: u64,
}

impl StoredMessage {
    /// Whether the body could not be found where the entry refers to.
    pub fn is_missing(&self) -> bool {
        self.reference.is_some()
    }

    pub(super) fn new(entry: &InboxEntry, stored_ms: i64, retention: Duration) -> Self {
        let message = &entry.message;
        let retention_ms = record_millis(retention);
        Self {
            id: message.id.clone(),
            operation: message.operation,
            room: message.room().cloned(),
            body: if entry.in_history.is_some() { Bytes::new() } else { message.body.clone() },
            sent_ms: message.record.timestamp_ms.unwrap_or(stored_ms),
            expires_ms: stored_ms.saturating_add(retention_ms),
            cause: entry.cause,
            reference: entry.in_history.map(|place| BodyReference { place, size: message.body.len() as u64 }),
        }
    }
}

/// Which entries' users are back, given the connection with which each is registered now.
pub(super) fn returned(
    entries: &[InboxEntry],
    online: impl Fn(usize, &InboxEntry) -> Option<ConnectionId>,
) -> Vec<Returned> {
    let of_entry = |(index, entry): (usize, &InboxEntry)| {
        let connection = online(index, entry).filter(|online| entry.failed.as_ref() != Some(online))?;
        Some(Returned { entry: index, connection })
    };
    entries.iter().enumerate().filter_map(of_entry).collect()
}

/// The size of a message and its recipient in an entry or notification: body and names.
pub(super) fn size(message: &Message, user: &UserId) -> usize {
    message.body.len() + names_size(message, user)
}

pub(super) fn names_size(message: &Message, user: &UserId) -> usize {
    message.room().map_or(0, |room| room.as_str().len()) + user.as_str().len()
}
