//! The comets that all gateways share: which addresses entries of the directory named, and when
//! last.
//!
//! A process learns comets from what it resolves, and would forget them at a restart. So it shares
//! them with the other gateways. Only entries of the directory count: comets that a producer or a
//! policy named are never shared, since every shared comet gets every BROADCAST.

mod memory;
mod redis;

use std::sync::Arc;

use async_trait::async_trait;

use crate::message::CometAddr;
pub use crate::redis_client::Unavailable;
pub use memory::MemoryCometStore;
pub use redis::RedisCometStore;

/// A comet, and when an entry of the directory last named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The comet.
    pub comet: CometAddr,
    /// Milliseconds since 1970-01-01 UTC.
    pub at_ms: u64,
}

/// The shared comets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedSightings {
    /// The comets, the latest named first.
    pub sightings: Vec<Sighting>,
    /// Why the store refuses, if a retry does not help.
    pub refused: Option<String>,
}

/// Keeps sightings.
#[async_trait]
pub trait CometStore: Send + Sync + 'static {
    /// Adds sightings, forgets all but the latest `most`, and returns those that are not older than
    /// `since_ms`. Older ones stay, for gateways with another clock. Adding a sighting twice is
    /// harmless.
    ///
    /// # Errors
    /// When the store is unavailable.
    async fn exchange(
        &self,
        new: &[Sighting],
        since_ms: u64,
        most: usize,
    ) -> Result<SharedSightings, Unavailable>;
}

/// A read-only store, for commands that only look.
#[derive(Clone)]
pub struct ReadOnlyCometStore(pub Arc<dyn CometStore>);

#[async_trait]
impl CometStore for ReadOnlyCometStore {
    async fn exchange(
        &self,
        _: &[Sighting],
        since_ms: u64,
        most: usize,
    ) -> Result<SharedSightings, Unavailable> {
        self.0.exchange(&[], since_ms, most).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_client::testing::{RedisCluster, RedisServer, client_of};

    fn sightings(entries: &[(&str, u64)]) -> Vec<Sighting> {
        entries.iter().map(|(comet, at_ms)| Sighting { comet: (*comet).into(), at_ms: *at_ms }).collect()
    }

    async fn kept(store: &dyn CometStore, new: &[(&str, u64)], since_ms: u64, most: usize) -> Vec<Sighting> {
        let kept = store.exchange(&sightings(new), since_ms, most).await.expect("it answers");
        assert_eq!(kept.refused, None);
        kept.sightings
    }

    async fn it_behaves(store: &dyn CometStore) {
        assert_eq!(kept(store, &[], 0, 10).await, []);
        let three = [("a:1", 1_000), ("b:1", 3_000), ("c:1", 2_000)];
        let sorted = sightings(&[("b:1", 3_000), ("c:1", 2_000), ("a:1", 1_000)]);
        assert_eq!(kept(store, &three, 0, 10).await, sorted);
        let renewed = sightings(&[("a:1", 4_000), ("b:1", 3_000), ("c:1", 2_000)]);
        assert_eq!(kept(store, &[("a:1", 4_000)], 0, 10).await, renewed);
        assert_eq!(kept(store, &[], 3_000, 10).await, renewed[..2], "old ones are not read");
        assert_eq!(kept(store, &[("d:1", 5_000)], 3_000, 10).await.len(), 3);
        assert_eq!(kept(store, &[], 0, 10).await.len(), 4, "and stay for who has another clock");
        let newest = sightings(&[("e:1", 6_000), ("d:1", 5_000)]);
        assert_eq!(kept(store, &[("e:1", 6_000)], 0, 2).await, newest);
        assert_eq!(kept(store, &[], 0, 10).await, newest, "no more than that are kept");
    }

    #[tokio::test]
    async fn in_memory_it_behaves() {
        it_behaves(&MemoryCometStore::default()).await;
    }

    #[tokio::test]
    async fn in_redis_it_behaves_and_its_key_expires() {
        let server = RedisServer::start().await;
        it_behaves(&RedisCometStore::new(server.client())).await;
        let ttl = server.client().run_small("test", vec![ttl("halley:comets")]).await.expect("it answers");
        assert!(matches!(ttl[..], [::redis::Value::Int(ms)] if ms > 0), "{ttl:?}");
    }

    fn ttl(key: &str) -> ::redis::Cmd {
        let mut command = ::redis::cmd("PTTL");
        command.arg(key);
        command
    }

    #[tokio::test]
    async fn in_a_cluster_it_behaves() {
        let cluster = RedisCluster::start().await;
        it_behaves(&RedisCometStore::new(client_of(&cluster.url()))).await;
    }

    #[tokio::test]
    async fn a_key_of_another_type_is_reported() {
        let server = RedisServer::start().await;
        let mut set = ::redis::cmd("SET");
        set.arg("halley:comets").arg("x");
        server.client().run_small("test", vec![set]).await.expect("it answers");
        let store = RedisCometStore::new(server.client());
        let kept = store.exchange(&sightings(&[("a:1", 1)]), 0, 10).await.expect("it answers");
        assert!(kept.refused.is_some_and(|why| why.contains("WRONGTYPE") && why.contains("halley:comets")));
    }
}
