//! Canaries and shadows: who decides for which room, when a rollout ends, and what a shadow must not
//! touch.

use std::collections::BTreeSet;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::swaps::write_variant;
use super::*;
use crate::artifact::PluginSource;
use crate::decision::Verdict;
use crate::policy::{Chain, Fraction, RolloutConfig, RolloutMode, Thresholds, supervise};

const PATIENCE: Duration = Duration::from_secs(30);

fn file(source: &PluginSource) -> &Path {
    source.file().unwrap()
}

/// A plugin and its candidate: two variants of the same guest.
struct RolloutFixture {
    engine: Engine,
    policies: Arc<Policies>,
    config: PluginConfig,
    _folder: tempfile::TempDir,
}

fn fixture(rollout: RolloutConfig) -> RolloutFixture {
    let folder = tempfile::tempdir().unwrap();
    let (path, new) = (folder.path().join("p.wasm"), folder.path().join("new.wasm"));
    write_variant(&path, 1);
    write_variant(&new, 2);
    let rollout = Some(RolloutConfig { path: new.into(), ..rollout });
    let config = PluginConfig { path: path.into(), rollout, ..with(unruly("p"), OnError::DeadLetter) };
    let engine = Engine::new();
    let policies = engine.policies(std::slice::from_ref(&config));
    RolloutFixture { engine, policies, config, _folder: folder }
}

fn in_room(room: &str, body: &str) -> Message {
    message(Audience::Room(room.into()), body)
}

/// The versions named in the reasons of failed messages.
fn failed_by(chain: &mut Chain, messages: Vec<Message>) -> Vec<String> {
    let decided = chain.filter("push", 0, messages).unwrap();
    decided
        .into_iter()
        .map(|filtered| match filtered.verdict {
            Verdict::DeadLetter { by, .. } => by.hash.to_string(),
            other => panic!("{other:?}"),
        })
        .collect()
}

impl RolloutFixture {
    fn hashes(&self) -> (String, String) {
        (hash_of(file(&self.config.path)), hash_of(file(&self.config.rollout.as_ref().unwrap().path)))
    }

    fn decided_by(&self, room: &str) -> String {
        failed_by(&mut self.policies.current().chain(), vec![in_room(room, "trap")]).remove(0)
    }

    /// Sends messages until the rollout has ended.
    async fn until_ended(&self, bodies: &[&str]) -> String {
        let shutdown = CancellationToken::new();
        let mut supervisor = tokio::task::JoinSet::new();
        supervisor.spawn(supervise(Arc::clone(&self.policies), shutdown.clone()));
        let work = async {
            loop {
                let mut chain = self.policies.current().chain();
                for body in bodies {
                    let both = [in_room("new", body), in_room("old", "fine")];
                    chain.filter("push", 0, vec![both; 20].concat()).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                let status = self.policies.status().plugins.remove(0);
                if let (None, Some(last)) = (status.rollout, status.last_rollout) {
                    return last.why;
                }
            }
        };
        let why = tokio::time::timeout(PATIENCE, work).await.expect("the trial does not end");
        shutdown.cancel();
        supervisor.join_all().await;
        why
    }
}

fn canary(thresholds: Thresholds) -> RolloutConfig {
    RolloutConfig { weight: Fraction(0.0), rooms: vec!["new".into()], thresholds, ..RolloutConfig::default() }
}

const PATIENT: Thresholds = Thresholds { errors: Fraction(1.0), latency: 1e9, drops: Fraction(1.0) };

#[test]
fn a_canary_decides_its_weight_and_named_rooms() {
    let fixture = fixture(RolloutConfig { weight: Fraction(0.3), ..canary(PATIENT) });
    let (active, candidate) = fixture.hashes();
    assert_eq!(fixture.decided_by("new"), candidate);
    let rooms: Vec<String> = (0..400).map(|room| format!("room-{room}")).collect();
    let all = rooms.iter().map(|room| in_room(room, "trap")).collect::<Vec<_>>();
    let by: Vec<String> = all
        .chunks(4)
        .flat_map(|some| failed_by(&mut fixture.policies.current().chain(), some.to_vec()))
        .collect();
    let canarys = by.iter().filter(|by| **by == candidate).count();
    assert!((80..=160).contains(&canarys), "{canarys} of 400 rooms");
    assert_eq!(by.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&active, &candidate]));
    for (room, by) in rooms.iter().zip(&by).take(20) {
        assert_eq!(fixture.decided_by(room), *by, "{room} keeps its version");
    }
    let everyone = message(Audience::Everyone { speed: 0 }, "trap");
    assert_eq!(failed_by(&mut fixture.policies.current().chain(), vec![everyone]), [active]);
}

#[tokio::test]
async fn a_canary_is_promoted_after_its_time() {
    let fixture = fixture(RolloutConfig { promote_after: Some(Duration::from_millis(1)), ..canary(PATIENT) });
    let (_, candidate) = fixture.hashes();
    assert_eq!(fixture.until_ended(&["fine"]).await, "promoted");
    assert_eq!(fixture.decided_by("old"), candidate);
    assert_eq!(fixture.policies.status().overrides["p"].why, "promoted");
    fixture.policies.replace(vec![fixture.config.clone()]).await.unwrap();
    assert_eq!(fixture.decided_by("old"), candidate, "the files have not changed");
}

