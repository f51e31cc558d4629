//! Schemas of authors, and of attackers.

use serde_json::json;

use super::*;

fn schema(document: Value) -> SettingsSchema {
    SettingsSchema::parse(&document.to_string()).unwrap()
}

fn refusal(document: Value) -> String {
    SettingsSchema::parse(&document.to_string()).unwrap_err().to_string()
}

fn violations(document: &Value, config: Value) -> Vec<String> {
    match schema(document.clone()).check(&config) {
        Ok(()) => Vec::new(),
        Err(SettingsError::Violated(violations, 0)) => violations.iter().map(ToString::to_string).collect(),
        Err(other) => panic!("{other}"),
    }
}

/// As schemars makes it of a policy's types.
fn rules() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Config",
        "type": "object",
        "properties": {
            "rules": { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/Rule" } },
            "limit": { "description": "Per\nminute.", "type": ["integer", "null"], "minimum": 1, "default": 60 },
            "mask": { "type": "string", "maxLength": 1, "default": "*" },
            "cooldown": { "anyOf": [{ "$ref": "#/$defs/Cooldown" }, { "type": "null" }] },
            "regions": { "type": "object", "additionalProperties": { "type": "array", "items": { "type": "string" } } },
        },
        "required": ["rules"],
        "additionalProperties": false,
        "$defs": {
            "Rule": {
                "type": "object",
                "properties": {
                    "action": { "description": "What to do.", "$ref": "#/$defs/Action" },
                    "rooms": { "type": "array", "items": { "type": "string", "pattern": r"^[^*]*\*?$" } },
                },
                "required": ["action"],
                "additionalProperties": false,
            },
            "Action": { "oneOf": [
                { "description": "Later.", "type": "string", "const": "store" },
                { "type": "string", "enum": ["drop", "notify"] },
            ] },
            "Cooldown": {
                "type": "object",
                "properties": { "within": { "type": "string" } },
                "required": ["within"],
            },
        },
    })
}

#[test]
fn a_configuration_that_fits_is_accepted() {
    let config =
        json!({ "rules": [{ "action": "drop", "rooms": ["video_*"] }], "cooldown": { "within": "1s" } });
    assert_eq!(violations(&rules(), config), [""; 0]);
    assert_eq!(violations(&json!(true), json!({ "a": 1 })), [""; 0]);
    assert_eq!(violations(&json!({}), json!({})), [""; 0]);
}

