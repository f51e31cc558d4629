//! Comets that crash, restart, hang, and answer with every status.

use std::time::Duration;

use tonic::Code;

use super::world::{World, WorldBuilder};
use super::{seeded, some_time};
use crate::support::proxy::Fault;
use crate::support::{PATIENCE, eventually};

/// The maximum number of calls in flight to one comet, which may be duplicated when it dies.
const LANES: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_comets_get_everything_in_order() {
    dying(6).await;
}

/// Kills a comet under load and starts it again, this many times.
pub async fn dying(times: usize) {
    let mut random = seeded("dying");
    let world = World::new("dying", 8, 3).await;
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
    report.assert_repeats_at_most(LANES * times);
    report.assert_no_dead_letters();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_status_is_retried_or_becomes_a_dead_letter() {
    const EACH: usize = 3;
    let world = World::new("statuses", 8, 3).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_black_hole_among_eight_comets_blocks_no_other() {
    let seed = seeded("black hole").u64(..);
    let plan = WorldBuilder::new("black-hole", 16, 8).await;
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
    report.assert_repeats_at_most(LANES);
    assert!(report.kept > 0, "what the black hole could not take is kept for its users: {report}");
}
