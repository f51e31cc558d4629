//! Loading: defaults, locations of mistakes, the environment.

use super::*;

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<(String, String)>> {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("halley.toml");
    std::fs::write(&file, text).expect("written");
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let shorten = |place: String| place.replace(&format!("{}/", folder.path().display()), "");
    Config::load_with(Some(&file), environment)
        .map_err(|mistakes| mistakes.0.into_iter().map(|m| (shorten(m.place), m.text)).collect())
}

#[test]
fn nothing_is_required() {
    assert_eq!(load("", &[]), Ok(Config::default()));
    assert_eq!(Config::load_with(None, []).expect("defaults"), Config::default());
}

#[test]
fn the_example_shows_every_key_with_its_default() {
    let example = include_str!("../../examples/halley.toml");
    assert_eq!(load(example, &[]), Ok(Config::default()));

    let shown: toml::Table = example.parse().expect("TOML");
    let mut defaults = toml::Table::try_from(Config::default()).expect("serializable");
    defaults.remove("plugin");
    assert_eq!(keys("", &shown), keys("", &defaults), "keys of examples/halley.toml");
    let unset =
        ["#directory =", "#name =", "#path =", "#on_error =", "#deadline =", "#memory =", "#config ="];
    assert_eq!(unset.map(|key| example.contains(key)), [true; 7], "keys without a default");
}

#[test]
fn the_schema_describes_every_key() {
    let schema = serde_json::to_value(schemars::schema_for!(Config)).expect("JSON");
    let mut defaults = toml::Table::try_from(Config::default()).expect("serializable");
    defaults.remove("plugin");
    for key in keys("", &defaults) {
        let described = key.split('.').try_fold(&schema, |at, name| {
            let of = resolve(&schema, at);
            assert_eq!(of["additionalProperties"], false, "an unknown key next to {key} is a mistake");
            of["properties"].get(name)
        });
        let described = described.unwrap_or_else(|| panic!("{key} is not in the schema"));
        assert!(described["description"].is_string(), "{key}: {described}");
        let of = resolve(&schema, described);
        let value = key
            .split('.')
            .fold(serde_json::to_value(Config::default()).expect("JSON"), |value, name| value[name].clone());
        let is_known = ["type", "enum", "oneOf", "anyOf"].iter().any(|word| of.get(word).is_some());
        assert!(is_known && fits(&schema, of, &value), "{key}: {value} does not fit {of}");
    }
}

/// What a `$ref` leads to.
fn resolve<'a>(schema: &'a serde_json::Value, at: &'a serde_json::Value) -> &'a serde_json::Value {
    let target = at["$ref"].as_str().and_then(|path| schema.pointer(path.strip_prefix('#')?));
    target.unwrap_or(at)
}

/// Whether a value is of the type that the schema describes, as far as keywords of the defaults go.
fn fits(schema: &serde_json::Value, of: &serde_json::Value, value: &serde_json::Value) -> bool {
    let of = resolve(schema, of);
    let any = |list: &serde_json::Value| {
        list.as_array().is_none_or(|list| list.iter().any(|one| fits(schema, one, value)))
    };
    let is = |name: &str| match name {
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => false,
    };
    let typed = match &of["type"] {
        serde_json::Value::String(name) => is(name),
        serde_json::Value::Array(names) => names.iter().filter_map(|name| name.as_str()).any(is),
        _ => true,
    };
    let listed = of["enum"].as_array().is_none_or(|list| list.contains(value));
    let constant = of.get("const").is_none_or(|constant| constant == value);
    typed && listed && constant && any(&of["oneOf"]) && any(&of["anyOf"])
}

/// All keys of a table, with their sections.
fn keys(prefix: &str, table: &toml::Table) -> Vec<String> {
    let mut keys = Vec::new();
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        match value {
            toml::Value::Table(inner) => keys.extend(self::keys(&format!("{path}."), inner)),
            _ => keys.push(path),
        }
    }
    keys.sort();
    keys
}

