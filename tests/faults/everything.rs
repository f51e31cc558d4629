//! All faults at once, at random: gateways that are killed, stopped and frozen; comets that die; a
//! bad network everywhere; Redis and Kafka restarts; policies that fail and are swapped.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tonic::Code;

use super::network::FAULTS;
use super::policies::{sometimes_poisonous, with_policies};
use super::world::{World, WorldBuilder};
use super::{Mode, seeded, some_time};
use crate::support::comet::{Behaviour, Serves};
use crate::support::gateway::{Gateway, RunningGateway, quoted};
use crate::support::kafka::Kafka;
use crate::support::print_uncaptured;
use crate::support::proxy::Proxy;

in_each_mode!(everything_at_once_loses_and_reorders_nothing, serves => chaos(serves, CometDeadline::Never, Duration::from_secs(40)));

in_each_mode!(all_faults_with_unreachable_comets_reorder_nothing, serves => chaos(serves, CometDeadline::AsConfigured, Duration::from_secs(25)));

/// When comets count as unreachable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum CometDeadline {
    /// Never.
    Never,
    /// As configured; then messages are stored for their users, and later ones of their rooms wait
    /// until that is committed.
    AsConfigured,
}

/// Causes random faults for this long.
pub async fn chaos(mode: impl Into<Mode>, deadline: CometDeadline, lasts: Duration) {
    let mut random = seeded("everything");
    let Some((kafka, proxy)) = Kafka::own_behind_proxy(random.u64(..)).await else { return };
    let plan = WorldBuilder::new("everything", 8, 3).await.serving(mode);
    let plan = WorldBuilder { kafka: Some((kafka, Some(proxy))), network: Some(random.u64(..)), ..plan };
    let mut world = plan.build().await;
    world.body = sometimes_poisonous;
    world.pause = Duration::from_millis(20);
    let mut settings = world.gateway().await;
    if deadline == CometDeadline::Never {
        settings = settings.set("comets", "breaker_window", quoted("1h"));
        settings = settings.set("delivery", "delivery_timeout", quoted("1h"));
    }
    let first = with_policies(&settings, 0).start().await;
    let stage = ChaosRun {
        settings,
        gateway: Mutex::new(first),
        version: AtomicU32::new(0),
        until: Instant::now() + lasts,
        done: parking_lot::Mutex::default(),
        world: &world,
    };
    let mut chance = || fastrand::Rng::with_seed(random.u64(..));
    world
        .load_during(async {
            tokio::join!(
                stage.gateways(chance()),
                stage.swaps(chance()),
                stage.comets(chance()),
                stage.network(chance()),
                stage.servers(chance()),
                stage.keep_alive(),
            )
        })
        .await;
    let gateway = stage.alive().await;
    world.settle(&gateway).await;
    print_uncaptured(format_args!(
        "everything: {} versions of the policies",
        stage.version.load(Ordering::Relaxed)
    ));
    let history = world.history().await;
    let report = history.check();
    print_uncaptured(format_args!("everything: {report}"));
    for at in report.reordered.iter().chain(&report.version_regressed).chain(&report.lost).take(3) {
        print_uncaptured(format_args!("{}\n{}", history.around(at), stage.timeline()));
    }
    report.assert_nothing_lost_or_reordered();
}

struct ChaosRun<'a> {
    world: &'a World,
    /// The faults so far, with their times.
    done: parking_lot::Mutex<Vec<(Instant, String)>>,
    settings: Gateway,
    gateway: Mutex<RunningGateway>,
    version: AtomicU32,
    until: Instant,
}

