//! How much of the shared state one plugin uses: what this process wrote and what has not expired
//! since.
//!
//! Redis holds the values but no total, so the total is kept here. It belongs to the plugin's name,
//! as its state does, and starts at zero with the process: what an earlier process wrote expires on
//! its own. Each gateway counts for itself.
//!
//! Keys are stored as hashes only.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smart_default::SmartDefault;
use xxhash_rust::xxh3::xxh3_64;

use crate::expiring::ExpiringMap;

/// What a key takes in Redis in addition to its bytes and its value's.
const OVERHEAD: usize = 128;

/// A plugin's shared state is as large as it may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "all keys and values together would take {total} bytes in Redis, more than {most} (`max_shared_state`)"
)]
pub(crate) struct QuotaExceeded {
    total: usize,
    most: usize,
}

/// One plugin's account.
#[derive(Debug, Default)]
pub(crate) struct StateUsage(Mutex<UsageEntries>);

#[derive(Debug, SmartDefault)]
struct UsageEntries {
    /// The size of each key. Bounded by `max_shared_state`, of which each takes at least `OVERHEAD`.
    #[default(ExpiringMap::new(usize::MAX))]
    sizes: ExpiringMap<u64, usize>,
    /// The total, including expired keys that are not swept yet.
    total: usize,
}

impl StateUsage {
    /// By how much writing a value of this length increases the total.
    pub(crate) fn growth(&self, key: &str, value: usize) -> usize {
        let before = self.0.lock().sizes.peek(&hash(key)).copied().unwrap_or(0);
        cost(key, value).saturating_sub(before)
    }

    /// Whether this many more bytes fit.
    ///
    /// # Errors
    /// Names the limit.
    pub(crate) fn fits(&self, more: usize, most: usize, now: Instant) -> Result<(), QuotaExceeded> {
        let mut entries = self.0.lock();
        if entries.total + more > most {
            entries.purge(now);
        }
        let total = entries.total + more;
        if more == 0 || total <= most { Ok(()) } else { Err(QuotaExceeded { total, most }) }
    }

    /// Records that a key was written with a time to live, or deleted.
    pub(crate) fn note(&self, key: &str, value: Option<(usize, Duration)>, now: Instant) {
        let mut entries = self.0.lock();
        let key_hash = hash(key);
        if let Some(before) = entries.sizes.remove(&key_hash) {
            entries.total -= before;
        }
        if let Some((length, ttl)) = value {
            let size = cost(key, length);
            entries.total += size;
            entries.sizes.insert(key_hash, size, ttl, now);
        }
    }
}

impl UsageEntries {
    fn purge(&mut self, now: Instant) {
        if self.sizes.sweep(now) {
            self.total = self.sizes.iter().map(|(_, size)| size).sum();
        }
    }
}

fn hash(key: &str) -> u64 {
    xxh3_64(key.as_bytes())
}

fn cost(key: &str, value: usize) -> usize {
    key.len() + value + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expired_and_deleted_keys_free_quota() {
        let (usage, now) = (StateUsage::default(), Instant::now());
        let size = 100 + 1 + OVERHEAD;
        for (key, seconds) in [("a", 1), ("b", 10)] {
            usage.note(key, Some((100, Duration::from_secs(seconds))), now);
        }
        assert_eq!((usage.growth("a", 100), usage.growth("a", 110), usage.growth("c", 100)), (0, 10, size));
        let most = 2 * size;
        assert!(usage.fits(size, most, now).is_err_and(|why| why.to_string().contains("max_shared_state")));
        assert_eq!(usage.fits(0, most, now), Ok(()), "what does not grow is written");
        let later = now + Duration::from_secs(2);
        assert_eq!(usage.fits(size, most, later), Ok(()), "one has run out");
        usage.note("c", Some((100, Duration::from_secs(10))), later);
        assert!(usage.fits(size, most, later).is_err());
        usage.note("b", None, later);
        assert_eq!(usage.fits(size, most, later), Ok(()));
    }
}
