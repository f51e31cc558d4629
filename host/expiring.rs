//! A bounded map whose values expire.
//!
//! An expired value is not found any more, but takes up room until it is swept. The owner sweeps when it
//! adds a value or is short of room. Pure: the clock is an argument.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The minimum time between sweeps, since a sweep visits every value.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// The expiry of values whose time to live is too long for the clock.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// A full map evicts this fraction of its values at once: finding those that expire soonest visits
/// every value.
const EVICTED: usize = 16;

/// Values by key, each with its own expiry.
#[derive(Debug)]
pub(crate) struct ExpiringMap<K, V> {
    values: HashMap<K, (V, Instant)>,
    capacity: usize,
    swept: Option<Instant>,
}

impl<K: Clone + Eq + Hash, V> ExpiringMap<K, V> {
    /// A map of at most this many values. Beyond that, those that expire soonest are evicted.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { values: HashMap::new(), capacity, swept: None }
    }

    /// The value, if it has not expired.
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: Instant) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.values.get(key).filter(|(_, end)| *end > now).map(|(value, _)| value)
    }

    /// The value, even if it has expired.
    pub(crate) fn peek<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.values.get(key).map(|(value, _)| value)
    }

    /// Inserts a value for this long, replacing the previous one.
    pub(crate) fn insert(&mut self, key: K, value: V, ttl: Duration, now: Instant) {
        if self.values.len() >= self.capacity && !self.values.contains_key(&key) {
            self.evict();
        }
        let end = now.checked_add(ttl).unwrap_or(now + FOREVER);
        self.values.insert(key, (value, end));
    }

    /// Removes a value, even if it has expired.
    pub(crate) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.values.remove(key).map(|(value, _)| value)
    }

    /// Removes expired values, unless the last sweep was a moment ago. Returns whether it swept.
    pub(crate) fn sweep(&mut self, now: Instant) -> bool {
        let is_due = self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_EVERY);
        if is_due {
            self.swept = Some(now);
            self.values.retain(|_, (_, end)| *end > now);
        }
        is_due
    }

    /// All keys and values, including expired ones that are not swept yet.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.values.iter().map(|(key, (value, _))| (key, value))
    }

    /// The number of values, including expired ones that are not swept yet.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether the map has no values, not even expired ones.
    pub(crate) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn evict(&mut self) {
        let count = (self.capacity / EVICTED).max(1).min(self.values.len());
        let mut ends: Vec<_> = self.values.iter().map(|(key, (_, end))| (*end, key)).collect();
        if count < ends.len() {
            ends.select_nth_unstable_by_key(count, |(end, _)| *end);
        }
        let soonest: Vec<K> = ends.into_iter().take(count).map(|(_, key)| key.clone()).collect();
        for key in soonest {
            self.values.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_value_is_found_until_its_time_and_swept_afterwards() {
        let (mut map, start) = (ExpiringMap::new(10), Instant::now());
        map.insert("a", 1, SECOND, start);
        map.insert("b", 2, Duration::MAX, start);
        assert_eq!(map.get("a", start + SECOND / 2), Some(&1));
        assert_eq!((map.get("a", start + SECOND), map.len()), (None, 2));
        assert!(map.sweep(start + SECOND));
        assert!(!map.sweep(start + SECOND), "not twice in a moment");
        assert_eq!((map.get("b", start + SECOND), map.len()), (Some(&2), 1));
        map.insert("b", 3, SECOND, start + SECOND);
        assert_eq!((map.remove("b"), map.is_empty()), (Some(3), true));
    }

    #[test]
    fn beyond_its_capacity_what_runs_out_soonest_makes_room() {
        for capacity in [1, 3, 100] {
            let (mut map, start) = (ExpiringMap::new(capacity), Instant::now());
            for number in 0..1_000 {
                // The longest come first.
                map.insert(number, (), SECOND * (2_000 - number), start);
                assert!(map.len() <= capacity);
                assert!(map.get(&number, start).is_some(), "the newest is always kept");
            }
            let kept = (0..1_000).filter(|number| map.get(number, start).is_some()).count();
            assert_eq!(kept, map.len());
            assert!(capacity == 1 || map.get(&0, start).is_some(), "it runs out last");
        }
    }
}
