//! Resident memory with an unresponsive comet and with a stalled Redis, compared to a healthy run.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::soak::fault_time;
use crate::support::comet::{Behaviour, FakeComet};
use crate::support::gateway::{RunningGateway, gateway};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{eventually, print_uncaptured, resident_kib};

const ROOMS: usize = 200;
/// For each room, on each of the two comets.
const USERS: usize = 5;
/// The baseline is measured at the end of this phase.
const HEALTHY: Duration = Duration::from_secs(90);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes over 20 minutes: make soak"]
async fn memory_is_bounded_with_a_silent_comet_and_stalled_redis() {
    let (healthy_comet, black_hole) = (FakeComet::start().await, FakeComet::start().await);
    let redis = Redis::start().await;
    for room in 0..ROOMS {
        for comet in [&healthy_comet, &black_hole] {
            join(&redis, room, comet).await;
        }
    }
    let topic = kafka().topic("memory", 4).await;
    // Inboxes stay small, so that Redis does not fill up in a long run.
    let gateway = gateway(&topic).redis(&redis).set("offline", "max_per_user", 10);
    let gateway = gateway.start().await;

    let (running, sent) = (AtomicBool::new(true), AtomicUsize::new(0));
    let load = async {
        while running.load(Ordering::Relaxed) {
            let number = sent.fetch_add(1, Ordering::Relaxed);
            kafka().produce_room(&topic, &format!("room-{}", number % ROOMS), body(number)).await;
        }
    };
    let watch = async {
        let healthy = peak(&gateway, HEALTHY, &[&healthy_comet, &black_hole]).await;
        black_hole.behave(Behaviour::Hang);
        let holed = peak(&gateway, fault_time(), &[&healthy_comet, &black_hole]).await;
        redis.freeze();
        let stalled = peak(&gateway, fault_time(), &[&healthy_comet, &black_hole]).await;
        redis.thaw();
        black_hole.behave(Behaviour::Ok);
        running.store(false, Ordering::Relaxed);
        (healthy, holed, stalled)
    };
    let ((), (healthy, holed, stalled)) = tokio::join!(load, watch);
    let deadline = Duration::from_secs(600);
    eventually("everything settled", deadline, async || {
        (kafka().committed(gateway.group(), &topic).await == kafka().ends(&topic)).then_some(())
    })
    .await;
    let ratio = |kib: u64| kib as f64 / healthy as f64;
    print_uncaptured(format_args!(
        "memory: {} messages; healthy {healthy} KiB; {:?} of a black-holed comet {holed} KiB = {:.2}x; then {:?} of a stalled Redis as well {stalled} KiB = {:.2}x",
        sent.load(Ordering::Relaxed),
        fault_time(),
        ratio(holed),
        fault_time(),
        ratio(stalled),
    ));
    assert!(ratio(holed) <= 1.3 && ratio(stalled) <= 1.3, "more than 1.3x of a healthy run's memory");
}

async fn join(redis: &Redis, room: usize, comet: &FakeComet) {
    let address = comet.address().to_string();
    let user = |n| {
        let id = format!("{room}-{n}-{address}");
        (format!("conn-{id}"), format!("user-{id}"), address.clone())
    };
    redis.join_many(&format!("room-{room}"), &(0..USERS).map(user).collect::<Vec<_>>()).await;
}

fn body(number: usize) -> String {
    format!("{number:>200}")
}

/// Peak memory of the gateway within this time. The comets' call logs are cleared meanwhile: this
/// process is not measured.
async fn peak(gateway: &RunningGateway, time: Duration, comets: &[&FakeComet]) -> u64 {
    let until = Instant::now() + time;
    let mut peak = 0;
    while Instant::now() < until {
        tokio::time::sleep(SAMPLE_EVERY).await;
        peak = peak.max(resident_kib(gateway.pid()));
        comets.iter().for_each(|comet| comet.forget());
    }
    peak
}
