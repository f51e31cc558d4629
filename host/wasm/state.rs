//! The key-value state that a plugin has through the host: it belongs to the plugin's name, is shared
//! by all workers, and outlives instances and versions, but not the process.
//!
//! Keys, values, their number and their total size are limited, so that no plugin fills the gateway's
//! memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smart_default::SmartDefault;

use crate::expiring::ExpiringMap;
use crate::wasm::state_usage::StateUsage;

/// The longest key, in bytes.
pub(crate) const MAX_KEY: usize = 512;
/// The longest value, in bytes.
const MAX_VALUE: usize = 64 * 1024;
/// The maximum number of keys of one plugin.
const MAX_ENTRIES: usize = 10_000;
/// The maximum size of all keys and values of one plugin, in bytes.
const MAX_TOTAL: usize = 16 * 1024 * 1024;

/// The limit that a write to a plugin's state exceeds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StateError {
    #[error("the key has {0} bytes; the limit is {MAX_KEY}")]
    Key(usize),
    #[error("the value has {0} bytes; the limit is {MAX_VALUE}")]
    Value(usize),
    #[error("the limit of {MAX_ENTRIES} keys is reached; delete some, or let them expire")]
    Entries,
    #[error("all keys and values together would take {0} bytes, more than {MAX_TOTAL}")]
    Total(usize),
}

/// The state of all plugins of a gateway, by plugin name.
#[derive(Debug, Default)]
pub(crate) struct PluginStates {
    local: Mutex<HashMap<String, Arc<LocalState>>>,
    /// How much shared state each plugin uses.
    usages: Mutex<HashMap<String, Arc<StateUsage>>>,
}

impl PluginStates {
    /// The state of the plugin with this name.
    pub(crate) fn of(&self, plugin: &str) -> Arc<LocalState> {
        let mut states = self.local.lock();
        Arc::clone(states.entry(plugin.to_owned()).or_default())
    }

    /// The account of the plugin with this name.
    pub(crate) fn usage_of(&self, plugin: &str) -> Arc<StateUsage> {
        let mut usages = self.usages.lock();
        Arc::clone(usages.entry(plugin.to_owned()).or_default())
    }
}

/// One plugin's state.
#[derive(Debug, Default)]
pub(crate) struct LocalState(Mutex<StateEntries>);

#[derive(Debug, SmartDefault)]
struct StateEntries {
    #[default(ExpiringMap::new(MAX_ENTRIES))]
    values: ExpiringMap<String, Vec<u8>>,
    /// Bytes of all keys and values, including expired ones that are not swept yet.
    total: usize,
}

impl LocalState {
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.lock().values.get(key, Instant::now()).cloned()
    }

    /// # Errors
    /// Names the limit that was exceeded; nothing is changed then.
    pub(crate) fn set(&self, key: String, value: Vec<u8>, ttl: Option<Duration>) -> Result<(), StateError> {
        check_size(&key, &value)?;
        let now = Instant::now();
        let mut state = self.0.lock();
        if state.limit_hit(&key, value.len()).is_some() {
            state.purge(now);
        }
        if let Some(limit) = state.limit_hit(&key, value.len()) {
            return Err(limit);
        }
        state.remove(&key);
        state.total += key.len() + value.len();
        state.values.insert(key, value, ttl.unwrap_or(Duration::MAX), now);
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

/// Whether a key and its value are within the limits.
///
/// # Errors
/// Names the limit that was exceeded.
pub(crate) fn check_size(key: &str, value: &[u8]) -> Result<(), StateError> {
    if key.len() > MAX_KEY {
        return Err(StateError::Key(key.len()));
    }
    if value.len() > MAX_VALUE {
        return Err(StateError::Value(value.len()));
    }
    Ok(())
}

impl StateEntries {
    fn remove(&mut self, key: &str) {
        if let Some(old) = self.values.remove(key) {
            self.total -= key.len() + old.len();
        }
    }

    /// The limit that setting this key to a value of this length would exceed.
    fn limit_hit(&self, key: &str, length: usize) -> Option<StateError> {
        let old = self.values.peek(key);
        if old.is_none() && self.values.len() >= MAX_ENTRIES {
            return Some(StateError::Entries);
        }
        let freed = old.map_or(0, |old| key.len() + old.len());
        let total = self.total - freed + key.len() + length;
        (total > MAX_TOTAL).then_some(StateError::Total(total))
    }

    fn purge(&mut self, now: Instant) {
        if self.values.sweep(now) {
            self.total = self.values.iter().map(|(key, value)| key.len() + value.len()).sum();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_expire_and_are_forgotten() {
        let states = PluginStates::default();
        let state = states.of("p");
        state.set("a".into(), vec![1], None).unwrap();
        state.set("b".into(), vec![2], Some(Duration::ZERO)).unwrap();
        state.set("c".into(), vec![3], Some(Duration::MAX)).unwrap();
        assert_eq!(states.of("p").get("a"), Some(vec![1]), "shared under the plugin's name");
        assert_eq!(states.of("q").get("a"), None);
        assert_eq!((state.get("b"), state.get("c")), (None, Some(vec![3])));
        state.delete("a");
        assert_eq!(state.get("a"), None);
    }

    #[test]
    fn every_limit_is_named_and_expired_entries_make_room() {
        let state = LocalState::default();
        assert_eq!(state.set("k".repeat(513), vec![], None), Err(StateError::Key(513)));
        assert_eq!(
            state.set("k".into(), vec![0; MAX_VALUE + 1], None),
            Err(StateError::Value(MAX_VALUE + 1))
        );
        for n in 0..MAX_ENTRIES {
            state.set(n.to_string(), vec![], Some(Duration::from_micros(1))).unwrap();
        }
        state.set("one more".into(), vec![], None).expect("the others have expired");

        let state = LocalState::default();
        let fit = (0..1000).filter(|n| state.set(n.to_string(), vec![0; MAX_VALUE], None).is_ok()).count();
        assert!((200..=256).contains(&fit), "{fit}");
        state.set("0".into(), vec![0; 10], None).expect("a smaller value for a known key");
    }
}
