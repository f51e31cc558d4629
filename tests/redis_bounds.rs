//! A Redis that sends too much: memory stays bounded, the operator sees why, and other messages are
//! not held up.

use crate::support::comet::FakeComet;
use crate::support::gateway::{gateway, quoted};
use crate::support::hostile_redis::HostileRedis;
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, resident_kib};

#[tokio::test]
async fn a_redis_that_sends_without_end_takes_no_memory() {
    for (name, head, said) in [
        ("endless-line", "+", "a line of more than"),
        ("endless-string", "$99999999999\r\n", "a string of 99999999999 bytes"),
        ("endless-array", "*999999999\r\n$5\r\n", "an array of 999999999 elements"),
    ] {
        let redis = HostileRedis::start(head).await;
        let topic = kafka().topic(name, 1).await;
        let running = gateway(&topic).set("redis", "url", quoted(redis.url())).start_unready().await;
        let before = resident_kib(running.pid());
        kafka().produce_room(&topic, "lobby", "waits").await;
        let refused = async || {
            let refused = running.metric("halley_redis_replies_refused_total").await;
            refused.is_some_and(|refused| refused >= 10.0).then_some(())
        };
        eventually("replies to be refused", PATIENCE, refused).await;
        let told = async || {
            let ready = running.get("/readyz").await;
            (ready.status == 503 && ready.body.contains(said)).then_some(())
        };
        eventually("/readyz to say so", PATIENCE, told).await;
        let grown = resident_kib(running.pid()).saturating_sub(before);
        assert!(grown < 48 * 1024, "{name}: {grown} KiB more");
        running.kill();
    }
}

#[tokio::test]
async fn huge_values_cost_a_room_only_their_members() {
    let (redis, comet) = (Redis::start().await, FakeComet::start().await);
    redis.join("lobby", "conn_1", "user_1", comet.address()).await;
    let huge = "x".repeat(8 << 20);
    for n in 0..10 {
        redis.join("huge", &format!("h{n}"), &format!("hu{n}"), &huge).await;
    }
    let topic = kafka().topic("huge-values", 1).await;
    let letters = format!("{topic}.dead-letter");
    kafka().create_topic(&letters, 1).await;
    let running = gateway(&topic).redis(&redis).set("redis", "max_reply", quoted("2MiB")).start().await;
    kafka().produce_room(&topic, "lobby", "before").await;
    running.wait_until_settled(&topic).await;
    let before = resident_kib(running.pid());
    kafka().produce_room(&topic, "huge", "for nobody").await;
    kafka().produce_room(&topic, "lobby", "after").await;
    running.wait_until_settled(&topic).await;
    let heard: Vec<_> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(heard, ["before", "after"]);
    let kept = kafka().read_all(&letters);
    assert_eq!(kept.len(), 0, "{kept:#?}");
    assert!(running.metric("halley_redis_replies_refused_total").await.is_some_and(|refused| refused >= 1.0));
    let grown = resident_kib(running.pid()).saturating_sub(before);
    assert!(grown < 48 * 1024, "{grown} KiB more, of 80 MiB");
}
