//! Redis topologies and failures: a server that is demoted to a replica, a primary that is replaced
//! under load, and a cluster that moves slots under load. Nothing is lost, and every room keeps its
//! order.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::support::comet::{FakeComet, To};
use crate::support::gateway::{Gateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::redis_cluster::RedisCluster;
use crate::support::redis_sentinel::RedisSentinel;
use crate::support::{PATIENCE, eventually, folder};

const ROOMS: usize = 6;

/// Settings that read rooms from this Redis nearly every time: almost nothing is cached.
fn reading(topic: &str, url: &str) -> Gateway {
    gateway(topic).set("redis", "url", quoted(url)).set("routing.cache", "exact", quoted("off")).set(
        "routing.cache",
        "max_age",
        quoted("10ms"),
    )
}

/// For each room one connected user, and one who is absent.
fn members(room: usize, comet: &FakeComet) -> [(String, String, String); 2] {
    let member =
        |who: &str| (format!("conn-{who}-{room}"), format!("{who}-{room}"), comet.address().to_string());
    [member("here"), member("away")]
}

/// Sends messages `from..to`, each to every room.
async fn send(topic: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        for room in 0..ROOMS {
            kafka().produce_room(topic, &format!("room-{room}"), number.to_string()).await;
        }
    }
}

/// What each room received, in order, without immediate repeats.
fn received(comet: &FakeComet) -> BTreeMap<String, Vec<String>> {
    let mut rooms: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (to, _, body) in comet.deliveries() {
        let To::Room(room) = to else { panic!("a room's message went to {to:?}") };
        let bodies = rooms.entry(room).or_default();
        if bodies.last() != Some(&body) {
            bodies.push(body);
        }
    }
    rooms
}

fn expected(messages: usize) -> BTreeMap<String, Vec<String>> {
    let bodies: Vec<_> = (0..messages).map(|number| number.to_string()).collect();
    (0..ROOMS).map(|room| (format!("room-{room}"), bodies.clone())).collect()
}

#[tokio::test]
async fn writes_refused_by_a_replica_wait_for_a_primary() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    if !redis.can_stop("what_a_replica_refuses_waits_for_a_primary") {
        return;
    }
    redis.join_many("room-0", &members(0, &comet)).await;
    redis.offline("away-0").await;
    let topic = kafka().topic("replica", 1).await;
    let gateway = reading(&topic, redis.url()).start().await;

    let replica_of = |host: &str, port: &str| redis::cmd("REPLICAOF").arg(host).arg(port).take();
    // A replica without a primary keeps its data.
    redis.run::<()>(replica_of("127.0.0.1", "1")).await;
    kafka().produce_room(&topic, "room-0", "patience").await;
    let unready = async || {
        let answer = gateway.get("/readyz").await;
        (answer.status == 503 && answer.body.contains("READONLY")).then_some(())
    };
    eventually("/readyz to say READONLY", PATIENCE, unready).await;

    redis.run::<()>(replica_of("NO", "ONE")).await;
    gateway.wait_until_settled(&topic).await;
    gateway.wait_until_ready().await;
    let kept = inbox(redis.stream("halley:inbox:away-0").await);
    assert_eq!(kept, BTreeSet::from(["patience".to_owned()]));
    assert_eq!(received(&comet)["room-0"], ["patience"]);
}

#[tokio::test]
async fn a_primary_is_replaced_under_load_and_every_message_arrives_in_order() {
    let (mut redis, comet) = (RedisSentinel::start().await, FakeComet::start().await);
    for room in 0..ROOMS {
        redis.join_many(&format!("room-{room}"), &members(room, &comet)).await;
        redis.offline(&format!("away-{room}")).await;
    }
    let topic = kafka().topic("sentinel", 4).await;
    let gateway = reading(&topic, &redis.url()).start().await;

    send(&topic, 0..40).await;
    comet.wait_for(ROOMS).await;
    let dead = redis.kill_primary().await;
    send(&topic, 40..80).await;
    let named_or_over = async || {
        let answer = gateway.get("/readyz").await;
        let named = answer.status == 503 && answer.body.contains("redis+sentinel://");
        // On a busy machine the failover may be over before the gateway notices.
        (named || redis.primary().await != dead).then_some(())
    };
    eventually("/readyz to name Redis", PATIENCE, named_or_over).await;
    // Nobody restarts the dead one: the other becomes the primary, and delivery continues.
    gateway.wait_until_ready().await;
    send(&topic, 80..120).await;
    gateway.wait_until_settled(&topic).await;

    assert_eq!(received(&comet), expected(120));
    assert_eq!(redis.primary().await, 1 - dead);
    for room in 0..ROOMS {
        // The new primary keeps everything sent after the failover.
        let kept = inbox(redis.stream(&format!("halley:inbox:away-{room}")).await);
        assert!((80..120).all(|number| kept.contains(&number.to_string())), "{kept:?}");
    }
    let letters = gateway.metric("halley_dead_letters_total").await.unwrap_or_default();
    assert_eq!(letters, 0.0, "nothing was given up");
}

