//! Outcomes of a message: everyone, some, or nobody was reached.

use crate::support::comet::FakeComet;
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;

#[tokio::test]
async fn outcomes_distinguish_all_some_and_none() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("full", "conn_1", "user_1", comet.address()).await;
    redis.join("half", "conn_1", "user_1", comet.address()).await;
    redis.join("half", "conn_2", "user_2", comet.address()).await;
    redis.join("away", "conn_2", "user_2", comet.address()).await;
    redis.offline("user_2").await;
    let topic = kafka().topic("outcomes", 1).await;
    let gateway = gateway(&topic).redis(&redis).set("offline", "default", quoted("drop")).start().await;
    let mut expected = [0.0; 3];
    let produced: [(&str, usize, usize); 4] =
        [("full", 1, 0), ("half", 2, 1), ("away", 3, 2), ("empty", 4, 2)];
    for (room, count, outcome) in produced {
        for _ in 0..count {
            kafka().produce_room(&topic, room, "hello").await;
        }
        expected[outcome] += count as f64;
    }
    // A key without a user, and a PUSH with one reachable key.
    kafka().produce_keys(&topic, None, &["nobody"], "hello").await;
    kafka().produce_keys(&topic, None, &["conn_1", "nobody"], "hello").await;
    expected[1] += 1.0;
    expected[2] += 1.0;
    gateway.wait_until_settled(&topic).await;
    let mut counted = Vec::new();
    for outcome in ["delivered", "partly-delivered", "nobody"] {
        let series = format!("halley_messages_total{{outcome=\"{outcome}\"}}");
        counted.push(gateway.metric(&series).await.unwrap_or_default());
    }
    assert_eq!(counted, expected, "delivered, partly delivered, nobody");
    assert_eq!(comet.count(), 1 + 2 + 1, "no call without recipients");
}
