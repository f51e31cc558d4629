//! Filters: amendments compose, and a failure costs only the message that causes it.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::decision::Verdict;
use crate::decision::{Effect, FailureKind, FilteredMessage, PolicyStalled};
use crate::policy::on_error::OnErrors;
use crate::policy::{Chain, FilterRun, HookKind};

fn filter(set: &Arc<PolicySet>, bodies: &[&str]) -> Vec<FilteredMessage> {
    set.chain().filter("push", 3, bodies.iter().map(|body| room(body)).collect()).unwrap()
}

fn one(set: &Arc<PolicySet>, message: Message) -> FilteredMessage {
    set.chain().filter("push", 3, vec![message]).unwrap().remove(0)
}

/// The trail of a message, as text.
fn trail(filtered: &FilteredMessage) -> Vec<String> {
    filtered.trail.iter().map(|entry| entry.effect.to_string()).collect()
}

#[test]
fn without_plugins_everything_passes_untouched() {
    let set = Engine::new().set(&[]);
    assert!(!set.has(HookKind::Filter) && !set.has(HookKind::Grouping) && !set.has(HookKind::Offline));
    let filtered = one(&set, room("trap"));
    assert_eq!((filtered.message, filtered.verdict), (room("trap"), Verdict::Pass));
}

#[test]
fn every_verdict_arrives() {
    let set = Engine::new().set(&[unruly("p")]);
    let by = set.versions()[0].clone();
    let bodies = ["hello", "drop spam", "dead-letter odd", "body new", "operation 9", "room other"];
    let batch = filter(&set, &bodies);
    assert_eq!(batch[0].trail, []);
    assert_eq!(batch[1].verdict, Verdict::Drop { reason: "spam".into(), by: by.clone() });
    assert_eq!(trail(&batch[1]), ["dropped: spam"]);
    assert_eq!(batch[2].verdict, Verdict::DeadLetter { reason: "odd".into(), by: by.clone() });
    assert_eq!(
        (&batch[3].message.body[..], trail(&batch[3])),
        (&b"new"[..], vec!["amended body".to_owned()])
    );
    assert_eq!((batch[4].message.operation, trail(&batch[4])), (9, vec!["amended operation".to_owned()]));
    assert_eq!(batch[5].message.room().unwrap().as_str(), "other");
    let filtered = one(&set, keys("keys a b c"));
    let Audience::Keys { server, keys } = filtered.message.audience else { panic!("still for keys") };
    assert_eq!((server.as_deref(), keys.len()), (Some("comet-1"), 3));
}

#[test]
fn amendments_of_several_plugins_compose_in_order() {
    let suffix = |name, suffix| configured(unruly(name), json!({ "suffix": suffix }));
    let set = Engine::new().set(&[suffix("first", "-1"), suffix("second", "-2")]);
    let filtered = one(&set, room("suffix me"));
    assert_eq!(filtered.message.body, "suffix me-1-2");
    let by: Vec<&str> = filtered.trail.iter().map(|decision| &*decision.by.name).collect();
    assert_eq!(by, ["first", "second"]);
    let only = one(&set, room("only a:1 b:1"));
    assert_eq!(only.overrides.only.unwrap(), ["a:1".into(), "b:1".into()]);
    let also = one(&set, room("also a:1 a:1"));
    assert_eq!(also.overrides.also, ["a:1".into()], "named four times, added once");
    let stopped = one(&set, room("drop it"));
    assert_eq!(stopped.trail.len(), 1, "the second plugin does not see what the first one stopped");
}

#[test]
fn guards_carry_the_plugins_name() {
    let set = Engine::new().set(&[unruly("p"), unruly("q")]);
    let guards = one(&set, room("once abc")).guards;
    let keys: Vec<&str> = guards.iter().map(|guard| guard.key.as_str()).collect();
    assert_eq!(keys, ["p:abc", "q:abc"]);
    assert_eq!(guards[0].ttl, Duration::from_secs(1));
}

#[test]
fn one_poison_message_costs_only_itself() {
    for poison in ["trap", "loop", "eat", "few", "many", "gigabyte", "only "] {
        let engine = Engine::new();
        let plugin = unruly("p");
        let set = engine.set(&[with(plugin, OnError::DeadLetter)]);
        let mut bodies = vec!["drop x"; 64];
        bodies[37] = poison;
        if poison == "only " {
            bodies[37] = "room ";
        }
        let mut chain = set.chain();
        let batch = chain.filter("push", 3, bodies.iter().map(|body| room(body)).collect()).unwrap();
        for (at, filtered) in batch.iter().enumerate() {
            match &filtered.verdict {
                Verdict::DeadLetter { reason, .. } => {
                    assert_eq!(at, 37, "{poison}: {reason}");
                    assert!(reason.starts_with(&format!("plugin {}", set.versions()[0])), "{reason}");
                }
                verdict => assert!(matches!(verdict, Verdict::Drop { .. }), "{poison} {at}: {verdict:?}"),
            }
        }
        let again = chain.filter("push", 3, vec![room("drop y")]).unwrap();
        assert!(matches!(again[0].verdict, Verdict::Drop { .. }), "{poison}: usable afterwards");
    }
}