#[tokio::test]
async fn a_cluster_s_primary_dies_under_load_and_every_message_arrives_in_order() {
    let (mut redis, comet) = (RedisCluster::start_with_replicas().await, FakeComet::start().await);
    for room in 0..ROOMS {
        redis.join_many(&format!("room-{room}"), &members(room, &comet)).await;
    }
    let topic = kafka().topic("cluster-failover", 4).await;
    let gateway = reading(&topic, &redis.url()).start().await;

    send(&topic, 0..40).await;
    comet.wait_for(ROOMS).await;
    let key = "room:connections:room-0";
    let dead = redis.kill_owner(key).await;
    send(&topic, 40..80).await;
    gateway.wait_until_settled(&topic).await;
    gateway.wait_until_ready().await;

    assert_eq!(received(&comet), expected(80));
    assert_ne!(redis.owner(key).await, dead);
}

#[tokio::test]
async fn slots_move_under_load_and_every_message_arrives_in_order() {
    let (redis, comet) = (RedisCluster::start().await, FakeComet::start().await);
    let mut slots = BTreeSet::new();
    for room in 0..ROOMS {
        redis.join_many(&format!("room-{room}"), &members(room, &comet)).await;
        redis.offline(&format!("away-{room}")).await;
        for key in [
            format!("room:connections:room-{room}"),
            format!("connection:info:conn-here-{room}"),
            format!("user:online:here-{room}"),
            format!("user:online:away-{room}"),
            format!("halley:inbox:away-{room}"),
        ] {
            slots.insert((redis.slot(&key).await, redis.owner(&key).await));
        }
    }
    let topic = kafka().topic("cluster", 4).await;
    let gateway = reading(&topic, &redis.url()).start().await;

    let moving = async {
        for (slot, from) in &slots {
            let to = (from + 1) % 3;
            redis.begin_move(*slot, *from, to).await;
            // Messages arrive while the slot is half moved.
            comet.wait_for(comet.calls().len() + 5).await;
            while redis.move_keys(*slot, *from, to, 1).await > 0 {}
            redis.end_move(*slot, *from, to).await;
        }
    };
    let messages = 150;
    tokio::join!(send(&topic, 0..messages), moving);
    gateway.wait_until_settled(&topic).await;

    assert_eq!(received(&comet), expected(messages));
    for room in 0..ROOMS {
        let kept = inbox(redis.stream(&format!("halley:inbox:away-{room}")).await);
        let all: BTreeSet<_> = (0..messages).map(|number| number.to_string()).collect();
        assert_eq!(kept, all, "the inbox of away-{room}");
    }
    for (slot, from) in slots {
        let owner = redis.owner_of(slot).await;
        assert_eq!(owner, Some((from + 1) % 3), "slot {slot} has moved");
    }
}

/// The bodies in an inbox. Messages are stored concurrently, so it has no defined order.
fn inbox(entries: Vec<Vec<(String, Vec<u8>)>>) -> BTreeSet<String> {
    let body = |entry: Vec<(String, Vec<u8>)>| entry.into_iter().find(|(name, _)| name == "body");
    let bodies = entries.into_iter().filter_map(body);
    bodies.map(|(_, body)| String::from_utf8_lossy(&body).into_owned()).collect()
}

#[tokio::test]
async fn check_connects_to_each_topology_and_reports_the_wrong_one() {
    let (sentinels, cluster) = (RedisSentinel::start().await, RedisCluster::start().await);
    let node = cluster.nodes()[0].address();
    let topic = kafka().topic("connect", 1).await;
    for made in ["dead-letter", "offline"] {
        kafka().create_topic(&format!("{topic}.{made}"), 1).await;
    }
    for (url, status, said) in [
        (sentinels.url(), 0, "rooms are read with SORT_RO"),
        (cluster.url(), 0, "rooms are read with SSCAN + HMGET"),
        (sentinels.url_of("mian"), 1, "knows no `mian`"),
        (format!("redis+sentinel://{node}/main"), 1, "check the sentinels"),
        (format!("redis+cluster://{}", sentinels.servers()[0].address()), 1, "this is not a cluster"),
    ] {
        let folder = folder("check");
        let file = folder.path().join("halley.toml");
        std::fs::write(&file, reading(&topic, &url).toml()).expect("written");
        let mut check = Command::new(env!("CARGO_BIN_EXE_halley"));
        let output = check.args(["check", "--connect", "--config"]).arg(&file).output().expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(output.status.code(), Some(status), "{url}: {text}");
        assert!(text.contains(said), "{url}: {text}");
    }
}
