//! Operator changes, quarantine and restarts: which version decides, and why.

use std::path::Path;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::swaps::write_variant;
use super::*;
use crate::artifact::{Against, Cause, Turn, Versions};
use crate::policy::{PluginState, QuarantineConfig, Refused, Then, Upload, supervise};

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

fn in_force(policies: &Policies) -> Vec<String> {
    policies.status().plugins.into_iter().map(|plugin| plugin.hash).collect()
}

fn configured_at(path: &Path) -> PluginConfig {
    PluginConfig { path: path.into(), ..unruly("p") }
}

fn problems(refused: Result<crate::policy::Generation, Refused>) -> String {
    refused.unwrap_err().to_string()
}

#[tokio::test]
async fn a_pushed_version_decides_until_the_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    write_variant(&path, 1);
    let config = vec![configured_at(&path)];
    let policies = Engine::new().policies(&config);
    let first = in_force(&policies);

    policies.push(upload(variant(folder.path(), 2))).await.unwrap();
    let pushed = in_force(&policies);
    assert_ne!(pushed, first);
    assert_eq!(policies.status().overrides["p"].cause, Cause::Pushed);
    policies.replace(config.clone()).await.unwrap();
    assert_eq!(in_force(&policies), pushed, "the file is unchanged");

    write_variant(&path, 3);
    policies.replace(config).await.unwrap();
    assert!(![first, pushed].contains(&in_force(&policies)));
    assert!(policies.status().overrides.is_empty());
}

#[tokio::test]
async fn uploads_come_together_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let policies = Engine::new().policies(&[unruly("p"), unruly("q")]);
    let before = (in_force(&policies), policies.current().generation());
    let both = |second: &str, bytes: &[u8]| {
        let good = Upload { name: "p".into(), bytes: variant(folder.path(), 9), signature: None };
        vec![good, Upload { name: second.into(), bytes: bytes.to_vec(), signature: None }]
    };
    let why = problems(policies.push(both("q", b"hello")).await);
    assert!(why.contains("plugin `q`") && why.contains("is not WebAssembly"), "{why}");
    let why = problems(policies.push(both("nobody", b"")).await);
    assert!(why.contains("plugin `nobody` is not configured"), "{why}");
    assert_eq!((in_force(&policies), policies.current().generation()), before);
    assert_eq!(
        policies.status().last_refusal.map(|refusal| refusal.errors),
        None,
        "the response reported it"
    );
}

#[tokio::test]
async fn what_is_said_of_one_plugin_leaves_the_others_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("p.wasm"), folder.path().join("q.wasm"));
    write_variant(&path, 1);
    write_variant(&other, 2);
    let config = vec![configured_at(&path), PluginConfig { path: other.clone(), ..unruly("q") }];
    let policies = Engine::new().policies(&config);
    let before = in_force(&policies);
    std::fs::write(&other, b"half of a fi").unwrap();
    policies.replace(config.clone()).await.unwrap_err();

    policies.push(upload(variant(folder.path(), 3))).await.unwrap();
    let pushed = in_force(&policies);
    assert!(pushed[0] != before[0] && pushed[1] == before[1]);
    let refusal = policies.status().last_refusal.expect("its file is still broken");
    assert!(refusal.errors[0].contains("plugin `q`"), "{refusal:?}");
    policies.rollback("p", None).await.unwrap();
    assert_eq!(in_force(&policies), before);

    write_variant(&other, 4);
    policies.release("p").await.unwrap();
    assert_eq!(in_force(&policies), before, "the other plugin's file is not read");
    policies.replace(config).await.unwrap();
    assert_ne!(in_force(&policies)[1], before[1]);
    assert_eq!(policies.status().last_refusal, None);
}

#[tokio::test]
async fn going_back_and_release() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    write_variant(&path, 1);
    let config = vec![configured_at(&path)];
    let policies = Engine::new().policies(&config);
    let mut hashes = vec![in_force(&policies)];
    for number in [2, 3] {
        write_variant(&path, number);
        policies.replace(config.clone()).await.unwrap();
        hashes.push(in_force(&policies));
    }
    for expected in [1, 0] {
        policies.rollback("p", None).await.unwrap();
        assert_eq!(in_force(&policies), hashes[expected]);
    }
    let why = problems(policies.rollback("p", None).await);
    assert!(why.contains("has no known-good version to roll back to"), "{why}");
    let kept = policies.versions("p").unwrap();
    assert_eq!(
        kept[0].events.iter().map(|event| event.what).collect::<Vec<_>>(),
        [Turn::Came, Turn::Went, Turn::Came]
    );
    assert_eq!(kept[1].against, Some(Against::RolledBack));

    policies.rollback("p", Some(&hashes[1][0][..8])).await.unwrap();
    assert_eq!(in_force(&policies), hashes[1]);
    assert!(problems(policies.rollback("p", Some("nothing")).await).contains("version nothing not found"));
    assert!(problems(policies.rollback("q", None).await).contains("`q`"));
    policies.release("p").await.unwrap();
    assert_eq!(in_force(&policies), hashes[2], "the file decides again");
    assert!(policies.status().overrides.is_empty());
}

