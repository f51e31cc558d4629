//! Reaches every limit of plugins on a live gateway: it costs one message, and is counted.

use serde_json::json;

use crate::support::comet::FakeComet;
use crate::support::gateway::{Plugin, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::repository;

#[tokio::test]
async fn limits_are_counted_per_version_and_isolated() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let topic = kafka().topic("limits", 1).await;
    let plugin = Plugin::new("p", repository("tests/guests/dist/unruly.wasm"))
        .set("deadline", quoted("300ms"))
        .set("on_error", quoted("drop"))
        .config(&json!({}));
    let gateway = gateway(&topic).redis(&redis).plugin(plugin).start().await;
    let key_too_long = format!("count {}", "k".repeat(600));
    // Exceeding the last three limits only drops the excess; the message does not fail.
    let failing = ["loop", "chatter", "eat", "gigabyte", "once-long"];
    let going_on = ["flood", "own-metrics", key_too_long.as_str()];
    let mut wanted = Vec::new();
    for (number, body) in failing.iter().chain(&going_on).enumerate() {
        let before = format!("before {number}");
        kafka().produce_room(&topic, "lobby", &before).await;
        kafka().produce_room(&topic, "lobby", body).await;
        wanted.push(before);
        // It reports the error of the state function.
        let after = if *body == key_too_long { "the key has 600 bytes; the limit is 512" } else { body };
        wanted.extend(going_on.contains(body).then(|| after.to_owned()));
    }
    gateway.wait_until_settled(&topic).await;

    let heard: Vec<String> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(heard, wanted);
    let status = gateway.get("/v1/plugins/p").await.json();
    let version = &status["active"]["hash"].as_str().expect("a hash")[..12];
    for (limit, at_least) in
        [("time", 2.0), ("memory", 1.0), ("output", 2.0), ("log", 1.0), ("metrics", 1.0), ("state", 1.0)]
    {
        let series =
            format!("halley_plugin_limits_total{{plugin=\"p\",version=\"{version}\",limit=\"{limit}\"}}");
        let hits = gateway.metric(&series).await;
        assert!(hits >= Some(at_least), "{series}: {hits:?}");
    }
}
