//! The settings that plugins describe: a configuration is checked against them before `init`, and a plugin
//! that describes them badly is refused, whatever it does.

use serde_json::{Value, json};

use super::*;
use crate::policy::ProblemKind;
use crate::wasm::idle::with_contract;
use crate::wasm::inspect;

/// A plugin whose `init` traps and whose `schema` runs this code; its result is the address of the text's
/// address and length.
fn described(folder: &Path, schema: &str, code: &str) -> PluginConfig {
    let text: String = schema.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    let module = format!(
        r#"(module
  (memory (export "memory") 64)
  (data (i32.const 1048576) "{text}")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 2097152))
  (func (export "halley:policy/settings@0.1.3#schema") (result i32)
    (i32.store (i32.const 16) (i32.const 1048576))
    (i32.store (i32.const 20) (i32.const {length}))
    {code}
    (i32.const 16))
  (func (export "halley:policy/lifecycle@0.1.3#init") (param i32 i32) (result i32) unreachable)
  (func (export "halley:policy/retention@0.1.3#retain")
    (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 64)))"#,
        length = schema.len(),
    );
    let exports =
        ["settings", "lifecycle", "retention"].map(|name| format!("export halley:policy/{name}@0.1.3;"));
    let world = format!("package test:described; world w {{ {} }}", exports.concat());
    let file = folder.join("described.wasm");
    std::fs::write(&file, with_contract(&module, &[&world], None).unwrap()).unwrap();
    PluginConfig { memory: bytesize::ByteSize::mib(8), ..PluginConfig::new("described", file) }
}

fn bundled(name: &str, config: Value) -> PluginConfig {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/dist").join(name).with_extension("wasm");
    assert!(file.is_file(), "{} is missing; run `make plugins`", file.display());
    configured(PluginConfig::new(name, file), config)
}

#[test]
fn every_violation_is_reported_before_init_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let schema = json!({
        "properties": { "words": { "type": "array" }, "limit": { "type": "integer", "minimum": 1 } },
        "required": ["words"],
        "additionalProperties": false,
    });
    let plugin = described(folder.path(), &schema.to_string(), "");
    let engine = Engine::new();
    let wrong = configured(plugin.clone(), json!({ "limit": 0, "wrods": [] }));
    let refused = Policies::start_with(engine.setup(), &[wrong]).unwrap_err().problems;
    let expected = [
        ("words", "config.words: missing, but required"),
        ("limit", "config.limit: must be at least 1, and is 0"),
        ("wrods", "config.wrods: unknown key; the keys are `limit`, `words`"),
    ];
    assert_eq!(refused.len(), expected.len(), "{refused:?}");
    for (problem, (key, violation)) in refused.iter().zip(expected) {
        assert_eq!(problem.message, format!("has settings that its schema does not accept: {violation}"));
        assert_eq!(
            (&problem.key[..], problem.kind),
            (&["config".into(), key.into()][..], ProblemKind::Settings)
        );
    }
    let right = engine.refusal(&[configured(plugin, json!({ "words": [] }))]);
    assert!(right[0].contains("could not start: trapped"), "`init` is called now: {right:?}");
}

