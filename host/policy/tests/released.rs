//! Plugins that were built for released versions of the contract (`tests/guests/released`) load and
//! decide as before, and a plugin for a later version is refused with what it lacks.

use serde_json::json;

use super::*;
use crate::decision::FilteredMessage;
use crate::decision::{AbsenceCause, AbsentRecipient, Disposition, IdKind, Verdict};
use crate::membership::{Connection, CurrentPlacement, Grouping, Membership};

/// The released versions.
const RELEASED: [&str; 3] = ["0.1.0", "0.1.1", "0.1.2"];

/// A plugin of this version, with this configuration.
fn released(version: &str, name: &str, config: serde_json::Value) -> PluginConfig {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/released").join(version);
    configured(PluginConfig::new(name, folder.join(name).with_extension("wasm")), config)
}

fn everything(set: &Arc<PolicySet>, bodies: &[&str]) -> Vec<FilteredMessage> {
    set.chain().filter("push", 3, bodies.iter().map(|body| room(body)).collect()).unwrap()
}

fn regrouped(set: &Arc<PolicySet>, id: &str) -> (Vec<String>, Vec<CurrentPlacement>) {
    let connection = |id: &str, user: &str, comet: &str| Connection {
        id: id.into(),
        user: Some(user.into()),
        comet: comet.into(),
        online: true,
    };
    let connections =
        [connection("c1", "away", "a:1"), connection("c2", "u2", "b:1"), connection("c3", "u3", "b:1")];
    let mut grouping = Grouping::new(Arc::new(Membership::new(connections, 0)));
    set.chain().regroup(&id.into(), &mut grouping).unwrap();
    let comets = grouping.comets().iter().map(ToString::to_string).collect();
    (comets, grouping.members().map(|(_, place)| place).collect())
}

fn disposition(set: &Arc<PolicySet>, user: &str) -> Option<Disposition> {
    let absent = AbsentRecipient {
        by_policy: false,
        user: user.into(),
        identity: IdKind::User,
        connection: None,
        cause: AbsenceCause::NotOnline,
    };
    let mut decided = set.chain().decide(&room("hello"), &[absent]).unwrap();
    decided.remove(0).map(|decided| decided.disposition)
}