#[test]
fn several_poison_messages_in_a_large_batch_cost_only_themselves() {
    for poisoned in [vec![1], vec![0, 255], vec![3, 77, 130, 131]] {
        let engine = Engine::new();
        let set = engine.set(&[with(unruly("p"), OnError::DeadLetter)]);
        let body = |at| if poisoned.contains(&at) { "trap" } else { "drop x" };
        let batch = set.chain().filter("push", 3, (0..256).map(|at| room(body(at))).collect()).unwrap();
        let dead = |filtered: &FilteredMessage| matches!(filtered.verdict, Verdict::DeadLetter { .. });
        let costs: Vec<usize> = (0..256).filter(|at| dead(&batch[*at])).collect();
        assert_eq!(costs, poisoned);
    }
}

#[test]
fn failure_kinds_are_counted_separately() {
    let kinds = [("trap", "trap"), ("loop", "deadline"), ("eat", "memory"), ("few", "bad-answer")];
    for (body, kind) in kinds.into_iter().chain([("gigabyte", "bad-answer"), ("room ", "bad-answer")]) {
        let engine = Engine::new();
        // Kept, because a plugin's metrics are removed with its last set.
        let set = engine.set(&[unruly("p")]);
        let filtered = one(&set, room(body));
        assert_eq!(filtered.verdict, Verdict::Pass, "{body}");
        let trail = trail(&filtered).join("");
        assert!(trail.starts_with("failed: ") && trail.ends_with("; passed on without it"), "{trail}");
        let metric = errors_metric(kind);
        assert_eq!(engine.metric(&metric), Some(1.0), "{body}: {trail}\n{}", engine.metrics());
    }
}

#[test]
fn verdicts_that_do_not_fit_the_message_are_bad_answers() {
    let set = Engine::new().set(&[with(unruly("p"), OnError::Drop)]);
    let for_rooms = ["keys a", "room ", "once ", "once-never x", "once-long"];
    let everyone = message(Audience::Everyone { speed: 1 }, "room x");
    let messages = for_rooms.map(room).into_iter().chain([keys("keys "), keys("room x"), everyone]);
    for filtered in set.chain().filter("push", 3, messages.collect()).unwrap() {
        let Verdict::Drop { reason, .. } = &filtered.verdict else { panic!("{filtered:?}") };
        assert!(reason.starts_with("plugin p@"), "{reason}");
        assert_eq!(filtered.guards, []);
        assert_eq!(filtered.message.operation, 5);
    }
}

#[test]
fn a_plugin_that_fails_on_everything_costs_a_few_deadlines_only() {
    let plugin = PluginConfig { deadline: Duration::from_millis(20), ..unruly("p") };
    let set = Engine::new().set(&[with(plugin, OnError::Drop), unruly("q")]);
    let begun = Instant::now();
    let batch = filter(&set, &["loop"; 500]);
    assert!(batch.iter().all(|filtered| matches!(filtered.verdict, Verdict::Drop { .. })));
    // Eight calls of 20 ms, each rounded up; a busy machine may take longer.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn an_instance_that_leaks_is_replaced_without_loss() {
    let engine = Engine::new();
    let set = engine.set(&[PluginConfig { memory: bytesize::ByteSize::mib(8), ..unruly("p") }]);
    let mut chain = set.chain();
    for _ in 0..50 {
        let filtered = chain.filter("push", 3, vec![room("leak")]).unwrap().remove(0);
        assert_eq!(trail(&filtered), ["amended body"]);
    }
    let failed = engine.metric(&errors_metric("memory"));
    assert!(failed.is_some_and(|times| times >= 5.0), "{}", engine.metrics());
}

#[test]
fn stall_decides_nothing() {
    let set = Engine::new().set(&[with(unruly("p"), OnError::Stall)]);
    let PolicyStalled { plugin, kind, error } =
        set.chain().filter("push", 3, vec![room("hello"), room("trap")]).unwrap_err();
    assert_eq!((plugin, kind), (set.versions()[0].clone(), FailureKind::Trap));
    assert!(error.starts_with("trapped: "), "{error}");
    set.chain().filter("push", 3, vec![room("hello")]).expect("does not stall");
}

/// Retries a stalled batch, this many times.
fn stall(chain: &mut Chain, run: &mut FilterRun, times: usize) {
    for _ in 0..times {
        chain.advance("push", 3, run).unwrap_err();
    }
}

