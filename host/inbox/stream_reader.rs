//! Reads the streams of stored messages: the inboxes of users, and the histories of rooms.
//!
//! A page costs one round trip for each hundred entries, on a connection of its own: large pages do not
//! delay the look-ups of the gateway. Pages go on with [`OlderMessages`] where the stream ends: see `paging`.
//!
//! Messages that entries refer to are looked up in the histories of their rooms, in one more round trip for
//! each hundred entries, and those that Redis has dropped in [`OlderMessages`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{Cmd, Value};

use super::cursor::{Cursor, Owner, Position};
use super::older::{OlderEntries, OlderMessages};
use super::page::{Page, PageQuery, Standing};
use super::paging::{Paging, Step, StreamEntry, StreamRange};
use super::redis::fields;
use super::references::{Reference, fill, references, truncate};
use super::{StoredMessage, Unavailable};
use crate::redis_client::{RedisClient, denial, elements, is_too_large, text};
use crate::time::{now_record_ms, record_millis};

/// Reads streams.
#[derive(Debug, Clone)]
pub struct StreamReader {
    client: RedisClient,
    retention: Duration,
    older: Option<Arc<dyn OlderMessages>>,
}

/// The entries of one reply, in order.
struct Chunk {
    entries: Vec<StreamEntry>,
    is_last: bool,
}

impl StreamReader {
    /// A reader of streams whose entries are kept for this long. Its pages go on in `older`.
    pub fn new(client: RedisClient, retention: Duration, older: Option<Arc<dyn OlderMessages>>) -> Self {
        Self { client, retention, older }
    }

