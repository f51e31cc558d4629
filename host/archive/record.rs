//! Records of the archive topic: a message once, with some of its absent users; or a message of a room that
//! has a history, with its place there.

use prost::Message as _;

use super::row::{ArchivedMessage, LONGEST_ID, Position, Row, RowOwner};
use crate::decision::AbsenceCause;
use crate::inbox;
use crate::message::{Message, UserId};

generated! {
    mod proto = "/halley.archive.v1.rs"
}

use proto::{ArchiveRecord, Recipient};

/// A user for whom a message was stored.
#[derive(Debug, Clone)]
pub struct ArchiveRecipient<'a> {
    /// The user.
    pub user: &'a UserId,
    /// Why the message was stored; `None` if it is stored for everyone.
    pub cause: Option<AbsenceCause>,
    /// When it expires, in milliseconds since 1970, if a policy has shortened how long it is kept.
    pub expires_ms: Option<i64>,
    /// Its place in the user's inbox, if that is known.
    pub position: Option<inbox::Position>,
}

/// A record of the archive topic that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidRecord {
    #[error("the record has no value")]
    NoValue,
    #[error("the value is not an ArchiveRecord: {0}")]
    Malformed(String),
    #[error("`{0}` is not the id of a message")]
    Id(String),
}

/// The value of a record with these recipients. `stored_ms` is the present time. `reference`: the inboxes
/// refer to this place in the history of the room, so the record has no body.
pub(super) fn encode(
    message: &Message,
    recipients: &[ArchiveRecipient<'_>],
    reference: Option<inbox::Position>,
    stored_ms: i64,
) -> Vec<u8> {
    let recipients = recipients.iter().map(|recipient| Recipient {
        user: recipient.user.as_str().to_owned(),
        cause: recipient.cause.map_or_else(String::new, |cause| cause.as_str().to_owned()),
        expires_ms: recipient.expires_ms.unwrap_or_default(),
        inbox_ms: recipient.position.map_or(0, |position| position.ms),
        inbox_number: recipient.position.map_or(0, |position| position.number),
    });
    let mut record = without_recipients(message, reference, stored_ms);
    record.recipients = recipients.collect();
    match reference {
        Some(_) => record.body_size = message.body.len() as u64,
        None => record.body = message.body.clone(),
    }
    record.encode_to_vec()
}

/// The value of the record of a message that has this place in the history of its room.
pub(super) fn encode_history(message: &Message, place: inbox::Position, stored_ms: i64) -> Vec<u8> {
    let body = message.body.clone();
    ArchiveRecord { body, ..without_recipients(message, Some(place), stored_ms) }.encode_to_vec()
}

fn without_recipients(message: &Message, place: Option<inbox::Position>, stored_ms: i64) -> ArchiveRecord {
    ArchiveRecord {
        id: message.id.as_str().to_owned(),
        operation: message.operation,
        room: message.room().map(|room| room.as_str().to_owned()).unwrap_or_default(),
        sent_ms: message.record.timestamp_ms.unwrap_or(stored_ms),
        stored_ms,
        history_ms: place.map_or(0, |place| place.ms),
        history_number: place.map_or(0, |place| place.number),
        ..ArchiveRecord::default()
    }
}

/// The rows of a record.
pub(super) fn decode(value: Option<bytes::Bytes>) -> Result<Vec<Row>, InvalidRecord> {
    let value = value.ok_or(InvalidRecord::NoValue)?;
    let record = ArchiveRecord::decode(value).map_err(|error| InvalidRecord::Malformed(error.to_string()))?;
    let ArchiveRecord { id, sent_ms, stored_ms, recipients, history_ms, history_number, body_size, .. } =
        record;
    let position = Position::new(sent_ms, &id).ok_or(InvalidRecord::Id(id))?;
    let in_history = (history_ms > 0).then_some(inbox::Position { ms: history_ms, number: history_number });
    // The place is not known: when it was stored, and what distinguishes it from others of that time.
    let otherwise =
        inbox::Position { ms: u64::try_from(stored_ms).unwrap_or_default(), number: position.fingerprint };
    let message = ArchivedMessage {
        position,
        operation: record.operation,
        room: record.room,
        body: record.body,
        stored_ms,
        expires_ms: 0,
        cause: String::new(),
        reference: None,
    };
    if let Some(place) = in_history.filter(|_| recipients.is_empty()) {
        let owner = RowOwner::Room(message.room.as_str().into());
        return Ok(vec![Row { owner, place, message }]);
    }
    let reference = in_history.map(|place| inbox::BodyReference { place, size: body_size });
    let row = |Recipient { user, cause, expires_ms, inbox_ms, inbox_number }| Row {
        owner: RowOwner::User(user.into()),
        place: match inbox_ms {
            0 => otherwise,
            ms => inbox::Position { ms, number: inbox_number },
        },
        message: ArchivedMessage { expires_ms, cause, reference, ..message.clone() },
    };
    Ok(recipients.into_iter().map(row).collect())
}

/// Why the archive cannot keep a message for a user; `None` if it can.
pub fn refusal(message: &Message, user: &UserId) -> Option<String> {
    too_long("user", user.as_str()).or_else(|| room_refusal(message))
}

/// Why the archive cannot keep a message of its room; `None` if it can.
pub fn room_refusal(message: &Message) -> Option<String> {
    too_long("room", message.room()?.as_str())
}

fn too_long(what: &str, id: &str) -> Option<String> {
    let length = id.len();
    let why = format!("the id of the {what} has {length} bytes; the archive keeps ids of up to {LONGEST_ID}");
    (length > LONGEST_ID).then_some(why)
}
