//! The key that proves redriven records, shared by all gateways of an installation.
//!
//! Promises: there is one key per Redis, created by the first redrive. Gateways read it when a record
//! carries a proof, and cache it: see [`CachedRedriveKey`]. While it cannot be read, no proof is accepted or
//! rejected. See [`crate::message`] for the proof itself.

mod cached;
mod memory;
mod redis;

use async_trait::async_trait;

use crate::message::RedriveKey;
pub use crate::redis_client::Unavailable;
pub use cached::CachedRedriveKey;
pub use memory::MemoryRedriveKeys;
pub use redis::RedisRedriveKeys;

/// Stores the key.
#[async_trait]
pub trait RedriveKeys: Send + Sync + 'static {
    /// The key; `None` if nothing was redriven yet.
    ///
    /// # Errors
    /// If it cannot be read now.
    async fn read(&self) -> Result<Option<RedriveKey>, Unavailable>;

    /// The key, created if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read or written, or if another value is stored in its place.
    async fn read_or_create(&self) -> anyhow::Result<RedriveKey>;
}

/// A random key.
fn new_key() -> anyhow::Result<RedriveKey> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("cannot get random bytes: {error}"))?;
    Ok(RedriveKey::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_client::testing::{RedisCluster, RedisServer, client_of, eventually};

    async fn it_behaves(first: &dyn RedriveKeys, second: &dyn RedriveKeys) {
        assert!(first.read().await.expect("it answers").is_none(), "only a redrive makes one");
        let (one, other) = tokio::join!(first.read_or_create(), second.read_or_create());
        let (one, other) = (one.expect("a key"), other.expect("a key"));
        assert_eq!(one.bytes(), other.bytes(), "one for all");
        let read = second.read().await.expect("it answers").expect("a key");
        assert_eq!(read.bytes(), one.bytes());
    }

    #[tokio::test]
    async fn in_memory_there_is_one_key() {
        let keys = MemoryRedriveKeys::default();
        it_behaves(&keys, &keys.clone()).await;
    }

    #[tokio::test]
    async fn in_redis_there_is_one_key_for_all() {
        let server = RedisServer::start().await;
        let keys = || RedisRedriveKeys::new(server.client());
        it_behaves(&keys(), &keys()).await;
        for odd in [&["SET", "halley:redrive-key", "short"][..], &["LPUSH", "halley:redrive-key", "x"]] {
            server.run(&["DEL", "halley:redrive-key"]).await;
            server.run(odd).await;
            assert!(keys().read().await.expect("it answers").is_none(), "an invalid key proves nothing");
            let refused = keys().read_or_create().await.expect_err("somebody else's").to_string();
            assert!(refused.contains("`halley:redrive-key`") && refused.contains("delete it"), "{refused}");
        }
    }

    #[tokio::test]
    async fn in_a_cluster_there_is_one_key() {
        let cluster = RedisCluster::start().await;
        let keys = || RedisRedriveKeys::new(client_of(&cluster.url()));
        it_behaves(&keys(), &keys()).await;
    }

    #[tokio::test]
    async fn an_unreachable_redis_is_an_error() {
        let mut server = RedisServer::unreachable();
        let keys = RedisRedriveKeys::new(server.client());
        keys.read().await.expect_err("nobody listens");
        keys.read_or_create().await.expect_err("nobody listens");
        server.restart().await;
        eventually("it can be read", async || keys.read().await.is_ok()).await;
    }
}
