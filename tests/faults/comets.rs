//! Comets that crash, restart, hang, and answer with every status.

use std::time::Duration;

use tonic::Code;

use super::world::{World, WorldBuilder};
use super::{seeded, some_time};
use crate::support::comet::{Serves, StreamFault};
use crate::support::proxy::Fault;
use crate::support::{PATIENCE, eventually};

/// The maximum number of messages in flight to one comet, which may be duplicated when it dies: one of
/// each room in a call, or what a stream has out.
fn at_once(serves: Serves) -> usize {
    match serves {
        Serves::Calls => 8,
        Serves::Streams => 128,
    }
}

in_each_mode!(restarted_comets_get_everything_in_order, serves => dying(serves, 6));

/// Kills a comet under load and starts it again, this many times.
pub async fn dying(serves: Serves, times: usize) {
    let mut random = seeded("dying");
    let world = World::serving(serves, "dying", 8, 3).await;
    let gateway = world.gateway().await.start().await;
    world
        .load_during(async {
            for _ in 0..times {
                let comet = &world.comets[random.usize(..world.comets.len())].comet;
                comet.stop().await;
                // Some are down for longer than the breaker's window.
                tokio::time::sleep(some_time(&mut random, Duration::from_secs(4))).await;
                comet.restart().await;
                world.wait_for_work(200).await;
            }
        })
        .await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_repeats_at_most(at_once(serves) * times);
    report.assert_no_dead_letters();
}

in_each_mode!(every_status_is_retried_or_becomes_a_dead_letter, serves => statuses(serves));

async fn statuses(serves: Serves) {
    const EACH: usize = 3;
    let world = World::serving(serves, "statuses", 8, 3).await;
    let gateway = world.gateway().await.start().await;
    let comet = &world.comets[0].comet;
    world
        .load_during(async {
            for code in (1..=16).map(Code::from) {
                let before = refused(comet);
                comet.fail_next(EACH, code);
                eventually(format!("{EACH} times {code:?}"), PATIENCE, async || {
                    (refused(comet) == before + EACH).then_some(())
                })
                .await;
            }
        })
        .await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    let permanent = "InvalidArgument NotFound AlreadyExists PermissionDenied FailedPrecondition OutOfRange \
                     Unimplemented DataLoss Unauthenticated";
    assert_eq!(report.dead_lettered, EACH * permanent.split(' ').count(), "{report}");
}

fn refused(comet: &crate::support::comet::FakeComet) -> usize {
    comet.calls().iter().filter(|call| call.refused).count()
}

in_each_mode!(one_black_hole_among_eight_comets_blocks_no_other, serves => black_hole(serves));

async fn black_hole(serves: Serves) {
    let seed = seeded("black hole").u64(..);
    let plan = WorldBuilder::new("black-hole", 16, 8).await.serving(serves);
    // Every room is on two comets: waiting for one must not delay the other.
    let world =
        WorldBuilder { network: Some(seed), spread: |room, comet| (room + 8 - comet) % 8 < 2, ..plan };
    let world = world.build().await;
    let gateway = world.gateway().await.start().await;
    let hole = &world.comets[0];
    world
        .load_during(async {
            world.wait_for_work(500).await;
            hole.proxy().inject(Fault::BlackHole);
            let breaker = format!("halley_comet_breaker_open{{comet=\"{}\"}}", hole.address);
            eventually("the breaker to open", PATIENCE, async || {
                (gateway.metric(&breaker).await == Some(1.0)).then_some(())
            })
            .await;
            let before: Vec<_> = world.comets.iter().map(|edge| edge.comet.count()).collect();
            eventually("the others to get 300 calls each", PATIENCE, async || {
                let now = world.comets.iter().map(|edge| edge.comet.count());
                now.zip(&before).skip(1).all(|(now, before)| now >= before + 300).then_some(())
            })
            .await;
            assert_eq!(hole.comet.count(), before[0], "a black hole gets nothing");
            hole.proxy().heal();
            eventually("the comet to get messages again", PATIENCE, async || {
                (hole.comet.count() > before[0] + 50).then_some(())
            })
            .await;
        })
        .await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_dead_letters();
    report.assert_repeats_at_most(at_once(serves));
    assert!(report.kept > 0, "what the black hole could not take is kept for its users: {report}");
}

/// Some comets serve streams and others do not, and each changes its mind with every restart, as in a
/// rolling update.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_fleet_loses_and_reorders_nothing() {
    let world = World::serving(Serves::Streams, "mixed", 8, 3).await;
    world.comets[0].comet.serve_from_now(Serves::Calls);
    world.comets[0].comet.restart().await;
    let gateway = world.gateway().await.start().await;
    let mode = async |address: &str| {
        let comets = gateway.get("/v1/comets").await.json();
        let comets = comets["comets"].as_array().cloned().unwrap_or_default();
        let found = comets.into_iter().find(|comet| comet["address"] == address);
        found.and_then(|comet| comet["delivery"].as_str().map(str::to_owned))
    };
    let mut modes = [Serves::Calls, Serves::Streams, Serves::Streams];
    world
        .load_during(async {
            for at in [0, 1, 2, 1] {
                world.wait_for_work(200).await;
                for (edge, serves) in world.comets.iter().zip(modes) {
                    let wanted = if serves == Serves::Streams { "stream" } else { "unary" };
                    eventually(format!("{wanted} for {}", edge.address), PATIENCE, async || {
                        (mode(&edge.address).await.as_deref() == Some(wanted)).then_some(())
                    })
                    .await;
                }
                modes[at] = if modes[at] == Serves::Calls { Serves::Streams } else { Serves::Calls };
                world.comets[at].comet.serve_from_now(modes[at]);
                world.comets[at].comet.restart().await;
            }
            world.wait_for_work(200).await;
        })
        .await;
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_repeats_at_most(at_once(Serves::Streams) * 4);
    report.assert_no_dead_letters();
}

/// Every mistake that the protocol allows a comet to make, under load: calls take over, and then streams
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comets_that_break_the_protocol_lose_nothing() {
    let world = World::serving(Serves::Streams, "mistakes", 8, 3).await;
    let gateway = world.gateway().await.start().await;
    let edge = &world.comets[0];
    let streaming = format!("halley_comet_streaming{{comet=\"{}\"}}", edge.address);
    world
        .load_during(async {
            for fault in StreamFault::ALL {
                eventually(format!("a stream before {fault:?}"), PATIENCE, async || {
                    (gateway.metric(&streaming).await == Some(1.0)).then_some(())
                })
                .await;
                edge.comet.misbehave(fault);
                eventually(format!("{fault:?}"), PATIENCE, async || {
                    edge.comet.has_misbehaved().then_some(())
                })
                .await;
                world.wait_for_work(100).await;
            }
        })
        .await;
    world.settle(&gateway).await;
    let failed = async |reason: &str| {
        let series = "halley_comet_stream_failures_total";
        gateway.metric(&format!("{series}{{comet=\"{}\",reason=\"{reason}\"}}", edge.address)).await
    };
    assert_eq!((failed("protocol").await, failed("overdue").await), (Some(4.0), Some(1.0)), "{gateway:?}");
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
    assert_eq!(report.kept, 0, "nobody was away: {report}");
}
