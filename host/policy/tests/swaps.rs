//! Sets as a whole: what is refused and why, what is shared, what is freed.

use std::path::Path;
use std::sync::Weak;

use serde_json::json;

use super::*;
use crate::policy::plugin::Plugin;
use crate::policy::{Generation, PluginState};

/// The unruly guest with other bytes: one more custom section.
pub(super) fn write_variant(path: &Path, number: u32) {
    let mut bytes = std::fs::read(guest("unruly")).unwrap();
    bytes.extend([0, 6, 1, b'v']);
    bytes.extend(number.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn all_problems_are_reported_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.wasm");
    std::fs::write(&text, b"hello").unwrap();
    let problems = Engine::new().refusal(&[
        PluginConfig::new("old", guest("old")),
        PluginConfig::new("text", &text),
        PluginConfig::new("gone", folder.path().join("gone.wasm")),
        unruly("fine"),
        unruly("fine"),
        unruly("bad name"),
        configured(unruly("choosy"), json!({ "refuse": "no words" })),
        configured(unruly("trapper"), json!({ "start": "trap" })),
        configured(unruly("looper"), json!({ "start": "loop" })),
    ]);
    let expected = [
        "was built for the contract halley:policy@0.0.9, this gateway speaks halley:policy@0.1.3",
        "is not WebAssembly",
        "cannot be read",
        "has the name of an earlier plugin",
        "`name` must be",
        "refused its configuration: no words",
        "could not start: trapped",
        "could not start: exceeded its deadline of 1s",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.contains(expected), "{problem}");
    }
    assert!(problems[0].starts_with("plugin `old` ("), "{}", problems[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_set_leaves_the_active_one() {
    let engine = Engine::new();
    let policies = engine.policies(&[unruly("p")]);
    let mut changes = policies.subscribe();
    let refused =
        policies.replace(vec![unruly("q"), PluginConfig::new("p", guest("old"))]).await.unwrap_err();
    assert_eq!(refused.problems.len(), 1);
    let status = policies.status();
    assert_eq!((status.generation, status.plugins.len()), (Generation(1), 1));
    assert_eq!(status.plugins[0].state, PluginState::UpdateRefused);
    assert!(status.last_refusal.unwrap().errors[0].contains("halley:policy@0.0.9"));
    assert!(!changes.has_changed().unwrap());

    assert_eq!(policies.replace(vec![unruly("p")]).await.unwrap(), Generation(1), "the same set");
    let status = policies.status();
    assert!(status.last_refusal.is_none());
    assert_eq!(status.plugins[0].state, PluginState::Running);
    assert_eq!(status.plugins[0].hooks, ["filter", "grouping", "offline", "lifecycle"]);
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["plugins"][0]["deadline"], "500ms");

    let renamed = configured(unruly("p"), json!({ "suffix": "!" }));
    assert_eq!(policies.replace(vec![renamed, unruly("q")]).await.unwrap(), Generation(2));
    assert_eq!(*changes.borrow_and_update(), Generation(2));
    assert_eq!(engine.metric("halley_policy_generation"), Some(2.0));
    assert_eq!(engine.metric("halley_policy_swaps_total{result=\"refused\"}"), Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_swaps_free_what_they_replace() {
    let engine = Engine::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    write_variant(&path, 0);
    let plugin = PluginConfig::new("p", &path);
    let policies = engine.policies(std::slice::from_ref(&plugin));
    // The process's memory is measured in another test, because other tests run in this process.
    let mut old: Vec<(Weak<PolicySet>, Weak<Plugin>)> = Vec::new();
    for number in 1..=200 {
        let set = policies.current();
        old.push((Arc::downgrade(&set), Arc::downgrade(&set.entries()[0].plugin)));
        let batch = set.chain().filter("push", 3, vec![room("body x"), room("trap")]).unwrap();
        assert_eq!(batch[0].message.body, "x");
        write_variant(&path, number);
        policies.replace(vec![plugin.clone()]).await.unwrap();
    }
    assert_eq!(policies.current().generation(), Generation(201));
    let left =
        |(set, plugin): &&(Weak<PolicySet>, Weak<Plugin>)| set.strong_count() + plugin.strong_count() > 0;
    assert_eq!(old.iter().filter(left).count(), 0);
    assert_eq!(engine.metrics().matches("halley_plugin_info{").count(), 1, "{}", engine.metrics());
}

#[test]
fn a_restart_takes_compiled_code_from_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let compiled = Some(folder.path().join("compiled"));
        let config = RuntimeConfig { compiled, ..RuntimeConfig::default() };
        let runtime = Runtime::with(&mut Registry::default(), config).unwrap();
        let set = Policies::start(Arc::clone(&runtime), &[unruly("p")]).unwrap().current();
        let filtered = set.chain().filter("push", 3, vec![room("body new")]).unwrap();
        assert_eq!(filtered[0].message.body, "new");
        runtime.compilations()
    };
    assert_eq!([start(), start()], [1, 0]);
}
