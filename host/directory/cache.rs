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

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
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
pub struct Waiter<V>(watch::Receiver<Option<V>>);

type FlightKey = (RoomId, u64);

#[derive(Debug)]
struct Table<V> {
    limits: CacheConfig,
    kept: HashMap<RoomId, Kept<V>>,
    /// The rooms in `kept` in the order in which they were published, by stamp.
    by_age: BTreeMap<u64, RoomId>,
    weight: usize,
    /// What is being made now. A flight that was invalidated is no longer listed.
    flights: HashMap<FlightKey, Flight<V>>,
    next_stamp: u64,
}

#[derive(Debug)]
struct Kept<V> {
    generation: u64,
    stamp: u64,
    since: Instant,
    weight: usize,
    value: V,
}

#[derive(Debug)]
struct Flight<V> {
    stamp: u64,
    receiver: watch::Receiver<Option<V>>,
}

impl<V: Clone> RouteCache<V> {
    /// An empty cache.
    pub fn new(limits: &CacheConfig, metrics: CacheMetrics) -> Self {
        let table = Table {
            limits: limits.clone(),
            kept: HashMap::new(),
            by_age: BTreeMap::new(),
            weight: 0,
            flights: HashMap::new(),
            next_stamp: 0,
        };
        Self { table: Arc::new(Mutex::new(table)), metrics }
    }

    /// Asks for a room's value under a generation of policies. Never waits.
    pub fn claim(&self, room: &RoomId, generation: u64) -> Claim<V> {
        let mut table = lock(&self.table);
        if let Some(value) = table.valid(room, generation) {
            self.metrics.count("hit");
            return Claim::Hit(value);
        }
        let flight = (room.clone(), generation);
        if let Some(running) = table.flights.get(&flight) {
            self.metrics.count("shared");
            return Claim::Other(Waiter(running.receiver.clone()));
        }
        self.metrics.count("miss");
        let (sender, receiver) = watch::channel(None);
        let stamp = table.stamp();
        table.flights.insert(flight.clone(), Flight { stamp, receiver });
        Claim::Mine(Permit { table: self.table.clone(), flight, stamp, since: Instant::now(), sender })
    }

    /// Forgets a room: claims from now on do not get what was read before now.
    pub fn invalidate(&self, room: &RoomId) {
        let mut table = lock(&self.table);
        table.remove(room);
        table.flights.retain(|(flying, _), _| flying != room);
    }

    /// How many rooms are kept, and how many connections they have in sum.
    pub fn size(&self) -> (usize, usize) {
        let table = lock(&self.table);
        (table.kept.len(), table.weight)
    }
}

impl<V: Clone> Permit<V> {
    /// Hands the value to everyone who waits, and keeps it. `weight` is the number of
    /// connections.
    pub fn publish(self, value: V, weight: usize) {
        let mut table = lock(&self.table);
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
        lock(&self.table).lands(&self.flight, self.stamp);
    }
}

impl<V: Clone> Waiter<V> {
    /// The value; `None` when the worker that was making it gave up: claim again. Ends when the
    /// permit does.
    pub async fn wait(mut self) -> Option<V> {
        let made = self.0.wait_for(Option::is_some).await.ok()?;
        made.clone()
    }
}

impl<V: Clone> Table<V> {
    fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    fn valid(&self, room: &RoomId, generation: u64) -> Option<V> {
        let kept = self.kept.get(room)?;
        let valid = kept.generation == generation && kept.since.elapsed() < self.limits.max_age;
        valid.then(|| kept.value.clone())
    }

    /// Ends a flight; false when it was ended before or invalidated.
    fn lands(&mut self, flight: &FlightKey, stamp: u64) -> bool {
        let listed = self.flights.get(flight).is_some_and(|running| running.stamp == stamp);
        if listed {
            self.flights.remove(flight);
        }
        listed
    }

