//! State that policies share across all gateways of an installation: values by plugin and key, each
//! with an expiry.
//!
//! Promises: a written value is visible to all later reads until it expires or is replaced; of
//! concurrent writes to a key, the last one wins. The module does not know what the values mean.

mod memory;
mod redis;

use async_trait::async_trait;

use crate::decision::{StateKey, StateWrite};
pub use crate::redis_client::Unavailable;
pub use memory::MemorySharedState;
pub use redis::RedisSharedState;

/// Stores the values.
#[async_trait]
pub trait SharedState: Send + Sync + 'static {
    /// The values of these keys, in the same order; `None` if missing.
    ///
    /// # Errors
    /// If they cannot be read now.
    async fn fetch(&self, keys: &[StateKey]) -> Result<Vec<Option<Vec<u8>>>, Unavailable>;

    /// Applies these writes.
    ///
    /// # Errors
    /// If they cannot be made now. Some may have been made; repeating them is harmless.
    async fn write(&self, writes: &[StateWrite]) -> Result<(), Unavailable>;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::redis_client::testing::{RedisCluster, RedisServer, client_of, eventually};

    fn key(plugin: &str, key: &str) -> StateKey {
        StateKey { plugin: plugin.into(), key: key.to_owned() }
    }

    fn set(at: StateKey, value: &str, ttl: Duration) -> StateWrite {
        StateWrite { at, value: Some((value.into(), ttl)) }
    }

    async fn it_behaves(state: &dyn SharedState) {
        let hour = Duration::from_secs(3600);
        assert_eq!(state.fetch(&[]).await, Ok(vec![]));
        assert_eq!(state.write(&[]).await, Ok(()));
        let (a, b, other) = (key("p", "a"), key("p", "b \r\n*"), key("q", "a"));
        let all = [a.clone(), b.clone(), other.clone()];
        assert_eq!(state.fetch(&all).await, Ok(vec![None, None, None]));
        let writes = [set(a.clone(), "1", hour), set(b.clone(), "", hour), set(a.clone(), "2", hour)];
        assert_eq!(state.write(&writes).await, Ok(()));
        assert_eq!(
            state.fetch(&all).await,
            Ok(vec![Some(b"2".to_vec()), Some(vec![]), None]),
            "the last one wins"
        );
        assert_eq!(state.write(&[StateWrite { at: a.clone(), value: None }]).await, Ok(()));
        assert_eq!(state.fetch(&all).await, Ok(vec![None, Some(vec![]), None]));
        assert_eq!(state.write(&[set(a.clone(), "3", Duration::from_millis(40))]).await, Ok(()));
        eventually("the time is over", async || {
            state.fetch(std::slice::from_ref(&a)).await == Ok(vec![None])
        })
        .await;
        let many: Vec<_> = (0..3000).map(|n| key("many", &n.to_string())).collect();
        let writes: Vec<_> = many.iter().map(|at| set(at.clone(), &at.key, hour)).collect();
        assert_eq!(state.write(&writes).await, Ok(()));
        let expected: Vec<_> = many.iter().map(|at| Some(at.key.clone().into_bytes())).collect();
        assert_eq!(state.fetch(&many).await, Ok(expected));
    }

    #[tokio::test]
    async fn in_memory_it_behaves() {
        it_behaves(&MemorySharedState::new(10_000)).await;
    }

    #[tokio::test]
    async fn in_redis_it_behaves_and_keys_have_their_names() {
        let server = RedisServer::start().await;
        let state = RedisSharedState::new(server.client());
        it_behaves(&state).await;
        let hour = Duration::from_secs(3600);
        state.write(&[set(key("p", "x"), "1", hour)]).await.unwrap();
        server.run(&["LPUSH", "halley:state:p:list", "x"]).await;
        let odd = state.fetch(&[key("p", "x"), key("p", "list")]).await;
        assert_eq!(odd, Ok(vec![Some(b"1".to_vec()), None]), "foreign values are ignored");
    }

    #[tokio::test]
    async fn in_a_cluster_it_behaves() {
        let cluster = RedisCluster::start().await;
        it_behaves(&RedisSharedState::new(client_of(&cluster.url()))).await;
    }

    #[tokio::test]
    async fn nothing_is_read_or_written_while_redis_is_unreachable() {
        let mut server = RedisServer::unreachable();
        let state = RedisSharedState::new(server.client());
        let hour = Duration::from_secs(3600);
        state.fetch(&[key("p", "a")]).await.expect_err("nobody listens");
        state.write(&[set(key("p", "a"), "1", hour)]).await.expect_err("nobody listens");
        server.restart().await;
        eventually("it recovers", async || state.fetch(&[key("p", "a")]).await == Ok(vec![None])).await;
    }
}