#[test]
fn released_plugins_report_version_and_hooks() {
    for version in RELEASED {
        let engine = Engine::new();
        let plugins = [
            released(version, "duplicate_guard", json!({ "duplicates": { "within": "60s" } })),
            released(version, "comet_drain", json!({ "draining": [] })),
            released(version, "offline_rules", json!({ "rules": [] })),
            released(version, "unruly", json!({})),
        ];
        let status = engine.policies(&plugins).status();
        let told = status.plugins.iter().map(|one| (one.wit_version.clone(), one.hooks.clone()));
        let told: Vec<_> = told.collect();
        let of_version = |hooks: &[&'static str]| (version.to_owned(), hooks.to_vec());
        let expected = [
            of_version(&["filter", "lifecycle"]),
            of_version(&["grouping", "lifecycle"]),
            of_version(&["offline", "lifecycle"]),
            of_version(&["filter", "grouping", "offline", "lifecycle"]),
        ];
        assert_eq!(told, expected);
    }
}

#[test]
fn plugins_name_no_folder_of_the_machine_that_built_them() {
    let project = env!("CARGO_MANIFEST_DIR");
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME")).unwrap_or("/root".to_owned());
    let built = [format!("{project}/plugins/dist"), format!("{project}/tests/guests/dist")];
    let released = RELEASED.map(|version| format!("{project}/tests/guests/released/{version}"));
    // That of a container's user may be `/`.
    let home = if home.len() > 5 { home.as_str() } else { "/root/" };
    let folders = [project.as_bytes(), home.as_bytes()];
    for folder in built.iter().chain(&released) {
        let mut seen = 0;
        for file in std::fs::read_dir(folder).expect("plugins").map(|entry| entry.expect("an entry").path()) {
            let bytes = std::fs::read(&file).expect("a plugin");
            let names = |folder: &&[u8]| bytes.windows(folder.len()).any(|part| part == *folder);
            assert!(!folders.iter().any(names), "{}", file.display());
            seen += 1;
        }
        assert!(seen >= 3, "{folder}");
    }
}

#[test]
fn released_filters_decide() {
    for version in RELEASED {
        let guard = released(version, "duplicate_guard", json!({ "duplicates": { "within": "60s" } }));
        let set = Engine::new().set(&[guard]);
        let filtered = everything(&set, &["one", "two"]);
        assert_eq!(filtered.iter().map(|one| one.guards.len()).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(filtered[0].guards[0].ttl, Duration::from_secs(60));

        let engine = Engine::new();
        let set = engine.set(&[released(version, "unruly", json!({ "suffix": "-1" }))]);
        let bodies = ["hello", "drop spam", "dead-letter odd", "body new", "suffix me", "only a:1 b:1"];
        let filtered = everything(&set, &bodies);
        let verdict = |at: usize| filtered[at].verdict.clone();
        let by = set.versions()[0].clone();
        assert_eq!(verdict(1), Verdict::Drop { reason: "spam".into(), by: by.clone() });
        assert_eq!(verdict(2), Verdict::DeadLetter { reason: "odd".into(), by });
        let body = |at: usize| filtered[at].message.body.clone();
        assert_eq!((body(0), body(3), body(4)), ("hello".into(), "new".into(), "suffix me-1".into()));
        assert_eq!(filtered[5].overrides.only, Some(vec!["a:1".into(), "b:1".into()]));
        let counted = [everything(&set, &["count k"]), everything(&set, &["count k"])];
        assert_eq!(counted.map(|batch| batch[0].message.body.clone()), ["1", "2"]);
        everything(&set, &["own-metrics", "flood"]);
        assert!(engine.metrics().contains("halley_plugin_counter_total{"), "{}", engine.metrics());
    }
}

#[test]
fn released_groupings_decide() {
    for version in RELEASED {
        let drain = |more: serde_json::Value| {
            let mut config = json!({ "draining": ["b:1"] });
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Engine::new().set(&[released(version, "comet_drain", config)])
        };
        let (_, places) = regrouped(&drain(json!({ "action": "skip" })), "video_1");
        assert_eq!(places, [CurrentPlacement::At(0), CurrentPlacement::Skipped, CurrentPlacement::Skipped]);
        let redirect = drain(json!({ "action": "redirect", "to": "c:1" }));
        let (comets, places) = regrouped(&redirect, "video_1");
        assert_eq!(comets, ["a:1", "c:1"]);
        assert_eq!(places, [CurrentPlacement::At(0), CurrentPlacement::At(1), CurrentPlacement::At(1)]);
        let set = Engine::new().set(&[released(version, "unruly", json!({}))]);
        let (comets, places) = regrouped(&set, "drain");
        assert_eq!(comets, ["elsewhere:1", "b:1"]);
        assert_eq!(places, [CurrentPlacement::Offline, CurrentPlacement::At(1), CurrentPlacement::Skipped]);
    }
}

#[test]
fn released_offline_rules_decide() {
    for version in RELEASED {
        let rules = json!({ "rules": [{ "rooms": ["*"], "action": "notify", "channel": "apns" }] });
        let set = Engine::new().set(&[released(version, "offline_rules", rules)]);
        assert_eq!(disposition(&set, "ann"), Some(Disposition::Notify { channel: "apns".into() }));
        let set = Engine::new().set(&[released(version, "unruly", json!({}))]);
        let minute = Some(Duration::from_secs(60));
        assert_eq!(disposition(&set, "store-60"), Some(Disposition::Store { retention: minute }));
        assert_eq!(disposition(&set, "ann"), None);
    }
}

#[test]
fn released_plugins_still_refuse_bad_configuration() {
    for version in RELEASED {
        let refused = Engine::new().refusal(&[released(version, "comet_drain", json!({ "drain": 1 }))]);
        assert!(refused[0].contains("refused its configuration: config"), "{refused:?}");
    }
}

/// A plugin of version 0.1.99, which imports a function that this gateway does not have.
#[test]
fn a_newer_plugin_is_refused_with_both_versions() {
    let component = r#"(component
        (import "halley:policy/host@0.1.99" (instance (export "foresee" (func (result u64)))))
        (instance $filter) (export "halley:policy/filter@0.1.99" (instance $filter)))"#;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("new.wasm");
    std::fs::write(&file, wat::parse_str(component).unwrap()).unwrap();
    let refused = Engine::new().refusal(&[PluginConfig::new("new", file)]).remove(0);
    assert!(refused.contains("imports what the gateway does not offer"), "{refused}");
    assert!(refused.contains("was built for the contract halley:policy@0.1.99"), "{refused}");
    assert!(refused.contains("this gateway speaks halley:policy@0.1.3; upgrade the gateway"), "{refused}");
}
