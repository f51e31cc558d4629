//! Reads inboxes in Redis, keeps what devices have acknowledged, and erases inboxes.
//!
//! Next to each stream there is a sorted set `<prefix>inbox-positions:{user}`: a member for each device,
//! whose score is the place up to which it has acknowledged. `ZADD GT` moves it forward only, even if
//! several clients move it. It expires with the entries that it speaks of. Each command has one key, so a cluster
//! may spread them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::Value;

use super::cursor::{Cursor, Owner, Position};
use super::older::OlderMessages;
use super::page::{DeviceId, Page, PageQuery, Standing};
use super::reader::InboxReader;
use super::stream_reader::{StreamReader, integer};
use super::{Config, Mode, Unavailable};
use crate::message::UserId;
use crate::redis_client::{RedisClient, elements, lifetime_ms, text};

/// Devices of a user at most; the one that is furthest behind is forgotten first, and reads from the
/// oldest entry again.
const MAX_DEVICES: isize = 64;
/// A score holds this many entries per millisecond, in the 53 bits of a double. Later entries of the
/// same millisecond count as this one: a device may get them twice.
const NUMBERS_PER_MS: u64 = 1024;

/// The names of the operations in metrics.
const ACKNOWLEDGE: &str = "acknowledge_inbox";
const ERASE: &str = "erase_inbox";

/// Reads inboxes in Redis.
#[derive(Debug, Clone)]
pub struct RedisInboxReader {
    client: RedisClient,
    streams: StreamReader,
    retention: Duration,
    mode: Mode,
}

impl RedisInboxReader {
    /// A reader through this client. Its pages go on in `older`.
    pub fn new(client: RedisClient, config: &Config, older: Option<Arc<dyn OlderMessages>>) -> Self {
        let streams = StreamReader::new(client.clone(), config.retention, older);
        Self { client, streams, retention: config.retention, mode: config.mode }
    }

    fn key(&self, user: &UserId) -> String {
        Owner::from(user).stream_key(self.client.prefix())
    }

    fn positions_key(&self, user: &UserId) -> String {
        format!("{}inbox-positions:{user}", self.client.prefix())
    }

    /// Drops what all devices have acknowledged, except for the last of it: its presence shows later
    /// that nothing after it is missing.
    async fn trim_acknowledged(&self, user: &UserId) -> Result<(), Unavailable> {
        let lowest =
            redis::cmd("ZRANGE").arg(self.positions_key(user)).arg(0).arg(0).arg("WITHSCORES").take();
        let reply = self.streams.run(ACKNOWLEDGE, vec![lowest]).await?.pop().unwrap_or_default();
        let Some(position) = elements(reply).into_iter().nth(1).and_then(of_score) else { return Ok(()) };
        let trim =
            redis::cmd("XTRIM").arg(self.key(user)).arg("MINID").arg("=").arg(position.to_string()).take();
        self.streams.run(ACKNOWLEDGE, vec![trim]).await.map(drop)
    }
}

#[async_trait]
impl InboxReader for RedisInboxReader {
    async fn page(&self, user: &UserId, query: &PageQuery) -> Result<Page, Unavailable> {
        self.streams.page(user, query).await
    }

    async fn standing(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Standing, Unavailable> {
        let score = |device: &DeviceId| {
            redis::cmd("ZSCORE").arg(self.positions_key(user)).arg(device.as_str()).to_owned()
        };
        let (standing, score) = self.streams.standing(user, device.map(score).into_iter().collect()).await?;
        let acknowledged = score.into_iter().next().and_then(of_score).map(Cursor::At);
        Ok(Standing { acknowledged, ..standing })
    }

    async fn acknowledge(
        &self,
        user: &UserId,
        device: &DeviceId,
        position: Position,
    ) -> Result<Standing, Unavailable> {
        let key = self.positions_key(user);
        let add = redis::cmd("ZADD").arg(&key).arg("GT").arg(score_of(position)).arg(device.as_str()).take();
        let bound = redis::cmd("ZREMRANGEBYRANK").arg(&key).arg(0).arg(-(MAX_DEVICES + 1)).take();
        let expire = redis::cmd("PEXPIRE").arg(&key).arg(lifetime_ms(self.retention)).take();
        self.streams.run(ACKNOWLEDGE, vec![add, bound, expire]).await?;
        if self.mode == Mode::Queue {
            self.trim_acknowledged(user).await?;
        }
        self.standing(user, Some(device)).await
    }

    async fn erase(&self, user: &UserId) -> Result<u64, Unavailable> {
        let (stream, positions) = (self.key(user), self.positions_key(user));
        let length = redis::cmd("XLEN").arg(&stream).to_owned();
        let erase = |key: &str| redis::cmd("UNLINK").arg(key).to_owned();
        let replies = self.streams.run(ERASE, vec![length, erase(&stream), erase(&positions)]).await?;
        Ok(replies.first().and_then(integer).unwrap_or_default())
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
