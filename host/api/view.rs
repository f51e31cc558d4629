//! The JSON of the HTTP form. Times are milliseconds since 1970; bodies are base64, as in protobuf's JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::inbox::{Cursor, Owner, Page, PageEntry, Standing};
use crate::message::{ConnectionId, RoomId, UserId};
use crate::replay::Replayed;

#[derive(Serialize)]
pub(crate) struct PageView<'a> {
    entries: Vec<EntryView<'a>>,
    /// Empty: the inbox is empty and the request named no place.
    next: String,
    more: bool,
    truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
}

#[derive(Serialize)]
pub(crate) struct EntryView<'a> {
    cursor: String,
    id: &'a str,
    operation: i32,
    room: Option<&'a RoomId>,
    body: String,
    sent_ms: i64,
    stored_ms: i64,
    expires_ms: i64,
    cause: &'static str,
    /// Its body is not kept any more, or cannot be read now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    missing: bool,
}

#[derive(Serialize)]
pub(crate) struct PositionView {
    first: String,
    last: String,
    acknowledged: String,
    kept: u64,
}

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

/// A cursor, or the empty text for none.
pub(crate) fn cursor_text<'o>(cursor: Option<Cursor>, owner: impl Into<Owner<'o>>) -> String {
    cursor.map(|cursor| cursor.encode(owner)).unwrap_or_default()
}

impl<'a> PageView<'a> {
    pub(crate) fn new<'o>(page: &'a Page, owner: impl Into<Owner<'o>>) -> Self {
        let owner = owner.into();
        Self {
            entries: page.entries.iter().map(|entry| EntryView::new(entry, owner)).collect(),
            next: cursor_text(page.next, owner),
            more: page.more,
            truncated: page.truncated,
            warning: page.warning,
        }
    }
}

impl<'a> EntryView<'a> {
    pub(crate) fn new(entry: &'a PageEntry, owner: Owner<'_>) -> Self {
        let message = &entry.message;
        Self {
            cursor: Cursor::At(entry.position).encode(owner),
            id: message.id.as_str(),
            operation: message.operation,
            room: message.room.as_ref(),
            body: STANDARD.encode(&message.body),
            sent_ms: message.sent_ms,
            stored_ms: entry.stored_ms(),
            expires_ms: message.expires_ms,
            cause: message.cause.map_or("", |cause| cause.as_str()),
            missing: message.is_missing(),
        }
    }
}

impl PositionView {
    pub(crate) fn new<'o>(standing: &Standing, owner: impl Into<Owner<'o>>) -> Self {
        let owner = owner.into();
        Self {
            first: cursor_text(standing.first, owner),
            last: cursor_text(standing.last, owner),
            acknowledged: cursor_text(standing.acknowledged, owner),
            kept: standing.kept,
        }
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
