//! One page from two stores: the stream in Redis, and what is kept for longer elsewhere. The same for the
//! inboxes of users and the histories of rooms.
//!
//! # One order
//! Entries are in the order in which they were stored in the stream, and keep their places for ever:
//! the longer-lived store remembers the place that each message had. So a cursor means the same in both.
//! The stream has everything from its first entry that is not overdue on (the *seam*); what is before it
//! comes from the other store. A page may begin in either, and passes the seam without a gap. The stream
//! is read first: what leaves it meanwhile has been read already.
//!
//! The message at the seam is looked for in the other store as well. If it is not there although
//! something has left the stream, that store is behind, and the page says that it is truncated.
//!
//! A message that was stored twice, because its record was delivered again, has two places in the stream
//! and one in the other store: it may be met twice, with the same id.
//!
//! Pure: it says what to read next, and takes what was read.

use super::StoredMessage;
use super::cursor::{Cursor, Position};
use super::older::{OlderEntries, OlderRange, OlderUnavailable};
use super::page::{Page, PageBuilder, PageQuery};
use crate::message::MessageId;

/// Entries per read of the stream.
const CHUNK: usize = 100;
/// Entries of a further read of the stream at least: those of the reads before it have expired.
const FURTHER: usize = 16;
/// Reads of the stream per page at most: it may be full of expired entries.
const MAX_CHUNKS: usize = 20;
/// Entries of the first read of the other store, before the size of the messages is known.
const FIRST_OLDER: usize = 16;
/// Entries of a read of the other store at most.
const MOST_OLDER: usize = 500;
/// Bytes of a read of the other store: see [`OlderRange::bytes`].
const OLDER_BYTES: usize = 1 << 20;

/// An entry of the stream; `None` for one that Halley did not write.
pub(super) type StreamEntry = (Position, Option<StoredMessage>);

/// What to read next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Stream(StreamRange),
    Older(OlderRange),
    /// Whether the other store has dropped something as well.
    Dropped,
    Done,
}

/// A part of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamRange {
    /// From this place on.
    pub(super) low: Option<Position>,
    /// Up to, without this place.
    pub(super) high: Option<Position>,
    pub(super) count: usize,
    pub(super) backwards: bool,
}

/// A page that is being read.
#[derive(Debug, Default)]
pub(super) struct Paging {
    query: PageQuery,
    page: PageBuilder,
    has_older: bool,
    next: Phase,
    stream: StreamRange,
    rounds: usize,
    /// Entries of the stream from the seam on, until what is before them is known.
    held: Vec<StreamEntry>,
    /// Whether the stream has no more in the range.
    is_stream_read: bool,
    older: Older,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Stream,
    Older,
    Done,
}

/// What is known of the other store.
#[derive(Debug, Default)]
struct Older {
    is_asked: bool,
    failure: Option<OlderUnavailable>,
    range: Option<OlderRange>,
    /// The place of the seam, and the message there.
    seam: Option<Position>,
    seam_message: Option<MessageId>,
    /// Whether there is an unexpired message at the seam.
    has_message: bool,
    /// The first entry of the stream that is not left to it.
    oldest_in_stream: Option<Position>,
    /// The last entry of the stream that was left to it, if there may be others.
    end: Option<Position>,
    /// Whether all of it in the range was read.
    is_read: bool,
    has_seam: bool,
    rows: usize,
    bytes: usize,
    /// Whether overdue entries of the stream were left to it.
    took_overdue: bool,
    /// Whether it has dropped what was before the seam; `None` until that was asked.
    has_dropped: Option<bool>,
}

impl Paging {
    /// `has_older`: there is another store.
    pub(super) fn new(query: PageQuery, now_ms: i64, retention_ms: i64, has_older: bool) -> Self {
        let stream = StreamRange {
            // With the entry at `after`, which the page looks for, and without the one at `before`.
            low: query.after.map(Cursor::position),
            high: query.before.map(Cursor::position),
            // One more than the page takes, to see whether there is more, and the entry at `after`.
            count: query.most() + 2,
            backwards: query.backwards,
        };
        let page = PageBuilder::new(query, now_ms, retention_ms);
        Self { query, page, has_older, stream, ..Self::default() }
    }

    /// What to read next.
    pub(super) fn next(&mut self) -> Step {
        match self.next {
            Phase::Stream => Step::Stream(StreamRange { count: self.stream.count.min(CHUNK), ..self.stream }),
            Phase::Older => Step::Older(self.older_range()),
            Phase::Done if self.begins_in_the_other_store() => Step::Dropped,
            Phase::Done => Step::Done,
        }
    }

