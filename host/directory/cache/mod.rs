//! The route cache: values per room, each computed by one worker at a time.
//!
//! A worker claims a room under the generation of its policies. Either the value is cached
//! ([`CacheLookup::Hit`]), or the worker has to compute it ([`CacheLookup::Leader`]), or another worker is
//! computing it ([`CacheLookup::Follower`]).
//!
//! Promises: a hit is of the same generation, and read after the last reported change of its room, as long
//! as changes are reported; otherwise it is at most `max_age` old (measured from the start of its
//! computation). A change that is reported while a value is computed voids it. At most one worker computes
//! the value of a room and generation at a time. Entries and their weight are bounded; the oldest are
//! evicted first.
//!
//! The exception is a large room that changes faster than it can be read: it is read a fifth of the time,
//! and in between its last value counts, or, if that is not acceptable, callers wait
//! ([`CacheLookup::Deferred`]).
//!
//! No deadlock: claim all rooms of a batch first, compute and publish the values that are
//! [`CacheLookup::Leader`], and only then wait for the others. A waiting worker holds no permit, so permit
//! holders never wait for each other.

mod config;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::freshness::{ForgetCause, Freshness, RoomChanges};
use crate::message::RoomId;
use crate::telemetry::{Counter, EncodeLabelSet, Family, at_zero, label_enum, metrics};
pub use config::{CacheConfig, Exactness};
use table::{CacheTable, CachedRoute, Completed, Found, PendingLookup};
pub use table::{LookupLeader, Need};

