//! Pages of an inbox: what is asked for, and how a page is built from the stored entries.
//!
//! Pure. Entries that have expired and repeats within a page are left out. A page is bounded in entries
//! and in bytes; `more` says that there are others.
//!
//! A page is `truncated` if something between `after` and its first entry is no longer kept. This is
//! seen by the entry at `after`: as long as it is stored, so is all that follows. For a device that has
//! been away for longer than the retention the page is truncated in any case: nobody knows what was there.

use std::collections::HashSet;
use std::sync::Arc;

use super::StoredMessage;
use super::cursor::{Cursor, Position};
use crate::message::MessageId;

/// Entries of a page if a request names no limit.
const DEFAULT_LIMIT: usize = 100;
/// Entries of a page at most.
const MAX_LIMIT: usize = 500;
/// Bytes of a page at most, unless its first entry alone has more.
const MAX_BYTES: usize = 1 << 20;
/// How much shorter than the retention the lifetime of an ordinary entry may seem: clocks differ.
const LIFETIME_SLACK_MS: i64 = 60_000;
/// The longest name of a device, in bytes.
const LONGEST_DEVICE: usize = 128;

/// The name of a device, each of which has its own position in its user's inbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(Arc<str>);

/// The text cannot name a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device has a name of 1 to {LONGEST_DEVICE} bytes without control characters")]
pub struct InvalidDevice;

impl DeviceId {
    /// A device with this name.
    ///
    /// # Errors
    /// If it is empty, too long, or contains control characters.
    pub fn new(name: &str) -> Result<Self, InvalidDevice> {
        let is_valid = !name.is_empty() && name.len() <= LONGEST_DEVICE && !name.contains(char::is_control);
        if is_valid { Ok(Self(name.into())) } else { Err(InvalidDevice) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A request for a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageQuery {
    /// Only what follows this place.
    pub after: Option<Cursor>,
    /// Only what precedes this place.
    pub before: Option<Cursor>,
    /// Entries at most; 0 means 100, and 500 is the most.
    pub limit: usize,
    /// The newest first.
    pub backwards: bool,
    /// Only the inbox itself, without what is kept for longer elsewhere: for readers that have reached
    /// the end and wait for more.
    pub only_recent: bool,
}

impl PageQuery {
    /// The entries that the page has at most.
    pub(super) fn most(&self) -> usize {
        if self.limit == 0 { DEFAULT_LIMIT } else { self.limit.min(MAX_LIMIT) }
    }
}

/// An entry of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageEntry {
    /// Its place.
    pub position: Position,
    /// The message.
    pub message: StoredMessage,
}

impl PageEntry {
    /// When it was stored, in milliseconds since 1970.
    pub fn stored_ms(&self) -> i64 {
        i64::try_from(self.position.ms).unwrap_or(i64::MAX)
    }
}

/// A part of an inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries, in the order of the request.
    pub entries: Vec<PageEntry>,
    /// Where the next page begins: its `after`, or `before` if it goes backwards. `None` if the inbox is
    /// empty and the request named no place.
    pub next: Option<Cursor>,
    /// Whether there is more now.
    pub more: bool,
    /// Whether something between `after` and the first entry is no longer kept.
    pub truncated: bool,
    /// What the page lacks that is kept, but cannot be read now.
    pub warning: Option<&'static str>,
}

/// Where an inbox stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Before the oldest entry that is kept.
    pub first: Option<Cursor>,
    /// At the newest.
    pub last: Option<Cursor>,
    /// What the device has acknowledged.
    pub acknowledged: Option<Cursor>,
    /// How many entries are kept.
    pub kept: u64,
}

/// Builds a page from stored entries in the order of the request. The first ones may lie at `after`.
#[derive(Debug, Default)]
pub(super) struct PageBuilder {
    query: PageQuery,
    now_ms: i64,
    retention_ms: i64,
    page: Page,
    seen: HashSet<MessageId>,
    bytes: usize,
    /// Whether the entry at `after` is still stored.
    has_anchor: bool,
    /// Whether an expired entry was met that a reader could have expected.
    has_expired: bool,
}

