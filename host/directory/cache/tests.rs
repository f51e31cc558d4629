//! The promises of the route cache, with one and with many workers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use prometheus_client::registry::Registry;

use super::*;
use crate::redis_client::Lease;

fn cache<V: Clone>(rooms: usize, connections: usize, max_age: Duration) -> RouteCache<V> {
    let limits = CacheConfig { rooms, connections, max_age, ..CacheConfig::default() };
    RouteCache::new(&limits, CacheMetrics::register(&mut Registry::default()))
}

fn worker() -> LookupLeader {
    LookupLeader { topic: "push".into(), partition: 7 }
}

fn lasting<V: Clone>() -> RouteCache<V> {
    cache(100, 1000, Duration::from_secs(3600))
}

fn leader<V: Clone>(cache: &RouteCache<V>, room: &str, generation: u64) -> FillPermit<V> {
    match cache.lookup(&room.into(), generation, &worker(), Need::Cached) {
        CacheLookup::Leader(permit) => permit,
        CacheLookup::Hit(_) => panic!("{room} is cached"),
        CacheLookup::Follower(_) | CacheLookup::Deferred(_) => panic!("{room} is being computed"),
    }
}

fn follower<V: Clone>(cache: &RouteCache<V>, room: &str, generation: u64) -> FillWaiter<V> {
    let CacheLookup::Follower(waiter) = cache.lookup(&room.into(), generation, &worker(), Need::Cached)
    else {
        panic!("no worker computes {room}")
    };
    waiter
}

fn hit<V: Clone>(cache: &RouteCache<V>, room: &str, generation: u64) -> Option<V> {
    match cache.lookup(&room.into(), generation, &worker(), Need::Cached) {
        CacheLookup::Hit(value) => Some(value),
        CacheLookup::Leader(_) | CacheLookup::Follower(_) | CacheLookup::Deferred(_) => None,
    }
}

#[tokio::test]
async fn one_worker_computes_for_all() {
    let cache = lasting();
    let permit = leader(&cache, "r", 1);
    let waiters = [follower(&cache, "r", 1), follower(&cache, "r", 1)];
    assert_eq!(waiters[0].leader().to_string(), "push/7");
    permit.publish("value", 3, Freshness::untracked());
    for waiter in waiters {
        assert_eq!(waiter.wait().await, Some("value"));
    }
    assert_eq!(hit(&cache, "r", 1), Some("value"));
    assert_eq!(cache.size(), (1, 3));
}

#[test]
fn an_outdated_room_is_read_again_but_not_all_the_time() {
    let cache = cache(100, 1000, Duration::from_secs(100));
    leader(&cache, "r", 1).publish("value", 1, Freshness::untracked());
    cache.note_outdated(&"r".into());
    assert_eq!(hit(&cache, "r", 1), Some("value"), "it was just read");
    let earlier = Instant::now().checked_sub(Duration::from_secs(10)).expect("the machine is up for longer");
    cache.table.lock().cached.get_mut(&RoomId::from("r")).expect("cached").since = earlier;
    assert_eq!(hit(&cache, "r", 1), Some("value"));
    cache.note_outdated(&"r".into());
    assert_eq!(hit(&cache, "r", 1), None);
}

#[tokio::test]
async fn a_dropped_permit_wakes_the_waiters() {
    let cache = lasting::<&str>();
    let permit = leader(&cache, "r", 1);
    let waiter = follower(&cache, "r", 1);
    drop(permit);
    assert_eq!(waiter.wait().await, None);
    leader(&cache, "r", 1).publish("second", 1, Freshness::untracked());
    assert_eq!(hit(&cache, "r", 1), Some("second"));
}

#[test]
fn a_value_is_of_one_generation() {
    let cache = lasting();
    let old = leader(&cache, "r", 1);
    leader(&cache, "r", 2).publish("new", 1, Freshness::untracked());
    old.publish("old", 1, Freshness::untracked());
    assert_eq!(hit(&cache, "r", 2), Some("new"), "a straggler does not overwrite");
    assert_eq!(hit(&cache, "r", 1), None);
    assert_eq!(hit(&cache, "r", 3), None);
}