/// Policies with a version that fails on bodies of "trap", optionally after a good version.
async fn failing(then: Then, history: bool) -> (Engine, Arc<Policies>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    write_variant(&path, 1);
    let quarantine = QuarantineConfig { after: 10, within: PATIENCE, then };
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
async fn a_version_that_fails_too_often_gives_way_to_the_last_good_one() {
    let (engine, policies, _folder) = failing(Then::LastGood, true).await;
    let bad = in_force(&policies);
    fail_until(&policies, 10, |policies| in_force(policies) != bad).await;
    let status = policies.status();
    let instead = &status.overrides["p"];
    assert_eq!(instead.cause, Cause::Quarantined);
    assert!(instead.why.contains("10 failures within 30s") && instead.why.contains("trapped"), "{instead:?}");
    assert!(status.warnings()[0].contains("plugin `p` was quarantined"), "{:?}", status.warnings());
    assert_eq!(engine.metric("halley_plugin_quarantines_total{plugin=\"p\"}"), Some(1.0));

    let earlier = in_force(&policies);
    let is_failing = |policies: &Policies| policies.status().plugins[0].state == PluginState::Failing;
    fail_until(&policies, 10, is_failing).await;
    assert_eq!(in_force(&policies), earlier, "two versions that fail alike: the records are the cause");
    policies.release("p").await.unwrap();
    assert_eq!(in_force(&policies), bad, "the operator decides");
}

#[tokio::test]
async fn or_the_chain_goes_on_without_it() {
    let (_engine, policies, _folder) = failing(Then::Without, true).await;
    fail_until(&policies, 10, |policies| in_force(policies).is_empty()).await;
    let passed = policies.current().chain().filter("push", 0, vec![room("trap")]).unwrap();
    assert_eq!(passed[0].verdict, crate::decision::Verdict::Pass);
    assert!(policies.status().warnings()[0].contains("continues without it"));
}

#[tokio::test]
async fn or_it_stays_when_there_is_nothing_to_go_back_to() {
    let (_engine, policies, _folder) = failing(Then::LastGood, false).await;
    let is_failing = |policies: &Policies| policies.status().plugins[0].state == PluginState::Failing;
    fail_until(&policies, 10, is_failing).await;
    assert!(policies.status().warnings()[0].contains("no known-good version to roll back to"));
    let dropped = policies.current().chain().filter("push", 0, vec![room("trap")]).unwrap();
    assert!(matches!(dropped[0].verdict, crate::decision::Verdict::Drop { .. }), "its on_error decides");
}

#[tokio::test]
async fn a_restart_comes_up_with_what_was_in_force() {
    let (files, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = files.path().join("p.wasm");
    write_variant(&path, 1);
    let config = vec![configured_at(&path)];
    let start = || {
        let versions = Versions::in_folder(state.path(), 10).unwrap();
        Policies::start_with(Setup { versions, ..Setup::new(Engine::new().runtime) }, &config)
    };
    let first = start().unwrap();
    first.push(upload(variant(files.path(), 2))).await.unwrap();
    let pushed = in_force(&first);
    drop(first);

    let second = start().unwrap();
    assert_eq!(in_force(&second), pushed, "the pushed version is restored");
    drop(second);
    std::fs::write(&path, b"broken").unwrap();
    let third = start().unwrap();
    assert_eq!(in_force(&third), pushed, "the new file is refused");
    assert!(third.status().warnings()[0].contains("is not WebAssembly"), "{:?}", third.status().warnings());
    drop(third);
    write_variant(&path, 4);
    assert_ne!(in_force(&start().unwrap()), pushed, "a new file ends the push");
}

#[tokio::test]
async fn on_error_goes_by_the_kind_of_error() {
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