    /// Takes entries of the stream, in the order of the range. `is_last`: there are no more.
    pub(super) fn take_stream(&mut self, entries: Vec<StreamEntry>, is_last: bool) {
        self.rounds += 1;
        self.is_stream_read = is_last || entries.is_empty();
        self.stream.count = self.stream.count.saturating_sub(entries.len()).max(FURTHER);
        if let Some((last, _)) = entries.last() {
            let range = &mut self.stream;
            if range.backwards { range.high = Some(*last) } else { range.low = Some(last.successor()) }
        }
        let is_seam_open = self.has_older && !self.older.is_asked;
        match (is_seam_open, self.query.backwards) {
            (true, false) => self.find_seam(entries),
            (true, true) => self.push_back_to_the_seam(entries),
            (false, _) => self.push_stream(entries),
        }
    }

    /// Takes entries of the other store, in the order of the range.
    pub(super) fn take_older(&mut self, range: &OlderRange, entries: Result<OlderEntries, OlderUnavailable>) {
        let OlderEntries { entries, are_all } = match entries {
            Ok(entries) => entries,
            Err(failure) => {
                self.older.failure = Some(failure);
                return self.pass_the_seam();
            }
        };
        self.older.is_read = are_all;
        let last = entries.last().map(|(position, _)| *position);
        for (position, message) in entries {
            self.older.rows += 1;
            self.older.bytes += message.body.len();
            let is_seam = self.older.seam == Some(position);
            self.older.has_seam |= is_seam
                || self.older.end == Some(position)
                || self.older.seam_message.as_ref() == Some(&message.id);
            // The seam's own message is in the stream.
            if !is_seam && !self.page.push(position, Some(message)) {
                (self.next, self.older.is_read) = (Phase::Done, false);
                return;
            }
        }
        match last {
            Some(last) if !self.older.is_read => {
                let rest = if range.backwards {
                    OlderRange { to: last.predecessor(), ..*range }
                } else {
                    OlderRange { from: Some(last.successor()), ..*range }
                };
                self.older.range = Some(rest);
            }
            _ => self.pass_the_seam(),
        }
    }

    /// Takes when the oldest entry that the other store has dropped had been stored.
    pub(super) fn take_dropped(&mut self, oldest_ms: Result<Option<u64>, OlderUnavailable>) {
        let before = self.query.before.map(Cursor::position);
        let is_before_the_seam = |ms: u64| match self.older.oldest_in_stream {
            Some(seam) => ms < seam.ms,
            None => before.is_none_or(|before| ms <= before.ms),
        };
        match oldest_ms {
            Ok(oldest_ms) => self.older.has_dropped = Some(oldest_ms.is_some_and(is_before_the_seam)),
            Err(failure) => self.older.failure = Some(failure),
        }
    }

    /// Whether the page has what is oldest in the other store, so that it matters what was dropped there.
    fn begins_in_the_other_store(&self) -> bool {
        let Older { is_asked, failure, has_dropped, .. } = &self.older;
        *is_asked && failure.is_none() && has_dropped.is_none() && self.page.reaches_the_oldest()
    }

    /// The page. `is_trimmed`: whether entries before the stream's oldest have been dropped.
    pub(super) fn finish(self, is_trimmed: bool) -> Page {
        let is_next_an_entry = self.query.backwards && self.has_older;
        let mut page = self.build(is_trimmed);
        // The next page looks for the message there in the other store: not one that has expired.
        if let Some(last) = page.entries.last().filter(|_| is_next_an_entry) {
            page.next = Some(Cursor::At(last.position));
        }
        page
    }

    fn build(mut self, is_trimmed: bool) -> Page {
        let Older {
            is_asked, failure, is_read, has_seam, rows, has_message, took_overdue, has_dropped, ..
        } = self.older;
        if took_overdue && (failure.is_some() || !is_asked) {
            self.page.note_expired();
        }
        if !is_asked || failure.is_some() {
            let mut page = self.page.finish(is_trimmed);
            page.warning = failure.map(|failure| failure.0);
            return page;
        }
        // Backward, the seam comes first: what follows it there shows that something has left the stream.
        let has_gap = self.query.backwards && rows > 0 && has_message && !has_seam;
        let is_behind = is_read && has_message && !has_seam;
        let was_trimmed = is_trimmed || took_overdue;
        match self.query.after {
            Some(_) if is_behind => self.page.note_expired(),
            None if has_dropped == Some(true) => self.page.note_expired(),
            None if was_trimmed && (rows == 0 || is_behind) => self.page.note_expired(),
            _ => {}
        }
        let mut page = self.page.finish(false);
        page.truncated |= has_gap;
        if (is_behind || has_gap) && page.truncated {
            page.warning = Some(BEHIND);
        }
        page
    }

