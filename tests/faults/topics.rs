//! A topic that is deleted and created again while its records are in flight.

use std::time::Duration;

use super::world::{World, WorldBuilder};
use super::{Mode, seeded, some_time};
use crate::support::PATIENCE;
use crate::support::comet::{Behaviour, Serves};
use crate::support::eventually;
use crate::support::kafka::kafka;

in_each_mode!(a_topic_recreated_under_load_loses_nothing, serves => recreated(serves, 1));

/// Deletes the topic with records in flight and creates it again, and kills the gateway at a random
/// moment after that, this many times.
pub async fn recreated(mode: impl Into<Mode>, times: usize) {
    if !kafka().can_prove("a_topic_created_again_under_load") {
        return;
    }
    let mut random = seeded("recreated");
    let world: World = WorldBuilder::new("recreated", 4, 2).await.serving(mode).build().await;
    let settings = world.gateway().await;
    let mut gateway = settings.clone().start().await;
    for _ in 0..times {
        world.load_during(world.wait_for_work(100)).await;
        let slow = Behaviour::Delay(Duration::from_millis(300));
        world.comets.iter().for_each(|edge| edge.comet.behave(slow.clone()));
        world.load_during(world.wait_for_work(8)).await;
        let noted = world.recreate_topic(gateway.group()).await;
        world.comets.iter().for_each(|edge| edge.comet.behave(Behaviour::Ok));
        world
            .load_during(async {
                world.wait_for_work(20).await;
                tokio::time::sleep(some_time(&mut random, Duration::from_secs(3))).await;
                gateway.kill();
                world.note_end(&noted);
                world.note_interruption(gateway.group()).await;
            })
            .await;
        gateway = settings.clone().start().await;
    }
    // The last gateway notices without being killed. It may have noticed the last change at its start.
    let noticed_before = gateway.metric("halley_topics_recreated_total").await.unwrap_or(0.0);
    let noted = world.recreate_topic(gateway.group()).await;
    world.load_during(world.wait_for_work(50)).await;
    eventually("all partitions to be read from their start", PATIENCE, async || {
        let seen = gateway.metric("halley_topics_recreated_total").await;
        seen.filter(|partitions| *partitions > noticed_before)
    })
    .await;
    world.settle(&gateway).await;
    world.note_end(&noted);
    let report = world.report().await;
    // The order is not kept if the new topic is already longer than the old one when librdkafka notices
    // it: later records are delivered before the topic is read from its start.
    report.assert_nothing_lost();
    report.assert_repeats_explained();
    report.assert_no_dead_letters();
}