label_enum! {
    /// The result of a claim.
    enum LookupResult as "result" {
        Hit = "hit",
        /// Computed by the claimer.
        Miss = "miss",
        /// Computed by another worker.
        Shared = "shared",
        /// Changed, and not read again yet.
        Deferred = "deferred",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InvalidationLabels {
    cause: &'static str,
}

metrics! {
    /// Metrics of the cache.
    #[derive(Clone, Debug)]
    pub struct CacheMetrics {
        /// Route cache lookups by result: hit, miss, shared with another worker's look-up, or deferred because a
        /// large room changes faster than it can be read.
        lookups: Family<LookupResult, Counter> = "halley_route_cache_lookups" in at_zero(Family::default());
        /// Reported changes of rooms, and events after which all rooms of a connection are forgotten: flushed,
        /// disconnected, slots-moved.
        invalidations: Family<InvalidationLabels, Counter> = "halley_route_cache_invalidations";
    }
}

impl CacheMetrics {
    fn count(&self, result: LookupResult) {
        self.lookups.get_or_create(&result).inc();
    }

    fn invalidated(&self, cause: &'static str) {
        self.invalidations.get_or_create(&InvalidationLabels { cause }).inc();
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
    /// The room is large and changes all the time: to be claimed again after this time.
    Deferred(Duration),
}

/// The exclusive right to compute a room's value. Dropping it without publishing frees the room, and
/// wakes the waiters with no value.
#[derive(Debug)]
pub struct FillPermit<V: Clone> {
    table: Arc<Mutex<CacheTable<V>>>,
    room: RoomId,
    generation: u64,
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
    pub fn lookup(&self, room: &RoomId, generation: u64, by: &LookupLeader, need: Need) -> CacheLookup<V> {
        let (mut table, now) = (self.table.lock(), Instant::now());
        match (table.find(room, generation, need, now), need) {
            (Found::Valid(value), _) => {
                self.metrics.count(LookupResult::Hit);
                return CacheLookup::Hit(value);
            }
            (Found::Deferred(value, _), Need::Cached) => {
                self.metrics.count(LookupResult::Deferred);
                return CacheLookup::Hit(value);
            }
            (Found::Deferred(_, pause), Need::Since(..)) => {
                self.metrics.count(LookupResult::Deferred);
                return CacheLookup::Deferred(pause);
            }
            (Found::Nothing, _) => {}
        }
        let may_follow = !matches!(need, Need::Since(_, false));
        if let Some(running) =
            table.pending(room, generation).filter(|running| !running.outdated && may_follow)
        {
            self.metrics.count(LookupResult::Shared);
            return CacheLookup::Follower(FillWaiter {
                made: running.receiver.clone(),
                leader: running.leader.clone(),
            });
        }
        self.metrics.count(LookupResult::Miss);
        let (sender, receiver) = watch::channel(None);
        let stamp = table.stamp();
        let pending = PendingLookup { generation, stamp, leader: by.clone(), receiver, outdated: false };
        table.in_flight.entry(room.clone()).or_default().push(pending);
        let (table, room) = (self.table.clone(), room.clone());
        CacheLookup::Leader(FillPermit { table, room, generation, stamp, since: now, sender })
    }

    /// The cached value of a room under a generation, if any, and how current it is. Claims nothing,
    /// counts nothing.
    pub fn peek(&self, room: &RoomId, generation: u64) -> Option<(V, CachedAge)> {
        let (table, now) = (self.table.lock(), Instant::now());
        let cached = table.peek(room, generation, now)?;
        let term = cached.freshness.term.as_ref();
        let age = CachedAge {
            read: now.saturating_duration_since(cached.since),
            details: now.saturating_duration_since(cached.freshness.details_since),
            tracked: term.is_some(),
            confirmed: term.is_none_or(|term| term.is_valid(now)),
            outdated: cached.outdated,
        };
        Some((cached.value.clone(), age))
    }

    /// Whether any of these rooms is cached or being read, so that reported changes of it matter.
    pub fn depend_on_reports(&self, rooms: &[RoomId]) -> bool {
        let table = self.table.lock();
        rooms.iter().any(|room| table.depends_on_reports(room))
    }

    /// The room has changed: later claims do not return anything read before now, unless it is too large
    /// to be read again at once.
    pub fn invalidate(&self, room: &RoomId) {
        self.table.lock().outdate(room);
    }

    /// A comet reported that connections of this room are gone. Removes what was read before; at most
    /// ten times in `max_age`, so that a directory that keeps naming them does not disable the cache.
    /// Returns whether it did.
    pub fn note_outdated(&self, room: &RoomId) -> bool {
        let mut table = self.table.lock();
        let removes = table.is_older_than_a_tenth(room);
        if removes {
            table.remove(room);
        }
        removes
    }

    /// The number of cached rooms and of their connections.
    #[cfg(test)]
    fn size(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.cached.len(), table.weight)
    }
}

/// How current a cached value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedAge {
    /// How long ago the room was read.
    pub read: Duration,
    /// How long ago the oldest presence and connection details in it were read.
    pub details: Duration,
    /// Whether changes of the room are reported.
    pub tracked: bool,
    /// False while the server that would report them is silent: the value does not count now.
    pub confirmed: bool,
    /// Whether the room has changed since, and is too large to be read again at once.
    pub outdated: bool,
}

impl<V: Clone + Send + Sync> RoomChanges for RouteCache<V> {
    fn room_changed(&self, room: &RoomId) {
        self.metrics.invalidated("changed");
        self.invalidate(room);
    }

    fn terms_ended(&self, cause: ForgetCause) {
        self.metrics.invalidated(cause.as_str());
        self.table.lock().remove_ended();
    }
}

impl<V: Clone> FillPermit<V> {
    /// Caches the value and hands it to all waiters. `weight` is the number of connections.
    pub fn publish(self, value: V, weight: usize, freshness: Freshness) {
        let mut table = self.table.lock();
        let completed = table.complete(&self.room, self.stamp);
        if completed != Completed::Ended {
            let (room, generation, now) = (self.room.clone(), self.generation, Instant::now());
            let cached = CachedRoute {
                generation,
                stamp: table.stamp(),
                begun: self.stamp,
                since: self.since,
                weight,
                value: value.clone(),
                freshness,
                outdated: completed == Completed::Outdated,
                due: now,
            };
            table.store(room, cached, now);
        }
        drop(table);
        self.sender.send_replace(Some(value));
    }
}

impl<V: Clone> Drop for FillPermit<V> {
    fn drop(&mut self) {
        // After publish() this does nothing: the entry has been removed.
        self.table.lock().complete(&self.room, self.stamp);
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
