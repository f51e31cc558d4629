//! Comets that know nothing of inboxes: the gateway replays by itself when a user returns.

use halley::message::Audience;

use crate::support::comet::{FakeComet, To};
use crate::support::gateway::{Gateway, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, eventually_eq};

/// A gateway that replays on return.
async fn replaying(story: &str, redis: &Redis, sweep: &str) -> (String, Gateway) {
    let topic = kafka().topic(story, 2).await;
    let settings = gateway(&topic).redis(redis).set("offline", "replay", quoted("keyspace-events"));
    let settings = settings.set("offline", "replay_delay", quoted("100ms"));
    (topic, settings.set("offline", "replay_sweep_interval", quoted(sweep)))
}

async fn publish_writes(redis: &Redis) {
    redis.run::<()>(redis::cmd("CONFIG").arg(&["SET", "notify-keyspace-events", "K$"]).to_owned()).await;
}

async fn say(topic: &str, gateway: &RunningGateway, numbers: std::ops::Range<usize>) {
    for number in numbers {
        kafka().produce_room(topic, "lobby", number.to_string()).await;
    }
    gateway.wait_until_settled(topic).await;
}

/// What a comet pushed to this connection, each message with whether it was marked as replayed.
fn pushed(comet: &FakeComet, connection: &str) -> Vec<String> {
    let to = To::Keys(vec![connection.to_owned()]);
    let calls = comet.calls().into_iter().filter(|call| call.to == to && !call.refused);
    let body = |call: crate::support::comet::Call| {
        assert!(call.replayed, "{call:?}");
        String::from_utf8_lossy(&call.deliveries()[0].1).into_owned()
    };
    calls.map(body).collect()
}

async fn eventually_pushed(comet: &FakeComet, connection: &str, numbers: std::ops::Range<usize>) {
    let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
    eventually_eq("pushed messages", numbers, async || pushed(comet, connection)).await;
}

#[tokio::test]
async fn who_returns_gets_what_was_missed_in_order_once() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    publish_writes(&redis).await;
    redis.join("lobby", "old", "ann", comet.address()).await;
    redis.offline("ann").await;
    let (topic, settings) = replaying("on-return", &redis, "1h").await;
    // Both see every event.
    let gateways = [settings.clone().start().await, settings.clone().start().await];
    for gateway in &gateways {
        eventually_eq("subscribed", Some(1.0), async || gateway.metric("halley_replay_subscribed").await)
            .await;
    }
    say(&topic, &gateways[0], 0..150).await;
    assert_eq!(comet.count(), 0);
    redis.join("lobby", "new", "ann", comet.address()).await;
    eventually_pushed(&comet, "new", 0..150).await;

    // Renewals, and a connection without anything missed, change nothing.
    let events = async || {
        let [one, other] = &gateways;
        let name = "halley_replay_events_total";
        one.metric(name).await.unwrap_or_default() + other.metric(name).await.unwrap_or_default()
    };
    let before = events().await;
    for connection in ["new", "new", "newer"] {
        redis.online("ann", connection).await;
    }
    eventually("events", PATIENCE, async || (events().await >= before + 6.0).then_some(())).await;
    redis.offline("ann").await;
    say(&topic, &gateways[0], 150..155).await;
    redis.join("lobby", "newest", "ann", comet.address()).await;
    eventually_pushed(&comet, "newest", 150..155).await;
    assert_eq!(pushed(&comet, "new").len(), 150);
    assert_eq!(comet.count(), 155, "nothing twice");
    // A replay is counted when the position behind its last message is stored.
    let replayed = async || {
        let [one, other] = &gateways;
        let name = r#"halley_replay_on_return_total{outcome="replayed"}"#;
        one.metric(name).await.unwrap_or_default() + other.metric(name).await.unwrap_or_default()
    };
    eventually_eq("replays, each by one gateway", 2.0, replayed).await;
}

#[tokio::test]
async fn a_sweep_finds_who_returned_without_an_event() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "old", "ann", comet.address()).await;
    redis.offline("ann").await;
    let (topic, settings) = replaying("sweep", &redis, "1s").await;
    let settings = settings.set("offline", "always_store", "[7]");
    let gateway = settings.clone().start().await;
    let warned =
        async |part: &str| gateway.get("/readyz").await.json()["warnings"].to_string().contains(part);
    let remedy = "CONFIG SET notify-keyspace-events K$";
    eventually("a warning", PATIENCE, async || warned(remedy).await.then_some(())).await;
    let check = || {
        let mut check = std::process::Command::new(env!("CARGO_BIN_EXE_halley"));
        let output = check.args(["check", "--connect", "--config"]).arg(gateway.file()).output();
        let output = output.expect("it runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    assert!(check().contains(remedy), "{}", check());
    say(&topic, &gateway, 0..5).await;
    redis.join("lobby", "new", "ann", comet.address()).await;
    eventually_pushed(&comet, "new", 0..5).await;

    // What was delivered live is not replayed, although it is kept.
    kafka().produce(&topic, Audience::Room("lobby".into()), 7, "a call").await;
    gateway.wait_until_settled(&topic).await;
    let sweeps = async || gateway.metric("halley_replay_sweeps_total").await.unwrap_or_default();
    let before = sweeps().await;
    eventually("sweeps", PATIENCE, async || (sweeps().await >= before + 2.0).then_some(())).await;
    assert_eq!(redis.stream("halley:inbox:ann").await.len(), 6);
    assert_eq!(comet.count(), 6, "{:?}", comet.deliveries());

    publish_writes(&redis).await;
    eventually("no warning", PATIENCE, async || (!warned("keyspace").await).then_some(())).await;
    assert!(check().contains("redis publishes registrations of users"));
}

#[tokio::test]
async fn a_subscription_that_broke_is_made_good_by_a_sweep() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    publish_writes(&redis).await;
    redis.join("lobby", "old", "ann", comet.address()).await;
    redis.offline("ann").await;
    let (topic, settings) = replaying("broken-subscription", &redis, "1h").await;
    let gateway = settings.start().await;
    eventually_eq("subscribed", Some(1.0), async || gateway.metric("halley_replay_subscribed").await).await;
    say(&topic, &gateway, 0..3).await;
    // The event is published to nobody.
    redis.run::<i64>(redis::cmd("CLIENT").arg(&["KILL", "TYPE", "pubsub"]).to_owned()).await;
    redis.join("lobby", "new", "ann", comet.address()).await;
    eventually_pushed(&comet, "new", 0..3).await;
    assert_eq!(comet.count(), 3);
}
