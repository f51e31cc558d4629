//! A plugin that loops and cannot be replaced is called less and less often, and `on_error` decides.

use std::time::Duration;

use super::*;
use crate::decision::Verdict;
use crate::membership::{Grouping, Membership};
use crate::policy::{Chain, PluginState, QuarantineAction, QuarantineConfig, supervise};
use crate::wasm::idle_plugin;

/// A plugin that is never quarantined, with a short deadline.
fn stays(on_error: OnError) -> PluginConfig {
    let mut plugin = with(unruly("p"), on_error);
    plugin.deadline = Duration::from_millis(20);
    plugin.quarantine.action = QuarantineAction::Never;
    plugin
}

fn late(engine: &Engine, set: &PolicySet) -> f64 {
    let version = &set.versions()[0].hash;
    let line = format!("halley_plugin_errors_total{{plugin=\"p\",version=\"{version}\",kind=\"deadline\"}}");
    engine.metric(&line).unwrap_or_default()
}

#[test]
fn beyond_the_budget_on_error_decides_without_a_call() {
    let engine = Engine::new();
    let policies = engine.policies(&[stays(OnError::DeadLetter)]);
    let set = policies.current();
    let mut chain = set.chain();
    for _ in 0..200 {
        let batch = chain.filter("push", 3, vec![room("loop"), room("hello"), room("loop")]).unwrap();
        assert!(matches!(&batch[0].verdict, Verdict::DeadLetter { .. }));
        assert!(matches!(&batch[2].verdict, Verdict::DeadLetter { .. }));
    }
    // Twenty deadlines, and a few more that the elapsed time adds on a busy machine.
    let calls = late(&engine, &set);
    assert!((20.0..60.0).contains(&calls), "{calls}");
    let batch = chain.filter("push", 3, vec![room("hello")]).unwrap();
    let Verdict::DeadLetter { reason, .. } = &batch[0].verdict else { panic!("{batch:?}") };
    assert!(reason.contains("exceeded its deadline too often, and is called again within"), "{reason}");
    let mut grouping = Grouping::new(Arc::new(Membership::default()));
    chain.regroup(&"loop".into(), &mut grouping).unwrap();
    assert!(chain.decide(&room("loop"), &[]).unwrap().is_empty());
    assert!(late(&engine, &set) <= calls + 1.0);

    let status = policies.status();
    assert_eq!(status.plugins[0].state, PluginState::OverTimeBudget);
    assert_eq!(status.plugins[0].workers_over_budget, 1);
    assert!(status.warnings()[0].contains("not called by 1 workers"), "{:?}", status.warnings());
    let version = set.versions()[0].hash.clone();
    let labels = format!("{{plugin=\"p\",version=\"{version}\"");
    assert_eq!(engine.metric(&format!("halley_plugin_over_time_budget{labels}}}")), Some(1.0));
    let unasked = engine.metric(&format!("halley_plugin_limits_total{labels},limit=\"time-budget\"}}"));
    assert!(unasked > Some(100.0), "{unasked:?}");

    // Other workers have their own budget, and a dropped chain is not counted any more.
    assert_eq!(set.chain().filter("push", 4, vec![room("hello")]).unwrap()[0].verdict, Verdict::Pass);
    drop(chain);
    assert_eq!(policies.status().plugins[0].state, PluginState::Running);
}

#[test]
fn a_stalled_plugin_over_budget_is_not_called() {
    let engine = Engine::new();
    let set = engine.set(&[stays(OnError::Stall)]);
    let mut chain = set.chain();
    for _ in 0..200 {
        chain.filter("push", 3, vec![room("loop")]).unwrap_err();
    }
    assert!(late(&engine, &set) < 60.0);
    let stalled = chain.filter("push", 3, vec![room("loop")]).unwrap_err();
    assert!(stalled.error.contains("too often"), "{stalled:?}");
}

#[test]
fn a_plugin_over_budget_recovers_after_a_successful_call() {
    let engine = Engine::new();
    let mut chain = engine.set(&[stays(OnError::Drop)]).chain();
    let is_dropped = |chain: &mut Chain, body: &str| {
        let batch = chain.filter("push", 3, vec![room(body)]).unwrap();
        matches!(batch[0].verdict, Verdict::Drop { .. })
    };
    while !is_dropped(&mut chain, "hello") {
        is_dropped(&mut chain, "loop");
    }
    let begun = std::time::Instant::now();
    while is_dropped(&mut chain, "hello") {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not tried again");
        std::thread::yield_now();
    }
    assert!(!is_dropped(&mut chain, "hello"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_version_with_a_fallback_is_quarantined() {
    let engine = Engine::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("idle.wasm");
    std::fs::write(&file, idle_plugin().unwrap()).unwrap();
    let quarantine = QuarantineConfig::default();
    let good = PluginConfig { path: file.into(), quarantine, ..stays(OnError::Pass) };
    let policies = engine.policies(std::slice::from_ref(&good));
    let bad = PluginConfig { path: guest("unruly").into(), ..good };
    policies.replace(vec![bad]).await.unwrap();
    let active = policies.current();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let mut supervising = tokio::task::JoinSet::new();
    supervising.spawn(supervise(Arc::clone(&policies), shutdown.clone()));
    let mut chain = active.chain();
    while policies.current().generation() == active.generation() {
        chain.filter("push", 3, vec![room("loop")]).unwrap();
        tokio::task::yield_now().await;
    }
    let instead = &policies.status().overrides["p"];
    assert!(instead.why.contains("too much time in calls past its deadline"), "{instead:?}");
    shutdown.cancel();
    supervising.join_all().await;
}
