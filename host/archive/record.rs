//! Records of the archive topic: a message once, with some of its absent users.

use prost::Message as _;

use super::row::{ArchivedMessage, LONGEST_ID, Position, Row};
use crate::decision::AbsenceCause;
use crate::inbox;
use crate::message::{Message, UserId};

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/halley.archive.v1.rs"));
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

/// The value of a record with these recipients. `stored_ms` is the present time.
pub(super) fn encode(message: &Message, recipients: &[ArchiveRecipient<'_>], stored_ms: i64) -> Vec<u8> {
    let recipients = recipients.iter().map(|recipient| Recipient {
        user: recipient.user.as_str().to_owned(),
        cause: recipient.cause.map_or_else(String::new, |cause| cause.as_str().to_owned()),
        expires_ms: recipient.expires_ms.unwrap_or_default(),
        inbox_ms: recipient.position.map_or(0, |position| position.ms),
        inbox_number: recipient.position.map_or(0, |position| position.number),
    });
    let record = ArchiveRecord {
        id: message.id.as_str().to_owned(),
        operation: message.operation,
        room: message.room().map(|room| room.as_str().to_owned()).unwrap_or_default(),
        body: message.body.clone(),
        sent_ms: message.record.timestamp_ms.unwrap_or(stored_ms),
        stored_ms,
        recipients: recipients.collect(),
    };
    record.encode_to_vec()
}

/// The rows of a record.
pub(super) fn decode(value: Option<bytes::Bytes>) -> Result<Vec<Row>, InvalidRecord> {
    let value = value.ok_or(InvalidRecord::NoValue)?;
    let record = ArchiveRecord::decode(value).map_err(|error| InvalidRecord::Malformed(error.to_string()))?;
    let ArchiveRecord { id, operation, room, body, sent_ms, stored_ms, recipients } = record;
    let position = Position::new(sent_ms, &id).ok_or(InvalidRecord::Id(id))?;
    // The place is not known: when it was stored, and what distinguishes it from others of that time.
    let otherwise =
        inbox::Position { ms: u64::try_from(stored_ms).unwrap_or_default(), number: position.fingerprint };
    let row = |Recipient { user, cause, expires_ms, inbox_ms, inbox_number }| Row {
        user: user.into(),
        place: match inbox_ms {
            0 => otherwise,
            ms => inbox::Position { ms, number: inbox_number },
        },
        message: ArchivedMessage {
            position: position.clone(),
            operation,
            room: room.clone(),
            body: body.clone(),
            stored_ms,
            expires_ms,
            cause,
        },
    };
    Ok(recipients.into_iter().map(row).collect())
}

/// Why the archive cannot keep a message for a user; `None` if it can.
pub fn refusal(message: &Message, user: &UserId) -> Option<String> {
    let room = message.room().map_or(0, |room| room.as_str().len());
    let (what, length) = match user.as_str().len() {
        length if length > LONGEST_ID => ("user", length),
        _ if room > LONGEST_ID => ("room", room),
        _ => return None,
    };
    Some(format!("the id of the {what} has {length} bytes; the archive keeps ids of up to {LONGEST_ID}"))
}
