//! Policies that trap, loop and exhaust their memory on some records, while the set of policies is
//! swapped repeatedly.

use serde_json::json;

use super::world::World;
use crate::support::comet::Serves;
use crate::support::gateway::{Gateway, Plugin, quoted};
use crate::support::history::{VERSION_PLACE, body, version_mark};
use crate::support::{PATIENCE, eventually, repository};

in_each_mode!(swapped_misbehaving_policies_lose_and_mix_nothing, serves => swapped(serves, 30));

/// Swaps the policies under load, this many times.
pub async fn swapped(serves: Serves, times: u32) {
    let mut world = World::serving(serves, "swapped", 8, 3).await;
    world.body = sometimes_poisonous;
    let settings = world.gateway().await;
    let gateway = with_policies(&settings, 0).start().await;
    world
        .load_during(async {
            for version in 1..=times {
                gateway.configure(&with_policies(&settings, version));
                eventually(format!("version {version}"), PATIENCE, async || {
                    let plugins = gateway.get("/v1/plugins").await.json();
                    (plugins["generation"].as_u64() > Some(u64::from(version))).then_some(())
                })
                .await;
                world.wait_for_work(30).await;
            }
        })
        .await;
    world.settle(&gateway).await;
    let history = world.history().await;
    let report = history.check();
    crate::support::print_uncaptured(format_args!("swapped: {report}"));
    report.assert_nothing_lost_or_reordered();
    report.assert_no_repeats();
    let poisonous = history.sent.iter().filter(|sent| poison(sent.number).is_some());
    let poisonous: std::collections::BTreeSet<_> = poisonous.map(|sent| sent.id.clone()).collect();
    assert!(!poisonous.is_empty(), "there was something to fail on");
    assert_eq!(history.dead_lettered, poisonous, "exactly what the policy failed on");
    let versions = history.received.iter().filter_map(|receipt| receipt.version);
    assert_eq!(versions.max(), Some(times), "the last version decided, too");
}

/// A policy that fails on poisoned messages, and one that adds its version.
pub fn with_policies(settings: &Gateway, version: u32) -> Gateway {
    let unruly = Plugin::new("unruly", repository("tests/guests/dist/unruly.wasm"))
        .set("on_error", quoted("dead-letter"))
        // Otherwise messages that the plugin did not see would be dead-lettered as well.
        .set("time_budget", quoted("100%"))
        .set("deadline", quoted("300ms"))
        .set("memory", quoted("16MiB"));
    let sign = json!({
        "words": [VERSION_PLACE.to_string()], "action": "mask", "mask": version_mark(version).to_string(),
    });
    let signs = Plugin::new("signs", repository("plugins/dist/keyword_filter.wasm"))
        .set("deadline", quoted("5s"))
        .config(&sign);
    settings.clone().without_plugins().plugin(unruly).plugin(signs)
}

/// How a room's message of this number is poisoned, if it is.
fn poison(number: u64) -> Option<&'static str> {
    match number % 200 {
        50 => Some("trap"),
        100 => Some("loop"),
        150 => Some("eat"),
        _ => None,
    }
}

/// Some bodies are poison for the policy.
pub fn sometimes_poisonous(room: &str, number: u64) -> String {
    match poison(number) {
        Some(command) => format!("{command} {}", body(room, number)),
        None => body(room, number),
    }
}
