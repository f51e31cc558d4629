//! Versions of policies on a live system: a version that fails too often is rolled back
//! automatically, a restart restores the active versions, and no message is lost, reordered or
//! repeated meanwhile.

use std::path::Path;

use serde_json::json;

use crate::faults::policies::sometimes_poisonous;
use crate::faults::world::World;
use crate::support::gateway::{Gateway, Plugin, RunningGateway, quoted};
use crate::support::history::{VERSION_PLACE, version_mark};
use crate::support::{PATIENCE, eventually, folder, repository};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_fails_too_often_gives_way_to_the_last_good_one_under_load() {
    let files = folder("quarantine");
    let path = files.path().join("p.wasm");
    replace(&path, "plugins/dist/keyword_filter.wasm");
    let mut world = World::new("quarantine", 8, 3).await;
    world.body = sometimes_poisonous;
    let state = files.path().join("state");
    let settings =
        with_plugin(world.gateway().await, &path).set("policies", "state_dir", quoted(&text(&state)));
    let gateway = settings.clone().start().await;
    let good = hash(&gateway).await;
    world
        .load_during(async {
            world.wait_for_work(100).await;
            replace(&path, "tests/guests/dist/unruly.wasm");
            eventually("the new version to be put in quarantine", PATIENCE, async || {
                let status = gateway.get("/v1/plugins").await.json();
                (status["overrides"]["p"]["cause"] == "quarantined").then_some(())
            })
            .await;
            world.wait_for_work(200).await;
        })
        .await;
    assert_eq!(hash(&gateway).await, good);
    let ready = gateway.get("/readyz").await;
    assert_eq!(ready.status, 200, "it delivers");
    let warning = ready.json()["warnings"][0].as_str().unwrap_or_default().to_owned();
    assert!(warning.contains("plugin `p` was quarantined: 3 failures within 1m"), "{warning}");
    assert_eq!(gateway.metric("halley_plugin_quarantines_total{plugin=\"p\"}").await, Some(1.0));

    world.settle(&gateway).await;
    let history = world.history().await;
    let report = history.check();
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    assert!(history.dead_lettered.len() >= 3, "what the failing version failed on: {report}");

    assert!(gateway.sigterm().await.success());
    let again = settings.start().await;
    assert_eq!(hash(&again).await, good, "the quarantine outlives a restart");
    let status = again.get("/v1/plugins").await.json();
    assert_eq!(status["overrides"]["p"]["cause"], "quarantined", "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_broken_files_comes_up_with_what_was_in_force() {
    let files = folder("comes-up");
    let path = files.path().join("p.wasm");
    replace(&path, "plugins/dist/keyword_filter.wasm");
    let world = World::new("comes-up", 2, 1).await;
    let settings = with_plugin(world.gateway().await, &path);
    let keeping = settings.clone().set("policies", "state_dir", quoted(&text(&files.path().join("state"))));
    let gateway = keeping.clone().start().await;
    let good = hash(&gateway).await;
    let other = keeping.clone().start_unready().await;
    assert_eq!(other.wait().await.code(), Some(1), "a state folder is one gateway's");
    assert!(gateway.sigterm().await.success());

    std::fs::write(&path, b"\0asm broken").expect("writable folder");
    let without = settings.start_unready().await;
    assert_eq!(without.wait().await.code(), Some(1), "nothing to come up with");
    let again = keeping.start().await;
    assert_eq!(hash(&again).await, good);
    let ready = again.get("/readyz").await.json();
    assert!(
        ready["warnings"][0].as_str().is_some_and(|why| why.contains("new policies are refused")),
        "{ready}"
    );
}

fn with_plugin(settings: Gateway, path: &Path) -> Gateway {
    let mask = json!({
        "words": [VERSION_PLACE.to_string()], "action": "mask", "mask": version_mark(1).to_string(),
    });
    let plugin = Plugin::new("p", path)
        .set("on_error", "{ default = \"stall\", trap = \"dead-letter\", memory = \"dead-letter\", deadline = \"dead-letter\" }")
        .set("deadline", quoted("300ms"))
        .set("memory", quoted("16MiB"))
        .set("quarantine", "{ max_failures = 3, window = \"1m\" }")
        .config(&mask);
    settings.plugin(plugin)
}

async fn hash(gateway: &RunningGateway) -> String {
    let status = gateway.get("/v1/plugins").await.json();
    status["plugins"][0]["hash"].as_str().unwrap_or_else(|| panic!("no plugin: {status}")).to_owned()
}

/// As a deployment does it: written next to the file, then renamed.
fn replace(path: &Path, with: &str) {
    let temporary = path.with_extension("new");
    std::fs::copy(repository(with), &temporary).expect("`make plugins` has built it");
    std::fs::rename(temporary, path).expect("writable folder");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
