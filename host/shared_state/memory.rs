//! Shared state in memory: for the demo, `memory://` and tests.

use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{SharedState, Unavailable};
use crate::decision::{StateKey, StateWrite};
use crate::expiring::ExpiringMap;

/// Values in memory, bounded: beyond the capacity, the values that expire soonest are dropped.
#[derive(Debug)]
pub struct MemorySharedState(Mutex<ExpiringMap<StateKey, Vec<u8>>>);

impl MemorySharedState {
    /// With this capacity.
    pub fn new(capacity: usize) -> Self {
        Self(Mutex::new(ExpiringMap::new(capacity)))
    }
}

#[async_trait]
impl SharedState for MemorySharedState {
    async fn fetch(&self, keys: &[StateKey]) -> Result<Vec<Option<Vec<u8>>>, Unavailable> {
        let (values, now) = (self.0.lock(), Instant::now());
        Ok(keys.iter().map(|key| values.get(key, now).cloned()).collect())
    }

    async fn write(&self, writes: &[StateWrite]) -> Result<(), Unavailable> {
        let (mut values, now) = (self.0.lock(), Instant::now());
        values.sweep(now);
        for StateWrite { at, value } in writes {
            match value {
                Some((value, ttl)) => values.insert(at.clone(), value.clone(), *ttl, now),
                None => drop(values.remove(at)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn its_memory_is_bounded() {
        let state = MemorySharedState::new(3);
        for n in 0..100 {
            let at = StateKey { plugin: "p".into(), key: n.to_string() };
            let value = Some((vec![1], Duration::from_secs(1000 + n)));
            state.write(&[StateWrite { at, value }]).await.unwrap();
        }
        assert_eq!(state.0.lock().len(), 3);
    }
}
