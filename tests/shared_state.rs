//! State that policies share through Redis: two gateways, a swap, a restart of Redis.

use std::path::PathBuf;

use serde_json::json;

use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, Plugin, gateway, quoted};
use crate::support::history::{History, SentMessage, body, receipts};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually};

/// The guest that counts under the key in a body, and returns the count.
fn counting() -> Plugin {
    let guest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/guests/dist/unruly.wasm");
    Plugin::new("counting", guest).set("state", quoted("shared")).set("deadline", quoted("300ms"))
}

async fn room(redis: &Redis) -> FakeComet {
    let comet = FakeComet::start().await;
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    comet
}

/// A topic with one partition, and a gateway that counts.
async fn settings(name: &str, redis: &Redis) -> (String, Gateway) {
    let topic = kafka().topic(name, 1).await;
    let settings = gateway(&topic).redis(redis);
    (topic, settings)
}

fn heard(comet: &FakeComet) -> Vec<String> {
    comet.deliveries().into_iter().map(|(_, _, body)| body).collect()
}

#[tokio::test]
async fn shared_state_is_seen_by_all_gateways_and_survives_swaps() {
    let redis = Redis::start().await;
    let comet = room(&redis).await;
    let (one, one_settings) = settings("sharing-one", &redis).await;
    let (other, other_settings) = settings("sharing-other", &redis).await;
    let first = one_settings.clone().plugin(counting()).start().await;
    let second = other_settings.clone().plugin(counting()).start().await;
    for _ in 0..3 {
        kafka().produce_room(&one, "lobby", "count k").await;
    }
    first.wait_until_settled(&one).await;
    kafka().produce_room(&other, "lobby", "count k").await;
    second.wait_until_settled(&other).await;
    assert_eq!(heard(&comet), ["1", "2", "3", "4"], "within a batch, and of another gateway");
    assert_eq!(redis.keys("halley:state:*").await, ["halley:state:counting:k"]);
    let mut ttl = redis::cmd("PTTL");
    ttl.arg("halley:state:counting:k");
    let ttl: i64 = redis.run(ttl).await;
    assert!((1..=7 * 24 * 3_600_000).contains(&ttl), "{ttl}");

    let before = first.get("/v1/plugins").await.json()["generation"].as_u64();
    first.configure(&one_settings.plugin(counting().config(&json!({ "suffix": "x" }))));
    let swapped =
        async || (first.get("/v1/plugins").await.json()["generation"].as_u64() > before).then_some(());
    eventually("a swap", PATIENCE, swapped).await;
    kafka().produce_room(&one, "lobby", "count k").await;
    first.wait_until_settled(&one).await;
    assert_eq!(heard(&comet).last().map(String::as_str), Some("5"));
}

#[tokio::test]
async fn a_plugin_s_shared_state_is_limited() {
    let redis = Redis::start().await;
    let comet = room(&redis).await;
    let (topic, settings) = settings("sharing-total", &redis).await;
    let bounded = counting().set("max_shared_state", quoted("400B"));
    let gateway = settings.plugin(bounded).start().await;
    for key in ["a", "b", "c", "d", "a"] {
        kafka().produce_room(&topic, "lobby", &format!("count {key}")).await;
    }
    gateway.wait_until_settled(&topic).await;
    let heard = heard(&comet);
    assert_eq!(
        (&heard[..3], heard[4].as_str()),
        (&["1".to_owned(), "1".to_owned(), "1".to_owned()][..], "2")
    );
    assert!(heard[3].contains("max_shared_state"), "{heard:?}");
    assert_eq!(redis.keys("halley:state:*").await.len(), 3);
}

#[tokio::test]
async fn without_redis_state_is_shared_by_the_workers() {
    let comet = FakeComet::start().await;
    let topic = kafka().topic("sharing-memory", 1).await;
    let settings = gateway(&topic).set("routing", "rooms", quoted("every-comet")).node(&comet);
    let gateway = settings.plugin(counting()).start().await;
    for _ in 0..3 {
        kafka().produce_room(&topic, "lobby", "count k").await;
    }
    gateway.wait_until_settled(&topic).await;
    assert_eq!(heard(&comet), ["1", "2", "3"]);
}

