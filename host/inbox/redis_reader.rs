//! Reads inboxes in Redis, keeps what devices have acknowledged, and erases inboxes.
//!
//! Next to each stream there is a sorted set `<prefix>inbox-positions:{user}`: a member for each device,
//! whose score is the place up to which it has acknowledged. `ZADD GT` moves it forward only, whoever
//! else moves it. It expires with the entries that it speaks of. Each command has one key, so a cluster
//! may spread them.
//!
//! A page costs one round trip for each hundred entries, on a connection of its own: large pages do not
//! delay the look-ups of the gateway. Pages go on with [`OlderMessages`] where the stream ends: see `paging`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::cursor::{Cursor, Position};
use super::older::OlderMessages;
use super::page::{DeviceId, Page, PageQuery, Standing};
use super::paging::{Paging, Step, StreamEntry, StreamRange};
use super::reader::InboxReader;
use super::redis::{STREAM, fields};
use super::{Config, Mode, Unavailable, now_ms};
use crate::message::UserId;
use crate::redis_client::{RedisClient, Refusal, elements, is_too_large, refusal, text};

/// Devices of a user at most; the one that is furthest behind is forgotten first, and reads from the
/// oldest entry again.
const MAX_DEVICES: isize = 64;
/// A score holds this many entries per millisecond, in the 53 bits of a double. Later entries of the
/// same millisecond count as this one: a device may get them twice.
const NUMBERS_PER_MS: u64 = 1024;

/// The names of the operations in metrics.
const READ: &str = "read_inbox";
const ACKNOWLEDGE: &str = "acknowledge_inbox";
const ERASE: &str = "erase_inbox";

/// Reads inboxes in Redis.
#[derive(Debug, Clone)]
pub struct RedisInboxReader {
    client: RedisClient,
    retention: Duration,
    mode: Mode,
    older: Option<Arc<dyn OlderMessages>>,
    /// The first part of a stream's key, after the prefix.
    streams: &'static str,
}

/// The entries of one reply, in order.
struct Chunk {
    entries: Vec<StreamEntry>,
    is_last: bool,
}

impl RedisInboxReader {
    /// A reader through this client.
    pub fn new(client: RedisClient, config: &Config) -> Self {
        Self { client, retention: config.retention, mode: config.mode, older: None, streams: STREAM }
    }

    /// Continues pages with what is kept for longer elsewhere.
    #[must_use]
    pub fn continued_by(self, older: Option<Arc<dyn OlderMessages>>) -> Self {
        Self { older, ..self }
    }

    /// Reads other streams of the same form.
    #[must_use]
    pub(crate) fn of_streams(self, streams: &'static str) -> Self {
        Self { streams, ..self }
    }

    fn key(&self, user: &UserId) -> String {
        format!("{}{}{user}", self.client.prefix(), self.streams)
    }

    fn positions_key(&self, user: &UserId) -> String {
        format!("{}inbox-positions:{user}", self.client.prefix())
    }

    async fn run(&self, operation: &'static str, commands: Vec<Cmd>) -> Result<Vec<Value>, Unavailable> {
        let replies = self.client.run_reads(operation, commands).await?;
        for reply in &replies {
            if let Some(Refusal::Denied(said) | Refusal::Other(said)) = refusal(reply)
                && !is_too_large(reply)
                && !said.contains("no such key")
            {
                return Err(self.client.denied(operation, said));
            }
        }
        Ok(replies)
    }

    /// Entries of a range, fewer than its count if they are large.
    async fn chunk(&self, key: &str, range: &StreamRange) -> Result<Chunk, Unavailable> {
        let mut count = range.count;
        loop {
            let reply =
                self.run(READ, vec![range_command(key, range, count)]).await?.pop().unwrap_or_default();
            if !is_too_large(&reply) {
                let reply = elements(reply);
                let is_last = reply.len() < count;
                let entry = |entry| {
                    let mut parts = elements(entry).into_iter();
                    let position = Position::parse(&parts.next().and_then(|id| text(id).filled())?)?;
                    Some((position, parts.next().and_then(fields)))
                };
                return Ok(Chunk { entries: reply.into_iter().filter_map(entry).collect(), is_last });
            }
            if count == 1 {
                let why = "an inbox has an entry that is larger than [redis] max_reply; raise it, or delete the inbox";
                return Err(self.client.denied(READ, why.to_owned()));
            }
            count = (count / 4).max(1);
        }
    }

