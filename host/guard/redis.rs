//! Claims in Redis, shared by all gateways: one pipelined round trip per batch.

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::{GuardClaim, Guards, Unavailable};
use crate::redis_client::{RedisClient, denial, lifetime_ms};

/// Claims under `<prefix>guard:` in Redis. The value of a key is the id of the claiming message, so a
/// claim can be sent twice. After a failover, claims that had not been replicated can be made again.
#[derive(Debug, Clone)]
pub struct RedisGuards {
    client: RedisClient,
}

impl RedisGuards {
    /// Guards that use this client.
    pub fn new(client: RedisClient) -> Self {
        Self { client }
    }

    fn key(&self, claim: &GuardClaim) -> String {
        format!("{}guard:{}", self.client.prefix(), claim.key)
    }

    pub(super) fn decide(&self, claim: &GuardClaim, set: &Value, owner: &Value) -> Result<bool, Unavailable> {
        if let Some(said) = denial(set).or_else(|| denial(owner)) {
            return Err(self.client.denied("claim_guards", said));
        }
        Ok(match (set, owner) {
            (Value::Okay, _) => true,
            (_, Value::BulkString(id)) => id.as_slice() == claim.message.as_str().as_bytes(),
            // The claim expired between the two commands, or the key does not hold a claim.
            _ => true,
        })
    }
}

#[async_trait]
impl Guards for RedisGuards {
    async fn claim(&self, claims: &[GuardClaim]) -> Result<Vec<bool>, Unavailable> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let mut commands = Vec::with_capacity(claims.len() * 2);
        for claim in claims {
            let key = self.key(claim);
            commands.push(set_if_absent(&key, claim));
            commands.push(redis::cmd("GET").arg(key).take());
        }
        let replies = self.client.run_small("claim_guards", commands).await?;
        let pairs = claims.iter().zip(replies.chunks(2));
        pairs.map(|(claim, pair)| self.decide(claim, &pair[0], &pair[pair.len() - 1])).collect()
    }
}

fn set_if_absent(key: &str, claim: &GuardClaim) -> Cmd {
    redis::cmd("SET")
        .arg(key)
        .arg(claim.message.as_str())
        .arg("NX")
        .arg("PX")
        .arg(lifetime_ms(claim.ttl))
        .take()
}