#[tokio::test]
async fn nothing_read_before_an_invalidation_is_cached() {
    let cache = lasting();
    leader(&cache, "r", 1).publish("first", 1, Freshness::untracked());
    cache.invalidate(&"r".into());
    assert_eq!(hit(&cache, "r", 1), None);

    let before = leader(&cache, "r", 1);
    let waiter = follower(&cache, "r", 1);
    cache.invalidate(&"r".into());
    let after = leader(&cache, "r", 1);
    before.publish("before", 1, Freshness::untracked());
    assert_eq!(waiter.wait().await, Some("before"), "earlier claims may get it");
    let late = follower(&cache, "r", 1);
    after.publish("after", 1, Freshness::untracked());
    assert_eq!(late.wait().await, Some("after"));
    assert_eq!(hit(&cache, "r", 1), Some("after"));
}

#[test]
fn old_values_are_not_found() {
    let cache = cache(100, 1000, Duration::ZERO);
    leader(&cache, "r", 1).publish("value", 1, Freshness::untracked());
    assert_eq!(hit(&cache, "r", 1), None);
    assert_eq!(cache.size(), (0, 0));
}

#[test]
fn rooms_and_connections_are_bounded() {
    let cache = cache(3, 100, Duration::from_secs(3600));
    for number in 0..10 {
        leader(&cache, &format!("r{number}"), 1).publish(number, 10, Freshness::untracked());
    }
    assert_eq!(cache.size(), (3, 30));
    assert_eq!((hit(&cache, "r6", 1), hit(&cache, "r9", 1)), (None, Some(9)), "the oldest go first");
    leader(&cache, "large", 1).publish(100, 95, Freshness::untracked());
    assert_eq!(cache.size(), (1, 95));
    leader(&cache, "too-large", 1).publish(101, 101, Freshness::untracked());
    assert_eq!((cache.size(), hit(&cache, "large", 1)), ((1, 95), Some(100)));
    leader(&cache, "large", 2).publish(102, 96, Freshness::untracked());
    assert_eq!(cache.size(), (1, 96), "a replaced value weighs no more");
    let table = cache.table.lock();
    assert_eq!((table.by_age.len(), table.in_flight.len()), (1, 0), "nothing is left behind");
}

/// Eight workers claim overlapping rooms in different orders; some are cancelled.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn workers_never_compute_a_room_twice_or_deadlock() {
    let cache = cache::<usize>(100, 1000, Duration::from_micros(200));
    let making: Arc<Vec<AtomicUsize>> = Arc::new((0..10).map(|_| AtomicUsize::new(0)).collect());
    let mut workers = JoinSet::new();
    for worker in 0..8 {
        workers.spawn(batches(worker, cache.clone(), making.clone()));
    }
    let all = async { while workers.join_next().await.transpose().expect("no worker panics").is_some() {} };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("no deadlock");
    assert!(cache.table.lock().in_flight.is_empty());
}

async fn batches(worker: usize, cache: RouteCache<usize>, making: Arc<Vec<AtomicUsize>>) {
    for batch in 0..300 {
        let mut wanted: Vec<usize> =
            (0..10).filter(|room| !(room + worker + batch).is_multiple_of(3)).collect();
        let offset = (worker * 3 + batch) % wanted.len();
        wanted.rotate_left(offset);
        while !wanted.is_empty() {
            wanted = one_round(&wanted, &cache, &making, (worker + batch).is_multiple_of(7)).await;
            tokio::task::yield_now().await;
        }
    }
}

