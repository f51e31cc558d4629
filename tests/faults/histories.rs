//! Gateways that are killed between storing a message in the history of its room and settling it: the history
//! has every message once, in order, and nobody misses any.

use std::collections::BTreeSet;
use std::time::Duration;

use super::store::Store;
use super::{seeded, some_time};
use crate::support::comet::FakeComet;
use crate::support::gateway::{gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually};

/// Messages of one round.
const MESSAGES: usize = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_killed_between_history_and_settlement_loses_and_repeats_nothing() {
    let mut random = seeded("killed after storing in a history");
    let (server, comet) = (Redis::start().await, FakeComet::start().await);
    server.join("im_1", "conn_1", "ann", comet.address()).await;
    server.join("im_1", "conn_2", "bob", "127.0.0.1:1").await;
    server.offline("bob").await;
    let redis = Store::Restarted(server);
    let topic = kafka().topic("killed-history", 1).await;
    let settings = gateway(&topic)
        .set("redis", "url", quoted(&redis.url()))
        .set("history", "rooms", r#"["im_*"]"#)
        .set("kafka", "commit_interval", quoted("100ms"))
        .set("kafka", "session_timeout", quoted("6s"))
        // It has its partition again at once.
        .set("kafka", "instance_id", quoted("gateway-0"));
    let (mut sent, mut held) = (Vec::new(), 0);
    let mut running = settings.clone().start().await;
    let ids = async |key: &str| redis.ids(key).await;
    for round in 0..4 {
        // In every other round nothing can be settled: the comet does not answer.
        let is_held = round % 2 == 0;
        if is_held {
            comet.stop().await;
        }
        for number in 0..MESSAGES {
            sent.push(kafka().produce_room(&topic, "im_1", format!("{round}.{number}")).await);
        }
        let wanted = if is_held { sent.len() } else { sent.len() - MESSAGES + 1 };
        eventually("the history to have messages of this round", PATIENCE, async || {
            (ids("halley:history:im_1").await.len() >= wanted).then_some(())
        })
        .await;
        if is_held {
            let settled = kafka().committed(running.group(), &topic).await.values().copied().max();
            held += usize::from(settled.unwrap_or_default() < sent.len() as i64);
        } else {
            tokio::time::sleep(some_time(&mut random, Duration::from_millis(200))).await;
        }
        running.kill();
        if is_held {
            comet.restart().await;
        }
        running = settings.clone().start().await;
    }
    running.wait_until_settled(&topic).await;
    assert_eq!(held, 2, "killed before anything of the round was settled");
    assert_eq!(ids("halley:history:im_1").await, sent, "once each, in order");
    assert!(running.metric("halley_history_repeated_total").await.is_some());
    let missed: BTreeSet<String> = ids("halley:inbox:bob").await.into_iter().collect();
    assert_eq!(missed, sent.iter().cloned().collect(), "who was away finds all of it");
    let bodies: BTreeSet<String> = comet.deliveries().into_iter().map(|(_, _, body)| body).collect();
    assert_eq!(bodies.len(), sent.len(), "who was there got all of it");
}