impl PageBuilder {
    pub(super) fn new(query: PageQuery, now_ms: i64, retention_ms: i64) -> Self {
        let next = if query.backwards { query.before } else { query.after };
        let page = Page { next, ..Page::default() };
        Self { query, now_ms, retention_ms, page, ..Self::default() }
    }

    /// Takes the next entry, or `None` for one that Halley did not write. Returns whether it can take more.
    pub(super) fn push(&mut self, position: Position, message: Option<StoredMessage>) -> bool {
        match self.query.after {
            Some(Cursor::At(anchor)) if position <= anchor => {
                self.has_anchor |= position == anchor;
                return true;
            }
            Some(Cursor::Before(first)) if position <= first => {
                self.has_anchor |= position == first;
                if position < first {
                    return true;
                }
            }
            _ => {}
        }
        let Some(message) = message else { return self.skip(position) };
        if message.expires_ms <= self.now_ms {
            self.has_expired |= self.is_ordinary(position, &message);
            return self.skip(position);
        }
        if self.seen.contains(&message.id) {
            return self.skip(position);
        }
        let bytes = self.bytes + message.body.len();
        let is_full = self.page.entries.len() >= self.query.most();
        if is_full || (bytes > MAX_BYTES && !self.page.entries.is_empty()) {
            self.page.more = true;
            return false;
        }
        self.bytes = bytes;
        self.seen.insert(message.id.clone());
        self.page.next = Some(Cursor::At(position));
        self.page.entries.push(PageEntry { position, message });
        true
    }

    fn skip(&mut self, position: Position) -> bool {
        self.page.next = Some(Cursor::At(position));
        true
    }

    /// Whether an entry was to be kept for the retention, not for a shorter time.
    fn is_ordinary(&self, position: Position, message: &StoredMessage) -> bool {
        let lifetime = message.expires_ms.saturating_sub_unsigned(position.ms);
        lifetime >= self.retention_ms.saturating_sub(LIFETIME_SLACK_MS)
    }

    /// Whether an entry has expired after the whole retention: a reader could have expected it.
    pub(super) fn is_overdue(&self, position: Position, message: &Option<StoredMessage>) -> bool {
        let message = message.as_ref();
        message.is_some_and(|kept| kept.expires_ms <= self.now_ms && self.is_ordinary(position, kept))
    }

    /// The id of an entry that has not expired.
    pub(super) fn live_id(&self, message: &Option<StoredMessage>) -> Option<MessageId> {
        message.as_ref().filter(|message| message.expires_ms > self.now_ms).map(|message| message.id.clone())
    }

    /// The entries so far.
    pub(super) fn len(&self) -> usize {
        self.page.entries.len()
    }

    /// Whether the entry at `after` was met.
    pub(super) fn has_anchor(&self) -> bool {
        self.has_anchor
    }

    /// The entry at `after` does not show that what follows it is there.
    pub(super) fn forget_anchor(&mut self) {
        self.has_anchor = false;
    }

    /// Something that a reader could have expected is gone.
    pub(super) fn note_expired(&mut self) {
        self.has_expired = true;
    }

    /// There may be more, but enough was read for one page.
    pub(super) fn stop_early(&mut self) {
        self.page.more = true;
    }

    /// Whether the page begins, or ends, where the inbox does: then what was trimmed matters.
    pub(super) fn reaches_the_oldest(&self) -> bool {
        self.query.after.is_none() && (!self.query.backwards || !self.page.more)
    }

    /// The page. `is_trimmed`: whether entries before the oldest have been dropped.
    pub(super) fn finish(mut self, is_trimmed: bool) -> Page {
        let reaches_after = !self.query.backwards || !self.page.more;
        let has_lost = if self.query.after.is_some() { !self.has_anchor } else { is_trimmed };
        // What has expired is known at once: the page that reaches `after` may meet none of it.
        self.page.truncated = self.has_expired || (reaches_after && has_lost);
        self.page
    }
}

#[cfg(test)]
mod tests;