#[test]
fn every_mistake_is_named_with_its_place() {
    let text = "[kafka]\nbrokerz = \"a:1\"\ngroup = 5\n\n[delivery]\ntimeout = \"soon\"\n\n[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\non_error = \"explode\"\n\n[nonsense]\n";
    let mistakes = load(text, &[]).expect_err("wrong");
    let places: Vec<_> = mistakes.iter().map(|(place, _)| place.as_str()).collect();
    let mut sorted = places.clone();
    sorted.sort_unstable();
    let expected = ["halley.toml:11", "halley.toml:13", "halley.toml:2", "halley.toml:3", "halley.toml:6"];
    assert_eq!(sorted, expected, "{mistakes:#?}");
    let about = |place: &str| mistakes.iter().find(|(at, _)| at == place).expect("named").1.clone();
    assert!(
        about("halley.toml:2")
            .starts_with("`kafka.brokerz`: unknown key; did you mean `brokers`? the keys are `brokers`, "),
        "{mistakes:#?}"
    );
    assert!(about("halley.toml:11").contains("explode"), "{mistakes:#?}");
}

#[test]
fn a_syntax_error_has_a_position() {
    let mistakes = load("[kafka\nbrokers = 1", &[]).expect_err("wrong");
    assert!(mistakes[0].0 == "halley.toml:1" && mistakes[0].1.contains("line 1"), "{mistakes:?}");
}