impl ChaosRun<'_> {
    fn note(&self, what: impl std::fmt::Display) {
        self.done.lock().push((Instant::now(), what.to_string()));
    }

    /// The faults so far, in seconds since the beginning of the world.
    fn timeline(&self) -> String {
        let done = self.done.lock();
        let began = self.world.began();
        let lines = done.iter().map(|(at, what)| format!("{:>9.3?} {what}", at.duration_since(began)));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// The settings with the policies of the current version.
    fn policies(&self) -> Gateway {
        with_policies(&self.settings, self.version.load(Ordering::Relaxed))
    }

    /// The gateway, restarted if it has exited.
    async fn alive(&self) -> tokio::sync::MutexGuard<'_, RunningGateway> {
        let mut gateway = self.gateway.lock().await;
        if gateway.ended().is_some() {
            self.note(format_args!("gateway starts; {:?}", gateway.ended()));
            *gateway = self.policies().start_unready().await;
        }
        gateway
    }

    /// Acts as a supervisor.
    async fn keep_alive(&self) {
        while self.goes_on() {
            drop(self.alive().await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn gateways(&self, mut random: fastrand::Rng) {
        while self.goes_on() {
            tokio::time::sleep(some_time(&mut random, Duration::from_secs(8))).await;
            let gateway = self.alive().await;
            let what = random.usize(..3);
            self.note(format_args!("gateway: {}", ["KILL", "TERM", "STOP"][what]));
            match what {
                0 => gateway.kill(),
                1 => drop(gateway.sigterm().await),
                _ => {
                    gateway.signal("STOP");
                    tokio::time::sleep(some_time(&mut random, Duration::from_secs(3))).await;
                    gateway.signal("CONT");
                }
            }
        }
    }

    async fn swaps(&self, mut random: fastrand::Rng) {
        while self.goes_on() {
            tokio::time::sleep(some_time(&mut random, Duration::from_secs(1))).await;
            let gateway = self.alive().await;
            self.version.fetch_add(1, Ordering::Relaxed);
            gateway.configure(&self.policies());
        }
    }

    async fn comets(&self, mut random: fastrand::Rng) {
        while self.goes_on() {
            tokio::time::sleep(some_time(&mut random, Duration::from_secs(4))).await;
            let edge = &self.world.comets[random.usize(..self.world.comets.len())];
            let comet = &edge.comet;
            let what = random.usize(..3);
            self.note(format_args!("comet {}: {}", edge.address, ["dies", "refuses", "is slow"][what]));
            match what {
                0 => {
                    comet.stop().await;
                    tokio::time::sleep(some_time(&mut random, Duration::from_secs(3))).await;
                    comet.restart().await;
                }
                1 => comet.fail_next(random.usize(1..20), Code::from(random.i32(1..=16))),
                _ => {
                    comet.behave(Behaviour::Delay(some_time(&mut random, Duration::from_secs(1))));
                    tokio::time::sleep(some_time(&mut random, Duration::from_secs(2))).await;
                    comet.behave(Behaviour::Ok);
                }
            }
        }
    }

    async fn network(&self, mut random: fastrand::Rng) {
        let kafka = self.world.kafka.iter().filter_map(|(_, proxy)| proxy.as_ref());
        let redis = self.world.redis_proxy.iter();
        let comets = self.world.comets.iter().map(|edge| edge.proxy());
        let everywhere: Vec<&Proxy> = kafka.chain(redis).chain(comets).collect();
        while self.goes_on() {
            tokio::time::sleep(some_time(&mut random, Duration::from_secs(2))).await;
            let proxy = everywhere[random.usize(..everywhere.len())];
            let fault = FAULTS[random.usize(..FAULTS.len())];
            self.note(format_args!("network before {}: {fault:?}", proxy.address()));
            proxy.inject(fault);
            tokio::time::sleep(some_time(&mut random, Duration::from_secs(3))).await;
            proxy.heal();
            self.note(format_args!("network before {}: healed", proxy.address()));
        }
    }

    async fn servers(&self, mut random: fastrand::Rng) {
        while self.goes_on() {
            tokio::time::sleep(some_time(&mut random, Duration::from_secs(15))).await;
            let kafka = random.bool();
            self.note(if kafka { "Kafka dies" } else { "Redis dies" });
            if kafka {
                self.world.broker().stop().await;
                self.world.broker().restart().await;
            } else {
                let mut redis = self.world.redis.lock().await;
                redis.stop();
                tokio::time::sleep(some_time(&mut random, Duration::from_secs(2))).await;
                redis.restart().await;
            }
        }
    }
}
