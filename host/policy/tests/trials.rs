//! Canaries and shadows: who decides for which room, when a rollout ends, and what a shadow must not
//! touch.

use std::collections::BTreeSet;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::swaps::write_variant;
use super::*;
use crate::decision::Verdict;
use crate::policy::{Budget, Chain, Mode, Share, TrialConfig, supervise};

const PATIENCE: Duration = Duration::from_secs(30);

/// A plugin and its candidate: two variants of the same guest.
struct World {
    engine: Engine,
    policies: Arc<Policies>,
    config: PluginConfig,
    _folder: tempfile::TempDir,
}

fn world(trial: TrialConfig) -> World {
    let folder = tempfile::tempdir().unwrap();
    let (path, new) = (folder.path().join("p.wasm"), folder.path().join("new.wasm"));
    write_variant(&path, 1);
    write_variant(&new, 2);
    let trial = Some(TrialConfig { path: new, ..trial });
    let config = PluginConfig { path, trial, ..with(unruly("p"), OnError::DeadLetter) };
    let engine = Engine::new();
    let policies = engine.policies(std::slice::from_ref(&config));
    World { engine, policies, config, _folder: folder }
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

impl World {
    fn hashes(&self) -> (String, String) {
        (hash_of(&self.config.path), hash_of(&self.config.trial.as_ref().unwrap().path))
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
                if let (None, Some(last)) = (status.trial, status.last_trial) {
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

fn canary(budget: Budget) -> TrialConfig {
    TrialConfig { share: Share(0.0), rooms: vec!["new".into()], budget, ..TrialConfig::default() }
}

const PATIENT: Budget = Budget { errors: Share(1.0), latency: 1e9, drops: Share(1.0) };

#[test]
fn a_canary_decides_for_its_share_of_the_rooms_and_for_the_named_ones() {
    let world = world(TrialConfig { share: Share(0.3), ..canary(PATIENT) });
    let (active, candidate) = world.hashes();
    assert_eq!(world.decided_by("new"), candidate);
    let rooms: Vec<String> = (0..400).map(|room| format!("room-{room}")).collect();
    let all = rooms.iter().map(|room| in_room(room, "trap")).collect::<Vec<_>>();
    let by: Vec<String> = all
        .chunks(4)
        .flat_map(|some| failed_by(&mut world.policies.current().chain(), some.to_vec()))
        .collect();
    let canarys = by.iter().filter(|by| **by == candidate).count();
    assert!((80..=160).contains(&canarys), "{canarys} of 400 rooms");
    assert_eq!(by.iter().collect::<BTreeSet<_>>(), BTreeSet::from([&active, &candidate]));
    for (room, by) in rooms.iter().zip(&by).take(20) {
        assert_eq!(world.decided_by(room), *by, "{room} keeps its version");
    }
    let everyone = message(Audience::Everyone { speed: 0 }, "trap");
    assert_eq!(failed_by(&mut world.policies.current().chain(), vec![everyone]), [active]);
}

#[tokio::test]
async fn a_canary_comes_in_force_after_its_time() {
    let world = world(TrialConfig { promote_after: Some(Duration::from_millis(1)), ..canary(PATIENT) });
    let (_, candidate) = world.hashes();
    assert_eq!(world.until_ended(&["fine"]).await, "promoted");
    assert_eq!(world.decided_by("old"), candidate);
    assert_eq!(world.policies.status().overrides["p"].why, "promoted");
    world.policies.replace(vec![world.config.clone()]).await.unwrap();
    assert_eq!(world.decided_by("old"), candidate, "the files have not changed");
}

#[tokio::test]
async fn a_canary_that_fails_goes_and_does_not_come_again() {
    let world = world(canary(Budget { errors: Share(0.01), ..PATIENT }));
    let (active, candidate) = world.hashes();
    let why = world.until_ended(&["fine", "trap"]).await;
    assert!(why.contains("of its messages; the budget is 1%"), "{why}");
    assert_eq!(world.decided_by("new"), active);
    world.policies.replace(vec![world.config.clone()]).await.unwrap();
    assert_eq!(world.decided_by("new"), active, "it is not tried again");
    write_variant(&world.config.trial.as_ref().unwrap().path, 3);
    world.policies.replace(vec![world.config.clone()]).await.unwrap();
    let third = world.decided_by("new");
    assert!(third != active && third != candidate, "new content is tried");
}

#[tokio::test]
async fn a_canary_of_a_pinned_plugin_goes_instead_of_coming_in_force() {
    let mut world = world(TrialConfig { promote_after: Some(Duration::from_millis(1)), ..canary(PATIENT) });
    let (active, _) = world.hashes();
    let bytes = std::fs::read(&world.config.path).unwrap();
    let hash = crate::digest::hash;
    world.config.sha256 = Some(hash(&bytes));
    let trial = world.config.trial.as_mut().unwrap();
    trial.sha256 = Some(hash(&std::fs::read(&trial.path).unwrap()));
    world.policies.replace(vec![world.config.clone()]).await.unwrap();
    let why = world.until_ended(&["fine"]).await;
    assert!(why.contains("could not be promoted") && why.contains("is pinned to"), "{why}");
    assert_eq!(world.decided_by("new"), active);
}

#[tokio::test]
async fn trials_end_by_command() {
    let first = world(canary(PATIENT));
    let (active, candidate) = first.hashes();
    first.policies.abandon("p").await.unwrap();
    assert_eq!(first.decided_by("new"), active);
    let why = first.policies.promote("p").await.unwrap_err().to_string();
    assert!(why.contains("has no candidate"), "{why}");

    let second = world(canary(PATIENT));
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
    let trial = TrialConfig { path: guest("unruly"), mode: Mode::Shadow, ..TrialConfig::default() };
    let config = PluginConfig { path, trial: Some(trial), ..configured(unruly("p"), json!({})) };
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
    assert_eq!(policies.status().plugins[0].trial.as_ref().unwrap().differences, Some(0));
    assert_eq!(policies.differences("q").map(|d| d.count), None);
}

#[test]
fn a_broken_candidate_is_refused_with_the_set() {
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new.wasm");
    std::fs::write(&new, b"hello").unwrap();
    let trial = Some(TrialConfig { path: new, ..TrialConfig::default() });
    let problems = Engine::new().refusal(&[PluginConfig { trial, ..unruly("p") }]);
    assert!(
        problems[0].contains("has a candidate") && problems[0].contains("is not WebAssembly"),
        "{problems:?}"
    );
}

#[test]
fn metrics_tell_the_versions_apart() {
    let world = world(canary(PATIENT));
    let (active, candidate) = world.hashes();
    let mut chain = world.policies.current().chain();
    chain
        .filter("push", 0, vec![in_room("new", "fine"), in_room("old", "fine"), in_room("old", "fine")])
        .unwrap();
    let passed = |version: &str| {
        let line =
            format!("halley_plugin_decisions_total{{plugin=\"p\",version=\"{version}\",decision=\"pass\"}}");
        world.engine.metric(&line)
    };
    assert_eq!((passed(&active), passed(&candidate)), (Some(2.0), Some(1.0)));
    let status = world.policies.status().plugins.remove(0).trial.unwrap();
    assert_eq!((status.messages, status.errors), (1, Share(0.0)));
}
