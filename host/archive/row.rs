//! The rows of the archive, and their order.

use bytes::Bytes;

use crate::inbox;
use crate::message::{MessageId, RoomId, UserId};

/// Maximum length of the ids of users and rooms in the archive, in bytes.
pub(super) const LONGEST_ID: usize = 255;

/// The identity of a message among those of its user or room: the time at which it was sent, then where it
/// was in Kafka. It is the same however often the message is delivered, so a row is never written
/// twice. Pages have another order: that of the places in the inbox or history.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The record's timestamp, in milliseconds since 1970.
    pub sent_ms: i64,
    /// The record's topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Distinguishes records with the same origin; see [`crate::message::Record::id_at`].
    pub fingerprint: u64,
}

impl Position {
    /// The position of the message with this id; `None` if it is not an id that Halley gives.
    pub fn new(sent_ms: i64, id: &str) -> Option<Self> {
        let mut parts = id.rsplitn(4, '/');
        let fingerprint = parts.next().filter(|text| text.len() == 16)?;
        let (offset, partition, topic) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self {
            sent_ms,
            topic: topic.to_owned(),
            partition: partition.parse().ok()?,
            offset: offset.parse().ok()?,
            fingerprint: u64::from_str_radix(fingerprint, 16).ok()?,
        })
    }

    /// The message's id.
    pub fn id(&self) -> MessageId {
        let Self { topic, partition, offset, fingerprint, .. } = self;
        format!("{topic}/{partition}/{offset}/{fingerprint:016x}").into()
    }
}

/// A message in the archive of a user or a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedMessage {
    /// What identifies it among the user's messages.
    pub position: Position,
    /// The protocol operation.
    pub operation: i32,
    /// The room, if it was for one; otherwise empty.
    pub room: String,
    /// The body.
    pub body: Bytes,
    /// When it was stored, in milliseconds since 1970.
    pub stored_ms: i64,
    /// When it expires, in milliseconds since 1970; 0 if it is kept as long as the archive keeps
    /// anything.
    pub expires_ms: i64,
    /// Why it was stored; empty if it is stored for everyone.
    pub cause: String,
    /// If its body is in the history of its room instead: where, and its size.
    pub reference: Option<inbox::BodyReference>,
}

/// Whose row it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RowOwner {
    User(UserId),
    Room(RoomId),
}

impl RowOwner {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::User(user) => user.as_str().as_bytes(),
            Self::Room(room) => room.as_str().as_bytes(),
        }
    }

    pub(super) fn user(&self) -> Option<&UserId> {
        match self {
            Self::User(user) => Some(user),
            Self::Room(_) => None,
        }
    }
}

/// One row: a message for one user, or of one room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) owner: RowOwner,
    /// The message's place in the user's inbox, or in the room's history.
    pub(super) place: inbox::Position,
    pub(super) message: ArchivedMessage,
}

/// Approximate size of a row's columns other than ids and body.
const COLUMNS: usize = 128;

impl Row {
    /// The approximate size in a statement, in bytes.
    pub(super) fn size(&self) -> usize {
        let ArchivedMessage { position, room, body, .. } = &self.message;
        COLUMNS + self.owner.as_bytes().len() + position.topic.len() + room.len() + body.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_and_positions_correspond(
            topic in "[a-zA-Z0-9._-]{1,20}", partition in 0..i32::MAX, offset in 0..i64::MAX, fingerprint: u64
        ) {
            let position = Position { sent_ms: 7, topic, partition, offset, fingerprint };
            prop_assert_eq!(Position::new(7, position.id().as_str()), Some(position));
        }

        #[test]
        fn other_ids_are_refused(id in "\\PC{0,40}") {
            if let Some(position) = Position::new(1, &id) {
                // Signs and leading zeros are not kept.
                prop_assert_eq!(Position::new(1, position.id().as_str()), Some(position));
            }
        }
    }

    #[test]
    fn offsets_are_ordered_as_numbers() {
        let at = |id| Position::new(5, id).unwrap();
        assert!(at("t/0/9/ffffffffffffffff") < at("t/0/10/0000000000000000"));
        assert!(at("t/9/0/ffffffffffffffff") < at("t/10/0/0000000000000000"));
    }
}
