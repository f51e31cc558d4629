//! The key in Redis: `<prefix>redrive-key`, 32 bytes that do not expire.

use async_trait::async_trait;
use redis::Value;

use super::{RedriveKeys, Unavailable, new_key};
use crate::message::RedriveKey;
use crate::redis_client::{RedisClient, denial};

/// The key in this Redis.
#[derive(Clone, Debug)]
pub struct RedisRedriveKeys {
    client: RedisClient,
}

impl RedisRedriveKeys {
    /// Uses this client.
    pub fn new(client: RedisClient) -> Self {
        Self { client }
    }

    fn name(&self) -> String {
        format!("{}redrive-key", self.client.prefix())
    }

    fn check(&self, reply: &Value) -> Result<(), Unavailable> {
        // A foreign value is not a key.
        denial(reply).map_or(Ok(()), |said| {
            Err(self.client.denied("read_redrive_key", format!("{said} (`{}`)", self.name())))
        })
    }
}

#[async_trait]
impl RedriveKeys for RedisRedriveKeys {
    async fn read(&self) -> Result<Option<RedriveKey>, Unavailable> {
        let get = redis::cmd("GET").arg(self.name()).take();
        let replies = self.client.run_small("read_redrive_key", vec![get]).await?;
        replies.iter().try_for_each(|reply| self.check(reply))?;
        Ok(match replies.first() {
            Some(Value::BulkString(bytes)) => RedriveKey::of(bytes),
            _ => None,
        })
    }

    async fn read_or_create(&self) -> anyhow::Result<RedriveKey> {
        let new = new_key()?;
        let set = redis::cmd("SET").arg(self.name()).arg(new.bytes()).arg("NX").take();
        let replies = self.client.run_small("read_redrive_key", vec![set]).await?;
        replies.iter().try_for_each(|reply| self.check(reply))?;
        // Read back in any case: another process may have created it first.
        self.read().await?.ok_or_else(|| {
            anyhow::anyhow!(
                "`{}` in Redis at {} is not a key of 32 bytes; delete it, and the next redrive creates one",
                self.name(),
                self.client.endpoint()
            )
        })
    }
}