#[tokio::test]
async fn a_failing_canary_is_rolled_back_for_good() {
    let fixture = fixture(canary(Thresholds { errors: Fraction(0.01), ..PATIENT }));
    let (active, candidate) = fixture.hashes();
    let why = fixture.until_ended(&["fine", "trap"]).await;
    assert!(why.contains("of its messages; the budget is 1%"), "{why}");
    assert_eq!(fixture.decided_by("new"), active);
    fixture.policies.replace(vec![fixture.config.clone()]).await.unwrap();
    assert_eq!(fixture.decided_by("new"), active, "it is not tried again");
    write_variant(fixture.config.rollout.as_ref().unwrap().path.file().unwrap(), 3);
    fixture.policies.replace(vec![fixture.config.clone()]).await.unwrap();
    let third = fixture.decided_by("new");
    assert!(third != active && third != candidate, "new content is tried");
}

#[tokio::test]
async fn a_canary_that_violates_the_pin_is_rolled_back() {
    let mut fixture =
        fixture(RolloutConfig { promote_after: Some(Duration::from_millis(1)), ..canary(PATIENT) });
    let (active, _) = fixture.hashes();
    let bytes = std::fs::read(file(&fixture.config.path)).unwrap();
    let hash = crate::digest::Digest::of;
    fixture.config.sha256 = Some(hash(&bytes));
    let rollout = fixture.config.rollout.as_mut().unwrap();
    rollout.sha256 = Some(hash(&std::fs::read(file(&rollout.path)).unwrap()));
    fixture.policies.replace(vec![fixture.config.clone()]).await.unwrap();
    let why = fixture.until_ended(&["fine"]).await;
    assert!(why.contains("could not be promoted") && why.contains("is pinned to"), "{why}");
    assert_eq!(fixture.decided_by("new"), active);
}

#[tokio::test]
async fn rollouts_end_by_command() {
    let first = fixture(canary(PATIENT));
    let (active, candidate) = first.hashes();
    first.policies.abandon("p").await.unwrap();
    assert_eq!(first.decided_by("new"), active);
    let why = first.policies.promote("p").await.unwrap_err().to_string();
    assert!(why.contains("has no candidate"), "{why}");

    let second = fixture(canary(PATIENT));
    second.policies.promote("p").await.unwrap();
    assert_eq!(second.decided_by("old"), candidate);
    second.policies.rollback("p", None).await.unwrap();
    assert_eq!(second.decided_by("old"), active);
}

#[tokio::test]
async fn a_shadow_has_no_effect_and_its_differences_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p.wasm");
    write_variant(&path, 1);
    let rollout =
        RolloutConfig { path: guest("unruly").into(), mode: RolloutMode::Shadow, ..RolloutConfig::default() };
    let config =
        PluginConfig { path: path.into(), rollout: Some(rollout), ..configured(unruly("p"), json!({})) };
    let engine = Engine::new();
    let policies = engine.policies(&[config]);
    let mut chain = policies.current().chain();
    for body in ["fine", "count hits", "fine"] {
        chain.filter("push", 0, vec![room(body)]).unwrap();
    }
    let compared = || policies.differences("p").unwrap().compared;
    let wait = async {
        while compared() < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the shadow sees the batches");
    let differences = policies.differences("p").unwrap();
    assert_eq!((differences.count, differences.not_compared), (0, 0), "{differences:?}");
    assert_eq!(policies.status().plugins[0].rollout.as_ref().unwrap().differences, Some(0));
    assert_eq!(policies.differences("q").map(|d| d.count), None);
}

#[test]
fn a_broken_candidate_is_refused_with_the_set() {
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new.wasm");
    std::fs::write(&new, b"hello").unwrap();
    let rollout = Some(RolloutConfig { path: new.into(), ..RolloutConfig::default() });
    let problems = Engine::new().refusal(&[PluginConfig { rollout, ..unruly("p") }]);
    assert!(
        problems[0].contains("has a candidate") && problems[0].contains("is not WebAssembly"),
        "{problems:?}"
    );
}

#[test]
fn metrics_tell_the_versions_apart() {
    let fixture = fixture(canary(PATIENT));
    let (active, candidate) = fixture.hashes();
    let mut chain = fixture.policies.current().chain();
    chain
        .filter("push", 0, vec![in_room("new", "fine"), in_room("old", "fine"), in_room("old", "fine")])
        .unwrap();
    let passed = |version: &str| {
        let line =
            format!("halley_plugin_decisions_total{{plugin=\"p\",version=\"{version}\",decision=\"pass\"}}");
        fixture.engine.metric(&line)
    };
    assert_eq!((passed(&active), passed(&candidate)), (Some(2.0), Some(1.0)));
    let status = fixture.policies.status().plugins.remove(0).rollout.unwrap();
    assert_eq!((status.messages, status.errors), (1, Fraction(0.0)));
}