    /// A part of what is kept for this owner.
    ///
    /// # Errors
    /// If it cannot be read now.
    pub async fn page<'a>(
        &self,
        owner: impl Into<Owner<'a>>,
        query: &PageQuery,
    ) -> Result<Page, Unavailable> {
        let owner = owner.into();
        let retention_ms = record_millis(self.retention);
        let older = self.older.as_deref().filter(|_| !query.only_recent);
        let mut paging = Paging::new(*query, now_record_ms(), retention_ms, older.is_some());
        let mut warning = None;
        loop {
            match (paging.next(), older) {
                (Step::Stream(range), _) => {
                    let Chunk { mut entries, is_last } = self.chunk(owner, &range).await?;
                    let messages = entries.iter_mut().filter_map(|(_, message)| message.as_mut());
                    warning = self.look_up(messages).await?.or(warning);
                    paging.take_stream(entries, is_last);
                }
                (Step::Older(range), Some(older)) => {
                    let mut found = older.older(owner, &range).await;
                    if let Ok(OlderEntries { entries, are_all }) = &mut found {
                        *are_all &= truncate(entries, |(_, message)| Some(message));
                        let messages = entries.iter_mut().map(|(_, message)| message);
                        warning = self.look_up(messages).await?.or(warning);
                    }
                    paging.take_older(&range, found);
                }
                (Step::Dropped, Some(older)) => paging.take_dropped(older.oldest_dropped(owner).await),
                (Step::Older(_) | Step::Dropped, None) | (Step::Done, _) => break,
            }
        }
        let is_trimmed = paging.reaches_the_oldest() && self.is_trimmed(owner).await?;
        let mut page = paging.finish(is_trimmed);
        if page.entries.iter().any(|entry| entry.message.is_missing()) {
            page.truncated = true;
            page.warning = page.warning.or(warning);
        }
        Ok(page)
    }

    /// Gives messages that refer to a history their bodies, if they are kept. Returns why some of them
    /// cannot be read now.
    async fn look_up(
        &self,
        messages: impl Iterator<Item = &mut StoredMessage>,
    ) -> Result<Option<&'static str>, Unavailable> {
        let (mut messages, wanted) = references(messages, now_record_ms());
        if wanted.is_empty() {
            return Ok(None);
        }
        let command = |Reference { room, place, .. }: &Reference| {
            let key = Owner::from(room).stream_key(self.client.prefix());
            redis::cmd("XRANGE").arg(key).arg(place.to_string()).arg(place.to_string()).take()
        };
        let replies = self.run(LOOK_UP, wanted.iter().map(command).collect()).await?;
        let bodies = replies.into_iter().zip(&wanted).map(|(reply, wanted)| body(reply, wanted));
        fill(messages.iter_mut().map(|message| &mut **message), bodies);
        let Some(older) = &self.older else { return Ok(None) };
        let is_missing = |(message, _): &(&mut StoredMessage, _)| message.is_missing();
        let dropped = messages.into_iter().zip(wanted).filter(is_missing);
        let (dropped, wanted): (Vec<_>, Vec<_>) = dropped.unzip();
        if wanted.is_empty() {
            return Ok(None);
        }
        match older.referenced(&wanted).await {
            Ok(bodies) => fill(dropped.into_iter(), bodies.into_iter()),
            Err(unavailable) => return Ok(Some(unavailable.0)),
        }
        Ok(None)
    }

    /// Where an owner's stream stands, and the replies to these commands, which are sent along.
    ///
    /// # Errors
    /// If it cannot be read now.
    pub async fn standing<'a>(
        &self,
        owner: impl Into<Owner<'a>>,
        more: Vec<Cmd>,
    ) -> Result<(Standing, Vec<Value>), Unavailable> {
        let owner = owner.into();
        let key = owner.stream_key(self.client.prefix());
        let one =
            |backwards| range_command(&key, &StreamRange { low: None, high: None, count: 1, backwards }, 1);
        let mut commands = vec![one(false), one(true), redis::cmd("XLEN").arg(&key).to_owned()];
        commands.extend(more);
        let mut replies = self.run(operation(owner), commands).await?.into_iter();
        let mut place = || {
            let entry = elements(replies.next().unwrap_or_default()).into_iter().next()?;
            Position::parse(&elements(entry).into_iter().next().and_then(|id| text(id).filled())?)
        };
        let (first, last) = (place().map(Cursor::Before), place().map(Cursor::At));
        let kept = replies.next().as_ref().and_then(integer).unwrap_or_default();
        Ok((Standing { first, last, acknowledged: None, kept }, replies.collect()))
    }

    /// Runs commands that read, or that write little.
    ///
    /// # Errors
    /// If Redis cannot be used now, or refuses one of them.
    pub(super) async fn run(
        &self,
        operation: &'static str,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, Unavailable> {
        let replies = self.client.run_reads(operation, commands).await?;
        for reply in &replies {
            if let Some(said) = denial(reply)
                && !is_too_large(reply)
                && !said.contains("no such key")
            {
                return Err(self.client.denied(operation, said));
            }
        }
        Ok(replies)
    }

    /// Entries of a range, fewer than its count if they are large.
    async fn chunk(&self, owner: Owner<'_>, range: &StreamRange) -> Result<Chunk, Unavailable> {
        let (key, operation) = (owner.stream_key(self.client.prefix()), operation(owner));
        let mut count = range.count;
        loop {
            let reply = self.run(operation, vec![range_command(&key, range, count)]).await?;
            let reply = reply.into_iter().next().unwrap_or_default();
            if !is_too_large(&reply) {
                let reply = elements(reply);
                let is_last = reply.len() < count;
                let mut entries: Vec<_> = reply.into_iter().filter_map(entry).collect();
                let are_all = truncate(&mut entries, |(_, message)| message.as_ref());
                return Ok(Chunk { entries, is_last: is_last && are_all });
            }
            if count == 1 {
                let why = format!(
                    "`{key}` has an entry that is larger than [redis] max_reply; raise it, or delete the key"
                );
                return Err(self.client.denied(operation, why));
            }
            count = (count / 4).max(1);
        }
    }

    /// Whether entries before the oldest have been dropped; `false` where Redis (before 7) does not tell.
    async fn is_trimmed(&self, owner: Owner<'_>) -> Result<bool, Unavailable> {
        let command = redis::cmd("XINFO").arg("STREAM").arg(owner.stream_key(self.client.prefix())).take();
        let reply = self.run(operation(owner), vec![command]).await?.pop().unwrap_or_default();
        let (mut length, mut added) = (None, None);
        let mut fields = elements(reply).into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            match text(name).filled().as_deref() {
                Some("length") => length = integer(&value),
                Some("entries-added") => added = integer(&value),
                _ => {}
            }
        }
        Ok(matches!((length, added), (Some(length), Some(added)) if added > length))
    }
}

/// The name of looking up messages that entries refer to, in metrics.
const LOOK_UP: &str = "read_references";

/// The body of a message, from the entry at its place in the history of its room.
fn body(reply: Value, wanted: &Reference) -> Option<Bytes> {
    let (_, message) = entry(elements(reply).into_iter().next()?)?;
    message.filter(|message| message.id == wanted.id && !message.is_missing()).map(|message| message.body)
}

/// The name of reading in metrics.
fn operation(owner: Owner<'_>) -> &'static str {
    match owner {
        Owner::User(_) => "read_inbox",
        Owner::Room(_) => "read_history",
    }
}

/// An entry of a stream; `None` if it has no place.
fn entry(entry: Value) -> Option<StreamEntry> {
    let mut parts = elements(entry).into_iter();
    let position = Position::parse(&parts.next().and_then(|id| text(id).filled())?)?;
    Some((position, parts.next().and_then(fields)))
}

/// The command that reads a part of a stream.
fn range_command(key: &str, range: &StreamRange, count: usize) -> Cmd {
    let low = range.low.map_or_else(|| "-".to_owned(), |low| low.to_string());
    let high = range.high.map_or_else(|| "+".to_owned(), |high| format!("({high}"));
    let (name, from, to) = match range.backwards {
        false => ("XRANGE", low, high),
        true => ("XREVRANGE", high, low),
    };
    redis::cmd(name).arg(key).arg(from).arg(to).arg("COUNT").arg(count).take()
}

/// A reply that is a number.
pub(super) fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}
