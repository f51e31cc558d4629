//! A bad network between the gateway and its comets, Redis and Kafka: late, slow, mute,
//! one-way, refusing, and cut in the middle of a frame.

use std::time::Duration;

use super::world::{World, WorldBuilder};
use super::{Mode, seeded};
use crate::support::comet::Serves;
use crate::support::gateway::quoted;
use crate::support::kafka::Kafka;
use crate::support::proxy::{Fault, Proxy};

/// How long each fault lasts: longer than a call's deadline, shorter than a session.
const LASTS: Duration = Duration::from_millis(2500);

/// One of each kind, in which little or nothing passes.
pub const FAULTS: [Fault; 6] = [
    Fault::Latency { at_least: Duration::from_millis(20), at_most: Duration::from_millis(300) },
    Fault::Bandwidth { bytes_per_second: 500 },
    Fault::BlackHole,
    Fault::HalfOpen,
    Fault::Refuse,
    Fault::CutMidFrame,
];

in_each_mode!(a_bad_network_to_a_comet_loses_and_reorders_nothing, serves => to_a_comet(serves));

async fn to_a_comet(serves: Serves) {
    let seed = seeded("network before a comet").u64(..);
    let world =
        WorldBuilder { network: Some(seed), ..WorldBuilder::new("net-comet", 8, 3).await.serving(serves) }
            .build()
            .await;
    let gateway = world.gateway().await.start().await;
    world.load_during(weather(&world, world.comets[0].proxy())).await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_dead_letters();
}

in_each_mode!(a_bad_network_to_redis_loses_and_reorders_nothing, serves => to_redis(serves));

async fn to_redis(serves: Serves) {
    let seed = seeded("network before Redis").u64(..);
    let world =
        WorldBuilder { network: Some(seed), ..WorldBuilder::new("net-redis", 8, 3).await.serving(serves) }
            .build()
            .await;
    let gateway = world.gateway().await.start().await;
    world.load_during(weather(&world, world.redis_proxy.as_ref().expect("planned"))).await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
    assert_eq!(report.kept, 0, "nobody was away: {report}");
}

in_each_mode!(a_bad_network_to_kafka_loses_and_reorders_nothing, serves => to_kafka(serves));

/// Each kind of bad network between the gateway and Kafka.
pub async fn to_kafka(mode: impl Into<Mode>) {
    let seed = seeded("network before Kafka").u64(..);
    let Some((kafka, proxy)) = Kafka::own_behind_proxy(seed).await else { return };
    let plan = WorldBuilder::new("net-kafka", 8, 3).await.serving(mode);
    let world = WorldBuilder { kafka: Some((kafka, Some(proxy))), ..plan }.build().await;
    // Not a static member: if a join's answer is lost, Kafka treats the retry as another process of
    // that name, and fences the first one. The default session timeout is longer than the faults.
    let settings = world.gateway().await.set("kafka", "instance_id", quoted(""));
    let gateway = settings.set("kafka", "session_timeout", quoted("3m")).start().await;
    let proxy = world.kafka.as_ref().and_then(|(_, proxy)| proxy.as_ref()).expect("planned");
    world.load_during(weather(&world, proxy)).await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
}

/// Every fault once; work resumes after each.
async fn weather(world: &World, proxy: &Proxy) {
    world.wait_for_work(200).await;
    for fault in FAULTS {
        proxy.inject(fault);
        tokio::time::sleep(LASTS).await;
        proxy.heal();
        world.wait_for_work(200).await;
    }
}
