//! The answers of the API. gRPC encodes these messages, and HTTP and the commands print them as JSON: times in
//! milliseconds since 1970, bodies in base64, as in protobuf's JSON. `build.rs` says which fields differ.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::api::proto::inbox as proto;
use crate::inbox::{Cursor, Owner, Page, PageEntry, Standing};
use crate::message::{ConnectionId, UserId};
use crate::replay::Replayed;

/// What a replay pushed; in HTTP only.
#[derive(Serialize)]
pub(crate) struct ReplayedView<'a> {
    connection: &'a ConnectionId,
    pushed: usize,
    next: String,
    more: bool,
    truncated: bool,
    stopped: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
}

/// A page of an inbox or a history. `next` is empty if the inbox is empty and the request named no place.
pub(crate) fn page<'o>(page: Page, owner: impl Into<Owner<'o>>) -> proto::Page {
    let owner = owner.into();
    let Page { entries, next, more, truncated, warning } = page;
    proto::Page {
        entries: entries.into_iter().map(|entry| self::entry(entry, owner)).collect(),
        next: cursor_text(next, owner),
        more,
        truncated,
        warning: warning.unwrap_or_default().to_owned(),
    }
}

fn entry(entry: PageEntry, owner: Owner<'_>) -> proto::Entry {
    let stored_ms = entry.stored_ms();
    let message = entry.message;
    proto::Entry {
        cursor: Cursor::At(entry.position).encode(owner),
        id: message.id.to_string(),
        operation: message.operation,
        missing: message.is_missing(),
        room: message.room.map(|room| room.to_string()).unwrap_or_default(),
        body: message.body,
        sent_ms: message.sent_ms,
        stored_ms,
        expires_ms: message.expires_ms,
        cause: message.cause.map_or("", |cause| cause.as_str()).to_owned(),
    }
}

/// Where an inbox or a history stands.
pub(crate) fn position<'o>(standing: &Standing, owner: impl Into<Owner<'o>>) -> proto::PositionReply {
    let owner = owner.into();
    proto::PositionReply {
        first: cursor_text(standing.first, owner),
        last: cursor_text(standing.last, owner),
        acknowledged: cursor_text(standing.acknowledged, owner),
        kept: standing.kept,
    }
}

impl<'a> ReplayedView<'a> {
    pub(crate) fn new(replayed: &'a Replayed, user: &UserId) -> Self {
        Self {
            connection: &replayed.connection,
            pushed: replayed.pushed,
            next: cursor_text(replayed.next, user),
            more: replayed.more,
            truncated: replayed.truncated,
            stopped: replayed.stopped.as_deref(),
            warning: replayed.warning,
        }
    }
}

/// A cursor, or the empty text for none.
fn cursor_text<'o>(cursor: Option<Cursor>, owner: impl Into<Owner<'o>>) -> String {
    cursor.map(|cursor| cursor.encode(owner)).unwrap_or_default()
}

/// Bytes in JSON.
pub(super) fn base64<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

/// A text in JSON that is `null` if there is none.
pub(super) fn or_null<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    Some(text).filter(|text| !text.is_empty()).serialize(serializer)
}