/// Claims, computes, publishes, waits. Returns the rooms whose computation was cancelled.
async fn one_round(
    wanted: &[usize],
    cache: &RouteCache<usize>,
    making: &[AtomicUsize],
    gives_up: bool,
) -> Vec<usize> {
    let (mut permits, mut waiters, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for &room in wanted {
        match cache.lookup(&room.to_string().into(), 1, &worker(), Need::Cached) {
            CacheLookup::Hit(value) => assert_eq!(value, room),
            CacheLookup::Follower(waiter) => waiters.push((room, waiter)),
            CacheLookup::Deferred(_) => panic!("room {room} is small"),
            CacheLookup::Leader(permit) => {
                assert_eq!(making[room].fetch_add(1, Ordering::SeqCst), 0, "two workers compute room {room}");
                permits.push((room, permit));
            }
        }
    }
    tokio::task::yield_now().await;
    for (room, permit) in permits {
        making[room].fetch_sub(1, Ordering::SeqCst);
        if !gives_up {
            permit.publish(room, 1, Freshness::untracked());
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

fn tracked(lease: &Arc<Lease>, cost: Duration) -> Freshness {
    Freshness { term: Some(lease.term()), details_since: Instant::now(), complete: true, cost }
}

#[test]
fn a_tracked_room_counts_until_it_changes() {
    let cache = cache(100, 1_000, Duration::ZERO);
    let lease = Lease::in_process();
    leader(&cache, "r", 1).publish("first", 3, tracked(&lease, Duration::ZERO));
    assert_eq!(hit(&cache, "r", 1), Some("first"), "whatever `max_age` is");
    cache.room_changed(&"r".into());
    let reading = leader(&cache, "r", 1);
    cache.room_changed(&"r".into());
    reading.publish("voided", 3, tracked(&lease, Duration::ZERO));
    leader(&cache, "r", 1).publish("third", 3, tracked(&lease, Duration::ZERO));
    assert_eq!(hit(&cache, "r", 1), Some("third"));
    let term = tracked(&lease, Duration::ZERO);
    lease.end_term();
    cache.terms_ended(ForgetCause::Disconnected);
    assert_eq!(cache.size(), (0, 0));
    leader(&cache, "r", 1).publish("read under the ended term", 3, term);
    assert_eq!(hit(&cache, "r", 1), None);
}

#[test]
fn details_have_an_age_of_their_own() {
    let cache = lasting();
    let mut freshness = tracked(&Lease::in_process(), Duration::ZERO);
    freshness.details_since -= CacheConfig::default().presence_max_age;
    leader(&cache, "r", 1).publish("first", 3, freshness);
    assert_eq!(hit(&cache, "r", 1), None);
    let cache = self::cache(100, 1_000, Duration::ZERO);
    let incomplete = Freshness { complete: false, ..tracked(&Lease::in_process(), Duration::ZERO) };
    leader(&cache, "r", 1).publish("first", 3, incomplete);
    assert_eq!(hit(&cache, "r", 1), None, "what is missing may be there now");
}

#[test]
fn a_strict_claim_takes_only_what_is_covered() {
    let cache = lasting();
    let lease = Lease::new(Instant::now());
    leader(&cache, "r", 1).publish("first", 3, tracked(&lease, Duration::ZERO));
    assert!(cache.depend_on_reports(&["s".into(), "r".into()]) && !cache.depend_on_reports(&["s".into()]));
    let start = Instant::now() + Duration::from_millis(1);
    let claim = |confirmed| cache.lookup(&"r".into(), 1, &worker(), Need::Since(start, confirmed));
    let CacheLookup::Leader(reading) = claim(true) else { panic!("nobody knows whether it has changed") };
    assert!(matches!(claim(true), CacheLookup::Follower(_)));
    assert!(matches!(claim(false), CacheLookup::Leader(_)), "what was begun before may have missed a change");
    drop(reading);
    lease.confirm(start);
    assert!(matches!(claim(false), CacheLookup::Hit("first")));
}

#[test]
fn a_large_room_that_keeps_changing_is_read_a_fifth_of_the_time() {
    let cache = cache(100, 10_000, Duration::ZERO);
    let (lease, cost) = (Lease::in_process(), Duration::from_secs(1));
    let reading = leader(&cache, "r", 1);
    cache.room_changed(&"r".into());
    // The first reading is of a room of unknown size.
    leader(&cache, "r", 1).publish("second", 2_000, tracked(&lease, cost));
    cache.room_changed(&"r".into());
    reading.publish("first", 2_000, tracked(&lease, cost));
    assert_eq!(hit(&cache, "r", 1), Some("second"), "outdated, but not as much as the first");
    let claim = |need| cache.lookup(&"r".into(), 1, &worker(), need);
    let CacheLookup::Deferred(pause) = claim(Need::Since(Instant::now(), true)) else {
        panic!("it is outdated")
    };
    assert!(pause > cost * 3 && pause <= cost * 4, "{pause:?}");
    let (_, age) = cache.peek(&"r".into(), 1).expect("it is cached");
    assert!(age.outdated && age.tracked);
    cache.table.lock().cached.get_mut(&RoomId::from("r")).expect("cached").due = Instant::now();
    let CacheLookup::Leader(reading) = claim(Need::Cached) else { panic!("it is due") };
    assert!(matches!(claim(Need::Cached), CacheLookup::Follower(_)));
    cache.room_changed(&"r".into());
    assert!(matches!(claim(Need::Cached), CacheLookup::Hit("second")), "one reading at a time");
    assert!(matches!(claim(Need::Since(Instant::now(), true)), CacheLookup::Deferred(_)));
    reading.publish("third", 2_000, tracked(&lease, Duration::ZERO));
    assert_eq!(hit(&cache, "r", 1), None, "it was read at no cost, and has changed");
}
