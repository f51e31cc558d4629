//! Exact routes: a connection that joins a room is reached by the next message, and one that has left is not
//! called again, while a cached room costs Redis nothing.

use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::Redis;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_sentinel::RedisSentinel;
use crate::support::{PATIENCE, eventually, print_uncaptured};

/// How long connections join and leave.
const CHURN: Duration = Duration::from_secs(6);
/// Rooms in which they do so, at the same time.
const ROOMS: usize = 4;

/// Comets in each room at which a connection joins and leaves, so that a call shows that it was reached.
const JOINERS: usize = 8;

/// Joins and leaves of one room, one after the other. Each is answered by Redis before the next message is
/// produced. Returns how many.
async fn join_and_leave(redis: &Redis, topic: &str, room: &str, pause: Duration) -> usize {
    let resident = FakeComet::start().await;
    let joiners = join_all((0..JOINERS).map(|_| FakeComet::start())).await;
    redis.join(room, &format!("{room}-resident"), "resident", resident.address()).await;
    let (until, mut rounds) = (Instant::now() + CHURN, 0);
    while Instant::now() < until {
        let id = |joiner: usize| format!("{room}-{joiner}-{rounds}");
        for (number, joiner) in joiners.iter().enumerate() {
            // Others come and go at the resident's comet.
            let other = format!("other-{}", id(number));
            redis.join(room, &other, "other", resident.address()).await;
            redis.join(room, &id(number), &format!("{room}-user-{number}"), joiner.address()).await;
            redis.leave(room, &other).await;
        }
        tokio::time::sleep(pause).await;
        kafka().produce_room(topic, room, format!("joined {rounds}")).await;
        for comet in joiners.iter().chain([&resident]) {
            comet.wait_for(1).await;
        }
        for number in 0..JOINERS {
            redis.leave(room, &id(number)).await;
        }
        tokio::time::sleep(pause).await;
        kafka().produce_room(topic, room, format!("left {rounds}")).await;
        resident.wait_for(2).await;
        for joiner in &joiners {
            let received: Vec<_> = joiner.deliveries().into_iter().map(|(_, _, body)| body).collect();
            assert_eq!(received, [format!("joined {rounds}")], "the message after it left is not for it");
        }
        joiners.iter().chain([&resident]).for_each(FakeComet::forget);
        rounds += 1;
    }
    rounds * JOINERS
}

