//! The `retention` hook: called after all filters, about the messages that pass.

use serde_json::json;

use super::*;
use crate::decision::{DifferenceKind, Effect, FailureKind, Retention, Verdict};
use crate::policy::{Difference, HookKind, RolloutConfig, RolloutMode};
use crate::wasm::idle::with_contract;

const PATIENCE: Duration = Duration::from_secs(30);
const INBOX: Retention = Retention { inbox: true, history: false };
const HISTORY: Retention = Retention { inbox: false, history: true };

/// Keeps every message in inboxes. Operation 13 traps, and 14 returns an index outside of the batch.
const KEEPS_ALL: &str = r#"(module
  (memory (export "memory") 640)
  (global $next (mut i32) (i32.const 8388608))
  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get $size)))
    (local.get $at))
  (func (export "halley:policy/retention@0.1.3#retain")
    (param i32 i32 i32) (param $rows i32) (param $count i32) (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (local $at i32) (local $operation i32)
    (global.set $next (i32.const 8388608))
    (i32.store (i32.const 16) (i32.const 1024))
    (i32.store (i32.const 20) (local.get $count))
    (block $done (loop $more
      (br_if $done (i32.ge_u (local.get $at) (local.get $count)))
      (local.set $operation (i32.load offset=20 (i32.add (local.get $rows) (i32.mul (local.get $at) (i32.const 40)))))
      (if (i32.eq (local.get $operation) (i32.const 13)) (then unreachable))
      (i32.store offset=1024 (i32.mul (local.get $at) (i32.const 4))
        (select (i32.const 1000) (local.get $at) (i32.eq (local.get $operation) (i32.const 14))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $more)))
    (i32.const 16)))"#;

fn keeps_all(folder: &Path) -> PathBuf {
    let world = "package test:retention; world w { export halley:policy/retention@0.1.3; }";
    let file = folder.join("keeps_all.wasm");
    std::fs::write(&file, with_contract(KEEPS_ALL, &[world], None).unwrap()).unwrap();
    file
}

fn bundled(name: &str, config: serde_json::Value) -> PluginConfig {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/dist").join(name).with_extension("wasm");
    assert!(file.is_file(), "{} is missing; run `make plugins`", file.display());
    configured(PluginConfig::new(name, file), config)
}

fn important() -> PluginConfig {
    bundled("keep_important", json!({ "operations": [5], "rooms": ["im_*"] }))
}

#[test]
fn it_sees_what_the_filters_of_all_policies_left() {
    let engine = Engine::new();
    let set = engine.set(&[important(), unruly("later")]);
    assert!(set.has(HookKind::Retention) && set.has(HookKind::Filter));
    let messages = ["plain", "room im_7", "operation 6", "drop it", "dead-letter it"].map(room).to_vec();
    let filtered = set.chain().filter("push", 3, messages).unwrap();
    let both = Retention { inbox: true, history: true };
    let kept: Vec<_> = filtered.iter().map(|one| one.retention).collect();
    assert_eq!(kept, [INBOX, both, Retention::default(), Retention::default(), Retention::default()]);
    let trail: Vec<_> = filtered[1].trail.iter().map(|entry| entry.effect.to_string()).collect();
    assert_eq!(trail, ["amended room", "keeps it in: inbox, history"], "in the order of calls");
    assert_eq!(*filtered[1].effect_after(0), Effect::Amended(vec![crate::decision::MessagePart::Room]));
    let calls = |hook: &str| {
        let hash = hash_of(Path::new(&important().path.to_string()));
        let labels = format!(r#"{{plugin="keep_important",version="{hash}",hook="{hook}"}}"#);
        engine.metric(&format!("halley_plugin_calls_total{labels}"))
    };
    // Its trial call, and one for the batch.
    assert_eq!((calls("retention"), calls("filter")), (Some(2.0), Some(0.0)));
}

#[test]
fn what_policies_keep_adds_up_and_only_rooms_have_a_history() {
    let folder = tempfile::tempdir().unwrap();
    let all = PluginConfig::new("all", keeps_all(folder.path()));
    let history = bundled("keep_important", json!({ "operations": [], "rooms": ["*"] }));
    let set = Engine::new().set(&[history, all]);
    assert!(!set.has(HookKind::Filter) && set.sees_batches());
    let filtered = set.chain().filter("push", 3, vec![room("a"), keys("b")]).unwrap();
    assert_eq!(filtered[0].retention, INBOX.and(HISTORY));
    assert_eq!((filtered[1].retention, filtered[1].trail.len()), (INBOX, 1), "keys have no history");
    assert!(filtered.iter().all(|one| one.verdict == Verdict::Pass));
}

/// Messages with these operations, of which 13 and 14 fail.
fn operations(
    config: PluginConfig,
    on_error: OnError,
) -> Result<Vec<crate::decision::FilteredMessage>, FailureKind> {
    let messages = [1, 13, 2, 14, 3].map(|operation| Message { operation, ..room("x") }).to_vec();
    let mut chain = Engine::new().set(&[with(config, on_error)]).chain();
    chain.filter("push", 3, messages).map_err(|stalled| stalled.kind)
}

#[test]
fn a_failure_costs_one_message_and_on_error_decides_about_it() {
    let folder = tempfile::tempdir().unwrap();
    let plugin = || PluginConfig::new("all", keeps_all(folder.path()));
    let passed = operations(plugin(), OnError::Pass).unwrap();
    let kept: Vec<_> = passed.iter().map(|one| one.retention.inbox).collect();
    assert_eq!(kept, [true, false, true, false, true]);
    assert!(passed.iter().all(|one| one.verdict == Verdict::Pass));
    let letters = operations(plugin(), OnError::DeadLetter).unwrap();
    let reasons = letters.iter().filter_map(|one| match &one.verdict {
        Verdict::DeadLetter { reason, .. } => Some(reason.as_str()),
        _ => None,
    });
    let reasons: Vec<_> = reasons.collect();
    assert_eq!(reasons.len(), 2);
    assert!(reasons[0].contains("trapped") && reasons[1].contains("keeps message 1000 of 1 in `inbox`"));
    assert_eq!(operations(plugin(), OnError::Stall).unwrap_err(), FailureKind::Trap);
}

#[tokio::test]
async fn a_shadow_may_have_the_hook_that_the_active_version_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let shadow = RolloutConfig {
        path: keeps_all(folder.path()).into(),
        mode: RolloutMode::Shadow,
        ..RolloutConfig::default()
    };
    let active = bundled("keyword_filter", json!({ "words": ["never said"] }));
    let policies = Engine::new().policies(&[PluginConfig { rollout: Some(shadow), ..active }]);
    let filtered = policies.current().chain().filter("push", 0, vec![room("hello")]).unwrap();
    assert!(filtered[0].retention.is_empty() && filtered[0].trail.is_empty(), "a shadow has no effect");
    let found = || policies.differences("keyword_filter").unwrap();
    let compared = async {
        while found().latest.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, compared).await.expect("a difference is found");
    let Difference { kind, active, candidate, .. } = found().latest.remove(0);
    assert_eq!(kind, DifferenceKind::Retention);
    assert_eq!((&*active, &*candidate), ("passed", "keeps it in: inbox"));
    assert_eq!(found().compared, 1, "not once per hook");
}

#[test]
fn a_canary_keeps_for_its_rooms() {
    let folder = tempfile::tempdir().unwrap();
    let canary = RolloutConfig {
        path: keeps_all(folder.path()).into(),
        mode: RolloutMode::Canary,
        rooms: vec!["video_123".to_owned()],
        ..RolloutConfig::default()
    };
    let active = bundled("keyword_filter", json!({ "words": ["never said"] }));
    let set = Engine::new().set(&[PluginConfig { rollout: Some(canary), ..active }]);
    let other = message(Audience::Room("other".into()), "b");
    let filtered = set.chain().filter("push", 0, vec![room("a"), other]).unwrap();
    assert_eq!((filtered[0].retention, filtered[1].retention), (INBOX, Retention::default()));
}
