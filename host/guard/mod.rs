//! "Only once within this time": claims on keys, as policies ask for them.
//!
//! Promises: of all messages that claim a key, one may pass until the claim runs out, over all
//! gateways that share a Redis. A message may pass the claims that it made itself, so a
//! redelivery of its record is not stopped. In doubt a message passes: what a guard prevents is
//! a repetition, and losing a message is worse. It does not know why a policy asked.

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
pub struct Claim {
    /// The key, already under the name of the plugin that asked.
    pub key: String,
    /// How long the claim holds. Whole milliseconds count, and at least one.
    pub ttl: Duration,
    /// Who claims.
    pub message: MessageId,
}

impl Claim {
    /// The time in milliseconds, as Redis takes it.
    fn millis(&self) -> u64 {
        // A century: Redis refuses times that overflow when added to now.
        const LONGEST: u128 = 100 * 365 * 24 * 3600 * 1000;
        self.ttl.as_millis().clamp(1, LONGEST) as u64
    }
}

/// Keeps the claims.
#[async_trait]
pub trait Guards: Send + Sync + 'static {
    /// Makes all claims together, in order: for each, whether its message may pass. A message
    /// that makes several claims may pass when it may pass each of them.
    ///
    /// # Errors
    /// When claims cannot be made now. Some may have been made; making them again is harmless.
    async fn claim(&self, claims: &[Claim]) -> Result<Vec<bool>, Unavailable>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_client::testing::{RedisCluster, RedisServer, client_of, eventually};

    fn claim(key: &str, ttl: Duration, message: &str) -> Claim {
        Claim { key: key.to_owned(), ttl, message: message.into() }
    }

    async fn guards_behave(guards: &dyn Guards) {
        let hour = Duration::from_secs(3600);
        assert_eq!(guards.claim(&[]).await, Ok(vec![]));
        let batch = [claim("a", hour, "m/0/1"), claim("a", hour, "m/0/2"), claim("b", hour, "m/0/2")];
        assert_eq!(guards.claim(&batch).await, Ok(vec![true, false, true]), "first come, first served");
        assert_eq!(guards.claim(&batch).await, Ok(vec![true, false, true]), "a redelivery may pass");
        assert_eq!(guards.claim(&[claim("a", hour, "m/0/3")]).await, Ok(vec![false]));

        let short = [claim("c", Duration::ZERO, "m/0/4"), claim("c", Duration::from_millis(40), "m/0/4")];
        assert_eq!(guards.claim(&short).await, Ok(vec![true, true]), "twice the same message");
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
        assert_eq!(odd, Ok(vec![true]), "in doubt a message passes");
    }

    #[tokio::test]
    async fn guards_in_a_cluster_behave() {
        let cluster = RedisCluster::start().await;
        let guards = RedisGuards::new(client_of(&cluster.url()));
        guards_behave(&guards).await;
        let hour = Duration::from_secs(3600);
        let many: Vec<_> = (0..3000).map(|n| claim(&format!("many {n}"), hour, "m/0/8")).collect();
        assert_eq!(guards.claim(&many).await, Ok(vec![true; many.len()]));
        let later: Vec<_> = many.into_iter().map(|made| Claim { message: "m/0/9".into(), ..made }).collect();
        assert_eq!(guards.claim(&later).await, Ok(vec![false; later.len()]));
    }

    #[tokio::test]
    async fn no_claim_is_decided_while_redis_is_away() {
        let mut server = RedisServer::away();
        let guards = RedisGuards::new(server.client());
        let batch = [claim("a", Duration::from_secs(60), "m/0/1")];
        guards.claim(&batch).await.expect_err("nobody listens");
        server.revive().await;
        eventually("claims work again", async || guards.claim(&batch).await == Ok(vec![true])).await;
    }
}
