//! Shared state inside the process: for the demo, `memory://` and tests.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{SharedState, Unavailable};
use crate::decision::{StateKey, StateWrite};

/// Values in memory, bounded: beyond its capacity the value that runs out soonest is forgotten.
#[derive(Debug)]
pub struct MemorySharedState {
    table: Mutex<Table>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Table {
    values: HashMap<StateKey, (Vec<u8>, Instant)>,
    /// The same by the time at which they run out.
    by_end: BTreeSet<(Instant, String, std::sync::Arc<str>)>,
}

impl MemorySharedState {
    /// Room for so many values.
    pub fn new(capacity: usize) -> Self {
        Self { table: Mutex::default(), capacity }
    }
}

#[async_trait]
impl SharedState for MemorySharedState {
    async fn fetch(&self, keys: &[StateKey]) -> Result<Vec<Option<Vec<u8>>>, Unavailable> {
        let mut table = self.table.lock();
        table.forget_until(Instant::now());
        let value = |at| table.values.get(at).map(|(value, _)| value.clone());
        Ok(keys.iter().map(value).collect())
    }

    async fn write(&self, writes: &[StateWrite]) -> Result<(), Unavailable> {
        let now = Instant::now();
        let mut table = self.table.lock();
        table.forget_until(now);
        for write in writes {
            table.write(write, now);
            while table.values.len() > self.capacity {
                table.forget_soonest();
            }
        }
        Ok(())
    }
}

/// Where a time is too long for the clock.
const LONG: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

impl Table {
    fn write(&mut self, StateWrite { at, value }: &StateWrite, now: Instant) {
        if let Some((_, end)) = self.values.remove(at) {
            self.by_end.remove(&(end, at.key.clone(), at.plugin.clone()));
        }
        if let Some((value, ttl)) = value {
            let end = now.checked_add(*ttl).unwrap_or(now + LONG);
            self.values.insert(at.clone(), (value.clone(), end));
            self.by_end.insert((end, at.key.clone(), at.plugin.clone()));
        }
    }

    fn forget_until(&mut self, now: Instant) {
        while self.by_end.first().is_some_and(|(end, ..)| *end <= now) {
            self.forget_soonest();
        }
    }

    fn forget_soonest(&mut self) {
        if let Some((_, key, plugin)) = self.by_end.pop_first() {
            self.values.remove(&StateKey { plugin, key });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn its_memory_is_bounded() {
        let state = MemorySharedState::new(3);
        for n in 0..100 {
            let at = StateKey { plugin: "p".into(), key: n.to_string() };
            let value = Some((vec![1], Duration::from_secs(1000 + n)));
            state.write(&[StateWrite { at, value }]).await.unwrap();
        }
        let table = state.table.lock();
        assert_eq!((table.values.len(), table.by_end.len()), (3, 3));
    }
}