#[test]
fn bundled_policies_describe_their_settings() {
    let engine = Engine::new();
    let word = |config: Value| engine.refusal(&[bundled("keyword_filter", config)]).join("\n");
    let why = word(json!({ "words": ["a", ""], "action": "mark", "ignore-case": true }));
    for violation in [
        "config.words[1]: must have at least 1 characters",
        "config.action: expected one of `drop`, `mask`, and is \"mark\"",
        "config.ignore-case: unknown key; the keys are `action`, `ignore_case`, `mask`",
    ] {
        assert!(why.contains(violation), "{why}");
    }
    let rule =
        engine.refusal(&[bundled("offline_rules", json!({ "rules": [{ "acton": "drop" }] }))]).join("\n");
    for violation in ["config.rules[0].acton: unknown key", "config.rules[0].action: missing"] {
        assert!(rule.contains(violation), "{rule}");
    }
    let nested = json!({ "cooldown": { "within": 1, "rooms": ["*_1"] }, "duplicates": null });
    let guard = engine.refusal(&[bundled("duplicate_guard", nested)]).join("\n");
    for violation in
        ["config.cooldown.within: expected a string, and is 1", "config.cooldown.rooms[0]: must match"]
    {
        assert!(guard.contains(violation), "{guard}");
    }
    // What no schema expresses is left to the plugin.
    let neither = engine.refusal(&[bundled("duplicate_guard", json!({}))]).remove(0);
    assert!(neither.contains("refused its configuration: config: neither"), "{neither}");
    let active = engine.policies(&[bundled("comet_drain", json!({ "draining": [] }))]).status();
    let fields = active.plugins[0].settings.as_ref().expect("described").fields();
    let keys: Vec<&str> = fields.iter().map(|field| field.key.as_str()).collect();
    assert_eq!(keys, ["action", "draining", "to"]);
    assert!(fields.iter().all(|field| !field.description.is_empty()), "{fields:?}");
}

#[test]
fn plugins_without_a_schema_are_not_checked() {
    let engine = Engine::new();
    let plugin = configured(unruly("plain"), json!({ "anything": [1, { "at": "all" }] }));
    assert!(engine.policies(&[plugin]).status().plugins[0].settings.is_none());
}

#[test]
fn a_plugin_that_describes_its_settings_badly_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::new();
    let length = |length: u32| format!("(i32.store (i32.const 20) (i32.const {length}))");
    for (schema, code, why) in [
        ("{}", "unreachable", "failed when asked for the schema of its settings: trapped: "),
        ("{}", "(loop $again (br $again))", "exceeded its deadline of 1s"),
        (
            "{}",
            "(loop $l (br_if $l (i32.ge_s (memory.grow (i32.const 16)) (i32.const 0)))) unreachable",
            "its memory limit",
        ),
        (
            "{}",
            &length(70_000),
            "exports a schema of its settings that has 70000 bytes; at most 65536 are accepted",
        ),
        ("{}", &length(u32::MAX), "failed when asked for the schema of its settings"),
        ("\u{fe}", &length(1), "failed when asked for the schema of its settings"),
        ("", "", "is not JSON"),
        ("{", "", "is not JSON"),
        (r#"{"type":"text"}"#, "", "is not valid"),
        (r##"{"$ref":"#"}"##, "", "refers to itself"),
        (r#"{"$ref":"file:///etc/passwd"}"#, "", "nothing else is loaded"),
        (r#"{"$ref":"http://127.0.0.1:1/"}"#, "", "nothing else is loaded"),
        (r#"{"pattern":"(?=a)"}"#, "", "is not supported: look-around"),
    ] {
        let plugin = described(folder.path(), schema, code);
        let refused = engine.refusal(std::slice::from_ref(&plugin)).remove(0);
        assert!(refused.contains(why), "{schema} {code}: {refused}");
        let bytes = std::fs::read(plugin.path.file().expect("a file")).unwrap();
        let inspected = inspect(&engine.runtime, &bytes);
        let refused = inspected.refused.expect("refused by `inspect` as well");
        // It has other limits.
        let is_limit = why.contains("limit") || why.contains("deadline");
        assert!(is_limit || refused.contains(why), "{refused}");
    }
}

#[test]
fn a_refused_configuration_leaves_the_active_set_alone() {
    let engine = Engine::new();
    let right = bundled("keyword_filter", json!({ "words": ["spam"] }));
    let policies = engine.policies(std::slice::from_ref(&right));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wrong = configured(right, json!({ "words": "spam" }));
    let refused = runtime.block_on(policies.replace(vec![wrong])).unwrap_err();
    assert!(refused.to_string().contains("config.words: expected a list, and is \"spam\""), "{refused}");
    let status = policies.status();
    assert!(status.plugins[0].settings.is_some());
    assert!(status.last_refusal.is_some_and(|refusal| refusal.errors[0].contains("config.words: expected")));
}