#[test]
fn every_violation_is_named_with_its_path() {
    let config = json!({
        "rules": [{ "action": "drop" }, { "action": "keep", "rooms": ["a*b"] }, { "rooms": [7] }],
        "limit": 0,
        "mask": "**",
        "cooldown": { "within": 5 },
        "regions": { "eu west": "all" },
        "lmit": 3,
        "a\u{7}b": 1,
    });
    let mut found = violations(&rules(), config);
    found.sort_unstable();
    let keys = "unknown key; the keys are `cooldown`, `limit`, `mask`, `regions`, `rules`";
    assert_eq!(
        found,
        [
            format!(r#"config."a\u0007b": {keys}"#).as_str(),
            "config.cooldown.within: expected a string, and is 5",
            "config.limit: must be at least 1, and is 0",
            &format!("config.lmit: {keys}"),
            "config.mask: must have at most 1 characters, and is \"**\"",
            "config.regions.\"eu west\": expected a list, and is \"all\"",
            "config.rules[1].action: expected one of `store`, `drop`, `notify`, and is \"keep\"",
            r#"config.rules[1].rooms[0]: must match the pattern `^[^*]*\*?$`, and is "a*b""#,
            "config.rules[2].action: missing, but required",
            "config.rules[2].rooms[0]: expected a string, and is 7",
        ]
    );
    assert_eq!(violations(&rules(), json!({})), ["config.rules: missing, but required"]);
    let none = violations(&rules(), json!({ "rules": [] }));
    assert_eq!(none, ["config.rules: must have at least 1 elements, and has 0"]);
    let either = json!({ "properties": { "a": { "anyOf": [{ "type": "string" }, { "minimum": 5, "type": "integer" }] } } });
    assert_eq!(violations(&either, json!({ "a": 3 })), ["config.a: must be at least 5, and is 3"]);
    let shown = "config.a: fits none of 2 forms: expected a string; or expected a whole number";
    assert_eq!(violations(&either, json!({ "a": [] })), [shown]);
    let names = json!({ "propertyNames": { "pattern": "^[a-z]+$" } });
    let found = violations(&names, json!({ "A": 1 }));
    assert_eq!(found, ["config: does not accept the key `A`: must match the pattern `^[a-z]+$`"]);
}

#[test]
fn a_list_of_violations_has_an_end_and_long_values_are_not_quoted() {
    let strings = schema(json!({ "additionalProperties": { "type": "string" } }));
    let many: Map<String, Value> = (0..1_000).map(|n| (format!("k{n}"), json!(n))).collect();
    let error = strings.check(&Value::Object(many)).unwrap_err();
    assert!(matches!(&error, SettingsError::Violated(listed, 968) if listed.len() == 32), "{error:?}");
    assert!(error.to_string().ends_with("; and 968 more"));
    let numbers = schema(json!({ "additionalProperties": { "type": "integer" } }));
    let long = numbers.check(&json!({ "a": "secret".repeat(100) })).unwrap_err().to_string();
    assert!(long.ends_with("config.a: expected a whole number"), "{long}");
}

#[test]
fn schemas_in_other_languages_and_invalid_ones_are_refused() {
    let parse = |text: &str| SettingsSchema::parse(text).unwrap_err().to_string();
    assert!(parse("{").starts_with("is not JSON: "));
    assert!(parse("").starts_with("is not JSON: "));
    assert!(
        refusal(json!({ "type": "text" })).starts_with("is not valid: "),
        "{}",
        refusal(json!({ "type": "text" }))
    );
    for invalid in [
        json!(7),
        json!([]),
        json!({ "properties": [] }),
        json!({ "required": "a" }),
        json!({ "minimum": "1" }),
    ] {
        assert!(
            refusal(invalid.clone()).starts_with("is not valid: "),
            "{invalid}: {}",
            refusal(invalid.clone())
        );
    }
    let draft = refusal(json!({ "$schema": "http://json-schema.org/draft-07/schema#" }));
    assert!(draft.contains("draft-07") && draft.contains("write it in draft 2020-12"), "{draft}");
    let named = json!({ "$id": "https://example.com/settings", "$ref": "#/$defs/a", "$defs": { "a": { "type": "object" } } });
    assert_eq!(violations(&named, json!({})), [""; 0], "a schema may have a name");
}

#[test]
fn nothing_outside_of_the_schema_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("other.json");
    std::fs::write(&file, "{}").unwrap();
    let file = format!("file://{}", file.display());
    for reference in
        [&*file, "http://127.0.0.1:1/a.json", "other.json", "https://json-schema.org/draft/2020-12/schema"]
    {
        let why = refusal(json!({ "properties": { "a": { "$ref": reference } } }));
        let part: String = reference.chars().take(20).collect();
        assert!(why.contains(&part) && why.contains("nothing else is loaded"), "{why}");
    }
    for target in ["#/$defs/missing", "#name", "#/properties", "#/default", "#/properties/a/enum/0"] {
        let document = json!({ "default": {}, "properties": { "a": { "$ref": target, "enum": [{}] } } });
        assert!(refusal(document).contains(&format!("refers to `{target}`")), "{target}");
    }
    for keyword in ["$id", "$schema", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveRef"] {
        let document =
            json!({ "properties": { "a": { keyword: "https://json-schema.org/draft/2020-12/schema" } } });
        assert!(refusal(document).contains(&format!("uses `{keyword}`")), "{keyword}");
    }
    // A setting may have any name.
    let named = json!({ "properties": { "$ref": { "type": "integer" }, "pattern": { "type": "string" } } });
    assert_eq!(
        violations(&named, json!({ "$ref": "http://a" })),
        ["config.\"$ref\": expected a whole number, and is \"http://a\""]
    );
}

