//! Content of the route cache: values by room and by age, and computations in progress.
//!
//! Plain data under the cache's lock; nothing here waits.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use tokio::sync::watch;

use crate::message::RoomId;

/// The limits of the route cache.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// The maximum number of cached rooms; 0 disables the cache.
    pub rooms: usize,
    /// The maximum number of connections in all cached rooms. A larger room is not cached.
    pub connections: usize,
    /// The maximum age of a cached room. For up to this long, a user who has entered a room may miss
    /// messages, and calls may go to connections that have left.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { rooms: 10_000, connections: 2_000_000, max_age: Duration::from_secs(1) }
    }
}

/// The worker that computes a value: that of this partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupLeader {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub partition: i32,
}

impl fmt::Display for LookupLeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A room and generation.
pub(super) type LookupKey = (RoomId, u64);

#[derive(Debug)]
pub(super) struct CacheTable<V> {
    limits: CacheConfig,
    pub(super) cached: HashMap<RoomId, CachedRoute<V>, RandomState>,
    /// The rooms in `cached` in the order of publication, by stamp.
    pub(super) by_age: BTreeMap<u64, RoomId>,
    pub(super) weight: usize,
    /// Computations in progress, except those that were invalidated.
    pub(super) in_flight: HashMap<LookupKey, PendingLookup<V>>,
    next_stamp: u64,
}

#[derive(Debug)]
pub(super) struct CachedRoute<V> {
    pub(super) generation: u64,
    pub(super) stamp: u64,
    pub(super) since: Instant,
    pub(super) weight: usize,
    pub(super) value: V,
}

#[derive(Debug)]
pub(super) struct PendingLookup<V> {
    pub(super) stamp: u64,
    pub(super) leader: LookupLeader,
    pub(super) receiver: watch::Receiver<Option<V>>,
}

impl<V: Clone> CacheTable<V> {
    /// An empty table.
    pub(super) fn new(limits: CacheConfig) -> Self {
        let (cached, by_age, in_flight) = Default::default();
        Self { limits, cached, by_age, weight: 0, in_flight, next_stamp: 0 }
    }

    pub(super) fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    pub(super) fn valid(&self, room: &RoomId, generation: u64) -> Option<V> {
        let cached = self.cached.get(room)?;
        let valid = cached.generation == generation && cached.since.elapsed() < self.limits.max_age;
        valid.then(|| cached.value.clone())
    }

    /// Ends a computation; false if it was ended before or invalidated.
    pub(super) fn complete(&mut self, key: &LookupKey, stamp: u64) -> bool {
        let listed = self.in_flight.get(key).is_some_and(|running| running.stamp == stamp);
        if listed {
            self.in_flight.remove(key);
        }
        listed
    }

    /// Stores a value, unless one of a newer generation exists, and evicts others.
    pub(super) fn store(&mut self, room: RoomId, cached: CachedRoute<V>) {
        if self.cached.get(&room).is_some_and(|present| present.generation > cached.generation) {
            return;
        }
        self.remove(&room);
        if cached.weight > self.limits.connections || self.limits.rooms == 0 {
            return;
        }
        self.weight += cached.weight;
        self.by_age.insert(cached.stamp, room.clone());
        self.cached.insert(room, cached);
        while let Some((_, oldest)) = self.by_age.first_key_value() {
            let expired = self.cached.get(oldest).is_none_or(|k| k.since.elapsed() >= self.limits.max_age);
            let too_much = self.cached.len() > self.limits.rooms || self.weight > self.limits.connections;
            if !expired && !too_much {
                break;
            }
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
    }

    /// Whether the room's value has been cached for a tenth of its time.
    pub(super) fn is_older_than_a_tenth(&self, room: &RoomId) -> bool {
        self.cached.get(room).is_some_and(|cached| cached.since.elapsed() >= self.limits.max_age / 10)
    }

    pub(super) fn remove(&mut self, room: &RoomId) {
        if let Some(cached) = self.cached.remove(room) {
            self.by_age.remove(&cached.stamp);
            self.weight -= cached.weight;
        }
    }
}