    /// Whether it matters what was trimmed from the stream.
    pub(super) fn reaches_the_oldest(&self) -> bool {
        self.page.reaches_the_oldest()
    }

    /// Forward: after overdue entries, the first that has not expired is the seam.
    fn find_seam(&mut self, entries: Vec<StreamEntry>) {
        let last = entries.last().map(|(position, _)| *position);
        for (position, message) in entries {
            if self.older.seam.is_none() && self.page.is_overdue(position, &message) {
                self.older.took_overdue = true;
                self.held.clear();
                continue;
            }
            if self.older.seam.is_none()
                && let Some(id) = self.page.live_id(&message)
            {
                (self.older.seam, self.older.seam_message) = (Some(position), Some(id));
            }
            self.held.push((position, message));
        }
        if self.older.seam.is_none() && !self.is_stream_read && self.rounds < MAX_CHUNKS {
            return;
        }
        if self.older.seam.is_none() && !self.is_stream_read {
            // The next page begins after these.
            self.held = last.map(|last| (last, None)).into_iter().collect();
            self.older.end = last;
            return self.ask();
        }
        let after = self.query.after.map(Cursor::position);
        let first = self.held.first().map(|(position, _)| *position);
        if after.is_some() && after == first && !self.older.took_overdue {
            let held = std::mem::take(&mut self.held);
            self.has_older = false;
            return self.push_stream(held);
        }
        self.ask();
    }

    /// Backward: what is before the first overdue entry comes from the other store.
    fn push_back_to_the_seam(&mut self, entries: Vec<StreamEntry>) {
        for (position, message) in entries {
            if self.page.is_overdue(position, &message) {
                self.older.took_overdue = true;
                return self.ask();
            }
            // Of an expired message nobody knows whether the other store should have it.
            if let Some(id) = self.page.live_id(&message) {
                (self.older.seam, self.older.seam_message) = (Some(position), Some(id));
            }
            if !self.page.push(position, message) {
                self.next = Phase::Done;
                return;
            }
        }
        if self.is_stream_read && self.page.has_anchor() {
            self.next = Phase::Done;
        } else if self.is_stream_read {
            self.ask();
        } else if self.rounds >= MAX_CHUNKS {
            self.page.stop_early();
            self.next = Phase::Done;
        }
    }

    /// Asks the other store next, for what is before the seam.
    fn ask(&mut self) {
        let before = self.query.before.map(Cursor::position);
        self.older.oldest_in_stream = self.older.seam;
        self.older.has_message = self.older.seam_message.is_some() || self.older.end.is_some();
        if self.query.backwards && self.older.seam.is_none() {
            // The last page ended there: with the seam, or in the other store.
            (self.older.seam, self.older.has_message) = (before, before.is_some());
        }
        self.older.range = Some(OlderRange {
            from: self.query.after.map(Cursor::position),
            to: self.older.seam.or(self.older.end).or(before.and_then(Position::predecessor)),
            limit: 0,
            bytes: OLDER_BYTES,
            backwards: self.query.backwards,
        });
        self.older.is_asked = true;
        // If it was in the stream, what follows it may have left.
        if self.older.took_overdue {
            self.page.forget_anchor();
        }
        self.next = Phase::Older;
    }

    fn older_range(&self) -> OlderRange {
        let range = self.older.range.unwrap_or(OlderRange {
            from: None,
            to: None,
            limit: 0,
            bytes: OLDER_BYTES,
            backwards: self.query.backwards,
        });
        let by_size = match (self.older.rows, self.older.bytes) {
            (0, _) => FIRST_OLDER,
            (rows, bytes) => (OLDER_BYTES / (bytes / rows).max(1)).clamp(1, MOST_OLDER),
        };
        // One more to see whether there is more, and those at `after` and at the seam.
        let limit = (self.query.most() + 3 - self.page.len()).min(by_size);
        OlderRange { limit, ..range }
    }

    /// The other store has no more: the stream continues, or the page ends.
    fn pass_the_seam(&mut self) {
        if self.query.backwards {
            self.next = Phase::Done;
            return;
        }
        let held = std::mem::take(&mut self.held);
        self.next = Phase::Stream;
        self.push_stream(held);
    }

    fn push_stream(&mut self, entries: Vec<StreamEntry>) {
        let is_full = !entries.into_iter().all(|(position, message)| self.page.push(position, message));
        if is_full || self.is_stream_read {
            self.next = Phase::Done;
        } else if self.rounds >= MAX_CHUNKS {
            self.page.stop_early();
            self.next = Phase::Done;
        }
    }
}

/// The warning of a page when the archive lacks what the stream has dropped.
const BEHIND: &str = "the archive has not caught up: messages that Redis no longer has may follow later";

#[cfg(test)]
mod tests;