/// `pause`: how long after a change the message is produced.
async fn everyone_who_joins_is_reached(exact: &str, pause: Duration) {
    let redis = Redis::start().await;
    let topic = kafka().topic(&format!("exact-{exact}"), ROOMS as i32).await;
    let settings = gateway(&topic).redis(&redis).set("routing.cache", "exact", quoted(exact));
    let gateway = settings.set("routing.cache", "max_age", quoted("1h")).start().await;
    let rooms: Vec<String> = (0..ROOMS).map(|room| format!("room-{room}")).collect();
    let joins = join_all(rooms.iter().map(|room| join_and_leave(&redis, &topic, room, pause)));
    let joins: usize = joins.await.into_iter().sum();
    print_uncaptured(format_args!("{exact}: {joins} joins were reached, as many leavers were not called"));
    assert!(joins >= ROOMS * JOINERS);
    gateway.wait_until_settled(&topic).await;
    let invalidations = gateway.metric("halley_route_cache_invalidations_total{cause=\"changed\"}").await;
    assert!(invalidations.unwrap_or_default() >= (joins / JOINERS) as f64);
    assert_eq!(gateway.metric("halley_redis_tracking_connections{state=\"active\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_connection_that_joins_is_reached_by_the_next_message() {
    // Redis' report and the message race through a process that is short of CPU here.
    everyone_who_joins_is_reached("push", Duration::from_millis(100)).await;
}

#[tokio::test]
async fn a_strict_gateway_reaches_every_connection_that_joins() {
    everyone_who_joins_is_reached("strict", Duration::ZERO).await;
}

async fn freshness(gateway: &RunningGateway, room: &str) -> String {
    let route = gateway.get(&format!("/v1/routes/{room}")).await.json();
    route["freshness"]["state"].as_str().unwrap_or_else(|| panic!("{route}")).to_owned()
}

/// How often rooms were read.
async fn readings(gateway: &RunningGateway) -> f64 {
    let series = "halley_redis_call_duration_seconds_count{operation=\"get_room_connections\"}";
    gateway.metric(series).await.unwrap_or_default()
}

#[tokio::test]
async fn a_cached_room_costs_no_round_trip_until_redis_is_flushed() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("no-round-trip", 1).await;
    // Without tracking, nothing would be cached.
    let settings = gateway(&topic).redis(&redis).set("routing.cache", "max_age", quoted("0s"));
    let gateway = settings.set("routing.cache", "presence_max_age", quoted("1h")).start().await;
    for number in 0..200 {
        kafka().produce_room(&topic, "lobby", number.to_string()).await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!((comet.count(), readings(&gateway).await), (200, 1.0));
    assert_eq!(freshness(&gateway, "lobby").await, "tracked");
    redis.run::<()>(redis::cmd("FLUSHALL").take()).await;
    kafka().produce_room(&topic, "lobby", "nobody").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(comet.count(), 200, "nobody is there any more");
    redis.join("lobby", "conn_2", "user_2", comet.address()).await;
    kafka().produce_room(&topic, "lobby", "somebody").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!((comet.count(), readings(&gateway).await), (201, 3.0));
}

#[tokio::test]
async fn while_redis_is_silent_cached_rooms_do_not_count() {
    let (redis, resident, joiner) =
        (Redis::start().await, FakeComet::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", resident.address()).await;
    let address = redis.url().trim_start_matches("redis://").to_owned();
    let proxy = Proxy::start(address, 7).await;
    let topic = kafka().topic("half-open", 1).await;
    let url = format!("redis://{}", proxy.address());
    let settings =
        gateway(&topic).set("redis", "url", quoted(&url)).set("redis", "scan_timeout", quoted("2s"));
    let gateway = settings.set("routing.cache", "max_age", quoted("1h")).start().await;
    kafka().produce_room(&topic, "lobby", "before").await;
    gateway.wait_until_settled(&topic).await;

    // Nothing arrives, and nothing says so: the connection stays open.
    proxy.inject(Fault::BlackHole);
    redis.join("lobby", "conn_2", "user_2", joiner.address()).await;
    eventually("the lease to end", PATIENCE, async || {
        (freshness(&gateway, "lobby").await == "unconfirmed").then_some(())
    })
    .await;
    kafka().produce_room(&topic, "lobby", "during").await;
    eventually("/readyz to name Redis", PATIENCE, async || {
        gateway.get("/readyz").await.body.contains("redis").then_some(())
    })
    .await;
    assert_eq!((resident.count(), joiner.count()), (1, 0), "the message is held");
    proxy.heal();
    gateway.wait_until_settled(&topic).await;
    assert_eq!((resident.count(), joiner.count()), (2, 1));

    // A connection that is cut is noticed at once.
    proxy.cut();
    redis.leave("lobby", "conn_2").await;
    eventually("the lost connection to be noticed", PATIENCE, async || {
        let cause = "halley_route_cache_invalidations_total{cause=\"disconnected\"}";
        gateway.metric(cause).await.filter(|count| *count >= 2.0)
    })
    .await;
    kafka().produce_room(&topic, "lobby", "after").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!((resident.count(), joiner.count()), (3, 1), "it has left");
}

#[tokio::test]
async fn without_permission_max_age_counts_and_readiness_warns() {
    let (redis, resident, joiner) =
        (Redis::start().await, FakeComet::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", resident.address()).await;
    let allow = async |rules: &[&str]| {
        let mut command = redis::cmd("ACL");
        command.arg(&["SETUSER", "gateway", "on", ">secret", "~*", "+@all"]).arg(rules);
        redis.run::<()>(command).await;
    };
    allow(&["-client|tracking"]).await;
    let url = redis.url().replace("redis://", "redis://gateway:secret@");
    let topic = kafka().topic("untracked", 1).await;
    let gateway = gateway(&topic).set("redis", "url", quoted(&url)).start().await;
    let refused = "halley_redis_tracking_connections{state=\"refused\"}";
    assert_eq!(gateway.metric(refused).await, Some(1.0));
    let warned = async || gateway.get("/readyz").await.body.contains("+client|tracking +client|caching");
    assert!(warned().await, "{gateway:?}");
    assert_eq!(gateway.get("/readyz").await.status, 200);
    let lines = gateway.log_lines();
    let warnings = lines.iter().filter(|line| line.to_string().contains("does not report changes of rooms"));
    assert_eq!(warnings.count(), 1, "{gateway:?}");
    let mut check = Command::new(env!("CARGO_BIN_EXE_halley"));
    let check = check.args(["check", "--connect", "--config"]).arg(gateway.file()).output().expect("it runs");
    let said = String::from_utf8_lossy(&check.stderr);
    assert!(!check.status.success() && said.contains("+client|tracking"), "{check:?}");
    kafka().produce_room(&topic, "lobby", "first").await;
    gateway.wait_until_settled(&topic).await;
    redis.join("lobby", "conn_2", "user_2", joiner.address()).await;
    eventually("the joiner to be reached", PATIENCE, async || {
        kafka().produce_room(&topic, "lobby", "again").await;
        (joiner.count() > 0).then_some(())
    })
    .await;

    allow(&["+client|tracking"]).await;
    eventually("the warning to end", PATIENCE, async || (!warned().await).then_some(())).await;
    kafka().produce_room(&topic, "lobby", "exactly").await;
    eventually("the room to be tracked", PATIENCE, async || {
        kafka().produce_room(&topic, "lobby", "exactly").await;
        (freshness(&gateway, "lobby").await == "tracked").then_some(())
    })
    .await;
}

/// A gateway whose cached rooms would count for an hour.
async fn remembering(topic: &str, url: &str) -> RunningGateway {
    let settings: Gateway = gateway(topic).set("redis", "url", quoted(url));
    settings.set("routing.cache", "presence_max_age", quoted("1h")).start().await
}

#[tokio::test]
async fn another_primary_makes_rooms_forgotten() {
    let (mut redis, resident, joiner) =
        (RedisSentinel::start().await, FakeComet::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", resident.address()).await;
    let topic = kafka().topic("failover", 1).await;
    let gateway = remembering(&topic, &redis.url()).await;
    kafka().produce_room(&topic, "lobby", "before").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!(freshness(&gateway, "lobby").await, "tracked");
    let dead = redis.kill_primary().await;
    eventually("another primary", PATIENCE, async || (redis.primary().await != dead).then_some(())).await;
    // `join` would wait for a replica.
    for command in [
        redis::cmd("HSET")
            .arg("connection:info:conn_2")
            .arg("comet_id")
            .arg(joiner.address().as_str())
            .take(),
        redis::cmd("SADD").arg("room:connections:lobby").arg("conn_2").take(),
    ] {
        redis.run::<redis::Value>(command).await;
    }
    kafka().produce_room(&topic, "lobby", "after").await;
    gateway.wait_until_settled(&topic).await;
    assert_eq!((resident.count(), joiner.count()), (2, 1));
}

#[tokio::test]
async fn moved_slots_make_rooms_forgotten() {
    let (redis, resident, joiner) =
        (RedisCluster::start().await, FakeComet::start().await, FakeComet::start().await);
    let topic = kafka().topic("moved-slots", 1).await;
    let gateway = remembering(&topic, &redis.url()).await;
    let (key, mut from) = ("room:connections:lobby", redis.owner("room:connections:lobby").await);
    let slot = redis.slot(key).await;
    for round in 0..3 {
        redis.join("lobby", &format!("conn_{round}"), "user_1", resident.address()).await;
        kafka().produce_room(&topic, "lobby", format!("before {round}")).await;
        gateway.wait_until_settled(&topic).await;
        let to = (from + 1) % 3;
        redis.move_slot(slot, from, to).await;
        from = to;
        redis.join("lobby", &format!("joiner_{round}"), "user_2", joiner.address()).await;
        kafka().produce_room(&topic, "lobby", format!("after {round}")).await;
        gateway.wait_until_settled(&topic).await;
        assert_eq!((resident.count(), joiner.count()), (2 * (round + 1), 1), "round {round}");
        joiner.forget();
        redis.run::<i64>(redis::Cmd::srem(key, format!("joiner_{round}"))).await;
    }
}

/// A room of many members that changes all the time, with messages for it and for a small room.
pub async fn a_large_room_changes(members: usize, joins: usize, lasts: Duration) {
    let redis = Redis::start().await;
    let (large, small) = (FakeComet::start().await, FakeComet::start().await);
    let topic = kafka().topic("large-room", 2).await;
    let gateway = gateway(&topic).redis(&redis).set("routing.cache", "max_age", quoted("1h")).start().await;
    let member = |n: usize| (format!("member_{n}"), format!("user_{n}"), large.address().to_string());
    redis.join_many("large", &(0..members).map(member).collect::<Vec<_>>()).await;
    redis.join("small", "conn_small", "ann", small.address()).await;
    kafka().produce_room(&topic, "large", "first").await;
    gateway.wait_until_settled(&topic).await;

    let (since, stop) = (Instant::now(), CancellationToken::new());
    let before = time_of_readings(&gateway).await;
    let change = async {
        let mut next = members;
        while !stop.is_cancelled() {
            // A tenth of a second's joins, and as many leave.
            let new: Vec<_> = (next..next + joins / 10).map(member).collect();
            redis.join_many("large", &new).await;
            let mut leave = redis::cmd("SREM");
            leave.arg("room:connections:large").arg(new.iter().map(|(id, ..)| id).collect::<Vec<_>>());
            redis.run::<i64>(leave).await;
            next += new.len();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        next - members
    };
    let talk = async {
        let mut sent = 0;
        while since.elapsed() < lasts || deferred(&gateway).await == 0.0 {
            assert!(since.elapsed() < lasts + 2 * PATIENCE, "no reading was deferred");
            kafka().produce_room(&topic, "large", sent.to_string()).await;
            kafka().produce_room(&topic, "small", sent.to_string()).await;
            sent += 1;
            // The small room's messages arrive, whatever happens to the large one.
            small.wait_for(sent).await;
        }
        stop.cancel();
        sent
    };
    let (joined, sent) = tokio::join!(change, talk);
    let (spent, lasted) = (time_of_readings(&gateway).await - before, since.elapsed().as_secs_f64());
    print_uncaptured(format_args!(
        "a room of {members}, {joined} joins in {lasted:.1}s: read for {spent:.2}s, {} look-ups deferred",
        deferred(&gateway).await
    ));
    // Each reading is followed by a pause of four times its length; the last one may be under way.
    assert!(spent <= 0.2 * lasted + 0.5, "{spent} of {lasted}");
    gateway.wait_until_settled(&topic).await;
    assert_eq!((large.count(), small.count()), (sent + 1, sent), "every message, once");

    // Once it is calm, the next message reaches who joins.
    let joiner = FakeComet::start().await;
    redis.join("large", "joiner", "bob", joiner.address()).await;
    eventually("the joiner to be reached", PATIENCE, async || {
        kafka().produce_room(&topic, "large", "calm").await;
        gateway.wait_until_settled(&topic).await;
        (joiner.count() > 0).then_some(())
    })
    .await;
}

async fn deferred(gateway: &RunningGateway) -> f64 {
    gateway.metric("halley_route_cache_lookups_total{result=\"deferred\"}").await.unwrap_or_default()
}

/// For how long rooms were read, in seconds.
async fn time_of_readings(gateway: &RunningGateway) -> f64 {
    let mut seconds = 0.0;
    for operation in ["get_room_connections", "get_connections", "get_users_online"] {
        let series = format!("halley_redis_call_duration_seconds_sum{{operation=\"{operation}\"}}");
        seconds += gateway.metric(&series).await.unwrap_or_default();
    }
    seconds
}

#[tokio::test]
async fn a_large_room_that_changes_all_the_time_starves_no_other() {
    a_large_room_changes(4_000, 500, Duration::from_secs(3)).await;
}