#[test]
fn hostile_schemas_are_refused_before_they_cost_anything() {
    assert!(SettingsSchema::parse(&" ".repeat(70_000)).unwrap_err().to_string().contains("70000 bytes"));
    let mut deep = json!(true);
    (0..40).for_each(|_| deep = json!({ "items": deep }));
    assert!(refusal(deep).contains("24 levels deep"));
    let brackets = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    assert!(SettingsSchema::parse(&brackets).unwrap_err().to_string().starts_with("is not JSON"));
    let many: Vec<Value> = vec![json!(true); 5_000];
    assert!(refusal(json!({ "allOf": many })).contains("more than 4096 schemas"));
    let patterns: Vec<Value> = (0..65).map(|n| json!({ "pattern": n.to_string() })).collect();
    assert!(refusal(json!({ "allOf": patterns })).contains("more than 64 patterns"));
    assert!(refusal(json!({ "pattern": "a".repeat(513) })).contains("513 bytes"));
    assert!(refusal(json!({ "pattern": r"(\w{100}){100}" })).contains("when compiled"));
    assert!(refusal(json!({ "patternProperties": { r"(\w{100}){100}": true } })).contains("when compiled"));
    // Look-around and back-references have no linear engine.
    for (pattern, why) in [("(?=a)b", "look-around"), (r"(a)\1", "backreferences"), ("(", "unclosed group")] {
        let refused = refusal(json!({ "pattern": pattern }));
        assert!(
            refused.contains(&format!("has the pattern `{pattern}`, which is not supported: {why}")),
            "{refused}"
        );
    }
    // Escapes that only ECMAScript has do not hide how large a pattern is.
    assert!(refusal(json!({ "pattern": r"(\w{100}){100}\cA" })).contains("which is not supported"));
}

#[test]
fn a_catastrophic_pattern_takes_linear_time() {
    let evil = json!({ "properties": { "a": { "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$" } } });
    // A backtracking engine takes 2^50000 steps.
    assert_eq!(violations(&evil, json!({ "a": "a".repeat(50_000) })).len(), 1);
}

#[test]
fn schemas_that_multiply_or_never_end_are_refused() {
    for endless in [
        json!({ "$ref": "#" }),
        json!({ "allOf": [{ "$ref": "#/$defs/a" }], "$defs": { "a": { "not": { "$ref": "#" } } } }),
    ] {
        assert!(refusal(endless).contains("refers to itself more than 128 levels deep"));
    }
    let mut defs = Map::new();
    for n in 0..100 {
        let next = format!("#/$defs/a{}", n + 1);
        defs.insert(format!("a{n}"), json!({ "anyOf": [{ "$ref": next }, { "$ref": next }] }));
    }
    defs.insert("a100".to_owned(), json!(false));
    let doubling = json!({ "properties": { "a": { "$ref": "#/$defs/a40" } }, "$defs": defs });
    // Only a configuration that has the key leads there.
    let error = schema(doubling.clone()).check(&json!({ "a": 1 })).unwrap_err().to_string();
    assert!(error.contains("takes more than 500000 steps"), "{error}");
    assert_eq!(violations(&doubling, json!({ "b": 1 })), [""; 0]);

    // Recursive settings are fine: they end with the configuration.
    let tree = json!({
        "type": "object",
        "properties": { "of": { "type": "array", "items": { "$ref": "#" } } },
        "additionalProperties": false,
    });
    let mut config = json!({ "if": 1 });
    (0..20).for_each(|_| config = json!({ "of": [config] }));
    assert_eq!(violations(&tree, config).len(), 1);
    let mut config = json!({});
    (0..60).for_each(|_| config = json!({ "of": [config] }));
    let error = schema(tree).check(&config).unwrap_err().to_string();
    assert!(error.contains("128 levels deep"), "{error}");
    let words: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
    let list = json!({ "properties": { "words": { "items": { "type": "string" }, "uniqueItems": true } } });
    assert_eq!(violations(&list, json!({ "words": words })), [""; 0], "a long list is no attack");
}

#[test]
fn settings_are_listed_for_people() {
    let rows: Vec<String> = schema(rules())
        .fields()
        .iter()
        .map(|field| {
            let SettingsField { key, kind, required, default, description } = field;
            let default = default.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{key}|{kind}|{required}|{default}|{description}")
        })
        .collect();
    assert_eq!(
        rows,
        [
            "cooldown|table|false||",
            "cooldown.within|string|true||",
            "limit|integer|false|60|Per minute.",
            "mask|string|false|\"*\"|",
            "regions|table|false||",
            "regions.*|array of string|false||",
            "rules|array of table|true||",
            "rules[].action|\"store\" | \"drop\" | \"notify\"|true||What to do.",
            "rules[].rooms|array of string|false||",
        ]
    );
    let tree = schema(json!({ "properties": { "a": { "$ref": "#" }, "b": { "$ref": "#" } } }));
    assert!(tree.fields().len() <= 256, "what refers to itself is listed to an end");
    assert_eq!(schema(json!(true)).fields(), []);
}
