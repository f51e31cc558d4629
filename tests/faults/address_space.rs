//! Policies in a process with a limited address space (`ulimit -v`, `LimitAS=`): if a worker cannot
//! start a policy, no message passes, and the operator sees why.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::json;

use crate::support::comet::FakeComet;
use crate::support::gateway::{Gateway, Plugin, RunningGateway, gateway, quoted};
use crate::support::kafka::kafka;
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, repository};

/// Enough rooms that each of a few partitions has some.
const ROOMS: usize = 24;

/// Rooms on one comet, and a topic.
struct Scene {
    _redis: Redis,
    comet: FakeComet,
    topic: String,
    settings: Gateway,
}

impl Scene {
    async fn new(name: &str, partitions: i32) -> Self {
        let (redis, comet) = (Redis::start().await, FakeComet::start().await);
        for room in 0..ROOMS {
            redis
                .join(&format!("room-{room}"), &format!("c{room}"), &format!("u{room}"), comet.address())
                .await;
        }
        let topic = kafka().topic(name, partitions).await;
        let settings = gateway(&topic).redis(&redis);
        Self { _redis: redis, comet, topic, settings }
    }

    /// Sends every room a message that may pass, and one that may not.
    async fn say(&self) {
        for room in 0..ROOMS {
            let room = format!("room-{room}");
            kafka().produce_room(&self.topic, &room, format!("hello {room}")).await;
            kafka().produce_room(&self.topic, &room, format!("spam {room}")).await;
        }
    }

    fn heard(&self) -> BTreeSet<String> {
        self.comet.deliveries().into_iter().map(|(_, _, body)| body).collect()
    }
}

fn what_may_pass() -> BTreeSet<String> {
    (0..ROOMS).map(|room| format!("hello room-{room}")).collect()
}

/// A plugin that fails open, which is the default.
fn filter(name: &str) -> Plugin {
    Plugin::new(name, repository("plugins/dist/keyword_filter.wasm"))
        .set("deadline", quoted("5s"))
        .config(&json!({ "words": ["spam"] }))
}

/// Limits the address space of a running process to this much more than it uses, or removes the limit.
fn limit(gateway: &RunningGateway, more: Option<u64>) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib: u64 = size.expect("Linux says it").trim().trim_end_matches(" kB").parse().expect("a number");
    let soft = more.map_or_else(|| "unlimited".to_owned(), |more| (kib * 1024 + more).to_string());
    let pid = gateway.pid().to_string();
    let done = Command::new("prlimit").args(["--pid", &pid, &format!("--as={soft}:")]).status();
    assert!(done.is_ok_and(|status| status.success()), "prlimit (of util-linux) works");
}

#[tokio::test]
async fn with_a_limit_every_worker_starts_its_plugins() {
    let scene = Scene::new("limited-space", 8).await;
    let settings = scene.settings.clone().plugin(filter("one")).plugin(filter("two"));
    let gateway = settings.under(&["prlimit", &format!("--as={}", 4_u64 << 30)]).start().await;
    scene.say().await;
    gateway.wait_until_settled(&scene.topic).await;
    assert_eq!(scene.heard(), what_may_pass());
    let version = gateway.get("/v1/plugins/one").await.json()["active"]["hash"].to_string();
    let series = format!(
        "halley_plugin_limits_total{{plugin=\"one\",version=\"{}\",limit=\"address-space\"}}",
        &version[1..13]
    );
    assert_eq!(gateway.metric(&series).await, Some(0.0));
}

#[tokio::test]
async fn what_a_worker_has_no_room_for_lets_nothing_pass() {
    let scene = Scene::new("no-space", 2).await;
    let gateway = scene.settings.clone().plugin(filter("one")).start().await;
    // Workers create their instances, of 4 GiB each, for their first messages.
    limit(&gateway, Some(6 << 30));
    let wanted = scene.settings.clone().plugin(filter("one")).plugin(filter("two"));
    gateway.configure(&wanted);
    let refused = eventually("the larger set to be refused", PATIENCE, async || {
        let status = gateway.get("/v1/plugins").await.json();
        status["last_refusal"]["errors"][0].as_str().map(str::to_owned)
    });
    let refused = refused.await;
    assert!(refused.contains("for each of 2 workers") && refused.contains("ulimit -v"), "{refused}");

    limit(&gateway, Some(512 << 20));
    scene.say().await;
    let told = eventually("readiness to say what is missing", PATIENCE, async || {
        let answer = gateway.get("/readyz").await;
        (answer.status == 503 && answer.body.contains("has no room in this process")).then_some(answer.body)
    });
    let told = told.await;
    assert!(told.contains("ulimit -v") && told.contains("plugin one@"), "{told}");
    eventually("both partitions to be counted", PATIENCE, async || {
        let stalled = gateway.metric("halley_stalled_partitions{stage=\"policy\"}").await;
        (stalled == Some(2.0)).then_some(())
    })
    .await;
    assert_eq!(scene.heard(), BTreeSet::new(), "nothing passes unseen");

    limit(&gateway, None);
    gateway.wait_until_settled(&scene.topic).await;
    gateway.wait_until_ready().await;
    assert_eq!(scene.heard(), what_may_pass(), "all of it was decided");
}
