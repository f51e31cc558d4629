//! Sightings in Redis: one sorted set, one pipelined round trip.

use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::{CometStore, SharedSightings, Sighting, Unavailable};
use crate::redis_client::{RedisClient, elements, refusal, text};

/// The key's expiry after the last write: longer than comets are remembered.
const KEY_LIVES: Duration = Duration::from_secs(30 * 24 * 3600);

/// The sorted set `<prefix>comets`: addresses, scored by when they were last named, in milliseconds
/// since 1970. Gateways use their own clocks: each reads what is recent by its clock, and removes
/// only what is old by any clock.
#[derive(Debug, Clone)]
pub struct RedisCometStore {
    client: RedisClient,
}

impl RedisCometStore {
    /// Sightings through this client.
    pub fn new(client: RedisClient) -> Self {
        Self { client }
    }

    fn key(&self) -> String {
        format!("{}comets", self.client.prefix())
    }

    fn command(&self, name: &str) -> Cmd {
        redis::cmd(name).arg(self.key()).take()
    }

    fn write(&self, new: &[Sighting], since_ms: u64, most: usize) -> Vec<Cmd> {
        let mut add = self.command("ZADD");
        for Sighting { comet, at_ms } in new {
            add.arg(*at_ms).arg(comet.as_str());
        }
        let mut by_age = self.command("ZREMRANGEBYSCORE");
        by_age.arg("-inf").arg(format!("({}", since_ms.saturating_sub(KEY_LIVES.as_millis() as u64)));
        let mut by_count = self.command("ZREMRANGEBYRANK");
        by_count.arg(0).arg(-(i64::try_from(most).unwrap_or(i64::MAX - 1)) - 1);
        let mut lives = self.command("PEXPIRE");
        lives.arg(KEY_LIVES.as_millis() as u64);
        vec![add, by_age, by_count, lives]
    }

    fn read(&self, since_ms: u64, most: usize) -> Cmd {
        let mut read = self.command("ZREVRANGEBYSCORE");
        read.arg("+inf").arg(since_ms).arg("WITHSCORES").arg("LIMIT").arg(0).arg(most);
        read
    }

    fn refused(&self, reply: &Value) -> Option<String> {
        let why = refusal(reply)?;
        Some(format!("Redis at {} refuses `{}`: {why}", self.client.endpoint(), self.key()))
    }
}

#[async_trait]
impl CometStore for RedisCometStore {
    async fn exchange(
        &self,
        new: &[Sighting],
        since_ms: u64,
        most: usize,
    ) -> Result<SharedSightings, Unavailable> {
        let mut commands = if new.is_empty() { Vec::new() } else { self.write(new, since_ms, most) };
        commands.push(self.read(since_ms, most));
        let mut replies = self.client.run_small("share_comets", commands).await?;
        let refused = replies.iter().find_map(|reply| self.refused(reply));
        let sightings = replies.pop().map(sightings).unwrap_or_default();
        Ok(SharedSightings { sightings, refused })
    }
}

/// Members and their scores. Invalid addresses and scores are skipped.
fn sightings(reply: Value) -> Vec<Sighting> {
    let mut values = elements(reply).into_iter().map(text);
    let mut sightings = Vec::with_capacity(values.len() / 2);
    while let (Some(member), Some(score)) = (values.next(), values.next()) {
        let (Some(comet), Some(score)) = (member.filled(), score.filled()) else { continue };
        // A score is a double: Redis writes large ones as 1.7e+12 in some versions.
        let Ok(score) = score.parse::<f64>() else { continue };
        let comet = crate::message::CometAddr::from(comet);
        if comet.address().is_ok() && score >= 0.0 {
            sightings.push(Sighting { comet, at_ms: score as u64 });
        }
    }
    sightings
}
