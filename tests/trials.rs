//! Candidates on a live system: a canary decides for its rooms and a shadow for none, and nothing
//! is lost, reordered or repeated when a rollout begins and ends.

use std::path::Path;

use serde_json::json;

use crate::faults::policies::sometimes_poisonous;
use crate::faults::world::World;
use crate::support::gateway::{Gateway, Plugin, RunningGateway, quoted};
use crate::support::history::{VERSION_PLACE, version_mark};
use crate::support::{PATIENCE, eventually, folder, repository};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_fails_goes_by_itself_and_costs_only_its_rooms() {
    let mut world = World::new("canary", 8, 3).await;
    world.body = sometimes_poisonous;
    let rollout = "{ path = PATH, weight = 0, rooms = [\"room-1\", \"room-2\"], thresholds = { errors = \"1%\", latency = 1e9, drops = 1 } }";
    let gateway = with_rollout(world.gateway().await, rollout, &repository("tests/guests/dist/unruly.wasm"))
        .start()
        .await;
    world
        .load_during(async {
            eventually("the canary to go", PATIENCE * 2, async || {
                let why = plugin(&gateway).await["last_rollout"]["why"].as_str()?.to_owned();
                assert!(why.contains("of its messages; the budget is 1%"), "{why}");
                Some(())
            })
            .await;
            world.wait_for_work(200).await;
        })
        .await;
    world.settle(&gateway).await;
    let history = world.history().await;
    let report = history.check();
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    let dead: Vec<&str> = (history.sent.iter())
        .filter(|sent| history.dead_lettered.contains(&sent.id))
        .map(|sent| sent.room.as_str())
        .collect();
    assert!(!dead.is_empty() && dead.iter().all(|room| ["room-1", "room-2"].contains(room)), "{dead:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_keeps_its_budget_comes_in_force_by_itself_under_load() {
    let world = World::new("promoted", 8, 3).await;
    let rollout = "{ path = PATH, weight = \"50%\", promote_after = \"2s\", thresholds = { errors = 0, latency = 1e9, drops = 1 } }";
    let files = folder("promoted");
    let new = files.path().join("new.wasm");
    let mut bytes =
        std::fs::read(repository("plugins/dist/keyword_filter.wasm")).expect("`make plugins` built it");
    // A custom section more.
    bytes.extend([0, 3, 1, b'v', 1]);
    std::fs::write(&new, bytes).expect("writable folder");
    let gateway = with_rollout(world.gateway().await, rollout, &new).start().await;
    let first = plugin(&gateway).await;
    let candidate = first["rollout"]["candidate"].as_str().expect("there is one").to_owned();
    world
        .load_during(async {
            eventually("the canary to be promoted", PATIENCE, async || {
                (plugin(&gateway).await["hash"] == candidate.as_str()).then_some(())
            })
            .await;
            world.wait_for_work(200).await;
        })
        .await;
    assert_eq!(gateway.get("/v1/plugins").await.json()["overrides"]["p"]["why"], "promoted");
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shadow_changes_nothing_and_its_differences_are_told() {
    let mut world = World::new("shadow", 8, 3).await;
    world.body = sometimes_poisonous;
    let rollout = "{ path = PATH, mode = \"shadow\" }";
    let gateway = with_rollout(world.gateway().await, rollout, &repository("tests/guests/dist/unruly.wasm"))
        .start()
        .await;
    world
        .load_during(async {
            eventually("both kinds of difference", PATIENCE, async || {
                let found = gateway.get("/v1/plugins/p/differences").await.json();
                let of_kind = |kind: &str| {
                    let latest = found["latest"].as_array()?;
                    latest.iter().find(|difference| difference["kind"] == kind).cloned()
                };
                let (message, failed) = (of_kind("message")?, of_kind("failed")?);
                assert_eq!(message["candidate"], "passed", "{message}");
                let said = |text: &serde_json::Value| text.as_str().unwrap_or_default().to_owned();
                assert!(said(&message["active"]).starts_with("amended body: room-"), "{message}");
                assert!(said(&failed["candidate"]).starts_with("failed: "), "{failed}");
                Some(())
            })
            .await;
            world.wait_for_work(200).await;
        })
        .await;
    let shown = std::process::Command::new(env!("CARGO_BIN_EXE_halley"))
        .args(["plugin", "differences", "p", "--gateway", &gateway.operator()])
        .output()
        .expect("the binary runs");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("would have been decided differently")
            && shown.contains("message: amended body: room-"),
        "{shown}"
    );
    assert!(gateway.get("/metrics").await.body.contains("halley_plugin_differences_total{plugin=\"p\""));
    world.settle(&gateway).await;
    let report = world.report().await;
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    report.assert_no_dead_letters();
}

fn with_rollout(settings: Gateway, rollout: &str, candidate: &Path) -> Gateway {
    let mask = json!({
        "words": [VERSION_PLACE.to_string()], "action": "mask", "mask": version_mark(1).to_string(),
    });
    let candidate = quoted(&candidate.display().to_string());
    let plugin = Plugin::new("p", repository("plugins/dist/keyword_filter.wasm"))
        .set("on_error", quoted("dead-letter"))
        .set("deadline", quoted("300ms"))
        .set("memory", quoted("16MiB"))
        .set("rollout", rollout.replace("PATH", &candidate))
        .config(&mask);
    settings.plugin(plugin)
}

async fn plugin(gateway: &RunningGateway) -> serde_json::Value {
    gateway.get("/v1/plugins").await.json()["plugins"][0].clone()
}