#[test]
fn plugins_before_a_stalled_one_are_called_once() {
    let engine = Engine::new();
    let set = engine.set(&[unruly("first"), with(unruly("second"), OnError::Stall)]);
    let mut chain = set.chain();
    // Because of the trap, the first plugin is called for each message separately.
    let mut run = FilterRun::new(set.generation(), vec![room("trap"), room("count a")]);
    stall(&mut chain, &mut run, 3);
    assert_eq!(run.batch[1].message.body, "1");
    assert_eq!(trail(&run.batch[1]), ["amended body"]);
    let counted = chain.filter("push", 3, vec![room("count a")]).unwrap();
    assert_eq!(counted[0].message.body, "2", "the first one has seen it once");
}

#[test]
fn a_stalled_plugin_does_not_see_answered_messages_again() {
    let engine = Engine::new();
    let suffix = configured(unruly("p"), json!({ "suffix": "-1" }));
    let on_error = OnErrors { deadline: Some(OnError::Stall), ..OnErrors::default() };
    let set = engine.set(&[PluginConfig { on_error, ..suffix }]);
    let mut chain = set.chain();
    let bodies = ["suffix me", "count b", "trap", "loop"];
    let mut run = FilterRun::new(set.generation(), bodies.map(room).into());
    stall(&mut chain, &mut run, 2);
    let counted = chain.filter("push", 3, vec![room("count b")]).unwrap();
    assert_eq!(counted[0].message.body, "3", "once with all messages, once without the one that trapped");
    assert_eq!(run.batch[0].message.body, "suffix me-1");
    let [trapped] = &run.batch[2].trail[..] else { panic!("{:?}", run.batch[2].trail) };
    let Effect::Failed { kind, then, .. } = trapped.effect else { panic!("{trapped}") };
    assert_eq!((kind, then), (FailureKind::Trap, OnError::Pass));
}

#[test]
fn state_is_shared_and_outlives_a_trap() {
    let set = Engine::new().set(&[unruly("p")]);
    assert_eq!(one(&set, room("count a")).message.body, "1");
    one(&set, room("trap"));
    assert_eq!(one(&set, room("count a")).message.body, "2");
}

#[test]
fn floods_of_lines_and_metrics_are_bounded() {
    let engine = Engine::new();
    let set = engine.set(&[unruly("p")]);
    assert_eq!(filter(&set, &["flood", "own-metrics"]).len(), 2);
    let own = |kind: &str| engine.metrics().matches(kind).count();
    assert_eq!(own("halley_plugin_counter_total{"), 64);
    assert_eq!(own("halley_plugin_gauge{"), 64);
}

#[test]
fn every_limit_is_counted_by_plugin_and_version() {
    let key_too_long = format!("count {}", "k".repeat(600));
    let cases = [
        ("loop", "time"),
        ("eat", "memory"),
        ("gigabyte", "output"),
        ("once-long", "output"),
        ("flood", "log"),
        ("own-metrics", "metrics"),
        (key_too_long.as_str(), "state"),
    ];
    for (body, limit) in cases {
        let engine = Engine::new();
        let set = engine.set(&[unruly("p")]);
        one(&set, room(body));
        let counted = |limit: &str| hits(&engine, &set, limit).unwrap_or_default();
        assert!(counted(limit) >= 1.0, "{body}: {}", engine.metrics());
        for other in ["time", "memory", "output", "log", "metrics", "state"] {
            assert!(other == limit || counted(other) == 0.0, "{body} counts {other}: {}", engine.metrics());
        }
    }
}

#[test]
fn time_in_calls_of_the_host_counts_against_the_deadline() {
    let engine = Engine::new();
    let set = engine.set(&[unruly("p")]);
    let trail = trail(&one(&set, room("chatter"))).join("");
    assert!(trail.starts_with("failed: exceeded its deadline of 500ms"), "{trail}");
    assert_eq!(hits(&engine, &set, "time"), Some(1.0), "{}", engine.metrics());
}

/// How often the set's first plugin reached this limit.
fn hits(engine: &Engine, set: &PolicySet, limit: &str) -> Option<f64> {
    let version = &set.versions()[0];
    let labels = format!("plugin=\"{}\",version=\"{}\",limit=\"{limit}\"", version.name, version.hash);
    engine.metric(&format!("halley_plugin_limits_total{{{labels}}}"))
}

#[tokio::test]
async fn it_runs_inside_of_a_single_threaded_runtime() {
    assert_eq!(filter(&Engine::new().set(&[unruly("p")]), &["drop x"])[0].trail.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_runs_inside_of_a_multi_threaded_runtime() {
    assert_eq!(filter(&Engine::new().set(&[unruly("p")]), &["drop x"])[0].trail.len(), 1);
}

fn errors_metric(kind: &str) -> String {
    let version = hash_of(&guest("unruly"));
    format!("halley_plugin_errors_total{{plugin=\"p\",version=\"{version}\",kind=\"{kind}\"}}")
}
