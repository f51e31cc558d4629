//! Shared state in Redis: one pipelined round trip per batch to read, one to write.

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::{SharedState, Unavailable};
use crate::decision::{StateKey, StateWrite};
use crate::redis_client::{RedisClient, denial, lifetime_ms};

/// Maximum number of commands and bytes of values per round trip, so that a batch neither delays
/// others nor exceeds the timeout.
const COMMANDS_AT_ONCE: usize = 1_000;
const BYTES_AT_ONCE: usize = 1 << 20;

/// Strings `<prefix>state:{plugin}:{key}`, each with a time to live. Every command has one key, so a
/// cluster may spread them. Redis acknowledges before replication: a primary's last writes are lost
/// in a failover.
#[derive(Debug, Clone)]
pub struct RedisSharedState {
    client: RedisClient,
}

impl RedisSharedState {
    /// Uses this client.
    pub fn new(client: RedisClient) -> Self {
        Self { client }
    }

    fn name(&self, at: &StateKey) -> String {
        format!("{}state:{}:{}", self.client.prefix(), at.plugin, at.key)
    }

    fn command(&self, write: &StateWrite) -> Cmd {
        let name = self.name(&write.at);
        let Some((value, ttl)) = &write.value else {
            return redis::cmd("DEL").arg(name).take();
        };
        redis::cmd("SET").arg(name).arg(value.as_slice()).arg("PX").arg(lifetime_ms(*ttl)).take()
    }

    /// Reports a refusal to the caller.
    fn check(&self, operation: &'static str, reply: &Value) -> Result<(), Unavailable> {
        denial(reply).map_or(Ok(()), |said| Err(self.client.denied(operation, said)))
    }

    async fn write_some(&self, commands: Vec<Cmd>) -> Result<(), Unavailable> {
        let replies = self.client.run_small("write_plugin_state", commands).await?;
        replies.iter().try_for_each(|reply| self.check("write_plugin_state", reply))
    }
}

#[async_trait]
impl SharedState for RedisSharedState {
    async fn fetch(&self, keys: &[StateKey]) -> Result<Vec<Option<Vec<u8>>>, Unavailable> {
        let mut values = Vec::with_capacity(keys.len());
        for some in keys.chunks(COMMANDS_AT_ONCE) {
            let get = |at| redis::cmd("GET").arg(self.name(at)).take();
            let replies = self.client.run_small("read_plugin_state", some.iter().map(get).collect()).await?;
            for reply in replies {
                self.check("read_plugin_state", &reply)?;
                values.push(match reply {
                    Value::BulkString(value) => Some(value),
                    _ => None,
                });
            }
        }
        Ok(values)
    }

    async fn write(&self, writes: &[StateWrite]) -> Result<(), Unavailable> {
        let (mut commands, mut bytes) = (Vec::new(), 0);
        for write in writes {
            commands.push(self.command(write));
            bytes += write.value.as_ref().map_or(0, |(value, _)| value.len());
            if commands.len() >= COMMANDS_AT_ONCE || bytes >= BYTES_AT_ONCE {
                self.write_some(std::mem::take(&mut commands)).await?;
                bytes = 0;
            }
        }
        if commands.is_empty() { Ok(()) } else { self.write_some(commands).await }
    }
}
