//! What was made of a room, kept for a short time and made by one worker at a time.
//!
//! A worker claims a room under the generation of the policies it works with: the value is
//! there ([`Claim::Hit`]), or the worker is to make it ([`Claim::Mine`]), or another worker is
//! making it just now ([`Claim::Other`]).
//!
//! Promises: a hit is at most the maximal age old (counted from when its making began), of the
//! same generation, and not older than the last [`RouteCache::invalidate`]. At most one worker
//! makes a room's value of one generation at a time. Entries and their weight are bounded; the
//! oldest give way first.
//!
//! No deadlock: claim all rooms of a batch first, make and publish the values that are
//! [`Claim::Mine`], and only then wait for the others. Whoever waits holds no permit, so the
//! ones who hold permits never wait for each other.

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
pub use table::{CacheConfig, Maker};
use table::{Flight, FlightKey, Kept, Table};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: &'static str,
}

/// How claims end: `hit`, `miss` (made by the claimer), `shared` (made by another just then).
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    claims: Family<Labels, Counter>,
}

impl CacheMetrics {
    /// Makes and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let claims = Family::default();
        registry.register(
            "halley_route_cache_claims",
            "Rooms asked of the route cache: hit, miss, or shared with another worker's look-up",
            claims.clone(),
        );
        Self { claims }
    }

    fn count(&self, result: &'static str) {
        self.claims.get_or_create(&Labels { result }).inc();
    }
}

/// The cache. Clones share their content.
#[derive(Debug)]
pub struct RouteCache<V> {
    table: Arc<Mutex<Table<V>>>,
    metrics: CacheMetrics,
}

impl<V> Clone for RouteCache<V> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone(), metrics: self.metrics.clone() }
    }
}

/// What a worker gets for a room.
#[derive(Debug)]
pub enum Claim<V: Clone> {
    /// The value.
    Hit(V),
    /// The claimer is to make the value.
    Mine(Permit<V>),
    /// Another worker is making it.
    Other(Waiter<V>),
}

/// The right and duty to make one room's value. Dropping it unpublished frees the room, and
/// those who wait learn that nobody made the value.
#[derive(Debug)]
pub struct Permit<V: Clone> {
    table: Arc<Mutex<Table<V>>>,
    flight: FlightKey,
    stamp: u64,
    since: Instant,
    sender: watch::Sender<Option<V>>,
}

/// The wait for a value that another worker makes.
#[derive(Debug)]
pub struct Waiter<V> {
    made: watch::Receiver<Option<V>>,
    maker: Maker,
}

impl<V: Clone> RouteCache<V> {
    /// An empty cache.
    pub fn new(limits: &CacheConfig, metrics: CacheMetrics) -> Self {
        let table = Table::new(limits.clone());
        Self { table: Arc::new(Mutex::new(table)), metrics }
    }

    /// Asks for a room's value under a generation of policies, for this worker. Never waits.
    pub fn claim(&self, room: &RoomId, generation: u64, by: &Maker) -> Claim<V> {
        let mut table = self.table.lock();
        if let Some(value) = table.valid(room, generation) {
            self.metrics.count("hit");
            return Claim::Hit(value);
        }
        let flight = (room.clone(), generation);
        if let Some(running) = table.flights.get(&flight) {
            self.metrics.count("shared");
            return Claim::Other(Waiter { made: running.receiver.clone(), maker: running.maker.clone() });
        }
        self.metrics.count("miss");
        let (sender, receiver) = watch::channel(None);
        let stamp = table.stamp();
        table.flights.insert(flight.clone(), Flight { stamp, maker: by.clone(), receiver });
        Claim::Mine(Permit { table: self.table.clone(), flight, stamp, since: Instant::now(), sender })
    }

    /// A room's value under a generation of policies, if it is there. Claims nothing, counts nothing.
    pub fn peek(&self, room: &RoomId, generation: u64) -> Option<V> {
        self.table.lock().valid(room, generation)
    }

    /// Forgets a room: claims from now on do not get what was read before now.
    pub fn invalidate(&self, room: &RoomId) {
        let mut table = self.table.lock();
        table.remove(room);
        table.flights.retain(|(flying, _), _| flying != room);
    }

    /// How many rooms are kept, and how many connections they have in sum.
    pub fn size(&self) -> (usize, usize) {
        let table = self.table.lock();
        (table.kept.len(), table.weight)
    }
}

impl<V: Clone> Permit<V> {
    /// Hands the value to everyone who waits, and keeps it. `weight` is the number of
    /// connections.
    pub fn publish(self, value: V, weight: usize) {
        let mut table = self.table.lock();
        if table.lands(&self.flight, self.stamp) {
            let (room, generation) = self.flight.clone();
            let stamp = table.stamp();
            table.keep(room, Kept { generation, stamp, since: self.since, weight, value: value.clone() });
        }
        drop(table);
        self.sender.send_replace(Some(value));
    }
}

impl<V: Clone> Drop for Permit<V> {
    fn drop(&mut self) {
        // After publish() the flight is gone already, and this does nothing.
        self.table.lock().lands(&self.flight, self.stamp);
    }
}

impl<V: Clone> Waiter<V> {
    /// Who makes it.
    pub fn maker(&self) -> &Maker {
        &self.maker
    }

    /// The value; `None` when the worker that was making it gave up: claim again. Ends when the
    /// permit does.
    pub async fn wait(mut self) -> Option<V> {
        let made = self.made.wait_for(Option::is_some).await.ok()?;
        made.clone()
    }
}