#[tokio::test]
async fn a_redis_that_restarts_under_load_loses_and_reorders_nothing() {
    let mut redis = Redis::start_keeping().await;
    if !redis.can_stop("a_redis_that_restarts_under_load_loses_and_reorders_nothing") {
        return;
    }
    let comet = room(&redis).await;
    let (topic, settings) = settings("sharing-restarts", &redis).await;
    let gateway = settings.plugin(counting()).start().await;
    let mut ids = Vec::new();
    for number in 0..300 {
        if number % 100 == 50 {
            redis.stop();
        }
        if number % 100 == 80 {
            redis.restart().await;
        }
        ids.push(kafka().produce_room(&topic, "lobby", "count load").await);
    }
    gateway.wait_until_settled(&topic).await;
    // Bodies are counts: each is one more than the last, so no write was lost or repeated.
    let counts: Vec<_> = (1..=300).map(|count: u64| count.to_string()).collect();
    assert_eq!(heard(&comet), counts);
    let rooms =
        [("lobby".to_owned(), [(comet.address().to_string(), vec!["conn_1".to_owned()])].into())].into();
    let numbered = ids.into_iter().enumerate();
    let sent = numbered.map(|(number, id)| SentMessage::new("lobby", number as u64 + 1, id)).collect();
    let mut calls = comet.calls();
    for call in &mut calls {
        if let Some(packet) = &mut call.proto {
            let count = String::from_utf8_lossy(&packet.body).parse().expect("a count");
            packet.body = body("lobby", count).into();
        }
    }
    let received = receipts(comet.address().as_ref(), &calls);
    let report = History { rooms, sent, received, ..History::default() }.check();
    report.assert_nothing_lost_or_reordered();
}

#[tokio::test]
async fn a_stalling_policy_with_shared_state_is_one_stall() {
    let redis = Redis::start().await;
    let comet = room(&redis).await;
    let (topic, settings) = settings("sharing-stalls", &redis).await;
    let dist = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    let quota = json!({ "messages": 1000, "minutes": 10, "spare": [] });
    let quota = Plugin::new("quota", dist("plugins/dist/room_quota.wasm"))
        .set("state", quoted("shared"))
        .set("deadline", quoted("5s"))
        .config(&quota);
    let unruly =
        Plugin::new("unruly", dist("tests/guests/dist/unruly.wasm")).set("deadline", quoted("300ms"));
    let stalls = unruly.clone().set("on_error", quoted("stall"));
    let gateway = settings.clone().plugin(quota.clone()).plugin(stalls).start().await;
    for body in ["trap", "hello"] {
        kafka().produce_room(&topic, "lobby", body).await;
    }
    let told = eventually("readiness to name the stall", PATIENCE, async || {
        let answer = gateway.get("/readyz").await;
        (answer.status == 503 && answer.body.contains("plugin unruly@")).then_some(answer.body)
    });
    let told = told.await;
    assert!(told.contains(&format!("{topic}/0 at offset 0")) && told.contains("trapped"), "{told}");
    let errors = async || {
        let text = gateway.get("/metrics").await.body;
        let line = text.lines().find(|line| line.starts_with("halley_plugin_errors_total{plugin=\"unruly\""));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).unwrap_or_default()
    };
    let many = errors().await + 20.0;
    eventually("it to be asked again many times", PATIENCE, async || (errors().await > many).then_some(()))
        .await;
    let said = |part: &str| {
        let lines = gateway.log_lines();
        lines.iter().filter(|line| line["message"].as_str().is_some_and(|text| text.contains(part))).count()
    };
    assert_eq!(said("recovered"), 0, "nothing has recovered meanwhile");
    assert!(said("holding records") <= 6, "a line now and then: {gateway:?}");

    gateway.configure(&settings.plugin(quota).plugin(unruly.set("on_error", quoted("drop"))));
    gateway.wait_until_settled(&topic).await;
    gateway.wait_until_ready().await;
    assert_eq!(heard(&comet), ["hello"]);
}
