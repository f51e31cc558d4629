//! Claims on keys for policies: "only once within this time".
//!
//! Promises: of all messages that claim a key, one passes until the claim expires, across all
//! gateways that share a Redis. A message passes its own claims, so a redelivery of its record is not
//! stopped. If in doubt, a message passes: a repetition is better than a lost message. The module
//! does not know why a policy claims.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod memory;
mod redis;

use std::time::Duration;

use async_trait::async_trait;

use crate::message::MessageId;
pub use crate::redis_client::Unavailable;
pub use memory::MemoryGuards;
pub use redis::RedisGuards;

/// One message's claim on a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardClaim {
    /// The key, prefixed with the name of the plugin.
    pub key: String,
    /// How long the claim is valid: whole milliseconds, at least one.
    pub ttl: Duration,
    /// The claiming message.
    pub message: MessageId,
}

/// Stores claims.
#[async_trait]
pub trait Guards: Send + Sync + 'static {
    /// Makes all claims together, in order. Returns for each whether its message may pass. A message
    /// with several claims passes if each of them allows it.
    ///
    /// # Errors
    /// If claims cannot be made now. Some may have been made; repeating them is harmless.
    async fn claim(&self, claims: &[GuardClaim]) -> Result<Vec<bool>, Unavailable>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_client::testing::{RedisCluster, RedisServer, client_of, eventually};

    fn claim(key: &str, ttl: Duration, message: &str) -> GuardClaim {
        GuardClaim { key: key.to_owned(), ttl, message: message.into() }
    }

    async fn guards_behave(guards: &dyn Guards) {
        let hour = Duration::from_secs(3600);
        assert_eq!(guards.claim(&[]).await, Ok(vec![]));
        let batch = [claim("a", hour, "m/0/1"), claim("a", hour, "m/0/2"), claim("b", hour, "m/0/2")];
        assert_eq!(guards.claim(&batch).await, Ok(vec![true, false, true]), "first come, first served");
        assert_eq!(guards.claim(&batch).await, Ok(vec![true, false, true]), "a redelivery may pass");
        assert_eq!(guards.claim(&[claim("a", hour, "m/0/3")]).await, Ok(vec![false]));

        let short = [claim("c", Duration::ZERO, "m/0/4"), claim("c", Duration::from_millis(40), "m/0/4")];
        assert_eq!(guards.claim(&short).await, Ok(vec![true, true]), "the same message twice");
        eventually("the claim runs out", async || {
            guards.claim(&[claim("c", hour, "m/0/5")]).await == Ok(vec![true])
        })
        .await;
        let ages = Duration::from_secs(u64::MAX);
        assert_eq!(guards.claim(&[claim("d \r\n*", ages, "m/0/6")]).await, Ok(vec![true]));
    }

    #[tokio::test]
    async fn guards_in_memory_behave() {
        guards_behave(&MemoryGuards::new(100)).await;
    }

    #[tokio::test]
    async fn guards_in_redis_behave() {
        let server = RedisServer::start().await;
        guards_behave(&RedisGuards::new(server.client())).await;
        server.run(&["LPUSH", "halley:guard:list", "x"]).await;
        let guards = RedisGuards::new(server.client());
        let odd = guards.claim(&[claim("list", Duration::from_secs(1), "m/0/7")]).await;
        assert_eq!(odd, Ok(vec![true]), "if in doubt, a message passes");
    }

    #[tokio::test]
    async fn guards_in_a_cluster_behave() {
        let cluster = RedisCluster::start().await;
        let guards = RedisGuards::new(client_of(&cluster.url()));
        guards_behave(&guards).await;
        let hour = Duration::from_secs(3600);
        let many: Vec<_> = (0..3000).map(|n| claim(&format!("many {n}"), hour, "m/0/8")).collect();
        assert_eq!(guards.claim(&many).await, Ok(vec![true; many.len()]));
        let later: Vec<_> =
            many.into_iter().map(|made| GuardClaim { message: "m/0/9".into(), ..made }).collect();
        assert_eq!(guards.claim(&later).await, Ok(vec![false; later.len()]));
    }

    #[tokio::test]
    async fn no_claim_is_decided_while_redis_is_unreachable() {
        let mut server = RedisServer::unreachable();
        let guards = RedisGuards::new(server.client());
        let batch = [claim("a", Duration::from_secs(60), "m/0/1")];
        guards.claim(&batch).await.expect_err("nobody listens");
        server.restart().await;
        eventually("claims succeed", async || guards.claim(&batch).await == Ok(vec![true])).await;
    }
}
