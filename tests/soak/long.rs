//! The fault stories, for longer than `make test` runs them.

use std::time::Duration;

use crate::faults::everything::CometDeadline;
use crate::faults::{
    Mode, comets, everything, gateways, network, policies, returning, scaling, servers, topics,
};
use crate::soak::fault_time;
use crate::support::comet::Serves;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn killed_200_times_at_random_moments() {
    gateways::killed(Serves::Calls, 100).await;
    gateways::killed(Serves::Streams, 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn stopped_60_times_under_load() {
    gateways::stopped(Serves::Calls, 30).await;
    gateways::stopped(Serves::Streams, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn frozen_and_joined_by_others_15_times() {
    gateways::frozen(Serves::Calls, 7).await;
    gateways::frozen(Serves::Streams, 8).await;
    gateways::joining(Serves::Calls, 7).await;
    gateways::joining(Serves::Streams, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn comets_die_60_times() {
    comets::dying(Serves::Calls, 30).await;
    comets::dying(Serves::Streams, 30).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn servers_die_10_times_each() {
    servers::broker(Serves::Calls, 5).await;
    servers::broker(Serves::Streams, 5).await;
    servers::redis(Serves::Calls, 5).await;
    servers::redis(Serves::Streams, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn policies_swapped_300_times_while_they_fail() {
    policies::swapped(Serves::Calls, 150).await;
    policies::swapped(Serves::Streams, 150).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn users_come_and_go_thousands_of_times() {
    for serves in [Serves::Calls, Serves::Streams] {
        returning::coming_and_going(serves, 40, fault_time() / 4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn everything_at_once_for_long() {
    let rounds = (fault_time().as_secs() / 60).max(1);
    for _ in 0..rounds {
        for serves in [Serves::Calls, Serves::Streams] {
            everything::chaos(serves, CometDeadline::Never, Duration::from_secs(30)).await;
            everything::chaos(serves, CometDeadline::AsConfigured, Duration::from_secs(30)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn brokers_assign_partitions_through_every_fault() {
    gateways::killed(Mode::KIP_848, 15).await;
    gateways::stopped(Mode::KIP_848, 30).await;
    gateways::frozen(Mode::KIP_848, 5).await;
    gateways::joining(Mode::KIP_848, 10).await;
    gateways::stopped_while_another_joins(Mode::KIP_848, 5).await;
    servers::broker(Mode::KIP_848, 5).await;
    topics::recreated(Mode::KIP_848, 3).await;
    network::to_kafka(Mode::KIP_848).await;
    everything::chaos(Mode::KIP_848, CometDeadline::Never, Duration::from_secs(60)).await;
    everything::chaos(Mode::KIP_848, CometDeadline::AsConfigured, Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make soak"]
async fn from_2_to_8_gateways_and_back() {
    scaling::out_and_in(Serves::Calls, 8).await;
    scaling::out_and_in(Mode::KIP_848, 8).await;
}
