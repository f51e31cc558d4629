//! Content of the route cache: values by room and by age, and computations in progress.
//!
//! Plain data under the cache's lock; nothing here waits.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::message::RoomId;

/// The limits of the route cache.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// How many rooms are kept at most; 0 keeps none.
    pub rooms: usize,
    /// How many connections the kept rooms have in sum at most. A larger room is not kept.
    pub connections: usize,
    /// How old what is known of a room may be. Who enters a room may miss messages for so long,
    /// and calls may go to connections that have left.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { rooms: 10_000, connections: 2_000_000, max_age: Duration::from_secs(1) }
    }
}

/// The worker that makes a value: that of this partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maker {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its number.
    pub partition: i32,
}

impl fmt::Display for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A room under a generation.
pub(super) type FlightKey = (RoomId, u64);

#[derive(Debug)]
pub(super) struct Table<V> {
    limits: CacheConfig,
    pub(super) kept: HashMap<RoomId, Kept<V>>,
    /// The rooms in `kept` in the order of publication, by stamp.
    pub(super) by_age: BTreeMap<u64, RoomId>,
    pub(super) weight: usize,
    /// Computations in progress, except those that were invalidated.
    pub(super) flights: HashMap<FlightKey, Flight<V>>,
    next_stamp: u64,
}

#[derive(Debug)]
pub(super) struct Kept<V> {
    pub(super) generation: u64,
    pub(super) stamp: u64,
    pub(super) since: Instant,
    pub(super) weight: usize,
    pub(super) value: V,
}

#[derive(Debug)]
pub(super) struct Flight<V> {
    pub(super) stamp: u64,
    pub(super) maker: Maker,
    pub(super) receiver: watch::Receiver<Option<V>>,
}

impl<V: Clone> Table<V> {
    /// An empty table.
    pub(super) fn new(limits: CacheConfig) -> Self {
        let (kept, by_age, flights) = Default::default();
        Self { limits, kept, by_age, weight: 0, flights, next_stamp: 0 }
    }

    pub(super) fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    pub(super) fn valid(&self, room: &RoomId, generation: u64) -> Option<V> {
        let kept = self.kept.get(room)?;
        let valid = kept.generation == generation && kept.since.elapsed() < self.limits.max_age;
        valid.then(|| kept.value.clone())
    }

    /// Ends a computation; false if it was ended before or invalidated.
    pub(super) fn lands(&mut self, flight: &FlightKey, stamp: u64) -> bool {
        let listed = self.flights.get(flight).is_some_and(|running| running.stamp == stamp);
        if listed {
            self.flights.remove(flight);
        }
        listed
    }

    /// Stores a value, unless one of a newer generation exists, and evicts others.
    pub(super) fn keep(&mut self, room: RoomId, kept: Kept<V>) {
        if self.kept.get(&room).is_some_and(|present| present.generation > kept.generation) {
            return;
        }
        self.remove(&room);
        if kept.weight > self.limits.connections || self.limits.rooms == 0 {
            return;
        }
        self.weight += kept.weight;
        self.by_age.insert(kept.stamp, room.clone());
        self.kept.insert(room, kept);
        while let Some((_, oldest)) = self.by_age.first_key_value() {
            let expired = self.kept.get(oldest).is_none_or(|k| k.since.elapsed() >= self.limits.max_age);
            let too_much = self.kept.len() > self.limits.rooms || self.weight > self.limits.connections;
            if !expired && !too_much {
                break;
            }
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
    }

    pub(super) fn remove(&mut self, room: &RoomId) {
        if let Some(kept) = self.kept.remove(room) {
            self.by_age.remove(&kept.stamp);
            self.weight -= kept.weight;
        }
    }
}
