//! Gateways that crash, stop, freeze, join and leave.

use std::time::Duration;

use super::world::World;
use super::{GroupProtocol, Mode, seeded, some_time};
use crate::support::comet::Serves;
use crate::support::eventually;
use crate::support::gateway::{Gateway, RunningGateway, quoted};

/// The same stories where the brokers assign partitions (KIP-848); `make soak` runs more of them.
mod where_brokers_assign {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn killed_gateways_lose_and_reorder_nothing() {
        killed(Mode::KIP_848, 1).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn gateways_that_join_and_leave_repeat_nothing() {
        joining(Mode::KIP_848, 3).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stop_while_another_joins_repeats_nothing() {
        stopped_while_another_joins(Mode::KIP_848, 2).await;
    }
}

in_each_mode!(killed_at_random_it_loses_and_reorders_nothing, serves => killed(serves, 25));

/// Kills gateways under load, this many times.
pub async fn killed(mode: impl Into<Mode>, times: usize) {
    let mut random = seeded("killed");
    let mode = mode.into();
    let world = World::serving(mode, "killed", 8, 3).await;
    let settings = world.gateway().await;
    world
        .load_during(async {
            for _ in 0..times {
                let gateway = settings.clone().start_unready().await;
                if mode.protocol == GroupProtocol::Consumer {
                    // It has nothing before the session of the last one has ended.
                    wait_for_share(&gateway).await;
                }
                // Some are killed while they start, some under full load.
                tokio::time::sleep(some_time(&mut random, Duration::from_millis(1500))).await;
                gateway.kill();
                world.note_interruption(gateway.group()).await;
            }
        })
        .await;
    let last = settings.start().await;
    world.settle(&last).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_repeats_explained();
    report.assert_no_dead_letters();
}

in_each_mode!(repeated_stops_under_load_duplicate_nothing, serves => stopped(serves, 6));

/// Ends gateways with SIGTERM under load, this many times.
pub async fn stopped(mode: impl Into<Mode>, times: usize) {
    let mut random = seeded("stopped");
    let world = World::serving(mode, "stopped", 8, 3).await;
    let settings = world.gateway().await;
    world
        .load_during(async {
            for _ in 0..times {
                let gateway = settings.clone().start().await;
                tokio::time::sleep(some_time(&mut random, Duration::from_millis(800))).await;
                let status = gateway.sigterm().await;
                assert!(status.success(), "{status:?}; {gateway:?}");
                world.note_log(&gateway);
            }
        })
        .await;
    let last = settings.start().await;
    world.settle(&last).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
}

in_each_mode!(a_gateway_frozen_past_its_session_resumes_harmlessly, serves => frozen(serves, 2));

/// Two dynamic members; one is frozen for longer than the session timeout and resumes, this many
/// times.
pub async fn frozen(mode: impl Into<Mode>, times: usize) {
    let world = World::serving(mode, "frozen", 8, 3).await;
    let settings = dynamic(&world).await;
    let first = settings.clone().start().await;
    let second = settings.start().await;
    world
        .load_during(async {
            for _ in 0..times {
                wait_for_halves(&first, &second).await;
                world.wait_for_work(200).await;
                first.signal("STOP");
                let interruption = world.note_interruption(second.group()).await;
                // The other member owns its partitions now.
                wait_for_partitions(&second, 4).await;
                world.wait_for_work(200).await;
                first.signal("CONT");
                // It has noticed the lost session and rejoined: its old work is cancelled or done by then.
                wait_for_halves(&first, &second).await;
                world.wait_for_work(200).await;
                world.note_end(&interruption);
            }
        })
        .await;
    world.settle(&second).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_repeats_explained();
    report.assert_no_dead_letters();
}

in_each_mode!(gateways_that_join_and_leave_under_load_repeat_nothing, serves => joining(serves, 4));

/// One gateway stays; others join and leave gracefully, this many times.
pub async fn joining(mode: impl Into<Mode>, times: usize) {
    let mut random = seeded("joining");
    let world = World::serving(mode, "joining", 8, 3).await;
    let settings = dynamic(&world).await;
    let stays = settings.clone().start().await;
    world
        .load_during(async {
            for _ in 0..times {
                let guest = settings.clone().start().await;
                wait_for_share(&guest).await;
                world.wait_for_work(200).await;
                tokio::time::sleep(some_time(&mut random, Duration::from_millis(500))).await;
                let status = guest.sigterm().await;
                assert!(status.success(), "{status:?}; {guest:?}");
                world.note_log(&guest);
                wait_for_partitions(&stays, 4).await;
            }
        })
        .await;
    world.settle(&stays).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
}

in_each_mode!(a_stop_while_another_gateway_joins_repeats_nothing, serves => stopped_while_another_joins(serves, 2));

/// A gateway ends with SIGTERM in the middle of the rebalance by which another one joins, this many
/// times: Kafka accepts no commits then.
pub async fn stopped_while_another_joins(mode: impl Into<Mode>, times: usize) {
    let world = World::serving(mode, "relay", 8, 3).await;
    let settings = dynamic(&world).await;
    let mut serving = settings.clone().start().await;
    world
        .load_during(async {
            for _ in 0..times {
                let next = settings.clone().start_unready().await;
                serving.wait_for_log("partitions revoked").await;
                let status = serving.sigterm().await;
                assert!(status.success(), "{status:?}; {serving:?}");
                world.note_log(&serving);
                wait_for_partitions(&next, 4).await;
                world.wait_for_work(200).await;
                serving = next;
            }
        })
        .await;
    world.settle(&serving).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
}

/// Members that come and go have no instance name.
pub(super) async fn dynamic(world: &World) -> Gateway {
    world.gateway().await.set("kafka", "instance_id", quoted(""))
}

/// Waits until each has two of the four partitions: no rebalance is in progress, during which
/// nothing can be committed.
async fn wait_for_halves(first: &RunningGateway, second: &RunningGateway) {
    // The first to answer may still report partitions that are being revoked.
    for gateway in [first, second, first] {
        wait_for_partitions(gateway, 2).await;
    }
}

pub(super) async fn wait_for_partitions(gateway: &RunningGateway, wanted: usize) {
    eventually(format!("{wanted} partitions assigned"), Duration::from_secs(60), async || {
        let assigned = gateway.metric("halley_partitions_assigned").await;
        (assigned == Some(wanted as f64)).then_some(())
    })
    .await;
}

pub(super) async fn wait_for_share(gateway: &RunningGateway) {
    eventually("a share of the partitions", Duration::from_secs(60), async || {
        gateway.metric("halley_partitions_assigned").await.filter(|assigned| *assigned > 0.0)
    })
    .await;
}
