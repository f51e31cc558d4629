//! A Kafka broker and a Redis that crash and restart.

use std::time::Duration;

use super::world::{World, WorldBuilder};
use super::{Mode, seeded, some_time};
use crate::support::comet::Serves;
use crate::support::gateway::quoted;
use crate::support::kafka::Kafka;
use crate::support::{PATIENCE, eventually};

in_each_mode!(a_restarted_broker_loses_and_reorders_nothing, serves => broker(serves, 2));

/// Kills the broker under load and starts it again, this many times.
pub async fn broker(mode: impl Into<Mode>, times: usize) {
    let mut random = seeded("broker");
    let Some(kafka) = Kafka::own().await else { return };
    let plan = WorldBuilder::new("broker", 8, 3).await.serving(mode);
    let world = WorldBuilder { kafka: Some((kafka, None)), ..plan }.build().await;
    // Longer than a restart of the broker takes on a loaded machine: otherwise the partitions count
    // as lost, and uncommitted records are delivered again.
    let gateway = world.gateway().await.set("kafka", "session_timeout", quoted("3m")).start().await;
    world
        .load_during(async {
            for _ in 0..times {
                world.wait_for_work(200).await;
                world.broker().stop().await;
                tokio::time::sleep(some_time(&mut random, Duration::from_secs(3))).await;
                world.broker().restart().await;
            }
            world.wait_for_work(200).await;
        })
        .await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
}

in_each_mode!(a_restarted_redis_loses_and_reorders_nothing, serves => redis(serves, 3));

/// Kills Redis under load and restarts it with its data, this many times.
pub async fn redis(serves: Serves, times: usize) {
    let mut random = seeded("redis");
    let world = World::serving(serves, "redis", 8, 3).await;
    if !world.redis.lock().await.can_stop("a_redis_that_dies_and_comes_back") {
        return;
    }
    let gateway = world.gateway().await.start().await;
    world
        .load_during(async {
            for _ in 0..times {
                world.wait_for_work(200).await;
                world.redis.lock().await.stop();
                eventually("/readyz to name Redis", PATIENCE, async || {
                    let answer = gateway.get("/readyz").await;
                    (answer.status == 503 && answer.body.contains("redis")).then_some(())
                })
                .await;
                tokio::time::sleep(some_time(&mut random, Duration::from_secs(2))).await;
                world.redis.lock().await.restart().await;
                gateway.wait_until_ready().await;
            }
            world.wait_for_work(200).await;
        })
        .await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
    assert_eq!(report.kept, 0, "nobody was away: {report}");
}
