//! Operator changes, quarantine and restarts: which version decides, and why.

use std::path::Path;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::swaps::write_variant;
use super::*;
use crate::artifact::{Exclusion, OverrideCause, Transition, Versions};
use crate::policy::{PluginState, PolicyError, QuarantineAction, QuarantineConfig, Upload, supervise};

/// A generous timeout for conditions.
const PATIENCE: Duration = Duration::from_secs(30);

fn variant(folder: &Path, number: u32) -> Vec<u8> {
    let path = folder.join("variant");
    write_variant(&path, number);
    std::fs::read(path).unwrap()
}

fn upload(bytes: Vec<u8>) -> Vec<Upload> {
    vec![Upload { name: "p".into(), bytes, signature: None }]
}

fn active(policies: &Policies) -> Vec<String> {
    policies.status().plugins.into_iter().map(|plugin| plugin.hash.to_string()).collect()
}

fn configured_at(path: &Path) -> PluginConfig {
    PluginConfig { path: path.into(), ..unruly("p") }
}

fn problems(refused: Result<crate::policy::Generation, PolicyError>) -> String {
    refused.unwrap_err().to_string()
}

#[tokio::test]
async fn a_pushed_version_decides_until_the_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    write_variant(&path, 1);
    let config = vec![configured_at(&path)];
    let policies = Engine::new().policies(&config);
    let first = active(&policies);

    policies.push(upload(variant(folder.path(), 2))).await.unwrap();
    let pushed = active(&policies);
    assert_ne!(pushed, first);
    assert_eq!(policies.status().overrides["p"].cause, OverrideCause::Pushed);
    policies.replace(config.clone()).await.unwrap();
    assert_eq!(active(&policies), pushed, "the file is unchanged");

    write_variant(&path, 3);
    policies.replace(config).await.unwrap();
    assert!(![first, pushed].contains(&active(&policies)));
    assert!(policies.status().overrides.is_empty());
}

#[tokio::test]
async fn uploads_come_together_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let policies = Engine::new().policies(&[unruly("p"), unruly("q")]);
    let before = (active(&policies), policies.current().generation());
    let both = |second: &str, bytes: &[u8]| {
        let good = Upload { name: "p".into(), bytes: variant(folder.path(), 9), signature: None };
        vec![good, Upload { name: second.into(), bytes: bytes.to_vec(), signature: None }]
    };
    let why = problems(policies.push(both("q", b"hello")).await);
    assert!(why.contains("plugin `q`") && why.contains("is not WebAssembly"), "{why}");
    let why = problems(policies.push(both("nobody", b"")).await);
    assert!(why.contains("plugin `nobody` is not configured"), "{why}");
    assert_eq!((active(&policies), policies.current().generation()), before);
    assert_eq!(
        policies.status().last_refusal.map(|refusal| refusal.errors),
        None,
        "the response reported it"
    );
}

#[tokio::test]
async fn operator_changes_leave_other_plugins_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("p.wasm"), folder.path().join("q.wasm"));
    write_variant(&path, 1);
    write_variant(&other, 2);
    let config = vec![configured_at(&path), PluginConfig { path: other.clone().into(), ..unruly("q") }];
    let policies = Engine::new().policies(&config);
    let before = active(&policies);
    std::fs::write(&other, b"half of a fi").unwrap();
    policies.replace(config.clone()).await.unwrap_err();

    policies.push(upload(variant(folder.path(), 3))).await.unwrap();
    let pushed = active(&policies);
    assert!(pushed[0] != before[0] && pushed[1] == before[1]);
    let refusal = policies.status().last_refusal.expect("its file is still broken");
    assert!(refusal.errors[0].contains("plugin `q`"), "{refusal:?}");
    policies.rollback("p", None).await.unwrap();
    assert_eq!(active(&policies), before);

    write_variant(&other, 4);
    policies.release("p").await.unwrap();
    assert_eq!(active(&policies), before, "the other plugin's file is not read");
    policies.replace(config).await.unwrap();
    assert_ne!(active(&policies)[1], before[1]);
    assert_eq!(policies.status().last_refusal, None);
}

#[tokio::test]
async fn rollback_and_release() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    write_variant(&path, 1);
    let config = vec![configured_at(&path)];
    let policies = Engine::new().policies(&config);
    let mut hashes = vec![active(&policies)];
    for number in [2, 3] {
        write_variant(&path, number);
        policies.replace(config.clone()).await.unwrap();
        hashes.push(active(&policies));
    }
    for expected in [1, 0] {
        policies.rollback("p", None).await.unwrap();
        assert_eq!(active(&policies), hashes[expected]);
    }
    let why = problems(policies.rollback("p", None).await);
    assert!(why.contains("has no known-good version to roll back to"), "{why}");
    let kept = policies.versions("p").unwrap();
    assert_eq!(
        kept[0].events.iter().map(|event| event.what).collect::<Vec<_>>(),
        [Transition::Activated, Transition::Deactivated, Transition::Activated]
    );
    assert_eq!(kept[1].exclusion, Some(Exclusion::RolledBack));

    policies.rollback("p", Some(&hashes[1][0][..8])).await.unwrap();
    assert_eq!(active(&policies), hashes[1]);
    assert!(problems(policies.rollback("p", Some("nothing")).await).contains("version nothing not found"));
    assert!(problems(policies.rollback("q", None).await).contains("`q`"));
    policies.release("p").await.unwrap();
    assert_eq!(active(&policies), hashes[2], "the file decides again");
    assert!(policies.status().overrides.is_empty());
}