    /// Keeps a value, unless one of a newer generation is there, and makes room for it.
    fn keep(&mut self, room: RoomId, kept: Kept<V>) {
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

    fn remove(&mut self, room: &RoomId) {
        if let Some(kept) = self.kept.remove(room) {
            self.by_age.remove(&kept.stamp);
            self.weight -= kept.weight;
        }
    }
}

fn lock<V>(table: &Mutex<Table<V>>) -> MutexGuard<'_, Table<V>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    fn cache<V: Clone>(rooms: usize, connections: usize, max_age: Duration) -> RouteCache<V> {
        let limits = CacheConfig { rooms, connections, max_age };
        RouteCache::new(&limits, CacheMetrics::register(&mut Registry::default()))
    }

    fn lasting<V: Clone>() -> RouteCache<V> {
        cache(100, 1000, Duration::from_secs(3600))
    }

    fn mine<V: Clone>(cache: &RouteCache<V>, room: &str, generation: u64) -> Permit<V> {
        match cache.claim(&room.into(), generation) {
            Claim::Mine(permit) => permit,
            Claim::Hit(_) => panic!("{room} is kept"),
            Claim::Other(_) => panic!("{room} is being made"),
        }
    }

    fn other<V: Clone>(cache: &RouteCache<V>, room: &str, generation: u64) -> Waiter<V> {
        let Claim::Other(waiter) = cache.claim(&room.into(), generation) else {
            panic!("nobody makes {room}")
        };
        waiter
    }

    fn hit<V: Clone>(cache: &RouteCache<V>, room: &str, generation: u64) -> Option<V> {
        match cache.claim(&room.into(), generation) {
            Claim::Hit(value) => Some(value),
            Claim::Mine(_) | Claim::Other(_) => None,
        }
    }

    #[tokio::test]
    async fn one_makes_it_and_all_have_it() {
        let cache = lasting();
        let permit = mine(&cache, "r", 1);
        let waiters = [other(&cache, "r", 1), other(&cache, "r", 1)];
        permit.publish("value", 3);
        for waiter in waiters {
            assert_eq!(waiter.wait().await, Some("value"));
        }
        assert_eq!(hit(&cache, "r", 1), Some("value"));
        assert_eq!(cache.size(), (1, 3));
    }

    #[tokio::test]
    async fn who_gives_up_wakes_the_others_empty_handed() {
        let cache = lasting::<&str>();
        let permit = mine(&cache, "r", 1);
        let waiter = other(&cache, "r", 1);
        drop(permit);
        assert_eq!(waiter.wait().await, None);
        mine(&cache, "r", 1).publish("second", 1);
        assert_eq!(hit(&cache, "r", 1), Some("second"));
    }

    #[test]
    fn a_value_is_of_one_generation() {
        let cache = lasting();
        let old = mine(&cache, "r", 1);
        mine(&cache, "r", 2).publish("new", 1);
        old.publish("old", 1);
        assert_eq!(hit(&cache, "r", 2), Some("new"), "a straggler does not overwrite");
        assert_eq!(hit(&cache, "r", 1), None);
        assert_eq!(hit(&cache, "r", 3), None);
    }

    #[tokio::test]
    async fn what_was_read_before_an_invalidation_is_not_kept() {
        let cache = lasting();
        mine(&cache, "r", 1).publish("first", 1);
        cache.invalidate(&"r".into());
        assert_eq!(hit(&cache, "r", 1), None);

        let before = mine(&cache, "r", 1);
        let waiter = other(&cache, "r", 1);
        cache.invalidate(&"r".into());
        let after = mine(&cache, "r", 1);
        before.publish("before", 1);
        assert_eq!(waiter.wait().await, Some("before"), "who asked before may have it");
        let late = other(&cache, "r", 1);
        after.publish("after", 1);
        assert_eq!(late.wait().await, Some("after"));
        assert_eq!(hit(&cache, "r", 1), Some("after"));
    }

    #[test]
    fn old_values_are_not_found() {
        let cache = cache(100, 1000, Duration::ZERO);
        mine(&cache, "r", 1).publish("value", 1);
        assert_eq!(hit(&cache, "r", 1), None);
        assert_eq!(cache.size(), (0, 0));
    }

    #[test]
    fn rooms_and_connections_are_bounded() {
        let cache = cache(3, 100, Duration::from_secs(3600));
        for number in 0..10 {
            mine(&cache, &format!("r{number}"), 1).publish(number, 10);
        }
        assert_eq!(cache.size(), (3, 30));
        assert_eq!((hit(&cache, "r6", 1), hit(&cache, "r9", 1)), (None, Some(9)), "the oldest go first");
        mine(&cache, "large", 1).publish(100, 95);
        assert_eq!(cache.size(), (1, 95));
        mine(&cache, "too-large", 1).publish(101, 101);
        assert_eq!((cache.size(), hit(&cache, "large", 1)), ((1, 95), Some(100)));
        mine(&cache, "large", 2).publish(102, 96);
        assert_eq!(cache.size(), (1, 96), "a replaced value weighs no more");
        let table = lock(&cache.table);
        assert_eq!((table.by_age.len(), table.flights.len()), (1, 0), "nothing is left behind");
    }

    /// Eight workers claim overlapping rooms in different orders; some give up.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn workers_never_make_the_same_room_at_once_and_never_lock_up() {
        let cache = cache::<usize>(100, 1000, Duration::from_micros(200));
        let making: Arc<Vec<AtomicUsize>> = Arc::new((0..10).map(|_| AtomicUsize::new(0)).collect());
        let mut workers = JoinSet::new();
        for worker in 0..8 {
            workers.spawn(batches(worker, cache.clone(), making.clone()));
        }
        let all =
            async { while workers.join_next().await.transpose().expect("no worker panics").is_some() {} };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("no deadlock");
        assert!(lock(&cache.table).flights.is_empty());
    }

    async fn batches(worker: usize, cache: RouteCache<usize>, making: Arc<Vec<AtomicUsize>>) {
        for batch in 0..300 {
            let mut wanted: Vec<usize> = (0..10).filter(|room| (room + worker + batch) % 3 != 0).collect();
            let offset = (worker * 3 + batch) % wanted.len();
            wanted.rotate_left(offset);
            while !wanted.is_empty() {
                wanted = one_round(&wanted, &cache, &making, (worker + batch) % 7 == 0).await;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Claims, makes, publishes, waits; gives back the rooms whose maker gave up.
    async fn one_round(
        wanted: &[usize],
        cache: &RouteCache<usize>,
        making: &[AtomicUsize],
        gives_up: bool,
    ) -> Vec<usize> {
        let (mut permits, mut waiters, mut again) = (Vec::new(), Vec::new(), Vec::new());
        for &room in wanted {
            match cache.claim(&room.to_string().into(), 1) {
                Claim::Hit(value) => assert_eq!(value, room),
                Claim::Other(waiter) => waiters.push((room, waiter)),
                Claim::Mine(permit) => {
                    assert_eq!(making[room].fetch_add(1, Ordering::SeqCst), 0, "two make room {room}");
                    permits.push((room, permit));
                }
            }
        }
        tokio::task::yield_now().await;
        for (room, permit) in permits {
            making[room].fetch_sub(1, Ordering::SeqCst);
            if !gives_up {
                permit.publish(room, 1);
            }
        }
        for (room, waiter) in waiters {
            match waiter.wait().await {
                Some(value) => assert_eq!(value, room),
                None => again.push(room),
            }
        }
        again
    }
}
