//! Gateways that are added and taken away under load: how long a partition stands still meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::gateways::{dynamic, wait_for_share};
use super::world::{World, WorldBuilder};
use super::{Mode, some_time};
use crate::support::comet::Serves;
use crate::support::gateway::RunningGateway;
use crate::support::print_uncaptured;

/// How many gateways there are at first and in the end.
const FEWEST: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_out_and_in_loses_and_repeats_nothing() {
    out_and_in(Serves::Calls, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_where_brokers_assign_loses_and_repeats_nothing() {
    out_and_in(Mode::KIP_848, 4).await;
}

/// From two gateways to this many and back, one after the other; prints the longest time in which nothing of
/// a partition arrived.
pub async fn out_and_in(mode: impl Into<Mode>, most: usize) {
    let mode = mode.into();
    let mut random = super::seeded("scaling");
    let plan = WorldBuilder::new("scaling", 4 * most, 2).await.serving(mode);
    let mut world = WorldBuilder { partitions: most as i32, ..plan }.build().await;
    world.pause = Duration::from_millis(20);
    let settings = dynamic(&world).await;
    let mut gateways = Vec::new();
    for _ in 0..FEWEST {
        gateways.push(settings.clone().start().await);
    }
    for gateway in &gateways {
        wait_for_share(gateway).await;
    }
    let times = world
        .load_during(async {
            world.wait_for_work(300).await;
            let mut times = vec![Instant::now()];
            for _ in FEWEST..most {
                let gateway = settings.clone().start().await;
                wait_for_share(&gateway).await;
                gateways.push(gateway);
                world.wait_for_work(100).await;
            }
            times.push(Instant::now());
            while gateways.len() > FEWEST {
                let leaves = gateways.swap_remove(random.usize(..gateways.len()));
                tokio::time::sleep(some_time(&mut random, Duration::from_millis(200))).await;
                let status = leaves.sigterm().await;
                assert!(status.success(), "{status:?}; {leaves:?}");
                world.note_log(&leaves);
                world.wait_for_work(100).await;
            }
            times.push(Instant::now());
            times
        })
        .await;
    settle(&world, &gateways).await;
    for (step, between) in ["out", "in"].into_iter().zip(times.windows(2)) {
        let (gap, partition) = longest_gap(&world, between[0], between[1]);
        print_uncaptured(format_args!(
            "scaling {step}, {FEWEST} and {most} gateways, {:?}: the longest gap of a partition is {gap:.0?} (partition {partition}) in {:.1?}",
            mode.protocol,
            between[1] - between[0],
        ));
    }
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
}

async fn settle(world: &World, gateways: &[RunningGateway]) {
    for gateway in gateways {
        world.settle(gateway).await;
    }
}

/// The longest time between two calls for messages of the same partition, and which.
fn longest_gap(world: &World, from: Instant, until: Instant) -> (Duration, i32) {
    let mut arrived: BTreeMap<i32, Vec<Instant>> = BTreeMap::new();
    for call in world.comets.iter().flat_map(|edge| edge.comet.calls()) {
        for id in &call.messages {
            let partition = id.rsplit('/').nth(2).and_then(|part| part.parse().ok());
            arrived.entry(partition.expect("an id of the gateway's")).or_default().push(call.at);
        }
    }
    let gap = |(partition, mut times): (i32, Vec<Instant>)| {
        times.retain(|at| (from..=until).contains(at));
        times.extend([from, until]);
        times.sort_unstable();
        times.windows(2).map(|pair| (pair[1] - pair[0], partition)).max()
    };
    arrived.into_iter().filter_map(gap).max().expect("something arrived")
}
