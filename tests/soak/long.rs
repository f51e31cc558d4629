//! The fault stories, for longer than `make test` runs them.

use std::time::Duration;

use crate::faults::everything::CometDeadline;
use crate::faults::{comets, everything, gateways, policies, servers};
use crate::soak::fault_time;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn killed_200_times_at_random_moments() {
    gateways::killed(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn stopped_60_times_under_load() {
    gateways::stopped(60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn frozen_and_joined_by_others_15_times() {
    gateways::frozen(15).await;
    gateways::joining(15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn comets_die_60_times() {
    comets::dying(60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn servers_die_10_times_each() {
    servers::broker(10).await;
    servers::redis(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn policies_swapped_300_times_while_they_fail() {
    policies::swapped(300).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn everything_at_once_for_long() {
    let rounds = (fault_time().as_secs() / 60).max(1);
    for _ in 0..rounds {
        everything::chaos(CometDeadline::Never, Duration::from_secs(60)).await;
        everything::chaos(CometDeadline::AsConfigured, Duration::from_secs(60)).await;
    }
}