    /// Whether entries before the oldest have been dropped; `false` where Redis (before 7) does not tell.
    async fn is_trimmed(&self, key: &str) -> Result<bool, Unavailable> {
        let mut command = redis::cmd("XINFO");
        command.arg("STREAM").arg(key);
        let reply = self.run(READ, vec![command]).await?.pop().unwrap_or_default();
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

    /// Drops what all devices have acknowledged, except for the last of it: its presence shows later
    /// that nothing after it is missing.
    async fn trim_acknowledged(&self, user: &UserId) -> Result<(), Unavailable> {
        let mut lowest = redis::cmd("ZRANGE");
        lowest.arg(self.positions_key(user)).arg(0).arg(0).arg("WITHSCORES");
        let reply = self.run(ACKNOWLEDGE, vec![lowest]).await?.pop().unwrap_or_default();
        let Some(position) = elements(reply).into_iter().nth(1).and_then(of_score) else { return Ok(()) };
        let mut trim = redis::cmd("XTRIM");
        trim.arg(self.key(user)).arg("MINID").arg("=").arg(position.to_string());
        self.run(ACKNOWLEDGE, vec![trim]).await.map(drop)
    }
}

/// The command that reads a part of a stream.
fn range_command(key: &str, range: &StreamRange, count: usize) -> Cmd {
    let low = range.low.map_or_else(|| "-".to_owned(), |low| low.to_string());
    let high = range.high.map_or_else(|| "+".to_owned(), |high| format!("({high}"));
    let (name, from, to) = match range.backwards {
        false => ("XRANGE", low, high),
        true => ("XREVRANGE", high, low),
    };
    let mut command = redis::cmd(name);
    command.arg(key).arg(from).arg(to).arg("COUNT").arg(count);
    command
}

#[async_trait]
impl InboxReader for RedisInboxReader {
    async fn page(&self, user: &UserId, query: &PageQuery) -> Result<Page, Unavailable> {
        let key = self.key(user);
        let retention_ms = i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX);
        let older = self.older.as_deref().filter(|_| !query.only_recent);
        let mut paging = Paging::new(*query, now_ms(), retention_ms, older.is_some());
        loop {
            match (paging.next(), older) {
                (Step::Stream(range), _) => {
                    let Chunk { entries, is_last } = self.chunk(&key, &range).await?;
                    paging.take_stream(entries, is_last);
                }
                (Step::Older(range), Some(older)) => {
                    let entries = older.older(user, &range).await;
                    paging.take_older(&range, entries);
                }
                (Step::Older(_), None) | (Step::Done, _) => break,
            }
        }
        let is_trimmed = paging.reaches_the_oldest() && self.is_trimmed(&key).await?;
        Ok(paging.finish(is_trimmed))
    }

    async fn standing(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Standing, Unavailable> {
        let key = self.key(user);
        let one =
            |backwards| range_command(&key, &StreamRange { low: None, high: None, count: 1, backwards }, 1);
        let mut commands = vec![one(false), one(true)];
        commands.push(redis::cmd("XLEN").arg(&key).to_owned());
        if let Some(device) = device {
            commands.push(redis::cmd("ZSCORE").arg(self.positions_key(user)).arg(device.as_str()).to_owned());
        }
        let mut replies = self.run(READ, commands).await?.into_iter();
        let mut place = || {
            let entry = elements(replies.next().unwrap_or_default()).into_iter().next()?;
            Position::parse(&elements(entry).into_iter().next().and_then(|id| text(id).filled())?)
        };
        let (first, last) = (place(), place());
        let kept = replies.next().as_ref().and_then(integer).unwrap_or_default();
        Ok(Standing {
            first: first.map(Cursor::Before),
            last: last.map(Cursor::At),
            acknowledged: replies.next().and_then(of_score).map(Cursor::At),
            kept,
        })
    }

    async fn acknowledge(
        &self,
        user: &UserId,
        device: &DeviceId,
        position: Position,
    ) -> Result<Standing, Unavailable> {
        let key = self.positions_key(user);
        let retention_ms = i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX).max(1);
        let mut add = redis::cmd("ZADD");
        add.arg(&key).arg("GT").arg(score_of(position)).arg(device.as_str());
        let mut bound = redis::cmd("ZREMRANGEBYRANK");
        bound.arg(&key).arg(0).arg(-(MAX_DEVICES + 1));
        let mut expire = redis::cmd("PEXPIRE");
        expire.arg(&key).arg(retention_ms);
        self.run(ACKNOWLEDGE, vec![add, bound, expire]).await?;
        if self.mode == Mode::Queue {
            self.trim_acknowledged(user).await?;
        }
        self.standing(user, Some(device)).await
    }

    async fn erase(&self, user: &UserId) -> Result<u64, Unavailable> {
        let (stream, positions) = (self.key(user), self.positions_key(user));
        let length = redis::cmd("XLEN").arg(&stream).to_owned();
        let erase = |key: &str| redis::cmd("UNLINK").arg(key).to_owned();
        let replies = self.run(ERASE, vec![length, erase(&stream), erase(&positions)]).await?;
        Ok(replies.first().and_then(integer).unwrap_or_default())
    }
}

fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// A position as a score. Exact for numbers below [`NUMBERS_PER_MS`], and never ahead of the position.
fn score_of(position: Position) -> u64 {
    const MOST_MS: u64 = (1 << 53) / NUMBERS_PER_MS - 1;
    position.ms.min(MOST_MS) * NUMBERS_PER_MS + position.number.min(NUMBERS_PER_MS - 1)
}

fn of_score(value: Value) -> Option<Position> {
    let score = match value {
        Value::Double(score) => score,
        other => text(other).filled()?.parse::<f64>().ok()?,
    };
    let score = score as u64;
    Some(Position { ms: score / NUMBERS_PER_MS, number: score % NUMBERS_PER_MS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_keep_positions_and_their_order() {
        let place = |ms, number| Position { ms, number };
        let now = 1_795_000_000_000;
        for position in [place(0, 0), place(now, 0), place(now, 1023), place(4_000_000_000_000, 7)] {
            let text = Value::BulkString((score_of(position) as f64).to_string().into_bytes());
            assert_eq!(of_score(text), Some(position));
        }
        assert_eq!(of_score(Value::Double(score_of(place(now, 5000)) as f64)), Some(place(now, 1023)));
        assert!(score_of(place(u64::MAX, u64::MAX)) < 1 << 53);
    }
}