/// Policies with a version that fails on bodies of "trap", optionally after a good version.
async fn failing(then: QuarantineAction, history: bool) -> (Engine, Arc<Policies>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    write_variant(&path, 1);
    let quarantine = QuarantineConfig { max_failures: 10, window: PATIENCE, action: then };
    let config = PluginConfig { quarantine, ..with(configured_at(&path), OnError::Drop) };
    let engine = Engine::new();
    let policies = engine.policies(std::slice::from_ref(&config));
    if history {
        write_variant(&path, 2);
        policies.replace(vec![config]).await.unwrap();
    }
    (engine, policies, folder)
}

/// Lets the plugin fail this many times, and waits for a condition.
async fn fail_until(policies: &Arc<Policies>, times: usize, done: impl Fn(&Policies) -> bool) {
    let shutdown = CancellationToken::new();
    let mut supervisor = tokio::task::JoinSet::new();
    supervisor.spawn(supervise(Arc::clone(policies), shutdown.clone()));
    let mut chain = policies.current().chain();
    for _ in 0..times {
        chain.filter("push", 0, vec![room("trap")]).unwrap();
    }
    let wait = async {
        while !done(policies) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the condition is never reached");
    shutdown.cancel();
    supervisor.join_all().await;
}

#[tokio::test]
async fn a_failing_version_is_rolled_back() {
    let (engine, policies, _folder) = failing(QuarantineAction::LastGood, true).await;
    let bad = active(&policies);
    fail_until(&policies, 10, |policies| active(policies) != bad).await;
    let status = policies.status();
    let instead = &status.overrides["p"];
    assert_eq!(instead.cause, OverrideCause::Quarantined);
    assert!(instead.why.contains("10 failures within 30s") && instead.why.contains("trapped"), "{instead:?}");
    assert!(status.warnings()[0].contains("plugin `p` was quarantined"), "{:?}", status.warnings());
    assert_eq!(engine.metric("halley_plugin_quarantines_total{plugin=\"p\"}"), Some(1.0));

    let earlier = active(&policies);
    let is_failing = |policies: &Policies| policies.status().plugins[0].state == PluginState::Failing;
    fail_until(&policies, 10, is_failing).await;
    assert_eq!(active(&policies), earlier, "two versions that fail alike: the records are the cause");
    policies.release("p").await.unwrap();
    assert_eq!(active(&policies), bad, "the operator decides");
}

#[tokio::test]
async fn quarantine_can_remove_the_plugin() {
    let (_engine, policies, _folder) = failing(QuarantineAction::Without, true).await;
    fail_until(&policies, 10, |policies| active(policies).is_empty()).await;
    let passed = policies.current().chain().filter("push", 0, vec![room("trap")]).unwrap();
    assert_eq!(passed[0].verdict, crate::decision::Verdict::Pass);
    assert!(policies.status().warnings()[0].contains("continues without it"));
}

#[tokio::test]
async fn a_failing_version_stays_without_a_known_good_one() {
    let (_engine, policies, _folder) = failing(QuarantineAction::LastGood, false).await;
    let is_failing = |policies: &Policies| policies.status().plugins[0].state == PluginState::Failing;
    fail_until(&policies, 10, is_failing).await;
    assert!(policies.status().warnings()[0].contains("no known-good version to roll back to"));
    let dropped = policies.current().chain().filter("push", 0, vec![room("trap")]).unwrap();
    assert!(matches!(dropped[0].verdict, crate::decision::Verdict::Drop { .. }), "its on_error decides");
}

#[tokio::test]
async fn a_restart_restores_active_versions() {
    let (files, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = files.path().join("p.wasm");
    write_variant(&path, 1);
    let config = vec![configured_at(&path)];
    let start = || {
        let versions = Versions::in_folder(state.path(), 10).unwrap();
        Policies::start_with(
            PolicyDependencies { versions, ..PolicyDependencies::new(Engine::new().runtime) },
            &config,
        )
    };
    let first = start().unwrap();
    first.push(upload(variant(files.path(), 2))).await.unwrap();
    let pushed = active(&first);
    drop(first);

    let second = start().unwrap();
    assert_eq!(active(&second), pushed, "the pushed version is restored");
    drop(second);
    std::fs::write(&path, b"broken").unwrap();
    let third = start().unwrap();
    assert_eq!(active(&third), pushed, "the new file is refused");
    assert!(third.status().warnings()[0].contains("is not WebAssembly"), "{:?}", third.status().warnings());
    drop(third);
    write_variant(&path, 4);
    assert_ne!(active(&start().unwrap()), pushed, "a new file ends the push");
}

#[tokio::test]
async fn on_error_depends_on_the_failure_kind() {
    let on_error = crate::policy::OnErrors {
        default: OnError::Pass,
        trap: Some(OnError::DeadLetter),
        deadline: Some(OnError::Drop),
        ..Default::default()
    };
    let config = PluginConfig { on_error, ..configured(unruly("p"), json!({})) };
    let set = Engine::new().set(&[config]);
    let decided = set.chain().filter("push", 0, vec![room("trap"), room("loop"), room("fine")]).unwrap();
    use crate::decision::Verdict;
    assert!(matches!(decided[0].verdict, Verdict::DeadLetter { .. }), "{:?}", decided[0].verdict);
    assert!(matches!(decided[1].verdict, Verdict::Drop { .. }), "{:?}", decided[1].verdict);
    assert_eq!(decided[2].verdict, Verdict::Pass);
}