#[test]
fn invalid_values_have_a_place() {
    let text = "[kafka]\ngroup = \"\"\ntopics = [\n  \"a\",\n  \"b c\",\n]\nproperties.acks = \"1\"\n\
                [api]\nlisten = \"0.0.0.0:9094\"\n[admin.tls]\nkey = \"key.pem\"\n";
    let environment = [("HALLEY__REDIS__URL", "http://h"), ("HALLEY__COMETS__NODES", r#"["ftp://h:1"]"#)];
    let mistakes = load(text, &environment).expect_err("wrong");
    for (place, about) in [
        ("halley.toml:2", "`kafka.group` is empty"),
        ("halley.toml:5", "`kafka.topics`: `b c`"),
        ("halley.toml:7", "`kafka.properties` sets `acks`"),
        ("halley.toml:9", "`api.token_file` is missing"),
        ("halley.toml:11", "`admin.tls.certificate` and `admin.tls.key` need each other"),
        ("environment variable HALLEY__REDIS__URL", "[redis] url is invalid"),
        ("environment variable HALLEY__COMETS__NODES", "`comets.nodes`"),
    ] {
        let found = mistakes.iter().filter(|(at, text)| at == place && text.contains(about)).count();
        assert_eq!(found, 1, "{place}: {about}: {mistakes:#?}");
    }
    assert_eq!(mistakes.len(), 7, "{mistakes:#?}");
}

#[test]
fn what_follows_from_a_mistake_is_no_mistake() {
    for text in [
        "[comets]\nnodes = 5\n[routing]\nrooms = \"every-comet\"",
        "[kafka]\ndead_letter_topic = 5\n[offline]\nnotify_topic = \"push.dead-letter\"",
        "[delivery]\nrequest_timeout = 1\ndelivery_timeout = \"1ms\"",
        "[kafka]\ntopics = \"push\"\n[archive]\nenabled = true\ntopic = \"push\"",
        "[admin]\nlisten = 9093\n[api]\nlisten = \"127.0.0.1:9093\"",
    ] {
        let mistakes = load(text, &[]).expect_err(text);
        assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
    }
}

#[test]
fn wrong_values_are_explained_in_the_words_of_toml() {
    let number = "expected a whole number from 0 to ";
    for (text, expected) in [
        ("[delivery]\nmax_batch = \"many\"", format!("`delivery.max_batch` is \"many\"; {number}9223372036854775807")),
        ("[delivery]\nmax_batch = -1", format!("is `-1`; {number}9223372036854775807")),
        ("[comets]\nbreaker_failures = 4294967296", format!("is `4294967296`; {number}4294967295")),
        ("[comets]\nqueue = 1.5", format!("is `1.5`; {number}9")),
        ("[kafka]\ntopics = \"push\"", "is \"push\"; expected a list".into()),
        ("[kafka]\ngroup = [\"a\"]", "is a list; expected a string".into()),
        ("[kafka]\ngroup = { a = 1 }", "is a table; expected a string".into()),
        ("kafka = 5", "`kafka` is `5`; expected a table".into()),
        ("[comets]\naddresses = []", "`comets.addresses` is a list; expected a table".into()),
        ("[archive]\nenabled = \"yes\"", "is \"yes\"; expected true or false".into()),
        ("[traces]\nsample_ratio = \"all\"", "is \"all\"; expected a number".into()),
        ("[delivery]\nmax_age = \"soon\"", "is \"soon\"; expected a duration, such as \"50ms\"".into()),
        ("[delivery]\nmax_age = 5", "is `5`; expected a duration, such as \"50ms\"".into()),
        ("[comets]\ndialect = \"goom\"", "is `goom`; expected `chatroom` or `goim`".into()),
        ("[comets]\ndialect = 5", "is `5`; expected `chatroom` or `goim`".into()),
        ("[comets]\ndialect = {}", "is `{}`; expected `chatroom` or `goim`".into()),
        ("[log]\nformat = []", "is `[]`; expected `text` or `json`".into()),
        ("[redis]\nmax_reply = \"much\"", "is \"much\"; expected a size".into()),
        ("[redis]\nmax_reply = {}", "is a table; expected a size, such as \"64MiB\"".into()),
        ("[delivery]\nmemory_limit = 1.5", "is `1.5`; expected".into()),
        ("[[plugin]]\nname = \"a\"\ntime_budget = \"much\"", "`time_budget` of plugin `a`: `much` is not a share".into()),
        ("[[plugin]]\ntime_budget = []", "`time_budget` of plugin number 1".into()),
        ("plugin = 5", "is `5`; expected a list".into()),
        ("[[redis]]\nurl = \"redis://h\"", "`redis` is a list; expected a table".into()),
        ("[comets]\ntls = []", "`comets.tls` is a list; expected a table".into()),
        (
            "[[plugin]]\nname = \"a\"\non_error = \"explode\"",
            "`on_error` of plugin `a` is \"explode\"; expected `pass`, `drop`, `dead-letter`, `stall`, or a table".into(),
        ),
        ("[[plugin]]\nname = \"a\"\non_error = { trap = \"explode\" }", "`on_error.trap` of plugin `a` is `explode`".into()),
        ("[[plugin]]\nname = \"a\"\nrollout = \"b.wasm\"", "`rollout` of plugin `a` is \"b.wasm\"; expected a table".into()),
        ("[[plugin]]\nname = \"a\"\nsha256 = 5", "`sha256` of plugin `a` is `5`; expected".into()),
    ] {
        let mistakes = load(text, &[]).expect_err(text);
        let said = &mistakes[0].1;
        assert!(mistakes.len() == 1 && said.contains(&expected), "{text}: {mistakes:#?}");
        let is_rust = |word: &&str| said.split(|c: char| !c.is_ascii_alphanumeric()).any(|said| said == *word);
        let rust = ["usize", "u64", "u32", "sequence", "struct", "map", "enum", "variant", "integer", "invalid"];
        assert_eq!(rust.iter().find(|word| is_rust(word)), None, "{said}");
    }
}

#[test]
fn the_environment_wins() {
    let environment = [
        ("HALLEY__KAFKA__GROUP", "123"),
        ("HALLEY__KAFKA__TOPICS", r#"["a", "b"]"#),
        ("HALLEY__DELIVERY__MAX_BATCH", "7"),
        ("HALLEY__REDIS__URL", "redis://elsewhere:1"),
    ];
    let config = load("[kafka]\ngroup = \"file\"", &environment).expect("right");
    assert_eq!(config.kafka.group, "123");
    assert_eq!(config.kafka.topics, ["a", "b"]);
    assert_eq!(config.delivery.max_batch, 7);
    assert_eq!(config.redis.url, "redis://elsewhere:1");
    let mistakes = load("", &[("HALLEY__DELIVERY__MAX_BATCH", "many")]).expect_err("wrong");
    assert_eq!(mistakes[0].0, "environment variable HALLEY__DELIVERY__MAX_BATCH");
}

#[test]
fn contradicting_values_are_reported() {
    let text = "[delivery]\ndelivery_timeout = \"1s\"\n[routing]\nrooms = \"every-comet\"";
    let mistakes = load(text, &[]).expect_err("wrong");
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
}

#[test]
fn a_mistake_shows_no_secret() {
    for text in [
        "[kafka.properties]\n\"sasl.password\" = \"hunter2\nmore\"",
        "[kafka.properties]\n\"sasl.password\" = hunter2",
        "[kafka.properties]\n\"sasl.password\" = [\"hunter2\"]",
        "[kafka.properties]\nsasl.password = \"hunter2\"",
        "[kafka]\npropertys = { password = \"hunter2\" }",
        "[redis]\nurl = [\"redis://u:hunter2@h\"]",
        "[redis]\nurl = \"redis://u:hunter2/@h:x\"",
        "[redis]\nurl = \"redis+sentinel://u:hunter2@\"",
    ] {
        let mistakes = load(text, &[]).expect_err(text);
        assert!(!format!("{mistakes:?}").contains("hunter2"), "{text}: {mistakes:?}");
    }
    // A password that consists of digits.
    let mistakes = load("[kafka.properties]\n\"sasl.password\" = 4711", &[]).expect_err("a number");
    let said = (
        "halley.toml:2".to_owned(),
        "`kafka.properties.sasl.password`: expected a string; put it in quotes".to_owned(),
    );
    assert_eq!(mistakes, [said]);
}

#[test]
fn mistakes_in_the_environment_show_the_right_form() {
    let said = |variable: &str, value: &str| load("", &[(variable, value)]).expect_err(variable)[0].1.clone();
    let topics = said("HALLEY__KAFKA__TOPICS", "push");
    assert!(
        topics.ends_with(r#"; in the environment a list is written as in the file: ["a", "b"]"#),
        "{topics}"
    );
    let addresses = said("HALLEY__COMETS__ADDRESSES", "a=b");
    assert!(addresses.contains("inline: { key = \"value\" }"), "{addresses}");
    let group = said("HALLEY__KAFKA_GROUP", "g");
    assert!(group.ends_with("; write HALLEY__KAFKA__GROUP for `kafka.group`"), "{group}");
    let right = [
        ("HALLEY__COMETS__ADDRESSES", r#"{ "Comet-1" = "h:1" }"#),
        ("HALLEY__KAFKA__PROPERTIES__SASL.PASSWORD", "4711"),
    ];
    let config = load("", &right).expect("right");
    assert_eq!(config.comets.addresses["Comet-1"], "h:1");
    assert_eq!(config.kafka.properties["sasl.password"], "4711");
}

fn warnings(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("halley.toml");
    std::fs::write(&file, text).expect("written");
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let inspected = Config::inspect_with(Some(&file), environment);
    assert_eq!(inspected.mistakes, []);
    inspected.warnings.into_iter().map(|warning| warning.text).collect()
}

#[test]
fn probable_mistakes_are_warnings() {
    assert_eq!(warnings(include_str!("../../examples/halley.toml"), &[]), [""; 0]);
    for (text, environment, expected) in [
        (
            "[delivery]\nmax_in_flight_bytes = \"256\"",
            None,
            "`delivery.max_in_flight_bytes` is 256 bytes, because it has no unit",
        ),
        (
            "[delivery]\nmax_in_flight_bytes = 256",
            None,
            "`delivery.max_in_flight_bytes` is 256 bytes, because it has no unit",
        ),
        ("[delivery]\nmax_in_flight_bytes = \"64KiB\"", None, "less than the maximum size of one record"),
        (
            "[[plugin]]\nname = \"a\"\npath = \"a.wasm\"\nmemory = \"64000000\"",
            None,
            "`memory` of plugin `a` is 64000000 bytes, because it has no unit",
        ),
        ("[kafka]\nsession_timeout = \"1s\"", None, "`group.min.session.timeout.ms`"),
        (
            "[kafka]\nsession_timeout = \"60s\"\nproperties = { \"group.protocol\" = \"consumer\" }",
            None,
            "the brokers set the session timeout",
        ),
        ("[comets]\nconnect_timeout = \"3s\"", None, "no effect beyond `delivery.request_timeout`"),
        ("[comets]\nbreaker_window = \"10s\"", None, "not below `delivery.delivery_timeout`"),
        (
            "[comets]\ndialect = \"goim\"\nnodes = [\"a:1\"]\n[routing]\nrooms = \"every-comet\"",
            None,
            "`offline.default` is \"store\", but nothing is stored",
        ),
        ("", Some(("HALLEY_KAFKA_GROUP", "g")), "write HALLEY__KAFKA__GROUP"),
    ] {
        let warnings = warnings(text, environment.as_slice());
        assert!(warnings.iter().any(|warning| warning.contains(expected)), "{text:?}: {warnings:?}");
    }
}

#[test]
fn a_mistaken_key_has_no_warning() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("halley.toml");
    std::fs::write(&file, "[redis]\nmax_reply = -5\n[comets]\nconnect_timeout = 5").expect("written");
    let inspected = Config::inspect_with(Some(&file), []);
    assert_eq!((inspected.mistakes.len(), inspected.warnings), (2, vec![]));
}

#[test]
fn storing_is_warned_of_only_if_no_user_can_be_absent() {
    let goim = "[comets]\ndialect = \"goim\"\nnodes = [\"a:1\"]\n[routing]\nrooms = \"every-comet\"\n";
    for in_order in [
        format!("{goim}[offline]\ndefault = \"drop\""),
        format!("{goim}push_keys = \"users\""),
        goim.replace("every-comet", "directory"),
        goim.replace("goim", "chatroom"),
    ] {
        assert_eq!(warnings(&in_order, &[]), [""; 0], "{in_order}");
    }
}

#[test]
fn names_that_kafka_refuses_are_mistakes() {
    for (text, expected) in [
        ("[kafka]\ndead_letter_topic = \"\"", "`kafka.dead_letter_topic` is empty"),
        (
            "[kafka]\ndead_letter_topic = \"push dead\"",
            "`kafka.dead_letter_topic`: `push dead` is not a valid topic name",
        ),
        ("[kafka]\ntopics = [\"a/b\"]", "`kafka.topics`: `a/b` is not a valid topic name"),
        (
            "[kafka]\nbrokers = \"http://localhost:9092\"",
            "`kafka.brokers`: `http://localhost:9092` has a scheme",
        ),
        ("[offline]\nnotify_topic = \"..\"", "`offline.notify_topic`: `..` is not a valid topic name"),
        ("[offline]\nnotify_topic = \"push.dead-letter\"", "are both `push.dead-letter`"),
        ("[comets]\nnodes = [\"ftp://h:1\"]", "`comets.nodes`"),
        ("[comets]\nnodes = [\"ftp://h:1\"]", "`comets.nodes`"),
    ] {
        let mistakes = load(text, &[]).expect_err(text);
        assert_eq!(mistakes.len(), 1, "{text}: {mistakes:?}");
        assert!(mistakes[0].1.contains(expected), "{text}: {mistakes:?}");
    }
}
