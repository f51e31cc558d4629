//! The route cache: short-lived values per room, each computed by one worker at a time.
//!
//! A worker claims a room under the generation of its policies. Either the value is cached
//! ([`CacheLookup::Hit`]), or the worker has to compute it ([`CacheLookup::Leader`]), or another worker is
//! computing it ([`CacheLookup::Follower`]).
//!
//! Promises: a hit is at most `max_age` old (measured from the start of its computation), of the same
//! generation, and not older than the last [`RouteCache::invalidate`]. At most one worker computes
//! the value of a room and generation at a time. Entries and their weight are bounded; the oldest are
//! evicted first.
//!
//! No deadlock: claim all rooms of a batch first, compute and publish the values that are
//! [`CacheLookup::Leader`], and only then wait for the others. A waiting worker holds no permit, so permit
//! holders never wait for each other.

mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::message::RoomId;
pub use table::{CacheConfig, LookupLeader};
use table::{CacheTable, CachedRoute, LookupKey, PendingLookup};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    result: &'static str,
}

/// Results of claims: `hit`, `miss` (computed by the claimer), `shared` (computed by another worker).
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    lookups: Family<LookupLabels, Counter>,
}

impl CacheMetrics {
    /// Creates and registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let lookups = Family::default();
        registry.register(
            "halley_route_cache_lookups",
            "Route cache lookups by result: hit, miss, or shared with another worker's look-up",
            lookups.clone(),
        );
        Self { lookups }
    }

    fn count(&self, result: &'static str) {
        self.lookups.get_or_create(&LookupLabels { result }).inc();
    }
}

/// The route cache. Clones share the content.
#[derive(Debug)]
pub struct RouteCache<V> {
    table: Arc<Mutex<CacheTable<V>>>,
    metrics: CacheMetrics,
}

impl<V> Clone for RouteCache<V> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone(), metrics: self.metrics.clone() }
    }
}

/// The result of a claim.
#[derive(Debug)]
pub enum CacheLookup<V: Clone> {
    /// The cached value.
    Hit(V),
    /// The claimer has to compute the value.
    Leader(FillPermit<V>),
    /// Another worker is computing it.
    Follower(FillWaiter<V>),
}

/// The exclusive right to compute a room's value. Dropping it without publishing frees the room, and
/// wakes the waiters with no value.
#[derive(Debug)]
pub struct FillPermit<V: Clone> {
    table: Arc<Mutex<CacheTable<V>>>,
    key: LookupKey,
    stamp: u64,
    since: Instant,
    sender: watch::Sender<Option<V>>,
}

/// Waits for a value that another worker computes.
#[derive(Debug)]
pub struct FillWaiter<V> {
    made: watch::Receiver<Option<V>>,
    leader: LookupLeader,
}

impl<V: Clone> RouteCache<V> {
    /// An empty cache.
    pub fn new(limits: &CacheConfig, metrics: CacheMetrics) -> Self {
        let table = CacheTable::new(limits.clone());
        Self { table: Arc::new(Mutex::new(table)), metrics }
    }

    /// Asks for a room's value under a generation of policies, for this worker. Never waits.
    pub fn lookup(&self, room: &RoomId, generation: u64, by: &LookupLeader) -> CacheLookup<V> {
        let mut table = self.table.lock();
        if let Some(value) = table.valid(room, generation) {
            self.metrics.count("hit");
            return CacheLookup::Hit(value);
        }
        let key = (room.clone(), generation);
        if let Some(running) = table.in_flight.get(&key) {
            self.metrics.count("shared");
            return CacheLookup::Follower(FillWaiter {
                made: running.receiver.clone(),
                leader: running.leader.clone(),
            });
        }
        self.metrics.count("miss");
        let (sender, receiver) = watch::channel(None);
        let stamp = table.stamp();
        table.in_flight.insert(key.clone(), PendingLookup { stamp, leader: by.clone(), receiver });
        CacheLookup::Leader(FillPermit {
            table: self.table.clone(),
            key,
            stamp,
            since: Instant::now(),
            sender,
        })
    }

    /// The cached value of a room under a generation, if any. Claims nothing, counts nothing.
    pub fn peek(&self, room: &RoomId, generation: u64) -> Option<V> {
        self.table.lock().valid(room, generation)
    }

    /// Removes a room: later claims do not return anything read before now.
    pub fn invalidate(&self, room: &RoomId) {
        let mut table = self.table.lock();
        table.remove(room);
        table.in_flight.retain(|(flying, _), _| flying != room);
    }

    /// A comet reported that connections of this room are gone. Removes what was read before; at most
    /// ten times in `max_age`, so that a directory that keeps naming them does not disable the cache.
    pub fn note_outdated(&self, room: &RoomId) {
        let mut table = self.table.lock();
        if table.is_older_than_a_tenth(room) {
            table.remove(room);
        }
    }

    /// The number of cached rooms and of their connections.
    pub fn size(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.cached.len(), table.weight)
    }
}

impl<V: Clone> FillPermit<V> {
    /// Caches the value and hands it to all waiters. `weight` is the number of connections.
    pub fn publish(self, value: V, weight: usize) {
        let mut table = self.table.lock();
        if table.complete(&self.key, self.stamp) {
            let (room, generation) = self.key.clone();
            let stamp = table.stamp();
            table.store(
                room,
                CachedRoute { generation, stamp, since: self.since, weight, value: value.clone() },
            );
        }
        drop(table);
        self.sender.send_replace(Some(value));
    }
}

impl<V: Clone> Drop for FillPermit<V> {
    fn drop(&mut self) {
        // After publish() this does nothing: the entry has been removed.
        self.table.lock().complete(&self.key, self.stamp);
    }
}

impl<V: Clone> FillWaiter<V> {
    /// The worker that computes the value.
    pub fn leader(&self) -> &LookupLeader {
        &self.leader
    }

    /// The value; `None` if the other worker gave up: claim again. Ends when the permit does.
    pub async fn wait(mut self) -> Option<V> {
        let made = self.made.wait_for(Option::is_some).await.ok()?;
        made.clone()
    }
}
